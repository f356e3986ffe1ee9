"""Errors that a user may see. Any other exception is a defect of gencli."""


class GencliError(Exception):
    """gencli could not do what was asked (exit code 1): a missing or broken checkpoint, a prompt that is too long, …

    `message` says in one line what is wrong, with the value and the file; `hint` says what would help, if anything.
    """

    exit_code = 1

    def __init__(self, message: str, hint: str | None = None):
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(GencliError):
    """The request is invalid (exit code 2): an option out of range, two options that exclude each other."""

    exit_code = 2
