"""NT-Xent as one op: blocks of the 2N x 2N similarities, computed forward and again backward, never stored.

With y the normalised rows, s_ij = y_i . y_j, p_ij = softmax over j != i of s_ij / T, and M valid rows:
    dL/dy_i = 1 / (M T) * sum over j of (p_ij + p_ji - 2 [j is i's positive]) y_j
    dL/dz_i = (dL/dy_i - y_i (y_i . dL/dy_i)) / |z_i|        without the second term if |z_i| < 1e-12
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..core import backends, checks
from ..core.fields import checks_of
from ..core.loss_op import LossOp
from .nt_xent_backends import BACKENDS, Options, Tensors, new_outputs, reference

_check_options = checks_of(Options)


def nt_xent_loss(
    z1: Tensor,
    z2: Tensor,
    *,
    temperature: float = 0.1,
    mask: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """SimCLR's contrastive loss of N pairs of projections, the normalised temperature-scaled cross-entropy.

    Each of the 2N rows z = [z1; z2] is an anchor: the other row of its pair is its positive, the remaining 2N - 2 rows
    are its negatives. With s_ij = z_i . z_j / (max(|z_i|, 1e-12) max(|z_j|, 1e-12)):
        loss = mean over anchors i of  -s_i,pos(i) / T + log(sum over j != i of exp(s_ij / T))
    The op normalises the rows as `torch.nn.functional.normalize` does: pass raw projections.

    Args:
        z1, z2: projections [N, D] of the two views, float16, bfloat16, float32 or float64, one dtype; N, D at least 1.
        temperature: T, 1e-30 to 1e30, so that nothing overflows in float32. The paper's best is 0.1 with ResNet-50.
        mask: bool or uint8 [N]: the valid pairs. Other pairs are neither anchors nor negatives, even if their rows are
            NaN, and get a gradient of 0. Without a valid pair the loss and the gradient are 0.
        backend: "auto", "cpp" (CPU), "triton" (NVIDIA) or "reference" (plain torch, which stores 2N x 2N). float64
            runs on the reference.

    Returns:
        A scalar; float32, or float64 for float64 projections. A NaN or an infinity in any valid row makes it NaN,
        because every anchor sees every row.

    The similarities are computed block by block, forward and again backward, and never stored; the backward keeps z and
    4N + 1 numbers. Products of half-precision rows are summed in float32. Results are the same for any number of
    threads and in every run. Differentiable in z1 and z2 any number of times; second and forward-mode derivatives run
    the reference.

    Raises:
        ValueError: an invalid shape, dtype, device or range, or an argument that is not a projection.
        TypeError: an argument that must be a tensor or a number is not one.
        BackendError: the requested backend cannot run these inputs here.

    Source: Chen et al. 2020, A Simple Framework for Contrastive Learning of Visual Representations, eq. 1.

    >>> z1, z2 = torch.eye(3), torch.eye(3) + 0.1
    >>> round(nt_xent_loss(z1, z2, temperature=0.5).item(), 4)
    0.5103
    """
    _check_pair(z1, z2)
    options = Options(temperature, backend)
    _check_options(options)
    _check_mask(mask, z1)
    return _nt_xent(*Tensors(torch.cat([z1, z2]), mask), *options)[0]


def _check_pair(z1: Tensor, z2: Tensor) -> None:
    checks.tensor("z1", z1)
    checks.tensor("z2", z2)
    if z1.dim() != 2 or z1.numel() == 0:
        raise ValueError(
            f"`z1` must be [N, D], one row of at least one number per image; got {list(z1.shape)}. "
            "Flatten other dims, and skip an empty batch."
        )
    if z2.shape != z1.shape:
        raise ValueError(
            f"`z2` must match `z1` {list(z1.shape)}; got {list(z2.shape)}. Project both views of the same images."
        )
    checks.dtype("z1", z1, backends.FLOATING, "Pass projections.")
    if z2.dtype != z1.dtype:
        raise ValueError(f"`z2` must be {z1.dtype} like `z1`; got {z2.dtype}. Convert one of them.")
    if z2.device != z1.device:
        raise ValueError(f"`z2` must be on {z1.device} like `z1`; got {z2.device}. Move it first.")


def _check_mask(mask: Tensor | None, z1: Tensor) -> None:
    if mask is None:
        return
    checks.tensor("mask", mask)
    checks.dtype("mask", mask, (torch.bool, torch.uint8), "Compare it with the value of a valid pair.")
    if mask.device != z1.device:
        raise ValueError(f"`mask` must be on {z1.device} like `z1`; got {mask.device}. Move it first.")
    if list(mask.shape) != [z1.shape[0]]:
        raise ValueError(f"`mask` must be [{z1.shape[0]}], one per pair; got {list(mask.shape)}. Flatten or index it.")


_nt_xent = LossOp(
    "nt_xent",
    Tensors,
    Options,
    backends=BACKENDS,
    fake=lambda tensors, options: new_outputs(tensors.input),
    reference=reference,
)
