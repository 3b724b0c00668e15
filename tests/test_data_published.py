"""Published data sets, written small in their real layouts, read back; the real files where they are."""

import csv

import numpy as np
import pytest
from _tiles import random_pixels, shared_data, write_image
from PIL import Image

from fastmtl.data import list_formats, read_dataset
from fastmtl.data.published import PUBLISHED
from fastmtl.data.run_lengths import encode_runs

h5py = pytest.importorskip("h5py")


def _mask(seed: int, height: int, width: int) -> np.ndarray:
    return (np.random.default_rng(seed).random((height, width)) < 0.3).astype(np.uint8)


def _write_csv(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)


def write_gi_tract(root, *, cases=(2, 7), days=(1, 3), slices=3, size=(20, 16)):
    width, height = size
    rows = [("id", "class", "segmentation")]
    for case in cases:
        for day in days:
            for number in range(1, slices + 1):
                scan = f"case{case}_day{day}"
                name = f"slice_{number:04d}_{width}_{height}_1.50_1.63.png"
                grey = np.random.default_rng(number).integers(0, 900, (height, width)).astype(np.uint16)
                path = root / "train" / f"case{case}" / scan / "scans" / name
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(grey).save(path)
                for organ, there in (("large_bowel", number > 1), ("small_bowel", True), ("stomach", False)):
                    code = encode_runs(_mask(number, height, width), "row") if there else ""
                    rows.append((f"{scan}_slice_{number:04d}", organ, code))
    _write_csv(root / "train.csv", rows)
    return root


def write_hep2(root):
    rows = []
    for patient, label in ((1, "homogeneous "), (2, "mitsp")):
        for patch in range(2):
            stem = f"{patient:05d}_p0_patch{patch}"
            write_image(root / "dataset" / "train" / f"{stem}.tif", random_pixels(patch)[..., 0])
            write_image(root / "dataset" / "train" / f"{stem}_Mask.tif", _mask(patch, 24, 24) * 255)
            rows.append((f"{stem}.tif", f"{stem}_Mask.tif", label, "positive" if patch else "intermediate "))
    _write_csv(root / "dataset" / "train.csv", rows)
    _write_csv(root / "foldA_train.csv", rows[:2])
    return root


def write_hubmap(root):
    header = "id organ data_source img_height img_width pixel_size tissue_thickness rle age sex"
    rows = [tuple(header.split())]
    for number, organ in enumerate(("kidney", "lung", "kidney")):
        write_image(root / "train_images" / f"{100 + number}.tiff", random_pixels(number, 24)[:20])
        code = encode_runs(_mask(number, 20, 24), "column")
        rows.append((str(100 + number), organ, "HPA", "20", "24", "0.4", "4", code, "61.0" if number else "", "Male"))
    _write_csv(root / "train.csv", rows)
    return root


def write_pets(root):
    for number, stem in enumerate(("Abyssinian_1", "beagle_12", "Bombay_7")):
        pixels = random_pixels(number, 30)[:20]
        write_image(root / "images" / f"{stem}.jpg", pixels, format="GIF" if number == 2 else "JPEG")
        trimap = np.full((20, 30), 2, np.uint8)
        trimap[5:15, 10:20], trimap[8:12, 12:18] = 3, 1
        write_image(root / "annotations" / "trimaps" / f"{stem}.png", trimap)
        if number != 1:
            box = "<xmin>12</xmin><ymin>5</ymin><xmax>18</xmax><ymax>15</ymax>"
            size = "<size><width>30</width><height>20</height></size>"
            xml = f"<annotation>{size}<object><bndbox>{box}</bndbox></object></annotation>"
            (root / "annotations" / "xmls").mkdir(parents=True, exist_ok=True)
            (root / "annotations" / "xmls" / f"{stem}.xml").write_text(xml)
    return root


def write_pets_hdf5(root, size=16):
    for split, count in (("train", 3), ("val", 2), ("test", 2)):
        arrays = {
            "images": np.stack([random_pixels(number, size) for number in range(count)]),
            "masks": np.stack([_mask(number, size, size)[..., None] for number in range(count)]),
            "bboxes": np.tile(np.array([2.0, 4.0, 10.0, 12.0]), (count, 1)),
            "binary": np.arange(count)[:, None] % 2,
        }
        (root / split).mkdir(parents=True)
        for name, values in arrays.items():
            with h5py.File(root / split / f"{name}.h5", "w") as file:
                file[name] = values
    return root


WRITERS = {
    "gi_tract": write_gi_tract,
    "hep2": write_hep2,
    "hubmap_hpa": write_hubmap,
    "pets": write_pets,
    "pets_hdf5": write_pets_hdf5,
}


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
    expected = _mask(2, 16, 20) * 255
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
    _write_csv(root / "foldB_test.csv", [("00001_p0_patch0.tif", "00001_p0_patch0_Mask.tif", "golgi", "positive")])
    with pytest.raises(ValueError, match="another row"):
        PUBLISHED["hep2"].read(root)


def test_hubmap_counts_down_columns_and_knows_organs(tmp_path):
    dataset = PUBLISHED["hubmap_hpa"].read(write_hubmap(tmp_path))
    assert dataset.class_names == ("kidney", "lung")
    np.testing.assert_array_equal(dataset.tiles[1].mask.draw(), _mask(1, 20, 24) * 255)
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
    np.testing.assert_array_equal(tile.mask.draw(), _mask(1, 16, 16) * 255)
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
        ([("id", "class")], "no column 'segmentation'|no rows"),
        ([("id", "class", "segmentation"), ("a", "liver", "")], "unknown class 'liver'"),
        ([("id", "class", "segmentation"), ("a", "stomach", ""), ("a", "stomach", "")], "second row"),
    ],
)
def test_gi_tract_tables_are_checked(tmp_path, rows, message):
    root = write_gi_tract(tmp_path)
    _write_csv(root / "train.csv", rows)
    with pytest.raises(ValueError, match=message):
        PUBLISHED["gi_tract"].read(root)


def test_a_run_past_the_end_is_named(tmp_path):
    root = write_gi_tract(tmp_path)
    _write_csv(root / "train.csv", [("id", "class", "segmentation"), ("case2_day1_slice_0001", "stomach", "319 3")])
    tile = next(tile for tile in PUBLISHED["gi_tract"].read(root).tiles if tile.mask is not None)
    with pytest.raises(ValueError, match=r"run 1 .* is not inside"):
        tile.mask.draw()


def test_the_real_pets():
    dataset = PUBLISHED["pets"].read(shared_data("pets"))
    assert len(dataset) == 60
    assert not dataset.problems
    for tile in dataset.tiles[:5]:
        assert 0.02 < (tile.mask.draw() > 0).mean() < 0.98
