"""The chaos suite: attacks on real trainings, and the table of what the user sees and whether the promise held.

An attack is a function that takes a `Lab` and returns an `Outcome`. tests/chaos runs each of them with a few kills, and
`make chaos` all of them with many; it writes the table of docs/reliability.md.
"""

from . import checkpoints, data, disks, kills, ranks, signals  # noqa: F401 (each registers its attacks)
from .attack import ATTACKS as ATTACKS
from .lab import Lab as Lab
