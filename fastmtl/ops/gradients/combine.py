"""`combine`: one gradient from K of them, in one pass."""

from __future__ import annotations

import torch
from torch import Tensor

from fastmtl.reference import combine as reference

from ..core.backends import Implementation, check_backend, choose, extension, register
from ..core.buffer_cache import Recycled
from ..core.pointers import address, element, num_threads
from .gram import check_gradients

_OUTPUTS = Recycled()  # for CPU kernels only: a GPU's allocator keeps freed memory anyway
_TAGS = (torch.Tag.pt2_compliant_tag, torch.Tag.needs_exact_strides)
_LIBRARY = torch.library.Library("fastmtl", "FRAGMENT")
_LIBRARY.define("combine(Tensor J, Tensor w, str backend) -> Tensor", tags=_TAGS)
_LIBRARY.define("combine_out(Tensor J, Tensor w, Tensor(a!) out, str backend) -> ()", tags=_TAGS)


def combine(J: Tensor, w: Tensor, *, out: Tensor | None = None, backend: str = "auto") -> Tensor:
    r"""Weighted sum of K gradients, :math:`\sum_k w_k J_k`.

    Each element is summed in float32 (float64 for float64 J), task 0 first: bit-equal over repeats and numbers of
    threads.

    Args:
        J: [K, P] float32, float64, bfloat16 or float16, K <= 64, each row contiguous (gaps between rows are fine).
        w: [K] float32 or float64 on J's device; rounded to the dtype of the sum.
        out: [P] contiguous, of the result's dtype: where to write the result. Autograd then records nothing.
        backend: "auto", "reference", "cpp" or "triton".

    Returns:
        [P] float32, or float64 for float64 J. Differentiable in J (outer(w, d)) and w (J d).

    Raises:
        ValueError: an argument has another shape, dtype or device.
        BackendError: the requested backend cannot run here.

    >>> combine(torch.tensor([[1.0, 2.0], [3.0, -1.0]]), torch.tensor([0.5, 2.0]))
    tensor([ 6.5000, -1.0000])
    """
    check_gradients(J)
    check_backend(backend)
    if w.shape != J.shape[:1] or w.dtype not in (torch.float32, torch.float64) or w.device != J.device:
        raise ValueError(
            f"`w` must be [{J.shape[0]}], one weight per row of J, float32 or float64 on {J.device}; "
            f"got {list(w.shape)} {w.dtype} on {w.device}."
        )
    if out is None:
        return torch.ops.fastmtl.combine(J, w, backend)
    if out.shape != J.shape[1:] or out.dtype != _sum_dtype(J) or out.device != J.device or not out.is_contiguous():
        raise ValueError(
            f"`out` must be [{J.shape[1]}] contiguous {_sum_dtype(J)} on {J.device}; "
            f"got {list(out.shape)} {out.dtype} on {out.device}."
        )
    torch.ops.fastmtl.combine_out(J.detach(), w.detach(), out, backend)
    return out


def _overlap(J: Tensor, out: Tensor) -> bool:
    last = (J.shape[0] - 1) * J.stride(0) + J.shape[1]
    first, end = J.data_ptr(), J.data_ptr() + last * J.element_size()
    return first < out.data_ptr() + out.numel() * out.element_size() and out.data_ptr() < end


def _sum_dtype(J: Tensor) -> torch.dtype:
    return torch.float64 if J.dtype == torch.float64 else torch.float32


def _combine_cpp(J: Tensor, w: Tensor, out: Tensor) -> None:
    w = w.to(out.dtype).contiguous()
    K, P = J.shape
    arguments = (K, P, J.stride(0), address(w), address(out), num_threads())
    extension().combine(address(J), element(J), *arguments)


def _combine_triton(J: Tensor, w: Tensor, out: Tensor) -> None:
    from fastmtl.kernels import combine_triton

    combine_triton.combine(J, w, out)


def _combine_reference(J: Tensor, w: Tensor, out: Tensor) -> None:
    out.copy_(reference.combine(J, w))


register(
    "combine",
    {
        "cpp": Implementation(_combine_cpp, "cpu"),
        "triton": Implementation(_combine_triton, "cuda"),
        "reference": Implementation(_combine_reference, "any"),
    },
)


def _run_combine_out(J: Tensor, w: Tensor, out: Tensor, backend: str) -> None:
    if _overlap(J, out):  # checked here, because torch.compile cannot follow addresses
        raise ValueError("`out` must not share memory with `J`: the sum would overwrite rows before they are read.")
    choose("combine", backend, J)(J, w, out)


def _run_combine(J: Tensor, w: Tensor, backend: str) -> Tensor:
    size = J.shape[1:]
    if J.device.type == "cpu":
        out = _OUTPUTS.empty_strided(size, (1,), _sum_dtype(J), J.device)
    else:
        out = J.new_empty(size, dtype=_sum_dtype(J))
    _run_combine_out(J, w, out, backend)
    return out


for _device in ("CPU", "CUDA"):
    _LIBRARY.impl("combine", _run_combine, _device)
    _LIBRARY.impl("combine_out", _run_combine_out, _device)


@torch.library.register_fake("fastmtl::combine", lib=_LIBRARY)
def _combine_fake(J: Tensor, w: Tensor, backend: str) -> Tensor:
    return J.new_empty((J.shape[1],), dtype=_sum_dtype(J))


@torch.library.register_fake("fastmtl::combine_out", lib=_LIBRARY)
def _combine_out_fake(J: Tensor, w: Tensor, out: Tensor, backend: str) -> None:
    return None


def _setup(ctx, inputs, output) -> None:
    ctx.save_for_backward(inputs[0], inputs[1])


def _backward(ctx, d: Tensor):
    J, w = ctx.saved_tensors
    dJ = torch.outer(w.to(d.dtype), d).to(J.dtype) if ctx.needs_input_grad[0] else None
    dw = torch.mv(J.to(d.dtype), d).to(w.dtype) if ctx.needs_input_grad[1] else None
    return dJ, dw, None


torch.library.register_autograd("fastmtl::combine", _backward, setup_context=_setup, lib=_LIBRARY)
