"""The trainer under its public name; see `training.trainer`."""

from .training.trainer import Interrupted as Interrupted
from .training.trainer import NonFiniteError as NonFiniteError
from .training.trainer import OtherRanks as OtherRanks
from .training.trainer import Trainer as Trainer
