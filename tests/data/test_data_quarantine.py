"""Damaged tiles in mid-training: listed, replaced the same way on every run, and one too many stops it."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.encoded_tiles import ArraySlide, encoded, pictures_of, region
from helpers.tiles import by_id, make_loader, random_pixels, shared_data, write_folder, write_image

from fastmtl.data import Dataset, GreyPicture, Tile, TileReadError
from fastmtl.data.loading.quarantine import nonsense

pytest.importorskip("nvidia.dali", reason="the loader needs DALI")

SOME = {"shuffle": True, "max_damaged": 0.2}


@pytest.fixture
def damaged(tmp_path: Path) -> Dataset:
    """24 tiles; of numbers 3, 11 and 17 the image is cut short, missing, the mask no image."""
    folder = write_folder(tmp_path, {"A": 12, "B": 12})
    image = folder.tiles[3].image
    image.write_bytes(image.read_bytes()[:90])
    folder.tiles[11].image.unlink()
    folder.tiles[17].mask.write_text("not a picture")
    return folder


def _bad(folder: Dataset) -> set[str]:
    return {folder.tiles[number].id for number in (3, 11, 17)}


def test_damaged_tiles_are_listed_and_replaced_by_their_label(damaged: Dataset):
    loader = make_loader(damaged.tiles, **SOME)
    batches = list(loader)
    assert [len(batch) for batch in batches] == [4] * 6
    names = [name for batch in batches for name in batch.ids]
    assert not _bad(damaged) & set(names)
    labels = [int(label) for batch in batches for label in batch.targets["classification"]]
    assert sorted(labels) == [0] * 12 + [1] * 12
    assert {entry["tile"] for entry in loader.quarantine} == _bad(damaged)
    files = {entry["tile"]: entry["file"] for entry in loader.quarantine}
    assert files[damaged.tiles[17].id] == str(damaged.tiles[17].mask)
    assert all(entry["reason"] and "Traceback" not in entry["reason"] for entry in loader.quarantine)
    json.dumps(loader.quarantine)
    later = [name for batch in loader for name in batch.ids]
    assert len(later) == 24
    assert len(loader.quarantine) == 3
    assert not _bad(damaged) & set(later)


def test_what_stands_in_depends_on_seed_epoch_and_tile_alone(damaged: Dataset):
    one = [list(make_loader(damaged.tiles, batch_size=size, num_threads=threads, prefetch=ahead, **SOME))
           for size, threads, ahead in ((1, 1, 1), (5, 3, 3), (24, 2, 1))]  # fmt: skip
    names = [[name for batch in batches for name in batch.ids] for batches in one]
    images = [torch.cat([batch.images for batch in batches]) for batches in one]
    assert names[0] == names[1] == names[2]
    assert torch.equal(images[0], images[1])
    assert torch.equal(images[0], images[2])


def test_a_drawing_is_listed_by_its_file(damaged: Dataset, tmp_path: Path):
    (tmp_path / "scan.png").write_text("not a picture")
    odd = replace(damaged.tiles[0], image=GreyPicture(tmp_path / "scan.png"))
    good = [tile for tile in damaged.tiles[1:] if tile.id not in _bad(damaged)]
    loader = make_loader([odd, *good], **SOME)
    list(loader)
    assert [entry["file"] for entry in loader.quarantine] == [str(tmp_path / "scan.png")]


def test_evaluation_leaves_them_out(damaged: Dataset):
    batches = list(make_loader(damaged.tiles, max_damaged=0.2))
    assert sorted(by_id(batches)) == sorted({tile.id for tile in damaged.tiles} - _bad(damaged))
    assert [len(batch) for batch in batches] == [3, 4, 3, 4, 3, 4]
    alone = list(make_loader(damaged.tiles, max_damaged=0.2, batch_size=1))
    assert len(alone) == 21  # a batch with nothing left in it does not come
    for batch in batches:
        assert len(batch.images) == len(batch.has_label) == len(batch.groups) == len(batch)


@pytest.mark.parametrize("stop", [1, 4])
def test_a_run_with_damage_resumes(damaged: Dataset, stop: int):
    whole = make_loader(damaged.tiles, **SOME)
    expected = [*whole, *whole]
    first = make_loader(damaged.tiles, **SOME)
    taken = list(itertools.islice(iter(first), stop))
    second = make_loader(damaged.tiles, **SOME)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    for ours, theirs in zip([*taken, *second, *second], expected, strict=True):
        assert ours.ids == theirs.ids
        assert torch.equal(ours.images, theirs.images)
    assert {entry["tile"] for entry in second.quarantine} == _bad(damaged)


def test_more_than_the_budget_stops(damaged: Dataset):
    with pytest.raises(TileReadError, match=r"3 of 24 .* 10.0%") as caught:
        list(make_loader(damaged.tiles, shuffle=True, max_damaged=0.1))
    assert len(caught.value.problems) == 3
    with pytest.raises(TileReadError, match="cannot be read"):
        list(make_loader(damaged.tiles, shuffle=True))


@pytest.mark.parametrize("spoil", [None, lambda data: data[: len(data) // 2]], ids=["seen when read", "when decoded"])
def test_a_damaged_slide_tile_names_slide_and_place(spoil):
    slide = ArraySlide(random_pixels(0, 128), damaged=frozenset({(1, 1)}), spoil=spoil)
    tiles = [Tile(f"{x}-{y}", region("s", x, y, 30), None, 0, "p") for x in range(0, 98, 32) for y in range(0, 98, 32)]
    loader = make_loader(tiles, targets={"self": "none"}, pictures=pictures_of({"s": slide}), **SOME)
    batches = list(loader)
    assert sum(map(len, batches)) == 16
    (entry,) = loader.quarantine
    assert {name: entry[name] for name in ("tile", "file", "x", "y", "level")} == {
        "tile": "32-32", "file": "s", "x": 32, "y": 32, "level": 0
    }  # fmt: skip
    with pytest.raises(TileReadError, match="32-32"):
        list(make_loader(tiles, targets={"self": "none"}, pictures=pictures_of({"s": slide})))


def test_a_tile_smaller_than_its_index_says_is_damage():
    def smaller(_data: bytes) -> bytes:
        return encoded(random_pixels(1, 8)).tobytes()

    slide = ArraySlide(random_pixels(0, 64), damaged=frozenset({(0, 0)}), spoil=smaller)
    tiles = [Tile("t", region("s", 0, 0, 30), None, 0, "p")]
    with pytest.raises(TileReadError, match="8x8 pixels, not 32x32"):
        list(make_loader(tiles, targets={"self": "none"}, pictures=pictures_of({"s": slide})))


def test_one_colour_where_there_was_more_is_nonsense():
    picture = encoded(random_pixels(0, 64))
    black, white = np.zeros((64, 64, 3), np.uint8), np.full((64, 64, 3), 255, np.uint8)
    assert "one colour" in nonsense(picture, black)
    assert nonsense(picture, random_pixels(0, 64)) is None
    assert nonsense(encoded(white), white) is None
    assert nonsense(encoded(white, "BMP"), white) is None  # many bytes, and truly of one colour


def test_a_codec_that_decodes_to_black_without_an_error_is_found(tmp_path: Path):
    """DALI returns zeros for JPEG 2000 in TIFF."""
    silent = Tile("silent", shared_data("wsi/CMU-1-Small-Region.jp2.tiff"), None, 0, "p")
    good = [replace(silent, id=f"g{i}", image=write_image(tmp_path / f"{i}.png", random_pixels(i))) for i in range(5)]
    loader = make_loader([silent, *good], targets={"self": "none"}, **SOME)
    assert "silent" not in {name for batch in loader for name in batch.ids}
    (entry,) = loader.quarantine
    assert entry["file"].endswith("jp2.tiff")
    with pytest.raises(TileReadError, match="jp2"):
        list(make_loader([silent, *good], targets={"self": "none"}))
