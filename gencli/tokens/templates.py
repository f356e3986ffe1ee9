"""The chat template of a checkpoint: `chat_template.jinja`, or a key of tokenizer_config.json."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from gencli.errors import GencliError
from gencli.json_files import read_json, read_text


def read_chat_template(folder: Path, config: Mapping[str, object]) -> str | None:
    """Return the Jinja source of the template named `default`, or None. config: tokenizer_config.json.

    The key holds one template, or a list of `{"name": …, "template": …}`. Older multimodal checkpoints have it in
    chat_template.json. Raises GencliError for what is not text.
    """
    file = folder / "chat_template.jinja"
    if file.is_file():
        return read_text(file)
    found, file = config.get("chat_template"), folder / "tokenizer_config.json"
    if found is None and (folder / "chat_template.json").is_file():
        file = folder / "chat_template.json"
        found = read_json(file).get("chat_template")
    if isinstance(found, list):
        named = {row["name"]: row.get("template") for row in found if isinstance(row, dict) and "name" in row}
        if len(named) > 1 and "default" not in named:
            raise GencliError(f"{file}: none of the chat templates {', '.join(map(str, named))} is the default")
        found = named.get("default", next(iter(named.values()), None))
    if found is not None and not isinstance(found, str):
        raise GencliError(f"{file}: chat_template is not text")
    return found
