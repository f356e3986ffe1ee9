"""HTTP requests to the hub, through huggingface_hub's session, with errors in gencli's words.

A server is not trusted to be quick, or to come to an end: a request runs in a thread of its own, so that a server that
sends single bytes cannot hold the program.
"""

from __future__ import annotations

import contextlib
import os
import queue
import re
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

from gencli.checkpoints.hub_cache import COMMIT, HubId
from gencli.errors import GencliError

STALL_RATE, STALL_SECONDS = 1000, 60.0  # a transfer with fewer bytes per second, for so long, is given up
WAIT_LIMIT = 60  # seconds that the hub may ask to wait, in all
ETAG = re.compile(r"(?:W/)?\"?\w[\w.-]{0,127}\"?", re.ASCII)
TRIES = 6  # connections in a row that give no byte
MESSAGE_LIMIT = 300  # characters of the hub's own words that an error repeats


class NetworkError(Exception):
    """A connection that failed; another may not."""


@dataclass(frozen=True)
class Answer:
    """An answer's status, headers, the headers of the redirects that led to it, and the body as it comes, undecoded."""

    status: int
    headers: Mapping[str, str]
    redirects: Sequence[Mapping[str, str]]
    body: Iterator[bytes]

    def check(self, hub_id: HubId, name: str) -> None:
        """Raise GencliError for an ETag or a commit that is none. Nothing depends on them, but such a hub lies."""
        for headers in (*self.redirects, self.headers):
            commit, etag = headers.get("X-Repo-Commit"), headers.get("X-Linked-ETag")
            if commit is not None and not COMMIT.fullmatch(commit):
                raise GencliError(f"{hub_id}: the Hub gives {name} the commit {commit!r:.100}, which is not one")
            etag = headers.get("ETag") if etag is None and commit is not None else etag
            if etag is not None and not ETAG.fullmatch(etag):
                word = etag.removeprefix("W/").strip('"')
                raise GencliError(f"{hub_id}: the Hub gives {name} the ETag {word!r:.100}, which is not a plain word")


class Watch:
    """Receives what a request's thread sends, and gives up when too little comes."""

    def __init__(self, hub_id: HubId):
        self.hub_id = hub_id
        self.restart()

    def restart(self) -> None:
        """Begin to measure anew, after a pause that was meant."""
        self._since, self._bytes = time.monotonic(), 0

    def receive(self, box: queue.Queue[Any]) -> Any:
        """Return the next item. Raise NetworkError for a failed connection, GencliError for a stalled transfer."""
        while True:
            left = self._since + STALL_SECONDS - time.monotonic()
            if left <= 0:
                if self._bytes < STALL_RATE * STALL_SECONDS:
                    what = f"it sent {self._bytes} bytes in {STALL_SECONDS:.0f} seconds"
                    raise cannot_fetch(self.hub_id, what, begun=True)
                self.restart()
                continue
            with contextlib.suppress(queue.Empty):
                item = box.get(timeout=left)
                if isinstance(item, Exception):
                    raise NetworkError(_one_line(item)) from item
                self._bytes += len(item) if isinstance(item, bytes) else 0
                return item


@contextlib.contextmanager
def library() -> Iterator[None]:
    """Keep huggingface_hub quiet. Import it inside only."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # read when the library is imported
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from huggingface_hub.utils import logging

        logging.get_logger("huggingface_hub").setLevel("CRITICAL")
        yield


def fetch(
    hub_id: HubId,
    name: str,
    url: str,
    file: BinaryIO,
    *,
    size: int | None,
    limit: int,
    tries: int = TRIES,
    update: Callable[[int], None] = lambda number: None,
    wait: Callable[[int], None] = lambda seconds: None,
) -> None:
    """Append the body at `url` to `file`, after what is in it, through breaks for as long as each try gets further.

    name: what it is, for messages. size: bytes that the file must have in the end, if known; limit: bytes that it may
    have. `update` is called with the bytes added, `wait` with the seconds of a pause that the hub asks for.
    Raise GencliError when the hub cannot be reached, refuses, asks for too long a pause, sends too much, or hardly
    anything.
    """
    watch, failures, pauses, waited = Watch(hub_id), 0, 0, 0
    while file.tell() != size:
        start = file.tell()
        try:
            with _request(url, start, watch) as answer:
                if answer.status not in (200, 206, 429):
                    raise _refusal(hub_id, answer)
                if answer.status != 429:
                    answer.check(hub_id, name)
                    if start and answer.status == 200:  # the range was ignored: here comes the whole file
                        file.seek(0)
                        file.truncate()
                        update(-start)
                    for chunk in answer.body:
                        if file.tell() + len(chunk) > limit:
                            raise GencliError(f"{hub_id}: the Hub sends more of {name} than the {limit} bytes expected")
                        file.write(chunk)
                        update(len(chunk))
                    if size is None:
                        return
                    if file.tell() < size:
                        raise NetworkError(f"it ended after {file.tell()} of {size} bytes")
                    continue
                pause = _retry_after(answer.headers.get("Retry-After"), default=2**pauses)
        except NetworkError as error:
            failures = 0 if file.tell() > start else failures + 1
            if failures >= tries:
                raise cannot_fetch(hub_id, str(error), size is not None or file.tell() > 0) from None
            time.sleep(1)
            continue
        pauses, waited = pauses + 1, waited + pause
        if waited > WAIT_LIMIT:
            asked = f"it asks to wait {pause} seconds; " if pause > WAIT_LIMIT else "try again in some minutes, "
            hint = f"{asked}{'try again then, ' if pause > WAIT_LIMIT else ''}or set HF_TOKEN"
            raise GencliError(f"{hub_id}: the Hub asks to slow down (429)", hint)
        wait(pause)
        time.sleep(pause)
        watch.restart()


def cannot_fetch(hub_id: HubId, reason: str, begun: bool) -> GencliError:
    """Return the error for a hub that cannot be reached, or not any more. begun: something of it came before."""
    from huggingface_hub import constants

    hint = f"is there a network? And {hub_id} is not a folder here"
    if begun:
        hint = "run it again to resume the download"
    return GencliError(f"cannot fetch {hub_id} from {constants.ENDPOINT}: {reason}", hint)


@contextlib.contextmanager
def _request(url: str, start: int, watch: Watch) -> Iterator[Answer]:
    """Send a GET request for what follows the first `start` bytes. Raise as `Watch.receive`."""
    box: queue.Queue[Any] = queue.Queue(maxsize=16)
    unwanted = threading.Event()
    threading.Thread(target=_receive, args=(url, start, box, unwanted), daemon=True).start()
    try:
        response = watch.receive(box)
        redirects = [one.headers for one in response.history]
        yield Answer(response.status_code, response.headers, redirects, iter(lambda: watch.receive(box), None))
    finally:
        unwanted.set()


def _receive(url: str, start: int, box: queue.Queue[Any], unwanted: threading.Event) -> None:
    """Put into `box` the response, the chunks of its body, and None; or the exception that came instead."""
    from huggingface_hub import constants
    from huggingface_hub.utils import build_hf_headers, get_session

    def put(item: object) -> None:
        while not unwanted.is_set():
            with contextlib.suppress(queue.Full):
                return box.put(item, timeout=1)
        return None

    try:
        headers = {**build_hf_headers(), "Accept-Encoding": "identity"}
        if start:
            headers["Range"] = f"bytes={start}-"
        session: Any = get_session()
        timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT
        if callable(session.stream):  # httpx, since version 1; in requests it is a setting
            opened = session.stream("GET", url, headers=headers, timeout=timeout)
        else:
            opened = session.get(url, headers=headers, timeout=timeout, stream=True)
        with opened as response:
            put(response)
            raw = getattr(response, "iter_raw", None)
            for chunk in raw() if raw else response.raw.stream(2**16, decode_content=False):
                put(chunk)
                if unwanted.is_set():
                    return
        put(None)
    except Exception as error:  # of the HTTP library, which is another one from version to version, and what is below
        put(error)


def _retry_after(header: str | None, default: int) -> int:
    """Return the seconds to wait; a date or anything else that is not a number counts as `default`."""
    return int(header) if header is not None and re.fullmatch(r"[0-9]{1,9}", header) else default


def _refusal(hub_id: HubId, answer: Answer) -> GencliError:
    """Return what an answer without content means."""
    from huggingface_hub import constants, get_token

    address = f"{constants.ENDPOINT}/{hub_id.repo}"
    token, status = get_token(), answer.status
    code = answer.headers.get("X-Error-Code")
    message = " ".join((answer.headers.get("X-Error-Message") or "").split())[:MESSAGE_LIMIT]
    if code == "GatedRepo":
        hint = f"ask for access, or accept its terms, at {address}"
        hint += ", signed in as the owner of your token" if token else "; then set HF_TOKEN to a token of yours"
        return GencliError(f"{hub_id} is gated: its owner decides who may fetch it", hint)
    if code == "RevisionNotFound":
        return GencliError(f"{hub_id.repo} has no revision {hub_id.revision!r}", f"its branches and tags: {address}")
    if status == 401 and token and "credentials" in message:
        return GencliError(
            f"{hub_id}: the Hub does not accept your token", "check HF_TOKEN, or the one of `hf auth login`"
        )
    if code == "RepoNotFound" or status in (401, 404):
        hint = "check the name" + ("" if token else "; for a private one set HF_TOKEN to a token of yours")
        return GencliError(f"no model {str(hub_id)!r}: not on this machine, and not at {constants.ENDPOINT}", hint)
    return GencliError(f"{hub_id}: the Hub answers {status}{': ' + message if message else ''}")


def _one_line(error: Exception) -> str:
    text = re.sub(r"\[Errno -?\d+\] ", "", " ".join(str(error).split()))
    return text[:MESSAGE_LIMIT] or type(error).__name__
