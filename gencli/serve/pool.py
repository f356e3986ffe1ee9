"""The models of a server: opened when they are first asked for, put away when nobody has asked for long."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import time
from collections.abc import AsyncIterator, Callable, Hashable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from gencli.checkpoints import hub_cache, ollama
from gencli.checkpoints.assets import EmbeddingRef, LoraRef
from gencli.checkpoints.find import Source, embedded_names, is_whole
from gencli.checkpoints.formats.janus import is_janus
from gencli.checkpoints.hub_cache import HubId
from gencli.checkpoints.open import open_checkpoint
from gencli.checkpoints.uses import USES, wrong_kind
from gencli.errors import GencliError
from gencli.image.draw import Drawing
from gencli.image.found import Inputs
from gencli.image.ready import open_inputs
from gencli.image.request import ImageSpec
from gencli.serve.engine import ImageEngine, TextEngine
from gencli.serve.refusal import INVALID, UNAVAILABLE, Refusal, no_model
from gencli.serve.wire import FileState, files_at
from gencli.spec import ModelSpec
from gencli.text.load import language_model, open_model

E = TypeVar("E", TextEngine, ImageEngine)
MISSING = {TextEngine: "no language model", ImageEngine: "no model that draws from a prompt"}


@dataclass(eq=False)
class Warm:
    """A model that is open, and what it was opened for. users: those at work with it. keep: seconds after which it may
    go, where a client has said so."""

    engine: TextEngine | ImageEngine
    wanted: Wanted
    users: int = 0
    since: float = field(default_factory=time.monotonic)
    keep: float | None = None

    def until(self, usual: float) -> float:
        """Return when it may go, by `time.monotonic`, if nobody works with it until then. usual: seconds to keep it."""
        return self.since + (usual if self.keep is None else self.keep)


@dataclass(frozen=True)
class Wanted:
    """A model to open. how: what makes it another one beside its files: how they are opened, and what it is called.
    files: those at `paths`, as they were when it was asked for. reader: the language model in the files of one that
    also draws."""

    name: str
    how: Hashable
    paths: tuple[Path, ...]
    files: list[FileState]
    open: Callable[[], TextEngine | ImageEngine]
    reader: Wanted | None = None

    @property
    def key(self) -> Hashable:
        return self.how, tuple(map(tuple, self.files))

    @property
    def text(self) -> Wanted | None:
        """The language model among its files, if there is one."""
        return self if isinstance(self.how, tuple) and self.how[0] == "text" else self.reader

    @property
    def size(self) -> int:
        """Bytes of the files, without those that lie beside one."""
        own = tuple(f"{path}{os.sep}" for path in self.paths)
        return sum(int(file[1]) for file in self.files if f"{file[0]}{os.sep}".startswith(own))

    @property
    def is_current(self) -> bool:
        """Whether the files are still the same."""
        return files_at(self.paths) == self.files


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
        self.warm: dict[Hashable, Warm] = {}
        self.named: dict[str, Wanted] = {}  # by the names of clients
        self.opening = asyncio.Lock()
        self.used = time.monotonic()  # when a model was let go of last

    def names(self) -> list[str]:
        """Return the names that a client may use."""
        if self.given:
            return list(self.given)
        cached = {one.name for one in hub_cache.snapshots() if is_whole(one.folder)}
        return [*embedded_names(), *sorted(cached), *ollama.names()]

    def written(self, name: str) -> int:
        """Return when the file or folder of a model was written, in seconds since 1970; 0 where that cannot be told."""
        try:
            return int(self.find(self.given.get(name, name), offline=True).path.stat().st_mtime)
        except (GencliError, OSError):
            return 0

    def look(self, found: Mapping[str, Source]) -> None:
        """Look at models, found by the names of clients, and read none of their weights. Raise GencliError for one that
        can not be opened."""
        for name, source in found.items():
            self.named[name] = _model(source, self.spec)

    @contextlib.asynccontextmanager
    async def use(self, name: str, kind: type[E], *, keep: float | None = None) -> AsyncIterator[E]:
        """Hold the warm model of this name and kind. keep: seconds after which it may go, in place of the server's
        own until somebody says another time. Raise Refusal."""
        try:
            wanted = await asyncio.to_thread(self.wanted, name)
            wanted = (wanted.text or wanted) if kind is TextEngine else wanted
            warm = await self.acquire(wanted)
        except GencliError as error:
            raise Refusal.of(error, status=UNAVAILABLE, param="model") from None
        try:
            if not isinstance(warm.engine, kind):
                raise Refusal(INVALID, f"{name} is {MISSING[kind]}", param="model")
            warm.keep = warm.keep if keep is None else keep
            yield warm.engine
        except (GencliError, Refusal) as error:
            if wanted.name != name:  # a path on this machine, which is nothing to the client
                error.message = error.message.replace(wanted.name, name)
            raise
        finally:
            self.release(warm)

    async def acquire(self, wanted: Wanted) -> Warm:
        """Return a model, opened first where it is not warm; it stays until `release`. Raise Refusal, GencliError."""
        async with self.opening:  # one at a time: two would need the memory of both
            if (warm := self.warm.get(wanted.key)) is None:
                self._make_room(wanted)
                opening = asyncio.ensure_future(asyncio.to_thread(wanted.open))
                try:
                    await asyncio.shield(opening)
                finally:  # who asked may have gone; the thread goes on, and nobody else would close what it opens
                    warm = self.warm[wanted.key] = Warm(await opening, wanted)
            warm.users += 1
            return warm

    def release(self, warm: Warm) -> None:
        """Say that one user needs a model no more."""
        warm.users -= 1
        warm.since = self.used = time.monotonic()
        if warm.until(self.keep) <= warm.since:
            self.put_away()

    def fetches(self, name: str) -> bool:
        """Return whether a model of this name may be downloaded for a client."""
        return self.pull and not self.given and _is_id(name)

    def let_go(self, wanted: Wanted) -> None:
        """Close a model, at once or when those at work with it are done."""
        if (warm := self.warm.get(wanted.key)) is not None:
            warm.keep = 0.0
            self.put_away()

    def put_away(self, *, all: bool = False) -> None:
        """Close the models that were idle for too long, or all of them."""
        for key, warm in list(self.warm.items()):
            if all or (not warm.users and time.monotonic() >= warm.until(self.keep)):
                self.warm.pop(key).engine.close()

    def refuse(self, refusal: Refusal) -> None:
        """Answer all requests that wait for a model with a refusal."""
        for warm in self.warm.values():
            warm.engine.refuse(refusal)

    async def watch(self) -> None:
        """Put idle models away, for ever."""
        while True:
            await asyncio.sleep(min(max(self.keep / 10, 0.1), 10))
            self.put_away()

    def wanted(self, name: str) -> Wanted:
        """Find a model by the name of a client. Raise Refusal for one that it may not use, GencliError."""
        if (known := self.named.get(name)) is None or not known.is_current:
            known = self.named[name] = _model(self.find(self._called(name)), self.spec)
        return known

    def _called(self, name: str) -> str:
        """Return what a name stands for. Raise Refusal for one that a client may not use."""
        if name in self.given:
            return self.given[name]
        if name in (known := self.names()) or self.fetches(name):
            return name
        raise no_model(name, known)

    def _make_room(self, wanted: Wanted) -> None:
        """Put idle models away, the longest idle first, until there is room for one more; and this one, if it is open
        as its files were before. Raise Refusal."""
        for key, warm in list(self.warm.items()):
            if warm.wanted.how == wanted.how and not warm.users:
                self.warm.pop(key).engine.close()
        idle = sorted(((warm.since, key) for key, warm in self.warm.items() if not warm.users), key=lambda one: one[0])
        while sum(warm.engine.bytes for warm in self.warm.values()) + wanted.size > self.memory:
            if not idle:
                message = f"no memory left for {wanted.name} beside the models at work"
                raise Refusal(UNAVAILABLE, message, param="model")
            self.warm.pop(idle.pop(0)[1]).engine.close()


def _model(source: Source, spec: ModelSpec) -> Wanted:
    """Return the model at `source`. Raise GencliError for what its small files and headers tell is none."""
    found = open_checkpoint(source, allow_pickle=spec.allow_pickle)
    if found.family in USES:
        raise wrong_kind(found, "text or image")
    folder = not found.contents.is_file and not found.contents.has("model_index.json")
    if found.kind == "text" or found.format == "gguf" or (found.kind == "other" and folder):
        language_model(found)[0].tensors()
        return text_model(source, spec)
    same = ("device", "dtype", "threads", "allow_pickle", "ignore_config")
    drawn, inputs = ImageSpec(**{field: getattr(spec, field) for field in same}, model=source.name), Inputs(source)
    open_inputs(inputs, drawn)
    reader = text_model(source, spec) if is_janus(found.contents) else None
    return dataclasses.replace(image_model(inputs, drawn), reader=reader)


def text_model(source: Source, spec: ModelSpec, adapters: tuple[LoraRef, ...] = ()) -> Wanted:
    """Return the language model at `source`. adapters: the LoRAs of `spec`, found."""
    quantize = getattr(spec, "quantize", None)
    paths = (source.path, *(one.path for one in adapters))
    scales = tuple(one.scale for one in adapters)
    how = ("text", source.name, spec.device, spec.dtype, spec.allow_pickle, spec.ignore_config, quantize, scales, paths)

    def make() -> TextEngine:
        return TextEngine(open_model(source, spec, adapters=adapters, quantize=quantize))

    return Wanted(source.name, how, paths, files_at(paths), make)


def image_model(inputs: Inputs, spec: ImageSpec) -> Wanted:
    """Return the model that draws what `inputs` are for."""
    one_each = (inputs.model, inputs.classifier, inputs.vae, inputs.refiner, inputs.prior)
    sources = [*one_each, *inputs.upscalers, *inputs.controls]
    assets: tuple[LoraRef | EmbeddingRef, ...] = (*inputs.loras, *inputs.embeddings)
    paths = (*(one.path for one in sources if one is not None), *(one.path for one in assets))
    roles = tuple(None if one is None else (one.name, one.path) for one in sources)

    def make() -> ImageEngine:
        opened = open_inputs(inputs, spec)
        return ImageEngine(Drawing(opened, inputs, spec), opened, inputs, wanted.size)

    wanted = Wanted(inputs.model.name, ("image", spec, roles, assets), paths, files_at(paths), make)
    return wanted


def _is_id(name: str) -> bool:
    found = HubId.parse(name)
    return found is not None and "/" in found.repo and not Path(name).exists()
