"""The tokenizers library with files and texts of anyone's: what it raises, its panics, and what may take for ever.

Its regular expressions backtrack, so a few characters of a file can ask for years, and nothing can stop the library
while it is at work. What is not known to be quick is therefore tried in a fork first, which the system ends in time.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
from collections.abc import Callable, Iterator
from typing import Protocol

from tokenizers import Tokenizer as Backend

from gencli.errors import GencliError
from gencli.stderr import without_stderr
from gencli.tokens import byte_level, clip, sentencepiece

SECONDS = 2  # of processor time for a text, and
CHARACTERS = 2**18  # for so many characters one more
WORD_LIMIT = 1000  # characters of a word that WordPiece looks at; its time is their square


@contextlib.contextmanager
def library(what: str) -> Iterator[None]:
    """A context of calls of the library: all that it raises becomes a GencliError that begins with `what`.

    A panic of Rust writes a page on stderr before it is raised; what comes there meanwhile is not shown.
    """
    with without_stderr():
        try:
            yield
        except GencliError:
            raise
        except BaseException as error:
            if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
                raise
            raise GencliError(f"{what}: {' '.join(str(error).split())[:200]}") from None


def is_known_to_be_quick(backend: Backend) -> bool:
    """Return whether every regular expression of a tokenizer is one that gencli itself writes, and words are short."""
    known = {*clip.PATTERNS, *sentencepiece.PATTERNS, *_patterns(*itertools.chain(*byte_level.SPLITS.values()))}
    patterns = _patterns(backend.normalizer, backend.pre_tokenizer)
    return patterns <= known and getattr(backend.model, "max_input_chars_per_word", 0) <= WORD_LIMIT


class Stated(Protocol):
    """A step of a tokenizer, which tells of itself in JSON."""

    def __getstate__(self) -> str | bytes: ...


def _patterns(*parts: Stated | None) -> set[str]:
    """Return the regular expressions of normalisers and pre-tokenisers, which JSON writes as {"Regex": …}."""
    found = set[str]()
    todo: list[object] = [json.loads(part.__getstate__()) for part in parts if part is not None]
    while todo:
        rules = todo.pop()
        if isinstance(rules, dict):
            found |= {rules["Regex"]} if isinstance(rules.get("Regex"), str) else set()
            todo += rules.values()
        elif isinstance(rules, list):
            todo += rules
    return found


def check_time(run: Callable[[], object], characters: int, where: str) -> None:
    """Raise GencliError if work on a text of so many characters takes too long, tried in a fork."""
    if not hasattr(os, "fork"):
        return
    child = os.fork()
    if not child:
        try:
            _limit(SECONDS + characters // CHARACTERS)
            with library(where):
                run()
        finally:
            os._exit(0)  # whatever it raises, the caller's own try raises too
    try:
        _, status = os.waitpid(child, 0)
    except BaseException:  # Ctrl-C
        os.kill(child, 9)
        os.waitpid(child, 0)
        raise
    if os.WIFSIGNALED(status):
        raise GencliError(f"{where}: the tokenizer's rules take too long over this text", "its files may be made to")


def _limit(seconds: int) -> None:
    """Let the system end this process after so many seconds of processor time; a signal's number is not passed on."""
    import resource
    import signal

    with contextlib.suppress(ValueError):  # not the main thread
        signal.set_wakeup_fd(-1)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _, most = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (seconds if most < 0 else min(seconds, most), most))
