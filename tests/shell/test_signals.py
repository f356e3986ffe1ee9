"""Signals: the first ends the work in order, the second at once, whatever the process is at."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import time
from collections.abc import Callable

import pytest

from gencli import signals
from gencli.signals import PAUSE, Terminated
from tests.shell.process import environment, obey_signals

# gencli's entry, and in place of its commands one that says when it begins. One long operation in C, which no handler
# of Python's can interrupt: PBKDF2.
PROGRAM = """
import hashlib, sys, time
from gencli.cli import app

def run(words, console):
    try:
        print("begun", flush=True)
        hashlib.pbkdf2_hmac("sha256", b"", b"", {rounds})
        for _ in range(600):  # one that begins just as a signal comes would sleep to its end
            time.sleep(0.1)
    finally:
        time.sleep({cleaning})
        print("in order", flush=True)

app.run = run
sys.argv[1:] = []
from gencli.__main__ import main
sys.exit(main())
"""
LONG, SHORT = 10**9, 1


def begun(rounds: int, cleaning: float = 0.0, *before: str) -> subprocess.Popen[bytes]:
    program = PROGRAM.format(rounds=rounds, cleaning=cleaning)
    process = subprocess.Popen(
        [*before, sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(),
        preexec_fn=obey_signals,
    )
    assert process.stdout and process.stdout.readline() == b"begun\n"
    return process


def ended(process: subprocess.Popen[bytes]) -> tuple[int, bytes, bytes]:
    try:
        out, err = process.communicate(timeout=30)  # a half of what it would take without the signal
    finally:
        process.kill()
    return process.returncode, out, err


@pytest.mark.parametrize("number", signals.ENDING)
def test_the_first_ends_the_work_in_order(number: int):
    process = begun(SHORT)
    process.send_signal(number)
    assert ended(process) == (128 + number, b"in order\n", b"")


@pytest.mark.slow
@pytest.mark.parametrize("second", signals.ENDING)
def test_the_second_ends_one_long_operation_at_once(second: int):
    process = begun(LONG)
    time.sleep(PAUSE)  # until it is in it
    process.send_signal(signal.SIGINT)
    time.sleep(2 * PAUSE)
    assert process.poll() is None
    process.send_signal(second)
    assert ended(process) == (128 + second, b"", b"")


@pytest.mark.slow
def test_the_second_ends_what_the_first_began():
    process = begun(SHORT, 60)
    process.send_signal(signal.SIGTERM)
    time.sleep(2 * PAUSE)
    process.send_signal(signal.SIGINT)
    assert ended(process) == (130, b"", b"")


@pytest.mark.slow
def test_two_at_once_are_one():
    """timeout(1) sends SIGTERM to the process and to its group."""
    process = begun(SHORT, 0.3)
    process.send_signal(signal.SIGTERM)
    time.sleep(PAUSE / 5)
    process.send_signal(signal.SIGTERM)
    assert ended(process) == (143, b"in order\n", b"")


@pytest.mark.slow
def test_what_is_ignored_stays_so():
    process = begun(SHORT, 0, "nohup")
    process.send_signal(signal.SIGHUP)
    time.sleep(2 * PAUSE)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert ended(process)[:2] == (143, b"in order\n")


@pytest.mark.slow
def test_an_answered_signal_is_forgotten():
    """As in a chat, where Ctrl-C stops an answer and the next one stops the next answer."""
    before = signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signals.listen()
    try:
        for _ in range(3):
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)  # while it is being answered
            signals.answered()
            time.sleep(2 * PAUSE)
        with pytest.raises(Terminated) as caught:
            signal.raise_signal(signal.SIGTERM)
        assert caught.value.number == signal.SIGTERM
    finally:
        signals.stop_listening()
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        signal.signal(signal.SIGINT, before)


def test_an_event_loop_lets_it_through():
    """Wherever the loop is when it comes: asyncio keeps what is no SystemExit, and the prompt of a chat went on."""

    def comes() -> None:
        raise Terminated

    async def step() -> None:
        comes()

    async def main(start: Callable[[asyncio.AbstractEventLoop], object]) -> None:
        kept = start(asyncio.get_running_loop())
        await asyncio.sleep(0.05)
        pytest.fail(f"it was swallowed: {kept}")

    for start in (lambda loop: loop.call_soon(comes), lambda loop: loop.create_task(step())):
        with pytest.raises(Terminated):
            asyncio.run(main(start))
