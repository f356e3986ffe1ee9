"""What `gencli image` is asked for: the command line's options, and the settings of an image for --from → a request."""

from __future__ import annotations

import random
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from gencli.checkpoints.find import Source
from gencli.cli import sweep
from gencli.cli.console import Console
from gencli.cli.image_inputs import Finder
from gencli.cli.many import Many
from gencli.cli.options import LINES, STRICT, Asked
from gencli.cli.prompts import image_data, read_prompt
from gencli.errors import UsageError, shorten
from gencli.image.request import INPUT, PICTURE, ImageRequest
from gencli.options import Option, flag, make, several, string, typed


def _check_size(_: str, size: str) -> None:
    _parse_size(size)


def _check_sweep(_: str, texts: Sequence[str]) -> None:
    sweep.parse(texts)


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
        "Recreate FILE (`-`: stdin) from its embedded settings; other options override them.", INPUT,
        after="strict")
    wildcards: bool = flag(False, "--wildcards",
        "Replace {red|green} by one of the words, and __colors__ by a line of colors.txt, chosen anew for each image.",
        INPUT,
        after="strict")
    sweep: tuple[str, ...] = several(str, "--sweep KEY=VALUES",
        "Generate with each value, as in cfg-scale=1,3,7 or seed=1..4; given again, with every combination. With "
        "--grid: one labelled contact sheet.", PICTURE, after="grid", valid=_check_sweep)
    info: tuple[str, ...] = several(str, "--info FILE",
        "Print the settings that are embedded in FILE (`-`: stdin), and in files after it.", INPUT, after="from_file")
    size: str | None = string(None, "--size WxH",
        "Width and height in pixels, as in 512x512 (default: the model's native size, or close to the --init or "
        "--control-image).", PICTURE, valid=_check_size)
    # fmt: on
    many: Many = Many()


def check_stdin(sources: Sources, values: Mapping[str, object]) -> None:
    """Raise UsageError if stdin is wanted for two things."""
    if sources.lines and sources.prompt:
        raise UsageError("--lines reads prompts from stdin and cannot be combined with PROMPT")
    if sources.strict and not sources.lines:
        raise UsageError("--strict needs --lines")
    if values.get("mask") == "-":
        raise UsageError("--mask -: a mask is read from a file only")
    if from_stdin := [
        name for name, value in (("--from", sources.from_file), ("-i", values.get("init"))) if value == "-"
    ]:
        if from_stdin[1:]:
            raise UsageError("--from - and -i - cannot both read stdin", "name a file for one of them")
        if sources.lines or "-" in sources.prompt:
            raise UsageError(f"{from_stdin[0]} - reads the image from stdin, so that no prompt can come from there")
    if sources.prompt.count("-") > 1:
        raise UsageError("`-` (stdin) can be given only once")


def request_of(
    console: Console, sources: Sources, asked: Asked[ImageRequest], fetch: partial[Source]
) -> tuple[ImageRequest, Finder]:
    """Return the request, without a prompt that comes from stdin, and the finder of what it names.

    Raise UsageError for an invalid request, GencliError for an image of --from that cannot be repeated.
    """
    values, given = dict(asked.values), asked.given
    if sources.size is not None:
        if values.get("width") is not None or values.get("height") is not None:
            raise UsageError("--size cannot be combined with -W or -H")
        values |= _parse_size(sources.size)
        given |= {"width", "height"}
    asked = Asked(ImageRequest, values, given)
    later = not sources.prompt or "-" in sources.prompt
    prompt = {} if later else {"prompt": read_prompt(sources.prompt)}
    path = sources.from_file
    if path is not None:
        make(ImageRequest, _completed(values))
        prompt = prompt if sources.prompt or sources.lines else {}
        values = _from_file(console, path, asked, keep_prompt=not sources.prompt and not sources.lines)
    prompted = bool(sources.prompt or sources.lines or values.get("prompt"))
    unused = {"clip": None} if values.get("best") is None else {}
    if values.get("seed") is None:
        values["seed"] = random.SystemRandom().getrandbits(32)
    request = make(ImageRequest, {**values, **unused, **prompt})
    finder = Finder(request, asked, path, fetch)
    finder.check_files()
    _check_best(request, given, prompted=prompted)
    return request, finder


def _completed(values: dict[str, object]) -> dict[str, object]:
    """Fill in placeholders for values that may come from the image of --from, so that the others can be checked."""
    lists = {name: typed(values, name, tuple) or () for name in values if name.startswith("control")}
    controls = max(map(len, lists.values()))
    filled = {name: [*lists[name], *["?"] * (controls - len(lists[name]))] for name in ("control", "control_image")}
    count = max(typed(values, name, int) or 1 for name in ("count", "best"))
    return {
        **values,
        "init": values.get("init") or "?",
        "refiner": values.get("refiner") or "?",
        "count": count,
        **filled,
    }


def _from_file(console: Console, path: str, asked: Asked[ImageRequest], *, keep_prompt: bool) -> dict[str, object]:
    """Return the values in an image, overridden by the command line. Raise GencliError or UsageError."""
    from gencli.image.files.inputs import relocate
    from gencli.image.files.pictures import read_request

    found = read_request(image_data(path, "--from - reads the image"))
    if found.left_out:
        hint = " (--lora FILE:SCALE merges a LoRA)" if any(key.startswith("<lora:") for key in found.left_out) else ""
        models = [key for key, field in found.usual.items() if field not in asked.given]
        usual = f"; {', '.join(models)} {_are(models)} the model's own" if models else ""
        listed = shorten(", ".join(found.words), 300)
        console.note(f"{path} also says {listed}, which {_are(found.left_out)} left out{usual}{hint}")
    own = {name: value for name, value in asked.values.items() if name in asked.given}
    hashes = typed(found.values, "hashes", dict) or {}
    merged = {**relocate(found.values, hashes, Path(path).parent), **own}
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


def _are(things: Collection[str]) -> str:
    return "is" if len(things) == 1 else "are"


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


def _parse_size(size: str) -> dict[str, int]:
    left, _, right = size.lower().replace("×", "x").partition("x")
    try:
        return {"width": int(left), "height": int(right)}
    except ValueError:
        raise UsageError(f"--size {size}: expected WIDTHxHEIGHT, as in 512x512") from None
