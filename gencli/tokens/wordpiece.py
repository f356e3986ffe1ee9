"""BERT's tokenizer from vocab.txt: words split at spaces and punctuation, then into the longest known pieces."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, normalizers, pre_tokenizers

from gencli.errors import GencliError
from gencli.json_files import read_text

CLASSES = (None, "BertTokenizer")
NAMES = {
    "unk_token": "[UNK]",
    "sep_token": "[SEP]",
    "pad_token": "[PAD]",
    "cls_token": "[CLS]",
    "mask_token": "[MASK]",
}


def backend(path: Path, config: Mapping[str, object]) -> Backend:
    """Make the backend of a vocab.txt, one piece per line. config: tokenizer_config.json.

    Raises GencliError for a file that is not a vocabulary, and for settings that are not supported.
    """
    where = path.parent / "tokenizer_config.json"
    if config.get("do_basic_tokenize", True) is not True or config.get("never_split"):
        raise GencliError(f"{where}: do_basic_tokenize = false and never_split are not supported")
    flags = {
        key: config.get(key, value) for key, value in {"do_lower_case": True, "tokenize_chinese_chars": True}.items()
    }
    accents = config.get("strip_accents")
    for key, value in {**flags, "strip_accents": accents or False}.items():
        if not isinstance(value, bool):
            raise GencliError(f"{where}: {key} = {value!r:.60} is neither true nor false")
    unknown = config.get("unk_token")
    unknown = unknown.get("content") if isinstance(unknown, dict) else unknown or NAMES["unk_token"]
    vocab = _read(path)
    if unknown not in vocab:
        raise GencliError(f"{path} lacks the token {unknown!r:.60}, which stands for unknown words")
    made = Backend(models.WordPiece(vocab=vocab, unk_token=str(unknown)))
    made.normalizer = normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=bool(flags["tokenize_chinese_chars"]),
        strip_accents=None if accents is None else bool(accents),
        lowercase=bool(flags["do_lower_case"]),
    )
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece(prefix="##")
    return made


def _read(path: Path) -> dict[str, int]:
    """Return piece → number of its line, from 0. The last of two equal lines counts, as in the reference."""
    lines = read_text(path).replace("\r\n", "\n").removesuffix("\n").split("\n")
    if not any(lines):
        raise GencliError(f"{path} holds no vocabulary")
    return {line: number for number, line in enumerate(lines)}
