"""What an image checkpoint says of itself, before any weight is read: the family's facts over `checkpoints.open`.

What there must be is the table in `families`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from gencli.checkpoints.checkpoint import Checkpoint, Part
from gencli.checkpoints.open import replace_part
from gencli.errors import GencliError
from gencli.image.families import Family, Stage
from gencli.image.prompts.classes import Classes, classes_of
from gencli.options import typed

if TYPE_CHECKING:
    from gencli.checkpoints.tensors import Tensors
    from gencli.tokens import Tokenizer

FLUX, CHROMA, QWEN_IMAGE = (f"{name}Transformer2DModel" for name in ("Flux", "Chroma", "QwenImage"))
VIDEO_AUTOENCODER = "AutoencoderKLQwenImage"


@dataclass(frozen=True)
class ImageCheckpoint:
    """A checkpoint of a family. opened: what lies there. configs: all parts but tokenizers → their JSON, where a user's
    word holds over the file's. defaults: its own values for `ImageRequest`. notes: what goes unused. labels: names of
    classes, by number. index: model_index.json. further: checkpoints whose stages follow this one's.
    earlier: those whose stages come before."""

    opened: Checkpoint
    family: Family
    configs: Mapping[str, Mapping[str, object]]
    defaults: Mapping[str, object] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    labels: Mapping[int, str] = field(default_factory=dict)
    index: Mapping[str, object] = field(default_factory=dict)
    further: tuple[ImageCheckpoint, ...] = ()
    earlier: tuple[ImageCheckpoint, ...] = ()

    @property
    def stages(self) -> list[tuple[Stage, ImageCheckpoint]]:
        """All stages in order, each with the checkpoint that holds its parts."""
        return [(stage, one) for one in (*self.earlier, self, *self.further) for stage in one.family.stages]

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

    def open(self, part: str) -> tuple[Mapping[str, object], Tensors]:
        """Return a part's config and weights. Raise GencliError for weights that cannot be opened."""
        return self.configs[part], self.opened.parts[part].tensors()

    def forget(self, *parts: str) -> None:
        """Let go of the memory that the files of parts take; they are read again if they are used again."""
        for name in parts:
            self.opened.parts[name].tensors().forget()

    def tokenizer(self, part: str = "tokenizer") -> Tokenizer:
        """Return a tokenizer. Raise GencliError for one that is broken."""
        return self.opened.tokenizer(part)

    def with_part(self, name: str, part: Part, config: Mapping[str, object]) -> ImageCheckpoint:
        """Return the checkpoint with another part in the place of its own, or beside its own."""
        opened = replace_part(self.opened, name, part)
        return dataclasses.replace(self, opened=opened, configs={**self.configs, name: config})

    def with_tokenizer(self, other: ImageCheckpoint) -> ImageCheckpoint:
        """Return the checkpoint with the tokenizer of another one."""
        tokenizers = {**self.opened.tokenizers, "tokenizer": other.tokenizer}
        return dataclasses.replace(self, opened=dataclasses.replace(self.opened, tokenizers=tokenizers))

    @cached_property
    def also_reads(self) -> Literal["mask", "picture"] | None:
        """What the network reads beside the latents, as further channels: a mask and what it leaves of a picture (to
        paint there), a picture (to edit it), or nothing."""
        if self.family.autoencoder is None:  # GLIDE
            return "mask" if self.configs[self.family.network].get("in_channels") == 7 else None
        if self.family.autoencoder != "vae":
            return None
        channels = latent_channels(self.configs["vae"])
        reads = self.configs[self.family.network].get("in_channels", channels)
        if not isinstance(channels, int | float) or not isinstance(reads, int | float):
            return None
        if self.configs[self.family.network].get("_class_name") in (FLUX, CHROMA, QWEN_IMAGE):  # of 2 × 2 latents
            reads /= 4
        further = reads - channels
        masks = channels + 1, channels + self.factor**2  # the mask of a latent, or that of each of its pixels
        return "mask" if further in masks else "picture" if further == channels else None

    @property
    def reads_pixels(self) -> bool:
        """Whether a mask is read pixel by pixel: FLUX.1 Fill."""
        return self.also_reads == "mask" and self.configs[self.family.network].get("_class_name") == FLUX

    @property
    def channels(self) -> int:
        """Channels of its images where it draws in pixels."""
        stage = self.family.stages[-1]
        return 1 if self.configs[stage.network].get("in_channels", 3) == 1 else 3

    @cached_property
    def factor(self) -> int:
        """Pixels a side of one latent."""
        if (name := self.family.autoencoder) is None:
            return 1
        packed = self.configs[name].get("_class_name") == "AutoencoderKLFlux2"  # of which 2 × 2 are one
        return 2 ** (len(_blocks(self, name)) - 1) * (2 if packed else 1)

    @cached_property
    def multiple(self) -> int:
        """Width and height are whole multiples of this: a latent's side, for UNets which cannot make a level of an odd
        size what all levels halve, and for a DiT the side of a patch."""
        network = self.family.stages[-1].network
        config = self.configs[network]
        if config.get("_class_name") == "UNetModel":
            return self.factor * 2 ** (len(typed(config, "channel_mult", list) or [1]) - 1)
        halves = config.get("_class_name") == "UNet2DModel"
        return self.factor * (2 ** (len(_blocks(self, network)) - 1) if halves else patch_size(config))

    @cached_property
    def most(self) -> int | None:
        """The longest side in pixels that the network knows the places of; None where there is no such limit."""
        places = self.configs[self.family.stages[-1].network].get("pos_embed_max_size")
        return places * self.multiple if isinstance(places, int) else None

    @cached_property
    def size(self) -> tuple[int, int] | None:
        """Width and height in pixels that the model was made for, if it says so."""
        last = self.family.stages[-1].network
        config = self.configs[last]
        sample = config.get("sample_size", config.get("image_size"))
        height, width = sample if isinstance(sample, list) and len(sample) == 2 else (sample, sample)
        if width is None or height is None:
            return (self.family.side, self.family.side) if self.family.side else None
        if isinstance(width, int) and isinstance(height, int) and all(1 <= side <= 4096 for side in (width, height)):
            return width * self.factor, height * self.factor
        raise GencliError(f"{self.parts[last]}: sample_size = {sample!r} is not an image size")


def _blocks(checkpoint: ImageCheckpoint, part: str) -> list[int]:
    # Defaults as in diffusers' classes.
    default = {"UNet2DConditionModel": 4, "UNet2DModel": 4, "AutoencoderKL": 1, "VQModel": 1}
    default |= {"AutoencoderTiny": 4, "AutoencoderKLFlux2": 4, VIDEO_AUTOENCODER: 4}
    config = checkpoint.configs[part]
    kind = str(config.get("_class_name"))
    keys = {"AutoencoderTiny": "decoder_block_out_channels", VIDEO_AUTOENCODER: "dim_mult"}
    key = keys.get(kind, "block_out_channels")
    blocks = config.get(key, [0] * default.get(kind, 1))
    if not isinstance(blocks, list) or not 1 <= len(blocks) <= 16:
        raise GencliError(f"{checkpoint.parts[part]}: {key} = {blocks!r:.80} is not supported")
    return blocks


def latent_channels(config: Mapping[str, object]) -> object:
    """Channels of the latents of an autoencoder with this config; defaults are those of diffusers' classes."""
    if config.get("_class_name") == VIDEO_AUTOENCODER:
        return config.get("z_dim", 16)
    return config.get("latent_channels", 4)


def patch_size(config: Mapping[str, object]) -> int:
    """Latents a side of a transformer's patch; 1 for other networks. Raises GencliError."""
    kind = str(config.get("_class_name"))
    if kind in (FLUX, CHROMA):  # whose configs call 2 × 2 latents one
        return 2
    size = config.get("patch_size", {"Flux2Transformer2DModel": 1}.get(kind, 2) if "Transformer2DModel" in kind else 1)
    if isinstance(size, bool) or not isinstance(size, int) or not 1 <= size <= 64:
        raise GencliError(f"patch_size = {size!r:.80} is not supported")
    return size
