"""MONAI's losses under the same names: the same arguments, defaults, results and exceptions, in fewer passes.

    -from monai.losses import DiceCELoss
    +from fastmtl.losses.monai import DiceCELoss

     loss_function = DiceCELoss(to_onehot_y=True, softmax=True)
     loss = loss_function(model(images), labels)

Fused, with one read of logits and target in the forward pass and one in the backward pass: `sigmoid=True` or
`softmax=True` with all other arguments, except `soft_label` on targets that may be soft. With `to_onehot_y` class
numbers are read directly; a softmax never creates the one-hot map. Plain torch, slower with the same results:
probabilities as input (no activation, or `other_act`, or a softmax of one channel), a target that requires a gradient,
an ignored channel of a soft target. MONAI's `DeepSupervisionLoss` and `MaskedLoss` can wrap these losses too.

Tested against MONAI 1.6.1. Intended differences: sums are float32 or better, also for half-precision logits, and focal
losses of float64 logits stay float64 (MONAI casts them to float32); bool and integer targets are accepted where MONAI
requires floats; squared sums of float32 are exact (MONAI's are 0.3% off on small objects); a `weight` is checked for
negative numbers at construction and the call raises, so that the call does not wait for the GPU; with a softmax a class
number without a channel raises ValueError on a CPU (MONAI: RuntimeError) and gives NaN on a GPU.
"""

from .compound import DiceCELoss as DiceCELoss
from .compound import DiceFocalLoss as DiceFocalLoss
from .focal import FocalLoss as FocalLoss
from .overlap import DiceLoss as DiceLoss
from .overlap import GeneralizedDiceLoss as GeneralizedDiceLoss
from .overlap import TverskyLoss as TverskyLoss
