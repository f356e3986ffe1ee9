"""What a family of image checkpoints is: stages and parts. No torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Literal

from gencli.image.families import checks

NOISE, PREVIOUS = "gencli.image.latents:prepare_latents", "gencli.image.latents:continue_latents"
# Tiny autoencoders (AutoencoderTiny) on the hub → those whose latents they read
TINY = {
    "madebyollin/taesd": "Stable Diffusion 1 and 2",
    "madebyollin/taesdxl": "Stable Diffusion XL",
    "madebyollin/taesd3": "Stable Diffusion 3",
    "madebyollin/taef1": "FLUX.1, Chroma and Z-Image",
}


@dataclass(frozen=True)
class Stage:
    """One network with its noise schedule. Stages run in order, and the last hands to the autoencoder, if any.

    conditioner: "module:load" of what turns prompts into conditioning (a `prompts.base.Conditioner`), in
    `gencli.image.prompts` unless a package is named; stages with the same one and the same text encoders share it. None
    for a network without a prompt. network, scheduler: names of parts. name: as in `--stage NAME:…`.
    start: "module:function", what the stage begins from and what it reads of the stage before (see `latents`).
    steps: which of its steps it takes, of all that its settings make; follows: the stage whose settings it takes, where
    a second network finishes what the first began. scale: how many times larger its image is than the one that it
    enlarges; 1 where it enlarges none. shows: whether its x0 can be decoded to an image. defaults: values for
    `ImageRequest` that are not the main stage's. law: how the shift of a flow's noise levels grows with the image (see
    `diffusion.flow`). keeps_norms: a side, in latents, of the tokens whose norms guidance leaves as they are without
    it (see `guidance.with_norms`); 0 where it changes them.
    """

    conditioner: str | None
    network: str = "unet"
    scheduler: str = "scheduler"
    name: str = "base"
    start: str = NOISE
    steps: tuple[int | None, int | None] = (None, None)
    follows: str | None = None
    scale: int = 1
    shows: bool = True
    defaults: Mapping[str, object] = field(default_factory=dict)
    law: str = "linear"
    keeps_norms: int = 0

    @property
    def shown_as(self) -> str:
        """What users know it as: the stage that it finishes, or its own name."""
        return self.follows or self.name


def path_of(name: str) -> str:
    """The whole name of what "module:name" names, for `pkgutil.resolve_name`. Its module may import torch."""
    return name if name.split(":")[0].count(".") else f"gencli.image.prompts.{name}"


@dataclass(frozen=True)
class References:
    """How a network looks at images beside the one that it draws. most: how many. plane: what lies between the places
    of one and of the next on the first axis. sizes: widths and heights, of which an image takes the one nearest to its
    shape; area: the pixels that an image is brought to, in its shape and with sides that are multiples of 32; without
    both it keeps its own size up to a megapixel. centred: whether places count from the middle of an image."""

    most: int
    plane: int = 1
    sizes: tuple[tuple[int, int], ...] = ()
    area: int = 0
    centred: bool = False


def of_area(size: tuple[int, int], area: int) -> tuple[int, int]:
    """Return a size of about this shape and area, of multiples of 32, as Qwen-Image-Edit's pipeline rounds them."""
    ratio = size[0] / size[1]
    width = (area * ratio) ** 0.5
    return max(round(width / 32), 1) * 32, max(round(width / ratio / 32), 1) * 32


@dataclass(frozen=True)
class Family:
    """What a checkpoint of this kind holds.

    stages: see `Stage`; `main` is the index of the one that the request's own settings are for. parts: name of a part's
    folder → the architectures that may stand there, as its config names them (`_class_name` or `model_type`); None for
    tokenizers and schedulers. optional: parts that may be missing. prompt: what an image is asked for with.
    autoencoder: the part between images and latents, None where there are no latents. check: raises GencliError for
    configs that do not go together. defaults: values for `ImageRequest` that are not the built-in ones. needs_init:
    whether it draws nothing without an image. reads_init: what it does with that: strength and mask are of what it
    changes; it may also enlarge or vary the whole image, edit it as the first of its references, or take none.
    references: how it looks at images. reads: part → the architecture that reads it, where that is not the one that its
    config names. tiny: the one of `TINY` that reads its latents. prior: the repository of what
    draws the embeddings that it is told. one_at_a_time: whether its parts are so large that each stage's are loaded
    when all images come to it, and let go before the next one's.
    """

    stages: tuple[Stage, ...]
    parts: Mapping[str, frozenset[str] | None]
    prompt: Literal["text", "class", "none"]
    autoencoder: str | None = None
    optional: frozenset[str] = frozenset()
    check: Callable[[checks.Described], None] = checks.nothing
    defaults: Mapping[str, object] = field(default_factory=dict)
    needs_init: bool = False
    reads_init: Literal["changes", "enlarges", "varies", "edits", "none"] = "changes"
    references: References | None = None
    reads: Mapping[str, str] = field(default_factory=dict)
    tiny: str | None = None
    prior: str | None = None
    one_at_a_time: bool = False
    main: int = 0
    side: int | None = None
    distilled: str | None = None
    few: Mapping[str, object] = field(default_factory=dict)

    @property
    def network(self) -> str:
        """The part that is the main stage's network."""
        return self.stages[self.main].network

    @property
    def reads_clip(self) -> bool:
        """Whether CLIP reads its prompts: weights in brackets, chunks and embeddings are for such."""
        clip = any(kinds is not None and "clip_text_model" in kinds for kinds in self.parts.values())
        return clip and str(self.stages[self.main].conditioner).startswith("stable_diffusion")


def tiny_named(name: str | None) -> str | None:
    """Return the tiny autoencoder of `TINY` that a name of a repository, or of a copy of it, says."""
    last = PurePath(name or "").name
    return next((tiny for tiny in TINY if last == tiny.rpartition("/")[2]), None)
