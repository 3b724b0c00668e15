"""What masks must hold, whatever they are stored as and whichever command reads them: right targets, or a line."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers import masks as _masks
from helpers.masks import as_array, as_files, as_image_of_slide, as_polygons, as_runs, as_slides, in_alpha, shape
from helpers.slides import patch_tile
from helpers.tiles import write_image
from PIL import Image

from fastmtl import data, tasks
from fastmtl.builders import datasets
from fastmtl.config import ConfigError

pytest.importorskip("tifffile")
SOURCES = {"files": as_files, "slides": as_slides, "image of a slide": as_image_of_slide, "array": as_array}
GRID = data.GridOptions(tile_size=32, min_tissue=0.0)
CLASSES = {"structures": ["background", "gland", "tumour"]}


def looked_at(manifest: Path, kind: str = "binary_segmentation", polygons=(), **options) -> list[str]:
    """The notices of masks that are accepted; what training asks before it begins, without the training."""
    settings = data.ManifestOptions(grid=GRID, polygons=data.PolygonOptions(tuple(polygons)))
    found, _ = data.usable_tiles(data.read_manifest(manifest, settings))
    task = tasks.create_task(kind, "it", 0, **options)
    datasets.check_targets([task], found)
    return [str(problem) for problem in datasets.check_maps([task], [found], train=found)]


def discs(value: int, count: int = 4) -> list[np.ndarray]:
    return [shape(number).astype(np.uint8) * np.uint8(value) for number in range(count)]


def with_ring(inner: int, outer: int) -> np.ndarray:
    """A disc of `inner` in a square of `outer`."""
    mask = np.zeros((64, 64), np.uint8)
    mask[5:60, 5:60] = outer
    mask[shape()] = inner
    return mask


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


COLOURS = {
    "rgb": (lambda mask: np.stack([mask, 0 * mask, 0 * mask], 2), {}, "is coloured"),
    "grey in rgb": (lambda mask: np.repeat(mask[..., None], 3, 2), {}, ""),
    "transparent": (
        lambda mask: np.stack([mask, mask, mask, mask], 2),
        {"extrasamples": ["unassalpha"]},
        "transparent",
    ),
    "opaque": (lambda mask: np.stack([mask, mask, mask, 0 * mask + 255], 2), {"extrasamples": ["unassalpha"]}, ""),
}


@pytest.mark.parametrize("colours", COLOURS)
def test_colours_and_transparency_of_mask_slides(colours, tmp_path):
    make, options, says = COLOURS[colours]
    manifest = as_slides(tmp_path, [make(mask) for mask in discs(255)], **options)
    if not says:
        assert looked_at(manifest) == []
        return
    with pytest.raises(ConfigError, match=says):
        looked_at(manifest)


def test_a_palette_of_a_mask_slide_is_colours(tmp_path):
    colours = np.zeros((3, 256), np.uint16)
    colours[0, 1] = 65535  # red
    with pytest.raises(ConfigError, match="is coloured"):
        looked_at(as_slides(tmp_path, discs(1), photometric="palette", colormap=colours))


def test_a_mask_slide_of_several_pictures_is_refused(tmp_path):
    import tifffile

    as_slides(tmp_path, discs(255))
    with tifffile.TiffWriter(tmp_path / "0_mask.tif") as file:
        for mask in discs(255, 2):
            file.write(mask, tile=(16, 16), photometric="minisblack", metadata=None)
    with pytest.raises(ConfigError, match="holds 2 pictures of its size"):
        looked_at(tmp_path / "manifest.csv")


def _white_with_a_hole(path: Path, mask: np.ndarray) -> None:
    Image.merge("LA", [Image.new("L", mask.shape[::-1], 255), Image.fromarray(mask)]).save(path)


def _partly_hidden(path: Path, mask: np.ndarray) -> None:
    hidden = mask.copy()
    hidden[:32] = 0
    Image.merge("RGBA", [Image.fromarray(mask)] * 3 + [Image.fromarray(hidden)]).save(path)


def _opaque(path: Path, mask: np.ndarray) -> None:
    Image.merge("LA", [Image.fromarray(mask), Image.new("L", mask.shape[::-1], 255)]).save(path)


def _two_pages(path: Path, mask: np.ndarray) -> None:
    image = Image.fromarray(mask)
    image.save(path, format="TIFF", save_all=True, append_images=[image])


def _sixteen_bits(path: Path, mask: np.ndarray) -> None:
    Image.fromarray(mask.astype(np.uint16)).save(path)


FORMS = {
    "shape in alpha": (in_alpha, "is 0 everywhere and has its shape in the alpha channel"),
    "shape in alpha of white": (_white_with_a_hole, "is 255 everywhere and has its shape in the alpha"),
    "partly transparent": (_partly_hidden, "its alpha channel makes transparent"),
    "palette": (_masks.as_palette, "is a palette mask"),
    "16 bits": (_sixteen_bits, "more than 8 bits|scale them to 8-bit|convert it to 8-bit"),
}


@pytest.mark.parametrize("source", [as_files, as_image_of_slide])
@pytest.mark.parametrize("form", FORMS)
def test_forms_that_hide_the_structure_are_refused(form, source, tmp_path):
    save, says = FORMS[form]
    with pytest.raises((ConfigError, ValueError), match=says):
        looked_at(source(tmp_path, discs(255), save))


def test_several_pages_are_refused(tmp_path):
    with pytest.raises(ValueError, match="holds 2 pictures"):
        looked_at(as_files(tmp_path, discs(255), _two_pages))


@pytest.mark.parametrize("save", [_opaque, lambda path, mask: Image.fromarray(mask).convert("1").save(path)])
@pytest.mark.parametrize("source", [as_files, as_image_of_slide])
def test_opaque_and_one_bit_masks_are_fine(save, source, tmp_path):
    assert looked_at(source(tmp_path, discs(255), save)) == []


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


@pytest.mark.parametrize(
    ("channels", "says"),
    [
        ((255, 255, 255), ""),
        ((255, 255), r"has 2 channels, and each structure is one \(4 of 4 masks\); save 3"),
        ((255, 1, 255), "no value above 1"),
        ((255, 0, 255), "every mask of 'b' is empty"),
    ],
)
def test_every_structure_has_a_channel_that_shows(channels, says, tmp_path):
    masks = [
        np.stack([np.roll(mask, 9 * at, 1) * np.uint8(value) for at, value in enumerate(channels)], 2)
        for mask in discs(1)
    ]
    manifest = as_array(tmp_path, masks)
    options = {"structures": ["a", "b", "c"]}
    if "every" in says or not says:
        notices = looked_at(manifest, "multilabel_segmentation", **options)
        assert len(notices) == bool(says)
        assert says in "".join(notices)
        return
    with pytest.raises(ConfigError, match=says):
        looked_at(manifest, "multilabel_segmentation", **options)


@pytest.mark.parametrize(("size", "says"), [(3, ""), (2, "has 3 channels"), (1, "has 3 channels")])
def test_structures_in_the_channels_of_a_mask_slide(size, says, tmp_path):
    masks = [np.stack([np.roll(mask, 9 * at, 1) for at in range(3)], 2) for mask in discs(255)]
    manifest, names = as_slides(tmp_path, masks), ["a", "b", "c"][:size]
    if not says:
        assert looked_at(manifest, "multilabel_segmentation", structures=names) == []
        return
    with pytest.raises(ConfigError, match=says):
        looked_at(manifest, "multilabel_segmentation", structures=names)


@pytest.mark.parametrize("repeated", [False, True])
def test_a_grey_mask_slide_is_not_three_structures(repeated, tmp_path):
    masks = [np.repeat(mask[..., None], 3, 2) if repeated else mask for mask in discs(255)]
    says = "has equal channels, as all others have" if repeated else "has 1 channel, and each structure is one"
    with pytest.raises(ConfigError, match=says):
        looked_at(as_slides(tmp_path, masks), "multilabel_segmentation", structures=["a", "b", "c"])


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
