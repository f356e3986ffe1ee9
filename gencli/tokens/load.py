"""A checkpoint's tokenizer files → Tokenizer.

`tokenizer.json` says everything about splitting and merging; without it, `vocab.json` and `merges.txt` are GPT-2's
byte-level BPE, Qwen 2's, or CLIP's, whose words end in `</w>`; `vocab.txt` is BERT's; and `tokenizer.model` or
`spiece.model` is SentencePiece's. Special and added tokens are in up to four more files.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path

from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models

from gencli.errors import GencliError
from gencli.json_files import read_bytes, read_json
from gencli.tokens import byte_level, clip, sentencepiece, wordpiece
from gencli.tokens.guard import library
from gencli.tokens.special_tokens import add_special_tokens, optional_json, surround, token_id
from gencli.tokens.templates import read_chat_template
from gencli.tokens.tokenizer import Tokenizer

# What the classes that write vocab.json and merges.txt assume if no file names a token.
DEFAULTS = {
    "gpt2": dict.fromkeys(("bos_token", "eos_token", "unk_token"), clip.END),
    "clip": {"bos_token": clip.START, **dict.fromkeys(("eos_token", "unk_token", "pad_token"), clip.END)},
    "qwen2": dict.fromkeys(("eos_token", "unk_token", "pad_token"), clip.END),
}
PIECES = ("tokenizer.model", "spiece.model")  # files of SentencePiece
# Whether these classes add a bos and an eos token to every text if no file says so; others number pieces anew.
PIECE_CLASSES = {
    None: (True, False),
    "LlamaTokenizer": (True, False),
    "LLaMATokenizer": (True, False),
    "CodeLlamaTokenizer": (True, False),
    "GemmaTokenizer": (True, False),
    "T5Tokenizer": (False, True),
}
UNLIMITED = 2**31  # transformers writes 1e30 as model_max_length if it knows none


Read = Callable[[Path], Mapping[str, object]]


def load_tokenizer(folder: Path | str, read_json: Read = read_json) -> Tokenizer:
    """Load the tokenizer in a checkpoint's folder.

    bos and eos are those of generation_config.json, else of config.json, else of the tokenizer's own files.
    Raises GencliError, in one line that names the file, for files that are missing, broken or contradict each other.
    """
    with library(f"{folder}: its tokenizer is not usable"):
        return _load(Path(folder), read_json)


def _load(folder: Path, read_json: Read) -> Tokenizer:
    config = optional_json(folder / "tokenizer_config.json", read_json)
    adds, defaults, kind, begin = {"bos_token": False, "eos_token": False}, None, "", ""
    if (folder / "tokenizer.json").is_file():
        backend, kind = _from_json(folder / "tokenizer.json", config)
    elif (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        backend, kind = byte_level.from_vocab(folder, config, _class_name(config))
        adds = {name: kind == "clip" or config.get(f"add_{name}") is True for name in adds}
    elif file := next((folder / name for name in PIECES if (folder / name).is_file()), None):
        backend, defaults, adds, begin = _from_pieces(file, config)
    elif (folder / "vocab.txt").is_file():
        if _class_name(config) not in wordpiece.CLASSES:
            raise GencliError(
                f"{folder}: vocab.txt of a {_class_name(config)!r} is not supported", "a tokenizer.json would be"
            )
        backend, defaults, kind = wordpiece.backend(folder / "vocab.txt", config), wordpiece.NAMES, "bert"
    else:
        raise GencliError(
            f"{folder} has no tokenizer.json, no vocab.json with merges.txt, no tokenizer.model and no vocab.txt"
        )
    named = DEFAULTS.get(kind, {}) if defaults is None else defaults
    made = _finish(backend, folder, config, kind, adds, named, read_json)
    return dataclasses.replace(made, begin=begin) if begin else made


def load_clip_tokenizer(pad: str = clip.END) -> Tokenizer:
    """Make CLIP's tokenizer from the merges that gencli contains, for checkpoints without one.

    pad: the padding token: the end token for OpenAI's models, "!" (id 0) for OpenCLIP's.
    """
    config = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, "pad_token": pad}
    adds = {"bos_token": True, "eos_token": True}
    return _finish(clip.own_backend(), clip.MERGES.parent, config, "clip", adds, DEFAULTS["clip"])


def _finish(
    backend: Backend,
    folder: Path,
    config: Mapping[str, object],
    kind: str,
    adds: Mapping[str, bool],
    defaults: Mapping[str, str],
    read_json: Read = read_json,
) -> Tokenizer:
    """Make the tokenizer of a backend: learn the special tokens, and add them to every text if `adds` says so."""
    backend.no_truncation()  # a tokenizer.json may have the truncation and padding of a training run
    backend.no_padding()
    named = add_special_tokens(backend, folder, config, defaults)
    if kind == "clip" and not {"bos_token", "eos_token"} <= named.keys():
        raise GencliError(f"{folder}: the tokenizer has no start and end token, which CLIP puts around every text")
    surround(backend, *(named.get(name) if adds[name] else None for name in ("bos_token", "eos_token")))
    if kind == "bert" and backend.post_processor is None:
        surround(backend, named.get("cls_token"), named.get("sep_token"))
    ids = {name: i for name, token in named.items() if (i := backend.token_to_id(token)) is not None}
    if kind == "bert":  # every text is between these two
        ids |= {name: ids[own] for name, own in (("bos_token", "cls_token"), ("eos_token", "sep_token")) if own in ids}
    # Early CLIP configs have a wrong end token (2), so only the tokenizer's files count for CLIP and BERT.
    others = [] if kind in ("clip", "bert") else [folder / "generation_config.json", folder / "config.json"]
    bos_id, eos_ids = _ends(others, ids, read_json)
    return Tokenizer(
        backend,
        folder,
        bos_id=bos_id,
        eos_ids=eos_ids,
        pad_id=ids.get("pad_token"),
        max_length=_max_length(folder, config),
        word_suffix=clip.WORD_END if kind == "clip" else "",
        names=named,
        chat_template=read_chat_template(folder, config),
        split_special_tokens=config.get("split_special_tokens") is True,
    )


def _from_json(path: Path, config: Mapping[str, object]) -> tuple[Backend, str]:
    content = read_bytes(path)
    with library(f"{path} is not a tokenizer"):
        backend = Backend.from_buffer(content)
    word_end = getattr(backend.model, "end_of_word_suffix", None)
    if word_end == clip.WORD_END and isinstance(backend.decoder, decoders.ByteLevel):
        return backend, "clip"
    if isinstance(backend.model, models.WordPiece):
        return backend, "bert"
    prefix = config.get("add_prefix_space")
    if isinstance(prefix, bool) and _class_name(config) in ("GPT2Tokenizer", "Qwen2Tokenizer"):
        byte_level.set_prefix_space(backend, prefix)
    return backend, byte_level.CLASSES.get(_class_name(config), "other")


def _from_pieces(path: Path, config: Mapping[str, object]) -> tuple[Backend, dict[str, str], dict[str, bool], str]:
    """Return the backend of a SentencePiece model, its named tokens, which of them are added to every text, and what
    must stand before it."""
    named_class = _class_name(config)
    if named_class not in PIECE_CLASSES:
        raise GencliError(
            f"{path.parent}: {path.name} of a {named_class!r} is not supported",
            "a tokenizer.json would be; transformers writes one with save_pretrained",
        )
    pieces = sentencepiece.read(path)
    extra: tuple[str, ...] = ()
    if named_class == "T5Tokenizer":
        count = config.get("extra_ids", 100)
        if type(count) is not int or not 0 <= count <= 10_000:
            raise GencliError(f"{path.parent / 'tokenizer_config.json'}: extra_ids = {count!r:.60} is out of range")
        extra = tuple(f"<extra_id_{i}>" for i in reversed(range(count)))
    # Files older than the key `legacy` have the space after every special token.
    every = config.get("legacy") is not False and sentencepiece.USER_DEFINED not in pieces.types
    try:
        backend = sentencepiece.backend(pieces, prefix_every_part=every, extra=extra)
    except GencliError as error:
        raise GencliError(f"{path}: {error.message}", error.hint) from None
    around = dict(zip(("bos_token", "eos_token"), PIECE_CLASSES[named_class], strict=True))
    if named_class is None and pieces.kind == "unigram":
        around = {"bos_token": False, "eos_token": True}
    said = {name: config.get(f"add_{name}") for name in around}
    adds = {name: around[name] if said[name] is None else said[name] is True for name in said}
    return backend, pieces.named(), adds, "" if every else sentencepiece.BEGIN


def _ends(files: list[Path], ids: Mapping[str, int], read_json: Read) -> tuple[int | None, tuple[int, ...]]:
    """Return the bos id and the eos ids: of the first file that names each, else the tokenizer's own."""
    found: dict[str, tuple[int, ...]]
    found = {key: (ids[key],) if key in ids else () for key in ("bos_token", "eos_token")}
    for file in reversed(files):
        raw = optional_json(file, read_json)
        for key in found:
            value = raw.get(f"{key}_id")
            if value not in (None, -1):  # some tools write -1 for none
                found[key] = tuple(token_id(v, str(file)) for v in (value if isinstance(value, list) else [value]))
    bos = found["bos_token"]
    return (bos[0] if bos else None), found["eos_token"]


def _max_length(folder: Path, config: Mapping[str, object]) -> int | None:
    length = config.get("model_max_length", config.get("max_len"))
    if length is None or (isinstance(length, (int, float)) and length >= UNLIMITED):
        return None
    if type(length) is not int or length < 1:
        raise GencliError(f"{folder / 'tokenizer_config.json'}: model_max_length = {length!r} is not a length")
    return length


def _class_name(config: Mapping[str, object]) -> str | None:
    """Return the tokenizer's class without the `Fast` of older files; None if no file names one."""
    name = config.get("tokenizer_class")
    return name.removesuffix("Fast") if isinstance(name, str) else None
