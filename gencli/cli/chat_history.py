"""Conversations that are kept between sessions: one JSON file each, in the user's state folder. No torch."""

from __future__ import annotations

import contextlib
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from gencli.atomic import write_over
from gencli.errors import GencliError, did_you_mean
from gencli.json_files import read_json

if TYPE_CHECKING:
    from gencli.text.conversation import Conversation

SHOWN = 60  # characters of a first message in the list


def folder() -> Path:
    """Return the folder of what chat keeps, made if need be, which others cannot read. Raise GencliError."""
    home = Path(os.path.expanduser(os.environ.get("XDG_STATE_HOME") or "~/.local/state"))
    path = home / "gencli" / "chats"
    try:
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise GencliError(f"cannot make {path}: {error.strerror}", "--no-history keeps nothing") from None
    return path


@dataclass
class Kept:
    """The file of one conversation. It is written after every reply, and not before there is one. begun: whether the
    path is that of this conversation for sure: another that began in the same second may take it first."""

    path: Path
    model: str
    begun: bool = True

    @classmethod
    def new(cls, model: str) -> Kept:
        """Return a file for a conversation that begins now."""
        return cls(folder() / time.strftime("%Y%m%d-%H%M%S.json"), model, begun=False)

    @property
    def id(self) -> str:
        return self.path.stem

    def save(self, conversation: Conversation) -> None:
        """Write the conversation. Raise GencliError."""
        content = {"model": self.model, **json.loads(conversation.dump())}
        try:
            while not self.begun:
                self._begin()
            self.path.touch(mode=0o600)
            write_over(self.path, json.dumps(content, ensure_ascii=False).encode() + b"\n")
        except OSError as error:
            raise GencliError(f"cannot write {self.path}: {error.strerror}", "--no-history keeps nothing") from None

    def _begin(self) -> None:
        """Take the path, or find another one if it is taken. Raise OSError."""
        try:
            self.path.touch(mode=0o600, exist_ok=False)
            self.begun = True
        except FileExistsError:
            self.path = self.path.with_stem(f"{self.path.stem}+")


def kept() -> list[Kept]:
    """Return the conversations that are kept, the newest last."""
    found = []
    for path in sorted(folder().glob("*.json"), key=lambda path: path.stat().st_mtime):
        with contextlib.suppress(GencliError):
            found.append(Kept(path, str(read_json(path).get("model", ""))))
    return found


def find_kept(id: str | None) -> Kept:
    """Return the conversation of an id, the newest one for None. Raise GencliError if there is none."""
    known = {one.id: one for one in kept()}
    if id is None and known:
        return [*known.values()][-1]
    if id not in known:
        what = "no conversation to continue" if id is None else f"no conversation {id!r}"
        raise GencliError(what, did_you_mean(id or "", known) or "`gencli chat --list` shows those that are kept")
    return known[id]


def listed() -> list[str]:
    """Return a heading and a line for each conversation: id, model, number of messages, and how it begins."""
    from gencli.cli.models_output import columns

    rows = [["ID", "MODEL", "MESSAGES", "BEGINS"]]
    for one in kept():
        said = read_json(one.path).get("messages")
        said = said if isinstance(said, list) else []
        turns = [turn for turn in said if isinstance(turn, dict) and turn.get("role") != "system"]
        first = " ".join(str(turns[0].get("content", "")).split())[:SHOWN] if turns else ""
        rows.append([one.id, one.model, str(len(turns)), first])
    return columns(rows, right={2}) if len(rows) > 1 else []
