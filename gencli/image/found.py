"""What a request for images names, once it is found. No torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from gencli.checkpoints.assets import EmbeddingRef, LoraRef
from gencli.checkpoints.find import Source

if TYPE_CHECKING:
    from PIL import Image


@dataclass(eq=False, repr=False)
class Inputs:
    """Everything that a request names, found. controls: the ControlNets; control_images: what each follows. named:
    images to mix and to look at, by what the request calls them."""

    model: Source
    clip: Source | None = None
    classifier: Source | None = None
    vae: Source | None = None
    refiner: Source | None = None
    prior: Source | None = None
    upscalers: tuple[Source, ...] = ()
    loras: tuple[LoraRef, ...] = ()
    embeddings: tuple[EmbeddingRef, ...] = ()
    controls: tuple[Source, ...] = ()
    control_images: tuple[Image.Image, ...] = ()
    init: Image.Image | None = None
    mask: Image.Image | None = None
    named: Mapping[str, Image.Image] = field(default_factory=dict)

    def here(self, fetch: Callable[[str], Source]) -> Inputs:
        """Return the same with all models as they lie on this machine (see `Source.here`)."""
        roles = {name: getattr(self, name) for name in ("model", "clip", "classifier", "vae", "refiner", "prior")}
        return replace(
            self,
            **{name: source and source.here(fetch) for name, source in roles.items()},
            upscalers=tuple(source.here(fetch) for source in self.upscalers),
            controls=tuple(source.here(fetch) for source in self.controls),
        )
