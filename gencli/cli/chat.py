"""`gencli chat`: a conversation at the terminal, or one reply in a pipe."""

from __future__ import annotations

import dataclasses
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

import typer

from gencli.checkpoints.assets import LoraRef
from gencli.checkpoints.find import Source
from gencli.cli.chat_history import Kept, find_kept, folder, listed
from gencli.cli.console import Console, is_terminal
from gencli.cli.options import Asked, Fetching, Reporting, command
from gencli.cli.prompts import read_stdin
from gencli.cli.sinks import stdout_bytes, write_lines
from gencli.cli.speed import Speed, note_no_conversation, open_text_model, open_warm_text_model
from gencli.cli.text import ConversationStart
from gencli.cli.warm import Serving
from gencli.errors import GencliError, UsageError
from gencli.options import flag, integer, string
from gencli.spec import TextSpec
from gencli.text.request import (
    ANSWER_TOKENS,
    CONVERSATION,
    LENGTH,
    TEMPLATE_KWARGS,
    THINK,
    TOKENS,
    TOKENS_ELSEWHERE,
    TextRequest,
)

if TYPE_CHECKING:
    from gencli.serve.client import RemoteChat, RemoteText
    from gencli.serve.wire import Link
    from gencli.text.chat import ChatSession
    from gencli.text.conversation import Conversation
    from gencli.text.load import TextModel

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@dataclass(frozen=True)
class ChatRequest(TextRequest):
    """A request for a reply; its default length differs from that of a text."""

    # fmt: off
    max_tokens: int | None = integer(None, "-n, --max-tokens, --max-new-tokens N", "Maximum tokens per reply",
        LENGTH, bounds=TOKENS, usual=ANSWER_TOKENS, config_key="max_new_tokens", also=TOKENS_ELSEWHERE)
    think: str | None = THINK.field(None)
    chat_template_kwargs: str | None = TEMPLATE_KWARGS.field(None)
    # fmt: on
    answers: bool = True


@dataclass(eq=False, repr=False)
class ChatStart(ConversationStart):
    """What a conversation begins with: a system prompt and examples, or an earlier conversation."""

    # fmt: off
    system: str | None = string(None, "--system TEXT", "System prompt.", CONVERSATION,
        also=("-sys", "--system-prompt", "--sys"))
    resume_last: bool = flag(False, "-c, --continue", "Continue the last conversation.", CONVERSATION)
    resume: str | None = string(None, "--resume ID", "Continue this conversation of --list.", CONVERSATION)
    list: bool = flag(False, "--list", "List the conversations that are kept, the newest last.", CONVERSATION)
    no_history: bool = flag(False, "--no-history", "Do not keep this conversation.", CONVERSATION)
    # fmt: on


@command(
    app,
    epilog="""Examples:
    gencli chat -m smollm2
    gencli chat -c
    gencli chat -m ~/models/SmolLM2-360M-Instruct --system "Answer briefly."
    git diff | gencli chat -m qwen3:4b --system "Write a commit message for this change."
    """,
    without={"chat", "truncate", "num_samples", "logprobs", "batch", "tools", "tool_choice", "messages"},
)
def chat(
    ctx: typer.Context,
    start: ChatStart,
    request: ChatRequest,
    speed: Speed,
    asked: Asked[TextSpec],
    fetching: Fetching,
    serving: Serving,
    reporting: Reporting,
) -> None:
    """Chat with a language model. Ctrl-C stops a reply, Ctrl-D quits, /help lists commands.

    If stdin is not a terminal, all of it is sent as one message and the reply is printed; `gencli text --chat --lines`
    answers each line by itself.

    Uses the model's chat template; models without one see a plain transcript.
    """
    if start.list:
        if lines := listed():
            write_lines(lines)
        else:
            ctx.obj.note("no conversations are kept yet")
        return
    if start.resume is not None and start.resume_last:
        raise UsageError("--continue and --resume cannot be combined", "--continue takes the last conversation")
    kept = find_kept(start.resume) if start.resume_last or start.resume is not None else None
    spec = asked.make(**({"model": kept.model} if kept and kept.model and "model" not in asked.given else {}))
    console: Console = ctx.obj
    stdout_bytes()  # fails now rather than after the work
    conversation = start.conversation()
    if kept is not None:
        conversation.load(kept.path)
        conversation.system = conversation.system if start.system is None else start.system
    opener = Opener(console, spec, fetching)
    source = opener.find(spec.model)
    speed.fetch(opener.fetch)
    message = None if is_terminal(sys.stdin) else read_stdin()
    if message is not None and not message.strip():
        raise GencliError("stdin has no message", "without a pipe, `gencli chat` is a conversation")
    if message is not None and start.system is None and (more := message.strip().count("\n")):
        console.note(
            f"the {more + 1} lines of stdin are one message; `gencli text --chat --lines` answers each by itself"
        )
    link = serving.connect(spec.threads) if message is not None and speed.is_usual else None
    model = opener.open(source, link)
    note_no_conversation(console, model)
    from gencli.cli.chat_commands import Repl

    session = _session(model, request, conversation)
    session.how |= speed.ways(console, opener.fetch, model, spec, session.stats)
    if message is None and not start.no_history:
        kept = kept or Kept.new(spec.model)
    repl = Repl(console, session, request.seed, None if message is not None else kept, opener.named)
    try:
        if message is not None:
            repl.answer(message)
        else:
            console.note(f"Chatting with {model.name}. /help lists commands, Ctrl-D quits.")
            if turns := len(conversation.turns):
                console.note(f"continuing {kept.id if kept else 'a conversation'} after {turns} messages")
            repl.run(None if start.no_history else folder().parent / "chat-input")
    finally:
        if reporting.stats:
            model = session.chat_model.model
            console.stats(f"{model.describe()}, seed {request.seed}")
            console.stats(f"load {model.load_seconds:.2f} s; {session.stats}")


def _session(
    model: TextModel | RemoteText, request: ChatRequest, conversation: Conversation
) -> ChatSession | RemoteChat:
    """Return a conversation with a model: in this process, or in the server."""
    if hasattr(model, "converse"):
        return model.converse(request, conversation)
    from gencli.text.chat import ChatModel, ChatSession

    return ChatSession(ChatModel(model), request, conversation)


class Opener:
    """Finds and opens language models as the command line says, also those that /model names later."""

    def __init__(self, console: Console, spec: TextSpec, fetching: Fetching):
        self.console, self.spec, self.fetch = console, spec, fetching.finder(console, spec)
        self.adapters = [LoraRef.parse(one) for one in spec.lora]

    def find(self, name: str) -> Source:
        """Find a model, and before it the adapters, as it may have to be fetched. Raise GencliError."""
        self.adapters = [adapter.find(**self.fetch.keywords) for adapter in self.adapters]
        return self.fetch(name)

    def open(self, source: Source, link: Link | None) -> TextModel | RemoteText:
        """Open a model that was found. Raise GencliError."""
        return open_warm_text_model(self.console, source, self.spec, self.adapters, link)

    def named(self, name: str) -> TextModel:
        """Find and open another model. Raise GencliError."""
        model = open_text_model(self.console, self.fetch(name), dataclasses.replace(self.spec, model=name), [])
        note_no_conversation(self.console, model)
        return model
