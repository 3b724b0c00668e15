"""`linear_assignment`: Hungarian matching of a batch, on the device of the costs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ...reference import assignment as reference
from ..core import checks
from ..core.backends import FLOATING, Implementation, check_backend, choose, extension, register
from ..core.batching import fold
from ..core.pointers import address

if TYPE_CHECKING:
    from torch._functorch.autograd_function import VmapInfo

_TAGS = (torch.Tag.pt2_compliant_tag,)
_LIBRARY = torch.library.Library("fastmtl", "FRAGMENT")
_LIBRARY.define("linear_assignment(Tensor cost, Tensor? num_targets, str backend) -> Tensor", tags=_TAGS)


def linear_assignment(cost: Tensor, num_targets: Tensor | None = None, *, backend: str = "auto") -> Tensor:
    """The query matched with each target, at the least total cost per sample.

    Of Q queries and n targets, min(Q, n) pairs are matched, each query and each target once, as
    `scipy.optimize.linear_sum_assignment` does, with the same total cost. The call never waits for the device: on a GPU
    one program matches one sample, and a CUDA graph can capture it.

    Args:
        cost: [B, Q, T], float16, bfloat16, float32 or float64, any strides. +inf (or above 1e100) forbids a pair; the
            fewest possible targets then stay unmatched. NaN and -inf are a last resort: such a pair is matched only if
            no other pair is left, so that one broken prediction does not stop the training but stays visible.
        num_targets: int64 [B], 0 to T: number of real targets per sample; the others are padding, and their cost is
            ignored. None: all T.
        backend: "auto", "cpp" (CPU), "triton" (NVIDIA) or "reference" (plain torch, about T^2 steps).

    Returns:
        matches, int64 [B, T]: a query from 0 to Q-1, or -1 for padding, for an unmatched target and for a forbidden
        pair. Equal costs give equal matches on every backend, ties included. Not differentiable.

    Raises:
        ValueError: an invalid shape, dtype, device or name; on the C++ backend also a number of targets outside 0 to T
            (other backends clamp it).
        TypeError: an argument that must be a tensor is not one.
        BackendError: the requested backend cannot run here.

    Source: Jonker and Volgenant 1987, A shortest augmenting path algorithm for dense and sparse linear assignment
    problems; prices and distances in float64.

    >>> cost = torch.tensor([[[4.0, 1.0], [2.0, 0.0], [3.0, 2.0]]])
    >>> linear_assignment(cost)
    tensor([[1, 0]])
    >>> linear_assignment(cost, torch.tensor([1]))
    tensor([[ 1, -1]])
    """
    checks.tensor("cost", cost)
    if cost.dim() != 3:
        raise ValueError(f"`cost` must be [B, Q, T], queries by targets; got {list(cost.shape)}. Add the batch dim.")
    checks.dtype("cost", cost, FLOATING, "Convert it first.")
    check_backend(backend)
    B, Q, T = cost.shape
    if num_targets is not None:
        checks.tensor("num_targets", num_targets)
        if num_targets.dtype != torch.int64 or list(num_targets.shape) != [B]:
            raise ValueError(
                f"`num_targets` must be int64 [{B}], one number per sample of `cost`; "
                f"got {checks.names((num_targets.dtype,))} {list(num_targets.shape)}."
            )
        if num_targets.device != cost.device:
            raise ValueError(f"`num_targets` must be on {cost.device} like `cost`; got {num_targets.device}.")
    if B == 0 or Q == 0 or T == 0:
        return torch.full((B, T), -1, dtype=torch.int64, device=cost.device)
    return torch.ops.fastmtl.linear_assignment(cost.detach(), num_targets, backend)


def _cpp(cost: Tensor, num_targets: Tensor | None) -> Tensor:
    cost = cost if cost.dtype in (torch.float32, torch.float64) else cost.float()
    num_targets = None if num_targets is None else num_targets.contiguous()
    matches = torch.empty((cost.shape[0], cost.shape[2]), dtype=torch.int64)
    is_double = cost.dtype == torch.float64
    if not extension().linear_assignment(
        tuple(cost.shape), address(cost), is_double, cost.stride(), address(num_targets), address(matches)
    ):
        found = [] if num_targets is None else num_targets.tolist()
        raise ValueError(f"`num_targets` must lie in 0 to {cost.shape[2]}, the targets of `cost`; got {found}.")
    return matches


def _triton(cost: Tensor, num_targets: Tensor | None) -> Tensor:
    from ...kernels import assignment_triton

    return assignment_triton.linear_assignment(cost, num_targets)


def _reference(cost: Tensor, num_targets: Tensor | None) -> Tensor:
    all_targets = torch.full((cost.shape[0],), cost.shape[2], dtype=torch.int64, device=cost.device)
    return reference.linear_assignment(cost, all_targets if num_targets is None else num_targets)


register(
    "linear_assignment",
    {
        "cpp": Implementation(_cpp, "cpu"),
        "triton": Implementation(_triton, "cuda"),
        "reference": Implementation(_reference, "any"),
    },
)


def _run(cost: Tensor, num_targets: Tensor | None, backend: str) -> Tensor:
    return choose("linear_assignment", backend, cost)(cost, num_targets)


for _device in ("CPU", "CUDA"):
    _LIBRARY.impl("linear_assignment", _run, _device)


@torch.library.register_fake("fastmtl::linear_assignment", lib=_LIBRARY)
def _fake(cost: Tensor, num_targets: Tensor | None, backend: str) -> Tensor:
    return cost.new_empty((cost.shape[0], cost.shape[2]), dtype=torch.int64)


def _vmap(
    info: VmapInfo, in_dims: tuple[Any, ...], cost: Tensor, num_targets: Tensor | None, backend: str
) -> tuple[Tensor, int | None]:
    size = info.batch_size
    numbers = None if num_targets is None else fold(num_targets, in_dims[1], size)
    matches = torch.ops.fastmtl.linear_assignment(fold(cost, in_dims[0], size), numbers, backend)
    return matches.unflatten(0, (size, -1)), 0


torch.library.register_vmap("fastmtl::linear_assignment", _vmap, lib=_LIBRARY)
