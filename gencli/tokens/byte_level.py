"""Byte-level BPE: how the families split texts, and vocab.json with merges.txt."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import cast

from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Backend

from gencli.errors import GencliError
from gencli.json_files import read_json, read_text
from gencli.tokens import clip
from gencli.tokens.special_tokens import token_text

# Classes with vocab.json and merges.txt. How others split words only their tokenizer.json tells.
CLASSES = {None: "gpt2", "GPT2Tokenizer": "gpt2", "CLIPTokenizer": "clip", "Qwen2Tokenizer": "qwen2"}
QWEN2_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN35_WORDS = QWEN2_WORDS.replace(r"?\p{L}+", r"?[\p{L}\p{M}]+").replace(r"\s\p{L}\p{N}]", r"\s\p{L}\p{M}\p{N}]")
LLAMA3_WORDS = QWEN2_WORDS.replace(r"|\p{N}|", r"|\p{N}{1,3}|")
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
CASED = rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+END|[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*END|"
AFTER = r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
TEKKEN_WORDS = CASED.replace("END", "") + r"\p{N}" + AFTER
O200K_WORDS = CASED.replace("END", r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?") + r"\p{N}{1,3}" + AFTER
DEEPSEEK = (  # one after the other; then single digits
    r"[\r\n]", r"\s?[\p{Lu}\p{Ll}\p{Lt}]+",
    "\\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+", r"\s+$",
    "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+",
)  # fmt: skip


def _split(*patterns: str) -> list[pre_tokenizers.PreTokenizer]:
    return [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in patterns]


SPLITS: dict[str, list[pre_tokenizers.PreTokenizer]] = {  # before the words of GPT-2, or in place of them
    "qwen2": _split(QWEN2_WORDS),
    "qwen35": _split(QWEN35_WORDS),  # marks belong to letters
    "deepseek-qwen": _split(QWEN2_WORDS),  # without Qwen's normaliser
    "llama3": _split(LLAMA3_WORDS),
    "tekken": _split(TEKKEN_WORDS),
    "o200k": _split(O200K_WORDS),
    "deepseek": [*_split(*DEEPSEEK), pre_tokenizers.Digits(individual_digits=True)],
    "smollm": [pre_tokenizers.Digits(individual_digits=True)],
}


def byte_level(model: models.BPE, split: str = "gpt2", *, add_prefix_space: bool = False) -> Backend:
    """Make a backend that splits words as `split` does: gpt2 or a key of SPLITS."""
    backend = Backend(model)
    backend.decoder = decoders.ByteLevel()
    words = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space, use_regex=split in ("gpt2", "smollm"))
    backend.pre_tokenizer = pre_tokenizers.Sequence([*SPLITS[split], words]) if split in SPLITS else words
    if split in ("qwen2", "qwen35"):
        backend.normalizer = normalizers.NFC()
    return backend


def set_prefix_space(backend: Backend, value: bool) -> None:
    """Set whether a byte-level backend puts a space before a text that begins with none."""
    steps = backend.pre_tokenizer
    several = isinstance(steps, pre_tokenizers.Sequence)
    for step in steps if several else (steps,):
        if isinstance(step, pre_tokenizers.ByteLevel):
            step.add_prefix_space = value
    backend.pre_tokenizer = steps


def from_vocab(folder: Path, config: Mapping[str, object], named_class: str | None) -> tuple[Backend, str]:
    """Return the backend of vocab.json and merges.txt, and its kind: gpt2, clip or qwen2.

    CLIP is recognised by the class or by its `</w>`. Raises GencliError for other classes and broken files.
    """
    if named_class not in CLASSES:
        raise GencliError(
            f"{folder}: vocab.json and merges.txt of a {named_class!r} do not say how it splits words",
            "a tokenizer.json would; transformers writes one with save_pretrained",
        )
    vocab, file = read_json(folder / "vocab.json"), folder / "merges.txt"
    if not all(type(i) is int and 0 <= i < 2**31 for i in vocab.values()):
        raise GencliError(f"{folder / 'vocab.json'}: token ids must be whole numbers")
    is_clip = CLASSES[named_class] == "clip" or any(piece.endswith(clip.WORD_END) for piece in vocab)
    merges = list(_merges(file))
    special = {token_text(config.get(key)) for key in ("bos_token", "eos_token", "unk_token", "pad_token")}
    merged = sum(len(piece.removesuffix(clip.WORD_END)) > 1 for piece in vocab if piece not in special)
    if len(merges) < merged / 2:  # each longer piece comes from a merge, except further special tokens
        raise GencliError(f"{file}: {len(merges)} merges for {merged} merged pieces: is it cut off?")
    unknown = token_text(config.get("unk_token")) or clip.END
    clip_only = {"end_of_word_suffix": clip.WORD_END, "unk_token": unknown if unknown in vocab else None}
    try:
        model = models.BPE(vocab=cast("dict[str, int]", vocab), merges=merges, **(clip_only if is_clip else {}))
    except Exception as error:  # the library raises bare Exceptions
        raise GencliError(f"{file} does not fit vocab.json: {' '.join(str(error).split())[:200]}") from None
    if is_clip:
        return clip.backend(model), "clip"
    kind, prefix = CLASSES[named_class], bool(config.get("add_prefix_space"))
    return byte_level(model, kind, add_prefix_space=prefix and kind == "gpt2"), kind


def _merges(path: Path) -> Iterator[tuple[str, str]]:
    """Yield pairs of pieces, one per line, best first; the first line may be a version."""
    for number, line in enumerate(read_text(path).split("\n"), 1):
        pair = line.split()
        if not pair or (number == 1 and line.startswith("#version")):
            continue
        if len(pair) != 2:
            raise GencliError(f"{path}, line {number}: {line[:60]!r} is not a pair of pieces")
        yield pair[0], pair[1]
