"""`gencli score`: how well pictures fit a text."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING, TypedDict

import typer

from gencli import devices, signals
from gencli.cli.console import Console, escape_controls, is_terminal
from gencli.cli.options import JSON, LINES, Fetching, Reporting, command
from gencli.cli.prompts import image_data, read_lines
from gencli.cli.sinks import stdout_bytes, write, write_json
from gencli.errors import GencliError, UsageError, counted
from gencli.image.request import SIDES
from gencli.options import OUTPUT, RUN, Option, check_values, choice, flag, integer, several
from gencli.spec import ModelSpec, named_model

if TYPE_CHECKING:
    from torch import Tensor
    from typing_extensions import NotRequired

    from gencli.image.score import Scorer

INPUT = "Input"
ENVIRONMENT = "GENCLI_CLIP_MODEL"
app = typer.Typer(add_completion=False, rich_markup_mode=None)


@dataclass(eq=False, repr=False)
class Compared:
    """What is compared, and how it is printed."""

    # fmt: off
    arguments: tuple[str, ...] = Option(str, "TEXT IMAGE",
        "The text, then the images to compare with it (`-`: one from stdin); with --text or --lines, images only.",
        INPUT, several=True).field(())
    text: tuple[str, ...] = several(str, "-t, --text TEXT", "A text to compare with (repeatable).", INPUT)
    lines: bool = replace(LINES, help="Treat each line of stdin as a text.", panel=INPUT).field(False)
    truncate: str | None = choice(SIDES, "--truncate SIDE",
        "If a text is too long, cut off this end instead of failing: left or right.", INPUT,
        complete=lambda: list(SIDES))
    sort: bool = flag(False, "--sort", "Sort by score, best first (printed at the end).", OUTPUT)
    json: bool = JSON.field(False)
    batch: int = integer(8, "--batch N", "Process N images at a time (default: 8).", RUN,
        within=(1, 4096))
    # fmt: on

    def __post_init__(self) -> None:
        check_values(Compared, {"truncate": self.truncate, "batch": self.batch})


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class ClipSpec(ModelSpec):
    """A CLIP."""

    model: str | None = named_model(ENVIRONMENT, None, "score", "A CLIP", "openai/clip-vit-base-patch32").field(None)


@command(
    app,
    epilog="""Examples:
    gencli score "a red apple" apple.png pear.png -m openai/clip-vit-base-patch32
    gencli score "a red apple" *.png --sort | head -n 1 | cut -f 2
    gencli score -t "a cat" -t "a dog" *.jpg --json | jq 'select(.probability > 0.5)'
    gencli image "red apple" --seed 1 | gencli score "red apple" -
    gencli score --lines photo.jpg < captions.txt
    """,
    without={"lora"},
)
def score(ctx: typer.Context, compared: Compared, spec: ClipSpec, fetching: Fetching, reporting: Reporting) -> None:
    """Score how well images match a text: the cosine similarity of their CLIP embeddings, from -1 to 1.

    Prints one line per image: score, tab, path; with several texts, one line per image and text, with another tab and
    the text. With OpenAI's models a good match scores about 0.3, a poor one about 0.2. Unreadable files are reported
    on stderr and skipped; the exit code is then 1.
    """
    texts, paths = _split([*compared.arguments], [*compared.text], lines=compared.lines)
    if spec.model is None:
        hint = f"name one, as in -m openai/clip-vit-base-patch32, or set {ENVIRONMENT}"
        raise UsageError("no model: no CLIP is built in", hint)
    stdout_bytes()  # fails now rather than after the work
    console: Console = ctx.obj
    paths, failed = _present(console, paths)
    if not paths:
        raise typer.Exit(1)
    source = fetching.finder(console, spec)(spec.model)
    texts = [line for line in read_lines() if line] if compared.lines else texts
    if not texts:
        raise GencliError("stdin has no text to compare with")

    console.progress(f"loading {source.name}")
    began = time.perf_counter()
    with signals.raise_pending_signals():
        from gencli.image.score import open_scorer

    devices.set_threads(spec.threads)
    scorer = open_scorer(source, device=spec.device, dtype=spec.dtype, allow_pickle=spec.allow_pickle)
    run = Run(console, scorer, texts, scorer.texts(texts, compared.truncate), json=compared.json)
    loaded = time.perf_counter()
    try:
        run.score(paths, batch=compared.batch, sort=compared.sort)
    finally:
        console.clear()
        if reporting.stats:
            seconds = time.perf_counter() - loaded
            console.stats(scorer.describe())
            console.stats(f"load {loaded - began:.2f} s; {counted(run.count, 'image')} in {seconds:.2f} s")
    if run.failed or failed:
        raise typer.Exit(1)


def _split(arguments: list[str], texts: list[str], *, lines: bool) -> tuple[list[str], list[str]]:
    """Return the texts and the paths. Raise UsageError for arguments that make no sense."""
    if lines and texts:
        raise UsageError("--lines reads texts from stdin and cannot be combined with --text")
    if not (lines or texts):
        texts, arguments = arguments[:1], arguments[1:]
        if not texts:
            raise UsageError("no text and no image", 'try `gencli score "red apple" apple.png`')
        if not arguments and os.path.exists(texts[0]):
            raise UsageError(f"{texts[0]} is read as the text, and there is no image", "the text comes first")
    if not arguments:
        raise UsageError("no image to compare with", "name files, or `-` for one from stdin")
    if arguments.count("-") > (0 if lines else 1):
        raise UsageError("`-` reads an image from stdin, " + ("where --lines has its texts" if lines else "and once"))
    if "" in texts:
        raise UsageError("the text is empty")
    for one in texts:
        try:
            one.encode()
        except UnicodeEncodeError:  # bytes of argv that cannot be decoded arrive as lone surrogates
            raise GencliError(f"the text is not valid UTF-8: {one!r}"[:200]) from None
    return texts, arguments


def _present(console: Console, paths: list[str]) -> tuple[list[str], bool]:
    """Return the paths that exist, and whether others do not; print an error for each of these."""
    missing = [path for path in paths if path != "-" and not os.path.exists(path)]
    for path in missing:
        console.error(GencliError(f"{path}: no such file"))
    return [path for path in paths if path not in missing], bool(missing)


class Row(TypedDict):
    """How well an image matches a text. score: their cosine; probability: of this text among several."""

    path: str
    text: str
    score: float
    probability: NotRequired[float]


class Run:
    """Scores images. count: how many were scored; failed: whether one could not be read."""

    def __init__(self, console: Console, scorer: Scorer, texts: Sequence[str], vectors: Tensor, *, json: bool):
        self.console, self.scorer, self.texts, self.vectors, self.json = console, scorer, texts, vectors, json
        self.count, self.failed = 0, False

    def score(self, paths: Sequence[str], *, batch: int, sort: bool) -> None:
        """Print a row for each image and text."""
        rows: list[Row] = []
        for found in self._rows(paths, batch):
            if sort:
                rows.append(found)
            else:
                self._print(found)
        for row in sorted(rows, key=lambda row: -row["score"]):
            self._print(row)

    def _rows(self, paths: Sequence[str], batch: int) -> Iterator[Row]:
        pictures = self._pictures(paths)
        while some := list(islice(pictures, batch)):
            cosines = self.scorer.pictures([prepared for _, prepared in some]) @ self.vectors.T
            self.count += len(some)
            likely = self.scorer.probabilities(cosines).tolist()
            for (path, _), values, chances in zip(some, cosines.tolist(), likely, strict=True):
                for text, value, chance in zip(self.texts, values, chances, strict=True):
                    row: Row = {"path": path, "text": text, "score": round(value, 6)}
                    if len(self.texts) > 1:
                        row["probability"] = round(chance, 6)
                    yield row

    def _pictures(self, paths: Sequence[str]) -> Iterator[tuple[str, Tensor]]:
        """Yield the images as the model reads them. Print an error for those that cannot be read, and skip them."""
        from gencli.image.files.pictures import open_flat

        for number, path in enumerate(paths):
            self.console.progress("scoring", number, len(paths))
            try:
                yield path, self.scorer.prepare(open_flat(image_data(path, "`-` reads an image")))
            except GencliError as error:
                message = error.message if path == "-" or path in error.message else f"{path}: {error.message}"
                self.console.error(GencliError(message, error.hint))
                self.failed = True

    def _print(self, row: Row) -> None:
        if is_terminal(sys.stdout):
            self.console.clear()
        path = os.fsencode(row["path"])
        if self.json:
            write_json({**row, "path": path.decode("utf-8", "replace"), "model": self.scorer.name})
            return
        if is_terminal(sys.stdout):
            path = escape_controls(path.decode("utf-8", "replace")).encode()
        columns = [f"{row['score']:.4f}".encode(), path]
        if len(self.texts) > 1:
            columns.append(row["text"].encode())
        write(b"\t".join(columns) + b"\n")
