"""What can go wrong in a training, each an error of one line for the person who started it."""

from ..errors import UserError


class NonFiniteError(UserError, RuntimeError):
    """A loss or gradient was NaN or infinite; no parameter took that step."""


class Interrupted(UserError, RuntimeError):
    """Training stopped on request, after saving where it was."""


class CheckpointError(UserError, RuntimeError):
    """A checkpoint that is missing, damaged, of another format or of another training."""


class OtherRanks(UserError, ValueError):
    """A checkpoint of more or fewer ranks than there are now."""
