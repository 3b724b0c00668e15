"""`data.StainNormalizer` and `data.StainStatistics`: pooled, cached, saved, augmented."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers.stain import tissue

from fastmtl import data, ops
from fastmtl.data.loading.transform_cpu import colour_matrices
from fastmtl.data.stain.files import FORMAT
from fastmtl.data.stain.statistics import pooled
from fastmtl.reference import stain_normalize as exact
from fastmtl.reference.stain_conventions import CONVENTIONS

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
STAINED = ("macenko", "vahadane", "ruifrok")


@pytest.mark.parametrize("convention", CONVENTIONS)
@pytest.mark.parametrize("method", STAINED)
def test_pooled_statistics_meet_the_exact_estimate(method, convention):
    """At most half a grey level from the exact estimate on all pixels at once."""
    # TIAToolbox's contrast stretch belongs to one tile: pixels of two share no mask.
    tiles = tissue(number=1 if convention == "tiatoolbox" else 2, size=48)
    statistics = data.StainStatistics(convention)
    for one in tiles:
        statistics.update(one[None])
    found = statistics.estimate(method, 10)
    chosen, pixels = CONVENTIONS[convention], tiles.transpose(0, 1).flatten(1)
    expected = exact.restain(pixels, exact.estimate(pixels, method, chosen), chosen)
    made = exact.restain(pixels, (found.vectors[0], found.maxima[0]), chosen)
    assert (made - expected).abs().median() <= 0.5


def test_statistics_add_up_in_any_order_and_over_ranks():
    tiles = tissue(number=4, size=32)
    parts = []
    for tile in tiles:
        parts.append(data.StainStatistics())
        parts[-1].update(tile.permute(1, 2, 0)[None])
    whole = data.StainStatistics()
    whole.update(tiles)
    assert pooled(parts) == whole == pooled(parts[::-1])
    assert (parts[0] + parts[1]) + (parts[2] + parts[3]) == whole
    assert whole.pixels == 4 * 32 * 32
    rgb = tiles.transpose(0, 1).flatten(1)
    assert whole.tissue_pixels == int(exact.tissue(rgb, CONVENTIONS["torchstain"]).sum())
    inside = torch.zeros(4, 32, 32, dtype=torch.bool)
    inside[:, :10] = True
    cut, part = data.StainStatistics(), data.StainStatistics()
    cut.update(tiles, inside)
    part.update(tiles[:, :, :10])
    assert cut == part


def test_statistics_are_saved_without_pickle(tmp_path):
    statistics = data.StainStatistics("cucim")
    statistics.update(tissue())
    statistics.save(tmp_path / "slide.npz")
    assert data.StainStatistics.load(tmp_path / "slide.npz") == statistics
    statistics.save(tmp_path / "slide.npz", "slide 7")
    assert data.StainStatistics.load(tmp_path / "slide.npz", "slide 7") == statistics
    with pytest.raises(data.StainFileError, match="other data"):
        data.StainStatistics.load(tmp_path / "slide.npz", "slide 8")
    with pytest.raises(ValueError, match="do not add"):
        statistics.merge(data.StainStatistics())


def test_a_slide_is_normalised_alike_whatever_the_tile():
    tiles = tissue(number=3)
    normalizer = data.StainNormalizer(target=tissue(7)[0])
    assert normalizer.fit_slide("a", tiles)
    together = normalizer(tiles, slides=["a"] * 3)
    alone = torch.cat([normalizer(tile[None], slides=["a"]) for tile in tiles])
    assert torch.equal(together, alone)
    assert not normalizer.fell_back.any()
    source = normalizer.slides["a"]
    expected = ops.stain_normalize(
        tiles,
        target=tuple(normalizer.target),
        stain_matrix=source.vectors,
        max_concentration=source.maxima,
        mean=MEAN,
        std=STD,
    )
    assert torch.equal(together, expected)


def test_where_stains_come_from_and_what_falls_back():
    blank = torch.full((1, 3, 64, 64), 245, dtype=torch.uint8)
    batch, keys = torch.cat([tissue(), blank, blank, tissue(4)]), ["a", "a", "", "b"]
    slide = data.StainNormalizer()
    slide.fit_slide("a", tissue(2))
    slide(batch, slides=keys)
    assert slide.fell_back.tolist() == [False, False, True, False]
    tile = data.StainNormalizer(per="tile")
    tile.fit_slide("a", tissue(2))
    result = tile.transform(batch, slides=keys, return_stains=True)
    assert result.fell_back.tolist() == [False, True, True, False]
    torch.testing.assert_close(result.stain_matrix[1], tile.slides["a"].vectors[0])
    torch.testing.assert_close(result.stain_matrix[2], tile.target.vectors[0])
    passing = data.StainNormalizer(per="tile", fallback="pass")
    assert torch.equal(passing.transform(batch)[1:3], batch[1:3])
    whole = data.StainNormalizer(per="batch").transform(batch, return_stains=True)
    assert not whole.fell_back.any()
    assert (whole.stain_matrix == whole.stain_matrix[:1]).all()
    assert not data.StainNormalizer().fit_slide("blank", blank)


def test_the_loaders_call_is_one_pass_of_everything():
    """Stains, then colour, then statistics, as the three steps one after the other."""
    batch = tissue(number=3)
    changes = np.array([[1.1, 0.9, 1.2, 8], [0.9, 1.2, 0.8, -9], [1, 1, 1, 0]], np.float32)
    colour = torch.from_numpy(colour_matrices(changes))
    inside = torch.ones(3, 64, 64, dtype=torch.bool)
    inside[:, :9] = False
    normalizer = data.StainNormalizer(per="tile")
    made = normalizer(batch, slides=[""] * 3, inside=inside, colour=colour, mean=MEAN, std=STD)
    plain = ops.stain_normalize(batch, inside=inside, dtype=torch.float32)
    coloured = torch.einsum("bij,bjhw->bihw", colour[..., :3], plain) + colour[..., 3, None, None]
    expected = (coloured.clamp(0, 255) / 255 - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
    torch.testing.assert_close(made, expected, rtol=1e-4, atol=1e-4)
    assert made.is_contiguous()


def test_stain_augmentation_moves_each_concentration():
    """A draw of 0.5 changes nothing; alpha and beta act on the target's concentrations."""
    batch = tissue()
    normalizer = data.StainNormalizer(per="tile", augmentation=(0.4, 0.1))
    still = normalizer(batch, slides=[""], draws=torch.full((1, 4), 0.5))
    torch.testing.assert_close(still, normalizer(batch, slides=[""]), rtol=1e-5, atol=1e-5)
    chosen, pixels = CONVENTIONS["torchstain"], batch[0].flatten(1)
    source = normalizer.transform(batch, return_stains=True)
    c = exact.concentrations(chosen.densities()[pixels.long()], source.stain_matrix[0], chosen)
    c = c * (normalizer.target.maxima[0] / source.max_concentration[0])[:, None]
    c = c * torch.tensor([[1.4], [0.8]]) + torch.tensor([[-0.1], [0.05]])
    expected = (240 * (-normalizer.target.vectors[0] @ c).exp()).clamp(0, 255).view(3, 64, 64)
    made = normalizer(
        batch, slides=[""], draws=torch.tensor([[1.0, 0.25, 0.0, 0.75]]), mean=(0, 0, 0), std=(1 / 255,) * 3
    )
    torch.testing.assert_close(made[0].double(), expected, rtol=0, atol=0.02)


@pytest.mark.parametrize("method", [*STAINED, "reinhard", "modified_reinhard"])
def test_saved_and_loaded(method, tmp_path):
    per = "tile" if "reinhard" in method else "slide"
    normalizer = data.StainNormalizer(method, per=per, augmentation=(0.1, 0.3)).fit(tissue(3)[0])
    if per == "slide":
        normalizer.fit_slide("Ä/1", tissue(1))
    normalizer.save(tmp_path / "n.npz")
    again, batch = data.StainNormalizer.load(tmp_path / "n.npz"), tissue(5)
    assert again.augmentation == (0.1, 0.3)
    assert torch.equal(again(batch, slides=["Ä/1"]), normalizer(batch, slides=["Ä/1"]))


def test_files_that_are_not_ours(tmp_path):
    path = tmp_path / "n.npz"
    with pytest.raises(data.StainFileError, match="Expected a stain file"):
        data.StainNormalizer.load(path)
    data.StainNormalizer().save(path)
    with pytest.raises(data.StainFileError, match="not stain statistics"):
        data.StainStatistics.load(path)
    with np.load(path) as file:
        arrays = dict(file)
    np.savez(path, **{**arrays, "format": np.array(FORMAT + 1)})
    with pytest.raises(data.StainFileError, match=f"version {FORMAT + 1}"):
        data.StainNormalizer.load(path)
    np.savez(path, **{name: value for name, value in arrays.items() if name != "maxima"})
    with pytest.raises(data.StainFileError, match="damaged"):
        data.StainNormalizer.load(path)
    path.write_bytes(b"PK\x03\x04 not a zip")
    with pytest.raises(data.StainFileError, match="damaged"):
        data.StainNormalizer.load(path)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"slides": ["a"]}, ValueError, "2 keys"),
        ({"slides": "ab"}, TypeError, "list"),
        ({"colour": torch.zeros(2, 3, 3)}, ValueError, "colour"),
        ({"colour": np.zeros((2, 3, 4), np.float32)}, TypeError, "from_numpy"),
        ({"draws": torch.zeros(2, 3)}, ValueError, "draws"),
        ({"images": torch.zeros(2, 3, 8, 8)}, ValueError, "uint8"),
    ],
)
def test_bad_calls_say_what_to_do(change, error, words):
    call = {"images": tissue(number=2, size=16), "slides": ["", ""], **change}
    with pytest.raises(error, match=words):
        data.StainNormalizer()(call.pop("images"), **call)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"per": "case"}, "per"),
        ({"method": "reinhard", "per": "slide"}, "'tile'"),
        ({"augmentation": (2, 0)}, "augmentation"),
        ({"fallback": "none"}, "fallback"),
    ],
)
def test_bad_options_say_what_to_do(options, words):
    with pytest.raises(ValueError, match=words):
        data.StainNormalizer(**options)
    with pytest.raises(ValueError, match="fit"):
        data.StainNormalizer("reinhard", per="tile").transform(tissue())
