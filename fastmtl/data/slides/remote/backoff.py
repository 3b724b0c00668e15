"""Try a read from a server again, after growing pauses, a bounded number of times."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import TypeVar

TRIES = 6
_FIRST_PAUSE = 0.25  # seconds; doubled after each failure
_LONGEST_ASKED = 30.0  # seconds that a server may ask for; it may mean hours

_Value = TypeVar("_Value")


class RemoteFileChanged(OSError):
    """The file on the server is no longer the one that was opened."""


class ServerBusy(OSError):
    """A failure that may pass: throttling, a broken connection, an error inside the server.

    Attributes:
        pause: seconds that the server asks to wait; 0 if it says nothing.
    """

    def __init__(self, reason: str, pause: float = 0.0):
        super().__init__(None, reason)
        self.pause = pause


def with_retries(attempt: Callable[[], _Value]) -> _Value:
    """The value of `attempt()`, called again after a `ServerBusy` as often as `TRIES` allows.

    Raises:
        OSError: the last failure, with the number of tries; any other error of `attempt` at once.
    """
    pause, tries = _FIRST_PAUSE, 0
    while True:
        try:
            return attempt()
        except ServerBusy as error:
            tries += 1
            if tries == TRIES:
                raise OSError(None, f"{error.strerror} ({TRIES} tries)") from error
            # Many processes meet the same limit: without chance they would all come back at once.
            time.sleep(max(min(error.pause, _LONGEST_ASKED), pause * random.uniform(0.75, 1.25)))
            pause *= 2
