"""The base of all errors that a user can act on, and the reason why a file cannot be read."""

from __future__ import annotations

import errno

_OF_THE_MACHINE = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)


class UserError(Exception):
    """Something is wrong with the data, the recipe, the run folder or the machine; the message says what.

    Attributes:
        exit_code: of a command that ends with this error.
    """

    exit_code = 1


def reason_of(error: Exception) -> str:
    """One line that says why a file cannot be read, for a list of damaged files.

    Raises:
        Exception: `error` itself, if a package is missing or the machine has run out of memory or open files: the file
            may be intact then and must not be excluded.
    """
    cause: BaseException | None = error
    while cause is not None:
        few = isinstance(cause, OSError) and cause.errno in _OF_THE_MACHINE
        if few or isinstance(cause, (ImportError, MemoryError)):
            raise error
        cause = cause.__cause__
    reason = error.strerror if isinstance(error, OSError) else ""
    return (reason or str(error) or type(error).__name__).splitlines()[0]
