"""What a client is told when it does not get what it asked for, in the form of OpenAI's errors. No torch."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping

from gencli.checkpoints.ollama import PREFIX
from gencli.errors import ContextError, GencliError, UsageError, did_you_mean

INVALID, NOT_FOUND, TOO_LARGE, BUSY, FAILED, UNAVAILABLE = 400, 404, 413, 429, 500, 503
WORD = re.compile(r"(?<![\w-])-{0,2}[A-Za-z][\w-]*")  # an option of the command line is one too
KINDS = {BUSY: "rate_limit_error", FAILED: "server_error", UNAVAILABLE: "server_error", 401: "authentication_error"}


NO_NAMES: Mapping[str, str] = {}


class Refusal(Exception):
    """A request that is not answered: HTTP status, message, the parameter that is wrong, and OpenAI's code for it."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ):
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = dict(headers or {})

    def body(self) -> dict[str, dict[str, str | None]]:
        """Return the JSON of the answer."""
        kind = KINDS.get(self.status, "invalid_request_error")
        param = self.param and _text(self.param)
        return {"error": {"message": _text(self.message), "type": kind, "param": param, "code": self.code}}

    @classmethod
    def of(
        cls,
        error: GencliError,
        *,
        status: int | None = None,
        param: str | None = None,
        names: Mapping[str, str] = NO_NAMES,
    ) -> Refusal:
        """Return the refusal that tells an error of gencli: the client's fault if it is one of usage.

        names: options of the command line, and other words that name a parameter → what the client calls it. The error
        is told in its words, the first of them is `param`, and a hint that only a command line can follow is left out.
        """
        if status is None:
            status = INVALID if isinstance(error, UsageError) else FAILED
        param = next((names[word] for word in WORD.findall(error.message) if word in names), param)
        message, hint = (_in_words(text, names) for text in (error.message, error.hint or ""))
        if names and (" FILE" in hint or any(word.startswith("-") for word in WORD.findall(hint))):
            hint = ""
        message = message.removeprefix("--")
        code = "context_length_exceeded" if isinstance(error, ContextError) else None
        return cls(status, f"{message} ({hint})" if hint else message, param=param, code=code)


Tell = Callable[[Refusal], Mapping[str, object]]  # how an API writes one


def no_model(name: str, known: Collection[str]) -> Refusal:
    """Return the refusal of a model that a client may not use, or that is not here. known: those that it may use."""
    near = f"did you mean {PREFIX}{name}?" if PREFIX + name in known else did_you_mean(name[:200], known)
    message = f"no model {name[:200]!r} here ({f'{near} ' if near else ''}GET /v1/models lists those that are)"
    return Refusal(NOT_FOUND, message, param="model", code="model_not_found")


def _in_words(text: str, names: Mapping[str, str]) -> str:
    """Return a text with other words; one that stood for both forms of an option, as in -i/--init, stands once."""
    said = WORD.sub(lambda found: names.get(found[0], found[0]), text)
    return re.sub(r"\b([\w-]+)/\1\b", r"\1", said) if names else said


def _text(value: str) -> str:
    """Return a text as UTF-8 can have it, which a client's JSON may not be."""
    return value.encode("utf-8", "backslashreplace").decode()
