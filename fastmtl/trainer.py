"""The trainer under its public name; see `training.trainer`."""

from .training.errors import Interrupted as Interrupted
from .training.errors import NonFiniteError as NonFiniteError
from .training.errors import OtherRanks as OtherRanks
from .training.trainer import Trainer as Trainer

__all__ = ["Interrupted", "NonFiniteError", "OtherRanks", "Trainer"]
