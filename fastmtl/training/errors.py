"""Training errors, each with a one-line message for the user."""

from ..errors import UserError


class NonFiniteError(UserError, RuntimeError):
    """A loss or gradient was NaN or infinite; that step was skipped."""


class Interrupted(UserError, RuntimeError):
    """Training stopped on request, after saving its state.

    Attributes:
        of_all_ranks: whether all ranks have agreed to stop here, so that rank 0 tells it.
    """

    def __init__(self, message: str, *, of_all_ranks: bool = False) -> None:
        super().__init__(message)
        self.of_all_ranks = of_all_ranks


class CheckpointError(UserError, RuntimeError):
    """A checkpoint that is missing, damaged, of another format or of another training."""


class DamagedCheckpoint(CheckpointError):
    """A checkpoint with a file that is missing or does not match its checksum."""


class OtherRanks(UserError, ValueError):
    """The training cannot continue on this number of ranks."""
