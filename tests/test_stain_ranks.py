"""Statistics of stains added up over two gloo ranks are those of one process that saw every tile."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from _stain import tissue

from fastmtl import data

PARTS = {"uneven": (slice(0, 3), slice(3, 5)), "one rank without tiles": (slice(0, 0), slice(0, 5))}
RANK = "import sys; from test_stain_ranks import one_rank; one_rank(1, *sys.argv[1:])"


def _added(part: slice) -> data.StainStatistics:
    statistics = data.StainStatistics()
    for tile in tissue(number=5, size=32)[part]:
        statistics.update(tile)
    return statistics


def one_rank(rank: int, store: str, folder: str) -> None:
    """What a rank holds of each case after adding up."""
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    try:
        for name, parts in PARTS.items():
            _added(parts[rank]).all_reduce().save(Path(folder) / f"{name}-{rank}.npz")
    finally:
        dist.destroy_process_group()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """One process beside this one; starting a second would take longer than all the rest."""
    found = tmp_path_factory.mktemp("ranks")
    arguments = (str(found / "store"), str(found))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    other = subprocess.Popen([sys.executable, "-W", "ignore", "-c", RANK, *arguments], env=environment)
    one_rank(0, *arguments)
    assert other.wait(timeout=60) == 0
    return found


@pytest.mark.parametrize("case", PARTS)
def test_ranks_add_up_to_one_process(folder, case):
    alone = _added(slice(None))
    ranks = [data.StainStatistics.load(folder / f"{case}-{rank}.npz") for rank in range(2)]
    assert ranks[0] == ranks[1] == alone
    pair = ranks[1].estimate(min_tissue=50), alone.estimate(min_tissue=50)
    assert torch.equal(pair[0].vectors, pair[1].vectors)
    assert torch.equal(pair[0].maxima, pair[1].maxima)


def test_adding_up_needs_a_process_group():
    with pytest.raises(ValueError, match="init_process_group"):
        data.StainStatistics().all_reduce()
