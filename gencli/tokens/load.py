"""A checkpoint's tokenizer files → Tokenizer.

`tokenizer.json` says everything about splitting and merging; without it, `vocab.json` and `merges.txt` are GPT-2's
byte-level BPE, Qwen 2's, or CLIP's, whose words end in `</w>`; `vocab.txt` is BERT's; and `tokenizer.model` or
`spiece.model` is SentencePiece's. Special and added tokens lie in up to four more places.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as Backend

from gencli.errors import GencliError
from gencli.json_files import read_bytes, read_json
from gencli.tokens import clip, sentencepiece, wordpiece
from gencli.tokens.templates import read_chat_template
from gencli.tokens.tokenizer import Tokenizer

WORD_END, END_OF_TEXT = clip.WORD_END, clip.END
NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
# What the classes that write vocab.json + merges.txt assume when no file names a token.
DEFAULTS = {
    "gpt2": {"bos_token": END_OF_TEXT, "eos_token": END_OF_TEXT, "unk_token": END_OF_TEXT},
    "clip": {
        "bos_token": clip.START,
        "eos_token": END_OF_TEXT,
        "unk_token": END_OF_TEXT,
        "pad_token": END_OF_TEXT,
    },
    "qwen2": {"eos_token": END_OF_TEXT, "unk_token": END_OF_TEXT, "pad_token": END_OF_TEXT},
}
# Other classes split words otherwise, which only their tokenizer.json tells.
VOCAB_CLASSES = {None: "gpt2", "GPT2Tokenizer": "gpt2", "CLIPTokenizer": "clip", "Qwen2Tokenizer": "qwen2"}
QWEN2_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
PIECES = ("tokenizer.model", "spiece.model")  # SentencePiece's files
# Whether these classes put a beginning and an end around every text when no file says so; others number pieces anew.
PIECE_CLASSES = {
    None: (True, False),
    "LlamaTokenizer": (True, False),
    "LLaMATokenizer": (True, False),
    "CodeLlamaTokenizer": (True, False),
    "GemmaTokenizer": (True, False),
    "T5Tokenizer": (False, True),
}
UNLIMITED = 2**31  # transformers writes 1e30 as model_max_length when it knows none


Read = Callable[[Path], Mapping[str, Any]]


def load_tokenizer(folder: Path | str, read_json: Read = read_json) -> Tokenizer:
    """Load the tokenizer in a checkpoint's folder.

    bos and eos come from generation_config.json, else config.json, else the tokenizer's own files.
    Raises GencliError, in one line that names the file, for files that are missing, broken or contradict each other.
    """
    folder = Path(folder)
    config = _optional(folder / "tokenizer_config.json", read_json)
    adds, defaults, kind = {"bos_token": False, "eos_token": False}, None, ""
    if (folder / "tokenizer.json").is_file():
        backend, kind = _from_json(folder / "tokenizer.json", config)
    elif (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        backend, kind = _from_vocab(folder, config)
        adds = {name: kind == "clip" or config.get(f"add_{name}") is True for name in adds}
    elif file := next((folder / name for name in PIECES if (folder / name).is_file()), None):
        backend, defaults, adds = _from_pieces(file, config)
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
    return _finish(backend, folder, config, kind, adds, named, read_json)


def load_clip_tokenizer(pad: str = END_OF_TEXT) -> Tokenizer:
    """CLIP's own tokenizer, from the merges that gencli carries: for checkpoints that come without one.

    pad: the token that fills up a text: the end token in OpenAI's, "!" (id 0) where OpenCLIP stands behind it.
    """
    config = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, "pad_token": pad}
    adds = {"bos_token": True, "eos_token": True}
    return _finish(clip.own_backend(), clip.MERGES.parent, config, "clip", adds, DEFAULTS["clip"])


def _finish(
    backend: Backend,
    folder: Path,
    config: Mapping[str, Any],
    kind: str,
    adds: Mapping[str, bool],
    defaults: Mapping[str, str],
    read_json: Read = read_json,
) -> Tokenizer:
    """The tokenizer of what splits words: special tokens made known, and put around every text where `adds` says."""
    backend.no_truncation()  # a tokenizer.json may carry a training run's: nothing is cut or filled unasked
    backend.no_padding()
    named = _add_tokens(backend, folder, config, defaults)
    if kind == "clip" and not {"bos_token", "eos_token"} <= named.keys():
        raise GencliError(f"{folder}: the tokenizer has no start and end token, which CLIP puts around every text")
    _frame(backend, *(named.get(name) if adds[name] else None for name in ("bos_token", "eos_token")))
    if kind == "bert" and backend.post_processor is None:
        _frame(backend, named.get("cls_token"), named.get("sep_token"))
    ids = {name: i for name, token in named.items() if (i := backend.token_to_id(token)) is not None}
    if kind == "bert":  # its texts stand between these two
        ids |= {name: ids[own] for name, own in (("bos_token", "cls_token"), ("eos_token", "sep_token")) if own in ids}
    # Old CLIP configs name an end token that is none (2), so CLIP's own files alone are asked, and BERT's.
    others = [] if kind in ("clip", "bert") else [folder / "generation_config.json", folder / "config.json"]
    bos_id, eos_ids = _ends(others, ids, read_json)
    return Tokenizer(
        backend,
        folder,
        bos_id=bos_id,
        eos_ids=eos_ids,
        pad_id=ids.get("pad_token"),
        max_length=_max_length(folder, config),
        word_suffix=WORD_END if kind == "clip" else "",
        names=named,
        chat_template=read_chat_template(folder, config),
    )


def _from_json(path: Path, config: Mapping[str, Any]) -> tuple[Backend, str]:
    content = read_bytes(path)
    try:
        backend = Backend.from_buffer(content)
    except Exception as error:  # the library raises bare Exceptions
        raise GencliError(f"{path} is no tokenizer: {_one_line(error)}") from None
    word_end = getattr(backend.model, "end_of_word_suffix", None)
    if word_end == WORD_END and isinstance(backend.decoder, decoders.ByteLevel):
        return backend, "clip"
    if isinstance(backend.model, models.WordPiece):
        return backend, "bert"
    return backend, VOCAB_CLASSES.get(_class_name(config), "other")


def _from_vocab(folder: Path, config: Mapping[str, Any]) -> tuple[Backend, str]:
    """vocab.json + merges.txt → GPT-2's or CLIP's BPE, told by the class that is named and by `</w>`."""
    named_class = _class_name(config)
    if named_class not in VOCAB_CLASSES:
        raise GencliError(
            f"{folder}: vocab.json and merges.txt of a {named_class!r} do not say how it splits words",
            "a tokenizer.json would; transformers writes one with save_pretrained",
        )
    vocab = read_json(folder / "vocab.json")
    if not all(type(i) is int and 0 <= i < 2**31 for i in vocab.values()):
        raise GencliError(f"{folder / 'vocab.json'}: token ids must be whole numbers")
    is_clip = VOCAB_CLASSES[named_class] == "clip" or any(piece.endswith(WORD_END) for piece in vocab)
    try:
        merges = list(_merges(folder / "merges.txt"))
        merged = sum(len(piece.removesuffix(WORD_END)) > 1 for piece in vocab)
        if len(merges) < merged / 2:  # each longer piece comes from a merge, but for special tokens
            raise GencliError(
                f"{folder / 'merges.txt'}: {len(merges)} merges for {merged} merged pieces: is it cut off?"
            )
        if is_clip:
            model = models.BPE(vocab=vocab, merges=merges, end_of_word_suffix=WORD_END, unk_token=_unk(config, vocab))
        else:
            model = models.BPE(vocab=vocab, merges=merges)
    except GencliError:
        raise
    except Exception as error:  # as above
        raise GencliError(f"{folder / 'merges.txt'} does not fit vocab.json: {_one_line(error)}") from None
    if is_clip:
        return clip.backend(model), "clip"
    backend = Backend(model)
    backend.decoder = decoders.ByteLevel()
    if VOCAB_CLASSES[named_class] == "qwen2":
        backend.normalizer = normalizers.NFC()
        split = pre_tokenizers.Split(Regex(QWEN2_WORDS), "isolated")
        backend.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, use_regex=False)])
        return backend, "qwen2"
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=bool(config.get("add_prefix_space")))
    return backend, "gpt2"


def _from_pieces(path: Path, config: Mapping[str, Any]) -> tuple[Backend, dict[str, str], dict[str, bool]]:
    """A SentencePiece model → backend, its named tokens, and which of them stand around every text."""
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
    # A file of before the key says nothing and had the space after every special token.
    every = config.get("legacy") is not False and sentencepiece.USER_DEFINED not in pieces.types
    try:
        backend = sentencepiece.backend(pieces, prefix_every_part=every, extra=extra)
    except GencliError as error:
        raise GencliError(f"{path}: {error.message}", error.hint) from None
    around = dict(zip(("bos_token", "eos_token"), PIECE_CLASSES[named_class], strict=True))
    if named_class is None and pieces.kind == "unigram":
        around = {"bos_token": False, "eos_token": True}
    said = {name: config.get(f"add_{name}") for name in around}
    return backend, pieces.named(), {name: around[name] if said[name] is None else said[name] is True for name in said}


def _merges(path: Path) -> Iterator[tuple[str, str]]:
    """Pairs of pieces, one a line, best first; the first line may be a version."""
    try:
        lines = read_bytes(path).decode().split("\n")
    except UnicodeDecodeError:
        raise GencliError(f"{path} is not UTF-8") from None
    for number, line in enumerate(lines, 1):
        pair = line.split()
        if not pair or (number == 1 and line.startswith("#version")):
            continue
        if len(pair) != 2:
            raise GencliError(f"{path}, line {number}: {line[:60]!r} is no pair of pieces")
        yield pair[0], pair[1]


def _unk(config: Mapping[str, Any], vocab: Mapping[str, int]) -> str | None:
    """CLIP's unknown token, where the vocabulary has it."""
    token = _content(config.get("unk_token")) or END_OF_TEXT
    return token if token in vocab else None


def _add_tokens(
    backend: Backend, folder: Path, config: Mapping[str, Any], defaults: Mapping[str, str]
) -> dict[str, str]:
    """Make special and added tokens known to the backend, as transformers does; returns the named ones.

    With `added_tokens_decoder` in tokenizer_config.json the older special_tokens_map.json and added_tokens.json are
    not looked at. Raises GencliError for an added token that does not get the id it is said to have.
    """
    where = str(folder / "tokenizer_config.json")
    special: dict[str, Any] = {key: config[key] for key in config if key in NAMED}
    extra = config.get("extra_special_tokens") or config.get("additional_special_tokens")
    added: dict[int, AddedToken] = {}
    if isinstance(declared := config.get("added_tokens_decoder"), dict):
        added = {_id(key, where): _token(value, f"{where}: added token {key}") for key, value in declared.items()}
    else:
        older = _optional(folder / "special_tokens_map.json")
        special |= {key: older[key] for key in older if key in NAMED}
        extra = older.get("extra_special_tokens") or older.get("additional_special_tokens") or extra
        names = {_content(value) for value in special.values()} | {_content(value) for value in _listed(extra)}
        for text, index in _optional(folder / "added_tokens.json").items():
            flags = {"special": text in names, "normalized": text not in names}
            file = str(folder / "added_tokens.json")
            added[_id(index, file)] = _token({"content": text, **flags}, file)

    for index, token in sorted(added.items()):
        backend.add_tokens([token])
        if backend.token_to_id(token.content) != index:
            got = backend.token_to_id(token.content)
            raise GencliError(
                f"{folder}: added token {token.content!r} should be {index}, but the vocabulary gives {got}"
            )
    named = {name: text for name, text in defaults.items() if backend.token_to_id(text) is not None}
    known = {token.content for token in backend.get_added_tokens_decoder().values()}
    for name, value in [*{**named, **special}.items(), *(("", value) for value in _listed(extra))]:
        if value is None:
            named.pop(name, None)
            continue
        token = _token(value, f"{folder}: {name or 'special token'}", special=True)
        if token.content not in known:
            backend.add_tokens([token])
            known.add(token.content)
        if name:
            named[name] = token.content
    return named


def _token(value: Any, where: str, *, special: bool = False) -> AddedToken:
    """An added token from its text, or from the object that JSON files write. Raises GencliError for anything else."""
    if isinstance(value, str) and value:
        return AddedToken(value, special=True)
    if isinstance(value, dict) and isinstance(value.get("content"), str) and value["content"]:
        keys = ("single_word", "lstrip", "rstrip", "normalized", "special")
        flags = {key: value[key] for key in keys if isinstance(value.get(key), bool)}
        if special:
            flags["special"] = True
        return AddedToken(value["content"], **flags)
    raise GencliError(f"{where}: {str(value)[:60]!r} is no token's text")


def _content(value: Any) -> str | None:
    content = value.get("content") if isinstance(value, dict) else value
    return content if isinstance(content, str) else None


def _listed(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else []


def _frame(backend: Backend, bos: str | None, eos: str | None) -> None:
    """Put these tokens around every text that is encoded; without any, what tokenizer.json says stays."""
    tokens = [token for token in (bos, eos) if token is not None]
    if tokens:
        single = [token for token in (bos, "$A", eos) if token is not None]
        ids = [(token, backend.token_to_id(token)) for token in tokens]
        backend.post_processor = processors.TemplateProcessing(single=single, special_tokens=ids)


def _ends(files: list[Path], ids: Mapping[str, int], read_json: Read) -> tuple[int | None, tuple[int, ...]]:
    """The ids that begin and end a text: from the first file that names each, else the tokenizer's own."""
    found: dict[str, tuple[int, ...]]
    found = {key: (ids[key],) if key in ids else () for key in ("bos_token", "eos_token")}
    for file in reversed(files):
        raw = _optional(file, read_json)
        for key in found:
            value = raw.get(f"{key}_id")
            if value is not None:
                found[key] = tuple(_id(v, str(file)) for v in (value if isinstance(value, list) else [value]))
    bos = found["bos_token"]
    return (bos[0] if bos else None), found["eos_token"]


def _id(value: Any, where: str) -> int:
    """A token id from JSON, where keys are always text. Raises GencliError when it is no whole number from 0."""
    if isinstance(value, str) and value.isdecimal() and len(value) < 10:
        value = int(value)
    if type(value) is not int or not 0 <= value < 2**31:
        raise GencliError(f"{where}: {str(value)[:60]!r} is no token id")
    return value


def _max_length(folder: Path, config: Mapping[str, Any]) -> int | None:
    length = config.get("model_max_length", config.get("max_len"))
    if length is None or (isinstance(length, (int, float)) and length >= UNLIMITED):
        return None
    if type(length) is not int or length < 1:
        raise GencliError(f"{folder / 'tokenizer_config.json'}: model_max_length = {length!r} is no length")
    return length


def _class_name(config: Mapping[str, Any]) -> str | None:
    """The tokenizer's class, without the `Fast` that older files have; None when no file names one."""
    name = config.get("tokenizer_class")
    return name.removesuffix("Fast") if isinstance(name, str) else None


def _optional(path: Path, read_json: Read = read_json) -> Mapping[str, Any]:
    return read_json(path) if path.is_file() else {}


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
