"""`gencli chat`: a conversation at the terminal, or one answer in a pipe."""

from __future__ import annotations

import contextlib
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from gencli import signals
from gencli.atomic import write_over
from gencli.checkpoints.assets import LoraRef
from gencli.cli.console import Console, is_terminal
from gencli.cli.options import Fetching, Reporting, command
from gencli.cli.prompts import read_stdin
from gencli.cli.sinks import TextSink, stdout_bytes
from gencli.cli.text import ConversationStart, open_text_model
from gencli.cli.text_output import why_empty
from gencli.errors import GencliError, UsageError
from gencli.options import Bounds, integer
from gencli.spec import TextSpec
from gencli.text.events import CharactersLost, Completion, ReasoningDelta, TextDelta
from gencli.text.request import LENGTH, MAX_SEED, TextRequest

if TYPE_CHECKING:
    from gencli.text.chat import ChatSession

BLOCK = '"""'
PROMPT, MORE = "> ", ". "

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@dataclass(frozen=True)
class ChatRequest(TextRequest):
    """A request for an answer; its default length differs from that of a text."""

    # fmt: off
    max_tokens: int | None = integer(None, "-n, --max-tokens, --max-new-tokens N", "Tokens of an answer at most",
        LENGTH, bounds=Bounds(1), usual=1024, config_key="max_new_tokens")
    # fmt: on


@command(
    app,
    epilog="""Examples:
    gencli chat
    gencli chat -m ~/checkpoints/SmolLM2-360M-Instruct --system "Answer briefly."
    git diff | gencli chat --system "Write a commit message for this change."
    """,
    without={"chat", "truncate", "num_samples", "logprobs"},
)
def chat(
    ctx: typer.Context,
    start: ConversationStart,
    request: ChatRequest,
    spec: TextSpec,
    fetching: Fetching,
    reporting: Reporting,
) -> None:
    """Talk with a language model. Ctrl-C stops an answer, Ctrl-D leaves, /help tells the rest.

    When stdin is not a terminal, all of it is one message: its answer goes to stdout, and that is it.

    The model is spoken to as its chat template says; one without a template gets a plain transcript.
    """
    adapters = [LoraRef.parse(one) for one in spec.lora]
    console: Console = ctx.obj
    stdout_bytes()  # fails now rather than after the work
    conversation = start.conversation()
    fetch = fetching.finder(console, spec)
    checkpoint = fetch(spec.model)
    adapters = [adapter.find(**fetch.keywords) for adapter in adapters]
    message = None if is_terminal(sys.stdin) else read_stdin()
    if message is not None and not message.strip():
        raise GencliError("stdin holds no message", "at a terminal `gencli chat` is a conversation")

    model = open_text_model(console, checkpoint, spec, adapters)
    from gencli.text.chat import ChatModel, ChatSession

    session = ChatSession(ChatModel(model), request, conversation)
    repl = Repl(console, session, request.seed)
    try:
        if message is not None:
            repl.answer(message)
        else:
            if model.tokenizer.chat_template is None:
                console.note(f"{model.name} has no chat template: it gets a plain transcript")
            console.note(f"talking with {model.name}; /help tells what can be typed, Ctrl-D leaves")
            repl.run()
    finally:
        if reporting.stats:
            console.stats(f"{model.describe()}, seed {request.seed}")
            console.stats(f"load {model.load_seconds:.2f} s; {session.stats}")


class Repl:
    """A conversation: messages, which are answered on stdout, and commands that begin with a slash.

    The seed of the first answer is `seed`; each answer has one more than the one before.
    """

    def __init__(self, console: Console, session: ChatSession, seed: int):
        self.console = console
        self.session = session
        self.seed = seed
        self.conversation = session.conversation
        self.commands: dict[str, Callable[[str], None]] = {
            "/system": self.set_system,
            "/reset": self.reset,
            "/save": self.save,
            "/load": self.load,
            "/seed": self.set_seed,
            "/help": self.help,
        }

    def run(self) -> None:
        """Read messages until /exit or Ctrl-D. An error is printed, and the conversation continues."""
        use_line_editing()
        while True:
            try:
                message = read_message()
                if message.strip() in ("/exit", "/quit", "/bye"):
                    return
                self.take(message)
            except EOFError:
                self.console.say("")
                return
            except KeyboardInterrupt:
                signals.answered()
                self.console.say("")
                self.console.note("stopped; Ctrl-D or /exit leaves")
            except GencliError as error:
                self.console.error(error)

    def take(self, message: str) -> None:
        """Answer a message, or run a command."""
        if message.startswith("//"):
            self.answer(message[1:])
        elif message.startswith("/"):
            name, _, rest = message.partition(" ")
            if name not in self.commands:
                raise UsageError(f"no such command: {name}", "/help lists them; // begins a message with a slash")
            self.commands[name](rest.strip())
        elif message.strip():
            self.answer(message)

    def answer(self, message: str) -> None:
        """Stream the answer to stdout and add it to the conversation, even if it is interrupted.

        Raise GencliError when there is none; on KeyboardInterrupt the line that was begun is ended.
        """
        prompt = self.session.prepare(message)
        if count := self.session.left_out:
            model = self.session.chat_model.model
            self.console.note(
                f"the conversation has outgrown the context of {model.max_length} tokens: its oldest {count} "
                "messages are left out from here on, the system prompt is not"
            )
        seed, self.seed = self.seed, self.seed + 1
        sink = TextSink()
        events = self.session.answer(message, prompt, seed)
        try:
            for event in events:
                if isinstance(event, CharactersLost):
                    self.console.note(f"{event.count} characters are not in the model's vocabulary and are lost")
                elif isinstance(event, ReasoningDelta):
                    self.console.aside(event.text)
                elif isinstance(event, TextDelta):
                    self.console.end_aside()
                    sink.write(event.text)
                elif isinstance(event, Completion):
                    self.console.end_aside()
                    sink.end()
                    self._note_end(event)
        except KeyboardInterrupt:
            self.console.end_aside()
            sink.interrupted()
            raise
        finally:
            events.close()

    def _note_end(self, sample: Completion) -> None:
        """Note an end that the text itself does not show."""
        if reason := why_empty(sample):
            self.console.note(reason)
        elif sample.finish_reason == "length":
            self.console.note(f"cut off after {sample.completion_tokens} tokens (see --max-tokens)")

    def set_system(self, text: str) -> None:
        """`/system [TEXT]`: show or change the system prompt; `""` takes it away."""
        if text:
            self.conversation.system = None if text in ('""', "''") else text
        self.console.say(self.conversation.system or "there is no system prompt")

    def reset(self, rest: str) -> None:
        """`/reset`: forget what was said; the system prompt stays."""
        self.conversation.reset()
        self.console.say("forgotten")

    def save(self, name: str) -> None:
        """`/save FILE`: write the conversation as JSON."""
        path = _path(name, "/save")
        try:
            write_over(path, self.conversation.dump())
        except OSError as error:
            raise GencliError(f"cannot write {path}: {error.strerror}") from None
        self.console.say(f"{len(self.conversation.turns)} messages saved in {path}")

    def load(self, name: str) -> None:
        """`/load FILE`: go on with a conversation that was saved."""
        self.conversation.load(path := _path(name, "/load"))
        self.console.say(f"{len(self.conversation.turns)} messages loaded from {path}")

    def set_seed(self, number: str) -> None:
        """`/seed [N]`: show or set the seed of the next answer; each one after it has one more."""
        if number:
            if not number.isdecimal() or int(number) > MAX_SEED:
                raise UsageError(f"/seed {number}: wants a whole number from 0 to {MAX_SEED}")
            self.seed = int(number)
        self.console.say(f"seed {self.seed}")

    def help(self, rest: str) -> None:
        """`/help`: this list."""
        docs = [(command.__doc__ or "").partition(": ") for command in self.commands.values()]
        rows = [(left.strip("`"), text) for left, _, text in docs]
        rows += [
            ("/exit", "leave, as Ctrl-D does."),
            ("//…", "a message that begins with a slash."),
            ("…\\", "the message goes on in the next line."),
            ('"""…"""', "a message of several lines."),
            ("Ctrl-C", "stop an answer; what was said of it stays."),
        ]
        self.console.say("\n".join(f"{left:18}{text}" for left, text in rows))


def read_message() -> str:
    """Read a message: one line, several lines joined by backslashes at their ends, or a block in triple quotes.

    Raise EOFError when the terminal is closed (Ctrl-D), GencliError for bytes that are no text.
    """
    line = _read_line(PROMPT)
    if line.lstrip().startswith(BLOCK):
        block = line.lstrip()[len(BLOCK) :]
        while not block.rstrip().endswith(BLOCK):
            block += "\n" + _read_line(MORE)
        return block.rstrip()[: -len(BLOCK)].strip("\n")
    while line.endswith("\\"):
        line = line[:-1] + "\n" + _read_line(MORE)
    return line


def use_line_editing() -> None:
    """Enable line editing and history if the system has them."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401 (its import is what changes `input`)


def _read_line(prompt: str) -> str:
    """Read one line. The prompt goes to the terminal: to stderr if stdout is something else."""
    try:
        if is_terminal(sys.stdout):
            return input(prompt)
        if sys.stderr is not None:
            sys.stderr.write(prompt)
            sys.stderr.flush()
        line = sys.stdin.readline()
    except UnicodeDecodeError:
        raise GencliError("that line is not valid UTF-8") from None
    if not line:
        raise EOFError
    return line.removesuffix("\n")


def _path(name: str, command: str) -> Path:
    """Return the path in `name`, with `~` and quotes as in a shell. Raise UsageError if it is empty."""
    try:
        [word] = shlex.split(name)
    except ValueError:
        word = name
    if not word:
        raise UsageError(f"{command} wants the name of a file", f"as in {command} talk.json")
    return Path(word).expanduser()
