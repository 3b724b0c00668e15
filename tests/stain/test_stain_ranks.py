"""Stains over two gloo ranks are those of one process that saw every tile: statistics that are added up, and a run's
slides, of which each rank looks at its share."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from helpers.stain import tissue
from helpers.tiles import write_image

from fastmtl import data
from fastmtl.builders import stains as staining
from fastmtl.config import load_recipe
from fastmtl.distributed import World

PARTS = {"uneven": (slice(0, 3), slice(3, 5)), "one rank without tiles": (slice(0, 0), slice(0, 5))}
RANK = "import sys; from test_stain_ranks import one_rank; one_rank(1, *sys.argv[1:])"


def _added(part: slice) -> data.StainStatistics:
    statistics = data.StainStatistics()
    for tile in tissue(number=5, size=32)[part]:
        statistics.update(tile)
    return statistics


class Counted(data.StainNormalizer):
    """It knows how many slides it looked at."""

    looks = 0

    def fit_slide(self, key, tiles):
        self.looks += 1
        return super().fit_slide(key, tiles)


def _fitted(folder: Path, world: World) -> Counted:
    recipe = load_recipe("ebhi_joint_unet", {"data": {"stain": {"method": "macenko", "target": "mosaic"}}})
    normalizer = Counted()
    normalizer.target = None
    tiles = data.read_tile_folder(folder / "tiles").tiles
    for part in (tiles[:7], tiles):
        staining.fit_slides(normalizer, part, recipe, world)
    return normalizer


def one_rank(rank: int, store: str, folder: str) -> None:
    """What a rank holds of each case after adding up."""
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    try:
        for name, parts in PARTS.items():
            _added(parts[rank]).all_reduce().save(Path(folder) / f"{name}-{rank}.npz")
        fitted = _fitted(Path(folder), World(rank, 2))
        fitted.save(Path(folder) / f"fitted-{rank}.npz")
        (Path(folder) / f"looks-{rank}").write_text(str(fitted.looks))
    finally:
        dist.destroy_process_group()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """One process beside this one; starting a second would take longer than all the rest."""
    found = tmp_path_factory.mktemp("ranks")
    for number, tile in enumerate(tissue(number=9, size=32)):
        write_image(found / "tiles" / "a" / "image" / f"P{number}-0.png", tile.permute(1, 2, 0).numpy())
    write_image(found / "tiles" / "a" / "image" / "P9-0.png", np.full((32, 32, 3), 245, np.uint8))
    arguments = (str(found / "store"), str(found))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    other = subprocess.Popen([sys.executable, "-W", "ignore", "-c", RANK, *arguments], env=environment)
    one_rank(0, *arguments)
    assert other.wait(timeout=60) == 0
    return found


@pytest.mark.long
@pytest.mark.parametrize("case", PARTS)
def test_ranks_add_up_to_one_process(folder, case):
    alone = _added(slice(None))
    ranks = [data.StainStatistics.load(folder / f"{case}-{rank}.npz") for rank in range(2)]
    assert ranks[0] == ranks[1] == alone
    pair = ranks[1].estimate(min_tissue=50), alone.estimate(min_tissue=50)
    assert torch.equal(pair[0].vectors, pair[1].vectors)
    assert torch.equal(pair[0].maxima, pair[1].maxima)


def test_ranks_share_the_slides_and_know_all_of_them(folder):
    alone = _fitted(folder, World())
    assert list(alone.slides) == [f"P{number}" for number in range(9)]
    for rank, looks in ((0, 6), (1, 4)):  # of 7 slides, then of 3
        found = data.StainNormalizer.load(folder / f"fitted-{rank}.npz")
        assert list(found.slides) == list(alone.slides)
        for key, stains in [(None, alone.target), *alone.slides.items()]:
            own = found.target if key is None else found.slides[key]
            assert torch.equal(own.vectors, stains.vectors)
            assert torch.equal(own.maxima, stains.maxima)
        assert int((folder / f"looks-{rank}").read_text()) == looks
    assert alone.looks == 10


def test_adding_up_needs_a_process_group():
    with pytest.raises(ValueError, match="init_process_group"):
        data.StainStatistics().all_reduce()
