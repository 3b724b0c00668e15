"""Published data sets, written small in their real layouts, read back; the real files where they are."""

import numpy as np
import pytest
from _published import (
    WRITERS,
    drawn_mask,
    write_csv,
    write_gi_tract,
    write_hep2,
    write_hubmap,
    write_pets,
    write_pets_hdf5,
)
from _tiles import random_pixels, shared_data

from fastmtl.data import list_formats, read_dataset
from fastmtl.data.published import PUBLISHED


@pytest.mark.parametrize("name", PUBLISHED)
def test_each_layout_is_known_by_its_own_reader_alone(name, tmp_path):
    root = WRITERS[name](tmp_path)
    assert [other for other, each in PUBLISHED.items() if each.looks_like(root)] == [name]
    dataset = PUBLISHED[name].read(root)
    assert not dataset.problems
    assert len({tile.id for tile in dataset.tiles}) == len(dataset) > 0


@pytest.mark.parametrize("name", PUBLISHED)
def test_reading_any_folder_finds_the_format(name, tmp_path):
    root = WRITERS[name](tmp_path)
    assert read_dataset(root) == PUBLISHED[name].read(root)
    assert name in list_formats()


@pytest.mark.parametrize("name", PUBLISHED)
def test_an_empty_folder_is_one_clear_line(name, tmp_path):
    with pytest.raises((FileNotFoundError, ValueError), match="expected"):
        PUBLISHED[name].read(tmp_path)


def test_gi_tract_masks_and_metadata(tmp_path):
    dataset = PUBLISHED["gi_tract"].read(write_gi_tract(tmp_path))
    assert dataset.groups == ("CASE2", "CASE7")
    tile = next(tile for tile in dataset.tiles if tile.id == "case7_day3_slice_0002")
    drawn = tile.mask.draw()
    assert drawn.shape == (16, 20, 3)
    expected = drawn_mask(2, 16, 20) * 255
    np.testing.assert_array_equal(drawn, np.stack([expected, expected, 0 * expected], -1))
    assert tile.image.draw().max() == 255  # the 16-bit contrast is kept
    wanted = {"case": "case7_day3", "position": 2, "day": 3, "pixel_height": 1.63, "image_width": 20, "depth": 2 / 3}
    assert {key: tile.values[key] for key in wanted} == wanted


def test_hep2_trims_labels_and_merges_fold_tables(tmp_path):
    dataset = PUBLISHED["hep2"].read(write_hep2(tmp_path))
    assert dataset.class_names == ("homogeneous", "mitsp")
    assert dataset.groups == ("00001", "00002")
    assert [tile.values["intensity"] for tile in dataset.tiles] == [0, 1, 0, 1]
    assert all(tile.mask is not None for tile in dataset.tiles)


def test_hep2_refuses_rows_that_contradict_each_other(tmp_path):
    root = write_hep2(tmp_path)
    write_csv(root / "foldB_test.csv", [("00001_p0_patch0.tif", "00001_p0_patch0_Mask.tif", "golgi", "positive")])
    with pytest.raises(ValueError, match="another row"):
        PUBLISHED["hep2"].read(root)


def test_hubmap_counts_down_columns_and_knows_organs(tmp_path):
    dataset = PUBLISHED["hubmap_hpa"].read(write_hubmap(tmp_path))
    assert dataset.class_names == ("kidney", "lung")
    np.testing.assert_array_equal(dataset.tiles[1].mask.draw(), drawn_mask(1, 20, 24) * 255)
    assert dataset.tiles[0].values["age"] is None
    assert dataset.tiles[1].values["age"] == 61


def test_pets_species_boxes_and_odd_files(tmp_path):
    dataset = PUBLISHED["pets"].read(write_pets(tmp_path))
    tiles = {tile.id: tile for tile in dataset.tiles}
    assert [tiles[name].label for name in ("Abyssinian_1", "beagle_12", "Bombay_7")] == [0, 1, 0]
    assert tiles["beagle_12"].values["box"] is None
    assert tiles["Abyssinian_1"].values["box"] == pytest.approx((0.5, 0.5, 0.2, 0.5))
    assert tiles["Bombay_7"].image.draw().shape == (20, 30, 3)  # a GIF called .jpg
    assert (tiles["Bombay_7"].mask.draw() == 255).sum() == 100


def test_pets_hdf5_boxes_splits_and_masks(tmp_path):
    dataset = PUBLISHED["pets_hdf5"].read(write_pets_hdf5(tmp_path))
    tile = next(tile for tile in dataset.tiles if tile.id == "train/00001")
    np.testing.assert_array_equal(tile.image.draw(), random_pixels(1, 16))
    np.testing.assert_array_equal(tile.mask.draw(), drawn_mask(1, 16, 16) * 255)
    assert tile.values == {"box": pytest.approx((6 / 16, 8 / 16, 0.5, 0.5)), "split": "train"}
    assert tile.label == 1


def test_broken_files_are_named(tmp_path):
    root = write_pets_hdf5(tmp_path)
    (root / "train" / "masks.h5").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"masks\.h5 cannot be read as HDF5"):
        PUBLISHED["pets_hdf5"].read(root)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([("id", "class"), ("a", "stomach")], "no column 'segmentation'"),
        ([("id", "class", "segmentation"), ("a", "liver", "")], "unknown class 'liver'"),
        ([("id", "class", "segmentation"), ("a", "stomach", ""), ("a", "stomach", "")], "second row"),
    ],
)
def test_gi_tract_tables_are_checked(tmp_path, rows, message):
    root = write_gi_tract(tmp_path)
    write_csv(root / "train.csv", rows)
    with pytest.raises(ValueError, match=message):
        PUBLISHED["gi_tract"].read(root)


def test_a_run_past_the_end_is_named(tmp_path):
    root = write_gi_tract(tmp_path)
    write_csv(root / "train.csv", [("id", "class", "segmentation"), ("case2_day1_slice_0001", "stomach", "319 3")])
    tile = next(tile for tile in PUBLISHED["gi_tract"].read(root).tiles if tile.mask is not None)
    with pytest.raises(ValueError, match=r"run 1 .* is not inside"):
        tile.mask.draw()


def test_the_real_pets():
    dataset = PUBLISHED["pets"].read(shared_data("pets"))
    assert len(dataset) == 60
    assert not dataset.problems
    for tile in dataset.tiles[:5]:
        assert 0.02 < (tile.mask.draw() > 0).mean() < 0.98
