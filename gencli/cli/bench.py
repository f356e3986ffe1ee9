"""`gencli bench`: how fast models run on this machine."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypedDict

import typer

from gencli import signals
from gencli.checkpoints.assets import LoraRef
from gencli.checkpoints.mixes import PACKING, check_mix
from gencli.cli.console import Console, is_terminal
from gencli.cli.help import SETTINGS, Group
from gencli.cli.models_output import columns
from gencli.cli.options import JSON, Fetching, Reporting, command
from gencli.cli.sinks import write_lines, write_object
from gencli.errors import UsageError, counted
from gencli.options import MODEL, OUTPUT, check_values, integer, several
from gencli.spec import TEXT_MODEL, ModelSpec, named_model

PANEL = "Measurement"
PANELS = (PANEL, MODEL, OUTPUT)
IMAGE_MODEL = "emoji"
PROMPT, TOKENS = 512, 64  # tokens
Table = Mapping[str, tuple[str, float, str]]
# a key of what was measured → the heading of its column, how many of its unit one has, and its format
TEXT: Table = {
    "weights": ("WEIGHTS", 1, "s"), "batch": ("BATCH", 1, "d"), "prompt_rate": ("PROMPT tok/s", 1, ".1f"),
    "first_token_seconds": ("FIRST TOKEN s", 1, ".3f"), "decode_rate": ("DECODE tok/s", 1, ".1f"),
    "bandwidth_share": ("BANDWIDTH %", 0.01, ".0f"), "load_seconds": ("LOAD s", 1, ".2f"),
    "peak_memory": ("PEAK MiB", 2**20, ".0f"),
}  # fmt: skip
IMAGE: Table = {
    "size": ("SIZE", 1, "s"), "batch": ("BATCH", 1, "d"), "steps": ("STEPS", 1, "d"),
    "step_seconds": ("STEP s", 1, ".3f"), "image_seconds": ("IMAGE s", 1, ".2f"), "load_seconds": ("LOAD s", 1, ".2f"),
    "peak_memory": ("PEAK MiB", 2**20, ".0f"),
}  # fmt: skip
TEXT_UNITS = "FIRST TOKEN: from the prompt on; DECODE: all outputs of a batch; PEAK: the process's memory"
IMAGE_UNITS = "IMAGE: one of a batch, from the prompt on; PEAK: the process's memory"

app = typer.Typer(cls=Group, context_settings=SETTINGS, add_completion=False, rich_markup_mode=None)


@dataclass(eq=False, repr=False)
class Repeated:
    """How often, and how many at once."""

    # fmt: off
    batch: tuple[int, ...] = several(int, "--batch N", "Generate N outputs at a time (repeatable; default: 1).", PANEL,
        within=(1, 16))
    rounds: int = integer(5, "-r, --rounds N", "Rounds, after one warm-up round (default: 5).", PANEL,
        within=(1, 1000))
    # fmt: on
    json: bool = JSON.field(False)

    def __post_init__(self) -> None:
        check_values(type(self), vars(self))
        self.batch = tuple(self.batch) or (1,)


@dataclass(eq=False, repr=False)
class TextBench(Repeated):
    # fmt: off
    model: str = named_model("GENCLI_TEXT_MODEL", TEXT_MODEL, "text").field(TEXT_MODEL)
    quantize: tuple[str, ...] = several(str, "--quantize TYPE",
        "Quantized weights, as with `gencli text --quantize` (repeatable; default: as stored).", PANEL,
        complete=lambda: list(PACKING))
    prompt: int | None = integer(None, "-p, --prompt N", f"Length of the prompt in tokens (default: {PROMPT}, or what "
        "the context has room for).", PANEL, within=(1, 2**20))
    tokens: int | None = integer(None, "-n, --tokens N", f"Tokens to generate (default: {TOKENS}, or what the context "
        "has room for).", PANEL, within=(1, 2**20))
    # fmt: on

    def __post_init__(self) -> None:
        super().__post_init__()
        self.quantize = tuple(check_mix("--quantize", one, PACKING) for one in self.quantize or ())


class Size(TypedDict, total=False):
    """Width and height of an image; nothing: the model's own."""

    width: int
    height: int


@dataclass(eq=False, repr=False)
class ImageBench(Repeated):
    # fmt: off
    model: str = named_model("GENCLI_IMAGE_MODEL", IMAGE_MODEL, "image", example="sdxl-turbo").field(IMAGE_MODEL)
    size: tuple[str, ...] = several(str, "--size WxH",
        "Width and height (repeatable; default: the model's native size).",
        PANEL)
    steps: int = integer(10, "--steps N", "Denoising steps (default: 10).", PANEL, within=(1, 1000))
    # fmt: on

    def sizes(self) -> list[Size]:
        """Return width and height of each size. Raise UsageError."""
        found: list[Size] = []
        for size in self.size or ():
            try:
                width, height = map(int, size.lower().replace("×", "x").split("x"))
            except ValueError:
                raise UsageError(f"--size {size}: expected WIDTHxHEIGHT, as in 512x512") from None
            found.append({"width": width, "height": height})
        return found or [{}]


@app.callback(
    epilog="""Examples:
    gencli bench text
    gencli bench text -m openai-community/gpt2 --quantize q8_0 --quantize q4_k_m
    gencli bench text -m model-q4_k_m.gguf --batch 1 --batch 8 --json | jq .decode_rate.median
    gencli bench image --size 64x64 --steps 20
    """,
)
def bench() -> None:
    """Measure how fast models run on this machine: medians of several rounds, with the lowest and the highest."""


@command(app, panels=PANELS, without={"stats"})
def text(ctx: typer.Context, asked: TextBench, spec: ModelSpec, fetching: Fetching, reporting: Reporting) -> None:
    """Measure a language model: reading a prompt, the time to the first token, and generating tokens.

    DECODE counts the tokens of all outputs of a batch. BANDWIDTH is the speed at which weights are read, as a
    percentage of this machine's memory bandwidth. If gencli was installed without a C compiler, there are no kernels,
    and torch's operations are measured.
    """
    console: Console = ctx.obj
    fetch = fetching.finder(console, spec)
    adapters = [adapter.find(**fetch.keywords) for adapter in [LoraRef.parse(one) for one in spec.lora]]
    source = fetch(asked.model)
    with signals.raise_pending_signals():
        from gencli import devices
        from gencli.text.bench import measure, most
        from gencli.text.load import open_model

    devices.set_threads(spec.threads)
    on_cpu = devices.pick_device(spec.device).type == "cpu"
    bandwidth = devices.read_bandwidth() if on_cpu else None
    rows = list[dict[str, object]]()
    for mix in asked.quantize or (None,):
        console.progress(f"measuring {source.name} {mix or ''}".rstrip())
        if mix is not None:
            open_model(source, spec, quantize=mix)  # the copy may have to be made
        model = open_model(source, spec, adapters=adapters, quantize=mix)
        notes = _clipped(asked, *most(model), f"{model.name}, whose context is {model.max_length} tokens")
        for note in notes if not rows else ():
            console.note(note)
        prompt, tokens = asked.prompt or PROMPT, asked.tokens or TOKENS
        for row in measure(model, asked.batch, prompt, tokens, asked.rounds, bandwidth):
            rows.append({**_spread(row), "weights": mix or row["weights"], "notes": notes})
            if asked.json:
                write_object(rows[-1])
        del model
    kernels = f"{rows[0]['kernels']} kernels" if rows[0]["kernels"] else "torch's operations, as there are no C kernels"
    read = f", memory read at {bandwidth / 1e9:.1f} GB/s" if bandwidth else ""
    title = f"{source.name}: {rows[0]['prompt_tokens']} tokens read, {rows[0]['decode_tokens']} made; "
    title += f"{rows[0]['device']}, {_threads(rows)}, {kernels}{read}"
    _finish(console, title, TEXT, rows, f"{_figures(asked.rounds)}; {TEXT_UNITS}", json=asked.json)


@command(app, panels=PANELS, without={"stats", "lora"})
def image(ctx: typer.Context, asked: ImageBench, spec: ModelSpec, fetching: Fetching, reporting: Reporting) -> None:
    """Measure an image model: one step, one whole image, and the memory that it takes."""
    console: Console = ctx.obj
    sizes = asked.sizes()
    source = fetching.finder(console, spec)(asked.model)
    with signals.raise_pending_signals():
        import time

        from gencli import devices
        from gencli.image.bench import measure
        from gencli.image.load import load
        from gencli.image.open import open_image_checkpoint
        from gencli.image.request import ImageRequest
        from gencli.image.resolve import resolve

    devices.set_threads(spec.threads)
    checkpoint = open_image_checkpoint(source, allow_pickle=spec.allow_pickle)
    made = [
        resolve(
            ImageRequest(prompt="a red apple", steps=asked.steps, count=batch, batch=batch, seed=0, **size), checkpoint
        )
        for size in sizes
        for batch in asked.batch
    ]
    console.progress(f"measuring {source.name}")
    began = time.perf_counter()
    pipeline = load(checkpoint, device=spec.device, dtype=spec.dtype)
    rows = list[dict[str, object]]()
    for row in measure(pipeline, made, asked.rounds, time.perf_counter() - began):
        rows.append(_spread({**row, "size": f"{row['width']}x{row['height']}"}))
        if asked.json:
            write_object(rows[-1])
    title = f"{source.name}: {rows[0]['sampler']}, guidance {rows[0]['guidance']:g}; "
    title += f"{rows[0]['device']}, {rows[0]['dtype']}, {_threads(rows)}"
    _finish(console, title, IMAGE, rows, f"{_figures(asked.rounds)}; {IMAGE_UNITS}", json=asked.json)


def _clipped(asked: TextBench, prompt: int, tokens: int, model: str) -> list[str]:
    """Return what is to be said where a context has no room for all that is asked for. prompt, tokens: its room."""
    found = (("-p", asked.prompt, prompt, "read"), ("-n", asked.tokens, tokens, "generated"))
    return [f"{flag} {n}: {room} tokens are {done} by {model}" for flag, n, room, done in found if n and n > room]


def _figures(rounds: int) -> str:
    return f"each figure: the median of {rounds} rounds (lowest to highest)" if rounds > 1 else "one round"


def _spread(row: Mapping[str, object]) -> dict[str, object]:
    """Return what was measured, with the median, the least and the most in place of each list."""
    found = dict(row)
    for key, value in row.items():
        if isinstance(value, list):
            spread = {"median": statistics.median(value), "low": min(value), "high": max(value)} if value else None
            found[key] = spread
    return found


def _threads(rows: list[dict[str, object]]) -> str:
    """Return how many threads were at work, in words."""
    threads = rows[0]["threads"]
    assert isinstance(threads, int)
    return counted(threads, "thread")


def _finish(
    console: Console, title: str, table: Table, rows: Sequence[Mapping[str, object]], caption: str, *, json: bool
) -> None:
    """Print a table and what its figures are: on a terminal by rich, else in columns."""
    console.clear()
    if json:
        return
    cells = [[_cell(row[key], unit, form) for key, (_, unit, form) in table.items()] for row in rows]
    heads = [head for head, _, _ in table.values()]
    if not is_terminal(sys.stdout):
        write_lines([title, *columns([heads, *cells], right=frozenset(range(1, len(heads)))), caption])
        return
    from rich.console import Console as Screen
    from rich.table import Table as Grid

    shown = Grid(title=title, title_justify="left", caption=caption, caption_justify="left")
    for number, head in enumerate(heads):
        shown.add_column(head, justify="right" if number else "left")
    for row in cells:
        shown.add_row(*row)
    Screen(no_color=not console.colored(sys.stdout), highlight=False).print(shown)


def _cell(value: object, unit: float, form: str) -> str:
    if value is None:
        return "-"
    if isinstance(value, str | int | float):
        return format(value if isinstance(value, str) or form == "d" else value / unit, form)
    assert isinstance(value, dict)
    middle, low, high = (format(value[key] / unit, form) for key in ("median", "low", "high"))
    return f"{middle} ({low} to {high})"
