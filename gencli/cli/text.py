"""`gencli text`: continue a prompt, streamed."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from gencli.checkpoints.assets import LoraRef
from gencli.cli.console import Console
from gencli.cli.many import Many, described, shown_answers
from gencli.cli.options import JSON, LINES, STRICT, Fetching, Reporting, command, is_given
from gencli.cli.prompts import LineReader, check_arguments, each_line, note_file, read_prompt
from gencli.cli.speed import Speed
from gencli.cli.text_images import Images
from gencli.cli.text_output import JsonOutput, PlainOutput
from gencli.cli.text_printer import Printer, show_progress
from gencli.cli.text_work import Texts, TextWork, asks_template, checked, settings_of, without_template
from gencli.cli.warm import Serving
from gencli.errors import GencliError, UsageError
from gencli.many.blocks import blocks
from gencli.options import OUTPUT, Option, file, flag, rows_of, string
from gencli.spec import TextSpec
from gencli.text.events import Completion, Event, Failed, in_order
from gencli.text.grammar import on_one_line
from gencli.text.request import CONVERSATION, INPUT, MAX_SEED, TextRequest

if TYPE_CHECKING:
    from gencli.text.conversation import Conversation
    from gencli.text.generate import How

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
    images: Images = Images()
    speed: Speed = Speed()
    many: Many = Many()


@dataclass(eq=False, repr=False)
class ConversationStart:
    """What comes before the first message of a conversation."""

    # fmt: off
    chat: bool = flag(False, "--chat",
        "Send the prompt as a chat message (using the model's chat template) and print the reply.", CONVERSATION)
    system: str | None = string(None, "--system TEXT", "System prompt (turns on --chat).", CONVERSATION,
        also=("-sys", "--system-prompt", "--sys"))
    examples: Path | None = file("--examples FILE",
        "Example exchanges placed before the first message: JSON lines with `user` and `assistant`, or with "
        "`messages`.",
        CONVERSATION)
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
    null: bool = flag(False, "-0, --null", "End each sample printed with a NUL byte, as it may have newlines.", OUTPUT)
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
    gencli text --think off "Name a prime above 100." -m qwen3:4b
    gencli text --tools tools.json "Is it raining in Paris?" -m qwen3:4b
    gencli text --messages -m qwen3:4b < conversation.json
    gencli text -m deepseek-community/Janus-Pro-1B -i photo.png "What is this?"
    """,
)
def text(
    ctx: typer.Context,
    source: Prompts,
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
    source.images.check(source.prompt, source.speed, lines=source.lines)
    note_file(source.prompt, ctx.obj.note)
    looks = bool(source.images.image)
    if looks and start.examples is not None:
        raise UsageError("--examples are texts, and cannot be combined with -i/--image")
    asks = asks_template(ctx, looks=looks)
    chats = start.chat or start.system is not None or start.examples is not None or looks or asks
    request = request if chats and not looks else without_template(request)
    request = dataclasses.replace(request, answers=chats and not source.lines)
    if chats and (shown.echo or request.truncate):
        raise UsageError(f"{'--echo' if shown.echo else '--truncate'} is for raw prompts, and this is a conversation")
    conversation = start.conversation() if chats and not looks else None
    console: Console = ctx.obj
    fetch = fetching.finder(console, spec)
    source.images.check_files()
    adapters = [adapter.find(**fetch.keywords) for adapter in adapters]  # before a model that may be fetched
    checkpoint = fetch(spec.model)
    source.speed.fetch(fetch)
    pixels = source.images.read(checkpoint, console.note) if source.images.image else None
    many, records = source.many, source.many.records()
    if records is not None:
        largest = MAX_SEED - request.num_samples + 1
        asked = request.seed if is_given(ctx, "seed") else None
        request = dataclasses.replace(request, seed=many.seed(records, request.seed, asked, largest))
    settings = settings_of(request, spec, start, shown)
    if records is not None:
        many.note_settings(records, {"model": checkpoint.name, **settings}, rows_of(ctx.command.callback), console.note)
    if request.schema is not None and source.lines and not shown.null:  # a line of stdout for each of stdin
        request = dataclasses.replace(request, schema=on_one_line(request.schema))
    output: PlainOutput | JsonOutput = PlainOutput(echo=shown.echo, null=shown.null)
    if shown.json or records is not None:
        output = JsonOutput(checkpoint.name, settings, echo=shown.echo, shows=shown.json, records=records)
    reader = LineReader() if source.lines else None
    prompts = each_line(reader) if reader else iter([checked(request, read_prompt(source.prompt))])

    work = TextWork(checkpoint, adapters, spec, request, conversation, source.speed, fetching.offline)
    if pixels is not None:
        work = dataclasses.replace(work, pixels=pixels, system=start.system)
    printer = Printer(console, request, output, lines=source.lines, strict=source.strict, chats=chats)
    try:
        if many.asked and reader:
            _share(console, work, many, prompts, reader, printer, stats=reporting.stats)
        else:
            link = serving.connect(spec.threads) if source.speed.is_usual and pixels is None else None
            _generate(console, work, work.load(console, fetch, link), prompts, reader, printer, stats=reporting.stats)
    except KeyboardInterrupt:
        console.clear()
        output.interrupted()
        raise


def _generate(
    console: Console,
    work: TextWork,
    texts: Texts,
    prompts: Iterator[str | GencliError],
    reader: LineReader | None,
    printer: Printer,
    *,
    stats: bool,
) -> None:
    """Continue prompts here, or in the server, block by block as workers do. Raise GencliError as `Printer.write`."""
    more: How = {"ready": reader.ready} if reader else {}

    def events() -> Iterator[Event]:
        for first, block in blocks(prompts, work.block):
            yield from texts.events(first, block, printer.seen, **more)

    try:
        printer.write(show_progress(console, texts.stats, in_order(events())), lambda: texts.info.context)
    finally:
        console.clear()
        if stats and texts.stats.prompt_tokens:
            console.stats(f"{texts.info.description}, seed {work.request.seed}")
            console.stats(f"load {texts.load_seconds:.2f} s; {texts.stats}")


def _share(
    console: Console,
    work: TextWork,
    many: Many,
    prompts: Iterator[str | GencliError],
    reader: LineReader,
    printer: Printer,
    *,
    stats: bool,
) -> None:
    """Have workers continue prompts. Raise GencliError as `Printer.write`."""
    samples, records = work.request.num_samples, printer.output.records
    crew = many.crew(console, work, prompts, reader, records)

    def events() -> Iterator[Event]:
        for answer in shown_answers(console, crew, reader, records):
            first = answer.number * samples
            if isinstance(answer.line, str):
                printer.seen[answer.number] = answer.line
            printer.more[answer.number] = {"worker": answer.worker, "seconds": round(answer.seconds, 3)}
            if answer.error is not None:
                yield Failed(first, answer.error, first + samples)
                continue
            for event in answer.made or ():
                crew.count.tokens += event.completion_tokens if isinstance(event, Completion) else 0
                if records is None or event.index not in records:
                    yield event

    def context() -> int:
        assert crew.info is not None  # once there is an answer
        return crew.info.context

    try:
        printer.write(events(), context)
    finally:
        crew.end()
        console.clear()
        if stats:
            console.stats(f"{crew.info.description if crew.info else work.checkpoint.name}, seed {work.request.seed}")
            console.stats(described(crew))


def _check_combinations(source: Prompts, shown: Shown, request: TextRequest) -> None:
    """Raise UsageError for options that exclude each other."""
    if source.lines and source.prompt:
        raise UsageError("--lines reads prompts from stdin and cannot be combined with PROMPT")
    if source.strict and not source.lines:
        raise UsageError("--strict needs --lines")
    if shown.json and shown.null:
        raise UsageError("--json ends its objects with newlines and does not go with --null")
    if source.many.resume is not None and shown.null:
        raise UsageError("--resume ends its records with newlines and does not go with --null")
    if request.logprobs is not None and not shown.json and source.many.resume is None:
        raise UsageError("--logprobs is a part of --json's output", "add --json")
    source.many.check(source.lines, ["--prompt-cache"] * (source.speed.prompt_cache is not None))
