"""The terminal of a conversation: messages are edited with prompt_toolkit, replies break between words."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import unicodedata
from base64 import b64encode
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from gencli import signals
from gencli.cli.console import Console, escape_controls, is_terminal
from gencli.cli.sinks import TextSink
from gencli.errors import GencliError

if TYPE_CHECKING:
    from prompt_toolkit.completion import CompleteEvent, Completer, Completion
    from prompt_toolkit.history import History
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

    State = list[int | list[bytes | int]]  # termios'

BLOCK = '"""'
TAKE_FILES = ("/file", "/load", "/save")
PROMPT, MORE = "> ", ". "
CLIPBOARDS = (("pbcopy",), ("wl-copy",), ("xclip", "-selection", "clipboard"))


class Prompter:
    """Reads messages. history: the file of earlier ones; None keeps none. commands, settings: names to complete."""

    def __init__(self, history: Path | None, commands: Iterable[str], settings: Iterable[str]):
        os.environ.setdefault("PROMPT_TOOLKIT_NO_CPR", "1")  # nothing here needs to know where the cursor is
        from prompt_toolkit import PromptSession
        from prompt_toolkit.history import InMemoryHistory
        from prompt_toolkit.output import DummyOutput, Output, create_output

        stream = next((one for one in (sys.stdout, sys.stderr) if is_terminal(one)), None)
        output: Output = DummyOutput() if stream is None else create_output(stdout=stream)
        kept: History = InMemoryHistory()
        if history is not None:
            kept = _history(history)
        self.session: PromptSession[str] = PromptSession(
            multiline=True,
            history=kept,
            output=output,
            key_bindings=_keys(),
            completer=_completer(commands, settings),
            complete_while_typing=False,
            enable_suspend=True,
            prompt_continuation=MORE,
        )

    def read(self) -> str:
        """Return a message: what was typed or pasted until Enter. Enter goes on in a new line after a backslash and
        inside triple quotes.

        Raise EOFError on Ctrl-D, KeyboardInterrupt on Ctrl-C, GencliError for bytes that are not text.
        """
        before = _terminal_state()
        try:
            text = self.session.prompt(PROMPT)
            text.encode()
        except UnicodeEncodeError:
            raise GencliError("the line is not valid UTF-8") from None
        finally:
            _restore(before)
            signals.watch()  # prompt_toolkit has taken the place where signals arrive
        if len(text.strip()) > 5 and text.strip().startswith(BLOCK) and text.strip().endswith(BLOCK):
            return text.strip().removeprefix(BLOCK).removesuffix(BLOCK).strip("\n")
        return text


def _history(file: Path) -> History:
    """Return what was typed, from a file that others cannot read and that is made if need be. Raise GencliError."""
    from prompt_toolkit.history import FileHistory

    class Typed(FileHistory):
        def store_string(self, string: str) -> None:
            with contextlib.suppress(OSError):  # the disk may be full: the conversation goes on
                super().store_string(string)

    try:
        file.touch(mode=0o600)
        file.open("ab").close()
    except OSError as error:
        raise GencliError(f"cannot write {file}: {error.strerror}", "--no-history keeps nothing") from None
    return Typed(str(file))


def _completer(commands: Iterable[str], settings: Iterable[str]) -> Completer:
    """Return what Tab completes: the name of a command, and after some commands a setting, a model or a file."""
    from prompt_toolkit.completion import Completer, PathCompleter, WordCompleter
    from prompt_toolkit.document import Document

    from gencli.checkpoints.find import known_names

    names = WordCompleter(list(commands), ignore_case=True, sentence=True)
    models = WordCompleter(lambda: [name for name, _ in known_names("text")], sentence=True)
    files = PathCompleter(expanduser=True)
    options = WordCompleter(list(settings), ignore_case=True, sentence=True)
    after: dict[str, Completer] = {"/set": options, "/model": models}
    after |= dict.fromkeys(TAKE_FILES, files)

    class Words(Completer):
        def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:
            name, gap, rest = document.text_before_cursor.partition(" ")
            if not gap:
                yield from names.get_completions(document, complete_event)
            elif name.lower() in after:
                yield from after[name.lower()].get_completions(Document(rest), complete_event)

    return Words()


def _keys() -> KeyBindings:
    """Return what Enter and Alt-Enter do."""
    from prompt_toolkit.key_binding import KeyBindings

    keys = KeyBindings()

    @keys.add("enter")
    def enter(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        text = buffer.text
        if text.lstrip().startswith(BLOCK) and text.count(BLOCK) % 2:  # what is pasted may have quotes of its own
            buffer.insert_text("\n")
        elif buffer.document.is_cursor_at_the_end and text.endswith("\\"):
            buffer.delete_before_cursor(1)
            buffer.insert_text("\n")
        else:
            buffer.validate_and_handle()

    @keys.add("escape", "enter")
    def newline(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    return keys


def _terminal_state() -> State | None:
    try:
        import termios

        return termios.tcgetattr(sys.stdin.fileno())
    except (ImportError, OSError, ValueError, AttributeError):
        return None
    except Exception:  # termios.error, where stdin is not a terminal
        return None


def _restore(state: State | None) -> None:
    """Set the terminal back as it was: a signal may leave prompt_toolkit before it can."""
    if state is not None:
        import termios

        termios.tcsetattr(sys.stdin.fileno(), termios.TCSADRAIN, state)


class WrappedSink(TextSink):
    """Text on a terminal whose lines break between words. A word is written once it is whole."""

    def __init__(self, columns: Callable[[], int]):
        super().__init__()
        self.columns = columns
        self._column, self._space, self._word = 0, "", ""

    def write(self, text: str) -> None:
        width = self.columns()
        for piece in re.findall(r"\n|[^\S\n]|[^\s]", escape_controls(text)):
            if piece.isspace():
                self._flush()
                self._space += piece
                if piece == "\n":
                    super().write(self._space)
                    self._column, self._space = 0, ""
            else:
                if _width(piece) > 1:  # scripts without spaces may break anywhere
                    self._flush()
                self._word += piece
                if len(self._word) >= width:  # longer than any line
                    self._flush()

    def end(self) -> None:
        self._flush()
        super().end()
        self._column, self._space = 0, ""

    def interrupted(self) -> None:
        self._flush()
        super().interrupted()
        self._column, self._space = 0, ""

    def _flush(self) -> None:
        if not self._word:
            return
        width, gap = _width(self._word), _width(self._space)
        if self._column and self._column + gap + width > self.columns():
            self._space, self._column, gap = "\n", 0, 0
        super().write(self._space + self._word)
        self._column, self._space, self._word = self._column + gap + width, "", ""


def _width(text: str) -> int:
    """Return the columns that a text takes on a terminal."""
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def edit(text: str) -> str:
    """Return a text as the user's editor leaves it ($VISUAL, $EDITOR, else vi). Raise GencliError if that fails."""
    import shlex

    named = os.environ.get("VISUAL") or os.environ.get("EDITOR") or "vi"
    try:
        editor = shlex.split(named) or ["vi"]
    except ValueError as error:
        raise GencliError(f"cannot start {named}: {error}", "EDITOR names another editor") from None
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "message.txt"
        file.write_text(text, encoding="utf-8")
        try:
            code = _run([*editor, str(file)])
        except OSError as error:
            raise GencliError(f"cannot start {editor[0]}: {error.strerror}", "EDITOR names another editor") from None
        if code:
            raise GencliError(f"{editor[0]} ended with exit code {code}: the message stays as it was")
        try:
            return file.read_text(encoding="utf-8", errors="replace").rstrip("\n")
        except OSError as error:
            raise GencliError(f"{editor[0]} left no message: {error.strerror}") from None


def _run(command: list[str]) -> int:
    """Run a program that has the terminal, and return its exit code. Ctrl-C is its own meanwhile. Raise OSError."""
    process = subprocess.Popen(command, stdout=None if is_terminal(sys.stdout) else sys.stderr)  # stdout is for replies
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        return process.wait()
    except BaseException:  # SIGTERM
        process.kill()
        process.wait()
        raise
    finally:
        signal.signal(signal.SIGINT, before)


def copy(text: str, console: Console) -> None:
    """Put a text on the clipboard: by the system's own program, else by the terminal (OSC 52)."""
    tool = next((tool for tool in CLIPBOARDS if shutil.which(tool[0])), None)
    shown = any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY")) or sys.platform == "darwin"
    if tool is not None and shown and subprocess.run(tool, input=text.encode(), check=False).returncode == 0:
        return
    console.stream.write(f"\x1b]52;c;{b64encode(text.encode()).decode()}\x07")
    console.stream.flush()
