"""MONAI's losses under their own names: the same arguments, defaults, results and exceptions, in fewer passes.

    -from monai.losses import DiceCELoss
    +from fastmtl.losses.monai import DiceCELoss

     loss_function = DiceCELoss(to_onehot_y=True, softmax=True)
     loss = loss_function(model(images), labels)

Fused, one read of logits and target forward and one more backward: `sigmoid=True` or `softmax=True`, with any other
argument but `soft_label` on targets that may be soft. With `to_onehot_y` class numbers are read as they are; a softmax
never makes the one-hot map. Plain torch, slower and still right: probabilities as input (no activation, or `other_act`,
or a softmax of one channel), a target that requires a gradient, an ignored channel of a soft target.

MONAI's own `DeepSupervisionLoss` and `MaskedLoss` wrap these as they wrap theirs.

Held to MONAI 1.6.1. Different on purpose: sums are float32 or better, also of half-precision logits, and focal losses
of float64 logits stay float64 (MONAI casts them to float32); bool and integer targets are taken where MONAI wants
floats; squared sums of float32 are exact where MONAI's are 0.3% off on small objects; a `weight` is checked for
negative numbers at construction and refused at the call, so that the call does not wait for the GPU; of a softmax a
class number that has no channel is a ValueError on a CPU, where MONAI raises a RuntimeError, and a NaN on a GPU.
"""

from .compound import DiceCELoss as DiceCELoss
from .compound import DiceFocalLoss as DiceFocalLoss
from .focal import FocalLoss as FocalLoss
from .overlap import DiceLoss as DiceLoss
from .overlap import GeneralizedDiceLoss as GeneralizedDiceLoss
from .overlap import TverskyLoss as TverskyLoss
