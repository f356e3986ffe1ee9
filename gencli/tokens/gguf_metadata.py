"""A tokenizer → the metadata of a GGUF file, the way back of `gguf`."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import models

from gencli.errors import GencliError
from gencli.tokens.byte_level import SPLITS, byte_level
from gencli.tokens.decode import BYTE_PIECE
from gencli.tokens.gguf import NAMED, SPLITTERS, START, WHOLE_WORDS, gguf_tokenizer
from gencli.tokens.growth import Rule
from gencli.tokens.sentencepiece import BYTE, CONTROL, NORMAL, SPACE, UNKNOWN, UNUSED, USER_DEFINED
from gencli.tokens.tokenizer import Tokenizer

NEVER = -1e9  # the score of what no merge makes
# What is encoded by both, to see that nothing was lost.
PROBES = (
    "Hello world", "It's 12,345.67 \u20ac!", "  two  spaces\n\n\tand lines \n", "na\u00efve \u00fcber caf\u00e9", "a",
    "\u4f60\u597d, \u043c\u0438\u0440 \U0001f600", "def f(x):\n    return x_1 + 'a'", "CamelCASE don't",
)  # fmt: skip


def gguf_metadata(tokenizer: Tokenizer, vocab_size: int) -> dict[str, object]:
    """Return what a GGUF file says of a tokenizer. vocab_size: the model's; what it has more is padded.

    Raise GencliError for a tokenizer of a kind that GGUF, or llama.cpp, has no name for.
    """
    raw = json.loads(tokenizer.backend.to_str())
    model, count = raw["model"], tokenizer.vocab_size
    if model["type"] != "BPE":
        raise GencliError(f"a GGUF file cannot hold a tokenizer of the kind {model['type']!r}")
    ids = tokenizer.backend.get_vocab(with_added_tokens=True)
    if count > vocab_size or max(ids.values()) >= vocab_size:
        raise GencliError(f"the tokenizer has {count} tokens, and the model {vocab_size}")
    pieces = _pieces_like(raw)
    added = {token["id"]: token for token in raw["added_tokens"]}
    tokens, types = [f"[PAD{i}]" for i in range(vocab_size)], [UNUSED] * vocab_size
    for text, i in ids.items():
        kind = NORMAL if i not in added else CONTROL if added[i]["special"] else USER_DEFINED
        if pieces and BYTE_PIECE.fullmatch(text):
            kind = BYTE
        text = text.replace(SPACE, " ") if pieces and kind == USER_DEFINED else text  # found before spaces are marked
        tokens[i], types[i] = text, UNKNOWN if pieces and text == model.get("unk_token") else kind
    merges = [" ".join(pair) if isinstance(pair, list) else pair for pair in model["merges"]]
    found: dict[str, object] = {"model": "llama" if pieces else "gpt2", "tokens": tokens, "token_type": types}
    if pieces:
        rank: dict[str, float] = {}
        for i, pair in enumerate(merges):
            rank.setdefault(pair.replace(" ", ""), -float(i))
        found |= {"scores": [rank.get(token, NEVER) for token in tokens], "add_space_prefix": _has(raw, "Prepend")}
    else:
        found |= {"pre": _splitter(raw), "merges": merges}
    return _checked(tokenizer, {START + key: value for key, value in (found | _named(tokenizer)).items()})


def _named(tokenizer: Tokenizer) -> dict[str, object]:
    """The special tokens, and which of them are around every text."""
    ids = {key: tokenizer.backend.token_to_id(tokenizer.names.get(f"{name}_token", "")) for key, name in NAMED.items()}
    ends = list(dict.fromkeys(i for i in (ids["eos"], *tokenizer.eos_ids) if i is not None))
    ids |= dict(zip(("eos", "eot", "eom"), ends, strict=False))
    ids["bos"] = tokenizer.bos_id if ids["bos"] is None else ids["bos"]
    if tokenizer.pad_id is not None:
        ids["padding"] = tokenizer.pad_id
    around = tokenizer.backend.encode("").ids
    adds = {"add_bos_token": around[:1] == [ids["bos"]], "add_eos_token": around[1:] == [ids.get("eos")]}
    return {**{f"{key}_token_id": i for key, i in ids.items() if i is not None}, **adds}


def _checked(tokenizer: Tokenizer, metadata: dict[str, object]) -> dict[str, object]:
    """Return the metadata with the chat template. Raise GencliError unless they give the tokenizer back."""
    back = gguf_tokenizer(Path(tokenizer.folder), metadata)
    for text in PROBES:
        if back.encode(text) != tokenizer.encode(text):
            raise GencliError(f"a GGUF file cannot say how the tokenizer splits texts, such as {text[:40]!r}")
    template = tokenizer.chat_template
    return metadata | ({"tokenizer.chat_template": template} if template is not None else {})


def _steps(step: Rule | None) -> list[Rule]:
    """The steps of a normaliser or of what splits words, one after the other."""
    if step is None:
        return []
    inner = step.get("pretokenizers", step.get("normalizers"))
    return [step] if inner is None else [one for part in inner for one in _steps(part)]


def _has(raw: Rule, kind: str) -> bool:
    steps = [*_steps(raw["normalizer"]), *_steps(raw["pre_tokenizer"])]
    always = any(step["type"] == "Metaspace" and step.get("prepend_scheme", "always") != "never" for step in steps)
    return always or any(step["type"] == kind for step in steps)


def _pieces_like(raw: Rule) -> bool:
    """Whether a BPE is SentencePiece's, which has ▁ for spaces."""
    return any(SPACE in token for token in raw["model"]["vocab"]) and not _has(raw, "ByteLevel")


def _plain(raw: Rule) -> list[dict[str, object]]:
    """What splits words, without what does not matter to it."""
    kept = ("type", "pattern", "behavior", "invert", "individual_digits", "add_prefix_space", "use_regex")
    steps = [*_steps(raw["normalizer"]), *_steps(raw["pre_tokenizer"])]
    return [{key: value for key, value in step.items() if key in kept} for step in steps]


def _splitter(raw: Rule) -> str:
    """Return llama.cpp's name of how a byte-level BPE splits words. Raise GencliError if it has none."""
    whole = raw["model"].get("ignore_merges", False)
    for split in ("gpt2", *SPLITS):
        if _plain(json.loads(byte_level(models.BPE(), split).to_str())) == _plain(raw):
            names = [name for name, own in SPLITTERS.items() if own == split]
            for name in [one for one in names if (one in WHOLE_WORDS) == whole] or names:
                return name
    raise GencliError("GGUF has no name for how the tokenizer splits words")
