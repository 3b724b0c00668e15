"""Fused ops: plain functions on tensors, drop-in for the ones in torch, MONAI and smp."""

from . import _fused_step as _fused_step
from ._counts import Counts as Counts
from ._recycled import release_memory as release_memory
from .assignment import linear_assignment as linear_assignment
from .bce import bce_with_logits as bce_with_logits
from .combine import combine as combine
from .cross_entropy import cross_entropy as cross_entropy
from .deep_supervision import deep_supervision_loss as deep_supervision_loss
from .dice_bce import dice_bce_loss as dice_bce_loss
from .dice_ce import dice_ce_loss as dice_ce_loss
from .focal import focal_loss as focal_loss
from .gram import grad_norms as grad_norms
from .gram import gram as gram
from .nt_xent import nt_xent_loss as nt_xent_loss
from .overlap import OverlapSums as OverlapSums
from .overlap import overlap_sums as overlap_sums
from .pairwise_mask import pairwise_mask_cost as pairwise_mask_cost
from .pcgrad import pcgrad_weights as pcgrad_weights
from .points import sample_points as sample_points
from .regression import l1_loss as l1_loss
from .regression import mse_loss as mse_loss
from .regression import smooth_l1_loss as smooth_l1_loss
from .stain_normalize import Normalised as Normalised
from .stain_normalize import stain_normalize as stain_normalize
from .tversky import tversky_loss as tversky_loss
from .uncertain_points import sample_uncertain_points as sample_uncertain_points
