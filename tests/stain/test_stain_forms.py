"""Images as people hold them go into `data.StainNormalizer` and come out alike; what cannot go in is told."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers.stain import tissue
from PIL import Image

from fastmtl import data, ops

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
BATCH = tissue(number=2, size=48)
LAST = BATCH.permute(0, 2, 3, 1).contiguous()
ARRAY = LAST.numpy()
PICTURE = Image.fromarray(ARRAY[0])


@pytest.fixture(scope="module")
def normalizer():
    return data.StainNormalizer(per="tile").fit(tissue(4)[0])


@pytest.fixture(scope="module")
def expected(normalizer):
    return normalizer.transform(LAST).numpy()


@pytest.mark.parametrize(
    ("images", "single"),
    [
        (ARRAY, False),
        (ARRAY[0], True),
        (np.flip(ARRAY[0].copy()[::-1], 0), True),
        (PICTURE, True),
        ([PICTURE, Image.fromarray(ARRAY[1])], False),
        (list(ARRAY), False),
    ],
    ids=["batch", "one", "negative strides", "PIL", "PIL images", "arrays"],
)
def test_arrays_and_pictures_come_back_as_arrays(normalizer, expected, images, single):
    made = normalizer.transform(images)
    assert isinstance(made, np.ndarray)
    np.testing.assert_array_equal(made, expected[0] if single else expected)


def test_one_tensor_comes_back_as_one_tensor(normalizer, expected):
    made = normalizer.transform(BATCH[0], return_stains=True)
    assert made.images.shape == made.eosin.shape == (3, 48, 48)
    assert made.stain_matrix.shape == (3, 2)
    assert not made.fell_back
    np.testing.assert_array_equal(made.images.permute(1, 2, 0), expected[0])
    hidden = normalizer.transform(BATCH[0], inside=torch.zeros(48, 48, dtype=torch.bool))
    assert (hidden == 240).all()


def test_targets_and_slides_of_any_form():
    numbers = data.StainNormalizer().fit(LAST[0]).target
    for image in (BATCH[0], ARRAY[0], PICTURE):
        for found in (data.StainNormalizer(target=image).target, data.StainNormalizer().fit(image).target):
            torch.testing.assert_close(tuple(found), tuple(numbers))
    made = ops.stain_normalize(BATCH, target=PICTURE)
    assert torch.equal(made, ops.stain_normalize(BATCH, target=BATCH[0]))
    stored = []
    for tiles in (BATCH, ARRAY, list(ARRAY), [Image.fromarray(one) for one in ARRAY], [BATCH[:1], ARRAY[1]]):
        slide = data.StainNormalizer()
        assert slide.fit_slide("a", tiles)
        stored.append(slide.slides["a"].vectors)
    assert all(torch.equal(stored[0], other) for other in stored)
    one = data.StainNormalizer()
    assert one.fit_slide("a", PICTURE)
    assert torch.equal(data.mosaic_target(list(ARRAY)), data.mosaic_target(BATCH))


def test_draws_act_in_transform_as_in_the_loaders_call(normalizer):
    draws = torch.rand(2, 4, generator=torch.Generator().manual_seed(0))
    made = normalizer.transform(BATCH, draws=draws, mean=MEAN, std=STD)
    assert torch.equal(made, normalizer(BATCH, slides=["", ""], draws=draws, mean=MEAN, std=STD))
    levels = normalizer.transform(BATCH, draws=draws)
    assert levels.dtype == torch.uint8
    assert not torch.equal(levels, normalizer.transform(BATCH))


def test_reinhard_is_per_tile_and_takes_no_draws():
    normalizer = data.StainNormalizer("reinhard", target=PICTURE)
    assert normalizer.per == "tile"
    assert not normalizer.augments
    assert not data.StainNormalizer(augmentation=(0, 0)).augments
    assert data.StainNormalizer().augments
    with pytest.raises(ValueError, match="`draws`"):
        normalizer.transform(BATCH, draws=torch.rand(2, 4))


def test_a_normaliser_says_what_it_is(normalizer):
    assert repr(normalizer) == "StainNormalizer('macenko', convention='torchstain', per='tile': 0 slides)"
    assert "not fitted" in repr(data.StainNormalizer("reinhard"))


@pytest.mark.parametrize(
    ("act", "error", "words"),
    [
        (lambda n: n.transform(PICTURE.convert("RGBA")), ValueError, "convert"),
        (lambda n: n.fit(PICTURE.convert("L")), ValueError, "mode L"),
        (lambda n: n.transform("tile.png"), TypeError, "got str"),
        (lambda n: n.fit("tile.png"), TypeError, "got str"),
        (lambda n: n.transform([BATCH[0], "tile.png"]), TypeError, "got str at 1"),
        (lambda n: n.transform([BATCH[0], BATCH[1, :, 8:]]), ValueError, "one size"),
        (lambda n: n.transform([]), ValueError, "at least one"),
        (lambda n: n.fit(BATCH), ValueError, "mosaic_target"),
        (lambda n: n.fit(BATCH[0] / 255), ValueError, r"255 \* target"),
        (lambda n: n.fit(([[1, 0], [0, 1]], [1, 1])), ValueError, "must hold"),
        (lambda n: n.fit(([[1], [0, 1]], [1, 1])), ValueError, "must hold numbers"),
        (lambda n: n.fit((torch.full((3, 2), torch.nan), [1, 1])), ValueError, "finite"),
        (lambda n: n.fit((torch.eye(3, 2), [1, -1])), ValueError, "above 0"),
        (lambda n: n.transform(ARRAY, mean=(124, 116, 104), std=STD), ValueError, "Divide"),
        (lambda n: n.transform(ARRAY, mean=MEAN, std=(58, 57, 57)), ValueError, "Divide"),
        (lambda n: n.transform(ARRAY, mean=MEAN, std=STD, dtype=torch.uint8), ValueError, "floating"),
        (lambda n: data.StainNormalizer(augmentation=0.2), ValueError, "two numbers"),
        (lambda n: ops.stain_normalize(ARRAY), TypeError, "from_numpy"),
    ],
)
def test_what_cannot_go_in_is_told(normalizer, act, error, words):
    with pytest.raises(error, match=words):
        act(normalizer)


def test_statistics_are_taken_as_arrays_too():
    made = ops.stain_normalize(BATCH, mean=np.array(MEAN), std=np.array(STD))
    assert torch.equal(made, ops.stain_normalize(BATCH, mean=MEAN, std=STD))


def test_an_image_is_no_stain_file(tmp_path):
    PICTURE.save(tmp_path / "stains.png")
    with pytest.raises(data.StainFileError, match="no stain file") as found:
        data.StainNormalizer.load(tmp_path / "stains.png")
    assert "pickle" not in str(found.value)
    with pytest.raises(data.StainFileError, match="cannot be read"):
        data.StainNormalizer.load(tmp_path)
