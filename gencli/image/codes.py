"""A picture as numbers of a VQ autoencoder's codebook, and back: the autoencoder as a model of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from PIL import Image

from gencli.checkpoints import build
from gencli.checkpoints.find import Source
from gencli.checkpoints.formats.vq import VQ_PART
from gencli.checkpoints.open import open_checkpoint
from gencli.devices import pick_device
from gencli.errors import GencliError
from gencli.image.files.pictures import from_picture, to_picture
from gencli.json_files import parse_json
from gencli.models.dvae import DVAE
from gencli.models.vq_model import VQModel

Codes = list[list[int]]
"""h rows of w numbers, each the entry that stands for a square of the picture."""

PART = "vqvae"  # of a pipeline's folder
KINDS = ("VQModel", "dall_e")
SIDE_LIMIT = 2048  # codes a side


@dataclass(frozen=True)
class Codec:
    """A VQ autoencoder with its weights."""

    name: str
    module: VQModel | DVAE

    @property
    def factor(self) -> int:
        """Pixels a side of the square that one code stands for."""
        return self.module.scale

    @property
    def entries(self) -> int:
        """How many codes there are: they run from 0 to one less."""
        return self.module.config.num_vq_embeddings

    def read(self, picture: Image.Image) -> Codes:
        """The codes of a picture. Raises GencliError for one whose sides are no whole number of squares."""
        f = self.factor
        if not getattr(self.module.config, "encodes", True):
            raise GencliError(f"{self.name} has no encoder: it turns codes into images alone", "--paint does")
        if picture.width % f or picture.height % f or not picture.width or not picture.height:
            near = "x".join(str(max(round(side / f), 1) * f) for side in picture.size)
            raise GencliError(
                f"it is {picture.width}x{picture.height}, and {self.name} reads multiples of {f}",
                f"--size {near} makes it so",
            )
        x = from_picture(picture, self.module.config.in_channels).to(self.module.device)
        with torch.no_grad():
            codes: Codes = self.module.codes(x)[0].tolist()
        return codes

    def paint(self, codes: Codes) -> Image.Image:
        """The picture that codes stand for. Raises GencliError for a code that there is not."""
        highest = max(max(row) for row in codes)
        if highest >= self.entries:
            raise GencliError(f"there is no code {highest}: those of {self.name} run from 0 to {self.entries - 1}")
        with torch.no_grad():
            grid = torch.tensor([codes], device=self.module.device)
            return to_picture(self.module.decode_codes(grid)[0])


def open_codec(source: Source, *, device: str = "auto", allow_pickle: bool = False) -> Codec:
    """Open a VQ autoencoder, in a folder or file of its own or with the model that it is a part of; in float32.

    Raises GencliError for what has none, is broken or not supported.
    """
    checkpoint = open_checkpoint(source, allow_pickle=allow_pickle)
    if checkpoint.contents.is_file and checkpoint.problem is not None:
        raise checkpoint.problem
    part = checkpoint.parts.get(VQ_PART)
    if part is None and not checkpoint.contents.is_file:
        part = checkpoint.find_part("", PART)
    if part is None:
        raise GencliError(f"{source.name} holds no VQ autoencoder", "CompVis/ldm-celebahq-256 has one")
    config = part.config
    kind = config.get("_class_name") or config.get("model_type")
    if kind not in KINDS:
        raise GencliError(
            f"{source.name}: its {kind!s:.40} is not a VQ autoencoder", "CompVis/ldm-celebahq-256 has one"
        )
    tensors = part.tensors()
    place = pick_device(device)
    module = build.load(part.path, device=place, dtype=torch.float32, config=config, tensors=tensors)
    assert isinstance(module, VQModel | DVAE)  # as KINDS are
    return Codec(source.name, module)


def to_text(codes: Codes) -> str:
    """A line of numbers for each row."""
    return "".join(" ".join(map(str, row)) + "\n" for row in codes)


def parse(text: str) -> Codes:
    """The codes in a text: rows of numbers, or one JSON object that has them as `codes`.

    Raises GencliError for all else, and for rows of different lengths.
    """
    if text.lstrip().startswith("{"):
        found = parse_json(text, "the text of the codes")
        rows = found.get("codes") if isinstance(found, Mapping) else None
    else:
        rows = [line.split() for line in text.splitlines() if line.strip()]
    if not isinstance(rows, list) or not rows or not all(isinstance(row, list) and row for row in rows):
        raise GencliError("no codes: rows of whole numbers are wanted, or a JSON object that has them as `codes`")
    for number, row in enumerate(rows, 1):
        if len(row) != len(rows[0]):
            raise GencliError(f"row {number} has {len(row)} codes, and the first {len(rows[0])}")
    if max(len(rows), len(rows[0])) > SIDE_LIMIT:
        raise GencliError(f"{len(rows[0])}x{len(rows)} codes are too many (at most {SIDE_LIMIT} a side)")
    return [[_code(one) for one in row] for row in rows]


def _code(value: object) -> int:
    if isinstance(value, str) and value.isascii() and value.isdecimal() and len(value) < 10:
        return int(value)
    if type(value) is int and 0 <= value < 10**9:
        return value
    raise GencliError(f"{str(value)[:40]!r} is not a code: whole numbers from 0 are")
