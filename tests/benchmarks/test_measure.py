"""Time and memory of one run: what counts, and what does not get lost."""

import os
import statistics

import pytest
import torch

from fastmtl import ops
from fastmtl.benchmarks.measure import peak_memory, quantile, recording_cost

CPU = torch.device("cpu")


def test_the_output_counts_as_memory_though_ops_take_the_last_ones_again(capfd):
    x = torch.ones(1, 1, 2048, 1024, requires_grad=True)
    target = torch.zeros(1, 1, 2048, 1024, dtype=torch.uint8)

    def step():
        return torch.autograd.grad(ops.dice_bce_loss(x, target, backend="cpp"), x)

    step()
    torch.randn(10)  # freed while the profiler looks on, which it would warn of
    assert 2**23 <= peak_memory(step, CPU) < 2**24
    assert "CPUAllocator" not in capfd.readouterr().err


def test_what_a_contender_says_while_its_memory_is_looked_at_is_kept(capfd):
    def shout():
        os.write(2, b"Memory block of unknown size\nmine\n")
        raise MemoryError

    with pytest.raises(MemoryError):
        peak_memory(shout, CPU)
    os.write(2, b"after\n")
    assert capfd.readouterr().err == "mine\nafter\n"


@pytest.mark.parametrize("count", [1, 2, 5, 8])
def test_p50_is_the_median_and_the_others_lie_around_it(count):
    values = torch.rand(count).tolist()
    assert quantile(values, 0.5) == pytest.approx(statistics.median(values))
    assert min(values) <= quantile(values, 0.2) <= quantile(values, 0.5) <= quantile(values, 0.8) <= max(values)


def test_measuring_costs_far_less_than_a_percent_of_a_step():
    assert recording_cost(CPU) < 100e-6  # the demo's step takes over 50 ms even on fast processors
