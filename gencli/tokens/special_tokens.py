"""The special and added tokens of a checkpoint: where its files name them, and how the backend learns them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from tokenizers import AddedToken, processors
from tokenizers import Tokenizer as Backend

from gencli.errors import GencliError
from gencli.json_files import read_json

NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


def add_special_tokens(
    backend: Backend, folder: Path, config: Mapping[str, object], defaults: Mapping[str, str]
) -> dict[str, str]:
    """Add special and added tokens to the backend as transformers does; return the named ones.

    config: tokenizer_config.json. If it has `added_tokens_decoder`, the older special_tokens_map.json and
    added_tokens.json are not read. Raises GencliError for an added token that does not get its declared id.
    """
    where = str(folder / "tokenizer_config.json")
    special: dict[str, object] = {key: config[key] for key in config if key in NAMED}
    extra = config.get("extra_special_tokens") or config.get("additional_special_tokens")
    added: dict[int, AddedToken] = {}
    if isinstance(declared := config.get("added_tokens_decoder"), dict):
        added = {token_id(key, where): _token(value, f"{where}: added token {key}") for key, value in declared.items()}
    else:
        older = optional_json(folder / "special_tokens_map.json")
        special |= {key: older[key] for key in older if key in NAMED}
        extra = older.get("extra_special_tokens") or older.get("additional_special_tokens") or extra
        names = {token_text(value) for value in [*special.values(), *_listed(extra)]}
        file = folder / "added_tokens.json"
        for text, index in optional_json(file).items():
            flags = {"special": text in names, "normalized": text not in names}
            added[token_id(index, str(file))] = _token({"content": text, **flags}, str(file))

    for index, token in sorted(added.items()):
        backend.add_tokens([token])
        if (got := backend.token_to_id(token.content)) != index:
            raise GencliError(
                f"{folder}: added token {token.content!r} should be {index}, but the vocabulary gives {got}"
            )
    named = {name: text for name, text in defaults.items() if backend.token_to_id(text) is not None}
    known = {token.content for token in backend.get_added_tokens_decoder().values()}
    extras = extra.items() if isinstance(extra, dict) else (("", value) for value in _listed(extra))
    for name, value in [*{**named, **special}.items(), *extras]:
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


def surround(backend: Backend, bos: str | None, eos: str | None) -> None:
    """Let the backend put these tokens around every text; without any, what tokenizer.json says stays."""
    single = [token for token in (bos, "$A", eos) if token is not None]
    ids = [(token, backend.token_to_id(token)) for token in dict.fromkeys(single) if token != "$A"]
    if ids:
        backend.post_processor = processors.TemplateProcessing(single=single, special_tokens=ids)


def token_id(value: object, where: str) -> int:
    """Return a token id of JSON, in which keys are text. Raises GencliError for what is not an integer from 0."""
    if isinstance(value, str) and value.isdecimal() and len(value) < 10:
        value = int(value)
    if type(value) is not int or not 0 <= value < 2**31:
        raise GencliError(f"{where}: {str(value)[:60]!r} is not a token id")
    return value


def token_text(value: object) -> str | None:
    """Return the text of a token that JSON writes as its text or as an object; None for anything else."""
    content = value.get("content") if isinstance(value, dict) else value
    return content if isinstance(content, str) else None


def optional_json(path: Path, read_json: Callable[[Path], Mapping[str, object]] = read_json) -> Mapping[str, object]:
    """Read a JSON file by `read_json`; an absent one is empty."""
    return read_json(path) if path.is_file() else {}


def _token(value: object, where: str, *, special: bool = False) -> AddedToken:
    """Return an added token from its text or from the object that JSON files write. Raises GencliError for others."""
    if isinstance(value, str) and value:
        return AddedToken(value, special=True)
    if isinstance(value, dict) and isinstance(value.get("content"), str) and value["content"]:
        keys = ("single_word", "lstrip", "rstrip", "normalized", "special")
        flags = {key: value[key] for key in keys if isinstance(value.get(key), bool)}
        if special:
            flags["special"] = True
        return AddedToken(value["content"], **flags)
    raise GencliError(f"{where}: {str(value)[:60]!r} is not a token's text")


def _listed(value: object) -> list[object]:
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else []
