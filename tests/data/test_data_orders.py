"""Pairs, interleaved slides, random patches: what is drawn, on which rank, and that it resumes."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.encoded_tiles import ArraySlide, Painted, pictures_of, region
from helpers.tiles import make_loader, random_pixels

from fastmtl.data import RandomPatches, Tile
from fastmtl.data.loading.order import drawn_by_class, interleaved, neighbours, pair_batches, slide_runs
from fastmtl.protocols import Target

pytest.importorskip("nvidia.dali", reason="the loader needs DALI")

TARGETS = {"views": Target("pair"), "grade": "label"}


def _slices(counts: list[int]) -> list[Tile]:
    """Cases of so many slices, positions in no order."""
    return [
        Tile(
            f"{case}-{place}",
            Painted.of(random_pixels(100 * case + place, 12)),
            None,
            place % 2,
            f"case {case}",
            {"case": f"case {case}", "position": float((place * 7) % count)},
        )
        for case, count in enumerate(counts)
        for place in range(count)
    ]


def _slide_tiles(counts: list[int]) -> list[Tile]:
    return [
        Tile(f"{slide}-{place}", region(f"s{slide}", 5 * place, 3 * place, 20), None, int(place % 10 == 0), f"p{slide}")
        for slide, count in enumerate(counts)
        for place in range(count)
    ]


def _slides(number: int) -> dict[str, ArraySlide]:
    return {f"s{slide}": ArraySlide(random_pixels(slide, 100)) for slide in range(number)}


def _same(first, second) -> bool:
    return (
        first.ids == second.ids
        and torch.equal(first.images, second.images)
        and all(torch.equal(first.targets[name], second.targets[name]) for name in first.targets)
    )


def _check_resumption(make, stop: int) -> None:
    whole = make()
    expected = [*whole, *whole]
    first = make()
    taken = list(itertools.islice(iter(first), stop))
    second = make()
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    rest = [*second, *second]
    assert len(taken) + len(rest) == len(expected)
    assert all(_same(a, b) for a, b in zip([*taken, *rest], expected, strict=True))


def test_pairs_are_neighbours_of_one_case_and_a_case_comes_once_a_batch():
    tiles = _slices([9, 2, 5, 1, 6, 4])
    loader = make_loader(tiles, targets=TARGETS, shuffle=True, pairs=("case", "position"), batch_size=6)
    by_id = {tile.id: tile for tile in tiles}
    seen: Counter[str] = Counter()
    sizes = []
    for batch in loader:
        partner = batch.targets["views"].tolist()
        assert partner == [row ^ 1 for row in range(len(batch))]
        assert batch.has_label[:, 0].all()
        drawn = [by_id[name] for name in batch.ids]
        for row, other in enumerate(partner):
            assert drawn[row].group == drawn[other].group
            assert abs(drawn[row].values["position"] - drawn[other].values["position"]) == 1
        assert max(Counter(tile.group for tile in drawn).values()) == 2
        seen.update(tile.group for tile in drawn)
        sizes.append(len(batch))
    assert seen == {"case 0": 8, "case 1": 2, "case 2": 4, "case 4": 6, "case 5": 4}
    assert sizes == sorted(sizes, reverse=True)
    assert len(loader) == len(sizes) == len(list(loader))


def test_a_case_comes_once_in_a_batch_of_all_ranks():
    tiles = [tile.values for tile in _slices([9, 2, 5, 1, 6, 4, 4])]
    cases = neighbours([tile["case"] for tile in tiles], [tile["position"] for tile in tiles])
    options = {"seed": 1, "pairs": 4, "apart": range(len(cases))}
    batches = pair_batches(cases, epoch=0, drop_last=False, **options)
    case_of = {tile: number for number, case in enumerate(cases) for tile in case.flatten().tolist()}
    for batch in batches:
        assert len({case_of[tile] for tile in batch[:, 0].tolist()}) == len(batch) <= 4
    for epoch in range(5):
        others = pair_batches(cases, epoch=epoch, drop_last=False, **options)
        assert [len(batch) for batch in others] == [len(batch) for batch in batches]
    full = pair_batches(cases, epoch=0, drop_last=True, **options)
    assert {len(batch) for batch in full} == {4}
    drawn = {
        tuple(pair)
        for e in range(60)
        for b in pair_batches(cases, epoch=e, drop_last=False, **options)
        for pair in b.tolist()
    }
    assert drawn == {tuple(pair) for case in cases for pair in case.tolist()}  # each in the long run


def test_pairs_of_a_patients_scans_come_in_different_batches():
    tiles = [
        replace(tile, values={**tile.values, "patient": float(int(tile.group[-1]) // 2)})
        for tile in _slices([8, 6, 5, 4, 2])
    ]
    by_id = {tile.id: tile for tile in tiles}
    pairs = ("case", "position", "patient")
    loader = make_loader(tiles, targets=TARGETS, shuffle=True, pairs=pairs, batch_size=6)
    seen: Counter[str] = Counter()
    for batch in loader:
        drawn = [by_id[name] for name in batch.ids]
        assert max(Counter(tile.values["patient"] for tile in drawn).values()) == 2
        assert all(a.group == b.group for a, b in zip(drawn[::2], drawn[1::2], strict=True))
        seen.update(tile.group for tile in drawn)
    assert seen == {"case 0": 8, "case 1": 6, "case 2": 4, "case 3": 4, "case 4": 2}

    tiles[0] = replace(tiles[0], values={**tiles[0].values, "patient": 9.0})
    with pytest.raises(
        ValueError, match=r"keeps 'patient' apart, and case 'case 0' has several of it, such as 0.0 and 9.0"
    ):
        make_loader(tiles, targets=TARGETS, shuffle=True, pairs=pairs, batch_size=6)


def test_slides_take_turns():
    keys = [f"s{number}" for number, count in enumerate([30, 5, 40, 25, 20]) for _ in range(count)]
    runs = slide_runs(keys, None, seed=2, epoch=0, per_slide=20)
    assert sorted(len(run) for run in runs) == [5, 20, 20, 20, 20]
    drawn = interleaved(runs, seed=2, epoch=0, open_slides=2)
    assert sorted(drawn) == sorted(np.concatenate(runs))
    slides = [keys[tile] for tile in drawn.tolist()]
    spans = [(slides.index(s), len(slides) - slides[::-1].index(s)) for s in set(slides)]
    assert max(sum(a <= at < b for a, b in spans) for at in range(len(slides))) == 2
    assert sum(a != b for a, b in itertools.pairwise(slides)) > 20
    assert not np.array_equal(runs[0], slide_runs(keys, None, seed=2, epoch=1, per_slide=20)[0])


@pytest.mark.parametrize(("power", "share"), [(1.0, 0.5), (0.5, 5**0.5 / (95**0.5 + 5**0.5)), (0.0, 0.05)])
def test_labels_are_drawn_by_class(power, share):
    labels = np.array([0] * 95 + [1] * 5)
    drawn = labels[drawn_by_class(labels.tolist(), 4000, np.random.Philox(3), power)]
    assert drawn.mean() == pytest.approx(share, abs=0.025)


@pytest.mark.parametrize(
    "options",
    [{"open_slides": 2}, {"per_slide": 4, "open_slides": 3}, {"per_slide": 6, "balanced": True}],
    ids=str,
)
def test_epochs_by_slide_have_one_length_and_resume(options):
    tiles, slides = _slide_tiles([8, 3, 9, 7]), _slides(4)

    def make(**more):
        return make_loader(tiles, targets=TARGETS, shuffle=True, pictures=pictures_of(slides), **{**options, **more})

    loader = make()
    epochs = [[name for batch in loader for name in batch.ids] for _ in range(2)]
    assert [len(epoch) for epoch in epochs] == [sum(min(n, options.get("per_slide", n)) for n in (8, 3, 9, 7))] * 2
    assert epochs[0] != epochs[1]
    ranks = [make(rank=rank, world_size=2) for rank in range(2)]
    assert len(ranks[0]) == len(ranks[1])
    assert [len(b) for b in ranks[0]] == [len(b) for b in ranks[1]]
    if not options.get("balanced"):
        together = {name for rank in ranks for name in itertools.chain(*(batch.ids for batch in rank))}
        assert len(together) == len(epochs[0])
    _check_resumption(make, 3)


def test_pairs_resume():
    tiles = _slices([5, 4, 6])
    _check_resumption(
        lambda: make_loader(tiles, targets=TARGETS, shuffle=True, pairs=("case", "position"), batch_size=4), 2
    )


def test_random_patches_are_new_each_epoch_and_resume():
    grid, slides = _slide_tiles([6, 6]), _slides(2)
    marked = [replace(tile, mask=replace(tile.image, slide=tile.image.slide.with_name("s1"))) for tile in grid]
    patches = RandomPatches(marked, per_slide=5, shift=9, seed=4)
    assert len(patches) == 10
    assert patches.tiles_of(1) == patches.tiles_of(1)
    assert {tile.id for tile in patches.tiles_of(0)}.isdisjoint(tile.id for tile in patches.tiles_of(1))
    places = {tile.id: tile.image for tile in grid}
    for tile in patches.tiles_of(0):
        place = places[tile.id.split("@")[0]]
        assert max(abs(tile.image.x - place.x), abs(tile.image.y - place.y)) <= 9
        assert (tile.mask.x, tile.mask.y) == (tile.image.x, tile.image.y)

    def make():
        targets = {"grade": "label", "gland": "mask"}
        return make_loader(patches, targets=targets, shuffle=True, open_slides=2, pictures=pictures_of(slides))

    assert [len(batch) for batch in make()] == [4, 4, 2]
    _check_resumption(make, 2)
    rare = RandomPatches(grid, per_slide=400, shift=0, balanced=True).tiles_of(0)
    assert 0.4 < np.mean([tile.label for tile in rare]) < 0.6
    with pytest.raises(ValueError, match="cannot be shifted"):
        RandomPatches([replace(grid[0], mask=Painted.of(random_pixels(0, 4)))], per_slide=1, shift=1).tiles_of(0)
    with pytest.raises(ValueError, match="regions"):
        RandomPatches(_slices([2]), per_slide=1, shift=1)


def test_orders_that_make_no_sense_are_refused():
    tiles = _slices([4, 3])
    for options, word in (
        ({"pairs": ("case", "position")}, "pairs"),
        ({"pairs": ("case", "position"), "shuffle": True, "batch_size": 3}, "even"),
        ({"pairs": ("case", "nowhere"), "shuffle": True}, "nowhere"),
        ({"pairs": ("case", "position", "nowhere"), "shuffle": True}, "nowhere"),
        ({"pairs": ("case",), "shuffle": True}, r"\(case, position, apart\)"),
        ({"pairs": ("case", "position"), "shuffle": True, "balanced": True}, "pairs"),
        ({"open_slides": 2}, "open_slides"),
        ({"per_slide": -1, "shuffle": True}, "per_slide"),
        ({"balanced": "nowhere", "shuffle": True}, "balanced"),
        ({"max_damaged": 1.5}, "max_damaged"),
    ):
        with pytest.raises(ValueError, match=word):
            make_loader(tiles, targets=TARGETS, **options)
