"""The backends of `fastmtl::nt_xent` and its backward: all have the same arguments and outputs."""

from __future__ import annotations

from functools import partial
from typing import Annotated, NamedTuple

import torch
from torch import Tensor

from ...reference.nt_xent import EPSILON, nt_xent_loss
from ..core import backends
from ..core.checks import Backend, between
from ..core.fields import keywords
from ..core.planes import gradient_like
from ..core.pointers import address, element, num_threads


class Options(NamedTuple):
    """The op's arguments that are not tensors, in the order of its schema."""

    temperature: Annotated[float, partial(between, low=1e-30, high=1e30)]
    backend: Backend


class Tensors(NamedTuple):
    """The op's tensor arguments, in the order of its schema."""

    input: Tensor  # [2N, D], rows i and i + N a pair
    mask: Tensor | None  # bool or uint8 [N]

    def readable(self) -> Tensors:
        """Contiguous tensors, the mask as bytes."""
        mask = None if self.mask is None else self.mask.contiguous().view(torch.uint8)
        return Tensors(self.input.contiguous(), mask)


def new_outputs(input: Tensor) -> tuple[Tensor, Tensor]:
    """Uninitialised loss [] and coefficients [2 * 2N + 1].

    The coefficients: for each row a cosine m_i that keeps its exponentials in range; its weight 1 / sum over j != i of
    exp((s_ij - m_i) / T), 0 for invalid rows; and 1 / the number of valid rows.
    """
    dtype = torch.promote_types(input.dtype, torch.float32)
    loss = torch.empty((), dtype=dtype, device=input.device)
    return loss, torch.empty(2 * input.shape[0] + 1, dtype=dtype, device=input.device)


def reference(tensors: Tensors, options: Options) -> Tensor:
    """The loss in plain torch, differentiable any number of times."""
    return nt_xent_loss(tensors.input, mask=tensors.mask, **keywords(options, "backend"))


def _similarities(tensors: Tensors) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Cosines [2N, 2N], -inf for a column that is not in a row's sum; normalised rows; norms; valid rows."""
    input, mask = tensors
    z = input.to(torch.promote_types(input.dtype, torch.float32))
    valid = torch.ones_like(z[:, 0], dtype=torch.bool) if mask is None else mask.bool().repeat(2)
    z = torch.where(valid[:, None], z, 0.0)
    norm = z.norm(dim=1, keepdim=True)
    y = z / norm.clamp(min=EPSILON)
    s = (y @ y.T).fill_diagonal_(-torch.inf)
    return s.masked_fill_(~valid, -torch.inf), y, norm, valid


def reference_forward(tensors: Tensors, options: Options) -> tuple[Tensor, Tensor]:
    loss, coefficients = new_outputs(tensors.input)
    s, _, _, valid = _similarities(tensors)
    largest = s.amax(1).clamp(min=-2)  # -2: the row is invalid, or the only valid one
    weight = 1 / ((s - largest[:, None]) / options.temperature).exp().sum(1)
    coefficients[:-1].copy_(torch.cat([largest, torch.where(valid, weight, 0.0)]))
    coefficients[-1] = 1 / valid.sum().clamp(min=1).to(coefficients.dtype)
    return loss.copy_(reference(tensors, options)), coefficients


def reference_backward(grad: Tensor, tensors: Tensors, coefficients: Tensor, options: Options) -> Tensor:
    """Plain torch with the formula at the top of nt_xent.py, because autograd does not run inside an op."""
    s, y, norm, valid = _similarities(tensors)
    rows, pairs = s.shape[0], s.shape[0] // 2
    largest, weight = coefficients[:-1].chunk(2)
    p = ((s - largest[:, None]) / options.temperature).exp() * weight[:, None]
    w = torch.where(valid[:, None], p, 0.0)
    w = w + w.T
    rolled = torch.arange(rows, device=s.device).roll(pairs)
    w[rolled.roll(pairs), rolled] -= 2 * valid
    of_y = grad * coefficients[-1] / options.temperature * (w @ y)
    along = torch.where(norm < EPSILON, 0.0, (of_y * y).sum(1, keepdim=True))
    return gradient_like(tensors.input).copy_((of_y - y * along) / norm.clamp(min=EPSILON))


def _problem(tensors: Tensors, options: Options) -> tuple[int | float, ...]:
    input, mask = tensors
    return address(input), element(input), *input.shape, address(mask), options.temperature


def _scratch(input: Tensor, backward: bool) -> Tensor:
    """Memory for the normalised rows and a block of similarities per thread; allocated by torch, so that its statistics
    include it."""
    floats = backends.extension().nt_xent_scratch(*input.shape, backward, num_threads())
    return torch.empty(floats, dtype=torch.float32)


def cpp_forward(tensors: Tensors, options: Options) -> tuple[Tensor, Tensor]:
    tensors = tensors.readable()
    loss, coefficients = new_outputs(tensors.input)
    scratch = _scratch(tensors.input, backward=False)
    outputs = address(loss), address(coefficients), address(scratch)
    backends.extension().nt_xent_forward(*_problem(tensors, options), *outputs, num_threads())
    return loss, coefficients


def cpp_backward(grad: Tensor, tensors: Tensors, coefficients: Tensor, options: Options) -> Tensor:
    tensors = tensors.readable()
    gradient = gradient_like(tensors.input)
    scratch = _scratch(tensors.input, backward=True)
    outputs = address(grad), address(coefficients), address(gradient), address(scratch)
    backends.extension().nt_xent_backward(*_problem(tensors, options), *outputs, num_threads())
    return gradient


def triton_forward(tensors: Tensors, options: Options) -> tuple[Tensor, Tensor]:
    from ...kernels import nt_xent_triton

    tensors = tensors.readable()
    loss, coefficients = new_outputs(tensors.input)
    nt_xent_triton.forward(*tensors, loss, coefficients, options.temperature)
    return loss, coefficients


def triton_backward(grad: Tensor, tensors: Tensors, coefficients: Tensor, options: Options) -> Tensor:
    from ...kernels import nt_xent_triton

    tensors = tensors.readable()
    gradient = gradient_like(tensors.input)
    nt_xent_triton.backward(grad, *tensors, coefficients, gradient, options.temperature)
    return gradient


BACKENDS = {
    "cpp": (cpp_forward, cpp_backward),
    "triton": (triton_forward, triton_backward),
    "reference": (reference_forward, reference_backward),
}
