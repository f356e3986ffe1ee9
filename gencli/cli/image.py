"""`gencli image`: draw an image from a prompt, or without one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from gencli import devices, signals
from gencli.cli import image_sinks
from gencli.cli.console import Console
from gencli.cli.download import memory_note
from gencli.cli.image_asked import Sources, check_stdin, request_of
from gencli.cli.image_info import print_info
from gencli.cli.options import JSON, Asked, Fetching, Reporting, command
from gencli.cli.prompts import LineReader, each_line, note_file, pipe_waits, read_prompt
from gencli.cli.sweep import parse
from gencli.cli.warm import Serving
from gencli.cli.wildcards import choices
from gencli.errors import UsageError
from gencli.image.request import CONTROL, DRAWERS, INPUT, PICTURE, SAMPLING, SEED_LIMIT, START, ImageRequest
from gencli.options import OUTPUT, choice, flag, string, typed
from gencli.spec import DrawingSpec

if TYPE_CHECKING:
    from gencli.image.checkpoint import ImageCheckpoint
    from gencli.image.drawers.base import Drawer

FORMATS = ("png", "jpeg", "webp")

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@dataclass(eq=False, repr=False)
class Output:
    """Where images go, and what is shown while they are made."""

    # fmt: off
    output: str | None = string(None, "-o, --output PATH",
        "File to write, .png, .jpg or .webp; may contain {seed}, {index} and {prompt}; `-` is stdout (default: "
        "stdout if that is not a terminal, else a new gencli-SEED.png).", OUTPUT)
    format: str | None = choice(FORMATS, "--format NAME",
        "png, jpeg or webp (default: by the ending of PATH, else png).",
        OUTPUT)
    json: bool = JSON.field(False)
    gif: str | None = string(None, "--gif FILE",
        "Also save an animation of the denoising (.gif or .webp); of a GAN, the way from each image to the next.",
        OUTPUT)
    save_steps: str | None = string(None, "--save-steps DIR", "Save the intermediate image after each step.",
        OUTPUT)
    save_stages: str | None = string(None, "--save-stages DIR",
        "Save the image of each stage but the last, for models of several stages.", OUTPUT)
    preview: bool = flag(False, "--preview", "Show the image in the terminal while it is generated.", OUTPUT)
    show: bool = flag(False, "--show", "Show the finished image in the terminal.", OUTPUT)
    no_metadata: bool = flag(False, "--no-metadata", "Do not embed the settings in the image.", OUTPUT)
    # fmt: on


@command(
    app,
    epilog="""Examples:
    gencli image "red apple" --steps 50 > apple.png
    gencli image "red apple" --count 9 --grid -o apples.png
    gencli image "green apple" -i apple.png --strength 0.6 -o 'apple-{seed}.webp'
    gencli image --from apple.png --seed 7 -o other.png
    gencli image --lines -o '{index:03}-{prompt}.png' < prompts.txt
    """,
    panels=(INPUT, PICTURE, SAMPLING, START, CONTROL, DRAWERS),
)
def image(
    ctx: typer.Context,
    sources: Sources,
    output: Output,
    asked: Asked[ImageRequest],
    where: DrawingSpec,
    fetching: Fetching,
    serving: Serving,
    reporting: Reporting,
) -> None:
    """Draw an image. If stdout is a pipe or a file, the image itself is written to it.

    Options you leave out come from the model, or else from the defaults below. The default sampler is DDIM, with the
    model's own noise schedule.
    """
    if not sources.info and sources.prompt[:1] == ("info",) and Path(*sources.prompt[1:2]).is_file():
        _, info, *rest = sources.prompt  # as other tools' users and `gencli models show` have it
        sources.info, sources.prompt = (info,), tuple(rest)
    if sources.info:
        if output.output is not None:
            raise UsageError("--info draws no image, and does not go with -o", "--from FILE draws it again")
        print_info(ctx.obj, [*sources.info, *sources.prompt], json=output.json)
        return
    draw(ctx.obj, sources, output, asked, where, fetching, serving, reporting)


def draw(
    console: Console,
    sources: Sources,
    output: Output,
    asked: Asked[ImageRequest],
    where: DrawingSpec,
    fetching: Fetching,
    serving: Serving,
    reporting: Reporting,
    accept: Callable[[ImageCheckpoint | Drawer], None] = lambda opened: None,
) -> None:
    """Make images and write them. accept: raises for a checkpoint, opened, that is not for this command."""
    check_stdin(sources, asked.values)
    note_file(sources.prompt, console.note)
    told = sources.prompt or sources.lines or sources.from_file or asked.values.get("init") == "-"
    if not told and pipe_waits():
        console.note("stdin is not read: the prompt `-` reads it, and --lines a prompt from each line")
    fetch = fetching.finder(console, where)
    shared, reader = sources.many, LineReader() if sources.lines else None
    shared.check(sources.lines, _for_one(output, asked))
    if shared.resume is not None and output.output is None:
        raise UsageError("--resume needs -o, which says where earlier images lie")
    request, finder = request_of(console, sources, asked, fetch)
    lines = each_line(reader) if reader else None
    sweep = parse(sources.sweep)
    if len(sweep.variants) > 1 and (lines or sources.wildcards or request.best):
        raise UsageError("--sweep cannot be combined with --lines, --wildcards or --best")
    many = (request.best or request.count) * len(sweep.variants) > 1 or sources.lines
    prompts = sources.lines and request.count == 1
    sink = image_sinks.plan(
        output.output,
        output.format,
        many=many and not request.grid,
        json=output.json,
        metadata=not output.no_metadata,
        prompts=prompts,
        sweep=sweep.repeats_seeds(request.count),
        note=console.note,
    )
    animation = image_sinks.animation(output.gif, console.note)
    _note_slips(console, request, asked.given, many=many)
    inputs = finder.find(console.note)
    hashes = finder.hashes(inputs, console.note, remember=sink.metadata)
    prompt = read_prompt(sources.prompt) if "-" in sources.prompt else request.prompt
    request = request.replace(hashes=hashes, prompt=prompt)
    if (records := shared.records()) is not None:
        seed = shared.seed(records, request.seed or 0, typed(asked.values, "seed", int), SEED_LIMIT - 1)
        request = request.replace(seed=seed)
    if sources.wildcards:
        lines, request = choices(lines, prompt, request)

    with signals.raise_pending_signals():
        from gencli.image.ready import ready
    base, foreign = request, finder.is_foreign("weighted")
    opened, request = ready(
        inputs, base, where, lines=lines is not None, note=console.note, accept=accept, drop_weights=foreign
    )
    if foreign and base.weighted and not request.weighted:
        base = base.replace(weighted=False)
    variants = [
        ready(inputs, base.replace(**one.values), where, lines=lines is not None, note=lambda text: None)[1]
        for one in (sweep.variants if sources.sweep else ())
    ]
    stages_folder = output.save_stages
    if stages_folder is not None and not any(stage.shows for stage, _ in getattr(opened, "stages", [])[:-1]):
        console.note(f"--save-stages: {opened.name} makes no image before its last stage, so none is saved")
        stages_folder = None
    if animation is not None:
        walks = getattr(opened, "walks", False)
        image_sinks.check_animation(animation, many=many, walks=walks, prompts=prompts)
    if lines is None:
        sink.check(request.replace(count=request.count * max(len(variants), 1)) if request.grid else request)
        if animation is not None:
            animation.check_paths(request)

    if request.quantize is None and (note := memory_note(inputs.model, devices.memory())):
        console.note(note)
    if shared.asked and lines and reader:
        from gencli.cli.image_work import Album, ImageWork

        if records is not None:
            from gencli.image.files.metadata import ROWS, to_dict

            rows = {name: row for name, row in ROWS.items() if name != "dtype" or request.dtype}
            shared.note_settings(records, to_dict(request.item(0)), rows, console.note)
            if records.lost:
                more = f" and {len(records.lost) - 1} more" if records.lost[1:] else ""
                console.note(
                    f"{records.lost[0]}{more} of {records.path} cannot be found: an image whose line is removed from "
                    "there is drawn again"
                )
        work = ImageWork(inputs, base, where, sink, fetching.offline)
        album = Album(console, work, request, shared, records, strict=sources.strict)
        album.draw(lines, reader, stats=reporting.stats)
        return
    with signals.raise_pending_signals():
        from gencli.cli.image_run import Run

    Run(
        console,
        opened,
        request,
        inputs,
        sink,
        prompts=lines,
        animation=animation,
        folders={"step_files": output.save_steps, "stage_files": stages_folder},
        preview=output.preview,
        show=output.show,
        variants=variants,
        labels=[one.label for one in sweep.variants] if sources.sweep else [],
        columns=sweep.columns * request.count if sources.sweep else None,
        strict=sources.strict,
        serving=serving,
    ).run(request.spec(where), stats=reporting.stats)


def _for_one(output: Output, asked: Asked[ImageRequest]) -> Iterator[str]:
    """Yield the options given that are of all images together, or show them, and so need one process."""
    for name in ("gif", "save_steps", "save_stages", "preview", "show"):
        if getattr(output, name):
            yield f"--{name.replace('_', '-')}"
    yield from (f"--{name}" for name in ("grid", "best") if asked.values.get(name))


def _note_slips(console: Console, request: ImageRequest, given: frozenset[str], *, many: bool) -> None:
    if "negative" in given and (number := (request.negative or "").strip()).isdigit():
        console.note(f"-n {number} is a negative prompt: {number!r}; --count {number} makes several images")
    if "batch" in given and request.batch > 1 and not many:
        console.note(
            f"--batch {request.batch} is how many go through the model at once; --count says how many are made"
        )
