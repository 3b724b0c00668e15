"""The loader: order, shards, resumption, missing and damaged files."""

from __future__ import annotations

import gc
import itertools
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.memory import needs_statm, resident_bytes
from helpers.tiles import TARGETS, make_loader, raw_loader, shared_data, write_folder

from fastmtl.data import Dataset, Region, Tile, TileReadError, open_slide
from fastmtl.data.loading.order import balanced_order, repeats
from fastmtl.protocols import Batch, Target

pytest.importorskip("nvidia.dali", reason="the loader needs DALI")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return write_folder(tmp_path_factory.mktemp("tiles"), {"A": 9, "B": 14})


def _equal(first: Batch, second: Batch) -> bool:
    return (
        first.ids == second.ids
        and first.groups == second.groups
        and torch.equal(first.images, second.images)
        and torch.equal(first.has_label, second.has_label)
        and all(torch.equal(first.targets[name], second.targets[name]) for name in TARGETS)
    )


def test_batches_follow_the_protocol(folder: Dataset):
    (batch, *_) = make_loader(folder.tiles, shuffle=True)
    assert batch.images.shape == (4, 3, 16, 16)
    assert batch.images.dtype == torch.float32
    assert list(batch.targets) == ["segmentation", "classification"]
    mask = batch.targets["segmentation"]
    assert mask.shape == (4, 1, 16, 16)
    assert mask.dtype == torch.uint8
    assert mask.max() == 1
    assert batch.targets["classification"].dtype == torch.int64
    assert batch.has_label.dtype == torch.bool
    assert batch.has_label.shape == (4, 2)
    tiles = {tile.id: tile for tile in folder.tiles}
    assert batch.targets["classification"].tolist() == [tiles[name].label for name in batch.ids]
    assert batch.groups == [tiles[name].group for name in batch.ids]


def test_every_epoch_has_every_tile_once_in_a_new_order(folder: Dataset):
    loader = make_loader(folder.tiles, shuffle=True)
    epochs = [[name for batch in loader for name in batch.ids] for _ in range(3)]
    assert all(sorted(epoch) == sorted(tile.id for tile in folder.tiles) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    loader.set_epoch(1)
    assert [name for batch in loader for name in batch.ids] == epochs[1]


@pytest.mark.parametrize("world_size", [2, 3, 5])
def test_training_shards_cover_everything_with_equal_steps(folder: Dataset, world_size: int):
    ranks = [make_loader(folder.tiles, shuffle=True, rank=rank, world_size=world_size) for rank in range(world_size)]
    epochs = [list(rank) for rank in ranks]
    assert len({len(epoch) for epoch in epochs}) == 1
    assert {len(rank) for rank in ranks} == {len(epochs[0])}
    assert len({tuple(len(batch) for batch in epoch) for epoch in epochs}) == 1
    labelled = [
        name
        for epoch in epochs
        for batch in epoch
        for name, has_label in zip(batch.ids, batch.has_label.any(1).tolist(), strict=True)
        if has_label
    ]
    assert sorted(labelled) == sorted(tile.id for tile in folder.tiles)


def test_ranks_together_take_the_batches_of_one(folder: Dataset):
    alone = list(make_loader(folder.tiles, shuffle=True, batch_size=4))
    ranks = [make_loader(folder.tiles, shuffle=True, batch_size=2, rank=rank, world_size=2) for rank in range(2)]
    for whole, *parts in zip(alone[:-1], *ranks, strict=False):
        assert sorted(whole.ids) == sorted(name for part in parts for name in part.ids)


@pytest.mark.parametrize("world_size", [1, 3, 40])
def test_evaluation_shards_have_every_tile_exactly_once(folder: Dataset, world_size: int):
    names = [
        name
        for rank in range(world_size)
        for batch in make_loader(folder.tiles, rank=rank, world_size=world_size)
        for name in batch.ids
    ]
    assert sorted(names) == sorted(tile.id for tile in folder.tiles)


def test_drop_last_drops_only_the_partial_batch(folder: Dataset):
    loader = make_loader(folder.tiles, drop_last=True, shuffle=True)
    assert [len(batch) for batch in loader] == [4] * 5
    assert len(loader) == 5
    with pytest.raises(ValueError, match="leaves no batch"):
        make_loader(folder.tiles, drop_last=True, batch_size=24)


def test_balanced_draws_even_out_the_classes_and_repeats_differ():
    labels = [0] * 900 + [1] * 90 + [2] * 10
    drawn = np.array(labels)[balanced_order(labels, seed=1, epoch=0)]
    assert len(drawn) == 1000
    assert all(abs((drawn == label).mean() - 1 / 3) < 0.05 for label in range(3))
    assert not np.array_equal(balanced_order(labels, seed=1, epoch=0), balanced_order(labels, seed=1, epoch=1))
    by_root = np.array(labels)[balanced_order(labels, seed=1, epoch=0, power=0.5)]
    assert np.bincount(by_root) / 1000 == pytest.approx(np.sqrt([900, 90, 10]) / np.sqrt([900, 90, 10]).sum(), abs=0.04)
    assert repeats(np.array([3, 1, 3, 3, 1, 0])).tolist() == [0, 0, 1, 2, 1, 0]


def test_balanced_epochs_differ(folder: Dataset):
    loader = make_loader(folder.tiles, shuffle=True, balanced=True)
    first, second = ([name for batch in loader for name in batch.ids] for _ in range(2))
    assert first != second
    assert len(first) == len(second) == len(folder)


def test_a_tile_drawn_twice_is_augmented_twice(folder: Dataset):
    tiles = [folder.tiles[0], folder.tiles[-1]]
    batches = [make_loader(tiles, shuffle=True, balanced=True, seed=seed) for seed in range(6)]
    doubled = [batch for loader in batches for batch in loader if len(set(batch.ids)) == 1]
    assert doubled
    assert not any(torch.equal(batch.images[0], batch.images[1]) for batch in doubled)


@pytest.mark.parametrize("stop", [1, 3, 6])
@pytest.mark.parametrize("options", [{"shuffle": True}, {"shuffle": True, "balanced": True}, {}])
def test_resumption_is_bit_exact(folder: Dataset, stop: int, options: dict):
    whole = make_loader(folder.tiles, **options)
    expected = [list(whole), list(whole)]
    first = make_loader(folder.tiles, **options)
    taken = list(itertools.islice(iter(first), stop))
    state = json.loads(json.dumps(first.state_dict()))  # the position of what was handed out, not of what is prefetched
    assert state["batch"] == stop
    assert all(_equal(a, b) for a, b in zip(taken, expected[0], strict=False))
    second = make_loader(folder.tiles, **options)
    second.load_state_dict(state)
    rest = list(second)
    assert len(rest) == len(whole) - stop
    assert all(_equal(a, b) for a, b in zip(rest, expected[0][stop:], strict=True))
    assert all(_equal(a, b) for a, b in zip(second, expected[1], strict=True))
    assert second.state_dict() == whole.state_dict()


def test_leaving_a_loop_and_iterating_again_continues(folder: Dataset):
    expected = list(make_loader(folder.tiles, shuffle=True))
    loader = make_loader(folder.tiles, shuffle=True)
    parts = [list(itertools.islice(iter(loader), count)) for count in (1, 2, 99)]
    assert [len(part) for part in parts] == [1, 2, 3]
    assert all(_equal(a, b) for a, b in zip(itertools.chain(*parts), expected, strict=True))
    by_count = make_loader(folder.tiles, shuffle=True)  # a loop that counts batches never sees the iterator's end
    for epoch in range(2):
        batches = [batch for _, batch in zip(range(len(by_count)), by_count, strict=False)]
        assert len(batches) == 6
        assert by_count.state_dict()["epoch"] == epoch


def test_a_state_from_elsewhere_is_refused(folder: Dataset):
    state = make_loader(folder.tiles, shuffle=True).state_dict()
    others = {
        "seed": make_loader(folder.tiles, shuffle=True, seed=8),
        "shuffle": make_loader(folder.tiles),
        "tiles": make_loader(folder.tiles[1:], shuffle=True),
    }
    for name, loader in others.items():
        with pytest.raises(ValueError, match=f"{name}="):
            loader.load_state_dict(state)
    with pytest.raises(ValueError, match="tiles="):
        make_loader(folder.tiles, shuffle=True).load_state_dict({})


def test_values_that_changed_are_refused_where_a_task_reads_them(folder: Dataset):
    def make(**values):
        tiles = [replace(tile, values={"grade": 0, "note": "a", **values}) for tile in folder.tiles]
        return make_loader(tiles, targets={"grade": Target("label", "grade")})

    state = make().state_dict()
    make(note="b").load_state_dict(state)
    with pytest.raises(
        ValueError, match=r"values=.* labels or numbers in the columns of the tasks changed since; resume"
    ):
        make(grade=1).load_state_dict(state)
    make(grade=1).load_state_dict({key: value for key, value in state.items() if key != "values"})  # an older state


def test_an_overtaken_iteration_ends_with_an_error(folder: Dataset):
    loader = make_loader(folder.tiles)
    old = iter(loader)
    next(old)
    next(iter(loader))
    with pytest.raises(RuntimeError, match="ended"):
        next(old)


def test_batches_stay_valid_while_later_ones_are_made(folder: Dataset):
    loader = make_loader(folder.tiles, prefetch=1)
    kept = [(batch, batch.images.clone(), batch.targets["segmentation"].clone()) for batch in loader]
    list(loader)
    loader.close()
    del loader
    gc.collect()
    for batch, images, mask in kept:
        assert torch.equal(batch.images, images)
        assert torch.equal(batch.targets["segmentation"], mask)
        batch.images.add_(1)  # and they are the consumer's, to change


def test_missing_masks_and_labels_are_marked(folder: Dataset):
    tiles = [replace(folder.tiles[0], mask=None), replace(folder.tiles[1], label=None), *folder.tiles[2:4]]
    (batch,) = make_loader(tiles)
    assert batch.has_label.tolist() == [[False, True], [True, False], [True, True], [True, True]]
    assert batch.targets["segmentation"][0].max() == 0
    assert batch.targets["segmentation"][2].max() == 1
    assert batch.targets["classification"][1] == -100
    reordered = make_loader(tiles, targets={"kind": "label", "gland": "mask"})
    assert next(iter(reordered)).has_label.tolist()[0] == [True, False]
    assert list(next(iter(make_loader(tiles, targets={"kind": "label"}))).targets) == ["kind"]


@pytest.mark.parametrize("damage", [lambda path: path.write_bytes(path.read_bytes()[:90]), lambda path: path.unlink()])
def test_damage_in_mid_training_names_the_file_and_iteration_can_go_on(tmp_path: Path, damage):
    folder = write_folder(tmp_path, {"A": 20})
    loader = make_loader(folder.tiles)
    expected = list(loader)
    loader.set_epoch(0)
    victim = folder.tiles[13]
    good = victim.image.read_bytes()
    damage(victim.image)
    received = []
    with pytest.raises(TileReadError, match=victim.image.name) as caught:
        received.extend(iter(loader))  # keeps what came before the error
    assert "Traceback" not in str(caught.value)
    assert caught.value.problems[0].path == victim.image
    assert loader.state_dict()["batch"] == len(received) <= 3
    victim.image.write_bytes(good)
    assert all(_equal(a, b) for a, b in zip([*received, *loader], expected, strict=True))


def test_arguments_are_checked(folder: Dataset):
    for options, word in (
        ({"targets": {"a": "box"}}, "targets"),
        ({"targets": {}}, "targets"),
        ({"rank": 2, "world_size": 2}, "rank"),
        ({"batch_size": 0}, "batch_size"),
        ({"balanced": True}, "balanced"),
        ({"seed": -1}, "seed"),
        ({"std": (0, 1, 1)}, "std"),
        ({"device": "tpu"}, "device"),
    ):
        with pytest.raises(ValueError, match=word):
            make_loader(folder.tiles, **options)
    with pytest.raises(ValueError, match="empty"):
        make_loader([])
    with pytest.raises(ValueError, match="same id"):
        make_loader([folder.tiles[0]] * 2)


@pytest.mark.long
@needs_statm
def test_memory_stays_flat(tmp_path: Path):
    """Every batch is 6 MB: keeping a few of them, or of their decoded tiles, would show."""
    folder = write_folder(tmp_path, {"A": 24}, size=48)
    loader = make_loader(folder.tiles, shuffle=True, size=256, batch_size=8)

    def epochs(number: int) -> None:
        for _ in range(number):
            for batch in loader:
                assert len(batch) == 8

    epochs(5)
    before = resident_bytes()
    epochs(25)
    assert resident_bytes() - before < 60 * 2**20  # one batch kept in each epoch would be 150 MB


def test_real_slides_are_read_as_by_read_region():
    """Through DALI, stitched, at the slide's edges too: the pixels of `Slide.read_region`."""
    folder = shared_data("wsi")
    for name in ("CMU-1-Small-Region.svs", "CMU-1-Small-Region.webp.tiff", "XYC-half-mpp.tiff"):
        slide = open_slide(folder / name)
        width, height = slide.levels[0].width, slide.levels[0].height
        places = [(-40, -30), (200, 180), (width - 150, height - 100)]
        tiles = [Tile(f"{x} {y}", Region(slide.path, x, y, 200, 200), None, None, "p") for x, y in places]
        (batch,) = raw_loader(tiles, targets={"self": "none"}, size=200, augmentation=None)
        for image, (x, y) in zip(batch.images, places, strict=True):
            expected = torch.from_numpy(slide.read_region(x, y, 200, 200)).permute(2, 0, 1).float()
            assert (image - expected).abs().max() <= 2  # decoders round
