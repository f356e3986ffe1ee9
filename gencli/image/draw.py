"""A model that draws, opened with all that goes with it, whatever its kind."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from functools import partial

from gencli.checkpoints.embeddings import read_embedding
from gencli.image.checkpoint import ImageCheckpoint
from gencli.image.controlnet import load_control, open_control
from gencli.image.drawers.base import Drawer, Loaded
from gencli.image.events import Denoised, Picture
from gencli.image.found import Inputs
from gencli.image.generate import generate
from gencli.image.load import Packing, load
from gencli.image.pipeline import Pipeline
from gencli.image.request import ImageRequest, ImageSpec
from gencli.models.controlnet import ControlNetModel


class Drawing:
    """A model with its weights, ready for any number of requests. words: those of its embeddings.

    inputs: where all of it lies; its images are of no concern here. views, loading, packing: see `load.load`.
    Raise GencliError for weights that are broken or do not fit.
    """

    def __init__(
        self,
        opened: ImageCheckpoint | Drawer,
        inputs: Inputs,
        spec: ImageSpec,
        *,
        views: bool = False,
        loading: Callable[[str], None] = lambda what: None,
        packing: Packing = lambda part, tensor, done, total: None,
    ):
        self.model: Pipeline | Loaded
        self.words: list[str] = []
        self.controls: list[ControlNetModel] = []
        if isinstance(opened, Drawer):
            loading(opened.name)
            told = partial(packing, opened.name)
            self.model = opened.load(device=spec.device, dtype=spec.dtype, quantize=spec.quantize, packing=told)
            return
        allow = spec.allow_pickle
        controls = [open_control(source, opened, allow_pickle=allow) for source in inputs.controls]
        loading(opened.name)
        embeddings = [read_embedding(file, allow_pickle=allow) for file in inputs.embeddings]
        self.words = [embedding.word for embedding in embeddings]
        self.model = load(
            opened,
            device=spec.device,
            dtype=spec.dtype,
            loras=inputs.loras,
            embeddings=embeddings,
            views=views,
            quantize=spec.quantize,
            loading=loading,
            packing=packing,
        )
        self.controls = [load_control(part, self.model) for part in controls]

    def describe(self) -> str:
        """Return the model in one line: its size, precision, device and threads."""
        return self.model.describe()

    def check_prompt(self, request: ImageRequest) -> None:
        """Raise GencliError for a prompt that the model cannot follow."""
        self.model.check_prompt(request)

    def generate(
        self, request: ImageRequest, prompts: Iterable[str | None] | None, inputs: Inputs, *, walk: bool = False
    ) -> Generator[Denoised | Picture, None, None]:
        """Make the images of a resolved request from the images of `inputs`; see `generate.generate`. walk: see
        `Loaded.generate`."""
        if isinstance(self.model, Loaded):
            return self.model.generate(request, prompts, init=inputs.init, walk=walk)
        controls = list(zip(self.controls, inputs.control_images, strict=True))
        return generate(
            self.model, request, prompts, init=inputs.init, mask=inputs.mask, controls=controls, named=inputs.named
        )
