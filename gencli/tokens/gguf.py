"""A tokenizer from GGUF metadata: byte-level BPE of the kinds that gencli knows, or SentencePiece's BPE."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from tokenizers import AddedToken, models
from tokenizers import Tokenizer as Backend

from gencli.errors import GencliError
from gencli.tokens import sentencepiece
from gencli.tokens.byte_level import byte_level
from gencli.tokens.sentencepiece import BYTE, CONTROL, NORMAL, UNUSED, USER_DEFINED, Pieces
from gencli.tokens.special_tokens import surround
from gencli.tokens.tokenizer import Tokenizer

START = "tokenizer.ggml."
NAMED = {"bos": "bos", "eos": "eos", "unknown": "unk", "padding": "pad", "seperator": "sep", "mask": "mask"}
# values of tokenizer.ggml.pre → how `byte_level` calls them
SPLITTERS = {
    "gpt-2": "gpt2", "phi-2": "gpt2", "olmo": "gpt2", "llama-bpe": "llama3", "llama3": "llama3", "llama-v3": "llama3",
    "falcon3": "llama3", "pixtral": "llama3", "dbrx": "llama3", "smaug-bpe": "llama3", "qwen2": "qwen2",
    "qwen35": "qwen35",
    "glm4": "llama3", "chatglm-bpe": "llama3", "lfm2": "llama3", "stablelm2": "qwen2", "mpt": "gpt2",
    "deepseek-r1-qwen": "deepseek-qwen", "deepseek-llm": "deepseek", "tekken": "tekken", "gpt-4o": "o200k",
    "smollm": "smollm", "refact": "smollm", "starcoder": "smollm", "command-r": "smollm",
}  # fmt: skip
# of these, as llama.cpp has it: whole words first, and a beginning token unless `add_bos_token` says otherwise
WHOLE_WORDS = {"llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral", "tekken", "lfm2"}


def described(metadata: Mapping[str, object]) -> tuple[str | None, str | None]:
    """Return what metadata say of a tokenizer, which is not made: its kind, such as `gpt2 (llama-bpe)`, and its chat
    template."""
    names = [name for key in ("model", "pre") if isinstance(name := metadata.get(START + key), str)]
    kind = f"{names[0]} ({names[1]})" if len(names) > 1 else "".join(names) or None
    template = metadata.get("tokenizer.chat_template")
    return kind, template if isinstance(template, str) else None


def gguf_tokenizer(path: Path, metadata: Mapping[str, object]) -> Tokenizer:
    """Make the tokenizer of a GGUF file's metadata. Raises GencliError for kinds that gencli does not know."""
    try:
        return _tokenizer(path, {k.removeprefix(START): v for k, v in metadata.items() if k.startswith("tokenizer.")})
    except GencliError as error:
        raise GencliError(f"{path}: {error.message}", error.hint) from None
    except Exception as error:  # the library raises bare Exceptions
        raise GencliError(f"{path}: its tokenizer is not usable: {' '.join(str(error).split())[:160]}") from None


def _tokenizer(path: Path, given: dict[str, object]) -> Tokenizer:
    kind, tokens = given.get("model"), given.get("tokens")
    if not isinstance(tokens, list) or not tokens or not all(isinstance(token, str) for token in tokens):
        raise GencliError("the metadata hold no tokens")
    types = given.get("token_type") or [NORMAL] * len(tokens)
    if not isinstance(types, list) or len(types) != len(tokens):
        raise GencliError(f"{START}token_type does not fit {len(tokens)} tokens")
    if kind == "gpt2":
        backend = _byte_bpe(given, tokens)
        for token, type_ in zip(tokens, types, strict=True):
            if type_ in (CONTROL, USER_DEFINED):
                backend.add_tokens([AddedToken(token, special=type_ == CONTROL, normalized=False)])
        bos_by_default = given.get("pre") in WHOLE_WORDS
    elif kind in ("llama", "gemma4"):
        backend, bos_by_default = _pieces(given, tokens, types, by_merges=kind == "gemma4"), True
    else:
        raise GencliError(f"a tokenizer of the kind {kind!r:.60} is not supported", "gencli reads gpt2, llama, gemma4")
    if backend.get_vocab_size() != len(tokens):
        raise GencliError("the metadata have a token twice")
    ids = {name: _id(given, key, len(tokens)) for key, name in NAMED.items()}
    names = {f"{name}_token": tokens[i] for name, i in ids.items() if i is not None}
    backend.add_tokens([AddedToken(token, special=True, normalized=False) for token in names.values()])
    bos, eos = (ids[name] for name in ("bos", "eos"))
    around = [(bos, given.get("add_bos_token", bos_by_default)), (eos, given.get("add_eos_token", False))]
    surround(backend, *(tokens[i] if i is not None and add is True else None for i, add in around))
    ends = [eos, *(_id(given, key, len(tokens)) for key in ("eot", "eom"))]
    template = given.get("tokenizer.chat_template", given.get("chat_template"))
    return Tokenizer(
        backend,
        path,
        bos_id=bos,
        eos_ids=tuple(dict.fromkeys(i for i in ends if i is not None)),
        pad_id=ids["pad"],
        names=names,
        chat_template=template if isinstance(template, str) else None,
    )


def _byte_bpe(given: Mapping[str, object], tokens: list[str]) -> Backend:
    pre = given.get("pre")
    if not isinstance(pre, str) or pre not in SPLITTERS:
        raise GencliError(
            f"{START}pre = {pre!r:.60} is not supported: how it splits words", f"gencli knows {', '.join(SPLITTERS)}"
        )
    vocab = {token: i for i, token in enumerate(tokens)}
    return byte_level(models.BPE(vocab=vocab, merges=_merges(given), ignore_merges=pre in WHOLE_WORDS), SPLITTERS[pre])


def _merges(given: Mapping[str, object]) -> list[tuple[str, str]]:
    """Return the pairs that BPE merges, best first. Raise GencliError for what is none."""
    lines = given.get("merges")
    if not isinstance(lines, list):
        raise GencliError("the metadata hold no merges")
    if any(str(line).count(" ") != 1 for line in lines):
        raise GencliError(f"{START}merges has a line that is not a pair")
    return [(left, right) for left, _, right in (str(line).partition(" ") for line in lines)]


def _pieces(given: Mapping[str, object], tokens: list[str], types: list[int], *, by_merges: bool) -> Backend:
    """by_merges: as Gemma 4 has it, with merges in place of scores; of a piece that is there twice the last one counts,
    as in llama.cpp."""
    merges, scores = None, given.get("scores")
    if by_merges:
        merges, scores, last = tuple(_merges(given)), [0.0] * len(tokens), {text: i for i, text in enumerate(tokens)}
        tokens = [text if last[text] == i else f"{text}\0{i}" for i, text in enumerate(tokens)]
    if not isinstance(scores, list) or len(scores) != len(tokens):
        raise GencliError(f"{START}scores does not fit {len(tokens)} tokens")
    pieces = Pieces(
        tuple(tokens),
        tuple(map(float, scores)),
        tuple(BYTE if type_ == UNUSED else type_ for type_ in types),  # unused ones pad a vocabulary
        byte_fallback=BYTE in types,
        merges=merges,
        dummy_prefix=given.get("add_space_prefix", not by_merges) is True,
        remove_extra_whitespaces=given.get("remove_extra_whitespaces", False) is True,
        unk_id=_id(given, "unknown", len(tokens), 0),
    )
    return sentencepiece.backend(pieces)


def _id(given: Mapping[str, object], key: str, count: int, default: int | None = None) -> int | None:
    value = given.get(f"{key}_token_id", default)
    if value is None:
        return None
    if type(value) is not int or not 0 <= value < count:
        raise GencliError(f"{START}{key}_token_id = {str(value)[:40]} is not a token of {count}")
    return value
