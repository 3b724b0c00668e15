"""Indexing and checking folders of tiles."""

from __future__ import annotations

import shutil
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from helpers.tiles import random_pixels, shared_data, write_folder, write_image
from PIL import Image

from fastmtl.data import DamagedTilesError, Dataset, Tile, check_tiles, read_tile_folder, usable_tiles
from fastmtl.utils.optional_imports import require


@pytest.fixture
def folder(tmp_path: Path) -> Dataset:
    return write_folder(tmp_path / "data", {"B": 3, "A": 2})


def test_a_missing_extra_is_named_with_its_command():
    with pytest.raises(ImportError, match=r"reading moons needs moonlib; .*pip install 'fastmtl-engine\[train\]'"):
        require("moonlib.phases", "reading moons")


def test_tiles_have_class_patient_and_mask(folder: Dataset):
    assert folder.class_names == ("A", "B")
    assert [tile.label for tile in folder.tiles] == [0, 0, 1, 1, 1]
    tile = folder.tiles[0]
    assert tile.id == "A/GT0001-1-400-000"
    assert tile.group == "GT0001"
    assert tile.mask == folder.root / "A" / "label" / "GT0001-1-400-000.png"
    assert folder.groups == ("GT0000", "GT0001", "GT0002")  # GT0001 has tiles in both classes


def test_given_class_order_is_kept_and_a_class_may_be_absent(folder: Dataset):
    again = read_tile_folder(folder.root, ["C", "B", "A"])
    assert {tile.id.split("/")[0]: tile.label for tile in again.tiles} == {"B": 1, "A": 2}


def test_patients_differ_in_more_than_case(tmp_path: Path):
    for name in ("GTxc1-1-400-001", "GTXC1-2-400-001"):
        write_image(tmp_path / "A" / "image" / f"{name}.png", random_pixels(0))
    assert read_tile_folder(tmp_path).groups == ("GTXC1",)


def test_missing_masks_are_none_and_orphan_masks_are_reported(folder: Dataset):
    orphan = folder.root / "A" / "label" / "nobody.png"
    assert folder.tiles[0].mask
    folder.tiles[0].mask.rename(orphan)
    (folder.root / "A" / "image" / "notes.txt").write_text("hello")
    (folder.root / "A" / "image" / ".hidden").write_text("hello")
    again = read_tile_folder(folder.root)
    assert again.tiles[0].mask is None
    assert {problem.path.name: problem.reason.split(" ")[0] for problem in again.problems} == {
        "nobody.png": "a",
        "notes.txt": "not",
    }


def test_errors_say_what_to_do(folder: Dataset, tmp_path: Path):
    (folder.root / "B").rename(folder.root / "Polyps")
    with pytest.raises(ValueError, match=r"Polyps is no class .*did you mean 'Polyp'"):
        read_tile_folder(folder.root, ["A", "Polyp"])
    with pytest.raises(FileNotFoundError, match=r"did you mean .*data"):
        read_tile_folder(folder.root.parent)
    with pytest.raises(FileNotFoundError, match="is not a folder"):
        read_tile_folder(tmp_path / "nowhere")
    shutil.copy(folder.tiles[0].image, folder.tiles[0].image.with_suffix(".bmp"))
    with pytest.raises(ValueError, match="same id"):
        read_tile_folder(folder.root)
    (tmp_path / "empty" / "A" / "image").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match="no images in"):
        read_tile_folder(tmp_path / "empty")
    with pytest.raises(ValueError, match="1 not in"):
        folder.subset(["A/unknown"])


def _jpeg(path: Path, **options) -> Path:
    return write_image(path, random_pixels(5, 96), quality=90, **options)


def _overwrite(path: Path, start: float, stop: float) -> None:
    data = bytearray(path.read_bytes())
    first, last = int(start * len(data)), int(stop * len(data))
    data[first:last] = bytes(last - first)
    path.write_bytes(data)


def _damage_truncate(path: Path) -> None:
    data = _jpeg(path).read_bytes()
    path.write_bytes(data[: len(data) // 2])


def _damage_bmp(path: Path) -> None:
    Image.fromarray(random_pixels(0, 96)).save(path, format="BMP")
    path.write_bytes(path.read_bytes()[:-500])


def _damage_second_half(path: Path) -> None:
    _overwrite(_jpeg(path), 0.5, 1)


def _damage_hole(path: Path) -> None:
    _overwrite(_jpeg(path), 0.6, 0.7)


def _damage_gif(path: Path) -> None:
    Image.fromarray(random_pixels(0)[..., 0]).save(path, format="GIF")


def _damage_png_half(path: Path) -> None:
    Image.fromarray(random_pixels(0, 96)).save(path, format="PNG")
    _overwrite(path, 0.5, 1)


def _damage_16_bit(path: Path) -> None:
    Image.fromarray(np.full((8, 8), 4095, np.uint16)).save(path, format="PNG")


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda path: path.write_bytes(b""), "empty"),
        (lambda path: path.write_text("no picture"), "not an image"),
        (lambda path: path.unlink(missing_ok=True), "No such file"),
        (_damage_truncate, "truncated|end marker"),
        (_damage_second_half, "end marker"),
        (_damage_hole, "zero bytes"),
        (_damage_gif, "holds a GIF"),
        (_damage_bmp, "truncated"),
        (_damage_png_half, ""),
        (_damage_16_bit, "8 bits"),
    ],
)
def test_damaged_images_are_found(tmp_path: Path, damage, reason: str):
    path = tmp_path / "tile.jpg"
    damage(path)
    (problem,) = check_tiles([Tile("t", path, None, 0, "P")])
    assert problem.path == path
    assert reason.split("|")[0] in problem.reason or reason.split("|")[-1] in problem.reason


def _grey(size: int = 96) -> np.ndarray:
    return random_pixels(1, size)[..., 0]


@pytest.mark.parametrize(
    ("mask", "reason"),
    [
        (Image.fromarray(_grey(48)), "48x48 pixels, its image 96x96"),
        (Image.fromarray(_grey()).convert("P"), "palette"),
        (Image.fromarray(_grey().astype(np.uint16)), "8 bits"),
        (Image.fromarray(random_pixels(2, 96)), "coloured"),
    ],
)
def test_unusable_masks_are_found(tmp_path: Path, mask: Image.Image, reason: str):
    mask.save(tmp_path / "mask.png")
    (problem,) = check_tiles([Tile("t", _jpeg(tmp_path / "tile.jpg"), tmp_path / "mask.png", 0, "P")])
    assert problem.path.name == "mask.png"
    assert reason in problem.reason


@pytest.mark.parametrize("mode", ["L", "1", "RGB", "LA"])
def test_masks_of_grey_values_are_accepted(tmp_path: Path, mode: str):
    Image.fromarray(_grey()).convert(mode).save(tmp_path / "mask.png")
    assert check_tiles([Tile("t", _jpeg(tmp_path / "tile.jpg"), tmp_path / "mask.png", 0, "P")]) == []


@pytest.mark.parametrize("options", [{}, {"optimize": True}, {"progressive": True}, {"subsampling": 0}])
@pytest.mark.parametrize("blank", [False, True])
def test_sound_jpegs_are_accepted_even_where_they_hold_runs_of_zeros(tmp_path: Path, options: dict, blank: bool):
    pixels = np.full((1024, 1024, 3), 255, np.uint8) if blank else random_pixels(3, 96)
    path = write_image(tmp_path / "tile.jpg", pixels, exif=bytes(200), comment=bytes(200), **options)
    assert check_tiles([Tile("t", path, None, 0, "P")]) == []


def test_absurd_sizes_are_refused_unread(tmp_path: Path):
    path = write_image(tmp_path / "bomb.png", np.zeros((2000, 2000), np.uint8))
    (problem,) = check_tiles([Tile("t", path, None, 0, "P")], max_pixels=1_000_000)
    assert "2000x2000" in problem.reason
    header = bytearray(path.read_bytes())
    header[16:24] = (60_000).to_bytes(4, "big") * 2  # Pillow's own limit strikes at opening
    header[29:33] = zlib.crc32(header[12:29]).to_bytes(4, "big")
    path.write_bytes(header)
    (problem,) = check_tiles([Tile("t", path, None, 0, "P")])
    assert "more than 67,108,864 pixels" in problem.reason


def test_damage_raises_or_is_skipped_within_a_budget(tmp_path: Path):
    folder = write_folder(tmp_path, {"A": 40})
    folder.tiles[3].image.write_bytes(b"")
    mask = folder.tiles[7].mask
    assert mask
    mask.write_bytes(b"junk")
    with pytest.raises(DamagedTilesError, match=r"2 of 40 tiles .*empty") as caught:
        usable_tiles(folder)
    assert [problem.path for problem in caught.value.problems] == [folder.tiles[3].image, mask]
    good, problems = usable_tiles(folder, "skip")
    assert len(good) == 38
    assert len(problems) == 2
    assert not {folder.tiles[3], folder.tiles[7]} & set(good.tiles)
    with pytest.raises(DamagedTilesError, match="too many to skip"):
        usable_tiles(folder, "skip", max_damaged=0.02)


@pytest.mark.long
def test_ebhi_seg_is_indexed_and_sound():
    folder = read_tile_folder(shared_data("ebhi_seg"))
    assert len(folder) == 1505
    assert len(folder.groups) == 255
    assert [tile.id for tile in folder.tiles if tile.mask is None] == ["Low-grade IN/GTGT2012149-2-400-001"]
    assert len(folder.class_names) == 6
    assert folder.problems == ()
    start = time.perf_counter()
    assert check_tiles(folder.tiles) == []
    assert time.perf_counter() - start < 20


def test_pets_with_foreign_formats_are_read_or_named():
    images = sorted((shared_data("pets") / "images").glob("*.jpg"))
    problems = check_tiles([Tile(path.stem, path, None, 0, path.stem) for path in images])
    formats = {}
    for path in images:
        with Image.open(path) as image:
            formats[path] = image.format
    assert [problem.path for problem in problems] == [path for path in images if formats[path] == "GIF"]


def test_the_patient_comes_from_a_pattern_of_ones_own(tmp_path: Path):
    for name in ("s1_p07_1", "s2_p07_2", "s1_p08_1"):
        write_image(tmp_path / "A" / "image" / f"{name}.png", np.zeros((4, 4, 3), np.uint8))
    assert read_tile_folder(tmp_path, patient=r"s\d_(p\d+)").groups == ("P07", "P08")
    assert len(read_tile_folder(tmp_path).groups) == 3
