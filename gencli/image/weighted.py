"""Prompts as users of AUTOMATIC1111's web UI write them: weights in brackets, and chunks for any length.

`(word)` weighs 1.1, `((word))` 1.21, `[word]` 1 / 1.1, `(word:1.3)` 1.3; `\\(` is a bracket of the text's own; BREAK
ends a chunk. Tokens go 75 to a chunk, each between begin and end; a chunk that would end in the middle of a phrase ends
at the comma before it, when that is among its last 20 tokens. Chunks are encoded apart and joined along the sequence.
A weight multiplies its token's state, then all states of the chunk are scaled so that their mean is what it was.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gencli.errors import GencliError
from gencli.image.families.base import Conditioning, enclose, room_of
from gencli.tokens import Tokenizer

STRONGER = 1.1  # what a bracket without a number multiplies by, or divides by if it is square
BACK = 20  # tokens that a chunk gives to the next one, at most, so as to end at a comma
DEPTH = 100  # brackets in brackets
STATES = "encoder_hidden_states"

SYNTAX = re.compile(
    r"\\(?P<escaped>[\\()\[\]]?)"  # a backslash before anything else goes away
    r"|(?P<opens>[(\[])"
    r"|:\s*(?P<weight>[+-]?[.\d]+)\s*\)"
    r"|(?P<closes>[)\]])"
    r"|(?P<text>[^\\()\[\]:]+|:)"
)
BREAK = re.compile(r"\bBREAK\b")
EDITING = re.compile(r"\||:\s*[.\d]+\s*\Z")  # in square brackets: [from:to:when], [one|other]
EXTRA = re.compile(r"<(lora|lyco|hypernet):([^:>]{1,80})")


@dataclass
class Piece:
    """A stretch of text and its weight; text None: BREAK."""

    text: str | None
    weight: float = 1.0


@dataclass(frozen=True)
class Chunk:
    """Token ids (L) from begin to end, padded, and the weight of each."""

    ids: list[int]
    weights: list[float]


def parse(prompt: str) -> list[Piece]:
    """The weights that brackets give. A bracket without its partner counts to the end, or is text.

    Raises GencliError for a weight that is no number, and for what the web UI reads and gencli does not: prompts that
    change on the way, `AND`, `<lora:…>`.
    """
    _refuse_extras(prompt)
    pieces: list[Piece] = []
    opened: dict[str, list[tuple[int, int]]] = {"(": [], "[": []}  # (piece, character) that follows each bracket
    for found in SYNTAX.finditer(prompt):
        kind = found.lastgroup or ""
        value = found[kind]
        bracket = {")": "(", "]": "["}.get(value, "(")
        if kind == "opens":
            opened[value].append((len(pieces), found.end()))
            if len(opened[value]) > DEPTH:
                raise GencliError(f"the prompt has more than {DEPTH} brackets in one another: {prompt[:40]!r}…")
        elif kind in ("weight", "closes") and opened[bracket]:
            piece, character = opened[bracket].pop()
            if bracket == "[":
                _refuse_editing(prompt[character : found.start()])
            by = _number(value) if kind == "weight" else STRONGER if bracket == "(" else 1 / STRONGER
            _multiply(pieces[piece:], by)
        elif kind == "escaped":
            pieces.append(Piece(value))
        else:
            pieces += _split(found[0])
    for bracket, by in (("(", STRONGER), ("[", 1 / STRONGER)):
        for piece, _ in opened[bracket]:
            _multiply(pieces[piece:], by)
    return _merge(pieces)


def _multiply(pieces: Sequence[Piece], by: float) -> None:
    for piece in pieces:
        piece.weight *= by


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise GencliError(f"the prompt's weight {text[:40]!r} is no number") from None


def _split(text: str) -> Iterator[Piece]:
    """Text at its BREAKs, without the blanks around them."""
    parts = BREAK.split(text)
    for i, part in enumerate(parts):
        if i:
            yield Piece(None)
            part = part.lstrip()
        yield Piece(part if i == len(parts) - 1 else part.rstrip())


def _merge(pieces: Sequence[Piece]) -> list[Piece]:
    """Neighbours of one weight as one, since words may go over from one to the other."""
    if any(not math.isfinite(piece.weight) for piece in pieces):
        raise GencliError("the prompt's weights are too large")
    merged: list[Piece] = []
    for (is_break, weight), same in itertools.groupby(pieces, lambda piece: (piece.text is None, piece.weight)):
        if is_break:
            merged += same
        else:
            merged.append(Piece("".join(piece.text or "" for piece in same), weight))
    return merged


def _refuse_extras(prompt: str) -> None:
    if found := EXTRA.search(prompt):
        hint = "load it with --lora FILE:SCALE, and leave that out of the prompt" if found[1] != "hypernet" else None
        raise GencliError(f"{found[0]!r} in a prompt is not supported", hint)
    if re.search(r"\bAND\b", prompt):
        raise GencliError("AND between prompts is not supported with --weighted", "as a word, write it `and`")


def _refuse_editing(inside: str) -> None:
    if EDITING.search(inside):
        raise GencliError(
            f"{f'[{inside[:40]}]'!r}: prompts that change from step to step are not supported",
            r"brackets of the text's own are written \[ and \]",
        )


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
