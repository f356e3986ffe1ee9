"""Prompts as AUTOMATIC1111's web UI reads them: weights in brackets, and chunks for prompts of any length.

`(word)` weighs 1.1, `((word))` 1.21, `[word]` 1 / 1.1, `(word:1.3)` 1.3; `\\(` is a literal bracket.
A chunk holds 75 tokens between the begin and end tokens; BREAK ends one. A chunk that would end in the middle of a
phrase ends at the comma before it, if that comma is among the chunk's last 20 tokens. Chunks are encoded separately,
and their states are joined along the sequence. A weight multiplies its token's state; then all states of the chunk are
scaled so that their mean stays what it was. Parsing needs no torch.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from gencli.errors import GencliError

if TYPE_CHECKING:
    from torch import Tensor

    from gencli.image.conditioning import Conditioning
    from gencli.models.clip_text import CLIPTextModel, CLIPTextOutput
    from gencli.models.module import BaseModel
    from gencli.tokens import Tokenizer

BRACKET_WEIGHT = 1.1  # a round bracket without a number multiplies by this, a square one divides by it
NESTING_LIMIT = 100
LENGTH_LIMIT = 2**16  # characters; several hundred chunks
COMMA_DISTANCE = 20  # tokens that a chunk gives to the next one, at most, in order to end at a comma
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
class WeightedText:
    """A stretch of the prompt and its weight; text None: BREAK."""

    text: str | None
    weight: float = 1.0


def parse(prompt: str) -> list[WeightedText]:
    """Split a prompt into stretches of one weight. An unclosed bracket counts to the end; an unopened one is text.

    Raises GencliError for a weight that is not a number, and for syntax of the web UI that gencli does not support:
    prompts that change from step to step, `AND`, `<lora:…>`.
    """
    if len(prompt) > LENGTH_LIMIT:
        raise GencliError(f"the prompt has {len(prompt)} characters; with weights it may have {LENGTH_LIMIT}")
    _refuse_extras(prompt)
    stretches: list[WeightedText] = []
    opened: dict[str, list[tuple[int, int]]] = {"(": [], "[": []}  # (stretch, character) that follows each bracket
    for match in SYNTAX.finditer(prompt):
        kind = match.lastgroup or ""
        value = match[kind]
        bracket = {")": "(", "]": "["}.get(value, "(")
        if kind == "opens":
            opened[value].append((len(stretches), match.end()))
            if len(opened[value]) > NESTING_LIMIT:
                raise GencliError(f"the prompt has more than {NESTING_LIMIT} brackets in one another: {prompt[:40]!r}…")
        elif kind in ("weight", "closes") and opened[bracket]:
            stretch, character = opened[bracket].pop()
            if bracket == "[":
                _refuse_editing(prompt[character : match.start()])
            factor = _number(value) if kind == "weight" else BRACKET_WEIGHT if bracket == "(" else 1 / BRACKET_WEIGHT
            _multiply(stretches[stretch:], factor)
        elif kind == "escaped":
            stretches.append(WeightedText(value))
        else:
            stretches += _split_at_breaks(match[0])
    for bracket, factor in (("(", BRACKET_WEIGHT), ("[", 1 / BRACKET_WEIGHT)):
        for stretch, _ in opened[bracket]:
            _multiply(stretches[stretch:], factor)
    return _merge(stretches)


def _multiply(stretches: Sequence[WeightedText], factor: float) -> None:
    for stretch in stretches:
        stretch.weight *= factor


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise GencliError(f"the prompt's weight {text[:40]!r} is not a number") from None


def _split_at_breaks(text: str) -> Iterator[WeightedText]:
    """Split text at its BREAKs, and strip the blanks around them."""
    parts = BREAK.split(text)
    for i, part in enumerate(parts):
        if i:
            yield WeightedText(None)
            part = part.lstrip()
        yield WeightedText(part if i == len(parts) - 1 else part.rstrip())


def _merge(stretches: Sequence[WeightedText]) -> list[WeightedText]:
    """Join neighbours of the same weight, since a word may span several of them."""
    if any(not math.isfinite(stretch.weight) for stretch in stretches):
        raise GencliError("the prompt's weights are too large")
    merged: list[WeightedText] = []
    for (is_break, weight), same in itertools.groupby(stretches, lambda one: (one.text is None, one.weight)):
        if is_break:
            merged += same
        else:
            merged.append(WeightedText("".join(one.text or "" for one in same), weight))
    return merged


def _refuse_extras(prompt: str) -> None:
    if match := EXTRA.search(prompt):
        hint = "load it with --lora FILE:SCALE, and leave that out of the prompt" if match[1] != "hypernet" else None
        raise GencliError(f"{match[0]!r} in a prompt is not supported", hint)
    if re.search(r"\bAND\b", prompt):
        raise GencliError("AND between prompts is not supported with --weighted", "as a word, write it `and`")


def _refuse_editing(inside: str) -> None:
    if EDITING.search(inside):
        raise GencliError(
            f"{f'[{inside[:40]}]'!r}: prompts that change from step to step are not supported",
            r"brackets of the text's own are written \[ and \]",
        )


@dataclass(frozen=True)
class Chunk:
    """Token ids (L) from begin to end, padded, and the weight of each."""

    ids: list[int]
    weights: list[float]


class _ChunkPacker:
    """Packs groups of tokens into chunks of `size` tokens, each token with its weight."""

    def __init__(self, size: int):
        self.size = size
        self.done: list[list[tuple[int, float]]] = []
        self.open: list[tuple[int, float]] = []
        self.after_comma = 0  # length of the open chunk up to and including its last comma

    def add(self, group: Sequence[int], weight: float, *, comma: bool) -> None:
        """Add tokens that must stay in one chunk: one token, or those of an embedding. Raises GencliError when they are
        too many for a chunk."""
        if len(group) > self.size:
            raise GencliError(f"an embedding of {len(group)} vectors does not fit into a chunk of {self.size} tokens")
        if len(self.open) == self.size:
            near = self.after_comma and self.size - self.after_comma < COMMA_DISTANCE
            self.close(self.after_comma if near and not comma else None)
        if len(self.open) + len(group) > self.size:
            self.close()
        self.open += [(token, weight) for token in group]
        if comma:
            self.after_comma = len(self.open)

    def close(self, at: int | None = None) -> None:
        """End the open chunk after `at` tokens (None: after all of them); the rest begins the next chunk."""
        at = len(self.open) if at is None else at
        self.done.append(self.open[:at])
        self.open, self.after_comma = self.open[at:], 0


def split_into_chunks(tokenizer: Tokenizer, prompt: str, positions: int, vocab_size: int) -> list[Chunk]:
    """Split a prompt of any length into one or more chunks (see `parse` for the errors).

    positions, vocab_size: the text encoder's.
    """
    from gencli.image.prompts.base import add_special_tokens, max_prompt_tokens

    size = max_prompt_tokens(tokenizer, positions)
    packer = _ChunkPacker(size)
    comma = tokenizer.backend.token_to_id("," + tokenizer.word_suffix)
    for stretch in parse(prompt):
        if stretch.text is None:
            packer.close()
            continue
        ids = tokenizer.encode(stretch.text, add_special_tokens=False)
        while ids:
            count = len(tokenizer.groups.get(ids[0], (0,)))
            packer.add(ids[:count], stretch.weight, comma=ids[0] == comma)
            del ids[:count]
    if packer.open or not packer.done:
        packer.close()
    chunks = []
    for tokens in packer.done:
        padding = [1.0] * (size + 1 - len(tokens))
        ids = add_special_tokens(tokenizer, [token for token, _ in tokens], size, vocab_size)
        chunks.append(Chunk(ids, [1.0, *(weight for _, weight in tokens), *padding]))
    return chunks


def apply_weights(states: Tensor, weights: Tensor) -> Tensor:
    """States (B, L, D) times weights (B, L), each chunk scaled back to its mean before; computed in float32."""
    import torch

    if bool((weights == 1).all()):
        return states
    old = states.float()
    new = old * weights[..., None]
    new = new * (old.mean((1, 2), keepdim=True) / new.mean((1, 2), keepdim=True))
    unweighted = (weights == 1).all(1)[:, None, None]  # nothing to round there
    return torch.where(unweighted, old, new).to(states.dtype)


def encode(
    tokenizer: Tokenizer, encoder: CLIPTextModel, prompts: Sequence[str], states: Callable[[CLIPTextOutput], Tensor]
) -> tuple[Tensor, CLIPTextOutput]:
    """Return the weighted states (B, n·L, D) of B prompts, and the encoder's output for the first chunk of each.

    encoder: ids (B, L) → its output; states: output → (B, L, D). Prompts of fewer chunks are filled with empty ones.
    """
    import torch

    lists = [split_into_chunks(tokenizer, prompt, *_sizes(encoder)) for prompt in prompts]
    [empty] = split_into_chunks(tokenizer, "", *_sizes(encoder))
    device = encoder.device
    weighted, outputs = [], []
    for i in range(max(map(len, lists))):
        row = [chunks[i] if i < len(chunks) else empty for chunks in lists]
        outputs.append(encoder(torch.tensor([one.ids for one in row], device=device)))
        weights = torch.tensor([one.weights for one in row], device=device)
        weighted.append(apply_weights(states(outputs[-1]), weights))
    return torch.cat(weighted, dim=1), outputs[0]


def count_chunks(text_encoders: Sequence[tuple[Tokenizer, BaseModel]], prompt: str) -> int:
    """Number of chunks of a prompt. text_encoders: a conditioner's."""
    return max(len(split_into_chunks(tokenizer, prompt, *_sizes(encoder))) for tokenizer, encoder in text_encoders)


def pad_to_same_length(
    one: Conditioning, other: Conditioning, empty: Conditioning
) -> tuple[Conditioning, Conditioning]:
    """Both at the length of the longer, filled with the states of empty chunks."""
    length = max(one[STATES].shape[1], other[STATES].shape[1])
    return _pad(one, length, empty[STATES]), _pad(other, length, empty[STATES])


def _pad(conditioning: Conditioning, length: int, empty: Tensor) -> Conditioning:
    import torch

    states = conditioning[STATES]
    count = (length - states.shape[1]) // empty.shape[1]
    padded = torch.cat([states, *[empty.expand(len(states), -1, -1)] * count], dim=1)
    return conditioning.with_inputs(**{STATES: padded})


def _sizes(encoder: BaseModel) -> tuple[int, int]:
    config = cast("CLIPTextModel", encoder).config
    return config.max_position_embeddings, config.vocab_size
