"""`gencli serve`: an HTTP server with OpenAI's routes, Anthropic's and ollama's."""

from __future__ import annotations

import contextlib
import math
import re
import socket
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import typer

from gencli.checkpoints.find import find, find_local
from gencli.cli.console import Console
from gencli.cli.options import Fetching, Reporting, command
from gencli.errors import GencliError, UsageError, about
from gencli.options import MODEL, Option, check, file, flag, integer, several, string
from gencli.serve import wire
from gencli.serve.client import connect
from gencli.spec import ModelSpec, completing

LISTENING, LIMITS = "Listening", "Limits"
KEY = 8  # characters of a key at least
ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^/\s?#@A-Z]+")  # as browsers write it
ANYONE = ("*", "null")  # null is that of a file, and of any page that wants it to be
UNITS = {"": 1, "s": 1, "m": 60, "h": 3600}
SIZES = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30}

app = typer.Typer(add_completion=False, rich_markup_mode=None)


def read_duration(text: str) -> float:
    """Return the seconds that a text such as `90`, `30s`, `10m` or `1h` means. Raise UsageError."""
    if text == "forever":
        return math.inf
    found = re.fullmatch(r"(\d{1,9}(?:\.\d{1,3})?)([smh]?)", text)
    if found is None:
        raise UsageError(f"{text!r} is no duration", "as in 30s, 10m, 1h or forever")
    return float(found[1]) * UNITS[found[2]]


def read_size(text: str) -> float:
    """Return the bytes that a text such as `500M` or `8G` means. Raise UsageError."""
    found = re.fullmatch(r"(\d{1,12}(?:\.\d{1,3})?)([kmg]?)(?:i?b)?", text.lower())
    if found is None:
        raise UsageError(f"{text!r} is no amount of memory", "as in 500M or 8G")
    return float(found[1]) * SIZES[found[2]]


def _reader(name: str, read: Callable[[str], float], usual: float) -> Callable[[str | None], float]:
    """Return what reads the text of an option, whose errors name it; `usual` holds where there is none."""

    def read_option(text: str | None) -> float:
        with about(name):
            return usual if text is None else read(text)

    return read_option


def _check_addresses(_: str, texts: Sequence[str]) -> None:
    for text in texts:
        _address(text)


def _check_origins(name: str, origins: Sequence[str]) -> None:
    for origin in origins:
        if origin not in ANYONE and not ORIGIN.fullmatch(origin):
            raise UsageError(f"{name} {origin!r}: wants the origin of a page", "as in http://localhost:3000")


def _check_key(name: str, key: str) -> None:
    if len(key) < KEY:
        raise UsageError(f"{name}: wants at least {KEY} characters")


@dataclass(eq=False, repr=False)
class Served:
    """Which models, and where."""

    # fmt: off
    model: tuple[str, ...] = Option(str, "-m, --model NAME",
        "Model that clients may use: short name, folder, file or Hugging Face id, which is downloaded at the start; "
        "clients call a folder or file by its last name (repeatable; default: the built-in models, those in the Hub's "
        "cache and ollama's).", MODEL, several=True,
        complete=completing()).field(())
    allow_pull: bool = flag(False, "--allow-pull",
        "Download a Hugging Face id if a client asks for one that is not on this machine.", MODEL)
    auto: bool = flag(False, "--auto",
        "Stop after --keep without a request; do nothing if a server is running already.", LISTENING)
    socket: Path | None = file("--socket PATH",
        "Listen at this Unix socket, which you alone can reach, in a folder that is there (default: gencli.sock in "
        "your runtime folder).",
        LISTENING)
    listen: tuple[str, ...] = several(str, "--listen [HOST:]PORT",
        "Also listen on TCP; without HOST, only this machine can connect. Port 0 picks a free port (repeatable).",
        LISTENING, valid=_check_addresses, also=("--port", "--host", "-p"))
    allow_origin: tuple[str, ...] = several(str, "--allow-origin ORIGIN",
        "Also answer web pages of this origin, as in http://localhost:3000; `*` is any, and needs --key (repeatable; "
        "default: pages of the server's own alone).", LISTENING, valid=_check_origins, also=("--cors", "--origins"))
    key: str | None = string(None, "--key KEY",
        f"Require this key of clients (Authorization: Bearer KEY, or x-api-key: KEY), at least {KEY} characters; "
        "needed if other machines can reach the address. Other users can see it among the processes, but not in the "
        "environment.", LISTENING, env="GENCLI_SERVE_KEY", valid=_check_key)
    keep: float = Option(float, "--keep TIME",
        "Unload a model after this time without a request: 30s, 10m, 1h, `forever`, or 0 for at once (default: 10m).",
        LIMITS, word=str, read=_reader("--keep", read_duration, 600.0)).field(600.0)
    max_memory: float = Option(float, "--max-memory SIZE",
        "Most memory for the weights of all loaded models, such as 8G (default: no limit).", LIMITS, word=str,
        read=_reader("--max-memory", read_size, math.inf)).field(math.inf)
    queue: int = integer(64, "--queue N",
        "Most requests in progress, at least 1; further ones get status 429 (default: 64).", LIMITS, within=(1, 4096))
    grace: float = Option(float, "--grace TIME",
        "How long answers in progress may continue when the server stops (default: 30s).", LIMITS, word=str,
        read=_reader("--grace", read_duration, 30.0)).field(30.0)
    # fmt: on

    def __post_init__(self) -> None:
        check(self)


@command(
    app,
    epilog="""Examples:
    gencli serve --listen 8080
    curl localhost:8080/v1/completions -d '{"model": "stories", "prompt": "Once"}' -H 'Content-Type: application/json'
    gencli serve --listen 11434    # where programs look for ollama
    gencli serve -m ~/models/smollm2.gguf --listen 0.0.0.0:8080 --key "$KEY"
    """,
    panels=(MODEL, LISTENING, LIMITS),
    without=("lora", "stats"),
)
def serve(ctx: typer.Context, served: Served, spec: ModelSpec, fetching: Fetching, reporting: Reporting) -> None:
    """Keep models warm and answer HTTP requests in the forms of OpenAI, Anthropic and ollama: texts, chats and images.

    Prints one line per address as soon as it can be reached. Ctrl-C lets answers in progress end, and stops the server.
    """
    addresses = [_address(text) for text in served.listen]
    _check_hosts(addresses)
    strangers = [host for host, _ in addresses if host not in ("127.0.0.1", "localhost", "::1")]
    if strangers and not served.key:
        raise UsageError(f"--listen {strangers[0]}: other machines reach it, and there is no key", "add --key KEY")
    if (anyone := set(ANYONE) & {*served.allow_origin}) and not served.key:
        raise UsageError(f"--allow-origin {anyone.pop()}: any page could use it, and there is no key", "add --key KEY")
    names = _names(served.model)
    if missing := [name for name in ("starlette", "uvicorn") if find_spec(name) is None]:
        raise GencliError(f"{missing[0]} is not installed", "pip install 'gencli[serve]'")
    console: Console = ctx.obj
    if served.auto and connect(spec.threads) is not None:
        if addresses:
            console.note("a server is running already, and is left as it is: --listen has no effect")
        return
    greeting = wire.greeting(spec.threads)  # before a library changes the environment
    fetch = fetching.finder(console, spec)
    found = {name: fetch(model) for name, model in names.items()}  # before what takes long to import
    from gencli import devices
    from gencli.serve.app import Server
    from gencli.serve.guard import Limits
    from gencli.serve.handover import Handover
    from gencli.serve.pool import Pool
    from gencli.serve.run import serve as run
    from gencli.serve.run import tcp_socket, unix_socket

    devices.set_threads(spec.threads)
    devices.pick_device(spec.device)  # raises for one that is not there
    offline = fetching.offline or (not served.allow_pull and "gencli serve without --allow-pull")
    finder = partial(find, offline=offline, allow_pickle=spec.allow_pickle)
    pool = Pool(names, spec, finder, keep=served.keep, memory=served.max_memory, pull=served.allow_pull)
    hosts = tuple(host for host in strangers if host not in ("0.0.0.0", "::"))
    pool.look(found)
    limits, any_host = Limits(queue=served.queue), len(hosts) < len(strangers)
    server = Server(pool, limits, served.key, hosts, any_host=any_host, origins=served.allow_origin)
    with contextlib.ExitStack() as stack:
        path = served.socket or wire.own_folder() / wire.SOCKET
        sockets = [stack.enter_context(unix_socket(path))]
        commands = stack.enter_context(unix_socket(path.with_name(path.name + wire.SUFFIX)))
        lines = [str(path)]
        for host, port in addresses:
            sockets.append(stack.enter_context(tcp_socket(host, port)))
            shown = f"[{host}]" if ":" in host else host
            lines.append(f"http://{shown}:{sockets[-1].getsockname()[1]}")
        console.note(f"serving {', '.join(pool.names()) or 'no model'}")
        run(
            server,
            sockets,
            Handover(server, greeting),
            commands,
            grace=served.grace,
            ready=lambda: print("\n".join(lines), flush=True),
            idle=served.keep if served.auto else math.inf,
        )


def _names(models: tuple[str, ...]) -> dict[str, str]:
    """Return the names for clients of the models of the command line. Raise UsageError for two of one name."""
    names: dict[str, str] = {}
    for model in models:
        local = find_local(model)
        paths = {"file": local.path.stem, "folder": local.path.name} if local else {}
        name = paths.get(local.kind, model) if local else model
        if name in names:
            raise UsageError(f"--model {model}: another model goes by the name {name}")
        names[name] = model
    return names


def _check_hosts(addresses: Iterable[tuple[str, int]]) -> None:
    """Raise UsageError for a host that has no address."""
    for host, port in addresses:
        try:
            socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError):
            raise UsageError(f"--listen {host}:{port}: unknown host", "without HOST it is this machine") from None


def _address(text: str) -> tuple[str, int]:
    """Return host and port of [HOST:]PORT. Raise UsageError."""
    if "://" in text:
        raise UsageError(f"--listen {text}: wants [HOST:]PORT", f"leave out {text.partition('://')[0]}://")
    host, _, port = text.rpartition(":")
    if not port.isdecimal() or int(port) > 65535:
        raise UsageError(f"--listen {text!r}: wants [HOST:]PORT, as in 8080 or 127.0.0.1:8080")
    return host.strip("[]") or "127.0.0.1", int(port)
