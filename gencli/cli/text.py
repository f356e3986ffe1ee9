"""`gencli text`: continue a prompt, streamed."""

from __future__ import annotations

import dataclasses
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from enum import Enum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gencli import devices, stopping
from gencli.checkpoints.assets import LoraRef
from gencli.checkpoints.find import find
from gencli.cli import options
from gencli.cli import text_options as settings
from gencli.cli.chat_talk import new_conversation
from gencli.cli.console import Console, is_terminal
from gencli.cli.download import show_download
from gencli.cli.help import SETTINGS, Command
from gencli.cli.prompts import check_arguments, read_lines, read_prompt
from gencli.cli.text_output import JsonOutput, PlainOutput
from gencli.errors import GencliError, UsageError
from gencli.text.events import Event, GenerationStats, PromptTruncated, ReasoningDelta, in_order
from gencli.text.request import TextRequest, parse_logit_bias

if TYPE_CHECKING:
    from gencli.text.conversation import Conversation
    from gencli.text.load import TextModel

DEFAULT_MODEL = "stories"
INPUT = "Prompt"

app = typer.Typer(add_completion=False, rich_markup_mode=None)


class Side(str, Enum):
    left = "left"


@app.command(
    cls=Command,
    context_settings=SETTINGS,
    epilog="""Examples:
    gencli text Once upon a time
    cat notes.txt | gencli text "Summarise:" - "Summary:"
    gencli text "Dear diary," --temperature 0 --stop . -n 40
    gencli text "Once" --num-samples 3 --json | jq -r .text
    gencli text --lines < prompts.txt > answers.txt
    gencli text --system "Answer in one word." --lines < questions.txt
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
    chat: Annotated[
        bool,
        typer.Option(
            "--chat",
            help="The prompt is a message, given to the model as its chat template says; the text is the answer.",
            rich_help_panel=settings.CONVERSATION,
        ),
    ] = False,
    system: settings.System = None,
    examples: settings.Examples = None,
    temperature: settings.Temperature = None,
    top_k: settings.TopK = None,
    top_p: settings.TopP = None,
    min_p: settings.MinP = None,
    typical_p: settings.TypicalP = None,
    repeat_penalty: settings.RepeatPenalty = None,
    presence_penalty: settings.PresencePenalty = None,
    frequency_penalty: settings.FrequencyPenalty = None,
    logit_bias: settings.LogitBias = None,
    max_tokens: settings.MaxTokens = None,
    stop: settings.Stop = None,
    num_samples: Annotated[
        int,
        settings.number(
            "--num-samples", metavar="N", help="Continue the prompt N times (default: 1)", panel=settings.LENGTH
        ),
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
        settings.number(
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
    adapters = [LoraRef.parse(one) for one in lora or ()]
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
    chat = chat or system is not None or examples is not None
    if chat and (echo or truncate):
        raise UsageError(f"{'--echo' if echo else '--truncate'} is for raw prompts, and this is a conversation")
    before = new_conversation(system, examples) if chat else None
    fetching: dict[str, Any] = {"offline": offline, "progress": show_download(ctx.obj), "allow_pickle": allow_pickle}
    source = find(model, **fetching)
    adapters = [adapter.find(**fetching) for adapter in adapters]
    output: PlainOutput | JsonOutput = JsonOutput(source.name, echo=echo) if json else PlainOutput(echo=echo, null=null)
    prompts = read_lines() if lines else iter([read_prompt(prompt or [])])

    console: Console = ctx.obj
    console.progress(f"loading {source.name}")
    with stopping.heeded():
        from gencli.text.load import open_model

    loaded = open_model(
        source, device=device, dtype=dtype, threads=threads, adapters=adapters, allow_pickle=allow_pickle
    )
    for note in loaded.notes:
        console.note(note)
    if before is None and loaded.tokenizer.chat_template is not None:
        console.note(
            f"{loaded.name} is tuned for conversation and gets a raw prompt; --chat speaks to it in its own form"
        )
    _run(console, loaded, request, prompts, output, before, lines=lines, stats=stats)


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
    before: Conversation | None,
    *,
    lines: bool,
    stats: bool,
) -> None:
    """Continue every prompt in turn and show what comes. Prompt p's sample i has the seed `seed + p * samples + i`.

    before: what stands before every prompt, if prompts are messages.
    """
    totals = GenerationStats()
    continued = _continuer(model, before, totals)
    try:
        for number, prompt in enumerate(prompts):
            seed = request.seed + number * request.num_samples
            one = dataclasses.replace(request, prompt=prompt, seed=seed)
            try:
                for event in in_order(continued(one)):
                    if isinstance(event, PromptTruncated):
                        console.note(f"of the prompt's {event.tokens} tokens only the last {event.kept} are used")
                        continue
                    if isinstance(event, ReasoningDelta):
                        console.aside(event.text)
                        continue
                    console.end_aside()
                    _show_progress(console, totals)
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
            console.stats(f"load {model.load_seconds:.2f} s; {totals}")


def _continuer(
    model: TextModel, before: Conversation | None, stats: GenerationStats
) -> Callable[[TextRequest], Iterator[Event]]:
    """What a request's prompt is given to: the model itself, or a new conversation with it each time."""
    from gencli.text.generate import generate

    if before is None:
        return lambda request: generate(model, request, stats)
    from gencli.text.chat import ChatModel, ChatSession

    chat_model = ChatModel(model)

    def answer(request: TextRequest) -> Iterator[Event]:
        session = ChatSession(chat_model, request, dataclasses.replace(before, turns=[]))
        session.stats = stats
        yield from session.answer(request.prompt, session.prepare(request.prompt), request.seed)

    return answer


def _show_progress(console: Console, stats: GenerationStats) -> None:
    """Tokens so far, where the text itself is not on the screen."""
    if is_terminal(sys.stdout):
        console.clear()
    else:
        console.progress("generating:", rate=f"{stats.generated} tokens, {stats.rate:.1f} tokens/s")
