"""Commands whose work a running server does: the same bytes, errors and exit codes as without it."""

from __future__ import annotations

import contextlib
import json
import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import httpx
import pytest
from safetensors.torch import load_file, save_file

from tests.shell.process import environment, gencli, pixels, short_folder, start
from tests.tiny.control import SMALL_CONTROLNET, edges, make_controlnet
from tests.tiny.image import make_stable_diffusion
from tests.tiny.text import make_gpt2

pytestmark = pytest.mark.slow
STORY = ("text", "Once upon a time", "--seed", 1, "-n", 12)
APPLE = ("image", "red apple", "--seed", 1, "--steps", 1, "--size", "64x64")
NOBODY = {"GENCLI_NO_SERVER": None}  # what `environment` says otherwise
LED = ("image", "a", "-m", "sd", "--steps", 2, "--seed", 5, "--size", "64x64", "--control", "canny", "--control-image")
LINES = b"Once\nThe dog\r\n\xff\n\nA cat\n"
"""Arguments and stdin of commands. {} is a folder with inputs, in which they write too."""
COMMANDS: list[tuple[tuple[object, ...], bytes]] = [
    (STORY, b""),
    ((*STORY, "--temperature", 0), b""),
    ((*STORY, "--json", "--logprobs", 2), b""),
    ((*STORY, "--num-samples", 3), b""),
    ((*STORY, "--num-samples", 3, "--null", "--echo"), b""),
    ((*STORY, "--num-samples", 20, "--batch", 4, "--json"), b""),
    ((*STORY, "--stop", "a", "--repeat-penalty", 1.3, "--logit-bias", "5=-inf"), b""),
    (("text", "--seed", 5, "-n", 9), b"A prompt in a pipe\n"),
    (("text", "Before", "-", "after", "--seed", 5, "-n", 9, "--echo"), b"in the middle\n"),
    (("text", "--lines", "--seed", 2, "-n", 8), LINES),
    (("text", "--lines", "--seed", 2, "-n", 8, "--json", "--num-samples", 2), LINES),
    (("text", "--lines", "--strict", "--seed", 2, "-n", 8), LINES),
    (("text", "--lines", "--system", "Be brief.", "--seed", 2, "-n", 8), b"Hi\nHo\n"),
    (("text", "Hi", "--chat", "--seed", 2, "-n", 8), b""),
    (("text", "--messages", "--lines", "--seed", 2, "-n", 8), b'[{"role": "user", "content": "Hi"}]\nHi\n'),
    (("text", "word " * 3000, "--seed", 1), b""),
    (("text", "word " * 3000, "--seed", 1, "-n", 5, "--truncate", "left"), b""),
    (("text", "caf\u00e9 \U0001f600", "--seed", 1, "-n", 5), b""),
    (("text", "Once", "--logit-bias", "99999=1"), b""),
    (("text", "Once", "-m", "no-such-model"), b""),
    (("text", "Once", "-m", "tiny", "-n", 5, "--seed", 1, "--json"), b""),
    (("text", "Once", "-m", "broken", "-n", 5), b""),
    (("text", "Once", "-m", "nan", "-n", 5, "--seed", 1), b""),
    (("chat", "--seed", 3, "-n", 8), b"Hello\n"),
    (("chat", "--seed", 3, "-n", 8, "--system", "Be kind."), b""),
    ((*APPLE, "--count", 2, "--batch", 2, "-o", "{seed}.webp", "--json"), b""),
    ((*APPLE, "--count", 2, "--grid"), b""),
    ((*APPLE, "--sweep", "cfg-scale=1,3", "--grid"), b""),
    ((*APPLE, "-i", "start.png", "--strength", 0.6), b""),
    (("image", "--lines", "--seed", 4, *APPLE[-4:], "-o", "{index}.png"), b"red apple\n\n" + b"a " * 300 + b"\nsun\n"),
    ((*APPLE[:-2], "-W", 100), b""),
    ((*LED, "edges.png", "-o", "led.png"), b""),
    ((*LED, "other.png", "-o", "led-by-another.png"), b""),
    ((*LED, "edges.png", "--control", "canny", "--control-image", "other.png", "-o", "led-by-two.png"), b""),
    ((*APPLE, "--save-steps", "steps"), b""),
    (("image", "red apple", "-m", "stories"), b""),
]


@contextlib.contextmanager
def serving(folder, *args, **env):
    """A server that commands of this user find."""
    process = start("serve", *args, env=environment(XDG_RUNTIME_DIR=str(folder), **env))
    try:
        assert process.stdout.readline().decode().strip() == str(folder / "gencli.sock")
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=60)
        assert b"Traceback" not in err, err.decode()


@pytest.fixture
def tmp_path(short_path: Path) -> Path:
    return short_path


@pytest.fixture(scope="module")
def runtime():
    with tempfile.TemporaryDirectory(prefix="gencli-", dir=short_folder()) as made, serving(Path(made)):
        yield Path(made)


@pytest.fixture(scope="module")
def cold() -> bytes:
    """What STORY is without a server."""
    return gencli(*STORY).stdout


def handed_over(runtime) -> int:
    """How many commands the server has worked for."""
    with httpx.Client(transport=httpx.HTTPTransport(uds=str(runtime / "gencli.sock"))) as client:
        return int(re.search(r"gencli_commands_total (\d+)", client.get("http://x/metrics").text)[1])


@pytest.fixture(scope="module")
def places(tmp_path_factory) -> list[Path]:
    """Two folders with the same inputs."""
    made = [tmp_path_factory.mktemp(name) for name in ("cold", "warm")]
    tiny = make_gpt2(made[0] / "tiny")
    broken, nan = made[0] / "broken", made[0] / "nan"
    shutil.copytree(tiny, broken)
    (broken / "config.json").write_text("{")
    shutil.copytree(tiny, nan)
    [file] = nan.glob("*.safetensors")
    save_file({name: tensor * float("nan") for name, tensor in load_file(file).items()}, file, {"format": "pt"})
    assert gencli(*APPLE, "-o", made[0] / "start.png").returncode == 0
    make_stable_diffusion(made[0] / "sd")
    make_controlnet(made[0] / "canny", SMALL_CONTROLNET)
    edges((64, 64)).save(made[0] / "edges.png")
    edges((64, 64), seed=3).save(made[0] / "other.png")
    shutil.copytree(made[0], made[1], dirs_exist_ok=True)
    return made


def files(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def timeless(data: bytes) -> bytes:
    return re.sub(rb'"seconds": [\d.]+', b'"seconds": 0', data)


def test_the_same_with_and_without(runtime, places):
    before = handed_over(runtime)
    went = 0
    for args, stdin in COMMANDS:
        runs = []
        for place, wishes in zip(places, ({}, NOBODY), strict=True):
            process = start(
                *args,
                env=environment(XDG_RUNTIME_DIR=str(runtime), PWD=str(place), **wishes),
                code=f"import os; os.chdir({str(place)!r})",
            )
            runs.append(process.communicate(stdin, 120))
            runs[-1] += (process.returncode,)
        (out, err, code), (warm_out, warm_err, warm_code) = runs
        assert (timeless(warm_out), warm_err, warm_code) == (timeless(out), err, code), args
        went += code == 0
    assert files(places[0]) == files(places[1])
    led = {pixels(places[0] / name).tobytes() for name in ("led.png", "led-by-another.png", "led-by-two.png")}
    assert len(led) == 3
    assert handed_over(runtime) - before >= went - 1  # all but --save-steps


def fresh(runtime, *args, **more):
    """Start a command with an interpreter of its own."""
    env = environment(XDG_RUNTIME_DIR=str(runtime), **NOBODY)
    return start(*args, fresh=True, env=env, **more)


def time_of_children() -> float:
    """Seconds of a processor that this process's children have taken, those that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def test_the_command_needs_no_torch(runtime, cold):
    """Nor what else takes long to import; the whole process takes less than 0.3 s of a processor's time, or, on a slow
    or busy one, 15 times what an interpreter takes that does nothing."""
    heavy = ["torch", "numpy", "tokenizers", "safetensors", "PIL", "jinja2", "huggingface_hub", "starlette", "asyncio"]
    gencli(*STORY, XDG_RUNTIME_DIR=str(runtime), **NOBODY)  # the model is warm
    code = f"""
import atexit, resource
def tell():
    used = resource.getrusage(resource.RUSAGE_SELF)
    print([name for name in {heavy!r} if name in sys.modules], used.ru_utime + used.ru_stime, file=sys.stderr)
atexit.register(tell)"""
    taken = []
    while len(taken) < 8 and not any(one <= max(0.3, 15 * nothing) for one, nothing in taken):
        out, err = fresh(runtime, *STORY, code=code).communicate(timeout=60)
        found, seconds = err.decode().rsplit(" ", 1)
        assert found == "[]" and out == cold
        before = time_of_children()
        subprocess.run([sys.executable, "-c", ""], check=True)
        taken.append((float(seconds), time_of_children() - before))
    assert any(one <= max(0.3, 15 * nothing) for one, nothing in taken), taken


def test_a_path_is_the_command_s_own(runtime, places):
    """Also where the server runs in another folder; a model that changes is opened anew."""
    tell = ("text", "Once", "-n", 5, "--seed", 1, "-m", "tiny")

    def told():
        env = environment(XDG_RUNTIME_DIR=str(runtime), **NOBODY)
        process = start(*tell, env=env, code=f"import os; os.chdir({str(places[1])!r})")
        return process.communicate(timeout=60)[0]

    before = handed_over(runtime)
    first = told()
    [file] = (places[1] / "tiny").glob("*.safetensors")
    old = file.read_bytes()
    save_file({name: -tensor for name, tensor in load_file(file).items()}, file, {"format": "pt"})
    try:
        changed = told()
    finally:
        file.write_bytes(old)
    assert changed != first == told()
    assert handed_over(runtime) - before == 3


@pytest.mark.parametrize(
    ("env", "args"),
    [
        ({"GENCLI_NO_SERVER": "1"}, ()),
        (NOBODY, ("--no-server",)),
        (NOBODY, ("--threads", 2)),
        ({**NOBODY, "CUBLAS_WORKSPACE_CONFIG": ":16:8"}, ()),
        ({**NOBODY, "GENCLI_KERNELS": "off"}, ()),
        (NOBODY, ("--draft", "lookup")),
    ],
)
def test_not_where_the_server_would_do_something_else(runtime, env, args):
    before = handed_over(runtime)
    assert gencli(*STORY, *args, XDG_RUNTIME_DIR=str(runtime), **env).returncode == 0
    assert handed_over(runtime) == before


def test_the_server_s_environment_is_not_the_command_s(tmp_path, places, cold):
    """What decides is the command's own."""
    env = {"GENCLI_TEXT_MODEL": str(places[1] / "tiny"), "GENCLI_DTYPE": "bfloat16"}
    with serving(tmp_path, **env):
        done = gencli(*STORY, XDG_RUNTIME_DIR=str(tmp_path), **NOBODY)
        assert done.stdout == cold and handed_over(tmp_path) == 1


@contextlib.contextmanager
def listening(folder, answer):
    """Something else at the socket, which calls `answer` with each connection."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "gencli.sock.run"))
        os.chmod(folder / "gencli.sock.run", 0o600)
        listener.listen()

        def accept():
            with contextlib.suppress(OSError):
                while True:
                    connection = listener.accept()[0]
                    threading.Thread(target=answer, args=(connection,), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        try:
            yield
        finally:
            listener.shutdown(socket.SHUT_RDWR)


def says(message: dict):
    def answer(connection):
        with connection:
            connection.sendall(json.dumps(message).encode() + b"\n")
            time.sleep(1)

    return answer


@pytest.mark.parametrize("case", ["stale", "hangs", "closes", "older", "junk", "open to others", "a file"])
def test_another_thing_at_the_socket(tmp_path, case, cold):
    """The command does its own work, and says nothing of it."""
    path = tmp_path / "gencli.sock.run"
    env = environment(XDG_RUNTIME_DIR=str(tmp_path), **NOBODY)
    with contextlib.ExitStack() as stack:
        if case == "stale":
            with socket.socket(socket.AF_UNIX) as old:
                old.bind(str(path))
            path.chmod(0o600)
        elif case == "a file":
            path.write_text("mine")
        else:
            answers = {
                "hangs": lambda connection: time.sleep(30),
                "closes": lambda connection: connection.close(),
                "older": says({"version": "0.0.1", "threads": None}),
                "junk": lambda connection: connection.sendall(b"\xff" * 1000),
                "open to others": lambda connection: pytest.fail("it was asked"),
            }
            stack.enter_context(listening(tmp_path, answers[case]))
            if case == "open to others":
                path.chmod(0o666)
        done = start(*STORY, env=env).communicate(timeout=60)
    assert done == (cold, b"")


def test_a_folder_of_another_user_is_not_looked_into(tmp_path, runtime):
    """Nor one that others can write in. Nor does a server listen there."""
    folder = tmp_path / "shared"
    folder.mkdir()
    folder.chmod(0o777)
    with listening(folder, lambda connection: pytest.fail("it was asked")):
        assert gencli(*STORY, XDG_RUNTIME_DIR=str(folder), **NOBODY).returncode == 0
    refused = gencli("serve", XDG_RUNTIME_DIR=str(folder))
    assert refused.returncode == 1 and b"others can write there" in refused.stderr


def test_a_server_that_dies_amid_an_answer(tmp_path, places):
    with serving(tmp_path) as server:
        long = ("text", "Once", "-n", 2000, "--seed", 1, "--logit-bias", "0=-inf")
        process = start(*long, "-m", places[1] / "tiny", env=environment(XDG_RUNTIME_DIR=str(tmp_path), **NOBODY))
        assert process.stdout.read(1)
        server.kill()
        _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert err.startswith(b"error: the server ended in the middle of its answer\nhint: --no-server") and len(err) < 200


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals(runtime, places, number, cold):
    """The command ends as ever, and the server works on for others."""
    many = ("text", "Once", "-m", places[1] / "tiny", "-n", 100000, "--num-samples", 1000, "--seed", 1)
    process = fresh(runtime, *many)
    assert process.stdout.read(1)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (128 + number, b"")
    assert gencli(*STORY, XDG_RUNTIME_DIR=str(runtime), **NOBODY).stdout == cold


def test_a_closed_pipe(runtime, places):
    many = ("text", "Once", "-m", places[1] / "tiny", "-n", 100000, "--num-samples", 1000, "--seed", 1)
    process = fresh(runtime, *many)
    assert process.stdout.read(1)
    process.stdout.close()
    process.stdout = None
    assert process.communicate(timeout=60)[1] == b"" and process.returncode == 141


def test_lines_as_they_come_and_others_meanwhile(runtime, cold):
    """A command that waits for its next line keeps nobody from working."""
    tell = ("text", "--lines", "--seed", 1, "-n", 8, "--json")
    lines = [b"Once upon a time\n", b"The dog\n"]
    process, answers = fresh(runtime, *tell), []
    for line in lines:
        process.stdin.write(line)
        process.stdin.flush()
        answers.append(process.stdout.readline())
        done = gencli(*STORY, XDG_RUNTIME_DIR=str(runtime), **NOBODY)
        assert done.stdout == cold
    assert process.communicate(timeout=60) == (b"", b"") and process.returncode == 0
    assert b"".join(answers) == gencli(*tell, stdin=b"".join(lines)).stdout


def test_auto(tmp_path):
    """A server that is started by the first command, answers the next one, and ends when nobody has asked for long."""
    path = tmp_path / "gencli.sock"
    settings = tmp_path / "config.toml"
    settings.write_text('[serve]\nkeep = "2s"\n')
    env = {"XDG_RUNTIME_DIR": str(tmp_path), "GENCLI_CONFIG": str(settings), **NOBODY}
    first = gencli(*STORY, "--auto-server", **env)
    assert gencli(*STORY, "--auto-server", **env).stdout == first.stdout  # while it starts
    end = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < end
        time.sleep(0.1)
    second = gencli(*STORY, "--auto-server", **env)
    assert first.stdout == second.stdout and handed_over(tmp_path) == 1
    again = gencli("serve", "--auto", "--listen", 0, **env)  # there is one
    assert again.returncode == 0 and b"note: a server is running already" in again.stderr
    while path.exists():
        assert time.monotonic() < end
        time.sleep(0.1)
    assert {file.name for file in tmp_path.iterdir()} == {"config.toml", "gencli.lock"}
