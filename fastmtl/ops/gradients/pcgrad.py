"""`pcgrad_weights`: PCGrad on the Gram matrix of the gradients."""

from __future__ import annotations

import torch
from torch import Tensor

from fastmtl.reference import pcgrad as reference

from ..core.backends import Implementation, check_backend, choose, extension, register
from ..core.pointers import address
from .gram import MAX_TASKS

_DOUBLE = (torch.float64,)

_TAGS = (torch.Tag.pt2_compliant_tag, torch.Tag.needs_exact_strides)
_LIBRARY = torch.library.Library("fastmtl", "FRAGMENT")
_LIBRARY.define("pcgrad_weights(Tensor G, Tensor order, bool mean, str backend) -> Tensor", tags=_TAGS)


def pcgrad_weights(
    G: Tensor,
    order: Tensor | None = None,
    *,
    generator: torch.Generator | None = None,
    reduction: str = "sum",
    with_self: bool = False,
    backend: str = "auto",
) -> Tensor:
    r"""PCGrad's weights: the combined gradient is :math:`\sum_k w_k g_k`.

    For each task i, starting at :math:`c = e_i`, for each j in row i of `order`: :math:`s = (G c)_j`, the inner
    product with the original gradient of task j; where s < 0, :math:`c_j \leftarrow c_j - s / G_{jj}`. Then
    :math:`w = \sum_i c`. This is the paper's loop over full gradients, computed on K x K numbers. A task with
    :math:`G_{jj} = 0` is inactive: nothing is projected against it, and "mean" does not count it.

    Args:
        G: [K, K] symmetric, K <= 64: `gram(J)`, float64. Other floating dtypes are accepted, but are too coarse for
            near-opposed gradients.
        order: int64 [K, K-1] on G's device, row i a permutation of the tasks other than i; [K, K] with i in row i is
            accepted, and i is skipped. None draws a random order.
        generator: draws the order if `order` is None; on the CPU or on G's device.
        reduction: "sum" (the paper) or "mean": the sum divided by the number of active tasks.
        with_self: do not skip i in row i of a [K, K] order, as in LibMTL and Pytorch-PCGrad; runs on the reference.
        backend: "auto", "reference", "cpp" or "triton".

    Returns:
        w [K] float64 on G's device; not finite if G is not. Not differentiable.

    Raises:
        ValueError: the shape or dtype of G or order, or the reduction, is not one of the above; on the C++ backend also
            an order whose rows are not permutations (others: NaN for a task that does not exist).
        BackendError: the requested backend cannot run here.

    Source: Yu et al., Gradient Surgery for Multi-Task Learning, NeurIPS 2020, algorithm 1.

    >>> G = torch.tensor([[1.0, -1.0], [-1.0, 4.0]], dtype=torch.float64)
    >>> pcgrad_weights(G, torch.tensor([[1], [0]]))
    tensor([2.0000, 1.2500], dtype=torch.float64)
    """
    if G.ndim != 2 or G.shape[0] != G.shape[1] or not 1 <= G.shape[0] <= MAX_TASKS:
        raise ValueError(f"`G` must be [K, K] with K from 1 to {MAX_TASKS}; got {list(G.shape)}. Take it from gram(J).")
    if not G.is_floating_point():
        raise ValueError(f"`G` must be floating point; got {G.dtype}. Take it from gram(J).")
    if reduction not in ("sum", "mean"):
        raise ValueError(f"`reduction` must be 'sum' or 'mean'; got {reduction!r}.")
    check_backend(backend)
    K = G.shape[0]
    if order is None:
        order = random_order(K, generator=generator, device=G.device, with_self=with_self)
    if order.dtype != torch.int64 or order.ndim != 2 or order.shape[0] != K or order.shape[1] not in (K - 1, K):
        raise ValueError(
            f"`order` must be int64 [{K}, {K - 1}], row i a permutation of the tasks other than i; "
            f"got {list(order.shape)} {order.dtype}."
        )
    if order.device != G.device:
        raise ValueError(
            f"`order` must be on G's device {G.device}; got {order.device}. Move it with order.to(G.device)."
        )
    if with_self:
        return reference.pcgrad_weights(G.detach().double(), order, reduction == "mean", with_self=True)
    return torch.ops.fastmtl.pcgrad_weights(G.detach().double(), order, reduction == "mean", backend)


def random_order(
    K: int,
    *,
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
    with_self: bool = False,
) -> Tensor:
    """A random order for `pcgrad_weights`: int64 [K, K-1], row i a uniform permutation of the tasks other than i; with
    `with_self` [K, K], of all tasks.

    Drawn on the generator's device (without one on `device`) and copied to `device` without waiting for it. So a CPU
    generator, whose state is cheap to save, gives the same orders on every device.

    >>> random_order(3, generator=torch.Generator().manual_seed(0)).sort(dim=1).values
    tensor([[1, 2],
            [0, 2],
            [0, 1]])
    """
    target = torch.device("cpu" if device is None else device)
    drawn_on = target if generator is None else generator.device
    keys = torch.rand(K, K, dtype=torch.float64, generator=generator, device=drawn_on)
    order = order_by(keys, with_self=with_self)
    if drawn_on.type == "cpu" and target.type == "cuda":
        order = order.pin_memory()
    return order.to(target, non_blocking=order.is_pinned())


def order_by(keys: Tensor, *, with_self: bool = False) -> Tensor:
    """The order given by sorting keys [K, K], numbers in [0, 1); as `random_order`.

    >>> order_by(torch.tensor([[0.1, 0.9, 0.5], [0.3, 0.2, 0.6], [0.7, 0.4, 0.8]]))
    tensor([[2, 1],
            [0, 2],
            [1, 0]])
    """
    K = keys.shape[0]
    if not with_self:
        keys = keys.clone().fill_diagonal_(2.0)  # sorts task i after all others of row i
    return keys.argsort(dim=1)[:, : K - (not with_self)].contiguous()


def _pcgrad_cpp(G: Tensor, order: Tensor, mean: bool) -> Tensor:
    G, order = G.contiguous(), order.contiguous()
    K, M = order.shape
    w = torch.empty(K, dtype=torch.float64)
    if not extension().pcgrad(address(G), address(order), K, M, mean, address(w)):
        raise ValueError(
            f"`order`'s row i must be a permutation of the tasks 0 to {K - 1} other than i; got {order.tolist()}."
        )
    return w


def _pcgrad_triton(G: Tensor, order: Tensor, mean: bool) -> Tensor:
    from fastmtl.kernels import pcgrad_triton

    return pcgrad_triton.pcgrad_weights(G.contiguous(), order.contiguous(), mean)


def _pcgrad_reference(G: Tensor, order: Tensor, mean: bool) -> Tensor:
    outside = (order < 0) | (order >= G.shape[0])
    w = reference.pcgrad_weights(G, order.masked_fill(outside, 0), mean)
    return torch.where(outside.any(), torch.nan, w)


register(
    "pcgrad_weights",
    {
        "cpp": Implementation(_pcgrad_cpp, "cpu", _DOUBLE),
        "triton": Implementation(_pcgrad_triton, "cuda", _DOUBLE),
        "reference": Implementation(_pcgrad_reference, "any", _DOUBLE),
    },
)


def _run(G: Tensor, order: Tensor, mean: bool, backend: str) -> Tensor:
    return choose("pcgrad_weights", backend, G)(G, order, mean)


for _device in ("CPU", "CUDA"):
    _LIBRARY.impl("pcgrad_weights", _run, _device)


@torch.library.register_fake("fastmtl::pcgrad_weights", lib=_LIBRARY)
def _fake(G: Tensor, order: Tensor, mean: bool, backend: str) -> Tensor:
    return G.new_empty((G.shape[0],))
