"""What every family gives: how prompts become what its network is told."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from gencli.errors import GencliError
from gencli.image.request import ImageRequest
from gencli.tokens import Tokenizer

Conditioning = Mapping[str, Tensor]
"""Keyword arguments of a network's forward, beside x and t; every tensor is (B, …), or (1, …) for all of a batch.

One is none: `concat` (…, K, h, w), further channels of x that some networks read, such as a mask.
"""

Loader = Callable[[str], nn.Module]
"""The module of a part, with its weights, where and in the precision in which the checkpoint runs."""


class Conditioner(Protocol):
    """Prompts → what the network is told of them. A family's module makes one in `load(checkpoint, loader)`, or None
    when its pictures are asked for without a prompt."""

    @property
    def modules(self) -> Sequence[nn.Module]:
        """The modules that it runs."""
        ...

    def encode(self, prompts: Sequence[str], request: ImageRequest) -> Conditioning:
        """What the network is told of B prompts. Raises GencliError for one that is too long."""
        ...

    def negative(self, request: ImageRequest) -> Conditioning:
        """What guidance leads away from: of the negative prompt, or of none; every tensor (1, …)."""
        ...


def join(parts: Sequence[Conditioning], batch: int) -> Conditioning:
    """N parts in one batch of N·`batch`, in their order; all have the same names."""
    return {name: torch.cat([part[name].expand(batch, *part[name].shape[1:]) for part in parts]) for name in parts[-1]}


def frame(
    tokenizer: Tokenizer, prompt: str, positions: int, vocab_size: int, truncate: str | None, *, chunks: bool = True
) -> list[int]:
    """Token ids of a prompt between begin and end, padded to the length that the model was trained with.

    positions, vocab_size: the text encoder's. truncate: the side that may be cut away. chunks: whether --weighted reads
    longer ones. Raises GencliError with both lengths when truncate is None and something must be cut.
    """
    ids = tokenizer.encode(prompt, add_special_tokens=False)
    room = room_of(tokenizer, positions)
    if len(ids) > room and truncate is None:
        raise GencliError(
            f"the prompt has {len(ids)} tokens, and this model reads at most {room}: {prompt[:40]!r}…",
            f"{'--weighted reads all of it, in chunks; ' if chunks else ''}"
            "--truncate right leaves out its end, --truncate left its beginning",
        )
    return enclose(tokenizer, ids[-room:] if truncate == "left" else ids[:room], room, vocab_size)


def room_of(tokenizer: Tokenizer, positions: int) -> int:
    """Tokens between begin and end, at most."""
    return min(tokenizer.max_length or positions, positions) - 2


def enclose(tokenizer: Tokenizer, ids: list[int], room: int, vocab_size: int) -> list[int]:
    """At most `room` ids between begin and end, padded. Raises GencliError for a tokenizer that does not fit."""
    begin, end = tokenizer.bos_id, next(iter(tokenizer.eos_ids), None)
    if begin is None or end is None:
        raise GencliError(f"{tokenizer.folder}: the tokenizer names no begin and end token")
    pad = tokenizer.pad_id if tokenizer.pad_id is not None else end
    framed = [begin, *ids, end, *[pad] * (room - len(ids))]
    if max(framed) >= vocab_size:
        raise GencliError(f"{tokenizer.folder}: the tokenizer knows more tokens than the text encoder")
    return framed
