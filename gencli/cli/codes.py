"""`gencli codes`: an image as codes of a VQ autoencoder, and back."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from gencli import devices, signals
from gencli.cli.console import Console
from gencli.cli.image_sinks import ImageSink, plan, print_path
from gencli.cli.options import JSON, Fetching, Reporting, command
from gencli.cli.prompts import image_data, read_data
from gencli.cli.sinks import stdout_bytes, write, write_json
from gencli.errors import GencliError, UsageError
from gencli.json_files import read_bytes
from gencli.options import OUTPUT, Option, flag, string
from gencli.spec import ModelSpec, named_model

if TYPE_CHECKING:
    from gencli.image.codes import Codec

INPUT = "Input"
ENVIRONMENT = "GENCLI_VQ_MODEL"
READER = "`-` reads"
CODES_LIMIT = 2**26  # bytes of a text with codes
app = typer.Typer(add_completion=False, rich_markup_mode=None)


@dataclass(eq=False, repr=False)
class Turned:
    """The arguments, and where the result goes."""

    # fmt: off
    files: tuple[str, ...] = Option(str, "FILE", "Images; with --paint one file of codes. `-` is stdin.", INPUT,
        several=True).field(())
    paint: bool = flag(False, "--paint", "Decode codes into an image.", INPUT)
    size: str | None = string(None, "--size WxH", "Resize images first (default: keep size).", INPUT)
    output: str | None = string(None, "-o, --output PATH",
        "With --paint: file to write, .png, .jpg or .webp; `-` is stdout (default: stdout if that is not a "
        "terminal, else a new file).", OUTPUT)
    # fmt: on
    json: bool = JSON.field(False)


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class VQSpec(ModelSpec):
    """A VQ autoencoder."""

    model: str | None = named_model(
        ENVIRONMENT, None, "codes", "A VQ autoencoder, or a latent diffusion model with one", "CompVis/ldm-celebahq-256"
    ).field(None)


@command(
    app,
    epilog="""Examples:
    gencli codes face.png -m CompVis/ldm-celebahq-256 > face.txt
    gencli codes --paint face.txt -m CompVis/ldm-celebahq-256 -o back.png
    gencli codes *.png --size 256x256 --json -m ./vq | jq -c .codes
    gencli codes face.png -m ./vq | gencli codes --paint - -m ./vq > back.png
    """,
    without={"dtype", "lora", "stats"},
)
def codes(ctx: typer.Context, turned: Turned, spec: VQSpec, fetching: Fetching, reporting: Reporting) -> None:
    """Encode an image into the codes of a VQ autoencoder, or decode codes into an image.

    A code is the number of an entry in the model's codebook, and stands for a small square (4x4 pixels in
    CompVis/ldm-celebahq-256). Prints one line of codes per row of the grid; with --json one object per image.
    """
    _check(turned)
    size = None if turned.size is None else _size(turned.size)
    sink = plan(turned.output, None, many=False, json=turned.json, metadata=False) if turned.paint else None
    stdout_bytes()  # fails now rather than after the work
    if spec.model is None:
        hint = f"name one, as in -m CompVis/ldm-celebahq-256, or set {ENVIRONMENT}"
        raise UsageError("no model: no VQ autoencoder is built in", hint)
    _check_files(turned)
    console: Console = ctx.obj
    source = fetching.finder(console, spec)(spec.model)
    console.progress(f"loading {source.name}")
    with signals.raise_pending_signals():
        from gencli.image.codes import open_codec

    devices.set_threads(spec.threads)
    codec = open_codec(source, device=spec.device, allow_pickle=spec.allow_pickle)
    console.clear()
    if sink is not None:
        _paint(codec, turned.files[0], sink, json=turned.json)
        return
    for path in turned.files:
        _read(codec, path, size, json=turned.json)


def _check(turned: Turned) -> None:
    """Raise UsageError for options that exclude each other."""
    paths, paint = turned.files, turned.paint
    if not paths:
        what = "codes to paint" if paint else "image"
        raise UsageError(f"no {what}", "name a file, or `-` for stdin")
    if paint and (len(paths) > 1 or turned.size is not None):
        raise UsageError("--paint takes one file of codes, and no --size: the codes have theirs")
    if not paint and turned.output is not None:
        raise UsageError("-o is for --paint: codes are printed on stdout", "write them into a file with > FILE")
    if not paint and len(paths) > 1 and not turned.json:
        raise UsageError("the codes of several images need --json", "--json prints one object per image")
    if paths.count("-") > 1:
        raise UsageError("`-` reads stdin, and once")


def _check_files(turned: Turned) -> None:
    """Raise GencliError for a file that is not here, before a model is fetched for it."""
    for path in turned.files:
        try:
            os.stat(0 if path == "-" else path)
        except OSError as error:
            what = "" if turned.paint else " as an image"
            raise GencliError(f"cannot read {path}{what}: {error.strerror}") from None


def _size(size: str) -> tuple[int, int]:
    left, _, right = size.lower().replace("×", "x").partition("x")
    if not all(side.isascii() and side.isdecimal() and 0 < int(side[:6]) <= 2**14 for side in (left, right)):
        raise UsageError(f"--size {size}: expected WIDTHxHEIGHT, as in 256x256")
    return int(left), int(right)


def _read(codec: Codec, path: str, size: tuple[int, int] | None, *, json: bool) -> None:
    """Print the codes of an image."""
    from PIL import Image

    from gencli.image.codes import to_text
    from gencli.image.files.pictures import open_flat

    picture = open_flat(image_data(path, READER))
    if size is not None:
        picture = picture.resize(size, Image.Resampling.LANCZOS)
    try:
        found = codec.read(picture)
    except GencliError as error:
        raise GencliError(f"{'stdin' if path == '-' else path}: {error.message}", error.hint) from None
    if json:
        name = os.fsencode(path).decode("utf-8", "replace")
        shape = {"width": picture.width, "height": picture.height, "entries": codec.entries}
        write_json({"path": name, "model": codec.name, **shape, "codes": found})
    else:
        write(to_text(found).encode())


def _paint(codec: Codec, path: str, sink: ImageSink, *, json: bool) -> None:
    """Write the image of codes, and print its path."""
    from gencli.image.codes import parse
    from gencli.image.files.pictures import encode
    from gencli.image.request import ImageRequest

    data = read_data(CODES_LIMIT, READER) if path == "-" else read_bytes(Path(path))
    try:
        picture = codec.paint(parse(data.decode("utf-8-sig")))
    except UnicodeDecodeError:
        raise GencliError(f"{'stdin' if path == '-' else path} holds no codes: it is not text") from None
    except GencliError as error:
        raise GencliError(f"{'stdin' if path == '-' else path}: {error.message}", error.hint) from None
    image = encode(picture, sink.kind)
    if sink.template is None:
        write(image)
        return
    made = sink.template.write(image, ImageRequest(seed=0), 0)
    if json:
        name = os.fsencode(made).decode("utf-8", "replace")
        write_json({"path": name, "model": codec.name, "width": picture.width, "height": picture.height})
    else:
        print_path(made)
