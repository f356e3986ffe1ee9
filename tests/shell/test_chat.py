"""`gencli chat` as a process: on a real terminal and in a pipe; `gencli text --chat` in scripts."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import termios
import time
from pathlib import Path

import pytest

from tests.shell.process import GENCLI, LIMIT, Terminal, environment, gencli, on_terminal, start
from tests.tiny.chat_templates import BIAS, PLAIN_CHATML
from tests.tiny.text import END, make_templated

pytestmark = pytest.mark.slow

AT_HOME = {"TERM": "xterm", "COLUMNS": "80", "NO_COLOR": "1", "EDITOR": "sed -i s/first/edited/"}
READY = b"\x1b[?2004h"  # the editor of messages has the terminal
READ = b"\x1b[?2004l"  # the editor of messages lets go of the terminal
SPOKEN = [part for token, _ in BIAS for part in ("--logit-bias", f"{token}=-inf")]


@pytest.fixture(scope="module")
def tuned(tmp_path_factory) -> Path:
    """A context that no answer in here fills."""
    return make_templated(
        tmp_path_factory.mktemp("models") / "tuned", PLAIN_CHATML, n_positions=40_000, n_embd=8, n_head=1, n_layer=1
    )


def chatting(folder: Path, *args: object) -> Terminal:
    """`gencli chat` on a terminal, whose state and history lie in `folder`."""
    env = environment(**AT_HOME, XDG_STATE_HOME=str(folder))
    return Terminal.of_gencli("chat", *args, folder=folder, env=env)


def interrupt(terminal: Terminal) -> None:
    """Ctrl-C while a reply is written."""
    terminal.type(b"\x03")
    terminal.wait_for(b"note: stopped")


def answering(terminal: Terminal, message: bytes) -> None:
    """Send a message, and wait until its reply has begun, with a long way to go."""
    terminal.type(message)
    terminal.wait_for(READ)
    flows(terminal)


def flows(terminal: Terminal) -> None:
    """Wait for some of a reply."""
    while len(terminal.seen) < 100:
        terminal.seen += os.read(terminal.master, 65536)


def test_a_conversation_at_a_terminal(tuned: Path, tmp_path: Path):
    """Ctrl-C stops the answer alone; several lines are one message; what is saved is what was said; Ctrl-D leaves."""
    terminal = chatting(tmp_path, "-m", tuned, "-n", 30_000, "-s", 5, *SPOKEN, "--system", "Be kind.")
    terminal.wait_for(b"Ctrl-D quits")
    terminal.wait_for(READY)
    answering(terminal, b"Once\r")
    interrupt(terminal)
    terminal.wait_for(READY)
    terminal.type(b"half a line\x03")
    terminal.wait_for(b"note: Ctrl-D or /exit quits")
    terminal.wait_for(READY)
    terminal.type(b"/seed 7\r")
    terminal.wait_for(b"seed 7\r\n")
    answering(terminal, b'"""first\rsecond"""\r')
    interrupt(terminal)
    for command, answer in (
        (b"/save 'my talk.json'", b"4 messages saved in my talk.json"),
        (b"/nonsense", b"no such command: /nonsense"),
        (b"/system Be brief.", b"Be brief."),
        (b"/reset", b"conversation cleared"),
        (b"/save empty.json", b"0 messages saved in empty.json"),
        (b"/load my\\ talk.json", b"4 messages loaded from my talk.json"),
        (b"/load none.json", b"error: none.json: there is no such file"),
        (b"/save", b"hint: as in /save talk.json"),
        (b"/help", b"a message of several lines."),
    ):
        terminal.wait_for(READY)
        terminal.type(command + b"\r")
        terminal.wait_for(READ)
        terminal.wait_for(answer)
    terminal.wait_for(READY)
    terminal.type(b"\x04")
    assert terminal.ended() == 0
    messages = json.loads((tmp_path / "my talk.json").read_text())["messages"]
    assert [m["role"] for m in messages] == ["system", "user", "assistant", "user", "assistant"]
    assert [m["content"] for m in messages if m["role"] != "assistant"] == ["Be kind.", "Once", "first\nsecond"]
    assert all(m["content"] for m in messages)
    assert json.loads((tmp_path / "empty.json").read_text())["messages"] == [{"role": "system", "content": "Be brief."}]


def test_paste_history_and_an_earlier_conversation(tuned: Path, tmp_path: Path):
    """Pasted lines are one message; Up brings it back in the next session, which -c continues; /edit edits it."""
    terminal = chatting(tmp_path, "-m", tuned, "-n", 4, "-s", 5, *SPOKEN)
    terminal.wait_for(READY)
    terminal.type(b"\x1b[200~first line\nsecond line\x1b[201~")
    terminal.wait_for(b"second line")
    terminal.type(b"\r")
    terminal.wait_for(b"cut off after 4 tokens")
    terminal.wait_for(READY)
    terminal.type(b"\x04")
    assert terminal.ended() == 0
    [kept] = (tmp_path / "gencli" / "chats").iterdir()
    said = json.loads(kept.read_text())["messages"]
    assert [turn["role"] for turn in said] == ["user", "assistant"]
    assert said[0]["content"] == "first line\nsecond line"

    terminal = chatting(tmp_path, "-c", "-n", 4, *SPOKEN)
    terminal.wait_for(b"continuing " + kept.stem.encode())
    terminal.wait_for(READY)
    terminal.type(b"\x1b[A\r")
    terminal.wait_for(b"cut off after 4 tokens")
    terminal.wait_for(READY)
    terminal.type(b"/edit\r")
    terminal.wait_for(b"cut off after 4 tokens")
    terminal.wait_for(READY)
    terminal.type(b"\x04")
    assert terminal.ended() == 0
    users = [turn["content"] for turn in json.loads(kept.read_text())["messages"] if turn["role"] == "user"]
    assert users == ["first line\nsecond line", "edited line\nsecond line"]
    listed = gencli("chat", "--list", XDG_STATE_HOME=str(tmp_path))
    heading, line = listed.stdout.decode().splitlines()
    assert heading.split() == ["ID", "MODEL", "MESSAGES", "BEGINS"]
    assert line.split(maxsplit=3) == [kept.stem, str(tuned), "4", "first line second line"]


EDITOR = """#!/bin/sh
trap 'echo the editor goes on' INT
cp "$1" before.txt
echo the editor has begun
until read line; do :; done
echo edited > "$1"
"""


def test_a_conversation_is_suspended_and_goes_on(tuned: Path, tmp_path: Path):
    """Ctrl-Z at the prompt, with half a line typed, and in a reply: the shell's fg goes on, and Ctrl-D quits."""
    env = environment(**AT_HOME, XDG_STATE_HOME=str(tmp_path), PS1="shell$ ")
    terminal = Terminal.of(["bash", "--norc", "--noprofile", "-i"], tmp_path, env)

    def suspend() -> None:
        terminal.type(b"\x1a")
        terminal.wait_for(b"Stopped")
        terminal.wait_for(b"shell$ ")
        terminal.type(b"fg\r")

    terminal.wait_for(b"shell$ ")
    terminal.type(shlex.join([*GENCLI, "chat", "-m", str(tuned), "-n", "30000", *SPOKEN]).encode() + b"\r")
    terminal.wait_for(b"Ctrl-D quits")
    terminal.wait_for(READY)
    terminal.type(b"half a")
    terminal.wait_for(b"half a")
    suspend()
    terminal.wait_for(READY)
    answering(terminal, b" line\r")
    suspend()
    terminal.wait_for(SPOKEN[-1].encode())
    flows(terminal)
    interrupt(terminal)
    terminal.wait_for(READY)
    terminal.type(b"\x04")
    terminal.wait_for(b"shell$ ")
    terminal.type(b"exit\r")
    terminal.ended()
    [kept] = (tmp_path / "gencli" / "chats").iterdir()
    assert json.loads(kept.read_text())["messages"][0]["content"] == "half a line"


def test_keys_at_the_prompt(tuned: Path, tmp_path: Path):
    """Tab completes commands, settings and files; what is pasted may have quotes of its own; Ctrl-C is the editor's."""
    (tmp_path / "my notes.txt").write_text("text")
    (tmp_path / "editor").write_text(EDITOR)
    env = environment(**{**AT_HOME, "EDITOR": "sh editor"}, XDG_STATE_HOME=str(tmp_path))
    terminal = Terminal.of_gencli("chat", "-m", tuned, "-n", 4, "-s", 5, *SPOKEN, folder=tmp_path, env=env)
    for typed, completed, rest, answer in (
        (b"/sy\t", b"stem", b" Be kind.\r", b"Be kind."),
        (b"/set te\t", b"mperature", b" 0.5\r", b"temperature 0.5"),
        (b"/file my\t", b"notes.txt", b"\r", b"of my notes.txt will go"),
        (b'\x1b[200~"""Doc."""\nx = 1\x1b[201~', b"x = 1", b"\r", b"cut off after 4 tokens"),
        (b"/edit\r", b"the editor has begun", b"\x03", b"the editor goes on"),
    ):
        terminal.wait_for(READY)
        terminal.type(typed)
        terminal.wait_for(completed)
        terminal.type(rest)
        terminal.wait_for(answer)
    terminal.type(b"\x03")
    terminal.wait_for(b"the editor goes on")
    terminal.type(b"\r")
    terminal.wait_for(b"cut off after 4 tokens")
    terminal.wait_for(READY)
    terminal.type(b"\x04")
    assert terminal.ended() == 0
    sent = 'my notes.txt:\n```\ntext\n```\n\n"""Doc."""\nx = 1'
    assert (tmp_path / "before.txt").read_text() == sent
    [kept] = (tmp_path / "gencli" / "chats").iterdir()
    said = [turn["content"] for turn in json.loads(kept.read_text())["messages"] if turn["role"] == "user"]
    assert said == ["edited"]


def test_what_cannot_be_kept_is_answered(tuned: Path, tmp_path: Path):
    """A file of what was typed that can no longer be written, and bytes that are not text."""
    terminal = chatting(tmp_path, "-m", tuned, "-n", 4, *SPOKEN)
    terminal.wait_for(READY)
    terminal.type(b"\xff\r")
    assert b"xception" not in terminal.wait_for(b"error: the line is not valid UTF-8")
    (tmp_path / "gencli" / "chat-input").unlink()
    (tmp_path / "gencli" / "chat-input").mkdir()
    terminal.wait_for(READY)
    terminal.type(b"one\r")
    assert b"xception" not in terminal.wait_for(b"cut off after 4 tokens")
    terminal.wait_for(READY)
    terminal.type(b"\x04")
    assert terminal.ended() == 0


def test_a_history_that_cannot_be_written(tuned: Path, tmp_path: Path):
    (tmp_path / "gencli" / "chat-input").mkdir(parents=True)
    terminal = chatting(tmp_path, "-m", tuned)
    terminal.wait_for(b"chat-input:")
    terminal.wait_for(b"hint: --no-history keeps nothing")
    assert terminal.ended() == 1


def test_a_second_signal_ends_it_after_messages_too(tuned: Path, tmp_path: Path):
    """SIGTERM at the editor of messages ends with 143 and leaves the terminal as it was."""
    terminal = chatting(tmp_path, "-m", tuned, *SPOKEN, "--no-history")
    before = termios.tcgetattr(terminal.master)
    terminal.wait_for(READY)
    terminal.process.terminate()
    assert terminal.process.wait(LIMIT) == 143
    assert termios.tcgetattr(terminal.master)[3] == before[3]
    assert not (tmp_path / "gencli").exists()


def test_in_a_pipe_it_answers_once(tuned: Path):
    """All of stdin is the message; stdout holds the answer alone, the same as `text --chat` gives."""
    common = ("-m", tuned, "-n", 12, "-s", 3, *SPOKEN)
    chat = gencli("chat", *common, "-q", "--system", "Be kind.", stdin=b"one\ntwo\n")
    assert (chat.returncode, chat.stderr) == (0, b"")
    assert b"one message" not in gencli("chat", *common, "--system", "Be kind.", stdin=b"one\ntwo\n").stderr
    assert b"one message" not in gencli("chat", *common, stdin=b"one\n").stderr
    said = b"note: the 2 lines of stdin are one message; `gencli text --chat --lines` answers each by itself\n"
    assert gencli("chat", *common, stdin=b"one\ntwo\n").stderr.count(said) == 1
    text = gencli("text", *common, "--system", "Be kind.", "--json", stdin=b"one\ntwo\n")
    assert (text.returncode, text.stderr) == (0, b"")
    answer = json.loads(text.stdout)
    assert answer["text"] + "\n" == chat.stdout.decode() and answer["text"].strip() == answer["text"]
    assert answer["usage"]["prompt_tokens"] > 30


def test_lines_are_conversations_of_their_own(tuned: Path):
    common = ("-m", tuned, "-n", 8, "--chat", "--json", *SPOKEN)
    done = gencli("text", *common, "-s", 3, "--lines", stdin=f"one\ntwo {END}\n".encode())
    assert (done.returncode, done.stderr) == (0, b"")
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    alone = json.loads(gencli("text", *common, "-s", 4, f"two {END}").stdout)
    assert [a["index"] for a in answers] == [0, 1] and answers[1]["text"] == alone["text"]


def test_reasoning_is_not_in_the_pipe(tmp_path: Path):
    """A template that opens the block, a model that never closes it: nothing of it reaches stdout or a redirected
    stderr, which says why the answer is empty."""
    source = PLAIN_CHATML.replace("assistant\n' }}", "assistant\n<think>\n' }}")
    assert source != PLAIN_CHATML
    model = make_templated(tmp_path / "thinker", source)
    done = gencli("text", "hi", "--chat", "-m", model, "-n", 8, *SPOKEN)
    note = b"note: the answer is empty: reasoning took all of its 8 tokens (see --max-tokens, --think)\n"
    assert (done.returncode, done.stdout, done.stderr) == (0, b"\n", note)
    code, screen, stdout, _ = on_terminal("text", "hi", "--chat", "-m", model, "-n", 8, *SPOKEN, stdout=False)
    assert (code, stdout) == (0, b"\n")
    assert screen.count(b"\x1b[2m") >= 3 and b"\x1b[0m\r\n" in screen, "dimmed, and what follows on a new line"


def test_what_goes_wrong_is_one_line(tuned: Path, tmp_path: Path):
    """A raw prompt to a chat model is noted once; no message, what does not go together."""
    raw = gencli("text", "-m", tuned, "--lines", "-n", 2, stdin=b"a\nb\n")
    assert raw.returncode == 0 and raw.stderr.count(b"\n") == 1
    assert raw.stderr.startswith(b"note: ") and b"--chat" in raw.stderr
    for args, stdin, code, message in (
        (("chat", "-m", tuned), b" \n", 1, b"error: stdin has no message"),
        (("text", "--chat", "--echo", "hi"), b"", 2, b"error: --echo is for raw prompts"),
        (("chat", "-m", tuned, "--examples", tmp_path), b"hi", 1, b"is a folder"),
        (("chat", "-m", tuned, "--examples", tmp_path / "none"), b"hi", 1, b"there is no such file"),
    ):
        done = gencli(*args, stdin=stdin)
        assert (done.returncode, done.stdout) == (code, b"") and message in done.stderr


def test_the_template_process_ends_with_its_owner(tuned: Path):
    """Even a gencli that is killed leaves nothing behind: the worker's stdin ends."""
    process = start("text", "hi", "--chat", "-m", tuned, "-n", 30_000, *SPOKEN, stdin=subprocess.DEVNULL)
    assert process.stdout and os.read(process.stdout.fileno(), 1)
    [worker] = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    process.kill()
    process.communicate()
    deadline = time.monotonic() + LIMIT
    stat = Path(f"/proc/{worker}/stat")
    while stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z":
        assert time.monotonic() < deadline
        time.sleep(0.05)
