"""What a folder in diffusers' layout says of itself, before any weight is read. No torch.

Text-to-image folders hold text_encoder, tokenizer, unet, vae and scheduler; unconditional ones unet and scheduler,
in folders of their own or (google/ddpm-cifar10-32) at the root.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from gencli.checkpoints.find import Source
from gencli.errors import GencliError
from gencli.files import read_json

TEXT_TO_IMAGE = {
    "StableDiffusionPipeline",
    "StableDiffusionImg2ImgPipeline",
    "StableDiffusionInpaintPipeline",
    "StableDiffusionInpaintPipelineLegacy",
}
UNCONDITIONAL = {"DDPMPipeline", "DDIMPipeline", "PNDMPipeline"}
# part → what its config may say it is (`_class_name` or `model_type`)
ARCHITECTURES = {
    "unet": {"UNet2DConditionModel", "UNet2DModel"},
    "vae": {"AutoencoderKL"},
    "text_encoder": {"clip_text_model"},
}
UNUSED = {"safety_checker", "feature_extractor", "image_encoder"}
# generation_config.json beside model_index.json, with the names of diffusers' call → fields of ImageRequest
DEFAULTS = {
    "num_inference_steps": "steps",
    "guidance_scale": "guidance",
    "guidance_rescale": "guidance_rescale",
    "negative_prompt": "negative",
    "eta": "eta",
}


@dataclass(frozen=True)
class Checkpoint:
    """What a folder says, before any weight is read.

    parts: name → folder. configs: unet, vae, text_encoder, scheduler → its JSON. defaults: values for `ImageRequest`.
    notes: what in the folder goes unused.
    """

    name: str
    folder: Path
    parts: Mapping[str, Path]
    configs: Mapping[str, Mapping[str, Any]]
    defaults: Mapping[str, Any]
    notes: tuple[str, ...] = ()

    @property
    def reads_text(self) -> bool:
        return "text_encoder" in self.parts

    @cached_property
    def factor(self) -> int:
        """Pixels a side of one latent."""
        return 2 ** (len(_blocks(self, "vae")) - 1) if "vae" in self.parts else 1

    @cached_property
    def multiple(self) -> int:
        """Width and height are whole multiples of this: a latent's side, and for unconditional UNets, which cannot
        make a level of an odd size, what all levels halve."""
        return self.factor if self.reads_text else self.factor * 2 ** (len(_blocks(self, "unet")) - 1)

    @cached_property
    def size(self) -> tuple[int, int] | None:
        """Width and height in pixels that the model was made for, if it says so."""
        sample = self.configs["unet"].get("sample_size")
        height, width = sample if isinstance(sample, list) and len(sample) == 2 else (sample, sample)
        if width is None or height is None:
            return None
        if not all(isinstance(side, int) and 1 <= side <= 4096 for side in (width, height)):
            raise GencliError(f"{self.parts['unet']}: sample_size = {sample!r} is no size of a picture")
        return width * self.factor, height * self.factor


def open_checkpoint(source: Source) -> Checkpoint:
    """Read the small files of a checkpoint. Raises GencliError for what is no picture checkpoint or not supported."""
    folder = source.path
    if source.kind == "file":
        raise GencliError(
            f"{folder}: single files are not supported for pictures", "give a folder with a model_index.json"
        )
    index = _index(folder)
    kind = index.get("_class_name")
    if kind not in TEXT_TO_IMAGE | UNCONDITIONAL:
        known = ", ".join(sorted(TEXT_TO_IMAGE | UNCONDITIONAL))
        raise GencliError(f"{folder / 'model_index.json'}: pipeline {kind!r} is not supported", f"gencli knows {known}")
    wanted = ["unet", "scheduler", *(["vae", "text_encoder", "tokenizer"] if kind in TEXT_TO_IMAGE else [])]
    if unknown := [name for name in _parts(index) if name not in [*wanted, *UNUSED]]:
        raise GencliError(f"{folder / 'model_index.json'}: {kind} with {', '.join(unknown)} is not supported")
    parts, configs = {}, {}
    for name in wanted:
        if name not in _parts(index):
            raise GencliError(f"{folder / 'model_index.json'}: {kind} without {name}")
        file = {"scheduler": "scheduler_config.json", "tokenizer": None}.get(name, "config.json")
        # Only a pipeline of one network can keep it at the root: two would clash over config.json.
        root = kind in UNCONDITIONAL and not (folder / name).is_dir()
        parts[name] = folder if root else folder / name
        if file:
            configs[name] = read_json(parts[name] / file)
    _check_parts(folder, kind, configs)
    return Checkpoint(source.name, folder, parts, configs, _defaults(folder), _notes(index))


def _index(folder: Path) -> Mapping[str, Any]:
    """model_index.json, or what stands for it: a UNet alone with its scheduler."""
    if (folder / "model_index.json").is_file():
        return read_json(folder / "model_index.json")
    config = read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
    if config.get("_class_name") == "UNet2DModel" and (folder / "scheduler_config.json").is_file():
        return {"_class_name": "DDPMPipeline", "unet": ["diffusers", "UNet2DModel"], "scheduler": ["diffusers", ""]}
    if kind := config.get("model_type") or config.get("_class_name"):
        hint = "text models are for `gencli text`" if "model_type" in config else "it is one part of a checkpoint"
        raise GencliError(f"{folder} holds a {kind!s:.40}, no model for pictures", hint)
    raise GencliError(f"{folder} has no model_index.json", "is it the folder of a checkpoint for pictures?")


def _parts(index: Mapping[str, Any]) -> list[str]:
    """Names of the parts that are there: entries that are pairs, and not [null, null]."""
    return [
        name for name, value in index.items() if isinstance(value, list) and len(value) == 2 and value[1] is not None
    ]


def _notes(index: Mapping[str, Any]) -> tuple[str, ...]:
    notes = ["its safety checker is not loaded"] if "safety_checker" in _parts(index) else []
    odd = [name for name, value in index.items() if not name.startswith("_") and not isinstance(value, list)]
    if odd := [name for name in odd if name != "requires_safety_checker"]:
        notes.append(f"model_index.json: {', '.join(odd)[:80]} is not known and goes unused")
    return tuple(notes)


def _check_parts(folder: Path, kind: str, configs: Mapping[str, Mapping[str, Any]]) -> None:
    """Each part's config is of a kind that fits its place. Raises GencliError."""
    for name, known in ARCHITECTURES.items():
        if name in configs:
            found = configs[name].get("_class_name") or configs[name].get("model_type")
            if found not in known:
                raise GencliError(f"{folder}: {name} is a {found!r}", f"gencli knows {', '.join(sorted(known))}")
    unet = configs["unet"]
    text = unet["_class_name"] == "UNet2DConditionModel"
    if text != (kind in TEXT_TO_IMAGE):
        raise GencliError(f"{folder}: a {kind} with a {unet['_class_name']} is not supported")
    latents = configs["vae"].get("latent_channels", 4) if "vae" in configs else unet.get("in_channels", 3)
    if unet.get("in_channels", 4 if text else 3) != latents:
        what = "an inpainting UNet that reads the mask" if unet.get("in_channels") == 9 else "a UNet"
        raise GencliError(
            f"{folder}: {what} with in_channels = {unet.get('in_channels')} is not supported",
            f"its autoencoder has {latents} channels; ordinary UNets paint by mask too",
        )


def _blocks(checkpoint: Checkpoint, part: str) -> list[int]:
    # Defaults as in diffusers' classes.
    default = {"UNet2DConditionModel": 4, "UNet2DModel": 4, "AutoencoderKL": 1}
    config = checkpoint.configs[part]
    blocks = config.get("block_out_channels", [0] * default[config["_class_name"]])
    if not isinstance(blocks, list) or not 1 <= len(blocks) <= 16:
        raise GencliError(f"{checkpoint.parts[part]}: block_out_channels = {blocks!r} is not supported")
    return blocks


def _defaults(folder: Path) -> dict[str, Any]:
    """The checkpoint's own settings for a request; keys that are none of DEFAULTS are for other programs."""
    file = folder / "generation_config.json"
    raw = read_json(file) if file.is_file() else {}
    return {DEFAULTS[key]: value for key, value in raw.items() if key in DEFAULTS and value is not None}
