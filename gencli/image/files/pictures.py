"""Tensors → images → bytes, and back; what an image says about its making; grids and animations.

An image from outside is not trusted: its size is checked before its pixels are read, its texts before they are parsed.
"""

from __future__ import annotations

import contextlib
import io
import math
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont, ImageOps, PngImagePlugin

from gencli.errors import GencliError
from gencli.image.files import inputs, metadata, recipes
from gencli.image.files.texts import BROKEN, EXIF_IFD, MAKER_NOTE, OWN_NOTE, USER_COMMENT, read_texts
from gencli.image.request import ImageRequest
from gencli.json_files import check_ends, check_no_pointer
from gencli.stderr import without_stderr

if TYPE_CHECKING:
    from torch import Tensor

FORMATS = {"png": "PNG", "jpg": "JPEG", "jpeg": "JPEG", "webp": "WEBP"}  # file extension → Pillow's name
READABLE = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")  # decoders without surprises; no PostScript
PIXEL_LIMIT = 2**26  # of an image that is read
FILE_LIMIT = 2**28  # bytes
QUALITY = 95
EXIF_LIMIT = 65_000  # bytes; a JPEG segment holds 65,533
SIDES = {"WEBP": 16_383, "JPEG": 65_500}  # pixels, of the format and of libjpeg


def to_picture(x: Tensor) -> Image.Image:
    """(3, H, W) or (1, H, W) in -1..1 → an image, rounded as diffusers rounds. Raises GencliError for NaN."""
    pixels = (x.float() / 2 + 0.5).clamp(0, 1).permute(1, 2, 0).cpu().numpy()
    if not np.isfinite(pixels).all():
        raise GencliError(
            "the image holds values that are not numbers", "`gencli models check` looks for broken weights"
        )
    array = (pixels * 255).round().astype(np.uint8)
    return Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array)


def from_picture(picture: Image.Image, channels: int = 3) -> Tensor:
    """An image → (1, channels, H, W) float32 in -1..1."""
    import torch

    array = np.asarray(picture.convert("L" if channels == 1 else "RGB"), dtype=np.float32) / 255
    array = array[None, None] if channels == 1 else array.transpose(2, 0, 1)[None]
    return torch.from_numpy(np.ascontiguousarray(array)) * 2 - 1


def from_mask(mask: Image.Image, width: int, height: int) -> Tensor:
    """A mask → (1, 1, height, width), 1 where it is at least half white (what is painted anew), else 0."""
    import torch

    return torch.from_numpy(_white(mask, width, height).astype(np.float32))[None, None]


def _white(mask: Image.Image, width: int, height: int) -> np.ndarray:
    """Where a mask is at least half white, (height, width) of bool."""
    resized = mask.resize((width, height), Image.Resampling.LANCZOS).convert("L")
    return np.asarray(resized, dtype=np.float32) / 255 >= 0.5


def soft_mask(mask: Image.Image, width: int, height: int, edge: int) -> Image.Image:
    """A mask as an "L" of width × height: 0 where an image is kept, and from there inwards rising to 255 within `edge`
    pixels (0: at once)."""
    inside = Image.fromarray((_white(mask, width, height) * 255).astype(np.uint8))
    total, steps = np.zeros((height, width), np.float32), max(edge, 1)
    for _ in range(steps):
        total += np.asarray(inside, dtype=np.float32) / steps
        inside = inside.filter(ImageFilter.MinFilter(3))
    return Image.fromarray(total.round().astype(np.uint8))


def is_blank(mask: Image.Image, width: int, height: int, step: int = 1) -> bool:
    """Whether a mask leaves nothing to paint. step: only every so many pixels are looked at."""
    return not _white(mask, width, height)[::step, ::step].any()


def encode(picture: Image.Image, kind: str, texts: Mapping[str, str] | None = None) -> bytes:
    """An image as a whole file: `kind` is a key of FORMATS, `texts` the request as `describe` gives it.

    PNG keeps the texts as text chunks; JPEG and WebP as EXIF: infotext is the user comment, as the web UI writes it.
    Raises GencliError when a JPEG cannot hold the texts.
    """
    out, extra = io.BytesIO(), dict[str, object]()
    if texts and FORMATS[kind] == "PNG":
        info = PngImagePlugin.PngInfo()
        for key, text in texts.items():
            info.add_text(key, text)
        extra["pnginfo"] = info
    elif texts:
        extra["exif"] = check_texts(kind, texts)
    if FORMATS[kind] == "JPEG":
        picture.save(out, "JPEG", quality=QUALITY, subsampling=0, **extra)
    elif FORMATS[kind] == "WEBP":
        picture.save(out, "WEBP", quality=QUALITY, method=4, **extra)
    else:
        picture.save(out, "PNG", **extra)
    return out.getvalue()


def check_texts(kind: str, texts: Mapping[str, str]) -> bytes:
    """The texts as EXIF. Raises GencliError when a JPEG cannot hold them."""
    if FORMATS[kind] == "PNG":
        return b""
    exif = _to_exif(texts)
    if FORMATS[kind] == "JPEG" and len(exif) > EXIF_LIMIT:
        raise GencliError("the prompt is too long for a JPEG's metadata", "write a PNG, or use --no-metadata")
    return exif


def check_size(kind: str, width: int, height: int) -> None:
    """Raises GencliError for an image that a file of this kind cannot hold."""
    limit = SIDES.get(FORMATS[kind])
    if limit is not None and max(width, height) > limit:
        name = FORMATS[kind].replace("WEBP", "WebP")
        raise GencliError(f"{width}x{height}: a {name} has at most {limit} pixels a side", "write a PNG")


def describe(request: ImageRequest) -> dict[str, str]:
    """The texts to keep in an image that `request` makes, without folders of its maker's."""
    return {
        metadata.INFOTEXT: metadata.to_infotext(inputs.rename(request, inputs.last_name)),
        metadata.JSON: metadata.to_json(inputs.rename(request, inputs.recorded)),
    }


def read_request(source: str | Path | bytes) -> metadata.Found:
    """What the image in a file (or its bytes) says about its making: gencli's own JSON, else what its tool wrote.

    Raises GencliError for a file that cannot be read, is no image, or says nothing.
    """
    try:
        return recipes.read(read_texts(open_picture(source)))
    except GencliError as error:
        path = "stdin" if isinstance(source, bytes) else source
        raise GencliError(
            error.message if str(path) in error.message else f"{path}: {error.message}", error.hint
        ) from None


def check_is_here(path: str) -> None:
    """Raises GencliError, as `open_picture` does, for a path where nothing lies: before a model is fetched for it."""
    try:
        os.stat(path)
    except OSError as error:
        raise GencliError(f"cannot read {path} as an image: {error.strerror}") from None


def open_picture(source: str | Path | bytes, where: str = "stdin") -> Image.Image:
    """The image in a file (or its bytes), with its pixels read. Raises GencliError for all that is none.

    where: what errors call bytes.
    """
    where = where if isinstance(source, bytes) else str(source)
    try:
        data = source if isinstance(source, bytes) else _read(Path(source))
        if not data:
            raise GencliError(f"{where} is empty: it holds no image")
        with warnings.catch_warnings(), without_stderr():
            warnings.simplefilter("ignore")  # Pillow's remarks on odd files are not for users, nor are libtiff's
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            picture = Image.open(io.BytesIO(data), formats=READABLE)
            if picture.width * picture.height > PIXEL_LIMIT:
                raise GencliError(f"{where}: {picture.width}x{picture.height} pixels are too many")
            picture.load()
    except OSError as error:
        raise GencliError(f"cannot read {where} as an image: {error.strerror or 'unknown or broken format'}") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise GencliError(f"{where}: too many pixels") from None
    except BROKEN as error:
        raise GencliError(f"cannot read {where} as an image: {' '.join(str(error).split())[:120]}") from None
    return picture


def open_flat(
    source: str | Path | bytes,
    ground: str = "white",
    note: Callable[[str], None] = lambda text: None,
    where: str = "stdin",
) -> Image.Image:
    """The same, upright by its EXIF and as RGB.

    ground: the colour on which what is transparent lies; black where white has a meaning, as in masks. Remarks go to
    `note`. where: as `open_picture`.
    """
    picture = open_picture(source, where)
    is_tiff = picture.format == "TIFF"
    with contextlib.suppress(*BROKEN), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        picture = ImageOps.exif_transpose(picture)
    if picture.mode[0] in "IF":
        where = where if isinstance(source, bytes) else str(source)
        picture = Image.fromarray(_to_bytes(picture, where, is_tiff, note))
    if picture.has_transparency_data:
        below = Image.new("RGBA", picture.size, ground)
        below.alpha_composite(picture.convert("RGBA"))
        picture = below
    return picture.convert("RGB")


def _to_bytes(picture: Image.Image, where: str, is_tiff: bool, note: Callable[[str], None]) -> np.ndarray:
    """(H, W) of 8 bits, of an image of 16 or 32 bits or of floats, which Pillow would clip.

    Whole numbers of a TIFF's 32 bits are of the least of 8 and 16 bits that holds them, floats are from 0 to 1; all
    others are scaled by their own range. Raises GencliError for values that are not numbers.
    """
    array = np.asarray(picture).astype(np.float64)
    if not np.isfinite(array).all():
        raise GencliError(f"{where}: it holds values that are not numbers")
    low, high = float(array.min()), float(array.max())
    tops = (1.0,) if picture.mode == "F" else (255.0, 65535.0) if is_tiff and picture.mode == "I" else (65535.0,)
    top = next((one for one in tops if low >= 0 and high <= one), None)
    if top is None:
        note(f"{where} holds values from {low:g} to {high:g}, which are taken for black and white")
        array, top = array - low, high - low or 1.0
    return (array * (255 / top)).round().astype(np.uint8)


def sheet_size(count: int, width: int, height: int, columns: int | None = None) -> tuple[int, int]:
    """Width and height of a grid of images. Raises GencliError for too many pixels."""
    columns = min(columns or math.ceil(math.sqrt(count)), count)
    rows = math.ceil(count / columns)
    if columns * width * rows * height > PIXEL_LIMIT:
        raise GencliError(f"a grid of {columns}x{rows} images of {width}x{height} has too many pixels")
    return columns * width, rows * height


def grid(pictures: Sequence[Image.Image], labels: Sequence[str] = (), columns: int | None = None) -> Image.Image:
    """All images in one, row by row, as near to a square as goes; empty places are white.

    labels: written above each. columns: images in a row.
    """
    width, height = max(p.width for p in pictures), max(p.height for p in pictures)
    size = max(10, min(width // 12, 28))  # of letters
    room = 2 * size if labels else 0
    sheet = Image.new(pictures[0].mode, sheet_size(len(pictures), width, height + room, columns), "white")
    columns = sheet.width // width
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size)
    for index, picture in enumerate(pictures):
        left, top = index % columns * width, index // columns * (height + room)
        sheet.paste(picture, (left, top + room))
        if labels:
            text = labels[index]
            while len(text) > 1 and draw.textlength(text, font) > width - size:
                text = f"{text[:-2]}…"
            draw.text((left + size // 2, top + size // 3), text, "black", font)
    return sheet


def animation(frames: Sequence[Image.Image], kind: str = "gif", *, milliseconds: int = 80, last: int = 1500) -> bytes:
    """An animation that loops and rests on its last frame. Smaller frames are enlarged to the last one's size.

    kind: gif, or webp, which is lossless.
    """
    out = io.BytesIO()
    durations = [milliseconds] * (len(frames) - 1) + [last]
    first, *rest = [
        (frame if frame.size == frames[-1].size else frame.resize(frames[-1].size, Image.Resampling.NEAREST)).convert(
            "RGB"
        )
        for frame in frames
    ]
    shown: dict[str, object] = {"save_all": True, "duration": durations, "loop": 0}
    if kind.lower() == "webp":
        first.save(out, "WEBP", append_images=rest, lossless=True, **shown)
        return out.getvalue()
    first, *rest = [frame.quantize(256, dither=Image.Dither.NONE) for frame in (first, *rest)]
    first.save(out, "GIF", append_images=rest, disposal=1, **shown)
    return out.getvalue()


def _read(path: Path) -> bytes:
    check_ends(path)
    with path.open("rb") as file:
        data = file.read(FILE_LIMIT + 1)
    if len(data) > FILE_LIMIT:
        raise GencliError(f"{path} is too large to be an image (over {FILE_LIMIT} bytes)")
    check_no_pointer(data, path)
    return data


def _to_exif(texts: Mapping[str, str]) -> bytes:
    exif = Image.Exif()
    exif[EXIF_IFD] = {
        USER_COMMENT: b"UNICODE\0" + texts[metadata.INFOTEXT].encode("utf-16-be"),
        MAKER_NOTE: OWN_NOTE + texts[metadata.JSON].encode("ascii"),
    }
    return exif.tobytes()
