"""What to do about an error of the system."""

from __future__ import annotations

import errno
import re

_CURES = {
    errno.ENOSPC: "free space",
    errno.EDQUOT: "free space",
    errno.EFBIG: "raise `ulimit -f`",
    errno.EROFS: "make the file system writable",
    errno.EACCES: "change its permissions",
    errno.EPERM: "change its permissions",
    errno.ELOOP: "remove the link",
    errno.EIO: "check the disk and its connection",
    errno.ESTALE: "check the connection to the disk",
    errno.ETIMEDOUT: "check the connection",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.EMFILE: "raise `ulimit -n`",
    errno.ENFILE: "end other programs",
    errno.ENOMEM: "lower data.batch_size or data.size, or end other programs",
}
_OF_RUST = re.compile(r"\(os error (\d+)\)")  # safetensors reports errors of the system as text


def number_of(error: BaseException) -> int | None:
    """The number that the system gave an error; None if it is of another kind."""
    found = _OF_RUST.search(str(error))
    return error.errno if isinstance(error, OSError) else int(found[1]) if found else None


def cure_of(error: BaseException | None) -> str:
    """What to do about the first error of the system among `error` and its causes; "" if nothing is known.

    >>> cure_of(OSError(errno.ENOSPC, "No space left on device"))
    'free space'
    """
    while error is not None:
        if cure := _CURES.get(number_of(error) or 0):
            return cure
        error = error.__cause__
    return ""
