"""`.model` files of SentencePiece (Kudo & Richardson 2018, arXiv 1808.06226), BPE and unigram, without its library.

The file is a protocol-buffers message (`sentencepiece_model.proto`), of which some fields are read here.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tokenizers import AddedToken, Regex, decoders, models, normalizers
from tokenizers import Tokenizer as Backend

from gencli.errors import GencliError
from gencli.json_files import read_bytes

SPACE = "\u2581"  # ▁ stands for a space in pieces
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)  # types of pieces
KINDS = {1: "unigram", 2: "bpe", 3: "word", 4: "char"}
BEGIN = "\ufdd0"  # no character; it stands before a text that alone gets the space of the beginning
TIKTOKEN = re.compile(rb"[A-Za-z0-9+/]+=* [0-9]+\r?\n")  # a line: the bytes of a token in base64, and its rank
PATTERNS = FIRST_SPACES, BEGIN_SPACES, MANY_SPACES, LAST_SPACES = r"\A +", f"{BEGIN} +", " {2,}", rf"{SPACE}+\z"
ENDED = "is cut off or no SentencePiece model"


@dataclass(frozen=True)
class Pieces:
    """A vocabulary and how texts are normalised for it. The id of an absent token is None. merges: of BPE, best first;
    None: those that the scores say."""

    texts: tuple[str, ...]
    scores: tuple[float, ...]
    types: tuple[int, ...]
    kind: str = "bpe"
    byte_fallback: bool = True
    charsmap: bytes = b""  # the compiled table of character replacements (NFKC and the like)
    dummy_prefix: bool = True  # a space before every text
    remove_extra_whitespaces: bool = False
    unk_id: int | None = 0
    bos_id: int | None = 1
    eos_id: int | None = 2
    pad_id: int | None = None
    merges: tuple[tuple[str, str], ...] | None = None

    def named(self) -> dict[str, str]:
        """Return bos_token, eos_token, … → its text, for those that the vocabulary has."""
        ids = {"bos_token": self.bos_id, "eos_token": self.eos_id, "unk_token": self.unk_id, "pad_token": self.pad_id}
        return {name: self.texts[i] for name, i in ids.items() if i is not None and 0 <= i < len(self.texts)}


def read(path: Path) -> Pieces:
    """Read a `.model` file. Raises GencliError for a broken one, and for kinds that gencli does not support."""
    content = read_bytes(path)
    if TIKTOKEN.match(content):
        raise GencliError(
            f"{path} is a file of tiktoken, which does not say how a text is split",
            "a tokenizer.json does: the same model in transformers' layout has one",
        )
    try:
        found = _parse(content)
    except (ValueError, IndexError, struct.error, KeyError) as error:
        raise GencliError(f"{path} {ENDED}: {error}") from None
    except GencliError as error:
        raise GencliError(f"{path}: {error.message}", error.hint) from None
    if not found.texts:
        raise GencliError(f"{path} {ENDED}: it has no pieces")
    return found


def _parse(content: bytes) -> Pieces:
    texts, scores, types = [], [], []
    trainer: dict[int, int | bytes] = {}
    normalizer: dict[int, int | bytes] = {}
    for field, value in _fields(content):
        if field == 1 and isinstance(value, bytes):
            piece = dict(_fields(value))
            texts.append(_bytes(piece.get(1, b"")).decode())
            scores.append(struct.unpack("<f", _bytes(piece.get(2, b"\0\0\0\0")))[0])
            types.append(_int(piece.get(3, NORMAL)))
        elif field == 2 and isinstance(value, bytes):
            trainer = dict(_fields(value))
        elif field == 3 and isinstance(value, bytes):
            normalizer = dict(_fields(value))
    kind = KINDS.get(_int(trainer.get(3, 1)), "?")
    if kind not in ("bpe", "unigram"):
        raise GencliError(f"a SentencePiece model of the kind {kind!r} is not supported", "gencli knows bpe, unigram")
    if _int(trainer.get(24, 0)) or not _int(normalizer.get(5, 1)):
        raise GencliError("SentencePiece with spaces at the ends of words, or as they are, is not supported")
    ids = [_signed(_int(trainer.get(field, default))) for field, default in ((40, 0), (41, 1), (42, 2), (43, -1))]
    unk, bos, eos, pad = (i if 0 <= i < len(texts) else None for i in ids)
    return Pieces(
        tuple(texts),
        tuple(scores),
        tuple(types),
        kind,
        bool(_int(trainer.get(35, 0))),
        _bytes(normalizer.get(2, b"")),
        bool(_int(normalizer.get(3, 1))),
        bool(_int(normalizer.get(4, 1))),
        unk,
        bos,
        eos,
        pad,
    )


def _fields(content: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Yield number and value of the fields of a message (int for a varint, else bytes). Raises ValueError."""
    at = 0
    while at < len(content):
        key, at = _varint(content, at)
        kind = key & 7
        if kind == 0:
            value, at = _varint(content, at)
            yield key >> 3, value
            continue
        if kind == 2:
            size, at = _varint(content, at)
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
        else:
            raise ValueError(f"wire type {kind}")
        if at + size > len(content):
            raise ValueError(f"a field of {size} bytes in {len(content)}")
        yield key >> 3, content[at : at + size]
        at += size


def _varint(content: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(content):
            raise ValueError("a number without an end")
        byte = content[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ValueError("a number of more than 10 bytes")


def _bytes(value: int | bytes) -> bytes:
    if not isinstance(value, bytes):
        raise ValueError("a field of another type")
    return value


def _int(value: int | bytes) -> int:
    if not isinstance(value, int):
        raise ValueError("a field of another type")
    return value


def _signed(value: int) -> int:
    """Return an int32 that a message holds as uint64."""
    return value - 2**64 if value >= 2**63 else value


def backend(pieces: Pieces, *, prefix_every_part: bool = True, extra: tuple[str, ...] = ()) -> Backend:
    """Make a backend of the tokenizers library that splits as SentencePiece does with these pieces.

    prefix_every_part: put the space of the beginning also after each special token (`legacy` in the files). extra:
    tokens after the vocabulary (T5's sentinels). Raises GencliError for a vocabulary that is not valid.
    """
    texts = [*pieces.texts, *extra]
    ids = {text: i for i, text in enumerate(texts)}
    if len(ids) != len(texts) or "" in ids:
        raise GencliError("the vocabulary has a piece twice, or an empty one")
    if not all(math.isfinite(score) for score in pieces.scores) or UNUSED in pieces.types:
        raise GencliError("the vocabulary has pieces with a score that is not a number, or that are unused")
    unk = pieces.texts[pieces.unk_id] if pieces.unk_id is not None else None
    try:
        model: models.Model
        if pieces.kind == "bpe":
            pairs = merges(pieces) if pieces.merges is None else list(pieces.merges)
            model = models.BPE(
                vocab=ids, merges=pairs, unk_token=unk, fuse_unk=True, byte_fallback=pieces.byte_fallback
            )
        else:
            scored = [*zip(pieces.texts, pieces.scores, strict=True), *((text, 0.0) for text in extra)]
            model = models.Unigram(scored, unk_id=pieces.unk_id, byte_fallback=pieces.byte_fallback)
        made = Backend(model)
        _prepare(made, pieces, prefix_every_part)
    except GencliError:
        raise
    except Exception as error:  # the library raises bare Exceptions
        raise GencliError(f"the vocabulary is not usable: {' '.join(str(error).split())[:160]}") from None
    start = [decoders.Strip(content=" ", left=1)] if pieces.dummy_prefix else []
    made.decoder = decoders.Sequence([decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *start])
    for text, kind in zip(pieces.texts, pieces.types, strict=True):
        if kind in (CONTROL, USER_DEFINED):
            whole = kind == USER_DEFINED and not pieces.dummy_prefix  # matched after normalisation
            made.add_tokens([AddedToken(text, special=kind == CONTROL, normalized=whole)])
    made.add_tokens([AddedToken(text, special=True) for text in extra])
    return made


def _prepare(made: Backend, pieces: Pieces, prefix_every_part: bool) -> None:
    """Set how a text is normalised before it is split, in the steps and the order of SentencePiece.

    Without `prefix_every_part` the text must be given with BEGIN before it: parts between tokens are not told apart.
    """
    steps: list[normalizers.Normalizer] = [normalizers.Precompiled(pieces.charsmap)] if pieces.charsmap else []
    if pieces.remove_extra_whitespaces:
        first = Regex(FIRST_SPACES if prefix_every_part else BEGIN_SPACES)
        steps += [normalizers.Replace(first, "" if prefix_every_part else BEGIN)]
        steps += [normalizers.Replace(Regex(MANY_SPACES), " ")]
    if pieces.dummy_prefix and prefix_every_part:
        steps += [normalizers.Prepend(SPACE)]
    steps += [normalizers.Replace(" ", SPACE)]
    if not prefix_every_part:
        steps += [normalizers.Replace(BEGIN, SPACE if pieces.dummy_prefix else "")]
    if pieces.remove_extra_whitespaces:
        steps += [normalizers.Replace(Regex(LAST_SPACES), "")]
    made.normalizer = normalizers.Sequence(steps)


def merges(pieces: Pieces) -> list[tuple[str, str]]:
    """Return the merges of BPE, best first: every pair of pieces that makes a piece, by the score of that piece."""
    normal = {
        text: (score, i)
        for i, (text, score, kind) in enumerate(zip(pieces.texts, pieces.scores, pieces.types, strict=True))
        if kind == NORMAL
    }
    found = []
    for text, (score, _) in normal.items():
        if len(text) > 1000:
            raise GencliError("the vocabulary has a piece of more than 1000 characters")
        pairs = [(text[:at], text[at:]) for at in range(1, len(text))]
        pairs = [(left, right) for left, right in pairs if left in normal and right in normal]
        pairs.sort(key=lambda pair: (normal[pair[0]][1], normal[pair[1]][1]))
        found += [(score, pair) for pair in pairs]
    found.sort(key=lambda row: -row[0])
    return [pair for _, pair in found]
