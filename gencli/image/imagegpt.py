"""ImageGPT (Chen et al. 2020) draws pixel by pixel: an image is a text whose tokens are the colours of a palette.

The palette is `clusters` in preprocessor_config.json, colours in -1..1; a token is a colour's index in it. Cache, loop
and samplers are those of text. No torch before the weights are loaded.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from gencli.checkpoints.checkpoint import Checkpoint, Part
from gencli.checkpoints.find import Source
from gencli.checkpoints.open import open_checkpoint
from gencli.errors import GencliError, UsageError
from gencli.image.files.preprocess import FILE, Preprocessing, from_settings, read_settings
from gencli.image.request import ImageRequest
from gencli.models import PALETTES
from gencli.options import check_values
from gencli.options import row as option_of
from gencli.text.request import TextRequest

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from gencli.image.generate import Denoised, Picture

# Fields of a request that such a model can follow; all others are refused when they are given.
FOLLOWED = frozenset(
    """prompt seed width height temperature top_k top_p init keep_rows count grid batch best clip dtype
    model hashes""".split()  # noqa: SIM905
)
SAMPLING = ("temperature", "top_k", "top_p")
# The model's own distribution, as its authors sampled.
BUILT_IN: dict[str, Any] = {"temperature": 1.0, "top_k": 0, "top_p": 1.0}
# What transformers' ImageGPTImageProcessor does where the file says nothing.
DEFAULTS: dict[str, Any] = {
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


@dataclass(frozen=True)
class Palette:
    """What a folder says, before any weight is read. colours (K, 3) in -1..1; defaults: values for `ImageRequest`."""

    name: str
    part: Part
    colours: np.ndarray
    preprocessing: Preprocessing
    defaults: Mapping[str, Any]
    prompt = "none"

    @property
    def folder(self) -> Path:
        """Where it lies."""
        return self.part.path

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of every picture."""
        height, width = self.preprocessing.size or (0, 0)
        return width, height

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


def _nearest(pixels: np.ndarray, colours: np.ndarray) -> np.ndarray:
    squares = (pixels**2).sum(1)[:, None] - 2 * pixels @ colours.T + (colours**2).sum(1)
    return squares.argmin(1)


def is_palette(checkpoint: Checkpoint) -> bool:
    """Return whether a checkpoint is of this kind."""
    return checkpoint.family in PALETTES and not checkpoint.contents.is_file


def open_palette(source: Source | Checkpoint, *, allow_pickle: bool = False) -> Palette:
    """Read the small files of such a checkpoint. Raise GencliError for what is broken or at odds."""
    opened = source if isinstance(source, Checkpoint) else open_checkpoint(source, allow_pickle=allow_pickle)
    folder, part = opened.path, opened.only_part("iGPT")
    config, where = part.config, str(folder / FILE)
    settings = read_settings(folder)
    preprocessing = from_settings(settings, DEFAULTS, where, square=True)
    if preprocessing.size is None:
        raise GencliError(f"{where} does not say the image size")
    height, width = preprocessing.size
    positions = config.get("n_positions", 1024)
    if height * width != positions or height * width > PIXEL_LIMIT:
        raise GencliError(f"{where}: size {width}x{height} does not fit n_positions = {positions!r:.40} in config.json")
    colours = _colours(settings.get("clusters"), config.get("vocab_size", 513), where)
    own = opened.defaults
    defaults = {name: own[name] for name in SAMPLING if own.get(name) is not None}
    return Palette(opened.name, part, colours, preprocessing, defaults)


def _colours(clusters: Any, vocab_size: Any, where: str) -> np.ndarray:
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


def resolve(request: ImageRequest, palette: Palette) -> ImageRequest:
    """Fill in what `request` leaves open; only the seed and the precision stay as they are.

    Raises UsageError for what such a model cannot follow, GencliError for settings of its own that make no sense.
    """
    given = [field for field in dataclasses.fields(request) if field.name not in FOLLOWED]
    given = [field for field in given if getattr(request, field.name) not in (None, field.default, {}, ())]
    names = [option.name(field.name) for field in given if (option := option_of(field)) is not None]
    if request.prompt:
        raise UsageError(f"{palette.name} draws without a prompt: it cannot be followed")
    if names:
        raise UsageError(f"{palette.name} draws pixel by pixel and does not denoise: {', '.join(names)} has no meaning")
    width, height = palette.size
    for name, side, own in (("--width", request.width, width), ("--height", request.height, height)):
        if side not in (None, own):
            raise UsageError(f"{name} {side}: {palette.name} draws {width}x{height} pixels and no other size")
    if request.keep_rows is not None and request.keep_rows >= height:
        raise UsageError(f"--keep-rows {request.keep_rows}: of {height} rows at least one must be left to draw")
    try:
        check_values(ImageRequest, palette.defaults)
    except UsageError as error:
        where = palette.folder / "generation_config.json"
        raise GencliError(f"{where}: {error.message.removeprefix('--')}", error.hint) from None
    values = {**BUILT_IN, **palette.defaults, "width": width, "height": height}
    if request.init is not None:
        values["keep_rows"] = height // 2
        if height < 2:
            raise UsageError(f"{palette.name} draws a single row: there is nothing to keep of an image")
    return request.replace(**{name: value for name, value in values.items() if getattr(request, name) is None})


@dataclass(frozen=True)
class PixelModel:
    """A palette and the decoder that picks from it, ready to draw."""

    palette: Palette
    module: Any

    @property
    def device(self) -> torch.device:
        return self.module.device

    @property
    def dtype(self) -> torch.dtype:
        return self.module.compute_dtype

    def describe(self) -> str:
        """Return the model in one line: its size, precision, device and threads."""
        from gencli.models.module import describe

        return describe(self.palette.name, [self.module])

    def decode(self, latents: Tensor, *, tiled: bool = False) -> Image.Image:
        """Return the image of one x0 (1, 3, h, w), as far as it is drawn."""
        from gencli.image.files.pictures import to_picture

        return to_picture(latents[0])

    def sketch(self, latents: Tensor) -> Image.Image:
        """Return the same: there is nothing to decode."""
        return self.decode(latents)


def load(palette: Palette, *, device: str = "auto", dtype: str = "auto") -> PixelModel:
    """Load the weights; device and dtype are names as `gencli.devices` knows them.

    Raises GencliError for weights that are broken or do not fit.
    """
    from gencli.checkpoints import build
    from gencli.devices import pick_device, pick_dtype

    place = pick_device(device)
    config, tensors = palette.part.config, palette.part.tensors()
    precision = pick_dtype(dtype, place, {tensors.dtype(name) for name in tensors})
    module = build.load(palette.folder, device=place, dtype=precision, config=config, tensors=tensors)
    return PixelModel(palette, module)


def generate(
    model: PixelModel, request: ImageRequest, *, init: Image.Image | None = None
) -> Iterator[Denoised | Picture]:
    """Draw `request.count` pictures, `request.batch` at a time. A step is a row; `x0` is grey where nothing is yet.

    `request` is a resolved one. Picture i picks with `torch.Generator("cpu")` seeded with `request.seed + i`, one
    number a pixel. With `init` its first `request.keep_rows` rows stay, in the palette's colours.
    Raises GencliError for NaN from the model.
    """
    width, _ = model.palette.size
    kept = [] if init is None else model.palette.encode(init)[: (request.keep_rows or 0) * width]
    for first in range(0, request.count, request.batch):
        numbers = range(first, min(first + request.batch, request.count))
        yield from _together(model, request, kept, numbers)


def _together(
    model: PixelModel, request: ImageRequest, kept: list[int], numbers: range
) -> Iterator[Denoised | Picture]:
    """Images that go through the model as one batch."""
    import torch

    from gencli.image.generate import Denoised, Picture
    from gencli.text.batch import Batch

    width, height = model.palette.size
    generators = [torch.Generator("cpu").manual_seed((request.seed or 0) + number) for number in numbers]
    asked = TextRequest.of(temperature=request.temperature, top_k=request.top_k, top_p=request.top_p)
    left = width * height - len(kept)
    batch = Batch(model.module, asked.resolve({}), [model.module.begin, *kept], generators, left)
    rows = left // width
    for row in range(rows):
        for column in range(width):
            if row or column:
                batch.advance()
            batch.pick()
        yield Denoised(row, rows, numbers[0], _so_far(model.palette, batch.ids[:, 1:].cpu().numpy()), model)
    for number, ids in zip(numbers, batch.ids[:, 1:].tolist(), strict=True):
        made = request.item(number, dtype=str(model.dtype).removeprefix("torch."))
        yield Picture(number, model.palette.decode(ids), made)


def _so_far(palette: Palette, ids: np.ndarray) -> Tensor:
    """Colours (B, N) of the first N pixels → (B, 3, h, w) in -1..1."""
    import torch

    width, height = palette.size
    pixels = np.zeros((len(ids), height * width, 3), np.float32)
    pixels[:, : ids.shape[1]] = palette.colours[ids]
    return torch.from_numpy(pixels).view(-1, height, width, 3).permute(0, 3, 1, 2)
