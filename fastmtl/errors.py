"""What all errors that a person can act on have in common, and what an error says of the file that was read."""

from __future__ import annotations

import errno

_OF_THE_MACHINE = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)


class UserError(Exception):
    """Something in the data, the recipe, the run folder or the machine is not as it must be; the message says what."""


def reason_of(error: Exception) -> str:
    """One line on why a file cannot be read, for a list of damaged files.

    Raises:
        Exception: `error` itself, where a package is missing or the machine lacks memory or open files: the file may be
            sound then, and leaving it out would be wrong.
    """
    cause: BaseException | None = error
    while cause is not None:
        few = isinstance(cause, OSError) and cause.errno in _OF_THE_MACHINE
        if few or isinstance(cause, (ImportError, MemoryError)):
            raise error
        cause = cause.__cause__
    said = error.strerror if isinstance(error, OSError) else ""
    return (said or str(error) or type(error).__name__).splitlines()[0]
