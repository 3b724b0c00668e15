"""What masks must hold, whatever they are stored as and whichever command reads them: right targets, or a line."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from helpers.masks import (
    CLASSES,
    GRID,
    SOURCES,
    as_array,
    as_files,
    as_polygons,
    as_runs,
    as_slides,
    discs,
    looked_at,
    with_ring,
)  # fmt: skip
from helpers.slides import patch_tile
from helpers.tiles import write_image
from PIL import Image

from fastmtl import data, tasks
from fastmtl.builders import datasets
from fastmtl.config import ConfigError

pytest.importorskip("tifffile")


def numbered(count: int = 100) -> np.ndarray:
    """Nuclei, each with its own number."""
    mask = np.zeros((64, 64), np.uint8)
    for number in range(count):
        row, column = divmod(number, 12)
        mask[row * 5 : row * 5 + 4, column * 5 : column * 5 + 4] = number * 2 + 1
    return mask


WRONG = {
    "all 0 and 1": (lambda: discs(1), "no value above 1, and pixels above 127 are foreground"),
    "all 0 and 127": (lambda: discs(127), "no value above 127"),
    "some 0 and 1": (lambda: [*discs(255, 3), *discs(1, 1)], "no value above 1, and pixels above 127"),
    "some class indices": (lambda: [*discs(255, 3), with_ring(2, 1)], "no value above 2"),
    "classes and 255": (lambda: [with_ring(1, 255) for _ in range(4)], "areas of 1 and 255, and those up to 127"),
    "grey classes": (lambda: [with_ring(85, 170) for _ in range(4)], "areas of 85 and 170"),
    "numbered objects": (lambda: [numbered() for _ in range(4)], "labels or instances"),
}


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("fault", WRONG)
def test_values_that_are_no_mask_of_one_structure_are_refused(source, fault, tmp_path):
    make, says = WRONG[fault]
    with pytest.raises(ConfigError, match=says) as caught:
        looked_at(SOURCES[source](tmp_path, make()))
    line = str(caught.value)
    assert "\n" not in line
    assert "mask" in line.split(says)[0]
    assert "0 and 255" in line or "*255" in line  # the cure


@pytest.mark.parametrize("source", [*SOURCES, "runs"])
def test_masks_of_0_and_255_are_what_the_loader_gives(source, tmp_path):
    make = {**SOURCES, "runs": as_runs}[source]
    manifest = make(tmp_path, discs(255))
    assert looked_at(manifest) == []
    found = data.read_manifest(manifest, data.ManifestOptions(grid=GRID))
    size = 32 if "slide" in source else 64
    loader = data.TileLoader(found.tiles, targets={"it": "mask"}, size=size, batch_size=4)
    foreground = sum(int(batch.targets["it"].sum()) for batch in loader)
    loader.close()
    assert foreground == sum(int(mask.astype(bool).sum()) for mask in discs(255))


@pytest.mark.parametrize("method", [Image.Resampling.BILINEAR, Image.Resampling.LANCZOS, Image.Resampling.BOX])
@pytest.mark.parametrize("size", [40, 64, 150])
def test_soft_edges_of_resampled_masks_are_fine(method, size, tmp_path):
    soft = [np.asarray(Image.fromarray(mask).resize((size, size), method)) for mask in discs(255)]
    for number, mask in enumerate(soft):
        write_image(tmp_path / f"{number}.png", np.repeat(mask[..., None], 3, 2))
        write_image(tmp_path / f"{number}_mask.png", mask)
    rows = [f"{number}.png,{number}_mask.png,p{number}" for number in range(4)]
    (tmp_path / "manifest.csv").write_text("\n".join(["image,mask,patient", *rows]))
    assert looked_at(tmp_path / "manifest.csv") == []


def test_a_blurred_mask_is_soft_and_not_labels(tmp_path):
    from scipy.ndimage import gaussian_filter

    blurred = [gaussian_filter(mask.astype(np.float32), 6).astype(np.uint8) for mask in discs(255)]
    assert all(mask.max() > 127 for mask in blurred)
    assert looked_at(as_files(tmp_path, blurred)) == []


@pytest.mark.parametrize("compression", ["jpeg", "lzw", "packbits", None])
def test_mask_slides_of_any_compression_are_judged(compression, tmp_path):
    (tmp_path / "right").mkdir()
    (tmp_path / "wrong").mkdir()
    assert looked_at(as_slides(tmp_path / "right", discs(255), compression=compression)) == []
    with pytest.raises(ConfigError, match=r"no value above \d, and pixels above 127 are foreground"):
        looked_at(as_slides(tmp_path / "wrong", discs(1), compression=compression))


def test_levels_of_a_mask_slide_that_were_averaged_are_not_believed(tmp_path):
    """A pyramid may hold values between classes: the level that training reads counts."""
    import tifffile

    mask = with_ring(2, 1)
    as_slides(tmp_path, [mask])
    tiles = {"tile": (16, 16), "metadata": None, "photometric": "minisblack"}
    with tifffile.TiffWriter(tmp_path / "0_mask.tif") as file:
        file.write(mask, **tiles)
        file.write(np.full((32, 32), 77, np.uint8), subfiletype=1, **tiles)
    assert looked_at(tmp_path / "manifest.csv", "multiclass_segmentation", **CLASSES) == []


@pytest.mark.parametrize("source", SOURCES)
def test_class_indices_must_be_known(source, tmp_path):
    make = SOURCES[source]
    (tmp_path / "right").mkdir()
    assert looked_at(make(tmp_path / "right", [with_ring(2, 1)] * 4), "multiclass_segmentation", **CLASSES) == []
    with pytest.raises(ConfigError, match="holds 7, and class indices are 0 to 2; save class indices"):
        looked_at(make(tmp_path, [*[with_ring(2, 1)] * 3, with_ring(7, 1)]), "multiclass_segmentation", **CLASSES)


@pytest.mark.parametrize("source", SOURCES)
def test_masks_of_0_and_255_are_no_class_maps(source, tmp_path):
    """255 is the ignored index by default: all of the structure would be left out."""
    manifest = SOURCES[source](tmp_path, discs(255))
    with pytest.raises(ConfigError, match="only 0 and 255, and 255 is the ignore_index"):
        looked_at(manifest, "multiclass_segmentation", **CLASSES)
    with pytest.raises(ConfigError, match="holds 255, and class indices are 0 to 2"):
        looked_at(manifest, "multiclass_segmentation", ignore_index=9, **CLASSES)


def test_some_masks_of_0_and_255_among_class_maps_are_told(tmp_path):
    notices = looked_at(
        as_files(tmp_path, [*[with_ring(2, 1)] * 3, *discs(255, 1)]), "multiclass_segmentation", **CLASSES
    )
    assert len(notices) == 1
    assert "3_mask.png" in notices[0]
    assert "holds nothing but 0 and 255, and 255 is the ignore_index" in notices[0]


def test_jpeg_changes_class_indices(tmp_path):
    def save(path, mask):
        Image.fromarray(mask).save(path, format="JPEG", quality=100)

    halves = np.repeat([0, 1], 32).astype(np.uint8)[None].repeat(64, 0)  # of whole blocks, that JPEG keeps
    (notice,) = looked_at(as_files(tmp_path, [halves] * 4, save), "multiclass_segmentation", structures=["a", "b"])
    assert "is compressed with loss" in notice
    assert "(4 of 4 masks)" in notice


def test_polygons_are_drawn_as_the_task_wants_them(tmp_path):
    pytest.importorskip("rasterio")
    manifest = as_polygons(tmp_path, discs(255))
    assert looked_at(manifest) == []
    with pytest.raises(ConfigError, match=r"no value above 1, .*; leave data\.polygon_classes out"):
        looked_at(manifest, polygons=["background", "tumour"])
    two = {"structures": ["background", "tumour"]}
    assert looked_at(manifest, "multiclass_segmentation", polygons=two["structures"], **two) == []
    with pytest.raises(ConfigError, match=r"only 0 and 255.*by data\.polygon_classes"):
        looked_at(manifest, "multiclass_segmentation", **two)
    three = {"structures": ["background", "stroma", "Tumour"]}
    with pytest.raises(
        ConfigError, match=r"has 'tumour' at 2, and data\.polygon_classes has it at 1: .* 'stroma'; list"
    ):
        looked_at(manifest, "multiclass_segmentation", polygons=["background", "tumour", "stroma"], **three)


def test_polygons_of_two_sets_are_drawn_by_the_same_indices(tmp_path):
    """Else an index would be one class in a set and another class in the next, whatever the task calls it."""
    pytest.importorskip("rasterio")
    manifest = as_polygons(tmp_path, discs(255))
    task = tasks.create_task("multiclass_segmentation", "it", 0, structures=["background", "cancer", "other"])
    orders = [("background", "tumour", "stroma"), ("background", "stroma", "tumour")]
    folders = [
        data.usable_tiles(data.read_manifest(manifest, data.ManifestOptions(polygons=data.PolygonOptions(order))))[0]
        for order in orders
    ]
    datasets.check_maps([task], folders[:1])
    with pytest.raises(ConfigError, match=r"polygon_classes has 'tumour' at 2 in one of its data\.sets and at 1 in"):
        datasets.check_maps([task], folders)


def test_arrays_of_shares_and_of_large_numbers(tmp_path):
    shares = [mask.astype(np.float32) / 255 for mask in discs(255)]
    assert looked_at(as_array(tmp_path, shares, "*255")) == []
    with pytest.raises(ConfigError, match=r"no value above 1.*\*255 after the row"):
        looked_at(as_array(tmp_path, shares))
    with pytest.raises(ValueError, match="holds 0 to 300, and pixels are 0 to 255"):
        looked_at(as_array(tmp_path, [mask.astype(np.int32) * 300 for mask in discs(1)]))
    with pytest.raises(ValueError, match="holds -1 to 1, and pixels are 0 to 255"):
        looked_at(
            as_array(tmp_path, [mask.astype(np.int32) - 1 for mask in discs(2)]), "multiclass_segmentation", **CLASSES
        )


def test_a_further_column_of_masks_is_looked_at(tmp_path):
    as_files(tmp_path, discs(255))
    text = (tmp_path / "manifest.csv").read_text().replace(",mask,", ",mask,nuclei,")
    lines = [line.replace("_mask.png", f"_mask.png,{line[0]}_nuclei.png") for line in text.splitlines()]
    (tmp_path / "manifest.csv").write_text("\n".join(lines))
    for number, mask in enumerate(discs(1)):
        write_image(tmp_path / f"{number}_nuclei.png", mask)
    found, _ = data.usable_tiles(data.read_manifest(tmp_path / "manifest.csv"))
    task = tasks.create_task("binary_segmentation", "it", 0)
    assert datasets.check_maps([task], [found]) == []
    task.target = replace(task.target, column="nuclei")
    with pytest.raises(ConfigError, match=r"0_nuclei\.png, holds no value above 1"):
        datasets.check_maps([task], [found])


def test_a_damaged_part_of_a_mask_slide_is_left_to_the_loader(tmp_path):
    as_slides(tmp_path, discs(255, 1), compression="deflate")
    patch_tile(tmp_path / "0_mask.tif", 5, lambda part: part.__setitem__(slice(None), bytes(len(part))))
    assert looked_at(tmp_path / "manifest.csv") == []


ODD = {
    "empty": (lambda: discs(0), "every mask is empty: there is nothing to learn"),
    "full": (lambda: [mask + 255 for mask in discs(0)], "every mask is all foreground: there is nothing to learn"),
    "inverted": (lambda: [_speck() for _ in range(4)], "in more than 95%; is 255 the background"),
    "two greys": (
        lambda: [with_ring(255, 128) for _ in range(4)],
        "areas of 128 and 255, which all count as foreground",
    ),
    "a line of 1": (lambda: [_lined() for _ in range(4)], "holds 0, 1 and 255, of which 1 counts as background"),
    "a soft edge alone": (lambda: [*discs(255, 3), _faint()], "and counts as empty"),
}


def _speck() -> np.ndarray:
    mask = np.full((64, 64), 255, np.uint8)
    mask[::16, ::16] = 0
    return mask


def _lined() -> np.ndarray:
    mask = discs(255, 1)[0].copy()
    mask[2] = 1
    return mask


def _faint() -> np.ndarray:
    mask = np.zeros((64, 64), np.uint8)
    mask[:, 0] = np.arange(64)
    return mask


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("oddity", ODD)
def test_what_a_careful_colleague_would_ask_is_a_notice(oddity, source, tmp_path):
    make, says = ODD[oddity]
    (notice,) = looked_at(SOURCES[source](tmp_path, make()))
    assert says in notice
    assert "task 'it'" in notice
    assert "\n" not in notice


def test_a_class_that_no_mask_has_is_told(tmp_path):
    names = ["background", "gland", "tumour", "necrosis"]
    (notice,) = looked_at(as_files(tmp_path, [with_ring(2, 1)] * 4), "multiclass_segmentation", structures=names)
    assert "no 'necrosis' in any mask" in notice
    (tmp_path / "one").mkdir()
    (notice,) = looked_at(as_files(tmp_path / "one", discs(0)), "multiclass_segmentation", structures=names)
    assert "every pixel is 'background': there is nothing to learn" in notice
