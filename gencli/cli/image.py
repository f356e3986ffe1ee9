"""`gencli image`: draw an image from a prompt, or without one."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import typer

from gencli import devices, signals
from gencli.checkpoints.find import Source
from gencli.cli import image_sinks
from gencli.cli.console import Console
from gencli.cli.download import memory_note
from gencli.cli.image_info import print_info
from gencli.cli.image_inputs import Finder
from gencli.cli.many import Many
from gencli.cli.options import JSON, LINES, STRICT, Asked, Fetching, Reporting, command
from gencli.cli.prompts import LineReader, each_line, note_file, read_prompt
from gencli.cli.sweep import parse
from gencli.cli.warm import Serving
from gencli.cli.wildcards import choices
from gencli.errors import UsageError
from gencli.image.request import CONTROL, DRAWERS, INPUT, PICTURE, SAMPLING, SEED_LIMIT, START, ImageRequest
from gencli.options import OUTPUT, Option, choice, flag, several, string
from gencli.spec import DrawingSpec

FORMATS = ("png", "jpeg", "webp")

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@dataclass(eq=False, repr=False)
class Sources:
    """Prompts, an image to repeat, and a size."""

    # fmt: off
    prompt: tuple[str, ...] = Option(str, "PROMPT",
        "What to draw; words are joined by spaces. `-` inserts all of stdin, on lines of its own. Put `--` before "
        "a prompt that starts with a dash. Without a prompt, an unprompted sample is drawn.", INPUT,
        several=True).field(())
    lines: bool = LINES.field(False)
    strict: bool = STRICT.field(False)
    from_file: str | None = string(None, "--from FILE",
        "Recreate FILE from its embedded settings; other options override them.", INPUT,
        after="strict")
    wildcards: bool = flag(False, "--wildcards",
        "Replace {red|green} by one of the words, and __colors__ by a line of colors.txt, chosen anew for each image.",
        INPUT,
        after="strict")
    sweep: tuple[str, ...] = several(str, "--sweep KEY=VALUES",
        "Generate with each value, as in cfg-scale=1,3,7 or seed=1..4; given again, with every combination. With "
        "--grid: one labelled contact sheet.", PICTURE, after="grid")
    info: str | None = string(None, "--info FILE", "Print the settings that are embedded in FILE, and exit.", INPUT,
        after="from_file")
    size: str | None = string(None, "--size WxH",
        "Width and height in pixels, as in 512x512 (default: the model's native size, or close to the --init or "
        "--control-image).", PICTURE)
    # fmt: on
    many: Many = Many()  # noqa: RUF009


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
    if sources.info is not None:
        print_info(sources.info, json=output.json)
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
    accept: Callable[[Any], None] = lambda opened: None,
) -> None:
    """Make images and write them. accept: raises for a checkpoint, opened, that is not for this command."""
    _check_stdin(sources, asked.values)
    note_file(sources.prompt, console.note)
    fetch = fetching.finder(console, where)
    shared, reader = sources.many, LineReader() if sources.lines else None
    shared.check(sources.lines, _for_one(output, asked))
    if shared.resume is not None and output.output is None:
        raise UsageError("--resume needs -o, which says where earlier images lie")
    request, finder = _request(console, sources, asked, fetch)
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
        sweep=len(sweep.variants) > 1,
        note=console.note,
    )
    animation = image_sinks.animation(output.gif, console.note)
    _note_slips(console, request, asked.given, many=many)
    inputs = finder.find(console.note)
    hashes = finder.hashes(inputs, console.note, remember=sink.metadata)
    prompt = read_prompt(sources.prompt) if "-" in sources.prompt else request.prompt
    request = request.replace(hashes=hashes, prompt=prompt)
    if (records := shared.records()) is not None:
        seed = shared.seed(records, request.seed or 0, asked.values.get("seed"), SEED_LIMIT - 1)
        request = request.replace(seed=seed)
    if sources.wildcards:
        lines, request = choices(lines or iter([prompt]), request)

    with signals.raise_pending_signals():
        from gencli.image.ready import ready
    base = request
    opened, request = ready(inputs, request, where, lines=lines is not None, note=console.note, accept=accept)
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

        work = ImageWork(inputs, base, where, sink)
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


def _check_stdin(sources: Sources, values: Mapping[str, Any]) -> None:
    """Raise UsageError if stdin is wanted for two things."""
    if sources.lines and sources.prompt:
        raise UsageError("--lines reads prompts from stdin and cannot be combined with PROMPT")
    if sources.strict and not sources.lines:
        raise UsageError("--strict needs --lines")
    if values.get("mask") == "-":
        raise UsageError("--mask -: a mask is read from a file only")
    if values.get("init") == "-" and (sources.lines or "-" in sources.prompt):
        raise UsageError("-i - reads the image from stdin, so that no prompt can come from there")
    if sources.prompt.count("-") > 1:
        raise UsageError("`-` (stdin) can be given only once")


def _request(
    console: Console, sources: Sources, asked: Asked[ImageRequest], fetch: partial[Source]
) -> tuple[ImageRequest, Finder]:
    """Return the request, without a prompt that comes from stdin, and the finder of what it names.

    Raise UsageError for an invalid request, GencliError for an image of --from that cannot be repeated.
    """
    values, given = dict(asked.values), asked.given
    if sources.size is not None:
        values |= _parse_size(sources.size, values)
        given |= {"width", "height"}
    asked = Asked(ImageRequest, values, given)
    later = not sources.prompt or "-" in sources.prompt
    prompt = {} if later else {"prompt": read_prompt(sources.prompt)}
    path = sources.from_file
    if path is not None:
        ImageRequest(**_completed(values))
        prompt = prompt if sources.prompt or sources.lines else {}
        values = _from_file(console, path, asked, keep_prompt=not sources.prompt and not sources.lines)
    prompted = bool(sources.prompt or sources.lines or values.get("prompt"))
    unused = {"clip": None} if values.get("best") is None else {}
    if values.get("seed") is None:
        values["seed"] = random.SystemRandom().getrandbits(32)
    request = ImageRequest(**{**values, **unused, **prompt})
    finder = Finder(request, asked, path, fetch)
    finder.check_files()
    _check_best(request, given, prompted=prompted)
    return request, finder


def _completed(values: dict[str, Any]) -> dict[str, Any]:
    """Fill in placeholders for values that may come from the image of --from, so that the others can be checked."""
    controls = max(len(value) for name, value in values.items() if name.startswith("control"))
    filled = {name: [*values[name], *["?"] * (controls - len(values[name]))] for name in ("control", "control_image")}
    count = max(values["count"], values.get("best") or 1)
    return {
        **values,
        "init": values.get("init") or "?",
        "refiner": values.get("refiner") or "?",
        "count": count,
        **filled,
    }


def _from_file(console: Console, path: str, asked: Asked[ImageRequest], *, keep_prompt: bool) -> dict[str, Any]:
    """Return the values in an image, overridden by the command line. Raise GencliError or UsageError."""
    from gencli.image.files.inputs import relocate
    from gencli.image.files.pictures import read_request

    found = read_request(path)
    if found.left_out:
        hint = " (--lora FILE:SCALE merges a LoRA)" if any(key.startswith("<lora:") for key in found.left_out) else ""
        console.note(f"{path} also says {', '.join(found.left_out)[:200]}, which is left out{hint}")
    own = {name: value for name, value in asked.values.items() if name in asked.given}
    hashes = found.values.get("hashes", {})
    merged: dict[str, Any] = {**relocate(found.values, hashes, Path(path).parent), **own}
    for name, other in (("quantize", "dtype"), ("dtype", "quantize")):  # of which one holds the weights
        if name in asked.given and other not in asked.given:
            merged.pop(other, None)
    if "sampler" in asked.given:
        for name in {"eta", "karras", "sampler_options"} - asked.given:  # they were another sampler's
            merged.pop(name, None)
    if not keep_prompt:
        merged["prompt"] = ""
    for name in ("model", "clip"):  # as the environment has them
        if name in asked.values:
            merged.setdefault(name, asked.values[name])
    if merged.get("init") == "-" and "init" not in asked.given:
        raise UsageError(f"{path} was begun from an image on stdin", "name that image with -i/--init FILE")
    return merged


def _check_best(request: ImageRequest, given: frozenset[str], *, prompted: bool) -> None:
    """Raise UsageError for --best without a CLIP or a prompt, and for --clip without --best."""
    if request.best is None:
        if "clip" in given:
            raise UsageError("--clip needs --best", "as in --count 16 --best 4")
        return
    if request.clip is None:
        hint = "name a CLIP, as in --clip openai/clip-vit-base-patch32, or set GENCLI_CLIP_MODEL"
        raise UsageError("--best needs a CLIP model", hint)
    if not prompted:
        raise UsageError("--best needs a prompt to compare the images with")


def _parse_size(size: str, values: Mapping[str, Any]) -> dict[str, int]:
    if values.get("width") is not None or values.get("height") is not None:
        raise UsageError("--size cannot be combined with -W or -H")
    left, _, right = size.lower().replace("×", "x").partition("x")
    try:
        return {"width": int(left), "height": int(right)}
    except ValueError:
        raise UsageError(f"--size {size}: expected WIDTHxHEIGHT, as in 512x512") from None


def _note_slips(console: Console, request: ImageRequest, given: frozenset[str], *, many: bool) -> None:
    if "negative" in given and (number := (request.negative or "").strip()).isdigit():
        console.note(f"-n {number} is a negative prompt: {number!r}; --count {number} makes several images")
    if "batch" in given and request.batch > 1 and not many:
        console.note(
            f"--batch {request.batch} is how many go through the model at once; --count says how many are made"
        )
