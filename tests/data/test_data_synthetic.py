"""The demo data set: the layout, the same pixels everywhere, a learnable signal, no half-written folders."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import tifffile
from helpers.tiles import write_image
from PIL import Image

from fastmtl.data import Dataset, check_tiles, generate, grouped_split, read_tile_folder
from fastmtl.data.synthetic import tiles as synthetic

SMALL = {"num_patients": 6, "tiles_per_patient": 6, "num_slides": 1, "slide_size": 1024, "seed": 5}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return read_tile_folder(generate(tmp_path_factory.mktemp("demo") / "data", **SMALL))


def _pixels(path: Path | None) -> np.ndarray:
    assert path
    with Image.open(path) as image:
        return np.array(image)


@pytest.mark.long
def test_layout_is_that_of_the_real_data(folder: Dataset):
    assert folder.class_names == synthetic.CLASS_NAMES
    assert len(folder) == 36
    assert len(folder.groups) == 6
    assert folder.problems == ()
    assert check_tiles(folder.tiles) == []
    assert set(Counter(tile.label for tile in folder.tiles)) == {0, 1, 2}
    classes = {group: {tile.label for tile in folder.tiles if tile.group == group} for group in folder.groups}
    assert all(len(labels) == 2 for labels in classes.values())
    grouped_split(folder, 1 / 3).apply(folder)
    for tile in folder.tiles[::9]:
        assert _pixels(tile.image).shape == (128, 128, 3)
        assert set(np.unique(_pixels(tile.mask))) == {0, 255}


def test_the_same_seed_gives_the_same_pixels(folder: Dataset, tmp_path: Path):
    fewer = {**SMALL, "num_patients": 3, "tiles_per_patient": 2, "num_slides": 0}
    again = read_tile_folder(generate(tmp_path / "a", **fewer))
    tiles = {tile.id: tile for tile in folder.tiles}
    for tile in again.tiles:  # asking for more leaves the first ones as they are
        assert np.array_equal(_pixels(tile.image), _pixels(tiles[tile.id].image))
        assert np.array_equal(_pixels(tile.mask), _pixels(tiles[tile.id].mask))
    other = read_tile_folder(generate(tmp_path / "b", **{**fewer, "seed": 6}))
    assert not np.array_equal(_pixels(other.tiles[0].image), _pixels(again.tiles[0].image))


def test_pixels_are_pinned_to_the_version(folder: Dataset):
    """When this fails the pictures have changed: raise `synthetic.VERSION` and pin the new sums."""
    sums = [int(_pixels(folder.tiles[i].image).sum()) for i in (0, 18, 35)]
    assert (synthetic.VERSION, sums) == (1, [8013863, 8992135, 8433158])


def test_masks_leave_room_for_learning(folder: Dataset):
    shares = {label: [] for label in range(3)}
    for tile in folder.tiles:
        shares[tile.label].append((_pixels(tile.mask) > 0).mean())
    for values in shares.values():
        assert 0.25 < np.mean(values) < 0.5
    every = np.concatenate(list(shares.values()))
    assert np.mean(2 * every / (1 + every)) < 0.7, "calling everything gland must not score well"


def test_glands_can_be_told_from_the_picture_but_not_by_brightness_alone(folder: Dataset):
    """The image carries the mask: glands are darker in red on average, yet a threshold is far from enough."""
    dice = []
    for tile in folder.tiles:
        red, gland = _pixels(tile.image)[..., 0].astype(float), _pixels(tile.mask) > 0
        if tile.label != 1:
            assert red[gland].mean() < red[~gland].mean() - 10
        dark = red < np.median(red)
        dice.append(2 * (dark & gland).sum() / (dark.sum() + gland.sum()))
    assert 0.45 < np.mean(dice) < 0.85


def test_stain_varies_between_patients_more_than_within(folder: Dataset):
    normal = {}
    for tile in folder.tiles:
        colour = _pixels(tile.image)[_pixels(tile.mask) == 0].mean(0)
        normal.setdefault(tile.group, []).append(colour)
    within = np.mean([np.std(values, axis=0).mean() for values in normal.values()])
    between = np.std([np.mean(values, axis=0) for values in normal.values()], axis=0).mean()
    assert between > 1.5 * within


def test_slides_are_tiled_pyramids_with_a_mask(folder: Dataset):
    (path,) = sorted((folder.root / "slides").glob("*.tiff"))
    with tifffile.TiffFile(path) as slide:
        assert [page.shape for page in slide.pages] == [(1024, 1024, 3), (512, 512, 3), (256, 256, 3)]
        assert all(page.is_tiled and page.tilewidth == 256 and page.compression == 7 for page in slide.pages)
        assert [page.is_reduced for page in slide.pages] == [False, True, True]
        levels = [page.asarray() for page in slide.pages]
        resolutions = [page.get_resolution("MICROMETER")[0] for page in slide.pages]
    np.testing.assert_allclose(1 / np.array(resolutions), [2, 4, 8], rtol=1e-3)
    for level in (1, 2):
        block = 2**level
        mean = levels[0].reshape(1024 // block, block, 1024 // block, block, 3).mean((1, 3))
        assert np.abs(mean - levels[level]).mean() < 5
        assert np.abs((mean - levels[level]).mean((0, 1))).max() < 0.5
    gland = _pixels(folder.root / "slides" / "label" / f"{path.stem}.png") > 0
    assert gland.shape == (1024, 1024)
    assert 0.2 < gland.mean() < 0.5
    corner = levels[0][:16, :16].mean((0, 1))
    assert corner.min() > 225
    assert np.ptp(corner) < 3, "glass is grey: the colours are stored as they are read"


def test_what_is_there_is_left_and_what_is_old_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    tiny = {"num_patients": 3, "tiles_per_patient": 1, "num_slides": 0, "tile_size": 32}
    root = generate(tmp_path / "demo", **tiny)
    marker = root / "Normal" / "marker"
    marker.write_text("")
    generate(root, **tiny)
    assert marker.exists()
    generate(root, **{**tiny, "seed": 1})
    assert not marker.exists()
    assert json.loads((root / "generator.json").read_text())["seed"] == 1
    monkeypatch.setattr(synthetic, "VERSION", 99)
    stamp = json.loads((root / "generator.json").read_text())
    (root / "generator.json").write_text(json.dumps({**stamp, "version": 0}))
    generate(root, **{**tiny, "seed": 1})
    assert json.loads((root / "generator.json").read_text())["version"] != 0


def test_a_stranger_s_folder_is_never_touched(tmp_path: Path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.txt").write_text("precious")
    with pytest.raises(FileExistsError, match="not a generated data set"):
        generate(tmp_path / "thesis")
    assert (tmp_path / "thesis" / "chapter1.txt").read_text() == "precious"
    assert [path.name for path in tmp_path.iterdir()] == ["thesis"]


def test_a_folder_that_appears_meanwhile_is_not_touched_either(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def slow(root: Path, recipe: synthetic.Recipe) -> None:
        write_image(tmp_path / "demo" / "mine.png", np.zeros((4, 4), np.uint8))

    monkeypatch.setattr(synthetic, "_write_all", slow)
    with pytest.raises(FileExistsError, match="not a generated data set"):
        generate(tmp_path / "demo")
    assert [path.name for path in tmp_path.rglob("*")] == ["demo", "mine.png"]


def test_an_interrupted_run_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def interrupted(*_args: object) -> None:
        raise KeyboardInterrupt

    tiny = {"num_patients": 3, "tiles_per_patient": 1, "num_slides": 1, "slide_size": 64, "tile_size": 32}
    monkeypatch.setattr(synthetic, "_write_slide", interrupted)
    with pytest.raises(KeyboardInterrupt):
        generate(tmp_path / "demo", **tiny)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.undo()
    assert len(read_tile_folder(generate(tmp_path / "demo", **tiny))) == 3


def test_arguments_are_checked(tmp_path: Path):
    for options in ({"num_patients": 2}, {"tile_size": 8}, {"slide_size": 1026}, {"num_slides": 99}, {"seed": -1}):
        with pytest.raises(ValueError, match=next(iter(options))):
            generate(tmp_path / "demo", **options)
