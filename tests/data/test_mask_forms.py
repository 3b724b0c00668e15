"""Colours, channels, transparency, palettes and pages of masks: read as meant, or refused in a line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from helpers.masks import as_array, as_files, as_image_of_slide, as_palette, as_slides, discs, in_alpha, looked_at
from PIL import Image

from fastmtl.config import ConfigError

pytest.importorskip("tifffile")


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
    "palette": (as_palette, "is a palette mask"),
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
