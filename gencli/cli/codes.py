"""`gencli codes`: a picture as numbers of a VQ autoencoder's codebook, and back."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gencli import devices, stopping
from gencli.checkpoints.find import find
from gencli.cli import options
from gencli.cli.console import Console
from gencli.cli.download import show_download
from gencli.cli.help import SETTINGS, Command
from gencli.cli.image_sinks import ImageSink, plan, print_path
from gencli.cli.sinks import stdout_bytes, write, write_json
from gencli.errors import GencliError, UsageError
from gencli.json_files import read_bytes

if TYPE_CHECKING:
    from gencli.image.codes import Codec

INPUT = "What to turn"
ENVIRONMENT = "GENCLI_VQ_MODEL"
CODES_LIMIT = 2**26  # bytes of a text with codes
app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command(
    cls=Command,
    context_settings=SETTINGS,
    epilog="""Examples:
    gencli codes face.png -m CompVis/ldm-celebahq-256 > face.txt
    gencli codes --paint face.txt -m CompVis/ldm-celebahq-256 -o back.png
    gencli codes *.png --size 256x256 --json -m ./vq | jq -c .codes
    gencli codes face.png -m ./vq | gencli codes --paint - -m ./vq > back.png
    """,
)
def codes(
    ctx: typer.Context,
    files: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="FILE", help="Pictures; with --paint one file of codes. `-`: stdin.", rich_help_panel=INPUT
        ),
    ] = None,
    paint: Annotated[bool, typer.Option("--paint", help="Turn codes into a picture.", rich_help_panel=INPUT)] = False,
    size: Annotated[
        str | None,
        typer.Option(
            "--size",
            metavar="WxH",
            help="Scale pictures to this size first (default: as they are).",
            rich_help_panel=INPUT,
        ),
    ] = None,
    output: Annotated[
        str | None,
        typer.Option(
            "-o",
            "--output",
            metavar="PATH",
            help="With --paint: file to write, .png, .jpg or .webp; `-` is stdout (default: stdout when it is no "
            "terminal, else a new file).",
            rich_help_panel=options.OUTPUT,
        ),
    ] = None,
    json: options.Json = False,
    model: Annotated[
        str | None,
        typer.Option(
            "-m",
            "--model",
            metavar="NAME",
            envvar=ENVIRONMENT,
            help="A VQ autoencoder, or a latent diffusion that has one: local folder, or Hugging Face id such as "
            f"CompVis/ldm-celebahq-256 (default: none; environment: {ENVIRONMENT}).",
            rich_help_panel=options.MODEL,
        ),
    ] = None,
    device: options.Device = "auto",
    threads: options.Threads = None,
    offline: options.Offline = False,
    allow_pickle: options.AllowPickle = False,
    quiet: options.Quiet = False,
    color: options.Color = options.When.auto,
    debug: options.Debug = False,
) -> None:
    """Turn a picture into codes, and codes into a picture, by a VQ autoencoder.

    A code is the number of an entry in the model's codebook, and stands for a small square (4x4 pixels in
    CompVis/ldm-celebahq-256). stdout gets a line of codes for each row of squares; with --json one object a picture.
    """
    devices.check_names(device, "auto", threads)
    paths = files or []
    _check(paths, paint=paint, size=size, output=output, json=json)
    scaled = None if size is None else _size(size)
    sink = plan(output, None, many=False, json=json, metadata=False) if paint else None
    stdout_bytes()  # fails now rather than after the work
    if model is None:
        hint = f"name one, as in -m CompVis/ldm-celebahq-256, or set {ENVIRONMENT}"
        raise UsageError("no model: no VQ autoencoder is embedded", hint)
    console: Console = ctx.obj
    source = find(model, offline=offline, progress=show_download(console), allow_pickle=allow_pickle)
    console.progress(f"loading {source.name}")
    with stopping.heeded():
        from gencli.image.codes import open_codec

    devices.set_threads(threads)
    codec = open_codec(source, device=device, allow_pickle=allow_pickle)
    console.clear()
    if sink is not None:
        _paint(codec, paths[0], sink, json=json)
        return
    for path in paths:
        _read(codec, path, scaled, json=json)


def _check(paths: list[str], *, paint: bool, size: str | None, output: str | None, json: bool) -> None:
    """Raises UsageError for what cannot be meant."""
    if not paths:
        what = "codes to paint" if paint else "picture"
        raise UsageError(f"no {what}", "name a file, or `-` for stdin")
    if paint and (len(paths) > 1 or size is not None):
        raise UsageError("--paint takes one file of codes, and no --size: the codes have theirs")
    if not paint and output is not None:
        raise UsageError("-o is for --paint: codes are printed on stdout", "write them into a file with > FILE")
    if not paint and len(paths) > 1 and not json:
        raise UsageError(
            "several pictures: their codes would run into each other", "--json prints one object a picture"
        )
    if paths.count("-") > 1:
        raise UsageError("`-` reads stdin, and once")


def _size(size: str) -> tuple[int, int]:
    left, _, right = size.lower().replace("×", "x").partition("x")
    if not all(side.isascii() and side.isdecimal() and 0 < int(side[:6]) <= 2**14 for side in (left, right)):
        raise UsageError(f"--size {size}: wants WIDTHxHEIGHT, as in 256x256")
    return int(left), int(right)


def _read(codec: Codec, path: str, size: tuple[int, int] | None, *, json: bool) -> None:
    """Print a picture's codes."""
    from PIL import Image

    from gencli.image.codes import to_text
    from gencli.image.files.pictures import FILE_LIMIT, open_flat

    picture = open_flat(_stdin(FILE_LIMIT) if path == "-" else path)
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
    """Write the picture of codes, and say where it is."""
    from gencli.image.codes import parse
    from gencli.image.files.pictures import encode
    from gencli.image.request import ImageRequest

    data = _stdin(CODES_LIMIT) if path == "-" else read_bytes(Path(path))
    try:
        picture = codec.paint(parse(data.decode()))
    except UnicodeDecodeError:
        raise GencliError(f"{'stdin' if path == '-' else path} holds no codes: it is no text") from None
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


def _stdin(limit: int) -> bytes:
    if sys.stdin is None:
        raise GencliError("stdin is closed, and `-` reads from there")
    return sys.stdin.buffer.read(limit)
