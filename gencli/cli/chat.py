"""`gencli chat`: a conversation at the terminal, or one answer in a pipe."""

from __future__ import annotations

import random
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from gencli import devices, stopping
from gencli.atomic import write_over
from gencli.checkpoints.assets import LoraRef
from gencli.checkpoints.find import find
from gencli.cli import options
from gencli.cli import text_options as settings
from gencli.cli.chat_input import read_message, use_line_editing
from gencli.cli.chat_talk import Talk, new_conversation
from gencli.cli.console import Console, is_terminal
from gencli.cli.download import show_download
from gencli.cli.help import SETTINGS, Command
from gencli.cli.prompts import read_stdin
from gencli.cli.sinks import stdout_bytes
from gencli.cli.text import DEFAULT_MODEL
from gencli.errors import GencliError, UsageError
from gencli.text.request import MAX_SEED, TextRequest, parse_logit_bias

MAX_TOKENS = 1024

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command(
    cls=Command,
    context_settings=SETTINGS,
    epilog="""Examples:
    gencli chat
    gencli chat -m ~/checkpoints/SmolLM2-360M-Instruct --system "Answer briefly."
    git diff | gencli chat --system "Write a commit message for this change."
    """,
)
def chat(
    ctx: typer.Context,
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
    max_tokens: Annotated[
        int,
        settings.number(
            "-n",
            "--max-tokens",
            "--max-new-tokens",
            metavar="N",
            help=f"Tokens of an answer at most (default: {MAX_TOKENS})",
            panel=settings.LENGTH,
        ),
    ] = MAX_TOKENS,
    stop: settings.Stop = None,
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
    """Talk with a language model. Ctrl-C stops an answer, Ctrl-D leaves, /help tells the rest.

    When stdin is not a terminal, all of it is one message: its answer goes to stdout, and that is it.

    The model is spoken to as its chat template says; one without a template gets a plain transcript.
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
    )
    console: Console = ctx.obj
    stdout_bytes()  # fails now rather than after the work
    conversation = new_conversation(system, examples)
    fetching: dict[str, Any] = {"offline": offline, "progress": show_download(console), "allow_pickle": allow_pickle}
    source = find(model, **fetching)
    adapters = [adapter.find(**fetching) for adapter in adapters]
    message = None if is_terminal(sys.stdin) else read_stdin()
    if message is not None and not message.strip():
        raise GencliError("stdin holds no message", "at a terminal `gencli chat` is a conversation")

    console.progress(f"loading {source.name}")
    with stopping.heeded():
        from gencli.text.chat import ChatModel, ChatSession
        from gencli.text.load import open_model

    loaded = open_model(
        source, device=device, dtype=dtype, threads=threads, adapters=adapters, allow_pickle=allow_pickle
    )
    console.clear()
    for note in loaded.notes:
        console.note(note)
    session = ChatSession(ChatModel(loaded), request, conversation)
    talk = Talk(console, session, request.seed)
    try:
        if message is not None:
            talk.answer(message)
        else:
            if loaded.tokenizer.chat_template is None:
                console.note(f"{loaded.name} has no chat template: it gets a plain transcript")
            console.note(f"talking with {loaded.name}; /help tells what can be typed, Ctrl-D leaves")
            Terminal(talk).run()
    finally:
        if stats:
            console.stats(f"{loaded.describe()}, seed {request.seed}")
            console.stats(f"load {loaded.load_seconds:.2f} s; {session.stats}")


class Terminal:
    """The conversation at a terminal: messages, and commands that begin with a slash."""

    def __init__(self, talk: Talk):
        self.talk = talk
        self.console = talk.console
        self.conversation = talk.session.conversation
        self.commands: dict[str, Callable[[str], None]] = {
            "/system": self.system,
            "/reset": self.reset,
            "/save": self.save,
            "/load": self.load,
            "/seed": self.seed,
            "/help": self.help,
        }

    def run(self) -> None:
        """Until /exit or Ctrl-D. Errors are told, and the conversation goes on."""
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
                self.console.say("")
                self.console.note("stopped; Ctrl-D or /exit leaves")
            except GencliError as error:
                self.console.error(error)

    def take(self, message: str) -> None:
        """A message or a command."""
        if message.startswith("//"):
            self.talk.answer(message[1:])
        elif message.startswith("/"):
            name, _, rest = message.partition(" ")
            if name not in self.commands:
                raise UsageError(f"no such command: {name}", "/help lists them; // begins a message with a slash")
            self.commands[name](rest.strip())
        elif message.strip():
            self.talk.answer(message)

    def system(self, text: str) -> None:
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

    def seed(self, number: str) -> None:
        """`/seed [N]`: show or set the seed of the next answer; each one after it has one more."""
        if number:
            if not number.isdecimal() or int(number) > MAX_SEED:
                raise UsageError(f"/seed {number}: wants a whole number from 0 to {MAX_SEED}")
            self.talk.seed = int(number)
        self.console.say(f"seed {self.talk.seed}")

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


def _path(name: str, command: str) -> Path:
    """The file that was named, `~` and quotes as in a shell. Raises UsageError when there is none."""
    try:
        [word] = shlex.split(name)
    except ValueError:
        word = name
    if not word:
        raise UsageError(f"{command} wants the name of a file", f"as in {command} talk.json")
    return Path(word).expanduser()
