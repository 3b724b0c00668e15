"""`sample_points`: values of maps at points, and the gradient."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from ...reference import points as reference
from ..core import checks
from ..core.backends import Implementation, check_backend, choose, extension, register
from ..core.loss_op import Context
from ..core.pointers import address, element, num_threads

_MAPS = (torch.bool, torch.uint8, *checks.FLOATING)
_TAGS = (torch.Tag.pt2_compliant_tag, torch.Tag.needs_exact_strides)
_LIBRARY = torch.library.Library("fastmtl", "FRAGMENT")
_LIBRARY.define("sample_points(Tensor maps, Tensor coordinates, str backend) -> Tensor", tags=_TAGS)
_LIBRARY.define(
    "scatter_points(Tensor grad, Tensor coordinates, SymInt height, SymInt width, str backend) -> Tensor", tags=_TAGS
)


def sample_points(maps: Tensor, coordinates: Tensor, *, backend: str = "auto") -> Tensor:
    """Bilinear samples of each map at the points of its batch sample; 0 outside of the map.

    Equal to `torch.nn.functional.grid_sample(maps, 2 * coordinates - 1, align_corners=False)` at a list of points.
    Masks work too: the four neighbours of a point are read as bytes, without a float copy of the mask.

    Args:
        maps: [B, C, H, W]; bool, uint8, float16, bfloat16, float32 or float64.
        coordinates: [B, P, 2], floating, (x, y) in 0 to 1: (0, 0) is the outer corner of the first pixel, (1, 1) that
            of the last. float64 stays float64; other dtypes, and float32 with float64 maps, are converted. A NaN counts
            as outside: 0.
        backend: "auto", "cpp" (CPU), "triton" (NVIDIA) or "reference" (plain torch).

    Returns:
        [B, C, P], float32, or float64 if either argument is. Differentiable in floating `maps`, any number of times;
        the backward keeps only the coordinates. Deterministic also on a GPU, unlike `grid_sample`.

    Raises:
        ValueError, TypeError: an invalid argument, which the message names.

    >>> mask = torch.tensor([[[[0, 1], [0, 1]]]], dtype=torch.uint8)
    >>> sample_points(mask, torch.tensor([[[0.5, 0.5], [0.75, 0.5]]]))
    tensor([[[0.5000, 1.0000]]])
    """
    checks.tensor("maps", maps)
    checks.tensor("coordinates", coordinates)
    checks.dtype("maps", maps, _MAPS, "Convert it first.")
    checks.dtype("coordinates", coordinates, checks.FLOATING, "Their range is 0 to 1.")
    checks.constant("coordinates", coordinates)
    shape, points = list(maps.shape), list(coordinates.shape)
    if len(shape) != 4 or len(points) != 3 or points[::2] != [shape[0], 2]:
        raise ValueError(f"`maps` must be [B, C, H, W] and `coordinates` [B, P, 2]; got {shape} and {points}.")
    if 0 in shape[2:]:
        raise ValueError(f"`maps` must have at least one pixel; got {shape}.")
    if coordinates.device != maps.device:
        raise ValueError(f"`coordinates` must be on {maps.device} like `maps`; got {coordinates.device}.")
    check_backend(backend)
    dtype = torch.float64 if torch.float64 in (maps.dtype, coordinates.dtype) else torch.float32
    return torch.ops.fastmtl.sample_points(maps, coordinates.detach().to(dtype), backend)


def _with_planes(maps: Tensor) -> Tensor:
    """The maps if their planes are contiguous, else a copy."""
    return maps if maps[0, 0].is_contiguous() else maps.contiguous()


def _problem(planes: tuple[int, ...], coordinates: Tensor) -> tuple[Any, ...]:
    """`planes`: batch, channels, height, width."""
    shape = (*planes, coordinates.shape[1])
    return shape, address(coordinates), coordinates.dtype == torch.float64, num_threads()


def _sample_cpp(maps: Tensor, coordinates: Tensor) -> Tensor:
    maps, coordinates = _with_planes(maps), coordinates.contiguous()
    out = torch.empty((*maps.shape[:2], coordinates.shape[1]), dtype=coordinates.dtype)
    extension().sample_points(
        *_problem(maps.shape, coordinates), address(maps), element(maps), *maps.stride()[:2], address(out)
    )
    return out


def _sample_triton(maps: Tensor, coordinates: Tensor) -> Tensor:
    from ...kernels import points_triton

    return points_triton.sample_points(_with_planes(maps), coordinates.contiguous())


def _scatter_cpp(grad: Tensor, coordinates: Tensor, height: int, width: int) -> Tensor:
    grad, coordinates = grad.contiguous(), coordinates.contiguous()
    gradient = torch.empty((*grad.shape[:2], height, width), dtype=grad.dtype)
    problem = _problem(gradient.shape, coordinates)
    extension().scatter_points(*problem, address(grad), address(gradient))
    return gradient


register(
    "sample_points",
    {
        "cpp": Implementation(_sample_cpp, "cpu", _MAPS),
        "triton": Implementation(_sample_triton, "cuda", _MAPS),
        "reference": Implementation(reference.sample_points, "any", _MAPS),
    },
)
register(
    "scatter_points",
    {
        "cpp": Implementation(_scatter_cpp, "cpu"),
        # Sorting is the only way to add the contributions to one pixel in a fixed order without float atomics.
        "triton": Implementation(reference.scatter_points, "any"),
        "reference": Implementation(reference.scatter_points, "any"),
    },
)


def _sample(maps: Tensor, coordinates: Tensor, backend: str) -> Tensor:
    if maps.numel() == 0 or coordinates.shape[1] == 0:
        return _fake_sample(maps, coordinates, backend).zero_()
    return choose("sample_points", backend, maps)(maps, coordinates)


def _scatter(grad: Tensor, coordinates: Tensor, height: int, width: int, backend: str) -> Tensor:
    if grad.numel() == 0:
        return _fake_scatter(grad, coordinates, height, width, backend).zero_()
    return choose("scatter_points", backend, grad)(grad, coordinates, height, width)


for _device in ("CPU", "CUDA"):
    _LIBRARY.impl("sample_points", _sample, _device)
    _LIBRARY.impl("scatter_points", _scatter, _device)


@torch.library.register_fake("fastmtl::sample_points", lib=_LIBRARY)
def _fake_sample(maps: Tensor, coordinates: Tensor, backend: str) -> Tensor:
    return coordinates.new_empty((*maps.shape[:2], coordinates.shape[1]))


@torch.library.register_fake("fastmtl::scatter_points", lib=_LIBRARY)
def _fake_scatter(grad: Tensor, coordinates: Tensor, height: int, width: int, backend: str) -> Tensor:
    return grad.new_empty((*grad.shape[:2], height, width))


class _Context(Context, Protocol):
    backend: str
    height: int
    width: int
    dtype: torch.dtype


def _keep(ctx: _Context, inputs: tuple[Any, ...], output: Tensor) -> None:
    maps, coordinates, ctx.backend = inputs
    ctx.height, ctx.width, ctx.dtype = *maps.shape[2:], maps.dtype
    ctx.save_for_backward(coordinates)


def _gradient(ctx: _Context, grad: Tensor) -> tuple[Tensor, None, None]:
    (coordinates,) = ctx.saved_tensors
    gradient = torch.ops.fastmtl.scatter_points(grad, coordinates, ctx.height, ctx.width, ctx.backend)
    return gradient.to(ctx.dtype), None, None


def _keep_backward(ctx: _Context, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.backend = inputs[-1]
    ctx.save_for_backward(inputs[1])


def _gradient_backward(ctx: _Context, grad: Tensor) -> tuple[Tensor | None, ...]:
    """Scattering is linear, and sampling is its transpose."""
    return torch.ops.fastmtl.sample_points(grad, *ctx.saved_tensors, ctx.backend), None, None, None, None


torch.library.register_autograd("fastmtl::sample_points", _gradient, setup_context=_keep, lib=_LIBRARY)
torch.library.register_autograd(
    "fastmtl::scatter_points", _gradient_backward, setup_context=_keep_backward, lib=_LIBRARY
)
