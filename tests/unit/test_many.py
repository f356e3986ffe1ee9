"""Lines shared out among workers: in order, nothing lost or twice whoever dies, and no worker outlives its driver."""

from __future__ import annotations

import io
import json
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
import types
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import typer

from gencli import options
from gencli.checkpoints.find import find
from gencli.cli.console import Console
from gencli.cli.image_sinks import ImageSink
from gencli.cli.image_work import Album, ImageWork
from gencli.cli.many import Many, shown_answers
from gencli.cli.prompts import LineReader, each_line
from gencli.cli.text import app as text_app
from gencli.cli.text_work import settings_of
from gencli.errors import GencliError, UsageError
from gencli.image.files.metadata import ROWS, to_dict
from gencli.image.found import Inputs
from gencli.image.request import ImageRequest
from gencli.many.blocks import Feed, Shard, blocks
from gencli.many.crew import TRIES, Answer, Crew
from gencli.many.processes import Process
from gencli.many.records import Records
from gencli.many.worker import read_message, write_message
from gencli.spec import DrawingSpec
from gencli.text.request import TextRequest
from tests.tiny.echo import Echo

ROOT = Path(__file__).parents[2]


def crew(folder: Path, lines, *, size: int = 2, workers: int = 2, stillborn: int = 0, **how) -> Crew:
    return Crew(Echo(folder, stillborn), Feed(lines, size), Process, workers, **how)


def made(found: Crew) -> list[tuple[int, str]]:
    return [(answer.number, answer.made) for answer in found.answers()]


def until(condition, seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.slow
def test_answers_come_in_order(tmp_path):
    lines, notes = ["wait", *map(str, range(12))], []
    found = crew(tmp_path, lines, workers=3, note=notes.append)
    assert made(found) == [(number, line.upper()) for number, line in enumerate(lines)]
    assert notes == ["opened"] and found.info == "echo" and found.count.done == 13
    assert len(found.said) == 1 and Echo(tmp_path).alive() == []
    assert made(crew(tmp_path, [])) == []


@pytest.mark.slow
def test_unordered_answers_come_as_they_are_made(tmp_path):
    lines = ["wait for line 11", *map(str, range(11))]  # which another worker begins when it has answered others
    found = made(crew(tmp_path, lines, size=3, ordered=False))
    assert sorted(found) == [(number, line.upper()) for number, line in enumerate(lines)]
    assert found != sorted(found)


@pytest.mark.slow
def test_input_is_read_no_further_than_needed(tmp_path):
    """Behind a line that takes long, the others are made and then wait: a bounded number of them."""
    read = []

    def lines():
        for number in range(1000):
            read.append(number)
            yield "wait" if number == 0 else "x"

    answers = crew(tmp_path, lines()).answers()
    assert next(answers).number == 0
    assert len(read) <= 2 * 2 * 6
    answers.close()


def test_what_a_dead_worker_leaves_is_made_again(tmp_path):
    lines, notes = ["a", "die once", "b", "c", "die once", "d"], []
    found = crew(tmp_path, lines, note=notes.append)
    assert made(found) == [(number, line.upper()) for number, line in enumerate(lines)]
    assert found.count.died == 2
    died = [note for note in notes if "ended" in note]
    assert len(died) == 2 and "killed by SIGKILL" in died[0] and "of its block left for others" in died[0]


@pytest.mark.slow
@pytest.mark.parametrize("killer, reason", [("die always", "SIGKILL"), ("memory", "MemoryError: no more of it")])
def test_a_prompt_that_kills_workers_is_given_up(tmp_path, killer, reason):
    lines = ["a", killer, "b", "c", "d"]
    found = list(crew(tmp_path, lines, size=4).answers())
    assert [answer.number for answer in found] == list(range(5))
    assert [answer.made for answer in found] == ["A", None, "B", "C", "D"]
    assert reason in found[1].error.message and f"{TRIES} workers ended at this prompt" in found[1].error.message
    begun = (tmp_path / "begun").read_text().split()
    assert begun.count("1") == TRIES + 2 and begun.count("2") == 1


@pytest.mark.slow
def test_what_ends_the_run_ends_it(tmp_path):
    with pytest.raises(GencliError, match="it cannot be done"):
        made(crew(tmp_path, ["wait for ever", "a", "fail"], size=1))
    assert Echo(tmp_path).alive() == []
    with pytest.raises(GencliError, match="3 workers ended before they had opened the model: exit code 7"):
        made(crew(tmp_path, ["a"], stillborn=1))


@pytest.mark.slow
def test_a_run_goes_on_with_the_workers_that_can_be_had(tmp_path):
    notes, lines = [], ["wait"] * 12
    found = crew(tmp_path, lines, size=1, stillborn=2, note=notes.append)
    assert made(found) == [(number, "WAIT") for number in range(12)]
    assert found.size == 1 and "goes on with 1 worker, as more could not be started: exit code 7" in notes


def test_an_interrupted_run_leaves_no_worker(tmp_path):
    answers = crew(tmp_path, ["a", "wait for ever", "b", "wait for ever"], size=1).answers()
    assert next(answers).made == "A"
    until(lambda: len(Echo(tmp_path).alive()) == 2)
    answers.close()
    assert Echo(tmp_path).alive() == []


DRIVER = """
import sys
import threading
from pathlib import Path
from gencli.many.blocks import Feed
from gencli.many.crew import Crew
from gencli.many.processes import Process
from tests.tiny.echo import Echo
list(Crew(Echo(Path(sys.argv[1])), Feed(["wait for ever"] * 4, 1), Process, 2).answers())
"""


def test_workers_end_with_a_driver_that_is_killed(tmp_path):
    driver = subprocess.Popen([sys.executable, "-c", DRIVER, str(tmp_path)], cwd=ROOT)
    until(lambda: len(Echo(tmp_path).alive()) == 2)
    os.kill(driver.pid, signal.SIGKILL)
    driver.wait()
    until(lambda: not Echo(tmp_path).alive())


@pytest.mark.parametrize("part, address", [("ray", "ray"), ("ray", "ray://h:1"), ("grpc", "ray://h:1")])
def test_ray_is_asked_for_by_name(monkeypatch, part, address):
    from gencli.many.on_ray import Cluster

    there = {"ray": types.ModuleType("ray"), "grpc": types.ModuleType("grpc"), part: None}
    for name, module in there.items():
        monkeypatch.setitem(sys.modules, name, module)
    what = "Ray's client" if part == "grpc" else "Ray"
    with pytest.raises(UsageError, match=f"--on {address} needs {what}, which is not installed") as caught:
        Cluster(address, None, None, None)
    assert caught.value.hint == "pip install 'gencli[ray]'"


@pytest.mark.slow
def test_a_head_that_answers_and_cannot_begin_is_asked_again():
    from gencli.many.on_ray import _connect

    outcomes: list[Exception | None] = [ConnectionAbortedError("its process died"), None, ValueError("a wrong name")]

    def init(address: str, **how: object) -> None:
        if outcome := outcomes.pop(0):
            raise outcome

    with socket.create_server(("127.0.0.1", 0)) as head:
        address = f"ray://127.0.0.1:{head.getsockname()[1]}"
        _connect(init, address)
        assert len(outcomes) == 1
        with pytest.raises(ValueError, match="a wrong name"):
            _connect(init, address)


@pytest.mark.slow
def test_errors_of_threads_that_are_not_ours_are_not_told(monkeypatch):
    """gRPC's thread that watches a channel, and one of this file's, which stands for all others."""
    import grpc

    from gencli.many.on_ray import TheirThreads

    met: queue.SimpleQueue[type[BaseException]] = queue.SimpleQueue()
    told: list[type[BaseException]] = []
    quiet = TheirThreads(lambda error: told.append(error.exc_type))
    monkeypatch.setattr(threading, "excepthook", lambda error: (quiet(error), met.put(error.exc_type)))
    end = time.monotonic() + 60
    while met.empty() and time.monotonic() < end:  # it depends on where the thread is
        channel = grpc.insecure_channel("127.0.0.1:1")
        channel.subscribe(lambda state: None)
        channel.close()
        time.sleep(0.05)
    kinds = {met.get(timeout=1)}
    threading.Thread(target=lambda: 1 / 0).start()
    while ZeroDivisionError not in kinds:
        kinds.add(met.get(timeout=60))
    assert kinds == {ValueError, ZeroDivisionError} and told == [ZeroDivisionError]


def test_a_message_of_a_worker_that_was_killed_in_the_middle_of_it():
    stream, message = io.BytesIO(), ("answer", 1, "x" * 1000, 0.5)
    write_message(stream, message)
    whole = stream.getvalue()
    assert read_message(io.BytesIO(whole)) == message
    for length in (0, 3, 8, 9, 500, len(whole) - 1):
        with pytest.raises(EOFError):
            read_message(io.BytesIO(whole[:length]))


def test_a_model_that_lies_elsewhere_is_found_by_its_name(tmp_path):
    emoji, stories, fetch = find("emoji"), find("stories"), partial(find, offline=True)
    lost = replace(emoji, path=tmp_path / "none")
    inputs = Inputs(lost, vae=emoji, upscalers=(lost,), controls=(lost,)).here(fetch)
    assert {inputs.model, inputs.vae, *inputs.upscalers, *inputs.controls} == {emoji} and inputs.prior is None
    assert stories.here(fetch) is stories and replace(stories, path=tmp_path / "none").here(fetch) == stories
    with pytest.raises(GencliError, match="no model 'a/b'"):
        Inputs(replace(lost, name="a/b")).here(fetch)


def test_an_error_that_several_images_share_is_told_once(tmp_path, capsys):
    """As the driver has it of lines with wildcards; workers send copies."""
    request = ImageRequest(prompt="a")
    work = ImageWork(Inputs(find("emoji")), request, DrawingSpec(), ImageSink(None, "png", False, False), True)
    album = Album(Console(), work, request, Many(), None, strict=False)
    for message in ("no file", "no other"):
        line = GencliError(message)
        for number in range(3):
            album._write(Answer(number, line, GencliError(message)))
    assert capsys.readouterr().err == "error: no file\nerror: no other\n" and album.failed == 6


def test_shards_make_up_the_whole():
    lines = [str(number) for number in range(23)]
    parts = [Feed(lines, 3, shard=Shard.parse(f"{number}/4")) for number in range(1, 5)]
    found: dict[int, str] = {}
    for part in parts:
        while (block := part.next()) is not None:
            assert block.first % 3 == 0
            found |= {block.first + i: line for i, line in enumerate(block.lines)}
    assert found == dict(enumerate(lines)) and [part.given for part in parts] == [2, 2, 2, 2]
    assert [(first, list(block)) for first, block in blocks(iter(lines), 10)][2] == (20, lines[20:])


@pytest.mark.parametrize("text", ["0/4", "5/4", "1", "1/0", "a/b", "-1/2", "1/2/3", ""])
def test_no_shard(text):
    with pytest.raises(UsageError, match="N must be at least 1" if text == "1/0" else "--shard"):
        Shard.parse(text)


def test_blocks_without_a_missing_line_are_passed_over():
    feed = Feed(range(10), 2, missing=lambda number: number in (5, 9))
    assert [(feed.next().first, feed.next().first, feed.next())] == [(4, 8, None)]


def test_a_block_waits_for_its_lines():
    there = [True, True, True, False, True, True]
    feed = Feed("abcd", 2, ready=lambda: there.pop(0))
    assert feed.next().lines == ["a", "b"] and feed.next() is None and feed.waits
    there[:] = [True] * 9
    assert feed.next().lines == ["c", "d"] and feed.next() is None and feed.ended


def test_how_many_lines_there_are_is_told_from_those_that_were_taken(monkeypatch):
    """Not from what was read ahead: a short input is read at once, and then seemed to be at its end."""
    data = "".join(f"{number:02}\n" for number in range(40)).encode()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
    reader = LineReader()
    whole, half = Feed(each_line(reader), 4), Feed(iter(range(40)), 4, shard=Shard(1, 2), missing=lambda i: i != 8)
    assert whole.total(0) is None and whole.next() is not None
    assert (reader.count, whole.total(reader.count / len(data))) == (12, 40)
    assert half.next() and half.next() and (half.read, half.total(12 / 40), half.own, half.there) == (12, 20, 8, 1)
    while half.next() is not None:
        pass
    assert half.total(0) == 20


def record(index: int, **more: object) -> bytes:
    return json.dumps({"index": index, "prompt": f"p{index}", "seed": 7 + index, **more}).encode() + b"\n"


def test_a_run_whose_lines_are_all_done_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"")))
    (tmp_path / "r.jsonl").write_bytes(record(0) + record(1))
    records = Records(tmp_path / "r.jsonl")
    found = crew(tmp_path, ["a", "b"])
    found.feed.missing = lambda line: line not in records
    assert list(shown_answers(Console(), found, LineReader(), records)) == []
    assert capsys.readouterr().err == f"note: nothing to do: {records.path} has all 2 lines already\n"


def test_settings_that_differ_from_those_of_the_records_are_told(tmp_path):
    rows = options.rows_of(typer.main.get_command(text_app).callback)
    then = settings_of(TextRequest.of(temperature=0.5, stop=("a", "b"), schema=json.dumps({"const": "x" * 300})))
    (tmp_path / "r.jsonl").write_bytes(record(0, model="stories", settings=then))
    records, notes = Records(tmp_path / "r.jsonl"), []
    Many().note_settings(records, {"model": "stories", **then}, rows, notes.append)
    assert not notes and then["schema"].startswith("sha256:")
    now = settings_of(TextRequest.of(top_k=5, stop=("a",), logit_bias=((3, -float("inf")),)))
    Many().note_settings(records, {"model": "smollm2", **now}, rows, notes.append)
    (said,) = notes
    assert f"{records.path} was made with other settings: " in said
    for part in (
        '--model "stories" (now "smollm2")',
        "--temperature 0.5 (now not given)",
        '--stop ["a", "b"] (now ["a"])',
        "--top-k not given (now 5)",
        '--logit-bias not given (now [[3, "-inf"]])',
    ):
        assert part in said
    assert "--seed" not in said and "prompt" not in said


def test_long_settings_are_compared_as_a_whole(tmp_path):
    rows, notes = dict(options.rows(TextRequest)), []
    (tmp_path / "r.jsonl").write_bytes(record(0, settings={"stop": ["a" * 150]}))
    now = {"stop": ["a" * 75 + "b" + "a" * 74]}
    Many().note_settings(Records(tmp_path / "r.jsonl"), now, rows, notes.append)
    assert len(notes) == 1


def test_settings_of_images_are_compared_too(tmp_path):
    request = ImageRequest(prompt="a", steps=4, seed=3, lora=("x:0.5",), dtype="float32")
    (tmp_path / "r.jsonl").write_bytes(json.dumps({"index": 0, "path": "a.png", **to_dict(request)}).encode() + b"\n")
    records, notes = Records(tmp_path / "r.jsonl"), []
    Many().note_settings(records, to_dict(request.replace(prompt="b", seed=4)), ROWS, notes.append)
    assert not notes
    Many().note_settings(records, to_dict(request.replace(karras=False)), ROWS, notes.append)
    assert not notes, "off, or not there"
    Many().note_settings(records, to_dict(request.replace(steps=5, lora=(), eta=0.0)), ROWS, notes.append)
    assert "--eta not given (now 0.0)" in notes[0]
    assert "--steps 4 (now 5), " in notes[0] and '--lora ["x:0.5"] (now not given)' in notes[0]


@pytest.mark.parametrize("cut", [0, 1, 9, 20, len(record(2)) - 1])
def test_a_half_written_record_is_mended(tmp_path, cut):
    path = tmp_path / "out.jsonl"
    path.write_bytes(record(0) + record(9) + record(2)[:cut])
    found = Records(path)
    assert [index for index in range(30) if index in found] == [0, 9] and found.prompts == {0: "p0", 9: "p9"}
    assert found.first and found.first["seed"] == 7
    found.add(2, record(2))
    assert 2 in found and path.read_bytes() == record(0) + record(9) + record(2)
    with pytest.raises(GencliError, match="is being written by another run"):
        Records(path)


OTHERS = [b"hello\n", b"hello", b'{"a": 1}\n', b'{"index": -1}\n', b'{"index": "x"}\n', record(0) + b"x\n" + record(1)]
OTHERS += [b'{"index": 0}\n', b'{"index": 0, "seed": "7"}\n', b'{"index": ' + b"[" * 100_000 + b"\n", record(2**39)]


@pytest.mark.parametrize("data", OTHERS)
def test_another_file_is_left_as_it_is(tmp_path, data):
    path = tmp_path / "notes.txt"
    path.write_bytes(data)
    with pytest.raises(GencliError, match="is not a file of gencli's records"):
        Records(path)
    assert path.read_bytes() == data
