"""`gencli text`: continue a prompt, streamed."""

from __future__ import annotations

import dataclasses
import random
import sys
from collections.abc import Iterator, Sequence
from enum import Enum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gencli import devices
from gencli.checkpoints.adapter import Adapter
from gencli.checkpoints.find import find
from gencli.cli import options
from gencli.cli.console import Console, is_terminal
from gencli.cli.download import show_download
from gencli.cli.help import SETTINGS, Command
from gencli.cli.prompts import check_arguments, read_lines, read_prompt
from gencli.cli.text_output import JsonOutput, PlainOutput
from gencli.errors import GencliError, UsageError
from gencli.text.events import Cut, Speed, in_order
from gencli.text.request import BUILT_IN, TextRequest, parse_logit_bias

if TYPE_CHECKING:
    from gencli.text.load import TextModel

DEFAULT_MODEL = "stories"
INPUT, SAMPLING, LENGTH = "Prompt", "Sampling", "Length"

app = typer.Typer(add_completion=False, rich_markup_mode=None)


class Side(str, Enum):
    left = "left"


def _number(*names: str, metavar: str, help: str, panel: str = SAMPLING, default: str | None = None) -> Any:
    """An option for a number; `default` names the field of `BUILT_IN` that holds when nobody says otherwise."""
    ending = f" (default: {BUILT_IN[default]:g})" if default else ""
    return typer.Option(*names, metavar=metavar, help=f"{help}{ending}.", rich_help_panel=panel)


@app.command(
    cls=Command,
    context_settings=SETTINGS,
    epilog="""Examples:
    gencli text Once upon a time
    cat notes.txt | gencli text "Summarise:" - "Summary:"
    gencli text "Dear diary," --temperature 0 --stop . -n 40
    gencli text "Once" --num-samples 3 --json | jq -r .text
    gencli text --lines < prompts.txt > answers.txt
    """,
)
def text(
    ctx: typer.Context,
    prompt: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="PROMPT",
            help="Words to continue, joined by spaces; `-` stands for all of stdin, set off by newlines. Without any, "
            "stdin is the prompt. `--` before one that begins with a dash.",
            rich_help_panel=INPUT,
        ),
    ] = None,
    lines: Annotated[
        bool, typer.Option("--lines", help="Every line of stdin is a prompt of its own.", rich_help_panel=INPUT)
    ] = False,
    truncate: Annotated[
        Side | None,
        typer.Option(
            "--truncate",
            metavar="left",
            help="Cut a prompt that is longer than the context at its beginning (otherwise it is an error).",
            rich_help_panel=INPUT,
        ),
    ] = None,
    temperature: Annotated[
        float | None,
        _number(
            "--temperature",
            "--temp",
            metavar="T",
            help="Lower is safer, higher is wilder, 0 always takes the likeliest token",
            default="temperature",
        ),
    ] = None,
    top_k: Annotated[
        int | None,
        _number("-k", "--top-k", metavar="K", help="Only the K likeliest tokens; 0 is all of them", default="top_k"),
    ] = None,
    top_p: Annotated[
        float | None,
        _number(
            "--top-p", metavar="P", help="Only the likeliest tokens that together reach P; 1 is off", default="top_p"
        ),
    ] = None,
    min_p: Annotated[
        float | None,
        _number(
            "--min-p",
            metavar="P",
            help="Only tokens at least P times as likely as the likeliest; 0 is off",
            default="min_p",
        ),
    ] = None,
    typical_p: Annotated[
        float | None,
        _number("--typical-p", metavar="P", help="Locally typical sampling; 1 is off", default="typical_p"),
    ] = None,
    repeat_penalty: Annotated[
        float | None,
        _number(
            "--repeat-penalty",
            metavar="R",
            help="Divide down tokens of prompt and text; 1 is off",
            default="repeat_penalty",
        ),
    ] = None,
    presence_penalty: Annotated[
        float | None,
        _number(
            "--presence-penalty",
            metavar="A",
            help="Subtract A once from tokens that were generated, -2 to 2",
            default="presence_penalty",
        ),
    ] = None,
    frequency_penalty: Annotated[
        float | None,
        _number(
            "--frequency-penalty",
            metavar="A",
            help="Subtract A for each time a token was generated, -2 to 2",
            default="frequency_penalty",
        ),
    ] = None,
    logit_bias: Annotated[
        list[str] | None,
        typer.Option(
            "--logit-bias", metavar="ID=BIAS", help="Add to a token's logit (repeatable).", rich_help_panel=SAMPLING
        ),
    ] = None,
    max_tokens: Annotated[
        int | None,
        _number(
            "-n",
            "--max-tokens",
            "--max-new-tokens",
            metavar="N",
            help="Tokens to generate at most, as far as the context goes",
            panel=LENGTH,
            default="max_tokens",
        ),
    ] = None,
    stop: Annotated[
        list[str] | None,
        typer.Option(
            "--stop", metavar="TEXT", help="End before this text (repeatable); never printed.", rich_help_panel=LENGTH
        ),
    ] = None,
    num_samples: Annotated[
        int, _number("--num-samples", metavar="N", help="Continue the prompt N times (default: 1)", panel=LENGTH)
    ] = 1,
    echo: Annotated[
        bool, typer.Option("--echo", help="Print the prompt before the text.", rich_help_panel=options.OUTPUT)
    ] = False,
    null: Annotated[
        bool,
        typer.Option(
            "-0", "--null", help="End each sample with a NUL byte, not a newline.", rich_help_panel=options.OUTPUT
        ),
    ] = False,
    json: options.Json = False,
    logprobs: Annotated[
        int | None,
        _number(
            "--logprobs",
            metavar="N",
            help="With --json: each token's log-probability, and the N likeliest tokens beside it",
            panel=options.OUTPUT,
        ),
    ] = None,
    model: Annotated[str, options.model_option("GENCLI_TEXT_MODEL", DEFAULT_MODEL)] = DEFAULT_MODEL,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    threads: options.Threads = None,
    offline: options.Offline = False,
    lora: options.Lora = None,
    allow_pickle: options.AllowPickle = False,
    seed: options.Seed = None,
    stats: options.Stats = False,
    quiet: options.Quiet = False,
    color: options.Color = options.When.auto,
    debug: options.Debug = False,
) -> None:
    """Continue a prompt with a language model. The text streams to stdout as it is made, and nothing else does.

    A setting that is not given is the checkpoint's own (generation_config.json), else the default below.
    """
    devices.check_names(device, dtype, threads)
    adapters = [Adapter.parse(one) for one in lora or ()]
    request = TextRequest(
        prompt="",
        seed=random.SystemRandom().getrandbits(32) if seed is None else seed,
        max_tokens=max_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        typical_p=typical_p,
        repeat_penalty=repeat_penalty,
        presence_penalty=presence_penalty,
        frequency_penalty=frequency_penalty,
        logit_bias=tuple(parse_logit_bias(pair) for pair in logit_bias or ()),
        stop=tuple(stop or ()),
        num_samples=num_samples,
        logprobs=logprobs,
        truncate=None if truncate is None else "left",
    )
    check_arguments(prompt or [], stdin_by_default=not lines)
    _check_combinations(prompt or [], lines=lines, json=json, null=null, logprobs=logprobs)
    source = find(model, offline=offline, progress=show_download(ctx.obj), allow_pickle=allow_pickle)
    output: PlainOutput | JsonOutput = JsonOutput(source.name, echo=echo) if json else PlainOutput(echo=echo, null=null)
    prompts = read_lines() if lines else iter([read_prompt(prompt or [])])

    console: Console = ctx.obj
    console.progress(f"loading {source.name}")
    from gencli.text.load import open_model

    loaded = open_model(
        source, device=device, dtype=dtype, threads=threads, adapters=adapters, allow_pickle=allow_pickle
    )
    for note in loaded.notes:
        console.note(note)
    _run(console, loaded, request, prompts, output, lines=lines, stats=stats)


def _check_combinations(arguments: Sequence[str], *, lines: bool, json: bool, null: bool, logprobs: int | None) -> None:
    """Raises UsageError for options that exclude each other."""
    if lines and arguments:
        raise UsageError("--lines reads its prompts from stdin and takes no PROMPT beside it")
    if json and null:
        raise UsageError("--json ends its objects with newlines and does not go with --null")
    if logprobs is not None and not json:
        raise UsageError("--logprobs is a part of --json's output", "add --json")


def _run(
    console: Console,
    model: TextModel,
    request: TextRequest,
    prompts: Iterator[str],
    output: PlainOutput | JsonOutput,
    *,
    lines: bool,
    stats: bool,
) -> None:
    """Continue every prompt in turn and show what comes. Prompt p's sample i has the seed `seed + p * samples + i`."""
    from gencli.text.generate import generate

    speed = Speed()
    try:
        for number, prompt in enumerate(prompts):
            seed = request.seed + number * request.num_samples
            one = dataclasses.replace(request, prompt=prompt, seed=seed)
            try:
                for event in in_order(generate(model, one, speed)):
                    if isinstance(event, Cut):
                        console.note(f"of the prompt's {event.tokens} tokens only the last {event.kept} are used")
                        continue
                    _show_progress(console, speed)
                    output.show(event, prompt, first=number * request.num_samples)
            except GencliError as error:
                error.message = f"line {number + 1}: {error.message}" if lines else error.message
                raise
    except KeyboardInterrupt:
        console.clear()
        output.interrupted()
        raise
    finally:
        console.clear()
        if stats:
            console.stats(f"{model.describe()}, seed {request.seed}")
            console.stats(f"load {model.load_seconds:.2f} s; {speed}")


def _show_progress(console: Console, speed: Speed) -> None:
    """Tokens so far, where the text itself is not on the screen."""
    if is_terminal(sys.stdout):
        console.clear()
    else:
        console.progress("generating:", rate=f"{speed.generated} tokens, {speed.rate:.1f} tokens/s")
