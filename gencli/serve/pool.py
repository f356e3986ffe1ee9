"""The models of a server: opened when they are first asked for, put away when nobody has asked for long."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from gencli.checkpoints import hub_cache
from gencli.checkpoints.find import Source, embedded_names, is_whole
from gencli.checkpoints.hub_cache import HubId
from gencli.checkpoints.open import open_checkpoint
from gencli.errors import GencliError
from gencli.image.open import open_image_checkpoint
from gencli.image.pipeline import load
from gencli.image.stages import check_reads_text
from gencli.serve.engine import Engine, ImageEngine, TextEngine
from gencli.serve.refusal import INVALID, NOT_FOUND, UNAVAILABLE, Refusal
from gencli.spec import ModelSpec
from gencli.text.load import open_model


@dataclass(eq=False)
class _Warm:
    """A model that is open. kind: text or image. users: requests under way. opened: the image checkpoint, if one."""

    engine: Engine
    kind: str
    opened: Any = None
    users: int = 0
    since: float = field(default_factory=time.monotonic)


class Pool:
    """The models that clients may name, and those of them that are warm.

    given: name → what it was called on the command line. With none, the embedded models and those in the hub's cache
    may be named. find: how a name is found; it fetches nothing but with `pull`. keep: seconds after which an idle model
    is put away. memory: bytes that the weights of all warm models may take together.
    """

    def __init__(
        self,
        given: Mapping[str, str],
        spec: ModelSpec,
        find: Callable[..., Source],
        *,
        keep: float,
        memory: float,
        pull: bool,
    ):
        self.given, self.spec, self.find = dict(given), spec, find
        self.keep, self.memory, self.pull = keep, memory, pull
        self.warm: dict[str, _Warm] = {}
        self.opening = asyncio.Lock()

    def names(self) -> list[str]:
        """Return the names that a client may use."""
        if self.given:
            return list(self.given)
        cached = {one.name for one in hub_cache.snapshots() if is_whole(one.folder)}
        return [*embedded_names(), *sorted(cached)]

    @contextlib.asynccontextmanager
    async def use(self, name: str, kind: str) -> AsyncIterator[_Warm]:
        """Hold a warm model of this kind, which is opened first where it is not. Raise Refusal."""
        async with self.opening:  # one at a time: two would need the memory of both
            if (warm := self.warm.get(name)) is None:
                warm = self.warm[name] = await self._open(name)
            warm.users += 1
        try:
            if warm.kind != kind:
                wanted = {"text": "no language model", "image": "no model that draws from a prompt"}[kind]
                raise Refusal(INVALID, f"{name} is {wanted}", param="model")
            yield warm
        finally:
            warm.users -= 1
            warm.since = time.monotonic()
            if not self.keep:
                self.put_away()

    def put_away(self, *, all: bool = False) -> None:
        """Close the models that were idle for too long, or all of them."""
        for name, warm in list(self.warm.items()):
            if all or (not warm.users and time.monotonic() - warm.since >= self.keep):
                self.warm.pop(name).engine.close()

    async def watch(self) -> None:
        """Put idle models away, for ever."""
        while True:
            await asyncio.sleep(min(max(self.keep / 10, 0.1), 10))
            self.put_away()

    async def _open(self, name: str) -> _Warm:
        called = self._called(name)
        try:
            source = await asyncio.to_thread(self.find, called)
            self._make_room(name, _size(source.path))
            return await asyncio.to_thread(partial(_open, source, self.spec))
        except GencliError as error:
            raise Refusal.of(error, status=UNAVAILABLE, param="model") from None

    def _called(self, name: str) -> str:
        """Return what a name stands for. Raise Refusal for one that a client may not use."""
        if name in self.given:
            return self.given[name]
        if name in self.names() or (self.pull and not self.given and _is_id(name)):
            return name
        hint = "gencli models pull fetches one" if not self.given else "it serves those that it was started with"
        raise Refusal(NOT_FOUND, f"no model {name[:200]!r} here ({hint})", param="model", code="model_not_found")

    def _make_room(self, name: str, size: int) -> None:
        """Put idle models away, the longest idle first, until there is room for so many bytes. Raise Refusal."""
        idle = sorted((warm.since, key) for key, warm in self.warm.items() if not warm.users)
        while sum(warm.engine.bytes for warm in self.warm.values()) + size > self.memory:
            if not idle:
                raise Refusal(UNAVAILABLE, f"no memory left for {name} beside the models at work", param="model")
            self.warm.pop(idle.pop(0)[1]).engine.close()


def _open(source: Source, spec: ModelSpec) -> _Warm:
    """Open a model in this thread."""
    found = open_checkpoint(source, allow_pickle=spec.allow_pickle)
    if found.kind == "text" or found.format == "gguf":
        return _Warm(TextEngine(open_model(source, spec)), "text")
    opened = open_image_checkpoint(found, allow_pickle=spec.allow_pickle)
    check_reads_text(opened)
    pipeline = load(opened, device=spec.device, dtype=spec.dtype)
    return _Warm(ImageEngine(pipeline, source.name, _size(source.path)), "image", opened)


def _is_id(name: str) -> bool:
    found = HubId.parse(name)
    return found is not None and "/" in found.repo and not Path(name).exists()


def _size(path: Path) -> int:
    """Return the bytes of the weights at a path."""
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files)
