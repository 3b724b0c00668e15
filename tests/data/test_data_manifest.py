"""Manifests: what a row can say, round trips, and one clear line for every slip."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from helpers.tiles import random_pixels, write_image

from fastmtl import data
from fastmtl.data import Dataset, ManifestOptions, read_manifest, write_manifest

HEADER = "image,mask,label,patient,grade,age,head_box,stains,note,day"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four tiles of 40 x 30 with masks."""
    for number in range(4):
        pixels = np.random.default_rng(number).integers(0, 256, (30, 40, 3), dtype=np.uint8)
        write_image(tmp_path / "tiles" / f"{number}.png", pixels)
        write_image(tmp_path / "masks" / f"{number}.png", (pixels[..., 0] > 127).astype(np.uint8) * 255)
    return tmp_path


def _manifest(folder: Path, text: str, name: str = "manifest.csv", encoding: str = "utf-8") -> Path:
    (folder / name).write_bytes(text.encode(encoding))
    return folder / name


def _full(folder: Path) -> Path:
    rows = [
        "tiles/0.png,masks/0.png,polyp,p1,3,50,10 5 20 10,0.1 0.2 0.3,first,1",
        'tiles/1.png,,normal,p1,1,,,"[0.2, 0.3, 0.4]",second,2',
        "tiles/2.png,masks/2.png,,p2,,33.5,0 0 40 30,,third,1",
        "tiles/3.png,rle:30x40:1 3 10 5,polyp,p3,1,1,,,,1",
    ]
    return _manifest(folder, "\n".join([HEADER, *rows]) + "\n")


def test_a_row_says_what_is_known_and_nothing_of_the_rest(folder: Path):
    dataset = read_manifest(_full(folder), ManifestOptions(columns={"grade": "label"}))
    assert dataset.class_names == ("normal", "polyp")
    assert dataset.classes == {"grade": ("1", "3")}
    first, second, third, last = dataset.tiles
    assert (first.id, first.image, first.group, first.label) == ("tiles/0", folder / "tiles" / "0.png", "p1", 1)
    assert first.values == {
        "grade": 1, "age": 50.0, "head_box": (0.5, pytest.approx(1 / 3), 0.5, pytest.approx(1 / 3)),
        "stains": (0.1, 0.2, 0.3), "note": "first", "day": 1.0,
    }  # fmt: skip
    assert (second.mask, "age" in second.values, "head_box" in second.values) == (None, False, False)
    assert (third.label, third.values["age"]) == (None, 33.5)
    assert last.mask == data.RunLengths("1 3 10 5", 30, 40)
    assert [str(notice.reason) for notice in dataset.problems] == ["column 'note' is text: kept, no task can learn it"]
    assert data.check_tiles(dataset.tiles) == []


@pytest.mark.parametrize("ending", ["csv", "tsv", "parquet"])
def test_round_trip(folder: Path, ending: str):
    options = ManifestOptions(columns={"grade": "label"})
    dataset = read_manifest(_full(folder), options)
    (folder / "deeper").mkdir()
    again_at = folder / "deeper" / f"again.{ending}"
    write_manifest(dataset, again_at, root=folder)
    again = read_manifest(again_at, ManifestOptions(columns={"grade": "label"}, root=folder))
    assert again.tiles == dataset.tiles
    assert (again.class_names, again.classes) == (dataset.class_names, dataset.classes)
    with pytest.raises(ValueError, match="outside the data root"):
        write_manifest(dataset, again_at)


def test_pictures_of_every_kind_round_trip(folder: Path):
    square = '{"type": "Polygon", "coordinates": [[[5, 5], [25, 5], [25, 15], [5, 15], [5, 5]]]}'
    (folder / "square.geojson").write_text(square)
    text = (
        "id,image,mask,organ\na,min_max:tiles/0.png,rle-column:30x40:1 3,scans.h5#masks/3*255\n"
        "b,scans.h5#images/0,,\nc,tiles/1.png,square.geojson,masks/1.png\n"
    )
    dataset = read_manifest(_manifest(folder, text))
    a, b, c = dataset.tiles
    assert a.image == data.GreyPicture(folder / "tiles" / "0.png", "min_max")
    assert a.mask == data.RunLengths("1 3", 30, 40, "column")
    assert a.values["organ"] == data.ArrayRow(folder / "scans.h5", "masks", 3, 255.0)
    assert b.image == data.ArrayRow(folder / "scans.h5", "images", 0)
    assert c.mask == data.Polygons(folder / "square.geojson", 0, 0, 40, 30)
    write_manifest(dataset, folder / "again.csv")
    assert read_manifest(folder / "again.csv").tiles == dataset.tiles


@pytest.mark.parametrize(
    "text",
    [
        "\ufeffimage,label\r\ntiles/0.png,a\r\ntiles/1.png,b\r\n",
        "image;label\ntiles/0.png;a\ntiles/1.png;b\n",
        "Image , LABEL\n\ntiles/0.png, a\n\ntiles\\1.png,b",
        'image\tlabel\n"tiles/0.png"\ta\ntiles/1.png\tb\n',
    ],
    ids=["BOM and CRLF", "semicolons", "capitals, blanks, backslash", "tabs and quotes"],
)
def test_ways_of_writing_a_table(folder: Path, text: str):
    dataset = read_manifest(_manifest(folder, text))
    assert [tile.image for tile in dataset.tiles] == [folder / "tiles" / f"{n}.png" for n in (0, 1)]
    assert [tile.label for tile in dataset.tiles] == [0, 1]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "is empty"),
        ("image,label\n", "a header and no rows"),
        ("image,label\ntiles/0.png\n", "line 2: 1 cells, and the first line names 2"),
        ("image,label,label\na,b,c\n", "two columns named 'label'"),
        ("image,\ntiles/0.png,a\n", "column 2 has no name"),
        ("picture,label\ntiles/0.png,a\n", "neither a column image nor a column slide; its columns are picture, label"),
        ("file\x0cname,age\ntiles/0.png,50\n", r"its columns are 'file\\x0cname', age;"),
        ("file name,age\ntiles/0.png,50\n", "its columns are file name, age; rename the one of files"),
        ("imag,label\ntiles/0.png,a\n", "is 'imag' meant"),
        ("image,Patients\ntiles/0.png,a\n", "unknown column 'Patients'; if 'patient' is meant, rename it"),
        ("image,label\n../../etc/passwd,a\n", "line 2: .*passwd is outside the data root"),
        ("image,label\n/etc/passwd,a\n", "outside the data root"),
        ("image,label\ntiles/0.png,a\n\ntiles/0.png,b\n", "line 4: the id 'tiles/0' is that of line 2"),
        ("image,patient\ntiles/0.png,p\ntiles/1.png,\n", "line 3: patient is empty"),
        ("image,split\ntiles/0.png,validation\n", "split must be train, val or test; got 'validation'"),
        ("image,slide\ntiles/0.png,a.svs\n", "an image or a slide, and not both"),
        ("image,mask\ntiles/0.png,rle:30:1 2\n", "rle:HEIGHTxWIDTH"),
        ('image,label\n"tiles/0.png,a\n', "line 2: unexpected end of data"),
    ],
)
def test_slips_get_one_line(folder: Path, text: str, says: str):
    with pytest.raises(ValueError, match=says) as error:
        read_manifest(_manifest(folder, text))
    assert "\n" not in str(error.value)


def test_wrong_encodings_and_endings(folder: Path):
    with pytest.raises(ValueError, match="line 2: byte 0xe9 is not UTF-8"):
        read_manifest(_manifest(folder, "image,label\ntiles/0.png,café\n", encoding="latin-1"))
    with pytest.raises(ValueError, match="is UTF-16"):
        read_manifest(_manifest(folder, "image,label\ntiles/0.png,a\n", encoding="utf-16"))
    with pytest.raises(ValueError, match="cannot be read as Parquet"):
        read_manifest(_manifest(folder, "image\n", "m.parquet"))
    with pytest.raises(ValueError, match=r"ending of .csv, .parquet, .tsv"):
        read_manifest(_manifest(folder, "image\n", "m.xlsx"))
    with pytest.raises(FileNotFoundError, match="not a file"):
        read_manifest(folder / "nowhere.csv")


def test_told_kinds_and_classes(folder: Path):
    path = _manifest(folder, "image,grade,age\ntiles/0.png,G1,5\ntiles/1.png,G3,7\ntiles/2.png,,\n")
    given = read_manifest(path, ManifestOptions(classes={"grade": ["G1", "G2", "G3"]}))
    assert given.classes["grade"] == ("G1", "G2", "G3")
    assert [tile.values.get("grade") for tile in given.tiles] == [0, 2, None]
    for options, says in (
        (ManifestOptions(classes={"grade": ["G1", "G2"]}), "line 3: grade is 'G3', which is not one of its classes"),
        (ManifestOptions(columns={"grade": "number"}), "line 2: grade must be a number; got 'G1'"),
        (ManifestOptions(columns={"grad": "label"}), "no column 'grad'; did you mean 'grade'"),
        (ManifestOptions(columns={"grade": "colour"}), "must be one of picture"),
        (ManifestOptions(columns={"age": "box"}), "line 2: age must be a box, four numbers"),
    ):
        with pytest.raises(ValueError, match=says):
            read_manifest(path, options)
    comma = _manifest(folder, "image;age\ntiles/0.png;12,5\n")
    with pytest.raises(ValueError, match="decimal comma"):
        read_manifest(comma, ManifestOptions(columns={"age": "number"}))


def test_groups_of_other_columns(folder: Path):
    dataset = read_manifest(_full(folder))
    assert data.with_groups(dataset, "{patient}-{day}").groups == ("p1-1", "p1-2", "p2-1", "p3-1")
    assert data.with_groups(dataset, "day").groups == ("1", "2")
    with pytest.raises(ValueError, match="'dya'; did you mean 'day'"):
        data.with_groups(dataset, "{dya}")
    with pytest.raises(ValueError, match="tile tiles/1 has no age"):
        data.with_groups(dataset, "age")


def test_formats_are_recognised(folder: Path, tmp_path: Path):
    manifest = _full(folder)
    assert data.read_dataset(folder).tiles == read_manifest(manifest).tiles == data.read_dataset(manifest).tiles
    assert {"manifest", "tile_folder"} <= set(data.list_formats())
    write_image(tmp_path / "classes" / "A" / "image" / "1.png", random_pixels(1))
    assert data.read_dataset(tmp_path / "classes").class_names == ("A",)
    with pytest.raises(ValueError, match="unknown data format 'manifst'; did you mean 'manifest'"):
        data.read_dataset(folder, "manifst")
    with pytest.raises(FileNotFoundError, match="fastmtl prepare"):
        data.read_dataset(folder / "tiles")


def test_a_registered_format_is_found_first(tmp_path: Path, monkeypatch):
    from fastmtl.data.formats import registry

    monkeypatch.setattr(registry, "_FORMATS", dict(registry._FORMATS))

    @data.register_format("one_file", detect=lambda root: (root / "one.txt").exists())
    def read(root: Path, options: ManifestOptions) -> Dataset:
        return Dataset(root, (), (data.Tile("one", root / "one.png", None, None, "p"),))

    (tmp_path / "one.txt").touch()
    assert data.read_dataset(tmp_path).tiles[0].id == "one"
    with pytest.raises(ValueError, match="already"):
        data.register_format("one_file", detect=lambda root: True)


def test_damage_is_found_behind_every_kind_of_picture(folder: Path):
    write_image(folder / "masks" / "small.png", random_pixels(1, 8)[..., 0])
    palette = np.zeros((30, 40), np.uint8)
    from PIL import Image

    image = Image.fromarray(palette, "L").convert("P")
    image.save(folder / "masks" / "palette.png")
    Image.fromarray(palette.astype(np.uint16)).save(folder / "masks" / "deep.png")
    masks = ["masks/small.png", "masks/palette.png", "masks/deep.png", "rle:30x40:1199 5", "rle:20x20:1 2", "no.h5#m/0"]
    rows = "".join(f"{number},tiles/0.png,{mask}\n" for number, mask in enumerate(masks))
    dataset = read_manifest(_manifest(folder, "id,image,mask\n" + rows + "ok,tiles/1.png,masks/1.png\n"))
    reasons = [problem.reason for problem in data.check_tiles(dataset.tiles)]
    for reason, says in zip(
        reasons, ["8x8 pixels", "palette", "8 bits", "not inside a mask", "20x20 pixels", "HDF5"], strict=True
    ):
        assert says in reason
    kept, _ = data.usable_tiles(dataset, "skip", max_damaged=0.9)
    assert [tile.id for tile in kept.tiles] == ["ok"]


@pytest.mark.parametrize("bad", ["4O", "unknown"])
def test_numbers_with_one_bad_cell_name_its_line(tmp_path: Path, bad: str):
    ages = [str(20 + number % 30) for number in range(60)]
    ages[40] = bad
    (tmp_path / "m.csv").write_text("\n".join(["image,age", *(f"{n}.png,{age}" for n, age in enumerate(ages))]))
    reasons = [problem.reason for problem in read_manifest(tmp_path / "m.csv").problems]
    said = (
        f"column 'age' is taken for classes, for {bad!r} (line 42) is no number; leave cells empty where there is none"
    )
    assert said in reasons
    with pytest.raises(ValueError, match=f"line 42: age must be a number; got '{bad}'"):
        read_manifest(tmp_path / "m.csv", ManifestOptions(columns={"age": "number"}))


def test_grades_with_one_that_is_unknown_stay_classes_without_a_word(tmp_path: Path):
    grades = ["1", "2", "3", "unknown"] * 8
    (tmp_path / "m.csv").write_text("\n".join(["image,grade", *(f"{n}.png,{one}" for n, one in enumerate(grades))]))
    assert not [one for one in read_manifest(tmp_path / "m.csv").problems if "no number" in one.reason]
