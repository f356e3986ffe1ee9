"""The values of --stage: settings of stages other than the main one, NAME:KEY=VALUE. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from gencli.errors import UsageError
from gencli.image.values import named_sampler
from gencli.options import KINDS, Option

STAGE_KEYS = {  # what --stage NAME:KEY=VALUE may set: key → field
    "steps": "steps", "cfg-scale": "guidance", "guidance-rescale": "guidance_rescale",
    "guidance-start": "guidance_start", "guidance-end": "guidance_end", "sampler": "sampler",
    "eta": "eta", "spacing": "spacing", "karras": "karras", "noise-level": "noise_level",
}  # fmt: skip


def parse_stages(texts: Sequence[str], options: Mapping[str, Option]) -> dict[str, dict[str, object]]:
    """Parse NAME:KEY=VALUE, each. Return name of a stage → fields of `ImageRequest` → values. Raise UsageError.

    options: the rows of `ImageRequest`.
    """
    stages: dict[str, dict[str, object]] = {}
    for text in texts:
        name, _, assignment = text.partition(":")
        key, equals, word = assignment.partition("=")
        if not (name and key and equals):
            raise UsageError(f"--stage {text!r:.80}: expected NAME:KEY=VALUE", "as in refiner:steps=20")
        if key not in STAGE_KEYS:
            raise UsageError(f"--stage {text!r:.80}: no key {key!r:.40}", f"there are {', '.join(STAGE_KEYS)}")
        field = STAGE_KEYS[key]
        option = options[field]
        try:
            value = {"true": True, "false": False}[word.lower()] if option.kind is bool else option.kind(word)
        except (KeyError, ValueError):
            hint = "each --stage sets one KEY; give it again for another" if "," in word else None
            raise UsageError(f"--stage {text!r:.80}: expected {KINDS[option.kind]}", hint) from None
        try:
            option.check(field, value)
        except UsageError as error:
            raise UsageError(f"--stage {text!r:.80}: {error.message}", error.hint) from None
        stages.setdefault(name, {})[field] = value
    return {name: {**values, **named_sampler(values)} for name, values in stages.items()}
