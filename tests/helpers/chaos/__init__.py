"""The chaos suite: attacks on real trainings, and the table of what the user sees and whether the promise held.

An attack is a function that takes a `Lab` and returns an `Outcome`. tests/chaos runs each of them with a few kills, and
`make chaos` all of them with many; it writes the table of docs/reliability.md.
"""

# The attacks, in the order of the table.
# isort: off
from . import kills, signals, ranks, checkpoints, disks, data  # noqa: F401

# isort: on
from .attack import ATTACKS as ATTACKS
from .lab import Lab as Lab
