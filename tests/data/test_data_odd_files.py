"""Files as annotators, spreadsheets and zips leave them: read as they are meant, or a line says why not."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from helpers.masks import as_files, as_slides, shape
from helpers.tiles import random_pixels, write_image
from rich.console import Console

from fastmtl import api, data
from fastmtl.api import notices
from fastmtl.config import load_recipe
from fastmtl.protocols import Target

SIDE = 64
BINARY = Target("mask")
SMALL = {
    "model": {"base_channels": 4},
    "data": {"size": 32, "batch_size": 4, "tile_size": 32, "min_tissue": 0.0},
    "training": {"epochs": 1, "device": "cpu", "precision": "float32"},
}


def _images(root: Path, count: int = 8) -> None:
    for number in range(count):
        write_image(root / f"{number}.png", random_pixels(number, SIDE))


def _read(root: Path, text: str) -> data.Dataset:
    _images(root)
    (root / "manifest.csv").write_text(text)
    return data.read_manifest(root / "manifest.csv")


def _reasons(dataset: data.Dataset) -> list[str]:
    return [problem.reason for problem in (*dataset.problems, *data.patient_notices(dataset))]


def _square(left: int, side: int, name: str = "Tumor") -> dict:
    right = left + side
    ring = [[left, left], [right, left], [right, right], [left, right], [left, left]]
    return {
        "type": "Feature",
        "properties": {"objectType": "annotation", "classification": {"name": name}},
        "geometry": {"type": "Polygon", "coordinates": [ring]},
    }


def _polygons(root: Path, features: list[list[dict]]) -> Path:
    """An image with a file of polygons for each list of features."""
    _images(root, len(features))
    for number, own in enumerate(features):
        (root / f"{number}.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": own}))
    lines = [f"{number}.png,{number}.geojson,{'AB'[number % 2]},p{number}" for number in range(len(features))]
    (root / "manifest.csv").write_text("\n".join(["image,mask,label,patient", *lines]))
    return root / "manifest.csv"


# Masks


def test_a_mask_that_is_its_image_is_refused(tmp_path):
    for number in range(2):
        write_image(tmp_path / f"{number}.png", random_pixels(number, SIDE)[..., 0])
    (tmp_path / "manifest.csv").write_text("image,mask\n0.png,0.png\n1.png,1.png\n")
    found = data.check_tiles(data.read_manifest(tmp_path / "manifest.csv").tiles)
    assert [problem.path.name for problem in found] == ["0.png", "1.png"]
    assert found[0].reason == "is the image and its mask too; name the mask's own file"


@pytest.mark.parametrize("make", [as_files, as_slides])
@pytest.mark.parametrize(("grey", "count"), [(True, 2), (False, 0)])
def test_photographs_as_masks_are_a_notice_and_soft_edges_are_none(make, grey, count, tmp_path):
    pytest.importorskip("tifffile")
    x = np.linspace(0, 255, SIDE)
    ramp = np.tile(x if grey else np.clip((x - 128) * 3, 0, 255), (SIDE, 1)).astype(np.uint8)
    path = make(tmp_path, [ramp, ramp, shape().astype(np.uint8) * 255])
    grid = data.ManifestOptions(grid=data.GridOptions(tile_size=32, min_tissue=0.0))
    masks = data.seen_masks(data.read_manifest(path, grid).tiles)
    found = data.judge_maps(masks, BINARY, 1)
    assert found.wrong is None
    assert [f"({count} of 3 masks)" in one.reason for one in found.odd if "photograph" in one.reason] == [True] * (
        count > 0
    )


@pytest.mark.parametrize(("size", "fits"), [((64, 64), True), ((16, 16), True), ((33, 32), True), ((64, 48), False)])
def test_masks_of_regions_have_their_shape(size, fits, tmp_path):
    pytest.importorskip("tifffile")
    as_slides(tmp_path, [shape().astype(np.uint8)])
    write_image(tmp_path / "m.png", np.full(size[::-1], 255, np.uint8))
    (tmp_path / "manifest.csv").write_text("slide,x,y,width,height,mask\n0.tif,0,0,32,32,m.png\n")
    found = data.check_tiles(data.read_manifest(tmp_path / "manifest.csv").tiles)
    said = f"the mask is {size[0]}x{size[1]} pixels, its image 32x32: they do not cover the same field of view"
    assert [problem.reason for problem in found] == ([] if fits else [said])


@pytest.mark.parametrize(
    ("name", "says"),
    [("a.xml", "ASAP or ImageScope"), ("a.annotations", "HALO"), ("a.ndpa", "NDP.view"), ("A.XML", "ASAP")],
)
def test_annotations_of_other_tools_name_the_cure(name, says, tmp_path):
    with pytest.raises(ValueError, match=rf"line 2: {name} has annotations as {says}.* export GeoJSON"):
        _read(tmp_path, f"image,mask\n0.png,{name}\n")


def test_coco_names_the_cure(tmp_path):
    (tmp_path / "a.json").write_text('{"images": [], "annotations": [{"segmentation": [[1, 2]]}]}')
    dataset = _read(tmp_path, "image,mask\n0.png,a.json\n")
    (problem,) = data.check_tiles(dataset.tiles)
    assert problem.reason == "holds annotations of COCO; save GeoJSON, or one mask per image"


# Polygons


def test_a_collection_of_nothing_is_an_empty_mask(tmp_path):
    path = _polygons(tmp_path, [[_square(4, 50)], []])
    dataset = data.read_manifest(path)
    assert data.check_tiles(dataset.tiles) == []
    assert [int(data.open_picture(tile.mask).max()) for tile in dataset.tiles] == [255, 0]  # type: ignore[arg-type]
    assert [str(problem) for problem in dataset.problems] == [
        f"{tmp_path / '1.geojson'}: has no polygon at all: the mask is empty"
    ]
    assert data.judge_maps(data.seen_masks(dataset.tiles), BINARY, 1).wrong is None


@pytest.mark.parametrize("geometry", [{"type": "Point", "coordinates": [1, 2]}, None])
def test_objects_of_which_none_is_a_polygon_stay_an_error(geometry, tmp_path):
    path = _polygons(tmp_path, [[{"type": "Feature", "properties": {}, "geometry": geometry}]])
    (problem,) = data.check_tiles(data.read_manifest(path).tiles)
    assert problem.reason.startswith("has no polygon; ignored: 1 ")


@pytest.mark.parametrize(("lefts", "odd"), [([2, 4, 6, 8], True), ([2, 4, 6], False), ([2, 4, 6, 40], False)])
def test_polygons_in_other_units_all_lie_in_one_quarter(lefts, odd, tmp_path):
    reasons = _reasons(data.read_manifest(_polygons(tmp_path, [[_square(left, 20)] for left in lefts])))
    assert any("in the upper left quarter" in reason for reason in reasons) == odd


# Tables


@pytest.mark.parametrize(
    "text",
    [
        "image,label,patient,,\n0.png,A,p,,\n1.png,B,q,,\n,,,,\n",
        "image,label,patient\n0.png,A,p,,\n1.png,B,q\n",
        "sep=;\nimage;label;patient\n0.png;A;p\n1.png;B;q\n",
        '\ufeff"sep=;"\nimage;label;patient\n0.png;A;p\n1.png;B;q\n',
        "image,,label,patient\n0.png,,A,p\n1.png, ,B,q\n",
    ],
)
def test_what_spreadsheets_add_is_passed_over(text, tmp_path):
    tiles = _read(tmp_path, text).tiles
    assert [(tile.id, tile.label, tile.group, tile.values) for tile in tiles] == [("0", 0, "p", {}), ("1", 1, "q", {})]


def test_tables_that_are_none_name_the_cure(tmp_path):
    with pytest.raises(ValueError, match=r"column 1 has no name.*index=False"):
        _read(tmp_path, ",image\n0,0.png\n")
    (tmp_path / "other.xlsx").write_bytes(b"PK")
    with pytest.raises(ValueError, match="save the sheet as CSV UTF-8"):
        data.read_dataset(tmp_path / "other.xlsx")
    (tmp_path / "manifest.csv").rename(tmp_path / "manifest.xlsx")
    with pytest.raises(ValueError, match=r"manifest\.xlsx is a spreadsheet.*save the sheet as CSV UTF-8"):
        data.read_dataset(tmp_path)


@pytest.mark.parametrize(
    ("cells", "kind"),
    [(["6,5", "7,5", "8,5"], "vector"), (["1,234", "999", "1,234"], "label"), (["1.234,5", "2,5", "3"], "text")],
)
def test_commas_in_numbers_are_told(cells, kind, tmp_path):
    rows = "".join(f"{number}.png;{cell}\n" for number, cell in enumerate(cells))
    reasons = _reasons(_read(tmp_path, "image;age\n" + rows))
    said = f"column 'age' has commas in its numbers, such as {cells[0]!r}, and is taken for a {kind}"
    assert any(said in reason for reason in reasons)


def test_vectors_that_are_meant_are_not_told(tmp_path):
    _read(tmp_path, "image;at\n0.png;6,5\n1.png;7,5\n")
    declared = data.read_manifest(tmp_path / "manifest.csv", data.ManifestOptions(columns={"at": "vector"}))
    assert not [reason for reason in _reasons(declared) if "comma" in reason]
    assert not [
        reason for reason in _reasons(_read(tmp_path, "image;at\n0.png;6, 5\n1.png;7, 5\n")) if "comma" in reason
    ]


def test_sides_of_a_split_may_have_capitals(tmp_path):
    rows = [f"{number}.png,p{number},{side}" for number, side in enumerate(["Train", "TRAIN", "Val ", "test"])]
    split = data.split_by_column(_read(tmp_path, "\n".join(["image,patient,split", *rows])))
    assert split is not None
    assert (split.train, split.val, split.test) == (("0", "1"), ("2",), ("3",))


@pytest.mark.parametrize("name", ["patient_id", "Patient ID", "PatientNo", "subject", "case id", "donor"])
def test_patients_that_are_not_read_are_told_where_a_split_may_part_them(name, tmp_path):
    rows = "".join(f"{number}.png,A,{number % 4}\n" for number in range(8))
    said = f"column {name!r} is not read as patients, and tiles of 4 of its 4 values may be on two sides of a split"
    dataset = _read(tmp_path, f"image,label,{name}\n" + rows)
    assert any(said in reason for reason in _reasons(dataset))
    grouped = data.with_groups(dataset, "{" + name + "}")
    assert not [reason for reason in _reasons(grouped) if "not read as patients" in reason]
    rows = "".join(f"{number}.png,A,p{number % 4},{number % 4}\n" for number in range(8))  # the columns agree
    assert not [one for one in _reasons(_read(tmp_path, f"image,label,patient,{name}\n{rows}")) if "not read" in one]


def test_an_image_with_two_labels_is_told(tmp_path):
    reasons = _reasons(_read(tmp_path, "id,image,label,patient\na,0.png,A,p\nb,0.png,B,p\nc,1.png,A,q\nd,1.png,A,q\n"))
    assert [reason for reason in reasons if "labels" in reason] == [
        "b and a are one image with two labels: one of them is wrong"
    ]


def test_answers_in_several_words_are_told(tmp_path):
    words = ["yes", "no", "1", "0", "True", "unknown"]
    rows = "".join(f"{number}.png,{word}\n" for number, word in enumerate(words))
    _read(tmp_path, "image,label\n" + rows)
    reasons = _reasons(data.read_dataset(tmp_path))
    assert "column 'label': '1', 'True', 'yes' may be one answer; write them alike if so" in reasons
    assert "column 'label': '0', 'no' may be one answer; write them alike if so" in reasons


# Folders


def test_prepare_says_which_masks_it_did_not_take(tmp_path):
    _images(tmp_path / "data", 3)
    for name in ("0_mask", "0-mask", "1_seg", "9_mask"):
        write_image(tmp_path / "data" / f"{name}.png", shape().astype(np.uint8) * 255)
    _images(tmp_path / "elsewhere", 2)
    (tmp_path / "data" / "linked").symlink_to(tmp_path / "elsewhere")
    prepared = data.prepare(tmp_path / "data")
    assert prepared.passed_over == {"mask without an image": 1, "linked folder": 1}
    said = {one.path.name: one.problems for one in prepared.found if one.problems}
    assert list(said) == ["0.png", "1_seg.png"]
    assert "has 2 masks, of which " in said["0.png"][0]
    assert said["1_seg.png"] == ["is taken for an image; if it is the mask of 1, call it 1_mask.png"]


# Notices


def test_lines_say_once_what_files_share_and_lose_nothing_of_one_file():
    said = [("a", "1 of 2 odd"), ("b", "3 of 9 odd"), ("c", "3 of 9 odd"), ("c", "4 of 9 odd"), ("c", "3 of 9 odd")]
    assert notices.lines(said) == ["a and 2 others: 1 of 2 odd", "c: 4 of 9 odd"]


def test_training_tells_what_many_files_share_in_one_line_and_slides_of_two_scales(tmp_path):
    tifffile = pytest.importorskip("tifffile")
    rows = []
    for number in range(8):
        scale = (1e4 / [0.25, 0.5][number % 2],) * 2
        pixels, resolution = random_pixels(number, SIDE), {"resolution": scale, "resolutionunit": "CENTIMETER"}
        tifffile.imwrite(
            tmp_path / f"{number}.tif", pixels, photometric="rgb", tile=(16, 16), metadata=None, **resolution
        )
        features = [_square(4, 50), _square(8, 6 + number, "ROI"), *[_square(9, 4)] * number]
        (tmp_path / f"{number}.geojson").write_text(json.dumps(features))
        rows.append(f"{number}.tif,{number}.geojson,{'AB'[number % 2]},p{number // 2}")
    (tmp_path / "manifest.csv").write_text("\n".join(["slide,mask,label,patient", *rows]))
    said = Console(file=io.StringIO(), width=400)
    recipe = load_recipe("ebhi_joint_unet", SMALL)
    summary = api.train(recipe, tmp_path / "manifest.csv", tmp_path / "run", console=said)
    lines = [line for line in said.file.getvalue().splitlines() if "drawn as one" in line]  # type: ignore[attr-defined]
    assert len(lines) == 1
    assert "0.geojson and 7 others: polygons of 2 classes (ROI, Tumor)" in lines[0]
    assert any("tiles of different width, in micrometres: 8 on 4, 16 on 4 slides" in one for one in summary["notices"])


@pytest.mark.parametrize(("other", "leaks"), [("q", True), ("p", False)])
def test_training_tells_of_equal_files_of_two_patients(other, leaks, tmp_path):
    _images(tmp_path, 6)
    (tmp_path / "copy.png").write_bytes((tmp_path / "0.png").read_bytes())
    near = bytearray((tmp_path / "1.png").read_bytes())
    near[-1] ^= 1  # as large, and the same at its middle
    (tmp_path / "near.png").write_bytes(bytes(near))
    rows = [f"{number}.png,{'AB'[number % 2]},{'pxrstu'[number]}" for number in range(6)]
    rows += [f"copy.png,A,{other}", "near.png,B,y"]
    (tmp_path / "manifest.csv").write_text("\n".join(["image,label,patient", *rows]))
    dataset = data.read_manifest(tmp_path / "manifest.csv")
    said = [problem.reason for problem in data.duplicate_notices(dataset, leaks_alone=True)]
    pair = f"in 2 tiles, 1 of them in two patients, so a split can leak: 0 of p and copy of {other}"
    assert said == [f"1 picture appears more than once, {pair}"] * leaks
    assert len(data.duplicate_notices(dataset)) == 1


def test_rows_of_an_array_need_no_id(tmp_path):
    dataset = _read(tmp_path, "image,label\nimages.h5#tiles/0,A\nimages.h5#tiles/1,B\n")
    assert [tile.id for tile in dataset.tiles] == ["images.h5#tiles/0", "images.h5#tiles/1"]


@pytest.mark.parametrize("name", ["mask.png", "mask.geojson"])
def test_a_mask_of_several_images_is_told(name, tmp_path):
    write_image(tmp_path / "mask.png", shape().astype(np.uint8) * 255)
    (tmp_path / "mask.geojson").write_text(json.dumps(_square(4, 50)))
    problems = _read(tmp_path, f"image,mask,label\n0.png,{name},A\n1.png,{name},B\n2.png,,B\n").problems
    said = [f"{tmp_path / name}: is the mask of 2 images, 0.png and 1.png among them"]
    assert [str(problem) for problem in problems if "is the mask of" in problem.reason] == said


@pytest.mark.parametrize(
    ("cells", "odd"),
    [
        ([51, 62, -999, 70, -999], "-999 (2)"),
        ([0.5, 0.7, 9999], "9999 (1)"),
        ([97, 98, 99], ""),
        ([-999, -999], ""),
        ([500, 999, 1200, 3], ""),
    ],
)
def test_numbers_that_mean_unknown_are_told(cells, odd, tmp_path):
    rows = "".join(f"{number}.png,{cell}\n" for number, cell in enumerate(cells))
    found = [reason for reason in _reasons(_read(tmp_path, "image,age\n" + rows)) if "far from all others" in reason]
    assert found == [f"column 'age' holds {odd}, far from all others; if nobody knows, leave cells empty"] * bool(odd)


def test_classes_that_count_from_one_are_told(tmp_path):
    rows = np.repeat(np.arange(1, 4, dtype=np.uint8), 20)
    path = as_files(tmp_path, [np.tile(rows[:, None], (1, 60))])
    masks = data.seen_masks(data.read_manifest(path).tiles)
    assert "these seem to count from 1" in str(data.judge_maps(masks, Target("classes"), 3).wrong)
    assert "count from 1" not in str(data.judge_maps(masks, Target("classes"), 2).wrong)
