"""Published data sets, written small in their real layouts, read back; the real files where they are."""

import numpy as np
import pytest
from helpers.published import (
    WRITERS,
    drawn_mask,
    write_csv,
    write_gi_tract,
    write_hep2,
    write_hubmap,
    write_pets,
    write_pets_hdf5,
)
from helpers.tiles import random_pixels, shared_data
from hypothesis import given, settings
from hypothesis import strategies as st

from fastmtl.builders.datasets import check_targets, read_splits
from fastmtl.config import ConfigError, load_recipe
from fastmtl.data import list_formats, read_dataset
from fastmtl.data.formats.published import PUBLISHED
from fastmtl.data.images.run_lengths import decode_runs, encode_runs
from fastmtl.tasks import create_task

h5py = pytest.importorskip("h5py")


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


def test_hep2_trims_labels_and_merges_tables(tmp_path):
    dataset = PUBLISHED["hep2"].read(write_hep2(tmp_path))
    assert dataset.class_names == ("homogeneous", "mitsp")
    assert dataset.groups == ("00001", "00002")
    assert [tile.values["intensity"] for tile in dataset.tiles] == [0, 1, 0, 1]
    assert all(tile.mask is not None for tile in dataset.tiles)


def test_hep2_refuses_rows_that_contradict_each_other(tmp_path):
    root = write_hep2(tmp_path)
    write_csv(root / "other.csv", [("00001_p0_patch0.tif", "00001_p0_patch0_Mask.tif", "golgi", "positive")])
    with pytest.raises(ValueError, match="another row"):
        PUBLISHED["hep2"].read(root)


def test_hep2_takes_the_fold_tables_as_they_are(tmp_path):
    """Membership, not a draw: fold B holds out what its test table lists."""
    root = write_hep2(tmp_path, ("homogeneous", "mitsp") * 5, folds=5)
    dataset = PUBLISHED["hep2"].read(root)
    assert list(dataset.folds) == list("ABCDE")
    recipe = load_recipe("joint_unet/bce_15", {"data": {"fold": 1, "size": 32}})
    splits = read_splits(recipe, root)
    assert {tile.group for tile in splits.validation.tiles} == {"00003", "00004"}
    assert splits.origin.startswith(f"fold B of the tables in {root}")
    assert splits.inner.tiles
    assert not {tile.group for tile in splits.inner.tiles} & {"00003", "00004"}
    drawn = read_splits(load_recipe("joint_unet/bce_15", {"data": {"folds": 2, "size": 32}}), root)
    assert "fold 0 of 2" in drawn.origin, "another number of folds is drawn"


def test_a_published_fold_may_hold_none_of_a_class_out(tmp_path):
    """As the authors' fold A, which has no golgi: a notice, not an error."""
    root = write_hep2(tmp_path, ("golgi", "golgi", *("homogeneous", "mitsp") * 4), folds=5)
    splits = read_splits(load_recipe("joint_unet/bce_15", {"data": {"fold": 1, "size": 32}}), root)
    assert any("class 'golgi'" in problem.reason and "validation" in problem.reason for problem in splits.problems)


def test_hep2_fold_tables_must_cover_the_images(tmp_path):
    root = write_hep2(tmp_path, ("homogeneous", "mitsp") * 5, folds=5)
    read = PUBLISHED["hep2"].read
    tables = {path.name: path.read_text() for path in root.glob("fold*.csv")}

    def change(**texts):
        for name, text in {**tables, **texts}.items():
            (root / name).write_text(text)

    test, train = (tables[f"foldC_{side}.csv"].splitlines(keepends=True) for side in ("test", "train"))
    change(**{"foldC_test.csv": "".join(test[1:])})
    with pytest.raises(ValueError, match=r"do not have 1 of the 20 images, first 00005_p0_patch0\.tif; complete"):
        read(root)
    change(**{"foldC_test.csv": "".join(test[1:]), "foldC_train.csv": "".join([*train, test[0]])})
    with pytest.raises(
        ValueError, match=r"00005_p0_patch0.tif \(one of 1 such images\) is held out by 0 folds \(none\)"
    ):
        read(root)
    change(**{"foldC_test.csv": "".join([*test, train[0]])})
    with pytest.raises(ValueError, match=r"00001_p0_patch0.tif is in foldC_train.csv and in foldC_test.csv"):
        read(root)
    change()
    (root / "foldD_test.csv").unlink()
    with pytest.raises(ValueError, match=r"has no foldD_test\.csv"):
        read(root)
    change()
    first = root / "dataset" / "train" / "00001_p0_patch0.tif"
    first.with_name("00001_p0_patch9.tif").write_bytes(first.read_bytes())
    with pytest.raises(ValueError, match=r"do not have 1 of the 21 images, first 00001_p0_patch9\.tif"):
        read(root)


def test_a_fold_table_that_divides_a_patient_is_refused(tmp_path):
    root = write_hep2(tmp_path, ("homogeneous", "mitsp") * 5, folds=5)
    a, b = root / "foldA_test.csv", root / "foldB_test.csv"
    for one, other in ((a, b), (root / "foldB_train.csv", root / "foldA_train.csv")):
        lines = one.read_text().splitlines(keepends=True)
        one.write_text("".join(lines[1:]))
        other.write_text(other.read_text() + lines[0])
    with pytest.raises(ValueError, match=r"1 patient\(s\) are in training and in validation: 00001"):
        read_splits(load_recipe("joint_unet/bce_15", {"data": {"size": 32}}), root)


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


@pytest.mark.parametrize("text", ["\u00b2 5", "1 2 three 4", "1.0 2", "99999999999999999999 1"])
def test_words_that_are_no_counts_are_named(text):
    with pytest.raises(ValueError, match="a run-length code holds whole numbers; got"):
        decode_runs(text, 4, 4)


@given(st.integers(1, 9), st.integers(1, 9), st.sampled_from(["row", "column"]), st.data())
@settings(max_examples=60, deadline=None)
def test_run_lengths_against_brute_force(height, width, order, data):
    cells = data.draw(st.lists(st.booleans(), min_size=height * width, max_size=height * width))
    mask = np.array(cells).reshape(height, width)
    flat = mask.ravel() if order == "row" else mask.T.ravel()
    runs = []
    for at, inside in enumerate(flat.tolist(), 1):
        if inside and runs and sum(runs[-1]) == at:
            runs[-1][1] += 1
        elif inside:
            runs.append([at, 1])
    assert encode_runs(mask, order) == " ".join(f"{start} {length}" for start, length in runs)
    shuffled = data.draw(st.permutations(runs + runs[:1]))  # in any order, and over one another
    text = " ".join(f"{start} {length}" for start, length in shuffled)
    np.testing.assert_array_equal(decode_runs(text, height, width, order), mask)


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        (
            "images",
            np.zeros((3, 3, 16, 16), np.uint8),
            r"images must be numbers \[N, H, W, 3\]; got uint8 \[3, 3, 16, 16\]",
        ),
        ("images", np.float32(1), r"images must be numbers"),
        ("masks", np.zeros((3, 8, 8, 1), np.uint8), r"are not of the images' 16x16 pixels"),
        ("masks", np.zeros((3, 16, 16, 3), np.uint8), r"masks must be numbers"),
        ("bboxes", np.zeros((3, 3)), r"bboxes must be numbers \[N, 4\]"),
        ("bboxes", np.tile([2.0, 4.0, 99.0, 8.0], (3, 1)), r"box 0 is not inside its image of 16x16"),
        ("bboxes", np.full((3, 4), np.nan), r"box 0 is not inside"),
        ("binary", np.eye(3, 2), r"binary must be numbers \[N, 1\] or \[N\]"),
        ("binary", np.array([0.0, 1.0, 0.4]), r"expected 0 and 1"),
        ("binary", np.array([b"cat", b"dog", b"cat"]), r"binary must be numbers"),
    ],
)
def test_hdf5_arrays_of_another_form_are_named(tmp_path, name, values, message):
    root = write_pets_hdf5(tmp_path)
    with h5py.File(root / "train" / f"{name}.h5", "w") as file:
        file[name] = values
    with pytest.raises(ValueError, match=message):
        PUBLISHED["pets_hdf5"].read(root)


def test_two_files_of_one_name_are_refused(tmp_path):
    root = write_pets(tmp_path / "pets")
    (root / "images" / "beagle_12.png").write_bytes((root / "images" / "beagle_12.jpg").read_bytes())
    with pytest.raises(ValueError, match=r"beagle_12\.png and beagle_12\.jpg would have the same id"):
        PUBLISHED["pets"].read(root)
    root = write_hep2(tmp_path / "hep2")
    file = next(root.glob("**/*_patch0.tif"))
    (root / "other").mkdir()
    (root / "other" / file.name).write_bytes(file.read_bytes())
    with pytest.raises(ValueError, match="have the same name, which the tables use for them"):
        PUBLISHED["hep2"].read(root)


def test_folders_and_dead_links_among_the_images_are_problems(tmp_path):
    root = write_pets(tmp_path)
    (root / "images" / "sub dir").mkdir()
    (root / "images" / "Bombay_9.jpg").symlink_to(tmp_path / "nowhere")
    dataset = PUBLISHED["pets"].read(root)
    assert len(dataset) == 3
    assert sorted(problem.path.name for problem in dataset.problems) == ["Bombay_9.jpg", "sub dir"]


def test_a_spacing_that_is_no_number_is_a_problem(tmp_path):
    root = write_gi_tract(tmp_path)
    scan = next(root.glob("train/case2/*/scans/slice_0001_*.png"))
    scan.rename(scan.with_name("slice_0001_20_16_1..5_1.50.png"))
    dataset = PUBLISHED["gi_tract"].read(root)
    assert [problem.path.name for problem in dataset.problems] == ["slice_0001_20_16_1..5_1.50.png"]


def test_an_age_that_is_not_finite_is_named(tmp_path):
    root = write_hubmap(tmp_path)
    table = root / "train.csv"
    table.write_text(table.read_text().replace("61.0", "inf"))
    with pytest.raises(ValueError, match="age must be a number or empty; got 'inf'"):
        PUBLISHED["hubmap_hpa"].read(root)


def test_images_without_the_group_they_are_scored_by_are_told_before_training(tmp_path):
    dataset = PUBLISHED["hubmap_hpa"].read(write_hubmap(tmp_path, ("kidney", "", "lung")))
    task = create_task("binary_segmentation", "mask", 0, group_by="organ", groups=dataset.classes)
    with pytest.raises(
        ConfigError, match=r"'mask' is scored by 'organ', and 1 of the 3 images .* no value, first '101'"
    ):
        check_targets([task], dataset)


def test_the_real_pets():
    dataset = PUBLISHED["pets"].read(shared_data("pets"))
    assert len(dataset) == 60
    assert not dataset.problems
    for tile in dataset.tiles[:5]:
        assert 0.02 < (tile.mask.draw() > 0).mean() < 0.98
