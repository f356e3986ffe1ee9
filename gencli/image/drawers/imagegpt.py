"""ImageGPT (Chen et al. 2020) draws pixel by pixel: an image is a text whose tokens are the colours of a palette.

The palette is `clusters` in preprocessor_config.json, colours in -1..1; a token is a colour's index in it. Cache, loop
and samplers are those of text. No torch before the weights are loaded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from gencli.checkpoints.checkpoint import Checkpoint
from gencli.errors import GencliError, UsageError
from gencli.image.drawers.base import PartLoader
from gencli.image.drawers.tokens import TokenDrawer, TokenModel, own_sampling
from gencli.image.files.preprocess import FILE, Preprocessing, from_settings, read_settings
from gencli.image.request import ImageRequest

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from gencli.models.imagegpt import ImageGPT
    from gencli.models.module import LanguageModel

# What transformers' ImageGPTImageProcessor does where the file says nothing.
DEFAULTS: dict[str, object] = {
    "do_resize": True,
    "size": 256,
    "resample": Image.Resampling.BILINEAR,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": 0.5,
    "image_std": 0.5,
}
COLOUR_LIMIT, PIXEL_LIMIT = 2**14, 2**16
BLOCK = 2**22  # distances at once


@dataclass(frozen=True, kw_only=True)
class Palette(TokenDrawer):
    """An iGPT. colours (K, 3) in -1..1."""

    colours: NDArray[np.float64]
    preprocessing: Preprocessing
    FOLLOWED = TokenDrawer.FOLLOWED | {"init", "keep_rows"}
    DRAWS = "draws pixel by pixel"

    @classmethod
    def read(cls, checkpoint: Checkpoint) -> Palette:
        folder, config = checkpoint.path, checkpoint.only_part("iGPT").config
        where, settings = str(folder / FILE), read_settings(folder)
        preprocessing = from_settings(settings, DEFAULTS, where, square=True)
        if preprocessing.size is None:
            raise GencliError(f"{where} does not say the image size")
        height, width = preprocessing.size
        positions = config.get("n_positions", 1024)
        if height * width != positions or height * width > PIXEL_LIMIT:
            raise GencliError(
                f"{where}: size {width}x{height} does not fit n_positions = {positions!r:.40} in config.json"
            )
        colours = _colours(settings.get("clusters"), config.get("vocab_size", 513), where)
        size, own = (width, height), own_sampling(checkpoint)
        return cls(opened=checkpoint, size=size, grid=size, defaults=own, colours=colours, preprocessing=preprocessing)

    @property
    def settings(self) -> dict[str, object]:
        return {**super().settings, "colours": len(self.colours)}

    def resolve(self, request: ImageRequest) -> ImageRequest:
        height = self.size[1]
        if request.keep_rows is not None and request.keep_rows >= height:
            raise UsageError(f"--keep-rows {request.keep_rows}: of {height} rows at least one must be left to draw")
        resolved = super().resolve(request)
        if request.init is None or request.keep_rows is not None:
            return resolved
        if height < 2:
            raise UsageError(f"{self.name} draws a single row: there is nothing to keep of an image")
        return resolved.replace(keep_rows=height // 2)

    def assemble(self, load: PartLoader) -> PixelModel:
        from gencli.models.imagegpt import ImageGPT

        module = load(self.opened.only_part("iGPT"))
        assert isinstance(module, ImageGPT)
        return PixelModel(self, module)

    def encode(self, picture: Image.Image) -> list[int]:
        """The nearest colour of each pixel, row by row, of a picture that is brought to the model's own size."""
        pixels = self.preprocessing(picture).reshape(3, -1).T.astype(np.float64)
        step = max(BLOCK // len(self.colours), 1)
        ids = [_nearest(pixels[i : i + step], self.colours) for i in range(0, len(pixels), step)]
        return np.concatenate(ids).tolist()

    def decode(self, ids: Sequence[int]) -> Image.Image:
        """A whole picture from its colours, row by row."""
        width, height = self.size
        values = np.rint(127.5 * (self.colours[np.asarray(ids)] + 1)).clip(0, 255)
        return Image.fromarray(values.astype(np.uint8).reshape(height, width, 3))


def _nearest(pixels: NDArray[np.float64], colours: NDArray[np.float64]) -> NDArray[np.intp]:
    squares = (pixels**2).sum(1)[:, None] - 2 * pixels @ colours.T + (colours**2).sum(1)
    return squares.argmin(1)


def _colours(clusters: object, vocab_size: object, where: str) -> NDArray[np.float64]:
    """The palette, (K, 3). Raises GencliError for one that is none, or of another size than the model's."""
    if not isinstance(clusters, list) or not 1 <= len(clusters) <= COLOUR_LIMIT:
        seen = f"{len(clusters)} entries" if isinstance(clusters, list) else f"{clusters!r:.40}"
        raise GencliError(f"{where}: clusters ({seen}) is not a palette of 1 to {COLOUR_LIMIT} colours")
    for row in clusters:
        right = isinstance(row, list) and len(row) == 3 and all(type(value) in (int, float) for value in row)
        if not right or not all(-1.01 <= value <= 1.01 for value in row):
            raise GencliError(f"{where}: clusters has {row!r:.60}, which is not a colour of three numbers in -1 to 1")
    if vocab_size != len(clusters) + 1:  # one token begins the picture
        raise GencliError(f"{where}: {len(clusters)} colours do not fit vocab_size = {vocab_size!r:.40} in config.json")
    return np.array(clusters, np.float64)


class PixelModel(TokenModel):
    """A palette and the decoder that picks from it, ready to draw."""

    drawer: Palette
    module: ImageGPT

    def begin(
        self, request: ImageRequest, prompt: str, init: Image.Image | None
    ) -> tuple[LanguageModel, list[int], int]:
        """With `init` its first `request.keep_rows` rows stay, in the palette's colours."""
        kept = [] if init is None else self.drawer.encode(init)[: (request.keep_rows or 0) * self.drawer.size[0]]
        return self.module, [self.module.begin, *kept], len(kept)

    def partial(self, ids: Tensor) -> Tensor:
        """Colours (B, N) of the first N pixels → (B, 3, h, w) in -1..1, grey where nothing is yet."""
        import torch

        width, height = self.drawer.size
        pixels = np.zeros((len(ids), height * width, 3), np.float32)
        pixels[:, : ids.shape[1]] = self.drawer.colours[ids.numpy()]
        return torch.from_numpy(pixels).view(-1, height, width, 3).permute(0, 3, 1, 2)

    def finish(self, ids: list[int]) -> Image.Image:
        return self.drawer.decode(ids)


DRAWER = Palette
