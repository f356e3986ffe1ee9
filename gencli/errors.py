"""Errors that a user may see. Any other exception is a defect of gencli."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

MESSAGE_LIMIT, HINT_LIMIT = 1200, 600  # bytes: with both, what is printed stays below 2 kB


def shorten(text: str, limit: int) -> str:
    """Return a text on one line and of at most so many bytes in UTF-8; what lies in the middle gives way."""
    text = text.replace("\n", "\\n")
    data = text.encode("utf-8", "backslashreplace")
    if len(data) <= limit:
        return text
    start, end = data[: limit * 3 // 4], data[len(data) - limit // 4 + 5 :]
    return f"{start.decode('utf-8', 'ignore')} … {end.decode('utf-8', 'ignore')}"


class GencliError(Exception):
    """gencli could not do what was asked (exit code 1): a missing or broken checkpoint, a prompt that is too long, …

    `message` says in one line what is wrong, with the value and the file; `hint` says what would help, if anything.
    Files and users may give values of any length: both are shortened.
    """

    exit_code = 1

    def __init__(self, message: str, hint: str | None = None):
        self.message = shorten(message, MESSAGE_LIMIT)
        self.hint = hint and shorten(hint, HINT_LIMIT)
        super().__init__(self.message)


class UsageError(GencliError):
    """The request is invalid (exit code 2): an option out of range, two options that exclude each other."""

    exit_code = 2


class ContextError(GencliError):
    """A prompt is longer than the model's context."""


LIKE = 0.75  # how alike two words are, 0 to 1, of which one may be a slip for the other


def nearest(word: str, known: Iterable[str]) -> str | None:
    """Return the one of `known` that a word stands for, if it is a slip of the fingers or a beginning; else None."""
    from difflib import SequenceMatcher

    plain = word.strip("-").lower()

    def likeness(other: str) -> float:
        other = other.strip("-").lower()
        begins = min(len(plain), len(other)) >= 3 and (other.startswith(plain) or plain.startswith(other))
        return max(SequenceMatcher(None, plain, other).ratio(), LIKE if begins else 0)

    best = max(known, key=likeness, default=None)
    return best if best is not None and likeness(best) >= LIKE else None


def did_you_mean(word: str, known: Iterable[str]) -> str | None:
    """Return a hint that names the one of `known` that a word stands for; None if it is like none of them."""
    close = nearest(word, known)
    return f"did you mean {close}?" if close else None


def counted(number: int, noun: str) -> str:
    """Return a number of things: 1 image, 2 images."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


@contextmanager
def about(what: str) -> Iterator[None]:
    """Put what an error is about, such as an option, before its message. Nothing, if `what` is empty."""
    try:
        yield
    except GencliError as error:
        raise type(error)(f"{what}: {error.message}" if what else error.message, error.hint) from None
