"""`gram` and `grad_norms`: the inner products of K gradients, all that most balancing methods need."""

from __future__ import annotations

import torch
from torch import Tensor

from fastmtl.reference import gram as reference

from ..core.backends import FLOATING, Implementation, check_backend, choose, extension, register
from ..core.pointers import address, element, num_threads

MAX_TASKS = 64

_TAGS = (torch.Tag.pt2_compliant_tag, torch.Tag.needs_exact_strides)
_LIBRARY = torch.library.Library("fastmtl", "FRAGMENT")
_LIBRARY.define("gram(Tensor J, str backend) -> Tensor", tags=_TAGS)
_LIBRARY.define("grad_norms(Tensor J, str backend) -> Tensor", tags=_TAGS)


def gram(J: Tensor, *, backend: str = "auto") -> Tensor:
    r"""Gram matrix of K gradients, :math:`G = J J^\top`, always in float64.

    A CPU computes the products in float64, a GPU in float32 runs of 128 that are summed in float64; TF32 is never used.
    Near-opposed and near-collinear gradients need this: a float32 G can give :math:`w^\top G w < 0`, a negative squared
    norm. The chunks of the sums depend only on the shape and are added in a fixed order: bit-equal over repeats and
    numbers of threads, and exactly symmetric.

    Args:
        J: [K, P] float32, float64, bfloat16 or float16, K <= 64, each row contiguous (gaps between rows are fine).
        backend: "auto", "reference", "cpp" or "triton".

    Returns:
        G [K, K] float64 on J's device. Differentiable, twice: dJ = (dG + dG^T) J.

    Raises:
        ValueError: J is not a [K, P] matrix of contiguous rows, or is empty, or has more than 64 rows.
        BackendError: the requested backend cannot run here.

    >>> gram(torch.tensor([[1.0, 2.0], [3.0, -1.0]]))
    tensor([[ 5.,  1.],
            [ 1., 10.]], dtype=torch.float64)
    """
    check_gradients(J)
    check_backend(backend)
    return torch.ops.fastmtl.gram(J, backend)


def grad_norms(J: Tensor, *, backend: str = "auto") -> Tensor:
    """Norms of K gradients: the square root of the diagonal of `gram`, without computing the other entries.

    Args:
        J: [K, P], as for `gram`.
        backend: "auto", "reference", "cpp" or "triton".

    Returns:
        [K] float64 on J's device. Differentiable; the gradient at a zero row is zero.

    Raises:
        ValueError, BackendError: as `gram`.

    >>> grad_norms(torch.tensor([[3.0, 4.0], [0.0, 2.0]]))
    tensor([5., 2.], dtype=torch.float64)
    """
    check_gradients(J)
    check_backend(backend)
    return torch.ops.fastmtl.grad_norms(J, backend)


def check_gradients(J: Tensor) -> None:
    """Raise unless J is a matrix [K, P] of contiguous gradient rows with 1 <= K <= 64 and P >= 1."""
    if not isinstance(J, Tensor):
        raise TypeError(f"`J` must be a tensor [K, P]; got {type(J).__name__}. Stack the flattened gradients first.")
    if J.ndim != 2 or J.shape[0] == 0 or J.shape[1] == 0:
        raise ValueError(
            f"`J` must be [K, P], one flattened gradient per task, K and P at least 1; got {list(J.shape)}."
        )
    if J.shape[0] > MAX_TASKS:
        raise ValueError(f"`J` must have at most {MAX_TASKS} rows (tasks); got {J.shape[0]}.")
    if J.dtype not in FLOATING:
        raise ValueError(f"`J` must be float32, float64, bfloat16 or float16; got {J.dtype}.")
    if J.shape[1] > 1 and J.stride(1) != 1:
        raise ValueError(f"`J` must have contiguous rows; got strides {list(J.stride())}. Call J.contiguous() first.")


def _rows_cpp(J: Tensor, out: Tensor, norms_only: bool) -> Tensor:
    K, P = J.shape
    arguments = (K, P, J.stride(0), norms_only, address(out), num_threads())
    extension().gram(address(J), element(J), *arguments)
    return out


def _gram_cpp(J: Tensor) -> Tensor:
    return _rows_cpp(J, torch.empty(J.shape[0], J.shape[0], dtype=torch.float64), norms_only=False)


def _grad_norms_cpp(J: Tensor) -> Tensor:
    return _rows_cpp(J, torch.empty(J.shape[0], dtype=torch.float64), norms_only=True).sqrt_()


def _gram_triton(J: Tensor) -> Tensor:
    from fastmtl.kernels import gram_triton

    return gram_triton.gram(J)


def _grad_norms_triton(J: Tensor) -> Tensor:
    from fastmtl.kernels import gram_triton

    return gram_triton.squared_norms(J).sqrt_()


register(
    "gram",
    {
        "cpp": Implementation(_gram_cpp, "cpu"),
        "triton": Implementation(_gram_triton, "cuda"),
        "reference": Implementation(reference.gram, "any"),
    },
)
register(
    "grad_norms",
    {
        "cpp": Implementation(_grad_norms_cpp, "cpu"),
        "triton": Implementation(_grad_norms_triton, "cuda"),
        "reference": Implementation(reference.grad_norms, "any"),
    },
)


def _run_gram(J: Tensor, backend: str) -> Tensor:
    return choose("gram", backend, J)(J)


def _run_grad_norms(J: Tensor, backend: str) -> Tensor:
    return choose("grad_norms", backend, J)(J)


for _device in ("CPU", "CUDA"):
    _LIBRARY.impl("gram", _run_gram, _device)
    _LIBRARY.impl("grad_norms", _run_grad_norms, _device)


@torch.library.register_fake("fastmtl::gram", lib=_LIBRARY)
def _gram_fake(J: Tensor, backend: str) -> Tensor:
    return J.new_empty((J.shape[0], J.shape[0]), dtype=torch.float64)


@torch.library.register_fake("fastmtl::grad_norms", lib=_LIBRARY)
def _grad_norms_fake(J: Tensor, backend: str) -> Tensor:
    return J.new_empty((J.shape[0],), dtype=torch.float64)


def _gram_setup(ctx, inputs, output) -> None:
    ctx.save_for_backward(inputs[0])


def _gram_backward(ctx, dG: Tensor):
    (J,) = ctx.saved_tensors
    return (dG + dG.T).to(J.dtype) @ J, None


def _grad_norms_setup(ctx, inputs, output) -> None:
    ctx.save_for_backward(inputs[0], output)


def _grad_norms_backward(ctx, dnorms: Tensor):
    J, norms = ctx.saved_tensors
    factors = torch.where(norms == 0, 0.0, dnorms / norms)
    return factors.to(J.dtype)[:, None] * J, None


torch.library.register_autograd("fastmtl::gram", _gram_backward, setup_context=_gram_setup, lib=_LIBRARY)
torch.library.register_autograd(
    "fastmtl::grad_norms", _grad_norms_backward, setup_context=_grad_norms_setup, lib=_LIBRARY
)
