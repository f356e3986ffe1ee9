"""A conversation: messages are answered on stdout, lines that start with a slash are commands."""

from __future__ import annotations

import dataclasses
import os
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gencli import signals
from gencli.cli import chat_settings
from gencli.cli.chat_history import Kept
from gencli.cli.console import Console
from gencli.cli.sinks import TextSink
from gencli.cli.text_output import why_cut, why_empty
from gencli.errors import GencliError, UsageError, counted, did_you_mean
from gencli.json_files import read_bytes
from gencli.text.conversation import check_file
from gencli.text.events import CharactersLost, Completion, ReasoningDelta, TextDelta
from gencli.text.request import MAX_SEED

if TYPE_CHECKING:
    from gencli.serve.client import RemoteChat
    from gencli.text.chat import ChatSession
    from gencli.text.load import TextModel

# What ollama and llama.cpp call them.
OTHER_NAMES = {
    "/bye": "/exit",
    "/quit": "/exit",
    "/clear": "/reset",
    "/regen": "/again",
    "/read": "/file",
    "/?": "/help",
}
ALONE = ("/again", "/edit", "/copy", "/reset")  # to do them in spite of further words may be what nobody wants


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
        self.attached: dict[str, str] = {}  # texts of files that go with the next message, by path
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
            "/exit": self.exit,
        }

    def run(self, history: Path | None) -> None:
        """Read messages until /exit or Ctrl-D. An error is printed, and the conversation continues.

        history: the file of what was typed in earlier sessions, if it is kept.
        """
        from gencli.cli.chat_terminal import Prompter

        self.wraps = True
        prompter = Prompter(history, self.commands, chat_settings.names())
        while True:
            answering = False
            try:
                message = prompter.read()
                answering = True
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
        """Answer a message, or run a command. Raise EOFError for the one that quits."""
        line = message.strip()
        if message.startswith("//"):
            self._send(message[1:])
        elif line.startswith("/") and not line.startswith("//"):
            self._command(*line.split(maxsplit=1))
        elif line:
            self._send(message)

    def _command(self, typed: str, rest: str = "") -> None:
        name = OTHER_NAMES.get(typed.lower(), typed.lower())
        if name not in self.commands:
            close = did_you_mean(name, [*self.commands, *OTHER_NAMES])
            raise UsageError(
                f"no such command: {typed:.80}", close or "/help lists them; // starts a message with a slash"
            )
        if rest and name in ALONE:
            raise UsageError(f"{name} takes nothing, but there is {rest!r:.80}", f"{name} alone does it")
        self.commands[name](rest)

    def _send(self, message: str) -> None:
        """Answer a message, with the files that go with it. They stay if it is stopped before there is a reply; of an
        error the largest may be the reason, and does not."""
        files, self.attached = self.attached, {}
        before = len(self.conversation.turns)
        try:
            self.answer("\n\n".join([*files.values(), message]))
        except GencliError:
            if files:
                largest = max(files, key=lambda name: len(files[name]))
                del files[largest]
                self.console.note(f"no longer attached: {largest}{', the largest' if files else ''}")
            raise
        finally:
            if len(self.conversation.turns) == before:
                self.attached = files

    def answer(self, message: str) -> None:
        """Stream the reply to stdout and add it to the conversation, even if it is interrupted.

        Raise GencliError when there is none; on KeyboardInterrupt the line that was begun is ended.
        """
        prompt = self.session.prepare(message)
        if count := self.session.left_out:
            stays = "; the system prompt stays" if self.conversation.system else ""
            self.console.note(
                f"the conversation no longer fits the context of {self.session.chat_model.model.max_length} tokens: "
                f"the oldest {counted(count, 'message')} will be left out{stays}"
            )
        seed, self.seed = self.seed, (self.seed + 1) % (MAX_SEED + 1)
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
        name, value = chat_settings.split(text)
        setting = chat_settings.find(name, self.commands) if text else None
        if setting is not None and value:
            self.session.request = chat_settings.changed(self.session.request, setting, value)
        config = self.session.chat_model.model.generation_config
        self.console.say(chat_settings.shown(self.session.request, config, setting))

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
        path = _path(name, "/file notes.txt")
        check_file(path)
        if not path.is_file():
            raise GencliError(f"{path} is a device or a pipe, not a file")
        try:
            text = read_bytes(path).decode("utf-8-sig")
        except UnicodeDecodeError:
            raise GencliError(f"{path} is not UTF-8 text") from None
        fence = "```"
        while fence in text:
            fence += "`"
        self.attached[str(path)] = f"{path.name}:\n{fence}\n{text.rstrip()}\n{fence}"
        self.console.say(f"{counted(len(text.splitlines()), 'line')} of {path.name} will go with the next message")

    def again(self, rest: str) -> None:
        """`/again`: replace the last reply by another one."""
        self._replace(self._last_message())

    def edit(self, rest: str) -> None:
        """`/edit`: change the last message in your editor, and send it instead."""
        from gencli.cli.chat_terminal import edit

        before = self._last_message()
        message = edit(before)
        if message == before.rstrip("\n"):
            self.console.note("the message is as it was: nothing was sent; /again asks for another reply")
            return
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
        self.attached = {}
        self._keep_anew()
        self.console.say("conversation cleared")

    def _keep_anew(self) -> None:
        """Keep what follows in a file of its own, and the conversation so far as it is."""
        if self.kept is not None:
            self.kept = Kept.new(self.kept.model)

    def save(self, name: str) -> None:
        """`/save FILE`: write the conversation as JSON."""
        path = _path(name, "/save talk.json")
        self.conversation.save(path)
        self.console.say(f"{counted(len(self.conversation.turns), 'message')} saved in {path}")

    def load(self, name: str) -> None:
        """`/load FILE`: continue a saved conversation."""
        self.conversation.load(path := _path(name, "/load talk.json"))
        self._keep_anew()
        self.console.say(f"{counted(len(self.conversation.turns), 'message')} loaded from {path}")

    def set_seed(self, number: str) -> None:
        """`/seed [N]`: show or set the seed of the next reply; later replies use N+1, N+2, …"""
        if number:
            if not number.isdecimal() or int(number) > MAX_SEED:
                raise UsageError(f"/seed {number:.80}: expected an integer from 0 to {MAX_SEED}")
            self.seed = int(number)
        self.console.say(f"seed {self.seed}")

    def exit(self, rest: str) -> None:
        """`/exit`: quit (also Ctrl-D)."""
        raise EOFError

    def help(self, rest: str) -> None:
        """`/help [COMMAND]`: this list, or a line of it."""
        docs = [(command.__doc__ or "").partition(": ") for command in self.commands.values()]
        table = [(left.strip("`"), text) for left, _, text in docs]
        table += [
            ("//…", "a message that starts with a slash."),
            ("Alt-Enter", "a new line; so does Enter after a backslash."),
            ('"""…"""', "a message of several lines."),
            ("Ctrl-C", "stop the reply; the partial reply is kept."),
            ("Ctrl-Z", "suspend; the shell's fg goes on."),
            ("Up, Down", "earlier messages, also of earlier sessions."),
            ("Tab", "complete a command, a setting, a model or a file."),
        ]
        wanted = f"/{rest.lower().lstrip('/')}"
        table = [one for one in table if one[0].split()[0] == OTHER_NAMES.get(wanted, wanted)] or table
        self.console.say("\n".join(f"{left:18}{text}" for left, text in table))


def _path(name: str, example: str) -> Path:
    """Return the path in `name`, with `~` and quotes as in a shell. Raise UsageError if it is empty; example: a right
    command, for its hint."""
    try:
        [word] = shlex.split(name)
    except ValueError:
        word = name
    if not word:
        raise UsageError(f"{example.split()[0]}: expected a file name", f"as in {example}")
    return Path(os.path.expanduser(word))  # Path.expanduser fails for the ~ of nobody
