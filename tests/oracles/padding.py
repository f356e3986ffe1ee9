"""Padding and truncation as text encoders want them, to hold tokenizers against those of the reference."""

from __future__ import annotations

from gencli.errors import GencliError
from gencli.tokens import Tokenizer


def encode_padded(tokenizer: Tokenizer, text: str, length: int | None = None) -> tuple[list[int], list[int]]:
    """Exactly `length` token ids (default: max_length) for a text encoder, and the ids that did not fit.

    What is too long is cut before the end token; what is short is filled with `pad_id`, or else the end token.
    Raises GencliError when nothing says how long.
    """
    length = length or tokenizer.max_length
    if length is None:
        raise GencliError(f"{tokenizer.folder}: tokenizer_config.json has no model_max_length")
    frame = tokenizer.backend.num_special_tokens_to_add(False)
    ids = tokenizer.encode(text)
    tail = 1 if frame and ids[-1] in tokenizer.eos_ids else 0
    keep = length - tail
    if len(ids) > length:
        return ids[:keep] + ids[len(ids) - tail :], ids[keep : len(ids) - tail]
    pad = tokenizer.pad_id if tokenizer.pad_id is not None else tokenizer.eos_ids[0] if tokenizer.eos_ids else 0
    return ids + [pad] * (length - len(ids)), []
