"""Errors that are meant for people."""


class TracekitError(Exception):
    """An error a person can act on: one line that says what is wrong, and a hint what to do.

    ``str()`` is the message; the command line prints it with the hint, without a stack trace, and
    leaves with ``exit_code``, which a subclass may set.
    """

    exit_code = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint
