"""Textual inversion (Gal et al. 2022, arXiv 2208.01618): new words for a text encoder, each one vector or several.

diffusers writes files of `{word: vectors}`; AUTOMATIC1111's web UI writes `emb_params` or, in a pickle,
`string_to_param`; files for SDXL hold vectors for both text encoders, `clip_l` and `clip_g`. The word is the one in
diffusers' file, else the file's name without its suffix, as in the web UI.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from tokenizers import AddedToken
from torch import Tensor, nn

from gencli.checkpoints.assets import EmbeddingRef
from gencli.checkpoints.layout import PICKLES, some
from gencli.checkpoints.pickles import unpickle
from gencli.checkpoints.weights import open_tensors
from gencli.errors import GencliError
from gencli.models.clip_text import CLIPTextModel
from gencli.tokens import Tokenizer

PARAMETERS = "string_to_param"
XL = ("clip_l", "clip_g")  # in the order of SDXL's text encoders
NAMELESS = ("emb_params", "*")
MAX_VECTORS = 75  # of one word: what a text encoder reads at once
TextEncoders = Sequence[tuple[Tokenizer, CLIPTextModel]]
WIDTHS = {768: "Stable Diffusion 1", 1024: "Stable Diffusion 2", 1280: "Stable Diffusion XL"}


@dataclasses.dataclass(frozen=True)
class Embedding:
    """A word and its vectors (n, D) in float32, for each text encoder."""

    word: str
    vectors: tuple[Tensor, ...]
    path: Path


def read_embedding(file: EmbeddingRef, *, allow_pickle: bool = False) -> Embedding:
    """Read one file. Raise GencliError for a file that is broken, of unknown form, or a pickle that is not allowed."""
    path = file.path
    if allow_pickle and f"*{path.suffix}" in PICKLES:
        table = _unpickled(path)
    else:
        tensors = open_tensors(path)
        table = {name: tensors.get(name) for name in tensors}
    if set(table) == set(XL):
        word, tensors_found = path.stem, [table[name] for name in XL]
    elif len(table) == 1:
        [(name, tensor)] = table.items()
        word, tensors_found = path.stem if name in NAMELESS else name, [tensor]
    else:
        raise GencliError(
            f"{path} holds {some(sorted(map(str, table))) or 'nothing'}: not the vectors of one word",
            "embeddings hold one tensor, or clip_l and clip_g",
        )
    word = file.word or word
    if not word.strip() or len(word) > 200:
        raise GencliError(f"{path}: {word[:40]!r} is not a word", "name one with FILE:WORD")
    return Embedding(word, tuple(_vectors(path, tensor) for tensor in tensors_found), path)


def _unpickled(path: Path) -> dict[str, object]:
    raw = unpickle(path, tables=True)
    if isinstance(raw, Tensor):
        return {NAMELESS[0]: raw}
    if isinstance(raw, Mapping) and PARAMETERS in raw:
        raw = raw[PARAMETERS]
        if isinstance(raw, Mapping) and len(raw) == 1:
            return {NAMELESS[0]: next(iter(raw.values()))}
    if not isinstance(raw, Mapping) or not all(isinstance(name, str) for name in raw):
        raise GencliError(f"{path} holds no embedding")
    return dict(raw)


def _vectors(path: Path, tensor: object) -> Tensor:
    """Return the vectors (n, D) in float32. Raise GencliError for a tensor that is not vectors of a word."""
    if not isinstance(tensor, Tensor) or not _is_plain(tensor):
        seen = f"{list(tensor.shape)} of {tensor.dtype}" if isinstance(tensor, Tensor) else type(tensor).__name__
        raise GencliError(f"{path}: {seen} is not a vectors of a word")
    vectors = tensor.detach().float().reshape(-1, tensor.shape[-1])
    if len(vectors) > MAX_VECTORS:
        raise GencliError(f"{path}: {len(vectors)} vectors are too many for a word (at most {MAX_VECTORS})")
    if not bool(vectors.isfinite().all()):
        raise GencliError(f"{path} holds values that are not numbers")
    return vectors


def _is_plain(tensor: Tensor) -> bool:
    plain = tensor.is_floating_point() and tensor.layout is torch.strided and not tensor.is_meta
    return plain and tensor.dim() in (1, 2) and 0 < tensor.numel() < 2**24


def install(embeddings: Sequence[Embedding], text_encoders: TextEncoders, model: str) -> None:
    """Add words to text encoders, each with its tokenizer. Weights are copied, not changed in place.

    Several vectors of `word` become the tokens `word`, `word_1`, …, and the word stands for all of them.
    Raise GencliError for vectors of another width or number, and for words that exist already.
    """
    taken: dict[str, Path] = {}
    for embedding in embeddings:
        _check(embedding, text_encoders, model)
        if (other := taken.setdefault(embedding.word.lower(), embedding.path)) is not embedding.path:
            raise GencliError(
                f"{other} and {embedding.path} are both called {embedding.word!r}", "name one anew with FILE:WORD"
            )
    for i, (tokenizer, encoder) in enumerate(text_encoders):
        rows: dict[int, Tensor] = {}
        for embedding in embeddings:
            ids = _add_tokens(tokenizer, embedding)
            rows |= zip(ids, embedding.vectors[i], strict=True)
        _add_rows(tokenizer, encoder, rows)


def _check(embedding: Embedding, text_encoders: TextEncoders, model: str) -> None:
    widths = [encoder.config.hidden_size for _, encoder in text_encoders]
    vector_widths = [vectors.shape[1] for vectors in embedding.vectors]
    if vector_widths != widths:
        made_for = WIDTHS.get(vector_widths[-1])
        raise GencliError(
            f"{embedding.path} does not fit: its vectors are {' and '.join(map(str, vector_widths))} wide, "
            f"and the words of {model} {' and '.join(map(str, widths))}",
            None if made_for is None else f"it looks as if it was made for {made_for}",
        )
    if len({len(vectors) for vectors in embedding.vectors}) > 1:
        counts = " and ".join(str(len(vectors)) for vectors in embedding.vectors)
        raise GencliError(f"{embedding.path} has {counts} vectors for its two text encoders")


def _add_tokens(tokenizer: Tokenizer, embedding: Embedding) -> list[int]:
    """Add the tokens `word`, `word_1`, … and return their ids. Raise GencliError for one that exists already."""
    count = len(embedding.vectors[0])
    words = [embedding.word, *(f"{embedding.word}_{n}" for n in range(1, count))]
    # Matched whatever its case, as all of CLIP's words are; and whole, so that `art` is not found in `party`.
    whole = any(character.isalnum() or character == "_" for character in (words[0][0], words[0][-1]))
    for word in words:
        if tokenizer.backend.token_to_id(word) is not None:
            raise GencliError(
                f"{embedding.path}: the model knows a token {word!r} already", "name another word with FILE:WORD"
            )
        tokenizer.backend.add_tokens([AddedToken(word, normalized=True, single_word=whole)])
    ids = [i for word in words if (i := tokenizer.backend.token_to_id(word)) is not None]
    tokenizer.groups[ids[0]] = tuple(ids)
    return ids


def _add_rows(tokenizer: Tokenizer, encoder: CLIPTextModel, rows: Mapping[int, Tensor]) -> None:
    """Add rows to a text encoder's embedding table, and update its config.

    Old configs find the end of a text by the largest id, which now belongs to a new word: they get the end token's id
    instead. diffusers and transformers do not do this, and pool such texts at the new word.
    """
    if not rows:
        return
    table = encoder.embeddings.token_embedding
    old = table.weight
    new = old.new_zeros(max(len(old), max(rows) + 1), old.shape[1])
    new[: len(old)] = old
    for token, vector in rows.items():
        new[token] = vector.to(new)
    table.weight, table.num_embeddings = nn.Parameter(new, requires_grad=False), len(new)
    end = encoder.config.eos_token_id
    if end == 2 and tokenizer.eos_ids:
        end = tokenizer.eos_ids[0]
    encoder.config = dataclasses.replace(encoder.config, vocab_size=len(new), eos_token_id=end)
