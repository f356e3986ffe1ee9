"""Values of image options that are more than a number or a name of a few, and how the web UI calls values."""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from gencli.errors import UsageError
from gencli.image.diffusion import samplers
from gencli.options import Option, check_kind, typed

# How the web UI calls values; a sampler that it lacks goes by its own name.
SAMPLER_LABELS: Mapping[object, str] = {
    "ddim": "DDIM",
    "ddpm": "DDPM",
    "euler": "Euler",
    "euler_a": "Euler a",
    "dpmpp_2m": "DPM++ 2M",
    "dpmpp_2m_sde": "DPM++ 2M SDE",
    "dpmpp_3m_sde": "DPM++ 3M SDE",
    "dpmpp_2s_a": "DPM++ 2S a",
    "dpmpp_sde": "DPM++ SDE",
    "dpm2": "DPM2",
    "dpm2_a": "DPM2 a",
    "heun": "Heun",
    "lms": "LMS",
    "unipc": "UniPC",
    "lcm": "LCM",
}
SCHEDULE_LABELS: Mapping[object, str] = {True: "Karras", False: "Automatic"}
EMPHASIS_LABELS: Mapping[object, str] = {True: "Original", False: "None"}  # its ways to read brackets in prompts


def parse_sampler_options(pairs: Sequence[str] | None) -> dict[str, bool | float | str]:
    """Parse `NAME=VALUE`, each. Raise UsageError for anything else."""
    options: dict[str, bool | float | str] = {}
    for pair in pairs or ():
        name, equals, word = pair.partition("=")
        if not equals or not name:
            raise UsageError(f"--sampler-option {pair!r}: expected NAME=VALUE")
        value: bool | float | str = {"true": True, "false": False}.get(word.lower(), word)
        for kind in (float, int):  # whole numbers stay whole
            with contextlib.suppress(ValueError):
                value = kind(word)
        options[name.replace("-", "_")] = value
    return options


def check_sampler(name: str, value: str) -> None:
    Option(str).check_one(name, value)
    try:
        samplers.find(value)
    except UsageError as error:
        raise UsageError(f"{name} {value!r:.80}: no such sampler", error.hint) from None


def check_sampler_options(name: str, values: Mapping[str, object]) -> None:
    check_kind(name, values, Mapping)
    for key, value in values.items():
        if not isinstance(value, (bool, int, float, str)) or value in (math.inf, -math.inf) or value != value:
            raise UsageError(f"--sampler-option {key}={value!r}: expected NAME=VALUE")


def check_hashes(name: str, values: Mapping[str, object]) -> None:
    check_kind(name, values, Mapping)
    for key, value in values.items():
        Option(str).check_one(name, key)
        if not (isinstance(value, str) and re.fullmatch("[0-9a-f]{16}", value)):
            raise UsageError(f"{name}: {str(value)[:40]!r} is not a fingerprint")


def named_sampler(values: Mapping[str, object]) -> dict[str, object]:
    """The sampler of some fields' values as it is called here, with Karras' noise levels if its name elsewhere has
    them."""
    if (text := typed(values, "sampler", str)) is None:
        return {}
    name, karras = samplers.find(text)
    known = karras is None or values.get("karras") is not None
    return {"sampler": name, **({} if known else {"karras": karras})}


def check_refiner_start(name: str, value: float) -> None:
    check_kind(name, value, float)
    if not 0 < value < 1:
        raise UsageError(f"{name} {value:g}: must be more than 0 and less than 1")


def check_strength(name: str, value: float) -> None:
    check_kind(name, value, float)
    if not 0 < value <= 1:
        hint = "0 would leave the image unchanged" if value == 0 else None
        raise UsageError(f"{name} {value:g}: must be more than 0 and at most 1", hint)


@dataclass(frozen=True)
class Control:
    """One ControlNet of a request: its name, its image's file, its scale, and between which fractions of the steps."""

    model: str
    image: str
    scale: float = 1.0
    start: float = 0.0
    end: float = 1.0


def controls_of(models: Sequence[str], images: Sequence[str], options: Mapping[str, Sequence[float]]) -> list[Control]:
    """Return the ControlNets of a request's values. Raise UsageError for values that do not fit each other."""
    if len(models) != len(images):
        raise UsageError(
            f"{len(models)} --control and {len(images)} --control-image: each ControlNet reads one image",
            "give --control ID and --control-image FILE in pairs",
        )
    for name, given in options.items():
        if len(given) not in {0, min(len(models), 1), len(models)}:
            raise UsageError(f"{len(given)} --control-{name} for {len(models)} --control", "give one, or one for each")
    found = [
        Control(model, image, **{name: given[i % len(given)] for name, given in options.items() if given})
        for i, (model, image) in enumerate(zip(models, images, strict=True))
    ]
    for control in found:
        if control.start >= control.end:
            raise UsageError(f"--control-start {control.start} is not before --control-end {control.end}")
    return found
