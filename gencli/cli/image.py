"""`gencli image`: draw a picture from a prompt, or without one."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import random
import sys
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gencli import devices, stopping
from gencli.checkpoints.find import Source, find
from gencli.cli import image_additions as a
from gencli.cli import image_classifier as k
from gencli.cli import image_controls as c
from gencli.cli import image_options as o
from gencli.cli import image_sinks, options
from gencli.cli.console import Console
from gencli.cli.download import show_download
from gencli.cli.help import SETTINGS, Command
from gencli.cli.image_best import check_best, find_clip
from gencli.cli.prompts import read_lines, read_prompt
from gencli.errors import GencliError, UsageError
from gencli.image.request import ImageRequest

if TYPE_CHECKING:
    from PIL import Image

DEFAULT_MODEL = "emoji"
FIELDS = {field.name for field in dataclasses.fields(ImageRequest)}

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command(
    cls=Command,
    context_settings=SETTINGS,
    epilog="""Examples:
    gencli image "red apple" --steps 50 > apple.png
    gencli image "red apple" --count 9 --grid -o apples.png
    gencli image "green apple" -i apple.png --strength 0.6 -o 'apple-{seed}.webp'
    gencli image --from apple.png --seed 7 -o other.png
    gencli image --lines -o '{index:03}-{prompt}.png' < prompts.txt
    """,
)
def image(
    ctx: typer.Context,
    prompt: o.Prompt = None,
    negative: o.Negative = None,
    lines: o.Lines = False,
    from_file: o.From = None,
    truncate: o.Truncate = None,
    weighted: a.Weighted = False,
    embedding: a.Embedding = None,
    size: o.Size = None,
    width: o.Width = None,
    height: o.Height = None,
    count: o.Count = 1,
    best: o.Best = None,
    clip: o.Clip = None,
    grid: o.Grid = False,
    batch: o.Batch = 1,
    steps: o.Steps = None,
    guidance: o.Guidance = None,
    guidance_rescale: o.GuidanceRescale = None,
    sampler: o.Sampler = None,
    eta: o.Eta = None,
    spacing: o.Spacing = None,
    karras: o.Karras = None,
    sampler_option: o.SamplerOptions = None,
    refiner_start: o.RefinerStart = None,
    stage: o.Stage = None,
    classifier: k.Classifier = None,
    classifier_scale: k.ClassifierScale = None,
    init: o.Init = None,
    strength: o.Strength = None,
    mask: o.Mask = None,
    image_guidance: o.ImageGuidance = None,
    control: c.Control = None,
    control_image: c.ControlImage = None,
    control_scale: c.ControlScale = None,
    control_start: c.ControlStart = None,
    control_end: c.ControlEnd = None,
    keep_rows: o.KeepRows = None,
    temperature: o.Temperature = None,
    top_k: o.TopK = None,
    top_p: o.TopP = None,
    output: o.Output = None,
    format: o.Format = None,
    json: options.Json = False,
    gif: o.Gif = None,
    save_steps: o.SaveSteps = None,
    preview: o.Preview = False,
    no_metadata: o.NoMetadata = False,
    model: Annotated[str, options.model_option("GENCLI_IMAGE_MODEL", DEFAULT_MODEL)] = DEFAULT_MODEL,
    prediction: o.Prediction = None,
    betas: o.Betas = None,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    threads: options.Threads = None,
    offline: options.Offline = False,
    lora: a.Lora = None,
    allow_pickle: options.AllowPickle = False,
    refiner: o.Refiner = None,
    vae: o.Vae = None,
    vae_tiling: o.VaeTiling = False,
    seed: options.Seed = None,
    stats: options.Stats = False,
    quiet: options.Quiet = False,
    color: options.Color = options.When.auto,
    debug: options.Debug = False,
) -> None:
    """Draw a picture. Into a pipe or file go the bytes of the picture and nothing else.

    A setting that is not given is the checkpoint's own, else the default below. DDIM is the sampler unless another is
    named; how noise lies on its steps is the checkpoint's.
    """
    devices.check_names(device, dtype, threads)
    arguments = prompt or []
    _check_stdin(arguments, lines=lines, init=init, mask=mask)
    values = {name: value for name, value in ctx.params.items() if name in FIELDS}  # as the request calls them
    values |= {"prompt": "", "sampler_options": _sampler_options(sampler_option or [])}
    values["dtype"] = None if dtype == "auto" else dtype
    if size is not None:
        values |= _size(size, width, height)
    console: Console = ctx.obj
    request = ImageRequest(**(values if from_file is None else _completed(values)))
    if from_file is not None:
        request = _from_file(console, from_file, values, _given(ctx), keep_prompt=not arguments and not lines)
    request = check_best(request, _given(ctx), prompted=bool(arguments or lines or request.prompt))
    several = (request.best or request.count) > 1 or lines
    many = several and not request.grid
    sink = image_sinks.plan(output, format, many=many, json=json, metadata=not no_metadata)
    animation = image_sinks.animation(gif, many=several)
    additions = a.Additions.of(request)
    _hints(console, negative)
    find_it = partial(find, offline=offline, progress=show_download(console), allow_pickle=allow_pickle)
    if from_file is not None and "model" not in _given(ctx):
        source = _model_of_file(from_file, request.model)
    else:
        source = find_it(request.model)
    of_file = partial(_model_of_file, from_file or "", option="--clip")
    clip_source = find_clip(request, of_file if from_file is not None and request.clip != clip else find_it)
    fetching: dict[str, Any] = {"offline": offline, "progress": show_download(console), "allow_pickle": allow_pickle}
    additions = additions.find(from_file, _given(ctx), **fetching)
    pictures = _open(request.init), _open(request.mask)
    foreign = from_file is not None and "control" not in _given(ctx)
    of_file = partial(_model_of_file, from_file or "", option="--control")
    controls = c.find_controls(request, of_file if foreign else find_it)
    foreign = from_file is not None and "classifier" not in _given(ctx)
    of_file = partial(_model_of_file, from_file or "", option="--classifier")
    classifier_source = k.find_classifier(request, of_file if foreign else find_it)
    others: dict[str, Source | None] = {}
    for option in ("vae", "refiner"):
        name = getattr(request, option)
        foreign = from_file is not None and option not in _given(ctx)
        of_file = partial(_model_of_file, from_file or "", option=f"--{option}")
        others[option] = None if name is None else of_file(name) if foreign else find_it(name)
    if arguments:
        request = request.replace(prompt=read_prompt(arguments))
    if request.seed is None:
        request = request.replace(seed=random.SystemRandom().getrandbits(32))

    with stopping.heeded():
        from gencli.cli.image_ready import ready
    more: dict[str, Any] = {**others, "classifier": classifier_source, "allow_pickle": allow_pickle}
    opened, request = ready(source, request, init=pictures[0], lines=lines, note=console.note, **more)

    with stopping.heeded():
        from gencli.cli.image_run import Run

    Run(
        console,
        opened,
        request,
        sink,
        pictures,
        prompts=read_lines() if lines else None,
        animation=animation,
        save_steps=save_steps,
        preview=preview,
        stats=stats,
        clip=clip_source,
        controls=controls,
        additions=additions,
    ).run(device=device, threads=threads, allow_pickle=allow_pickle)


def _check_stdin(arguments: Sequence[str], *, lines: bool, init: str | None, mask: str | None) -> None:
    """Raises UsageError when stdin would have to be two things."""
    if lines and arguments:
        raise UsageError("--lines reads its prompts from stdin and takes no PROMPT beside it")
    if mask == "-":
        raise UsageError("--mask -: a mask is read from a file only")
    if init == "-" and (lines or "-" in arguments):
        raise UsageError("-i - reads the picture from stdin, so that no prompt can come from there")
    if arguments.count("-") > 1:
        raise UsageError("`-` stands for all of stdin and can be given once")


def _given(ctx: typer.Context) -> set[str]:
    """Names of the parameters that stand on the command line, as against the environment and defaults."""
    sources = {name: ctx.get_parameter_source(name) for name in ctx.params}
    names = {name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"}
    if "size" in names:
        names |= {"width", "height"}
    if "sampler_option" in names:
        names.add("sampler_options")
    return names


def _completed(values: dict[str, Any]) -> dict[str, Any]:
    """Values beside --from, with something in the place of what goes with them and may come from there."""
    controls = max(len(value or ()) for name, value in values.items() if name.startswith("control"))
    given = {name: list(values[name] or ()) for name in ("control", "control_image")}
    filled = {name: names + ["?"] * (controls - len(names)) for name, names in given.items()}
    return {
        **values,
        "init": values["init"] or "?",
        "refiner": values["refiner"] or "?",
        "count": max(values["count"], values["best"] or 1),
        **filled,
    }


def _from_file(
    console: Console, path: str, values: dict[str, Any], given: set[str], *, keep_prompt: bool
) -> ImageRequest:
    """The request in a picture, with what the command line says instead. Raises GencliError and UsageError."""
    from gencli.image.files.pictures import read_request

    found = read_request(path)
    if found.left_out:
        console.note(f"{path} also says {', '.join(found.left_out)[:200]}, which is left out")
    merged = {**found.values, **{name: value for name, value in values.items() if name in given}}
    if "sampler" in given:
        for name in {"eta", "karras", "sampler_options"} - given:  # they were another sampler's
            merged.pop(name, None)
    if not keep_prompt:
        merged["prompt"] = ""
    merged.setdefault("model", values["model"])
    merged.setdefault("clip", values["clip"])
    if merged.get("init") == "-" and "init" not in given:
        raise UsageError(f"{path} was begun from a picture on stdin", "name that picture with -i/--init FILE")
    request = ImageRequest(**merged)
    for name in {"init", "mask", "control_image"} - given:  # a stranger's file opens no device or pipe
        one = getattr(request, name)
        if lost := [file for file in (one if isinstance(one, tuple) else (one,)) if file and not os.path.isfile(file)]:
            option = name.replace("_", "-")
            raise GencliError(f"{path} was made with {lost[0]}, which is no file here", f"name it with --{option} FILE")
    return request


def _model_of_file(path: str, model: str, option: str = "-m") -> Source:
    """The model that a picture names. A stranger's file fetches nothing: raises GencliError when it is not here."""
    try:
        return find(model, offline=True)
    except GencliError:
        raise GencliError(
            f"{path} was made with the model {model!r}, which is not on this machine",
            f"name another with {option}, or fetch it with `gencli models pull` if you trust where it comes from",
        ) from None


def _open(path: str | None) -> Image.Image | None:
    """The picture to start from, or a mask. Raises GencliError."""
    if path is None:
        return None
    from gencli.image.files.pictures import FILE_LIMIT, open_flat

    if path != "-":
        return open_flat(path)
    if sys.stdin is None:
        raise GencliError("stdin is closed, and -i - reads the picture from there")
    return open_flat(sys.stdin.buffer.read(FILE_LIMIT))


def _size(size: str, width: int | None, height: int | None) -> dict[str, int]:
    if width is not None or height is not None:
        raise UsageError("--size says width and height, and does not go with -W or -H")
    left, _, right = size.lower().replace("×", "x").partition("x")
    try:
        return {"width": int(left), "height": int(right)}
    except ValueError:
        raise UsageError(f"--size {size}: wants WIDTHxHEIGHT, as in 512x512") from None


def _sampler_options(pairs: Sequence[str]) -> dict[str, bool | float | str]:
    found: dict[str, bool | float | str] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals or not name:
            raise UsageError(f"--sampler-option {pair!r}: wants NAME=VALUE")
        value: bool | float | str = {"true": True, "false": False}.get(text.lower(), text)
        for kind in (float, int):  # whole numbers stay whole
            with contextlib.suppress(ValueError):
                value = kind(text)
        found[name.replace("-", "_")] = value
    return found


def _hints(console: Console, negative: str | None) -> None:
    if negative is not None and negative.strip().isdigit():
        console.note(f"-n {negative} draws against the prompt {negative!r}; --count {negative} makes several pictures")
