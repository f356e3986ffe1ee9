"""The forms of /v1/images/edits and /v1/images/variations → a drawing, and the images that it begins from. No torch.

A form has texts alone: they become what JSON would have said, by the rows of their fields. Which part an image plays is
the model's to say: it is changed, or looked at.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from gencli.errors import GencliError, about
from gencli.image.checkpoint import ImageCheckpoint
from gencli.image.drawers.base import Drawer
from gencli.image.files.pictures import PIXEL_LIMIT, is_blank, open_flat, open_picture
from gencli.image.found import Inputs
from gencli.image.request import ImageRequest
from gencli.serve.bodies import DRAWN, DRAWN_ROWS, MOST_PIXELS, Drawing, read_drawing
from gencli.serve.multipart import Part
from gencli.serve.refusal import INVALID, Refusal

if TYPE_CHECKING:
    from PIL import Image

MOST_IMAGES = 16  # that a form may bring, as OpenAI has it
IMAGES, MASK = ("image", "image[]"), "mask"
EDITED = {  # name in a form → field of ImageRequest, beside those of a drawing
    **DRAWN, "strength": "strength", "paste": "paste", "noise_level": "noise_level", "image_guidance": "image_guidance",
}  # fmt: skip
INERT = {"input_fidelity"}
DRAWN_ALONE = ("prompt", "strength", "paste")  # what variations do not have
VARIED = {name: field for name, field in EDITED.items() if name not in DRAWN_ALONE}
FLAGS = {**dict.fromkeys(("-i", "--init", "--reference"), "image"), "--mask": MASK}  # in errors
NUMBER = re.compile(r"[-+]?([0-9]{1,30}\.?[0-9]{0,30}|\.[0-9]{1,30})(e[-+]?[0-9]{1,3})?", re.IGNORECASE)
TRUTH = {"true": True, "false": False, "1": True, "0": False}


@dataclass(frozen=True)
class Edit:
    """Images to begin from, by the names of their files, and what to draw. mask: white where it is painted anew."""

    drawing: Drawing
    images: dict[str, Image.Image]
    mask: Image.Image | None = None


def read_edit(parts: Sequence[Part], model: str, *, varies: bool = False) -> Edit:
    """Read a form for a model of this name. varies: it is of variations, which take one image and no prompt.

    Raise Refusal for fields that are missing, unknown or given twice, and for images that are none.
    """
    files = [part for part in parts if part.name in IMAGES]
    masks = [part for part in parts if part.name == MASK]
    most = 1 if varies else MOST_IMAGES
    if not 1 <= len(files) <= most:
        wanted = f"wants a file of an image{'' if varies else f', or up to {most}'} (curl: -F image=@photo.png)"
        raise Refusal(INVALID, f"image: {wanted}", param="image")
    if masks and (varies or len(masks) > 1):
        told = "variations are of the whole image" if varies else "wants one file"
        raise Refusal(INVALID, f"mask: {told}", param=MASK)
    values: dict[str, object] = {}
    for part in parts:
        if part.name in (*IMAGES, MASK):
            continue
        if part.name in values:
            raise Refusal(INVALID, f"{part.name[:60]} is given twice", param=part.name[:60])
        if part.text or part.name == "prompt":  # what a page leaves empty is not given
            values[part.name] = _value(part.name, part.text)
    names = _names(files)
    begun = {"init": names[0], **({"mask": _name(masks[0], MASK)} if masks else {})}
    drawing = read_drawing(values, model, VARIED if varies else EDITED, INERT, begun, FLAGS)
    left, images = PIXEL_LIMIT, {}
    for name, part in zip(names, files, strict=True):
        images[name] = _opened(part)
        left -= images[name].width * images[name].height
        if left < 0:
            raise Refusal(INVALID, f"image: all of them have more than {PIXEL_LIMIT} pixels", param="image")
    mask = _mask(masks[0], images[names[0]]) if masks else None
    return Edit(drawing, images, mask)


def begin(edit: Edit, opened: ImageCheckpoint | Drawer, inputs: Inputs) -> tuple[ImageRequest, Inputs]:
    """Return the request for a model, and its inputs with the images: a model that looks at images is shown them all,
    unless a mask or a strength says that the first one is to be changed. Raise Refusal for more than it takes."""
    request, (first, *others) = edit.drawing.request, edit.images
    looks = isinstance(opened, ImageCheckpoint) and opened.family.references is not None
    if looks and request.mask is None and request.strength is None:
        return request.replace(init=None, reference=tuple(edit.images)), replace(inputs, named=edit.images)
    if others and not looks:
        told = f"{opened.name} begins from one image, and {len(edit.images)} are given"
        raise Refusal(INVALID, f"image: {told}", param="image")
    seen = {name: edit.images[name] for name in others}
    inputs = replace(inputs, init=edit.images[first], mask=edit.mask, named=seen)
    return request.replace(reference=tuple(others)), inputs


def check_varies(opened: ImageCheckpoint | Drawer) -> None:
    """Raise Refusal for a model that does not vary images."""
    if isinstance(opened, Drawer) or opened.family.reads_init != "varies":
        told = f"{opened.name} makes no variations (POST /v1/images/edits changes an image, as a prompt says)"
        raise Refusal(INVALID, told, param="model")


def check_size(request: ImageRequest) -> None:
    """Raise Refusal for a resolved request of more pixels than one may have."""
    if (request.width or 0) * (request.height or 0) > MOST_PIXELS:
        told = f"{request.width}x{request.height} is more than {MOST_PIXELS} pixels"
        raise Refusal(INVALID, f"size: {told} (size asks for fewer)", param="size")


def _value(name: str, text: str) -> object:
    """Return what JSON would have said in the place of a text; the text itself where that is nothing of the kind."""
    option = DRAWN_ROWS.get(EDITED.get(name, ""))
    kind = bool if name == "stream" else option.kind if option else str
    if kind is bool:
        return TRUTH.get(text.lower(), text)
    if kind is int and re.fullmatch("-?[0-9]{1,30}", text):
        return int(text)
    if kind in (int, float) and NUMBER.fullmatch(text):
        return float(text)
    return text


def _names(files: Sequence[Part]) -> list[str]:
    """Return a name for each file, none of them twice: the image that is made says what it was made from."""
    names: list[str] = []
    for number, part in enumerate(files):
        name = _name(part, f"image-{number}")
        names.append(name if name not in names else f"{number}-{name}")
    return names


def _name(part: Part, usual: str) -> str:
    name = PurePosixPath((part.filename or "").replace("\\", "/")).name
    return name[-200:] if name.isprintable() and name not in ("", "-", "blob") else usual


def _opened(part: Part) -> Image.Image:
    try:
        with about("image"):
            return open_flat(part.data, where="the file")
    except GencliError as error:
        raise Refusal.of(error, status=INVALID, param="image") from None


def _mask(part: Part, image: Image.Image) -> Image.Image:
    """Return a mask that is white where an image is painted anew: where it is transparent, as OpenAI has it; else where
    it is white itself. Raise Refusal for one of another shape, and one that leaves nothing to paint."""
    try:
        with about(MASK):
            found = open_picture(part.data, where="the file")
            alpha = found.convert("RGBA").getchannel("A") if found.has_transparency_data else None
            if alpha is not None and alpha.getextrema() != (255, 255):
                mask = alpha.point(lambda value: 255 - value)
            else:
                mask = open_flat(part.data, "black", where="the file")
    except GencliError as error:
        raise Refusal.of(error, status=INVALID, param=MASK) from None
    if abs(mask.width * image.height - image.width * mask.height) > 0.02 * image.width * mask.height:
        sizes = f"{mask.width}x{mask.height}, and the image {image.width}x{image.height}"
        raise Refusal(INVALID, f"mask: it has another shape than the image: it is {sizes}", param=MASK)
    if is_blank(mask, *image.size):
        raise Refusal(INVALID, "mask: it is transparent or white nowhere: nothing would be painted anew", param=MASK)
    return mask
