"""What an image checkpoint says of itself, before any weight is read: the family's facts over `checkpoints.open`.

What there must be is the table in `families`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from gencli.checkpoints import layout
from gencli.checkpoints import open as door
from gencli.checkpoints.checkpoint import Contents, Hints, Part, folder_part
from gencli.checkpoints.find import Source
from gencli.checkpoints.formats import stable_diffusion_keys
from gencli.errors import GencliError
from gencli.image.families import FAMILIES, Family, Stage, find_family
from gencli.image.prompts.classes import Classes, classes_of, read_names
from gencli.models import stands_for

if TYPE_CHECKING:
    from gencli.checkpoints.tensors import Tensors
    from gencli.tokens import Tokenizer

KNOWN = {  # what else model_index.json may say
    "id2label",
    "requires_safety_checker",
    "force_zeros_for_empty_prompt",
    "requires_aesthetics_score",
    "add_watermarker",
    "is_cosxl_edit",
}
# generation_config.json beside model_index.json, with the names of diffusers' call → fields of ImageRequest
DEFAULTS = {
    "num_inference_steps": "steps",
    "guidance_scale": "guidance",
    "guidance_rescale": "guidance_rescale",
    "negative_prompt": "negative",
    "eta": "eta",
}
SINGLE = "stable diffusion"  # the format whose scheduler is told by what the user says


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint of a family. opened: what lies there. configs: all parts but tokenizers → their JSON, where a user's
    word holds over the file's. defaults: its own values for `ImageRequest`. notes: what goes unused. labels: names of
    classes, by number. index: model_index.json. further: checkpoints whose stages follow this one's."""

    opened: door.Checkpoint
    family: Family
    configs: Mapping[str, Mapping[str, Any]]
    defaults: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    labels: Mapping[int, str] = field(default_factory=dict)
    index: Mapping[str, Any] = field(default_factory=dict)
    further: tuple[Checkpoint, ...] = ()

    @property
    def stages(self) -> list[tuple[Stage, Checkpoint]]:
        """All stages in order, each with the checkpoint that holds its parts."""
        return [(stage, one) for one in (self, *self.further) for stage in one.family.stages]

    @property
    def main(self) -> Stage:
        """The stage that the request's own settings are for."""
        return self.family.stages[self.family.main]

    @property
    def name(self) -> str:
        """What the user called it."""
        return self.opened.name

    @property
    def folder(self) -> Path:
        """Its folder, or its one file."""
        return self.opened.path

    @property
    def allow_pickle(self) -> bool:
        """Whether tensors may be read from pickles."""
        return self.opened.contents.allow_pickle

    @property
    def in_one_file(self) -> bool:
        """Whether all of its own parts are in one file."""
        return self.opened.contents.is_file

    @property
    def parts(self) -> dict[str, Path]:
        """Part → where it lies."""
        tokenizers = self.opened.tokenizers if self.in_one_file else ()
        return {name: part.path for name, part in self.opened.parts.items()} | dict.fromkeys(tokenizers, self.folder)

    @property
    def prompt(self) -> str:
        """What pictures are asked for with: "text", "class" (a name or number) or "none"."""
        return "class" if self.family.prompt != "text" and self.classes is not None else self.family.prompt

    @cached_property
    def network_classes(self) -> Classes | None:
        """The classes that the network is told of, if any."""
        return classes_of(self.configs[self.family.network], self.labels)

    @cached_property
    def classes(self) -> Classes | None:
        """Those, or the ones that a classifier beside it tells apart."""
        classifier = self.configs.get("classifier")
        return self.network_classes or (None if classifier is None else classes_of(classifier, self.labels))

    def open(self, part: str) -> tuple[Mapping[str, Any], Tensors]:
        """Return a part's config and weights. Raise GencliError for weights that cannot be opened."""
        return self.configs[part], self.opened.parts[part].tensors()

    def tokenizer(self, part: str = "tokenizer") -> Tokenizer:
        """Return a tokenizer. Raise GencliError for one that is broken."""
        return self.opened.tokenizer(part)

    def with_part(self, name: str, part: Part, config: Mapping[str, Any]) -> Checkpoint:
        """Return the checkpoint with another part in the place of its own, or beside its own."""
        opened = door.replace_part(self.opened, name, part)
        return dataclasses.replace(self, opened=opened, configs={**self.configs, name: config})

    @cached_property
    def also_reads(self) -> Literal["mask", "picture"] | None:
        """What the network reads beside the latents, as further channels: a mask and what it leaves of a picture (to
        paint there), a picture (to edit it), or nothing."""
        if self.family.autoencoder != "vae":
            return None
        channels = self.configs["vae"].get("latent_channels", 4)
        further = self.configs[self.family.network].get("in_channels", channels) - channels
        return "mask" if further == channels + 1 else "picture" if further == channels else None

    @cached_property
    def factor(self) -> int:
        """Pixels a side of one latent."""
        return 2 ** (len(_blocks(self, self.family.autoencoder)) - 1) if self.family.autoencoder else 1

    @cached_property
    def multiple(self) -> int:
        """Width and height are whole multiples of this: a latent's side, for UNets which cannot make a level of an odd
        size what all levels halve, and for a DiT the side of a patch."""
        network = self.family.network
        config = self.configs[network]
        if config.get("_class_name") == "UNetModel":
            return self.factor * 2 ** (len(config["channel_mult"]) - 1)
        halves = config.get("_class_name") == "UNet2DModel"
        return self.factor * (2 ** (len(_blocks(self, network)) - 1) if halves else patch_size(config))

    @cached_property
    def size(self) -> tuple[int, int] | None:
        """Width and height in pixels that the model was made for, if it says so."""
        config = self.configs[self.family.network]
        sample = config.get("sample_size", config.get("image_size"))
        height, width = sample if isinstance(sample, list) and len(sample) == 2 else (sample, sample)
        if width is None or height is None:
            return None
        if not all(isinstance(side, int) and 1 <= side <= 4096 for side in (width, height)):
            raise GencliError(f"{self.parts[self.family.network]}: sample_size = {sample!r} is no size of a picture")
        return width * self.factor, height * self.factor


def open_checkpoint(
    source: Source | Contents | door.Checkpoint,
    *,
    allow_pickle: bool = False,
    prediction: str | None = None,
    betas: str | None = None,
    vae: Source | None = None,
) -> Checkpoint:
    """Read the small files of a checkpoint, or the header of one in a single file.

    prediction, betas: its `prediction_type` and `beta_schedule`, over what it says itself. vae: what holds another
    autoencoder for it.
    Raises GencliError for what is no picture checkpoint or not supported.
    """
    from gencli.image.replace import with_vae

    hints = Hints(prediction, betas, other_vae=vae is not None)
    opened = source if isinstance(source, door.Checkpoint) else None
    opened = opened or door.open_checkpoint(source, allow_pickle=allow_pickle, hints=hints)  # type: ignore[arg-type]
    checkpoint = _of_file(opened) if opened.contents.is_file else _of_folder(opened)
    said = {"prediction_type": prediction, "beta_schedule": betas}
    if (over := {key: value for key, value in said.items() if value is not None}) and opened.format != SINGLE:
        configs = {**checkpoint.configs, "scheduler": {**checkpoint.configs["scheduler"], **over}}
        checkpoint = dataclasses.replace(checkpoint, configs=configs)
    if vae is not None:
        checkpoint = with_vae(checkpoint, vae, allow_pickle=allow_pickle)
    checkpoint.family.check(checkpoint)
    return checkpoint


def _of_file(opened: door.Checkpoint) -> Checkpoint:
    """All parts in one file. Raises GencliError for a file that draws nothing."""
    path = opened.path
    if opened.problem is not None:
        raise opened.problem
    if opened.kind == "text":
        raise _no_image_model(path, opened.family, text=True)
    if opened.kind != "image":
        if opened.parts.keys() == {"classifier"}:
            raise GencliError(f"{path} is a {opened.title}, which draws nothing by itself", "--classifier guides by it")
        try:
            stable_diffusion_keys.recognise(opened.contents.shapes)  # says what else it is
        except GencliError as error:
            raise GencliError(f"{path}: {error.message}", error.hint) from None
    family = find_family(opened.family, opened.parts)
    if family is None:
        known = ", ".join(sorted(FAMILIES))
        raise GencliError(f"{path}: it is a {opened.family}, which is not supported", f"gencli knows {known}")
    configs = {name: part.config for name, part in opened.parts.items()}
    labels = _labels(opened.labels, opened.labels_file)
    return Checkpoint(opened, family, configs, notes=opened.notes, labels=labels, index=opened.index)


def _of_folder(opened: door.Checkpoint) -> Checkpoint:
    folder = opened.path
    index = _index(opened)
    kind = str(index.get("_class_name"))
    here = layout.named_parts(index)
    family = find_family(kind, here)
    if family is None:
        known = ", ".join(sorted(FAMILIES))
        raise GencliError(f"{folder / 'model_index.json'}: pipeline {kind!r} is not supported", f"gencli knows {known}")
    if unknown := [name for name in here if name not in [*family.parts, *layout.UNUSED]]:
        raise GencliError(f"{folder / 'model_index.json'}: {kind} with {', '.join(unknown)} is not supported")
    parts, configs = {}, {}
    for name in family.parts:
        if name not in here:
            if name in family.optional:
                continue
            raise GencliError(f"{folder / 'model_index.json'}: {kind} without {name}")
        part = opened.parts.get(name) or opened.parts[""]
        # Only a pipeline of one network can keep it at the root: two would clash over config.json.
        if part.path == folder and set(family.parts) != {family.network, "scheduler"}:
            part = folder_part(opened.contents, name, folder / name, part.kind)
        parts[name] = part
        if not name.startswith("tokenizer"):
            configs[name] = part.config
    _check_architectures(folder, family, configs)
    labels = _labels(index.get("id2label"), folder / "model_index.json")
    opened = dataclasses.replace(opened, parts=parts)
    raw = opened.defaults  # keys that are none of DEFAULTS are for other programs
    defaults = {DEFAULTS[key]: value for key, value in raw.items() if key in DEFAULTS and value is not None}
    return Checkpoint(opened, family, configs, defaults, _notes(index), labels, opened.index)


def _index(opened: door.Checkpoint) -> Mapping[str, Any]:
    """model_index.json, or what stands for it: a UNet alone with its scheduler."""
    folder, config = opened.path, opened.parts[""].config if "" in opened.parts else {}
    if opened.contents.has("model_index.json"):
        if opened.problem is not None:
            raise opened.problem
        return opened.index
    if config.get("_class_name") == "UNet2DModel" and "scheduler" in opened.parts:
        return {"_class_name": "DDPMPipeline", "unet": ["diffusers", "UNet2DModel"], "scheduler": ["diffusers", ""]}
    if kind := config.get("model_type") or config.get("_class_name"):
        raise _no_image_model(folder, kind, text="model_type" in config)
    raise GencliError(f"{folder} has no model_index.json", "is it the folder of a checkpoint for pictures?")


def _no_image_model(path: Path, kind: Any, *, text: bool) -> GencliError:
    hint = "text models are for `gencli text`" if text else "it is one part of a checkpoint"
    hint = "`gencli codes` turns pictures into its codes, and back" if kind == "VQModel" else hint
    return GencliError(f"{path} holds a {kind!s:.40}, no model for pictures", hint)


def _notes(index: Mapping[str, Any]) -> tuple[str, ...]:
    notes = ["its safety checker is not loaded"] if "safety_checker" in layout.named_parts(index) else []
    odd = [name for name, value in index.items() if not name.startswith("_") and not isinstance(value, list)]
    if odd := [name for name in odd if name not in KNOWN]:
        notes.append(f"model_index.json: {', '.join(odd)[:80]} is not known and goes unused")
    return tuple(notes)


def _labels(raw: Any, file: Path) -> dict[int, str]:
    try:
        return read_names(raw)
    except GencliError as error:
        raise GencliError(f"{file}: {error.message}") from None


def _check_architectures(folder: Path, family: Family, configs: Mapping[str, Mapping[str, Any]]) -> None:
    """Each part's config is of a kind that fits its place. Raises GencliError."""
    for name, known in family.parts.items():
        if known is not None and name in configs:
            found = configs[name].get("_class_name") or configs[name].get("model_type")
            if not stands_for(found, known):
                raise GencliError(f"{folder}: {name} is a {found!r}", f"gencli knows {', '.join(sorted(known))}")


def _blocks(checkpoint: Checkpoint, part: str) -> list[int]:
    # Defaults as in diffusers' classes.
    default = {"UNet2DConditionModel": 4, "UNet2DModel": 4, "AutoencoderKL": 1, "VQModel": 1}
    config = checkpoint.configs[part]
    blocks = config.get("block_out_channels", [0] * default.get(str(config.get("_class_name")), 1))
    if not isinstance(blocks, list) or not 1 <= len(blocks) <= 16:
        raise GencliError(f"{checkpoint.parts[part]}: block_out_channels = {blocks!r} is not supported")
    return blocks


def patch_size(config: Mapping[str, Any]) -> int:
    """Latents a side of a transformer's patch; 1 for other networks. Raises GencliError."""
    size = config.get("patch_size", 2 if "Transformer2DModel" in str(config.get("_class_name")) else 1)
    if isinstance(size, bool) or not isinstance(size, int) or not 1 <= size <= 64:
        raise GencliError(f"patch_size = {size!r:.80} is not supported")
    return size
