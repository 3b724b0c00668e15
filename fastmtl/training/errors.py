"""Training errors, each with a one-line message for the user."""

from ..errors import UserError


class NonFiniteError(UserError, RuntimeError):
    """A loss or gradient was NaN or infinite; that step was skipped."""


class Interrupted(UserError, RuntimeError):
    """Training stopped on request, after saving its state."""


class CheckpointError(UserError, RuntimeError):
    """A checkpoint that is missing, damaged, of another format or of another training."""


class DamagedCheckpoint(CheckpointError):
    """A checkpoint with a file that is missing or does not match its checksum."""


class OtherRanks(UserError, ValueError):
    """The training cannot continue on this number of ranks."""
