"""Batches from data sets side by side: their shares, their passes, the parts of the ranks, and positions."""

import itertools
import json

import numpy as np
import pytest
from helpers.tiles import write_folder

from fastmtl.data import Tile, TileLoader
from fastmtl.data.loading.samplers import Sampler
from fastmtl.data.loading.set_order import set_samples
from fastmtl.data.loading.tile_sets import TileSets, shares_of

SIZES = (3, 10, 37)
SHARES = (0.3, 0.2, 0.5)
SETS = np.repeat(np.arange(3), SIZES)


def _epochs(number, *, seed=5, batch=4, mixed=False):
    return [set_samples(SETS, _sets(mixed), seed=seed, epoch=epoch, batch=batch) for epoch in range(number)]


def _sets(mixed=False):
    return TileSets(("a", "b", "c"), (("x",), ("y",), ("x", "y")), SHARES, mixed)


def _tiles():
    return [Tile(f"{label}/{n}", None, None, int(label), "p") for n, label in enumerate(SETS)]


def _sampler(batch=4, *, shuffle=True, mixed=False, rank=0, ranks=1, seed=5):
    options = {"balanced": False, "pairs": None, "open_slides": 0, "per_slide": 0, "drop_last": False}
    return Sampler(batch, seed, shuffle, rank=rank, world_size=ranks, sets=_sets(mixed), **options)


def test_a_batch_is_of_one_set_and_all_batches_are_full():
    for samples in _epochs(5):
        assert len(samples) == 52  # ceil(50 / 4) batches of 4
        assert all(len(set(batch)) == 1 for batch in SETS[samples].reshape(-1, 4))


def test_mixed_batches_have_all_sets_and_an_epoch_has_as_many_samples_as_tiles():
    several = [len(set(SETS[batch])) for samples in _epochs(5, mixed=True) for batch in np.array_split(samples, 12)]
    assert np.mean(several) > 2
    assert all(len(samples) == 50 for samples in _epochs(5, mixed=True))


@pytest.mark.parametrize("mixed", [False, True])
def test_every_set_is_drawn_by_its_share(mixed):
    unit = 1 if mixed else 4
    draws = np.array([np.bincount(SETS[samples], minlength=3) / unit for samples in _epochs(200, mixed=mixed)])
    wanted = np.array(SHARES) * draws.sum(1, keepdims=True)
    assert (abs(draws - wanted) < 1).all()  # in each epoch to within a draw
    assert abs(draws.mean(0) - wanted[0]).max() < 0.1  # and without bias, also for a set that few draws fall on


@pytest.mark.parametrize("mixed", [False, True])
def test_a_set_is_passed_through_without_replacement_over_the_ends_of_epochs(mixed):
    drawn = np.concatenate(_epochs(40, mixed=mixed))
    for one, size in enumerate(SIZES):
        own = drawn[SETS[drawn] == one]
        passes = own[: len(own) // size * size].reshape(-1, size)
        assert len(passes) > 20
        assert (np.sort(passes) == np.flatnonzero(one == SETS)).all()
        assert len({tuple(one) for one in passes}) > 1 + (size > 3) * 15  # each in an order of its own


def test_the_order_follows_from_seed_and_epoch():
    assert all(np.array_equal(a, b) for a, b in zip(_epochs(3), _epochs(3), strict=True))
    assert not np.array_equal(_epochs(1)[0], _epochs(1, seed=6)[0])
    assert not np.array_equal(*_epochs(2))


@pytest.mark.parametrize("mixed", [False, True])
def test_ranks_share_the_batches_of_one_process(mixed):
    tiles = _tiles()
    whole = _sampler(4, mixed=mixed).plans(tiles, 3)
    parts = [_sampler(2, mixed=mixed, rank=rank, ranks=2).plans(tiles, 3) for rank in range(2)]
    for plan, *own in zip(whole, *parts, strict=True):
        samples = np.concatenate([one.samples[one.counted] for one in own])
        assert sorted(samples) == sorted(plan.samples)
        if not mixed:
            assert len(set(SETS[samples])) == 1


@pytest.mark.parametrize("mixed", [False, True])
def test_the_rest_of_an_epoch_is_the_same(mixed):
    sampler, tiles = _sampler(mixed=mixed), _tiles()
    whole, rest = sampler.plans(tiles, 2), sampler.plans(tiles, 2, 20)
    assert len(rest) == len(whole) - 5 == sampler.num_batches(tiles, 20)
    for a, b in zip(whole[5:], rest, strict=True):
        assert all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


def test_evaluation_reads_every_tile_once_in_batches_of_one_set():
    tiles = _tiles()
    for ranks in (1, 2):
        parts = [_sampler(4, shuffle=False, rank=rank, ranks=ranks) for rank in range(ranks)]
        plans = [own.plans(tiles, 0) for own in parts]
        assert [own.num_batches(tiles) for own in parts] == list(map(len, plans))
        drawn = np.concatenate([plan.samples for own in plans for plan in own])
        assert sorted(drawn) == list(range(50))
        assert all(len(set(SETS[plan.samples])) == 1 for own in plans for plan in own)


def test_shares_follow_weights_or_the_sizes_and_a_temperature():
    sizes = {"a": 100, "b": 400}
    assert shares_of(sizes, {"a": 1.0, "b": 1.0}) == {"a": 0.5, "b": 0.5}
    assert shares_of(sizes, {}) == {"a": 0.2, "b": 0.8}
    assert shares_of(sizes, {}, 2.0)["b"] == pytest.approx(2 / 3)
    assert shares_of(sizes, {}, 1e9)["b"] == pytest.approx(0.5)
    assert shares_of(sizes, {"a": 1e308, "b": 1e308}) == {"a": 0.5, "b": 0.5}
    assert shares_of(sizes, {}, 1e-9) == {"a": 0.0, "b": 1.0}


def _loader(root, *, mixed=False, **options):
    folder = write_folder(root, {"colon": 6, "lung": 9}, size=16)  # a class is a set here
    sets = TileSets(("colon", "lung"), (("gland",), ("gland", "grade")), (0.5, 0.5), mixed)
    defaults = {"size": 16, "batch_size": 4, "shuffle": True, "sets": sets, "seed": 3}
    return TileLoader(folder.tiles, targets={"gland": "mask", "grade": "label"}, **{**defaults, **options})


def test_a_batch_names_its_set_and_tasks_and_has_no_labels_for_others(tmp_path):
    for shuffle in (True, False):
        with _loader(tmp_path, shuffle=shuffle) as loader:
            batches = list(loader)
        assert {batch.set: batch.tasks for batch in batches} == {"colon": ("gland",), "lung": ("gland", "grade")}
        for batch in batches:
            assert all(name.startswith(batch.set) for name in batch.ids)
            assert batch.has_label[:, 0].all()
            assert batch.has_label[:, 1].all() == batch.has_label[:, 1].any() == (batch.set == "lung")
            assert batch.targets["gland"].any()


def test_mixed_batches_mask_the_labels_of_each_tile(tmp_path):
    with _loader(tmp_path, mixed=True) as loader:
        batches = list(loader)
    assert all(batch.set == "" and batch.tasks is None for batch in batches)
    for batch in batches:
        assert batch.has_label[:, 1].tolist() == [name.startswith("lung") for name in batch.ids]


def test_a_mask_of_a_set_without_a_task_for_it_is_not_read(tmp_path):
    folder = write_folder(tmp_path, {"colon": 2, "lung": 2}, size=16)
    for tile in folder.tiles:
        if tile.label == 0:
            tile.mask.write_bytes(b"no image")
    sets = TileSets(("colon", "lung"), (("grade",), ("gland",)), (0.5, 0.5))
    targets = {"gland": "mask", "grade": "label"}
    with TileLoader(folder.tiles, targets=targets, size=16, batch_size=2, sets=sets) as loader:
        assert [batch.has_label.tolist() for batch in loader] == [[[False, True]] * 2, [[True, False]] * 2]


def test_a_position_continues_in_the_middle_of_an_epoch(tmp_path):
    with _loader(tmp_path) as loader:
        list(loader)
        first = list(itertools.islice(loader, 2))
        state = loader.state_dict()
        rest = [batch.ids for batch in loader]
    assert len(first) == 2
    assert state["sets"]["names"] == ["colon", "lung"]
    with _loader(tmp_path) as again:
        again.load_state_dict(state)
        assert [batch.ids for batch in again] == rest


def test_a_position_is_refused_with_other_sets_or_batches_within_an_epoch(tmp_path):
    with _loader(tmp_path) as loader:
        list(itertools.islice(loader, 1))
        state = loader.state_dict()
    with _loader(tmp_path, batch_size=2) as other, pytest.raises(ValueError, match="the order of sets depends on it"):
        other.load_state_dict(state)
    with _loader(tmp_path, mixed=True) as other, pytest.raises(ValueError, match="sets="):
        other.load_state_dict(state)
    with _loader(tmp_path, sets=None) as other:
        assert "sets" not in other.state_dict()  # as in earlier versions


def test_sets_are_refused_with_other_orders_and_without_numbers(tmp_path):
    for option in ({"balanced": True}, {"per_slide": 1}, {"open_slides": 1}, {"drop_last": True}):
        with pytest.raises(ValueError, match="`sets` cannot be combined"):
            _loader(tmp_path, **option)
    with pytest.raises(ValueError, match=r"number of its set as label of each tile; lung/\S+ has 1"):
        _loader(tmp_path, sets=TileSets(("colon",), (("gland",),), (1.0,)))


def test_a_set_continues_its_passes_when_shares_change(tmp_path):
    """Each set's order is that of constant shares; only how much of it an epoch has changes."""
    with _loader(tmp_path) as loader, _loader(tmp_path) as moved:
        wanted, found = {"colon": [], "lung": []}, {"colon": [], "lung": []}
        for epoch in range(6):
            for batch in loader:
                wanted[batch.set] += batch.ids
            if epoch:
                moved.set_shares((0.75, 0.25) if epoch % 2 else (0.25, 0.75))
            assert len(moved) == 4
            for batch in moved:
                found[batch.set] += batch.ids
    assert len(found["colon"]) != len(wanted["colon"])
    for name, ids in found.items():
        both = min(len(ids), len(wanted[name]))
        assert ids[:both] == wanted[name][:both]


def test_a_position_with_changed_shares_continues_in_the_middle_of_an_epoch(tmp_path):
    with _loader(tmp_path) as loader:
        list(loader)
        loader.set_shares((0.3, 0.7))
        list(loader)
        loader.set_shares((0.6, 0.4))
        before, first = loader.state_dict(), next(iter(loader)).ids
        state = loader.state_dict()
        rest = [[batch.ids for batch in loader] for _ in range(2)]
    assert state["sets"]["shares"] == [0.5, 0.5]  # what the position belongs to
    with _loader(tmp_path) as again:
        again.load_state_dict(json.loads(json.dumps(state)))
        assert again.shares == (0.6, 0.4)
        assert [[batch.ids for batch in again] for _ in range(2)] == rest
        again.load_state_dict(before)
        assert next(iter(again)).ids == first
        with _loader(tmp_path) as new:
            again.load_state_dict(new.state_dict())  # back to the first epoch
        assert again.shares == (0.5, 0.5)


def test_shares_are_refused_within_an_epoch_and_if_they_are_none(tmp_path):
    with _loader(tmp_path) as loader:
        for shares in ((1.0, 0.0), (1.0,), (0.5, float("nan"))):
            with pytest.raises(ValueError, match="`shares` must be 2 numbers above 0 with sum 1; got"):
                loader.set_shares(shares)
        list(loader)
        loader.set_shares((0.25, 0.75))
        with pytest.raises(ValueError, match="`epoch` must be 1 or later"):
            loader.set_epoch(0)
        next(iter(loader))
        with pytest.raises(ValueError, match="beginning of an epoch; batch 1 is reached"):
            loader.set_shares((0.5, 0.5))
    with _loader(tmp_path, shuffle=False) as loader, pytest.raises(ValueError, match="of `sets` that are shuffled"):
        loader.set_shares((0.5, 0.5))
