"""Losses as modules: fastmtl's own here, and the faces of other libraries' in `losses.monai`, `.smp`, `.nnunet`."""

from .native import DiceBCELoss as DiceBCELoss
