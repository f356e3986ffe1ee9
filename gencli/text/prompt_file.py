"""A prompt that was read, in a file, so that the next run reads only what is new: `--prompt-cache FILE`.

A safetensors file: the ids, and the keys and values of each layer. Its metadata say of which model it is and what its
numbers add up to. It is rewritten, whole or not at all, where less than KEPT of a prompt is in it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from gencli import __version__
from gencli.atomic import check_target, write_over
from gencli.checkpoints.safetensors_file import SafetensorsFile
from gencli.errors import GencliError
from gencli.kernels.packed import Packed
from gencli.models.kv_cache import KeyValueCache
from gencli.models.module import LanguageModel
from gencli.text.prompt_cache import SPARE, PromptCache

KIND = "gencli prompt cache"
KEPT = 0.75
SAMPLE = 256  # bytes at the beginning, the middle and the end of a weight that tell models apart


class PromptFile(PromptCache):
    """What a model has read, with a file that holds the first prompt. note: why what is there is not used, if so.

    Raise GencliError for a file that is something else, which is never written over, and where none can be written.
    """

    def __init__(self, path: Path, module: LanguageModel):
        super().__init__()
        self.path, self.module = path, module
        self.note: str | None = None
        self._known: int | None = 0  # tokens of the first prompt that the file has; None: that was looked at
        check_target(path)
        if path.exists() and path.stat().st_size:
            self._restore(self._open())

    def read(self, row: int, ids: list[int]) -> None:
        super().read(row, ids)
        if self._known is not None and self._known < KEPT * len(ids) - 1:  # the last one is always read
            try:
                write_over(self.path, self._content(row, ids))
            except OSError as error:
                raise GencliError(f"cannot keep the prompt in {self.path}: {error.strerror or error}") from None
        self._known = None

    def take(self, module: LanguageModel, row: int, ids: list[int], positions: int) -> int:
        known = super().take(module, row, ids, positions)
        self._known = None if self._known is None else known
        return known

    def _content(self, row: int, ids: list[int]) -> bytes:
        assert self.cache is not None
        one, count = self.cache.row(row), len(ids)
        tensors = {"tokens": torch.tensor(ids), **_named(one, count)}
        tensors = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
        metadata = {"kind": KIND, "model": fingerprint(self.module), "sum": _sum(tensors)}
        return save(tensors, metadata)

    def _open(self) -> SafetensorsFile:
        try:
            file = SafetensorsFile(self.path)
        except GencliError:
            file = None
        if file is None or file.metadata.get("kind") != KIND:
            hint = "name another file, or remove it if it was one"
            raise GencliError(f"{self.path} is not a prompt cache, and is not written over", hint)
        return file

    def _restore(self, file: SafetensorsFile) -> None:
        if file.metadata.get("model") != fingerprint(self.module):
            self.note = f"{self.path} is of another model or precision: it is written anew"
            return
        tensors = {name: file.get(name) for name in file.shapes}
        tokens = tensors.get("tokens", torch.empty(0))
        ids = tokens.tolist() if tokens.dtype == torch.long and tokens.dim() == 1 else []
        cache = self.module.new_cache(1, min(len(ids) + SPARE, max(self.module.max_length, 1)))
        places = _named(cache, len(ids)) if 0 < len(ids) <= cache.positions else {}
        fits = all(name in tensors and _alike(tensors[name], place) for name, place in places.items())
        if not places or not fits or len(tensors) != len(places) + 1 or file.metadata.get("sum") != _sum(tensors):
            self.note = f"{self.path} is damaged: it is written anew"
            return
        for name, place in places.items():
            place.copy_(tensors[name])
        cache.lengths[0] = len(ids)
        self.cache, self.ids, self._regimes = cache, [ids], [self.module.rope_regime(len(ids))]


def _named(cache: KeyValueCache, count: int) -> dict[str, Tensor]:
    """The first `count` positions of a cache of one row, by name."""
    layers = {"keys": cache.keys, "values": cache.values}
    named = {f"{name}.{i}": one[0, :, :count] for name, many in layers.items() for i, one in enumerate(many)}
    rows = {name: getattr(cache, name)[0] for name in cache.ROWS if name != "lengths"}
    return named | {name: row[:count] if name in cache.POSITIONS else row for name, row in rows.items()}


def _alike(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype


def _sum(tensors: Mapping[str, Tensor]) -> str:
    made = hashlib.sha256()
    for name in sorted(tensors):
        made.update(name.encode())
        made.update(tensors[name].contiguous().flatten().view(torch.uint8).numpy().data)
    return made.hexdigest()


def fingerprint(module: LanguageModel) -> str:
    """Return what tells a model from others, and from itself with other weights, an adapter or another precision."""
    made = hashlib.sha256(f"{__version__} {module.compute_dtype} {vars(module).get('config')}".encode())
    for name, parameter in module.named_parameters():
        one = parameter.detach()
        data = one.matrix.data_rows if isinstance(one, Packed) else one
        flat = data.flatten() if data.is_contiguous() else data.T.flatten()
        size, middle = SAMPLE // data.element_size(), flat.numel() // 2
        made.update(f"{name} {tuple(one.shape)} {one.kind if isinstance(one, Packed) else one.dtype}".encode())
        for part in (flat[:size], flat[middle : middle + size], flat[-size:]):
            made.update(part.cpu().contiguous().view(torch.uint8).numpy().data)
    return made.hexdigest()
