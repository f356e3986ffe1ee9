"""What a client is told when it does not get what it asked for, in the form of OpenAI's errors. No torch."""

from __future__ import annotations

from collections.abc import Mapping

from gencli.errors import GencliError, UsageError

INVALID, NOT_FOUND, TOO_LARGE, BUSY, FAILED, UNAVAILABLE = 400, 404, 413, 429, 500, 503
KINDS = {BUSY: "rate_limit_error", FAILED: "server_error", UNAVAILABLE: "server_error", 401: "authentication_error"}


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
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    @classmethod
    def of(cls, error: GencliError, *, status: int | None = None, param: str | None = None) -> Refusal:
        """Return the refusal that tells an error of gencli: the client's fault if it is one of usage."""
        if status is None:
            status = INVALID if isinstance(error, UsageError) else FAILED
        message = error.message.removeprefix("--")
        return cls(status, f"{message} ({error.hint})" if error.hint else message, param=param)
