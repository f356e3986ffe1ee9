"""Which tool made an image, and what it says of the making: one row per tool, tried in order.

A row's `read` returns None for texts that are none of its tool's, and raises GencliError for those that are and cannot
be followed. To add a tool: its function, or a `Keys` if it writes one table, and its row in READERS.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from gencli.errors import GencliError
from gencli.image.files import infotext, metadata
from gencli.image.files.comfyui import is_graph, read_graph
from gencli.image.files.infotext import Recipe

Texts = Mapping[str, str]
COMMENTS = ("parameters", "UserComment", "comment", "stealth", "ImageDescription")  # where infotext may be
# Tools that are known by a word of theirs, and whose texts are not read.
NAMED = {
    r"Draw Things": "Draw Things", r"\bJob ID: [0-9a-f-]{36}|Midjourney": "Midjourney",
    r"Adobe Firefly": "Adobe Firefly", r"DALL.E|OpenAI": "OpenAI", r"\bmflux": "mflux",
    r"DiffusionBee": "DiffusionBee", r"DreamStudio": "DreamStudio",
}  # fmt: skip
UI_GRAPH = '"last_node_id"'  # of ComfyUI's editor


class Reader(NamedTuple):
    """A tool: its name in messages, and what it says, if a text is its own."""

    tool: str
    read: Callable[[Texts], Recipe | None]


@dataclass(frozen=True)
class Keys:
    """A tool that writes one table. find: the table, or None. names: its keys → infotext's keys. silent: keys that say
    nothing about the pixels. weighted: whether it reads brackets as weights. own_weights: syntax that only it knows."""

    find: Callable[[Texts], Mapping[str, object] | None]
    names: Mapping[str, str]
    prompt: str = "prompt"
    negative: str = "negative_prompt"
    silent: frozenset[str] = frozenset()
    weighted: bool = False
    own_weights: str | None = None
    change: Callable[[dict[str, object]], None] = field(default=lambda raw: None)

    def __call__(self, texts: Texts) -> Recipe | None:
        found = self.find(texts)
        if found is None:
            return None
        raw = {key: value for key, value in found.items() if value not in (None, "", [], {}, False)}
        self.change(raw)
        prompt, negative = (raw.pop(key, "") for key in (self.prompt, self.negative))
        if not isinstance(prompt, str) or not isinstance(negative, str):
            raise GencliError(f"its {self.prompt!r} is no text")
        settings = {self.names[key]: _text(raw.pop(key)) for key in [*raw] if key in self.names}
        if {"width", "height"} <= raw.keys():
            settings["Size"] = f"{_text(raw.pop('width'))}x{_text(raw.pop('height'))}"
        left_out = [key for key in raw if key not in self.silent]
        if self.own_weights and re.search(self.own_weights, prompt + negative):
            left_out.append("weights in its prompt")
        return Recipe(prompt, negative or None, settings, self.weighted, tuple(left_out))


def read(texts: Texts) -> metadata.Found:
    """Return what the texts of an image say about its making.

    Raise GencliError when they say nothing of it, and when they are of a tool whose texts cannot be followed.
    """
    if metadata.JSON in texts:
        return metadata.from_json(texts[metadata.JSON])
    for text in texts.values():
        metadata.limited(text)
    for reader in READERS:
        try:
            recipe = reader.read(texts)
        except GencliError as error:
            raise GencliError(f"it was made by {reader.tool}, and {error.message}", HINT) from None
        if recipe is None:
            continue
        if not recipe.prompt and not recipe.settings:
            raise GencliError(f"it was made by {reader.tool}, and says neither prompt nor settings", HINT)
        return metadata.settle(recipe)
    every = "\n".join(texts.values())
    for pattern, tool in NAMED.items():
        if re.search(pattern, every):
            raise GencliError(f"it was made by {tool}, whose way to say how is not known", HINT)
    if UI_GRAPH in every:
        raise GencliError("it has the editor's graph of ComfyUI alone, not the one that was run", HINT)
    if any(_json(texts.get(name)) for name in COMMENTS[:2]):
        raise GencliError("it says how it was made as JSON of no known tool", HINT)
    raise GencliError("it has no generation settings", metadata.NO_RECIPE_HINT)


HINT = "give its prompt and settings as options instead of --from"


def _json(text: str | None) -> dict[str, object]:
    """Return the JSON object in a text, {} for all else."""
    if text is None or not text.lstrip().startswith("{"):
        return {}
    try:
        raw = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return raw if isinstance(raw, dict) else {}


def _tables(texts: Texts) -> list[dict[str, object]]:
    return [raw for name in COMMENTS if (raw := _json(texts.get(name)))]


def _text(value: object) -> str:
    """Return a value of JSON as infotext would have it; whole numbers without a fraction."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _infotext(texts: Texts) -> Recipe | None:
    return next((found for name in COMMENTS if name in texts and (found := infotext.parse(texts[name]))), None)


def _prompt_alone(texts: Texts) -> Recipe | None:
    """`parameters` without settings is the prompt: the key says what it is. A mere comment is none."""
    text = texts.get("parameters", "").strip()
    if "parameters" not in texts or text.startswith(('{"', "{\n", "[{", "[[")):
        return None
    return Recipe(*infotext.split_prompts(text.split("\n")))


def _swarm(texts: Texts) -> Mapping[str, object] | None:
    key = "sui_image_params"
    tables = [*_tables(texts), _json(texts.get("Model"))]
    return next((found for raw in tables if isinstance(found := raw.get(key), dict)), None)


def _fooocus(texts: Texts) -> Mapping[str, object] | None:
    marks = {"guidance_scale", "performance", "base_model", "adm_guidance", "sharpness"}
    found = [
        raw for raw in _tables(texts) if "prompt" in raw and marks & raw.keys() and "num_inference_steps" not in raw
    ]
    return found[0] if found else None


def _fooocus_size(raw: dict[str, object]) -> None:
    if size := re.fullmatch(r"\((\d+), *(\d+)\)", str(raw.get("resolution"))):
        raw["width"], raw["height"] = size[1], size[2]
        del raw["resolution"]


def _novelai(texts: Texts) -> Mapping[str, object] | None:
    """In text chunks, or the same as one table in the pixels."""
    hidden = _json(texts.get("stealth"))
    every: Mapping[str, object] = texts if texts.get("Software", "").startswith("NovelAI") else hidden
    if not str(every.get("Software", "")).startswith("NovelAI"):
        return None
    comment = every.get("Comment")
    found = _json(comment) if isinstance(comment, str) else comment if isinstance(comment, dict) else {}
    if not found:
        raise GencliError("its comment is no JSON")
    return {"prompt": every.get("Description"), **found}


def _invoke(texts: Texts) -> Mapping[str, object] | None:
    return _json(texts["invokeai_metadata"]) if "invokeai_metadata" in texts else None


def _invoke_skip(raw: dict[str, object]) -> None:
    """InvokeAI counts the layers that are left out, infotext from the last one, which is 1."""
    if isinstance(skip := raw.get("clip_skip"), int):
        raw["clip_skip"] = skip + 1


def _invoke_2(texts: Texts) -> Mapping[str, object] | None:
    raw = _json(texts.get("sd-metadata"))
    image = raw.get("image")
    if not isinstance(image, dict):
        return None
    prompt = image.get("prompt")
    if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], dict):
        prompt = prompt[0].get("prompt")
    if not isinstance(prompt, str):
        raise GencliError("its prompt is no single text")
    parts = re.split(r"\[([^\[\]]*)\]", prompt)  # what is in square brackets is the negative prompt
    return {**image, "prompt": "".join(parts[::2]).strip(), "negative_prompt": ", ".join(parts[1::2])}


def _easy_diffusion(texts: Texts) -> Mapping[str, object] | None:
    tables: list[Mapping[str, object]] = [texts, *_tables(texts)]
    return next((raw for raw in tables if {"prompt", "num_inference_steps"} <= raw.keys()), None)


def _comfy(texts: Texts) -> Recipe | None:
    """A graph in a PNG's `prompt`; in WebP it follows `prompt:` in EXIF's make or model."""
    prefixed = [
        texts[name].partition(":")[2] for name in ("Make", "Model") if texts.get(name, "").startswith("prompt:")
    ]
    graphs = [_json(text) for text in (texts.get("prompt"), *prefixed)] + _tables(texts)
    found = [graph for graph in graphs if is_graph(graph)]
    return read_graph(found[0]) if found else None


COMMON = {
    "steps": "Steps", "seed": "Seed", "sampler": "Sampler", "scheduler": "Schedule type", "clip_skip": "Clip skip",
    "model": "Model", "cfg_scale": "CFG scale",
}  # fmt: skip
COMPEL = r"\w\+|\)[-+\d]|\w--"  # weights as InvokeAI reads them
READERS = (
    Reader("NovelAI", Keys(
        _novelai, {**COMMON, "scale": "CFG scale", "cfg_rescale": "CFG rescale", "noise_schedule": "Schedule type"},
        negative="uc", own_weights=r"[{}\[\]]|::",
        silent=frozenset({"signed_hash", "request_type", "n_samples", "version"}))),
    Reader("InvokeAI", Keys(
        _invoke, {**COMMON, "scheduler": "Sampler", "cfg_rescale_multiplier": "CFG rescale"},
        prompt="positive_prompt", change=_invoke_skip, own_weights=COMPEL,
        silent=frozenset({"app_version", "generation_mode", "rand_device"}))),
    Reader("InvokeAI", Keys(_invoke_2, COMMON, own_weights=COMPEL, silent=frozenset({"type", "variations"}))),
    Reader("a tool that writes infotext", _infotext),
    Reader("SwarmUI", Keys(
        _swarm, {**COMMON, "cfgscale": "CFG scale"}, negative="negativeprompt", weighted=True,
        silent=frozenset({"swarm_version", "date", "generation_time", "images", "aspectratio"}))),
    Reader("Easy Diffusion", Keys(
        _easy_diffusion,
        {"num_inference_steps": "Steps", "guidance_scale": "CFG scale", "seed": "Seed", "sampler_name": "Sampler",
         "use_stable_diffusion_model": "Model"})),
    Reader("Fooocus", Keys(
        _fooocus, {**COMMON, "guidance_scale": "CFG scale", "base_model": "Model"}, weighted=True, change=_fooocus_size,
        silent=frozenset({"version", "metadata_scheme", "created_by", "base_model_hash", "full_prompt",
                          "full_negative_prompt"}))),
    Reader("ComfyUI", _comfy),
    Reader("a tool that writes infotext", _prompt_alone),
)  # fmt: skip
