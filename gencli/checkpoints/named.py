"""Naming an embedding: its file, and the word that it gets. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from gencli.checkpoints.hub_cache import Progress
from gencli.checkpoints.small import SUFFIXES, locate
from gencli.errors import GencliError, UsageError

STEMS = ("learned_embeds",)  # diffusers' name for one


@dataclass(frozen=True)
class NamedFile:
    """A file, and what it is called where that is said. Until it is found, `path` may be a name on the hub."""

    path: Path
    label: str | None = None

    @classmethod
    def parse(cls, text: str) -> NamedFile:
        """`FILE[:WORD]`. Raises UsageError when there is no file."""
        path, colon, label = text.partition(":")
        if len(path) == 1 and colon and label[:1] in ("\\", "/"):  # a drive's letter
            rest, colon, label = label.partition(":")
            path = f"{path}:{rest}"
        if not colon or Path(text).expanduser().exists():
            path, label = text, ""
        if not path or (colon and not label and path != text):
            raise UsageError(f"--embedding {text!r}: FILE or FILE:WORD is wanted")
        return cls(Path(path).expanduser(), label or None)

    def find(self, *, offline: bool = False, progress: Progress | None = None, allow_pickle: bool = False) -> NamedFile:
        """The same with a path that is here, fetched if need be. Raises GencliError when there is none."""
        more = {"offline": offline, "allow_pickle": allow_pickle}
        path = locate(self.path.as_posix(), STEMS, option="--embedding", progress=progress, **more)
        if path.is_dir():
            found = [file for stem in STEMS for suffix in SUFFIXES if (file := path / f"{stem}{suffix}").is_file()]
            if not found:
                raise GencliError(f"--embedding {path}: is a folder without {STEMS[0]}.safetensors", "name a file")
            path = found[0]
        return NamedFile(path, self.label)
