"""Fused ops: plain functions on tensors, drop-in for the ones in torch, MONAI and smp."""

from .core.buffer_cache import release_memory as release_memory
from .core.counts import Counts as Counts
from .gradients import fused_step as fused_step
from .gradients.combine import combine as combine
from .gradients.gram import grad_norms as grad_norms
from .gradients.gram import gram as gram
from .gradients.pcgrad import pcgrad_weights as pcgrad_weights
from .losses.bce import bce_with_logits as bce_with_logits
from .losses.cross_entropy import cross_entropy as cross_entropy
from .losses.deep_supervision import deep_supervision_loss as deep_supervision_loss
from .losses.dice_bce import dice_bce_loss as dice_bce_loss
from .losses.dice_ce import dice_ce_loss as dice_ce_loss
from .losses.focal import focal_loss as focal_loss
from .losses.nt_xent import nt_xent_loss as nt_xent_loss
from .losses.overlap import OverlapSums as OverlapSums
from .losses.overlap import overlap_sums as overlap_sums
from .losses.regression import l1_loss as l1_loss
from .losses.regression import mse_loss as mse_loss
from .losses.regression import smooth_l1_loss as smooth_l1_loss
from .losses.tversky import tversky_loss as tversky_loss
from .matching.assignment import linear_assignment as linear_assignment
from .matching.pairwise_mask import pairwise_mask_cost as pairwise_mask_cost
from .matching.points import sample_points as sample_points
from .matching.uncertain_points import sample_uncertain_points as sample_uncertain_points
from .stain.stain_normalize import Normalised as Normalised
from .stain.stain_normalize import stain_normalize as stain_normalize
