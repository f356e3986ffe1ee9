"""Variables of the environment that begin like gencli's own, and that nothing reads. No torch."""

from __future__ import annotations

import os
from collections.abc import Iterable

from gencli.errors import nearest

PREFIX = "GENCLI_"
# What follows PREFIX in every variable that gencli reads: of the rows of options, and of the few beside them. A test
# compares it with both.
KNOWN = frozenset(
    f"{PREFIX}{name}"
    for name in """
    AUTO_SERVER CACHE CLIP_MODEL CONFIG DEVICE DTYPE GRAPHICS IMAGE_MODEL KERNELS NO_SERVER PROFILE SERVE_KEY TEXT_MODEL
    UPSCALE_MODEL VQ_MODEL
    """.split()
)


def unread(known: Iterable[str]) -> list[str]:
    """Return what there is to say of each variable that nothing reads. known: further variables that something does."""
    names = KNOWN | {*known}
    found = []
    for name in sorted(one for one in os.environ if one.startswith(PREFIX) and one not in names):
        close = nearest(name, sorted(names))
        found.append(f"nothing reads the variable {name}{f' (did you mean {close}?)' if close else ''}")
    return found
