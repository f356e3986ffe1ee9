"""A conversation: messages are answered on stdout, lines that start with a slash are commands."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gencli import signals
from gencli.atomic import write_over
from gencli.cli.chat_history import Kept
from gencli.cli.console import Console
from gencli.cli.sinks import TextSink
from gencli.cli.text_output import why_cut, why_empty
from gencli.errors import GencliError, UsageError, counted, did_you_mean
from gencli.json_files import read_bytes
from gencli.options import Option, rows
from gencli.text.events import CharactersLost, Completion, ReasoningDelta, TextDelta
from gencli.text.request import MAX_SEED, SamplingParams, TextRequest

if TYPE_CHECKING:
    from gencli.serve.client import RemoteChat
    from gencli.text.chat import ChatSession
    from gencli.text.load import TextModel

EXITS = ("/exit", "/quit", "/bye")


class Repl:
    """A conversation at a terminal, or one reply. seed: of the first reply; each further one has one more.

    kept: the file that it is kept in, if it is. open_model: finds and opens the model of a name.
    """

    def __init__(
        self,
        console: Console,
        session: ChatSession | RemoteChat,
        seed: int,
        kept: Kept | None,
        open_model: Callable[[str], TextModel],
    ):
        self.console, self.seed, self.kept, self.open_model = console, seed, kept, open_model
        self.session: Any = session
        self.conversation = session.conversation
        self.attached: list[str] = []  # texts of files that go with the next message
        self.wraps = False
        self.commands: dict[str, Callable[[str], None]] = {
            "/system": self.set_system,
            "/set": self.set_option,
            "/model": self.set_model,
            "/file": self.attach,
            "/again": self.again,
            "/edit": self.edit,
            "/copy": self.copy,
            "/reset": self.reset,
            "/save": self.save,
            "/load": self.load,
            "/seed": self.set_seed,
            "/help": self.help,
        }

    def run(self, history: Path | None) -> None:
        """Read messages until /exit or Ctrl-D. An error is printed, and the conversation continues.

        history: the file of what was typed in earlier sessions, if it is kept.
        """
        from gencli.cli.chat_terminal import Prompter

        self.wraps = True
        prompter = Prompter(history, [*self.commands, *EXITS[:1]])
        while True:
            answering = False
            try:
                message = prompter.read()
                answering = True
                if message.strip() in EXITS:
                    return
                self.take(message)
            except EOFError:
                return
            except KeyboardInterrupt:
                signals.answered()
                self.console.say("")
                self.console.note("stopped; Ctrl-D or /exit quits" if answering else "Ctrl-D or /exit quits")
            except GencliError as error:
                self.console.error(error)

    def take(self, message: str) -> None:
        """Answer a message, or run a command."""
        if message.startswith("//"):
            self.answer(message[1:])
        elif message.startswith("/"):
            name, _, rest = message.partition(" ")
            if name not in self.commands:
                hint = did_you_mean(name, self.commands) or "/help lists them; // starts a message with a slash"
                raise UsageError(f"no such command: {name}", hint)
            self.commands[name](rest.strip())
        elif message.strip():
            self.answer("\n\n".join([*self.attached, message]))
            self.attached = []

    def answer(self, message: str) -> None:
        """Stream the reply to stdout and add it to the conversation, even if it is interrupted.

        Raise GencliError when there is none; on KeyboardInterrupt the line that was begun is ended.
        """
        prompt = self.session.prepare(message)
        if count := self.session.left_out:
            model = self.session.chat_model.model
            self.console.note(
                f"the conversation no longer fits the context of {model.max_length} tokens: the oldest "
                f"{counted(count, 'message')} will be left out; the system prompt stays"
            )
        seed, self.seed = self.seed, self.seed + 1
        sink = self._sink()
        events = self.session.answer(message, prompt, seed)
        try:
            for event in events:
                if isinstance(event, CharactersLost):
                    lost = counted(event.count, "character")
                    self.console.note(f"the model's vocabulary lacks {lost} of the message")
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
            if self.kept is not None and self.conversation.turns:
                self.kept.save(self.conversation)

    def _sink(self) -> TextSink:
        sink = TextSink()
        if not (self.wraps and sink.terminal):
            return sink
        from gencli.cli.chat_terminal import WrappedSink

        return WrappedSink(lambda: self.console.size.columns - 1)

    def _note_end(self, sample: Completion) -> None:
        """Note an end that the text itself does not show."""
        context = self.session.chat_model.model.max_length
        if reason := why_empty(sample, context) or why_cut(sample, context):
            self.console.note(reason)

    def set_system(self, text: str) -> None:
        """`/system [TEXT]`: show or change the system prompt; `""` removes it."""
        if text:
            self.conversation.system = None if text in ('""', "''") else text
        self.console.say(self.conversation.system or "no system prompt")

    def set_option(self, text: str) -> None:
        """`/set [NAME VALUE]`: show or change a setting, as in /set temperature 0.2."""
        words = text.split()
        options = _settings()
        request = self.session.request
        if not words:
            completed = request.resolve(self.session.chat_model.model.generation_config).completed()
            self.console.say("\n".join(f"{name:18}{completed[field]}" for name, (field, _) in options.items()))
            return
        name, value = words[0].lstrip("-"), "".join(words[1:]).lstrip("=")
        if name not in options:
            raise UsageError(f"no setting {name!r}", did_you_mean(name, options) or f"settings: {', '.join(options)}")
        field, option = options[name]
        try:
            found: object = option.kind(value)
        except ValueError:
            raise UsageError(f"/set {name}: {value!r} is not a number", f"as in /set {name} {option.usual}") from None
        if hasattr(request, field):
            self.session.request = dataclasses.replace(request, **{field: found})
        else:
            changed = dataclasses.replace(request.sampling, **{field: found})
            self.session.request = dataclasses.replace(request, sampling=changed)
        self.console.say(f"{name} {found}")

    def set_model(self, name: str) -> None:
        """`/model [NAME]`: show or change the model; the conversation stays."""
        if name:
            from gencli.text.chat import ChatModel, ChatSession

            model = self.open_model(name)
            old = self.session
            chat_model = ChatModel(model)
            # the format's own stops, which the request has beside the user's, are the old model's
            stops = old.request.stop[: len(old.request.stop) - len(old.chat_model.format.stops)]
            request = dataclasses.replace(old.request, stop=stops)
            self.session = ChatSession(chat_model, request, self.conversation)
            self.session.stats, self.conversation.left_out = old.stats, 0
            old.chat_model.close()
            if self.kept is not None:
                self.kept.model = name
        self.console.say(self.session.chat_model.model.name)

    def attach(self, name: str) -> None:
        """`/file PATH`: send a text file along with the next message."""
        path = _path(name, "/file")
        if not path.is_file():
            raise GencliError(f"no such file: {path}")
        try:
            text = read_bytes(path).decode("utf-8-sig")
        except UnicodeDecodeError:
            raise GencliError(f"{path} is not UTF-8 text") from None
        self.attached.append(f"{path.name}:\n```\n{text.rstrip()}\n```")
        self.console.say(f"{counted(len(text.splitlines()), 'line')} of {path.name} will go with the next message")

    def again(self, rest: str) -> None:
        """`/again`: replace the last reply by another one."""
        self._replace(self._last_message())

    def edit(self, rest: str) -> None:
        """`/edit`: change the last message in your editor, and send it instead."""
        from gencli.cli.chat_terminal import edit

        message = edit(self._last_message())
        if not message.strip():
            raise GencliError("the message is empty: nothing was sent")
        self._replace(message)

    def _last_message(self) -> str:
        """Return the user's last message. Raise GencliError if there is none."""
        messages = [turn["content"] for turn in self.conversation.turns if turn["role"] == "user"]
        if not messages:
            raise GencliError("there is no message yet")
        return messages[-1]

    def _replace(self, message: str) -> None:
        """Answer a message in place of the last one. If there is no reply, the last one and its reply stay."""
        turns, before = self.conversation.turns, self.conversation.left_out
        at = max(i for i, turn in enumerate(turns) if turn["role"] == "user")
        removed = turns[at:]
        del turns[at:]
        self.conversation.left_out = min(before, at)
        try:
            self.answer(message)
        finally:
            if len(turns) == at:
                turns.extend(removed)

    def copy(self, rest: str) -> None:
        """`/copy`: copy the last reply to the clipboard."""
        from gencli.cli.chat_terminal import copy

        replies = [turn["content"] for turn in self.conversation.turns if turn["role"] == "assistant"]
        if not replies:
            raise GencliError("there is no reply yet")
        copy(replies[-1], self.console)
        self.console.say(f"copied {counted(len(replies[-1]), 'character')}")

    def reset(self, rest: str) -> None:
        """`/reset`: clear the conversation; the system prompt stays."""
        self.conversation.reset()
        if self.kept is not None:
            self.kept = Kept.new(self.kept.model)
        self.console.say("conversation cleared")

    def save(self, name: str) -> None:
        """`/save FILE`: write the conversation as JSON."""
        path = _path(name, "/save")
        try:
            write_over(path, self.conversation.dump())
        except OSError as error:
            raise GencliError(f"cannot write {path}: {error.strerror}") from None
        self.console.say(f"{counted(len(self.conversation.turns), 'message')} saved in {path}")

    def load(self, name: str) -> None:
        """`/load FILE`: continue a saved conversation."""
        self.conversation.load(path := _path(name, "/load"))
        self.console.say(f"{counted(len(self.conversation.turns), 'message')} loaded from {path}")

    def set_seed(self, number: str) -> None:
        """`/seed [N]`: show or set the seed of the next reply; later replies use N+1, N+2, …"""
        if number:
            if not number.isdecimal() or int(number) > MAX_SEED:
                raise UsageError(f"/seed {number}: expected an integer from 0 to {MAX_SEED}")
            self.seed = int(number)
        self.console.say(f"seed {self.seed}")

    def help(self, rest: str) -> None:
        """`/help`: this list."""
        docs = [(command.__doc__ or "").partition(": ") for command in self.commands.values()]
        table = [(left.strip("`"), text) for left, _, text in docs]
        table += [
            ("/exit", "quit (also Ctrl-D)."),
            ("//…", "a message that starts with a slash."),
            ("Alt-Enter", "a new line; so does Enter after a backslash."),
            ('"""…"""', "a message of several lines."),
            ("Ctrl-C", "stop the reply; the partial reply is kept."),
            ("Up, Down", "earlier messages, also of earlier sessions."),
        ]
        self.console.say("\n".join(f"{left:18}{text}" for left, text in table))


def _settings() -> dict[str, tuple[str, Option]]:
    """Return the settings that a conversation may change: name → field and row."""
    found = [*rows(SamplingParams), *rows(TextRequest)]
    kept = [(field, option) for field, option in found if option.usage and option.usual is not None]
    return {option.name(field)[2:]: (field, option) for field, option in kept}


def _path(name: str, command: str) -> Path:
    """Return the path in `name`, with `~` and quotes as in a shell. Raise UsageError if it is empty."""
    try:
        [word] = shlex.split(name)
    except ValueError:
        word = name
    if not word:
        raise UsageError(f"{command}: expected a file name", f"as in {command} talk.json")
    return Path(word).expanduser()
