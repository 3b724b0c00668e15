"""One order of samples for any number of ranks: each batch of all ranks, where an epoch goes on, what is counted."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.encoded_tiles import ArraySlide, pictures_of
from helpers.tiles import TARGETS, make_loader, random_pixels, write_folder

from fastmtl.data import Dataset, RandomPatches, Region, Tile
from fastmtl.data.loading.samplers import Sampler

pytest.importorskip("nvidia.dali", reason="the loader needs DALI")

GLOBAL = 12  # samples in a batch of all ranks
ORDERS = {
    "shuffled": {},
    "balanced": {"balanced": True, "balance_power": 0.5},
    "slides": {"open_slides": 2},
    "slides, some": {"open_slides": 3, "per_slide": 7},
    "slides, balanced": {"per_slide": 9, "balanced": True},
    "pairs": {"pairs": ("case", "position")},
    "without one": {"drop_single": True},
    "full batches": {"drop_last": True},
}


def _tiles(counts=(13, 4, 17, 8, 9)) -> list[Tile]:
    return [
        Tile(
            f"{slide}-{place}",
            Region(Path(f"s{slide}"), 5 * place, 3 * place, 20, 20),
            None,
            place % 3 // 2,
            f"p{slide}",
            {"case": f"c{slide}", "position": float((place * 7) % count)},
        )
        for slide, count in enumerate(counts)
        for place in range(count)
    ]


def _samplers(ranks: int, size: int = GLOBAL, **options) -> list[Sampler]:
    plain = {"seed": 5, "shuffle": True, "balanced": False, "pairs": None, "open_slides": 0, "per_slide": 0}
    plain |= {"drop_last": False, "batch_size": size // ranks, "world_size": ranks}
    return [Sampler(**plain | options | {"rank": rank}) for rank in range(ranks)]


def _batches(samplers: list[Sampler], tiles: list[Tile], start: int = 0, epoch: int = 1) -> list[tuple[list, int]]:
    """Of all ranks together: the counted (tile, repeat), and the position after them."""
    ranks = [sampler.plans(tiles, epoch, start) for sampler in samplers]
    assert [len(plans) for plans in ranks] == [sampler.num_batches(tiles, start) for sampler in samplers]
    batches = []
    for parts in zip(*ranks, strict=True):
        assert len({len(part.samples) for part in parts}) == 1, "all ranks have as many samples"
        assert len({part.end for part in parts}) == 1
        counted = [
            row
            for part in parts
            for row in zip(part.samples[part.counted].tolist(), part.repeats[part.counted].tolist(), strict=True)
        ]
        batches.append((sorted(counted), parts[0].end))
    return batches


@pytest.mark.parametrize("order", ORDERS)
def test_batches_of_all_ranks_do_not_depend_on_their_number(order):
    tiles = _tiles()
    alone = _batches(_samplers(1, **ORDERS[order]), tiles)
    assert len(alone) >= 3
    for ranks in (2, 3, 6):
        assert _batches(_samplers(ranks, **ORDERS[order]), tiles) == alone


@pytest.mark.parametrize("order", ORDERS)
def test_an_epoch_goes_on_with_other_ranks(order):
    """4 -> 2 -> 3 ranks within one epoch; nothing twice, nothing left out."""
    tiles, options = _tiles(), ORDERS[order]
    whole = _batches(_samplers(1, **options), tiles)
    ranks = (3, 2, 1) if "pairs" in options else (4, 2, 3)  # pairs need an even batch on each rank
    first = _batches(_samplers(ranks[0], **options), tiles)[:2]
    second = _batches(_samplers(ranks[1], **options), tiles, first[-1][1])[:1]
    third = _batches(_samplers(ranks[2], **options), tiles, second[-1][1])
    assert first + second + third == whole


@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("size", [6, 18])
def test_an_epoch_goes_on_with_other_batches(ranks, size):
    tiles = _tiles()
    first = _batches(_samplers(2), tiles)[:2]
    rest = _batches(_samplers(ranks, size), tiles, first[-1][1])
    seen = [row for batch, _ in first + rest for row in batch]
    assert sorted(seen) == sorted((number, 0) for number in range(len(tiles)))
    assert [len(batch) for batch, _ in rest[:-1]] == [size] * (len(rest) - 1)


@pytest.mark.parametrize("ranks", [2, 3, 5, 9])
def test_every_tile_counts_once_on_more_ranks_than_fit(ranks):
    tiles = _tiles((2, 1, 1))
    batches = _batches(_samplers(ranks, 2 * ranks), tiles)
    assert Counter(number for batch, _ in batches for number, _ in batch) == Counter(range(4))


def test_each_rank_reads_few_of_the_open_slides():
    tiles = _tiles((40, 40, 40, 40))
    ranks = [sampler.plans(tiles, 0) for sampler in _samplers(4, 16, open_slides=4)]
    on_rank = [len({tiles[at].image.slide for at in plan.samples}) for plans in ranks for plan in plans]
    assert np.mean(on_rank) < 2.2  # of 4 samples from 4 slides; 2.7 if they fell at random


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return write_folder(tmp_path_factory.mktemp("tiles"), {"A": 9, "B": 14})


def _loaders(folder: Dataset, ranks: int, size: int = 6, **options) -> list:
    options = {"shuffle": True, "batch_size": size // ranks, "world_size": ranks} | options
    return [make_loader(folder.tiles, rank=rank, **options) for rank in range(ranks)]


def _rows(batches) -> dict:
    return {
        name: (batch.images[row], *(batch.targets[task][row] for task in TARGETS))
        for batch in batches
        for row, name in enumerate(batch.ids)
        if batch.has_label[row].any()
    }


def test_pixels_and_targets_do_not_depend_on_the_rank(folder: Dataset):
    """Augmentation too; copies in the last batch have no labels, and everything else has all of them."""
    (alone,) = _loaders(folder, 1)
    ranks = _loaders(folder, 3)
    for whole, *parts in zip(alone, *ranks, strict=True):
        found, wanted = _rows(parts), _rows([whole])
        assert found.keys() == wanted.keys()
        assert sum(int(part.has_label.all(1).sum()) for part in parts) == len(whole)
        for name, tensors in wanted.items():
            assert all(torch.equal(a, b) for a, b in zip(found[name], tensors, strict=True))
    assert len(parts[2]) == 2
    assert parts[2].has_label.tolist() == [[True, True], [False, False]]  # the last batch has 5 of 6


def test_a_loader_goes_on_on_other_ranks_and_with_other_batches(folder: Dataset):
    (alone,) = _loaders(folder, 1)
    expected = [batch.ids for batch in alone]
    first = _loaders(folder, 2)
    taken = [list(itertools.islice(iter(loader), 2)) for loader in first]
    states = [json.loads(json.dumps(loader.state_dict())) for loader in first]
    assert states[0] == states[1]
    assert (states[0]["batch"], states[0]["samples"]) == (2, 12)

    second = _loaders(folder, 3)
    for loader in second:
        loader.load_state_dict(states[0])
        assert len(loader) == len(expected) == 4
    rest = [list(loader) for loader in second]
    assert [sorted(_rows(parts)) for parts in zip(*rest, strict=True)] == [sorted(ids) for ids in expected[2:]]
    assert [loader.state_dict()["epoch"] for loader in second] == [1, 1, 1]
    assert {len(loader) for loader in second} == {4}

    (third,) = _loaders(folder, 1, size=4)
    third.load_state_dict(states[0])
    assert len(third) == 2 + 3  # 12 of 23 samples in 2 batches, then 11 in batches of 4
    again = next(iter(third)).ids
    assert third.state_dict()["samples"] == 16
    names = [name for batches in taken for batch in batches for name in batch.ids] + again
    names += [name for batch in third for name in batch.ids]
    assert sorted(names) == sorted(tile.id for tile in folder.tiles)


def test_pairs_refuse_other_batches_within_an_epoch_only():
    tiles, slides = _tiles((5, 4, 6)), {f"s{slide}": ArraySlide(random_pixels(slide, 100)) for slide in range(3)}

    def make(size: int):
        options = {"shuffle": True, "pairs": ("case", "position"), "pictures": pictures_of(slides)}
        return make_loader(tiles, targets={"grade": "label"}, batch_size=size, **options)

    loader = make(4)
    start = loader.state_dict()
    next(iter(loader))
    with pytest.raises(
        ValueError, match="4 samples in a batch of all ranks, this loader has 6, and the order of pairs"
    ):
        make(6).load_state_dict(loader.state_dict())
    make(6).load_state_dict(start)


def test_positions_of_earlier_versions(folder: Dataset):
    """They count batches; interleaved slides had another order on several ranks."""
    loader = _loaders(folder, 2)[0]
    next(iter(loader))
    old = {key: value for key, value in loader.state_dict().items() if key != "samples"}
    again = _loaders(folder, 2)[1]
    again.load_state_dict(old)
    assert again.state_dict()["samples"] == 6
    by_slide = _loaders(folder, 2, open_slides=2)[0]
    old |= {key: value for key, value in by_slide.state_dict().items() if key not in ("samples", "batch")}
    with pytest.raises(ValueError, match="on 2 ranks by an earlier version, within an epoch whose order has changed"):
        by_slide.load_state_dict(old)
    by_slide.load_state_dict(old | {"batch": 0})


def test_random_patches_are_the_same_on_all_ranks():
    slides = {f"s{slide}": ArraySlide(random_pixels(slide, 100)) for slide in range(3)}
    patches = RandomPatches(_tiles((6, 6, 6)), per_slide=5, shift=9, seed=4)

    def names(ranks: int) -> list[list[str]]:
        options = {"shuffle": True, "batch_size": 6 // ranks, "world_size": ranks, "pictures": pictures_of(slides)}
        made = [make_loader(patches, targets={"grade": "label"}, rank=rank, **options) for rank in range(ranks)]
        return [sorted(_ids(parts)) for parts in zip(*made, strict=True)]

    assert names(2) == names(1) == names(3)


def _ids(parts) -> set[str]:
    return {name for part in parts for name in part.ids}
