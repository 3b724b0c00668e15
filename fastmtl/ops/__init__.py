"""Fused ops: plain functions on tensors, drop-in for the ones in torch, MONAI and smp."""

from . import _fused_step as _fused_step
from .combine import combine as combine
from .dice_bce import dice_bce_loss as dice_bce_loss
from .gram import grad_norms as grad_norms
from .gram import gram as gram
from .overlap import OverlapSums as OverlapSums
from .overlap import overlap_sums as overlap_sums
from .pcgrad import pcgrad_weights as pcgrad_weights
