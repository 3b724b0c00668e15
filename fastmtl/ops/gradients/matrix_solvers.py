"""The small K x K problems of the balancing methods, solved on the device of their input: on a CPU by C++, on a GPU by
one Triton block that never waits for the host. Private: the public interface is `fastmtl.balance`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastmtl.reference import eigh as eigh_reference
from fastmtl.reference import equilibrium as equilibrium_reference
from fastmtl.reference import nonnegative_qp as qp_reference

from ..core.backends import Implementation, check_backend, choose, extension, register
from ..core.pointers import address

_DOUBLE = (torch.float64,)
_TAGS = (torch.Tag.pt2_compliant_tag, torch.Tag.needs_exact_strides)
_LIBRARY = torch.library.Library("fastmtl", "FRAGMENT")
_LIBRARY.define("nonnegative_qp(Tensor H, Tensor q, str backend) -> Tensor", tags=_TAGS)
_LIBRARY.define("equilibrium(Tensor C, Tensor r, float p, str backend) -> Tensor", tags=_TAGS)
_LIBRARY.define("small_eigh(Tensor G, str backend) -> (Tensor, Tensor)", tags=_TAGS)


def nonnegative_qp(H: Tensor, q: Tensor, *, backend: str = "auto") -> Tensor:
    r"""The minimisers of :math:`\frac12 x^\top H x + q^\top x` over :math:`x \ge 0`, one per problem.

    Args:
        H: [B, K, K] float64, positive semidefinite, K <= 64. A row of zeros needs a positive q there.
        q: [B, K] float64 on H's device.
        backend: "auto", "reference", "cpp" or "triton".

    Returns:
        x [B, K] float64; NaN for problems that are not finite. Not differentiable.

    >>> H = torch.tensor([[[2.0, 0.0], [0.0, 1.0]]], dtype=torch.float64)
    >>> nonnegative_qp(H, torch.tensor([[-4.0, 1.0]], dtype=torch.float64)).round(decimals=9)
    tensor([[2., 0.]], dtype=torch.float64)
    """
    check_backend(backend)
    return torch.ops.fastmtl.nonnegative_qp(H.detach(), q.detach(), backend)


def equilibrium(C: Tensor, r: Tensor, p: float, *, backend: str = "auto") -> Tensor:
    r"""The positive y with :math:`(C y)_i = r_i y_i^{-p}`.

    Args:
        C: [K, K] float64, cosines (ones on the diagonal), K <= 64.
        r: [K] float64 > 0 on C's device.
        p: > 0.
        backend: "auto", "reference", "cpp" or "triton".

    Returns:
        y [K] float64; NaN where C or r is not finite. Not differentiable.

    >>> equilibrium(torch.eye(2).double(), torch.tensor([1.0, 4.0]).double(), 1.0).round(decimals=9)
    tensor([1., 2.], dtype=torch.float64)
    """
    check_backend(backend)
    return torch.ops.fastmtl.equilibrium(C.detach(), r.detach(), float(p), backend)


def eigh(G: Tensor, *, backend: str = "auto") -> tuple[Tensor, Tensor]:
    """Eigenvalues [K], ascending, and eigenvectors [K, K] (columns) of a symmetric G [K, K] float64, K <= 64; NaN where
    G is not finite. Not differentiable; on a GPU by Jacobi rotations, because torch's `eigh` waits for the device.

    >>> values, vectors = eigh(torch.tensor([[2.0, 0.0], [0.0, 1.0]], dtype=torch.float64))
    >>> values
    tensor([1., 2.], dtype=torch.float64)
    """
    check_backend(backend)
    return torch.ops.fastmtl.small_eigh(G.detach(), backend)


def _qp_cpp(H: Tensor, q: Tensor) -> Tensor:
    H, q = H.contiguous(), q.contiguous()
    x = torch.empty_like(q)
    extension().nonnegative_qp(address(H), address(q), *q.shape, address(x))
    return x


def _qp_triton(H: Tensor, q: Tensor) -> Tensor:
    from fastmtl.kernels import nonnegative_qp_triton

    return nonnegative_qp_triton.nonnegative_qp(H.contiguous(), q.contiguous())


def _equilibrium_cpp(C: Tensor, r: Tensor, p: float) -> Tensor:
    C, r = C.contiguous(), r.contiguous()
    y = torch.empty_like(r)
    extension().equilibrium(address(C), address(r), p, r.shape[0], address(y))
    return y


def _equilibrium_triton(C: Tensor, r: Tensor, p: float) -> Tensor:
    from fastmtl.kernels import equilibrium_triton

    return equilibrium_triton.equilibrium(C.contiguous(), r.contiguous(), p)


def _eigh_triton(G: Tensor) -> tuple[Tensor, Tensor]:
    from fastmtl.kernels import eigh_triton

    values, order = (found := eigh_triton.eigh(G.contiguous()))[0].sort()
    return values, found[1][:, order]


register(
    "nonnegative_qp",
    {
        "cpp": Implementation(_qp_cpp, "cpu", _DOUBLE),
        "triton": Implementation(_qp_triton, "cuda", _DOUBLE),
        "reference": Implementation(qp_reference.nonnegative_qp, "any", _DOUBLE),
    },
)
register(
    "equilibrium",
    {
        "cpp": Implementation(_equilibrium_cpp, "cpu", _DOUBLE),
        "triton": Implementation(_equilibrium_triton, "cuda", _DOUBLE),
        "reference": Implementation(equilibrium_reference.equilibrium, "any", _DOUBLE),
    },
)
register(
    "small_eigh",
    {
        "triton": Implementation(_eigh_triton, "cuda", _DOUBLE),
        "reference": Implementation(eigh_reference.eigh, "any", _DOUBLE),
    },
)


def _run_qp(H: Tensor, q: Tensor, backend: str) -> Tensor:
    return choose("nonnegative_qp", backend, H)(H, q)


def _run_equilibrium(C: Tensor, r: Tensor, p: float, backend: str) -> Tensor:
    return choose("equilibrium", backend, C)(C, r, p)


def _run_eigh(G: Tensor, backend: str) -> tuple[Tensor, Tensor]:
    return choose("small_eigh", backend, G)(G)


for _device in ("CPU", "CUDA"):
    _LIBRARY.impl("nonnegative_qp", _run_qp, _device)
    _LIBRARY.impl("equilibrium", _run_equilibrium, _device)
    _LIBRARY.impl("small_eigh", _run_eigh, _device)


@torch.library.register_fake("fastmtl::nonnegative_qp", lib=_LIBRARY)
def _qp_fake(H: Tensor, q: Tensor, backend: str) -> Tensor:
    return q.new_empty(q.shape)


@torch.library.register_fake("fastmtl::equilibrium", lib=_LIBRARY)
def _equilibrium_fake(C: Tensor, r: Tensor, p: float, backend: str) -> Tensor:
    return r.new_empty(r.shape)


@torch.library.register_fake("fastmtl::small_eigh", lib=_LIBRARY)
def _eigh_fake(G: Tensor, backend: str) -> tuple[Tensor, Tensor]:
    return G.new_empty(G.shape[:1]), G.new_empty(G.shape)
