"""`ops.sample_points` and `ops.sample_uncertain_points`, from which Mask2Former's loss is computed."""

from __future__ import annotations

import math

import pytest
import torch
from helpers.inputs import generator
from helpers.op_backends import BACKENDS, device_of, needs_cpp
from helpers.parity import transformers_mask2former
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import grid_sample

from fastmtl import ops
from fastmtl.reference import points as reference

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.uint8, torch.bool)


def inputs(B=2, C=3, H=7, W=5, P=40, dtype=torch.float32, seed=0) -> tuple[Tensor, Tensor]:
    """Maps, and points of which some are outside of them."""
    source = generator(seed)
    maps = torch.randn(B, C, H, W, generator=source) * 3
    maps = (maps > 0).to(dtype) if dtype in (torch.uint8, torch.bool) else maps.to(dtype)
    return maps, torch.rand(B, P, 2, generator=source) * 1.4 - 0.2


def plain(maps: Tensor, coordinates: Tensor) -> Tensor:
    grid = (2 * coordinates - 1).to(maps.dtype).unsqueeze(2)
    return grid_sample(maps, grid, align_corners=False).squeeze(3)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_samples_equal_grid_sample(dtype, backend, poisoned_memory):
    maps, coordinates = inputs(dtype=dtype)
    device = device_of(backend)
    found = ops.sample_points(maps.to(device), coordinates.to(device), backend=backend).cpu()
    assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(found.double(), plain(maps.double(), coordinates.double()), rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("backend", BACKENDS[1:])
def test_float64_is_kept_on_either_side(backend):
    maps, coordinates = inputs()
    exact = plain(maps.double(), coordinates.double())
    for pair in ((maps.double(), coordinates.double()), (maps, coordinates.double())):
        torch.testing.assert_close(ops.sample_points(*pair, backend=backend), exact, rtol=1e-12, atol=1e-12)


@needs_cpp
@settings(max_examples=30, deadline=None)
@given(
    B=st.integers(1, 3), C=st.integers(1, 4), H=st.integers(1, 20), W=st.integers(1, 20), P=st.integers(0, 600),
    dtype=st.sampled_from(DTYPES), layout=st.sampled_from(["contiguous", "channels_last", "expanded", "cropped"]),
    seed=st.integers(0, 1000),
)  # fmt: skip
def test_shapes_and_layouts(B, C, H, W, P, dtype, layout, seed):
    maps, coordinates = inputs(B, C, H, W, P, dtype, seed)
    if layout == "channels_last":
        maps = maps.to(memory_format=torch.channels_last)
    elif layout == "expanded":
        maps = maps[:, :1].expand(-1, C, -1, -1)
    elif layout == "cropped":
        maps = torch.cat([maps, maps], 3)[..., :W]
    dtype = torch.float64 if dtype == torch.float64 else torch.float32
    expected = reference.sample_points(maps, coordinates.to(dtype))
    torch.testing.assert_close(ops.sample_points(maps, coordinates), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_gradient_is_the_transpose(dtype, backend, poisoned_memory):
    maps, coordinates = (tensor.to(device_of(backend)) for tensor in inputs(dtype=dtype, P=700))
    maps.requires_grad_()
    exact = maps.detach().double().requires_grad_()
    found = ops.sample_points(maps, coordinates, backend=backend)
    grad = torch.randn(found.shape, generator=generator(1)).to(found.device)
    (gradient,) = torch.autograd.grad(found, maps, grad)
    (truth,) = torch.autograd.grad(plain(exact, coordinates.double()), exact, grad.double())
    assert gradient.dtype == dtype
    tolerance = 1e-5 if dtype == torch.float32 else 2**-8
    assert (gradient.double() - truth).abs().max() <= tolerance * truth.abs().max()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # from NumPy, in Triton's interpreter
def test_what_is_not_finite_stays_where_it_is(backend):
    """A pixel affects only points in its neighbourhood, not exact hits beside it, and a NaN point is outside."""
    maps = torch.zeros(1, 1, 4, 4)
    maps[0, 0, 1, 1] = math.inf
    on_pixels = (torch.tensor([[1.5, 1.5], [2.5, 1.5], [0.5, 0.5], [1.0, 1.0]]) / 4)[None]
    device = device_of(backend)
    found = ops.sample_points(maps.to(device), on_pixels.to(device), backend=backend).cpu()
    assert found.flatten().tolist() == [math.inf, 0.0, 0.0, math.inf]
    nowhere = torch.tensor([[[math.nan, 0.5], [math.inf, 0.5], [0.5, -1e30], [0.5, 1e30]]])
    found = ops.sample_points(torch.ones(1, 1, 4, 4).to(device), nowhere.to(device), backend=backend)
    assert found.count_nonzero() == 0


def test_uncertain_points_are_those_of_transformers(monkeypatch):
    modeling = transformers_mask2former()
    maps = torch.randn(4, 1, 9, 9, generator=generator(0))
    criterion = object.__new__(modeling.Mask2FormerLoss)
    torch.manual_seed(5)
    expected = criterion.sample_points_using_uncertainty(maps, lambda logits: -logits.abs(), 50, 3, 0.75)
    torch.manual_seed(5)
    found = ops.sample_uncertain_points(maps, 50)
    assert found.shape == expected.shape
    for a, b in ((found[:, :37], expected[:, :37]), (found[:, 37:], expected[:, 37:])):
        assert torch.equal(
            a.sum(2).sort(1).values, b.sum(2).sort(1).values
        )  # compared as sets, because the order has no meaning


@pytest.mark.parametrize("ratio", [0.0, 0.5, 1.0])
def test_uncertain_points_by_ratio(ratio):
    maps = torch.linspace(-9, 9, 64).expand(2, 1, 64, 64)
    points = ops.sample_uncertain_points(maps, 200, importance_sample_ratio=ratio, generator=generator(0))
    assert points.shape == (2, 200, 2)
    near = ((points[..., 0] - 0.5).abs() < 1 / 5).double().mean().item()
    assert abs(near - (ratio + (1 - ratio) * 0.4)) < 0.1
    again = ops.sample_uncertain_points(maps, 200, importance_sample_ratio=ratio, generator=generator(0))
    assert torch.equal(points, again)


_MAPS, _AT = torch.zeros(2, 1, 4, 4), torch.zeros(2, 3, 2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ops.sample_points(_MAPS[0], _AT), r"`maps` must be \[B, C, H, W\]"),
        (lambda: ops.sample_points(_MAPS, _AT[:1]), r"`coordinates` \[B, P, 2\]"),
        (lambda: ops.sample_points(_MAPS.long(), _AT), "`maps` must be bool, uint8"),
        (lambda: ops.sample_points(_MAPS, _AT.long()), "`coordinates` must be float"),
        (lambda: ops.sample_points(_MAPS, _AT.clone().requires_grad_()), "`coordinates` gets no gradient"),
        (lambda: ops.sample_points(_MAPS[:, :, :0], _AT), "at least one pixel"),
        (lambda: ops.sample_points(_MAPS, _AT.to("meta")), "`coordinates` must be on cpu"),
        (lambda: ops.sample_uncertain_points(_MAPS.expand(2, 2, 4, 4), 3), r"`maps` must be \[R, 1, H, W\]"),
        (lambda: ops.sample_uncertain_points(_MAPS, 0), "`num_points`"),
        (lambda: ops.sample_uncertain_points(_MAPS, 3, oversample_ratio=0.9), "`oversample_ratio`"),
        (lambda: ops.sample_uncertain_points(_MAPS, 3, importance_sample_ratio=2.0), "`importance_sample_ratio`"),
    ],
)
def test_arguments_that_do_not_fit(call, message):
    with pytest.raises(ValueError, match=message):
        call()
