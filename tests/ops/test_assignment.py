"""`ops.linear_assignment`: the least total cost, and the same queries on every backend for any costs."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from helpers.inputs import generator
from helpers.op_backends import BACKENDS, device_of, needs_cpp
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fastmtl import ops

INF, NAN = math.inf, math.nan


def match(cost: Tensor, num_targets: Tensor | None = None, backend: str = "auto") -> Tensor:
    device = device_of(backend)
    numbers = None if num_targets is None else num_targets.to(device)
    return ops.linear_assignment(cost.to(device), numbers, backend=backend).cpu()


def total(cost: Tensor, matches: Tensor) -> float:
    """Sum of cost [Q, T] over the matched pairs; each query and each target once."""
    targets = (matches >= 0).nonzero().flatten()
    queries = matches[targets]
    assert queries.unique().numel() == queries.numel()
    return cost.double()[queries, targets].sum().item()


def least(cost: Tensor) -> float:
    """Brute force over all assignments of the smaller set to the larger."""
    rows = (cost.mT if cost.shape[1] <= cost.shape[0] else cost).double().tolist()  # the smaller set is the rows
    choices = itertools.permutations(range(len(rows[0])), len(rows))
    return min(sum(row[column] for row, column in zip(rows, choice, strict=True)) for choice in choices)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("Q", "T"), [(1, 1), (1, 4), (4, 1), (3, 3), (6, 3), (3, 6)])
def test_equals_brute_force(Q, T, backend, poisoned_memory):
    cost = torch.randn(4, Q, T, generator=generator(Q * T))
    numbers = torch.tensor([T, T, 0, T // 2])
    matches = match(cost, numbers, backend)
    assert matches.dtype == torch.int64
    for sample, number in enumerate(numbers.tolist()):
        assert (matches[sample] >= 0).sum() == min(Q, number)
        assert (matches[sample, number:] == -1).all()
        if number:
            own = cost[sample, :, :number]
            assert math.isclose(total(own, matches[sample, :number]), least(own), rel_tol=1e-12, abs_tol=1e-12)


@needs_cpp
@settings(max_examples=40, deadline=None)
@given(
    Q=st.integers(1, 60),
    T=st.integers(1, 60),
    scale=st.sampled_from([1e-30, 1e-3, 1.0, 1e20]),
    offset=st.sampled_from([0.0, -1e3, 1e3]),
    rank=st.sampled_from([1, 100]),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16]),
    seed=st.integers(0, 10_000),
)
def test_costs_what_scipy_finds(Q, T, scale, offset, rank, dtype, seed):
    """Near-degenerate costs included: of rank one, where the greedy choice is worst."""
    scipy = pytest.importorskip("scipy.optimize", reason="scipy is not installed")
    source = generator(seed)
    factors = torch.rand(Q, rank, dtype=torch.float64, generator=source), torch.rand(rank, T, dtype=torch.float64)
    cost = ((factors[0] @ factors[1] + offset) * (scale if dtype.itemsize > 2 else 1)).to(dtype)
    queries, targets = scipy.linear_sum_assignment(cost.double().numpy())
    expected = cost.double()[queries, targets].sum().item()
    found = match(cost[None])[0]
    assert (found >= 0).sum() == min(Q, T)
    assert math.isclose(total(cost, found), expected, rel_tol=1e-12, abs_tol=1e-12 * cost.double().abs().max().item())


@pytest.mark.parametrize("backend", BACKENDS[1:])
@pytest.mark.parametrize("kind", ["ties", "random", "broken", "all alike"])
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # from NumPy, in Triton's interpreter
def test_the_same_queries_on_every_backend(kind, backend):
    for seed, (Q, T) in enumerate([(7, 4), (4, 7), (5, 5), (9, 2)]):
        source = generator(seed)
        cost = torch.randn(3, Q, T, generator=source)
        if kind == "ties":
            cost = torch.randint(3, cost.shape, generator=source).float()
        elif kind == "all alike":
            cost = torch.zeros_like(cost)
        elif kind == "broken":
            chance = torch.rand(cost.shape, generator=source)
            cost[chance < 0.2], cost[(chance > 0.2) & (chance < 0.4)], cost[chance > 0.9] = INF, NAN, -INF
        numbers = torch.tensor([T, T // 2, T - 1])
        assert torch.equal(match(cost, numbers, backend), match(cost, numbers, "reference"))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_infinite_costs_forbid_and_nan_is_a_last_resort(backend):
    forbidden = torch.tensor([[1.0, INF], [2.0, INF], [9.0, 5.0]])
    nothing_left = torch.full((3, 2), INF)
    last_resort = torch.tensor([[1.0, NAN], [NAN, NAN], [2.0, NAN]])
    rather_than_forbidden = torch.tensor([[NAN, INF], [INF, 1.0], [INF, INF]])
    both_want_the_first = torch.tensor([[1.0, 2.0], [INF, INF], [-INF, INF]])
    cost = torch.stack([forbidden, nothing_left, last_resort, rather_than_forbidden, both_want_the_first])
    found = match(cost, backend=backend)
    assert found[0].tolist() == [0, 2]
    assert found[1].tolist() == [-1, -1]
    assert found[2].tolist() in ([0, 1], [0, 2])
    assert found[3].tolist() == [0, 1]
    assert found[4].tolist() == [2, 0]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("value", [NAN, INF, -INF, 1e308])
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning")
def test_a_broken_sample_ends_and_leaves_the_others_alone(value, backend):
    cost = torch.randn(3, 6, 4, generator=generator(0), dtype=torch.float64)
    clean = match(cost, backend=backend)
    cost[1] = value
    found = match(cost, backend=backend)
    assert torch.equal(found[::2], clean[::2])
    expected = 0 if value > 0 else 4
    assert (found[1] >= 0).sum() == expected
    assert found[1].unique().numel() == max(expected, 1)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_padding_and_strides_do_not_matter(backend):
    cost = torch.randn(2, 6, 4, generator=generator(1))
    numbers = torch.tensor([2, 4])
    expected = match(cost, numbers, backend)
    dirty = cost.clone()
    dirty[0, :, 2:] = NAN
    assert torch.equal(match(dirty, numbers, backend), expected)
    wider = torch.full((2, 4, 12), NAN)
    wider[:, :, ::2] = cost.mT
    assert torch.equal(match(wider[:, :, ::2].mT, numbers, backend), expected)
    assert torch.equal(match(cost[:1].expand(2, -1, -1), backend=backend), match(cost[[0, 0]], backend=backend))


@pytest.mark.parametrize("shape", [(0, 3, 2), (2, 0, 3), (2, 3, 0)])
def test_nothing_to_match(shape):
    found = ops.linear_assignment(torch.zeros(shape))
    assert found.shape == (shape[0], shape[2])
    assert (found == -1).all()


@pytest.mark.parametrize(
    ("cost", "numbers", "message"),
    [
        (torch.zeros(3, 2), None, r"`cost` must be \[B, Q, T\]"),
        (torch.zeros(1, 3, 2, dtype=torch.int64), None, "`cost` must be float"),
        (torch.zeros(1, 3, 2), torch.zeros(1), r"`num_targets` must be int64 \[1\]"),
        (torch.zeros(1, 3, 2), torch.zeros(2, dtype=torch.int64), r"`num_targets` must be int64 \[1\]"),
        (torch.zeros(1, 3, 2), torch.zeros(1, dtype=torch.int64, device="meta"), "`num_targets` must be on cpu"),
    ],
)
def test_arguments_that_do_not_fit(cost, numbers, message):
    with pytest.raises(ValueError, match=message):
        ops.linear_assignment(cost, numbers)


@needs_cpp
@pytest.mark.parametrize("number", [-1, 3])
def test_a_number_outside_is_an_error_where_one_can_be_raised(number):
    with pytest.raises(ValueError, match=r"`num_targets` must lie in 0 to 2.*got \[\d, -?\d\]"):
        ops.linear_assignment(torch.zeros(2, 3, 2), torch.tensor([1, number]))
    brought_in = ops.linear_assignment(torch.zeros(2, 3, 2), torch.tensor([1, number]), backend="reference")
    assert (brought_in[1] >= 0).sum() == min(max(number, 0), 2)
