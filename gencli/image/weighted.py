"""Prompts as AUTOMATIC1111's web UI reads them: weights in brackets (see `brackets`), and chunks for any length.

Tokens go 75 to a chunk, each between begin and end; a chunk that would end in the middle of a phrase ends at the comma
before it, when that is among its last 20 tokens. Chunks are encoded apart and joined along the sequence.
A weight multiplies its token's state, then all states of the chunk are scaled so that their mean is what it was.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gencli.errors import GencliError
from gencli.image.brackets import parse
from gencli.image.families.base import Conditioning, enclose, room_of
from gencli.tokens import Tokenizer

BACK = 20  # tokens that a chunk gives to the next one, at most, so as to end at a comma
STATES = "encoder_hidden_states"


@dataclass(frozen=True)
class Chunk:
    """Token ids (L) from begin to end, padded, and the weight of each."""

    ids: list[int]
    weights: list[float]


class _Packer:
    """Groups of tokens → chunks of `room` tokens, each with its weight."""

    def __init__(self, room: int):
        self.room = room
        self.done: list[list[tuple[int, float]]] = []
        self.open: list[tuple[int, float]] = []
        self.after_comma = 0  # how much of the open chunk goes up to its last comma, that included

    def add(self, group: Sequence[int], weight: float, *, comma: bool) -> None:
        """Tokens that stay in one chunk: one, or an embedding's several. Raises GencliError when they cannot."""
        if len(group) > self.room:
            raise GencliError(f"an embedding of {len(group)} vectors does not fit into a chunk of {self.room} tokens")
        if len(self.open) == self.room:
            near = self.after_comma and self.room - self.after_comma < BACK
            self.close(self.after_comma if near and not comma else None)
        if len(self.open) + len(group) > self.room:
            self.close()
        self.open += [(token, weight) for token in group]
        if comma:
            self.after_comma = len(self.open)

    def close(self, at: int | None = None) -> None:
        """End the open chunk, `at` a place if given; what is behind that goes into the next one."""
        at = len(self.open) if at is None else at
        self.done.append(self.open[:at])
        self.open, self.after_comma = self.open[at:], 0


def chunk(tokenizer: Tokenizer, prompt: str, positions: int, vocab_size: int) -> list[Chunk]:
    """A prompt of any length as chunks, one at least. positions, vocab_size: the text encoder's. See `parse`."""
    room = room_of(tokenizer, positions)
    packer = _Packer(room)
    comma = tokenizer.backend.token_to_id("," + tokenizer.word_suffix)
    for piece in parse(prompt):
        if piece.text is None:
            packer.close()
            continue
        ids = tokenizer.encode(piece.text, add_special_tokens=False)
        while ids:
            count = len(tokenizer.groups.get(ids[0], (0,)))
            packer.add(ids[:count], piece.weight, comma=ids[0] == comma)
            del ids[:count]
    if packer.open or not packer.done:
        packer.close()
    chunks = []
    for words in packer.done:
        rest = [1.0] * (room + 1 - len(words))
        ids = enclose(tokenizer, [token for token, _ in words], room, vocab_size)
        chunks.append(Chunk(ids, [1.0, *(weight for _, weight in words), *rest]))
    return chunks


def weigh(states: Tensor, weights: Tensor) -> Tensor:
    """States (B, L, D) times weights (B, L), each chunk scaled to the mean that it had; computed in float32."""
    if bool((weights == 1).all()):
        return states
    old = states.float()
    new = old * weights[..., None]
    new = new * (old.mean((1, 2), keepdim=True) / new.mean((1, 2), keepdim=True))
    plain = (weights == 1).all(1)[:, None, None]  # nothing to round there
    return torch.where(plain, old, new).to(states.dtype)


def encode(
    tokenizer: Tokenizer, encoder: Any, prompts: Sequence[str], states: Callable[[Any], Tensor]
) -> tuple[Tensor, Any]:
    """Weighted states (B, n·L, D) of B prompts, and what the encoder gave for the first chunk of each.

    encoder: ids (B, L) → its output; states: output → (B, L, D). Prompts of fewer chunks are filled with empty ones.
    """
    lists = [chunk(tokenizer, prompt, *_sizes(encoder)) for prompt in prompts]
    [empty] = chunk(tokenizer, "", *_sizes(encoder))
    device = next(encoder.parameters()).device
    found, first = [], None
    for i in range(max(map(len, lists))):
        row = [chunks[i] if i < len(chunks) else empty for chunks in lists]
        output = encoder(torch.tensor([one.ids for one in row], device=device))
        first = output if first is None else first
        found.append(weigh(states(output), torch.tensor([one.weights for one in row], device=device)))
    return torch.cat(found, dim=1), first


def length(towers: Sequence[tuple[Tokenizer, Any]], prompt: str) -> int:
    """Chunks that a prompt takes. towers: a conditioner's, each its tokenizer and text encoder."""
    return max(len(chunk(tokenizer, prompt, *_sizes(encoder))) for tokenizer, encoder in towers)


def level(one: Conditioning, other: Conditioning, empty: Conditioning) -> tuple[Conditioning, Conditioning]:
    """Both at the length of the longer, filled with the states of empty chunks."""
    wanted = max(one[STATES].shape[1], other[STATES].shape[1])
    return _fill(one, wanted, empty[STATES]), _fill(other, wanted, empty[STATES])


def _fill(conditioning: Conditioning, wanted: int, empty: Tensor) -> Mapping[str, Tensor]:
    states = conditioning[STATES]
    count = (wanted - states.shape[1]) // empty.shape[1]
    return {**conditioning, STATES: torch.cat([states, *[empty.expand(len(states), -1, -1)] * count], dim=1)}


def _sizes(encoder: Any) -> tuple[int, int]:
    return encoder.config.max_position_embeddings, encoder.config.vocab_size
