"""What every architecture's module has beside its weights: a compute dtype, a device, and a line that describes it."""

from __future__ import annotations

import abc
from collections import Counter
from collections.abc import Collection, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

from gencli.kernels import library
from gencli.kernels.packed import Packed
from gencli.models.kv_cache import KeyValueCache


class BaseModel(nn.Module):
    """Base class of the architectures.

    compute_dtype: the dtype that the model computes in, which need not be that of its weights (see `linear`). A model
    made from a config has float32 weights; `checkpoints.build.load` sets the dtype of a loaded one. This is the only
    place to ask for it.
    unread: tensors that files may have beside the model's own, by the model's names.
    """

    compute_dtype: torch.dtype = torch.float32
    unread: Collection[str] = ()

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device


class LanguageModel(BaseModel, abc.ABC):
    """Base class of decoders that predict the next token. B: batch, T: new positions, V: vocabulary.

    cuts_back: whether its cache can be cut back to any earlier length.
    """

    cuts_back: bool = True

    @property
    @abc.abstractmethod
    def max_length(self) -> int:
        """The longest sequence that the model can read, in tokens."""

    @property
    @abc.abstractmethod
    def vocab_size(self) -> int:
        """V, the number of tokens that there are logits for."""

    @abc.abstractmethod
    def new_cache(self, batch: int, positions: int) -> KeyValueCache:
        """Make a cache for `batch` sequences of at most `positions` tokens."""

    def rope_regime(self, length: int) -> int:
        """Return a number that is equal for lengths whose keys are rotated alike, so that a cache serves both."""
        return 0

    @abc.abstractmethod
    def forward(self, ids: Tensor, cache: KeyValueCache | None = None, *, last_only: bool = False) -> Tensor:
        """Return logits (B, T, V) for token ids (B, T); with `last_only` (B, 1, V), those of the last position.

        With a cache the ids continue the sequences in it, and are added to it.
        """


M = TypeVar("M", bound=nn.Module)


def channels_last(module: M) -> M:
    """Lay the weights of a module out as convolutions on CUDA like them. Return the module."""
    return module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # which torch's stubs lack


def stored_as(module: nn.Module) -> str:
    """Return the type that most of a model's parameters are stored in: `torch.float16`, or `Q4_K` of packed ones."""
    sizes: Counter[str] = Counter()
    for parameter in module.parameters():
        one = parameter.data
        sizes[one.kind if isinstance(one, Packed) else str(one.dtype)] += one.numel()
    return sizes.most_common(1)[0][0]


def describe(name: str, models: Sequence[BaseModel], device: torch.device | None = None) -> str:
    """Describe models in one line: size of all; of the first its precision, device (if not told), threads, kernels."""
    first = models[0]
    device = device or first.device
    millions = sum(parameter.numel() for model in models for parameter in model.parameters()) / 1e6
    kind, dtype = stored_as(first), str(first.compute_dtype)
    dtype += f" from {kind} weights" if kind != dtype else ""
    count = torch.get_num_threads()
    threads = f", {count} thread{'s' if count > 1 else ''}" if device.type == "cpu" else ""
    if threads and isinstance(first, LanguageModel):
        kernels = library()
        threads += f", {kernels.variant} kernels" if kernels else ", without C kernels"
    return f"{name} ({millions:.1f} M parameters, {dtype.replace('torch.', '')}, {device}{threads})"
