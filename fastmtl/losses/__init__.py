"""Losses as modules: fastmtl's own, and those of other libraries with the same names and arguments in
`losses.monai`, `.smp`, `.nnunet` and `.mask2former`."""

from . import monai as monai
from . import nnunet as nnunet
from . import smp as smp
from .mask2former import Mask2FormerLoss as Mask2FormerLoss
from .native import BCEWithLogitsLoss as BCEWithLogitsLoss
from .native import CrossEntropyLoss as CrossEntropyLoss
from .native import DeepSupervisionLoss as DeepSupervisionLoss
from .native import DiceBCELoss as DiceBCELoss
from .native import DiceCELoss as DiceCELoss
from .native import FocalLoss as FocalLoss
from .native import L1Loss as L1Loss
from .native import LinearDiceBCELoss as LinearDiceBCELoss
from .native import LinearDiceCELoss as LinearDiceCELoss
from .native import MSELoss as MSELoss
from .native import NTXentLoss as NTXentLoss
from .native import SmoothL1Loss as SmoothL1Loss
from .native import TverskyLoss as TverskyLoss
