"""What gencli keeps on this machine and can make again. No torch, and little else: completion waits for it."""

from __future__ import annotations

import os


def folder(name: str) -> str:
    """Return the folder for one kind of what is kept, which may not be there yet."""
    root = os.environ.get("GENCLI_CACHE")
    root = root or os.path.join(os.environ.get("XDG_CACHE_HOME") or os.path.join("~", ".cache"), "gencli")
    return os.path.join(os.path.expanduser(root), name)


def is_own(found: os.stat_result) -> bool:
    """Return whether a file, or folder, is this user's, and can be changed by nobody else."""
    return not hasattr(os, "getuid") or (found.st_uid == os.getuid() and not found.st_mode & 0o022)
