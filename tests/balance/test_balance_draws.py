"""The balancers' random numbers: a hash of seed, step and position."""

from __future__ import annotations

import pytest
import torch
from helpers.op_backends import device_of, needs_triton

from fastmtl.balance.draws import Draws


def _draws(seed: int, step: int, count: int, start: int = 0) -> torch.Tensor:
    draws = Draws(seed)
    for _ in range(step):
        draws.advance()
    return draws.uniform(count, torch.device("cpu"), start)


def test_the_numbers_of_a_seed_do_not_change():
    """Nor with the version of fastmtl: a repeated run, or one resumed from an older checkpoint, has the same draws."""
    assert (_draws(0, 0, 4) * 2**24).tolist() == [5903634, 12833708, 10533590, 11369056]
    assert (_draws(0, 1, 4, 2**33) * 2**24).tolist() == [4040280, 16211253, 5236935, 5324243]


def test_draws_are_uniform_and_of_seed_step_and_place():
    u = _draws(3, 7, 100_000)
    assert (u >= 0).all()
    assert (u < 1).all()
    counts = torch.histc(u, 50, 0, 1)
    assert ((counts - 2000).abs() < 5 * 2000**0.5).all()
    assert abs(torch.corrcoef(torch.stack([u[:-1], u[1:]]))[0, 1]) < 0.02
    assert torch.equal(u[5000:5100], _draws(3, 7, 100, 5000))
    for other in (_draws(4, 7, 100_000), _draws(3, 8, 100_000), _draws(3, 7, 100_000, 2**32 * 5)):
        assert abs(torch.corrcoef(torch.stack([u, other]))[0, 1]) < 0.02


@needs_triton
@pytest.mark.parametrize(("seed", "step", "start"), [(0, 0, 0), (5, 3, 7), (2**40 + 1, 2**33 + 1, 2**32 - 1000)])
def test_the_kernel_gives_the_same_bits(seed, step, start):
    from fastmtl.kernels import draws_triton

    device = device_of("triton")
    draws = Draws(seed)
    draws._step.fill_(step)
    hashed = (seed * 0x9E3779B1 + 0x27D4EB2F) & 0xFFFFFFFF
    for count in (1, 2500):
        found = draws_triton.uniform(draws._step.to(device), hashed, count, start)
        assert found.tolist() == draws.uniform(count, torch.device("cpu"), start).tolist()


def test_draws_of_following_steps_are_unrelated():
    """The first entry of a small order over four thousand steps, and the moments of normal numbers."""
    draws, first, normal = Draws(0), [], []
    for _ in range(4_000):
        first.append(draws.uniform(1, torch.device("cpu")))
        normal.append(draws.normal(1, torch.device("cpu")))
        draws.advance()
    u, x = torch.cat(first), torch.cat(normal)
    assert ((torch.histc(u, 20, 0, 1) - 200).abs() < 5 * 200**0.5).all()
    assert abs(torch.corrcoef(torch.stack([u[:-1], u[1:]]))[0, 1]) < 0.08
    assert abs(x.mean()) < 0.08
    assert abs(x.var() - 1) < 0.12
    assert abs(x.pow(4).mean() - 3) < 0.8
