"""The small problems between the passes: torch's definitions, and the kernels that solve each in one launch."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from helpers.op_backends import device_of, dirty_memory, needs_triton
from torch import Tensor

from fastmtl.ops.core.constants import to_device
from fastmtl.ops.stain import small_problems
from fastmtl.reference.stain_conventions import CONVENTIONS

B = 37  # more than one program, and a part of one
DEVICE = torch.device(device_of("triton"))
pytestmark = [needs_triton, *dirty_memory]
by_convention = pytest.mark.parametrize("convention", CONVENTIONS.values(), ids=CONVENTIONS)


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def _moments(pixels: Tensor) -> Tensor:
    """Of densities [B, 3, N]."""
    products = torch.stack([(pixels[:, i] * pixels[:, j]).sum(1) for i in range(3) for j in range(i, 3)], 1)
    return torch.cat([torch.full_like(products[:, :1], pixels.shape[2]), pixels.sum(2), products], 1)


def _kernels():
    from fastmtl.kernels import stain_fit_triton

    return stain_fit_triton


@pytest.mark.parametrize("centred", [False, True])
def test_the_principal_plane(centred):
    moments = _moments(_random(B, 3, 50))
    moments[0] = _moments(torch.eye(3, dtype=torch.float64)[None].to(DEVICE))[0]  # all eigenvalues equal
    moments[1] = 0.0
    found, expected = (one.principal_plane(moments, centred) for one in (_kernels(), small_problems))
    torch.testing.assert_close(found[2:], expected[2:], rtol=0, atol=1e-12)
    identity = torch.eye(2, dtype=torch.float64, device=DEVICE).expand(B, 2, 2)
    torch.testing.assert_close(found @ found.mT, identity, rtol=0, atol=1e-12)


@pytest.mark.parametrize("nearest", [False, True])
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_quantiles(nearest, dtype):
    counts = torch.randint(0, 3, (4, 2, 256), dtype=dtype, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    counts[0], counts[1, 0], counts[1, 1] = 0, 0, 0
    counts[1, 0, 5], counts[1, 1, 255] = 1, 7
    ranks, reach = to_device((0.0, 0.01, 0.5, 0.99, 1.0), DEVICE), _random(4, 2).float()
    for maximum in (None, reach):
        found, expected = (one.quantiles(counts, ranks, nearest, maximum) for one in (_kernels(), small_problems))
        torch.testing.assert_close(found, expected, rtol=1e-14, atol=0)


@by_convention
def test_directions_and_solver(convention):
    places, planes = _random(B, 2) * 1024, torch.linalg.qr(_random(B, 3, 3).cpu())[0].mT[:, :2].contiguous().to(DEVICE)
    found, expected = (one.directions(places, planes, convention, 1024) for one in (_kernels(), small_problems))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-14)
    densities = convention.densities().float().to(DEVICE)
    parts = [one.solver(expected, densities, convention, 512) for one in (_kernels(), small_problems)]
    for ours, defined in zip(*parts, strict=True):
        torch.testing.assert_close(ours, defined, rtol=1e-6, atol=1e-6)


def test_what_counts_as_two_stains():
    vectors, maxima, moments = _random(B, 3, 2), _random(B, 2) / 50, _moments(_random(B, 3, 50))
    vectors[0, 0, 0], vectors[1], vectors[2, :, 1], vectors[3, 0, 1] = math.nan, 0.0, vectors[2, :, 0], math.inf
    moments[4] = _moments(torch.ones(1, 3, 50, dtype=torch.float64, device=DEVICE))[0]  # one colour
    maxima[:5] = 1.0
    for tissue in (None, moments):
        found, expected = (
            one.valid(tissue, vectors, maxima, (1e-3, 1e-2, 1e-3)) for one in (_kernels(), small_problems)
        )
        assert found.tolist() == expected.tolist()
        assert found[:5].tolist() == [False, False, False, False, tissue is None]
        assert found.any()


@by_convention
@pytest.mark.parametrize("only", [None, 0, 1])
def test_coefficients(convention, only):
    from fastmtl.kernels import stain_coefficients_triton

    light = math.log2(convention.light), convention.shift, -1 / math.log(2)
    constants = to_device((0.02, 0.03, 0.01, -2.0, -1.0, -3.0, *light), DEVICE)
    vectors, maxima, target = _random(B, 3, 2), _random(B, 2, seed=1) + 0.5, (_random(1, 3, 2, seed=2), _random(1, 2))
    colour, alpha, beta = _random(B, 3, 4).float(), _random(B, 2, seed=3), _random(B, 2, seed=4)
    pooled = vectors[:1].expand(B, 3, 2), maxima[:1].expand(B, 2)
    for source, plain in itertools.product(((vectors, maxima), pooled), (False, True)):
        extra = (None,) * 4 if plain else (colour, alpha, beta, alpha[:, 0] > 0.5)
        found, expected = (
            one.coefficients(source, target, convention, constants, *extra, only, 240.0)
            for one in (stain_coefficients_triton, small_problems)
        )
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
