"""`gencli text`: continue a prompt, streamed."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from gencli.checkpoints.assets import LoraRef
from gencli.cli.console import Console, is_terminal
from gencli.cli.options import JSON, LINES, STRICT, Fetching, Reporting, command
from gencli.cli.prompts import LineReader, check_arguments, each_line, note_file, read_prompt
from gencli.cli.speed import Speed, open_warm_text_model
from gencli.cli.text_images import Images
from gencli.cli.text_output import JsonOutput, PlainOutput, why_cut, why_empty
from gencli.cli.warm import Serving
from gencli.errors import GencliError, UsageError, counted
from gencli.options import OUTPUT, Option, flag, string
from gencli.spec import TextSpec
from gencli.text.events import (
    CharactersLost,
    Completion,
    Event,
    Failed,
    GenerationStats,
    PromptTruncated,
    ReasoningDelta,
    TextDelta,
    in_order,
)
from gencli.text.request import CONVERSATION, INPUT, MAX_SEED, TextRequest

if TYPE_CHECKING:
    from gencli.serve.client import RemoteText
    from gencli.text.conversation import Conversation
    from gencli.text.load import TextModel

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@dataclass(eq=False, repr=False)
class Prompts:
    """Where prompts come from, and how they are worked on."""

    # fmt: off
    prompt: tuple[str, ...] = Option(str, "PROMPT",
        "Text to continue; words are joined by spaces. `-` inserts all of stdin, on lines of its own. Put `--` "
        "before a prompt that starts with a dash. Without a prompt, stdin is the prompt.", INPUT,
        several=True).field(())
    lines: bool = LINES.field(False)
    strict: bool = STRICT.field(False)
    # fmt: on
    speed: Speed = Speed()  # noqa: RUF009


@dataclass(eq=False, repr=False)
class ConversationStart:
    """What comes before the first message of a conversation."""

    # fmt: off
    chat: bool = flag(False, "--chat",
        "Send the prompt as a chat message (using the model's chat template) and print the reply.", CONVERSATION)
    system: str | None = string(None, "--system TEXT", "System prompt (turns on --chat).", CONVERSATION,
        also=("-sys", "--system-prompt", "--sys"))
    examples: Path | None = Option(Path, "--examples FILE",  # noqa: RUF009
        "Example exchanges placed before the first message: JSON lines with `user` and `assistant`, or with "
        "`messages`.",
        CONVERSATION).field(None)
    # fmt: on

    def conversation(self) -> Conversation:
        """Return a conversation that begins so. Raise GencliError for a broken file of examples."""
        from gencli.text.conversation import Conversation, read_examples

        return Conversation(self.system, [] if self.examples is None else read_examples(self.examples))


@dataclass(eq=False, repr=False)
class Shown:
    """What stdout gets."""

    # fmt: off
    echo: bool = flag(False, "--echo", "Print the prompt before the text.", OUTPUT)
    null: bool = flag(False, "-0, --null", "End each sample with a NUL byte instead of a newline.", OUTPUT)
    # fmt: on
    json: bool = JSON.field(False)


@command(
    app,
    epilog="""Examples:
    gencli text Once upon a time
    cat notes.txt | gencli text "Summarise:" - "Summary:"
    gencli text "Dear diary," --temperature 0 --stop . -n 40
    gencli text "Once" --num-samples 3 --json | jq -r .text
    gencli text --lines < prompts.txt > answers.txt
    gencli text --system "Answer in one word." --lines < questions.txt
    gencli text -m deepseek-community/Janus-Pro-1B -i photo.png "What is this?"
    """,
)
def text(
    ctx: typer.Context,
    source: Prompts,
    images: Images,
    start: ConversationStart,
    shown: Shown,
    request: TextRequest,
    spec: TextSpec,
    fetching: Fetching,
    serving: Serving,
    reporting: Reporting,
) -> None:
    """Continue a prompt with a language model. Only the generated text is written to stdout, as it is produced.

    Options you leave out come from the model's generation_config.json, or else from the defaults below.
    """
    adapters = [LoraRef.parse(one) for one in spec.lora]
    check_arguments(source.prompt, stdin_by_default=not source.lines)
    _check_combinations(source, shown, request)
    images.check(source.prompt, source.speed, lines=source.lines)
    note_file(source.prompt, ctx.obj.note)
    if images.image and start.examples is not None:
        raise UsageError("--examples are texts, and cannot be combined with -i/--image")
    chats = start.chat or start.system is not None or start.examples is not None or bool(images.image)
    if chats and (shown.echo or request.truncate):
        raise UsageError(f"{'--echo' if shown.echo else '--truncate'} is for raw prompts, and this is a conversation")
    conversation = start.conversation() if chats and not images.image else None
    console: Console = ctx.obj
    fetch = fetching.finder(console, spec)
    checkpoint = fetch(spec.model)
    adapters = [adapter.find(**fetch.keywords) for adapter in adapters]
    pixels = images.read(checkpoint, console.note) if images.image else None
    output: PlainOutput | JsonOutput = PlainOutput(echo=shown.echo, null=shown.null)
    if shown.json:
        output = JsonOutput(checkpoint.name, echo=shown.echo)
    reader = LineReader() if source.lines else None
    prompts = each_line(reader) if reader else iter([read_prompt(source.prompt)])

    link = serving.connect(spec.threads) if source.speed.is_usual and pixels is None else None
    model = open_warm_text_model(console, checkpoint, spec, adapters, link)
    if conversation is not None:
        note_no_conversation(console, model)
    elif model.converses and pixels is None:
        console.note(f"{model.name} is a chat model, but the prompt is sent as it is; --chat sends it as a message")
    request.resolve(model.generation_config)  # what is wrong with all of them
    stats, seen = GenerationStats(), dict[int, str]()
    how = source.speed.ways(console, fetch, model, spec, stats) | ({"ready": reader.ready} if reader else {})
    asked = request, _requests(request, prompts, seen), conversation, stats
    answers = _answers(model) if pixels is None else images.answers(model, pixels, start.system)
    events = in_order(answers(*asked, **how))
    try:
        events = _show_progress(console, stats, events)
        _run(console, model, request, events, seen, output, source, chats=chats)
    except KeyboardInterrupt:
        console.clear()
        output.interrupted()
        raise
    finally:
        console.clear()
        if reporting.stats:
            console.stats(f"{model.describe()}, seed {request.seed}")
            console.stats(f"load {model.load_seconds:.2f} s; {stats}")


def _answers(model: TextModel | RemoteText) -> Callable[..., Iterator[Event]]:
    """Return what has a model answer: in this process, or in the server."""
    if hasattr(model, "answer_all"):
        return model.answer_all
    from gencli.text.chat import answer_all

    return partial(answer_all, model)


def note_no_conversation(console: Console, model: TextModel | RemoteText) -> None:
    """Say of a model that was never taught to converse that it cannot, and how to get one that can."""
    if not model.converses:
        from gencli.checkpoints.catalogue import SUGGESTED, find_entry
        from gencli.cli.download import in_words

        entry = find_entry(SUGGESTED)
        size = f" ({in_words(entry.download)})" if entry else ""
        console.note(
            f"{model.name} only continues texts: it has no chat template and cannot converse. For one that can: "
            f"`gencli models pull {SUGGESTED}`{size}, then `gencli chat -m {SUGGESTED}`"
        )


def _check_combinations(source: Prompts, shown: Shown, request: TextRequest) -> None:
    """Raise UsageError for options that exclude each other."""
    if source.lines and source.prompt:
        raise UsageError("--lines reads prompts from stdin and cannot be combined with PROMPT")
    if source.strict and not source.lines:
        raise UsageError("--strict needs --lines")
    if shown.json and shown.null:
        raise UsageError("--json ends its objects with newlines and does not go with --null")
    if request.logprobs is not None and not shown.json:
        raise UsageError("--logprobs is a part of --json's output", "add --json")


def _run(
    console: Console,
    model: TextModel | RemoteText,
    request: TextRequest,
    events: Iterator[Event],
    prompts: Mapping[int, str],
    output: PlainOutput | JsonOutput,
    source: Prompts,
    *,
    chats: bool,
) -> None:
    """Write the events of prompts. A line that fails is told and the rest goes on.

    Raise GencliError for a prompt that fails, with lines at the end.
    """
    failed, number = 0, -1
    for event in events:
        number = event.index // request.num_samples
        line = f"line {number + 1}: " if source.lines else ""
        if isinstance(event, Failed):
            if source.lines and number in prompts:  # else the error tells its line
                event.error.message = line + event.error.message
            if not source.lines or source.strict or isinstance(event.error, UsageError):
                raise event.error
            failed += 1
            console.clear()
            console.error(event.error)
        elif isinstance(event, PromptTruncated):
            console.note(f"{line}only the last {event.kept} of the prompt's {event.tokens} tokens are used")
        elif isinstance(event, CharactersLost):
            lost = counted(event.count, "character")
            console.note(f"{line}the model's vocabulary lacks {lost} of the prompt, which it does not see")
        elif isinstance(event, ReasoningDelta):
            console.aside(event.text)
        else:
            output.show(event, prompts[number])
            if isinstance(event, Completion) and (reason := _end(event, model.max_length, chats, request)):
                console.note(line + reason)
    if failed:
        raise GencliError(f"{failed} of {number + 1} lines failed")


def _end(sample: Completion, context: int, chats: bool, request: TextRequest) -> str | None:
    """Return what there is to say of a sample's end, if anything."""
    if chats and (reason := why_empty(sample, context)):
        return reason
    if request.form is not None and (reason := why_cut(sample, context)):
        return f"{reason}: the text does not follow the {'schema' if request.schema else 'grammar'} to its end"
    return None


def _requests(
    request: TextRequest, prompts: Iterator[str | GencliError], seen: dict[int, str]
) -> Iterator[TextRequest | GencliError]:
    """Yield a request for each prompt, which is put into `seen`. Sample i of prompt p has seed + p * samples + i."""
    samples = request.num_samples
    for number, prompt in enumerate(prompts):
        if isinstance(prompt, GencliError):
            yield prompt
            continue
        seed = (request.seed + number * samples) % (MAX_SEED - samples + 2)
        seen[number] = prompt
        try:
            yield dataclasses.replace(request, prompt=prompt, seed=seed)
        except GencliError as error:
            yield error


def _show_progress(console: Console, stats: GenerationStats, events: Iterator[Event]) -> Iterator[Event]:
    """Show the number of tokens while events come, unless the text itself is on the screen."""
    for event in events:
        if isinstance(event, TextDelta | Completion):
            console.end_aside()
            if is_terminal(sys.stdout):
                console.clear()
            else:
                console.progress("generating:", rate=f"{stats.generated} tokens, {stats.rate:.1f} tokens/s")
        yield event
