"""Kinds of inputs of `benchmarks.fuzz` that are no files: answers of a hub, command lines, variables."""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.fuzz import mutate_bytes, mutate_json
from benchmarks.fuzz_kinds import Kind, gpt2
from gencli.errors import GencliError

STATUSES = (200, 206, 301, 302, 307, 400, 401, 403, 404, 416, 429, 500, 503, 999)
HEADERS = ("", "../../evil", "a" * 300, "-1", "0", "99999999999", '"../x"', "/etc", "\x1b[2J", "abc", "é")


class HubKind(Kind):
    """Answers of a hub to one download, of which some are changed on their way: status, headers, body."""

    def __init__(self, name: str, root: Path):
        self.name, self.root, self.files, self.apart = name, root, [], False
        self.server, self.pid = None, 0
        self.lies: list[int] = []
        self.draw, self.answers = random.Random(), 0

    def _serve(self) -> None:
        """Serve from this process: a fork has no threads, and what it answers depends on the input's number alone."""
        from huggingface_hub import constants

        from gencli.checkpoints import hub_http
        from tests.oracles.hub_server import Hub
        from tests.tiny.hub_cache import tiny

        self.server, self.pid = Hub(), os.getpid()
        small = {key: value for key, value in tiny().items() if len(value) < 2**16}
        self.server.commit("org/tiny", {**small, "model.safetensors": b"\x02\0\0\0\0\0\0\0{}"})
        self.server.lie = self._lie
        constants.ENDPOINT, constants.HF_HUB_OFFLINE = self.server.url, False
        constants.HUGGINGFACE_CO_URL_TEMPLATE = self.server.url + "/{repo_id}/resolve/{revision}/{filename}"
        os.environ |= {"HF_HUB_CACHE": str(self.root / "cache"), "HF_HOME": str(self.root / "home")}
        os.environ.pop("HF_HUB_OFFLINE", None)
        hub_http.time.sleep = lambda seconds: None  # type: ignore[attr-defined]

    def _lie(self, path: str, status: int, headers: dict[str, str], body: bytes) -> tuple[int, dict[str, str], bytes]:
        self.answers += 1
        draw = self.draw
        if self.answers not in self.lies:
            return status, headers, body
        how = draw.random()
        if how < 0.2:
            status = draw.choice(STATUSES)
        elif how < 0.5 and headers:
            headers = {**headers, draw.choice(list(headers)): draw.choice(HEADERS)}
        else:
            try:
                body = json.dumps(mutate_json(json.loads(body), draw)).encode()
            except (ValueError, RecursionError):
                body = mutate_bytes(body, draw)
        return status, headers, body

    def read_whole(self) -> None:
        self.read()

    def mutate(self, draw: random.Random) -> int:
        shutil.rmtree(self.root / "cache", ignore_errors=True)
        self.draw, self.answers = draw, 0
        self.lies = [draw.randrange(1, ANSWERS + 1) for _ in range(draw.choice((1, 1, 1, 2, 4)))]
        return 2**16

    def read(self) -> None:
        from gencli.checkpoints.hub import download
        from gencli.checkpoints.hub_cache import HubId

        if self.pid != os.getpid():
            self._serve()
        hub_id = HubId.parse("org/tiny")
        assert hub_id is not None
        download(hub_id)

    def restore(self) -> None:
        shutil.rmtree(self.root / "cache", ignore_errors=True)


ANSWERS = 7  # of the hub to one download


class CommandKind(Kind):
    """Command lines and GENCLI_ variables with odd values; `text` runs to its end, the others to their model."""

    def __init__(self, name: str, root: Path):
        self.name, self.root, self.files, self.apart = name, root, [], False
        gpt2(root / "model")
        self.words: list[str] = []
        self.variables: dict[str, str] = {}

    def read_whole(self) -> None:
        self.words, self.variables = ["text", "Once", "-m", str(self.root / "model"), "-n", "2"], {}
        self.read()

    def mutate(self, draw: random.Random) -> int:
        command = draw.choice(list(COMMANDS))
        options = parameters(command)
        words = [*command.split(), *COMMANDS[command]]
        if command == "text":
            words += ["-m", str(self.root / "model"), "-n", "2"]
        self.variables = {}
        for _ in range(draw.choice((1, 1, 2, 3, 6))):
            option = draw.choice(options)
            value = draw.choice(option.sound) if option.sound and draw.random() < 0.5 else draw.choice(VALUES)
            if option.variable and draw.random() < 0.2:
                self.variables[option.variable] = value.replace("\0", "")
            elif option.flag:
                words.append(option.name if draw.random() < 0.9 else f"{option.name}={value}")
            else:
                words += [option.name, value] if draw.random() < 0.5 else [f"{option.name}={value}"]
        if draw.random() < 0.2:
            words[draw.randrange(len(words))] = draw.choice(VALUES)
        self.words = words
        return sum(map(len, words))

    def read(self) -> None:
        from gencli.cli.app import run
        from gencli.cli.console import Console

        os.chdir(self.root)
        out, err, before = io.TextIOWrapper(io.BytesIO()), io.StringIO(), dict(os.environ)
        try:
            os.environ.update({"HF_HUB_OFFLINE": "1", **self.variables})
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                code = run(self.words, Console())
        except SystemExit as error:
            code = error.code
        finally:
            os.environ.clear()
            os.environ.update(before)
        if code:
            raise GencliError(err.getvalue() or f"exit code {code}")

    def restore(self) -> None:
        """Nothing of its files was changed."""


VALUES = [
    "", " ", "a", "0", "1", "2", "-1", "0.5", "1e9", "-1e9", "1e400", "nan", "-inf", "inf", "9" * 400, "0x10", "1_000",
    "१", "x" * 5000, "é" * 300, "\ud800", "\udcff", "\x1b[2J\n", "a=b", "=", "=1", "1=", "5=1e39",
    ":", "::", "a:b:c", "1x1",
    "0x0", "99999x1", "64x64", "--", "-", "--nosuch", "nosuch.png", "nosuch/", "none", "null", "true", "cpu", "cuda:99",
    "meta", "float8", "{prompt}", "{nosuch}", "{", "a\0b", "%s", "\n", "*", "[1]", "model", "model/config.json",
]  # fmt: skip
COMMANDS = {
    "text": ["Once"], "image": ["apple", "-m", "nosuch"], "chat": ["-m", "nosuch"], "score": ["apple", "nosuch.png"],
    "codes": ["nosuch.png"], "upscale": ["nosuch.png"], "models show": ["nosuch"], "models check": ["model"],
    "models list": [], "train score-text": ["nosuch"], "train score-image": ["nosuch"],
}  # fmt: skip
NEVER = {"--help", "--debug", "--version", "--install-completion", "--show-completion"}


class Parameter:
    """An option of a command."""

    def __init__(self, option: Any):
        self.name = max(option.opts, key=len)
        self.flag = bool(getattr(option, "is_flag", False))
        self.variable = option.envvar if isinstance(option.envvar, str) else ""
        self.sound = ["1", "2", "0.5", *(option.metavar or "").split("|")]


def parameters(command: str) -> list[Parameter]:
    """Return the options of a command, in order of their names."""
    import typer

    from gencli.cli.app import app

    found: Any = typer.main.get_command(app)
    for word in command.split():
        found = found.get_command(None, word)
    return [Parameter(one) for one in found.params if one.opts[0].startswith("-") and not NEVER & set(one.opts)]


KINDS: dict[str, Callable[[str, Path], Kind]] = {"hub": HubKind, "command line": CommandKind}
