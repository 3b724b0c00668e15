"""Stain normalisation from a recipe: options, the stains of slides, and the run that keeps its normaliser."""

import io
import json
import shutil
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.paths import DOCS
from helpers.slides import write_tiff
from helpers.stain import tissue
from helpers.tiles import write_image
from rich.console import Console

from fastmtl import api, config, data
from fastmtl.builders import stains
from fastmtl.data.stain import slide_statistics
from fastmtl.data.synthetic.tissue import ARCHITECTURES, expose, paint, random_stain


def _folder(root, patients=2, tiles=3, size=48):
    """Painted tissue, each patient in a stain of its own."""
    for patient in range(patients):
        stain = random_stain(np.random.default_rng(patient))
        for number, (name, architecture) in zip(range(tiles), ARCHITECTURES.items(), strict=False):
            rng = np.random.default_rng(10 * patient + number)
            haematoxylin, eosin, inside = paint(rng, size, size, architecture)
            stem = f"P{patient}-{number}"
            write_image(root / name / "image" / f"{stem}.png", expose(rng, haematoxylin, eosin, stain))
            write_image(root / name / "label" / f"{stem}.png", inside.astype(np.uint8) * 255)
    return root


def _recipe(**stain):
    overrides = {
        "data": {"stain": stain, "size": 32, "batch_size": 4, "generator": ""},
        "model": {"base_channels": 2},
        "training": {"epochs": 1, "precision": "float32"},
    }
    return config.load_recipe("ebhi_joint_unet", overrides)


def test_each_patient_is_looked_at_once(tmp_path, monkeypatch):
    dataset = data.read_tile_folder(_folder(tmp_path, tiles=3))
    recipe = _recipe(method="macenko", min_tissue=50)
    normalizer = stains.build_normalizer(recipe)
    stains.fit_slides(normalizer, dataset.tiles, recipe)
    assert set(normalizer.slides) == {"P0", "P1"}
    vectors = [normalizer.slides[key].vectors for key in ("P0", "P1")]
    assert not torch.allclose(*vectors, atol=1e-3)
    monkeypatch.setattr(normalizer, "fit_slide", lambda *_: pytest.fail("looked at again"))
    stains.fit_slides(normalizer, dataset.tiles, recipe)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run whose target's file is gone; tests work on copies."""
    tmp_path = tmp_path_factory.mktemp("trained")
    root, out = _folder(tmp_path / "tiles", patients=6), tmp_path / "run"
    target = tmp_path / "target.png"
    write_image(target, data.open_picture(next((root / "Normal" / "image").iterdir())))
    recipe = _recipe(method="macenko", target=str(target), min_tissue=50, sample=2)
    api.train(recipe, root, out, console=Console(file=io.StringIO()))
    target.unlink()
    return out


@pytest.mark.long
def test_a_run_keeps_its_normaliser_for_other_data(trained, tmp_path):
    out = Path(shutil.copytree(trained, tmp_path / "run"))
    kept = data.StainNormalizer.load(out / stains.FILE)
    assert set(kept.slides) == {f"P{patient}" for patient in range(6)}
    others = _folder(tmp_path / "others", patients=8)
    found = api.evaluate(out, others, everything=True)
    assert found["num_images"] == 24
    (out / stains.FILE).unlink()  # not silently without stains
    with pytest.raises(data.StainFileError, match=r"stain\.npz does not exist"):
        api.evaluate(out, others, everything=True)


@pytest.mark.parametrize("per", ["slide", "tile"])
def test_a_mosaic_is_the_target_of_all_tiles_side_by_side(tmp_path, per):
    """The pooled counts of the tiles' colours are the mosaic's."""
    dataset = data.read_tile_folder(_folder(tmp_path, tiles=3))
    recipe = _recipe(method="macenko", target="mosaic", per=per)
    normalizer = stains.build_normalizer(recipe)
    stains.fit_slides(normalizer, dataset.tiles, recipe)
    assert set(normalizer.slides) == ({"P0", "P1"} if per == "slide" else set())
    picture = data.mosaic_target([data.open_picture(tile.image) for tile in dataset.tiles], columns=2)
    expected = data.StainNormalizer(target=picture).target
    torch.testing.assert_close(normalizer.target.vectors, expected.vectors, rtol=0, atol=0.01)
    torch.testing.assert_close(normalizer.target.maxima, expected.maxima, rtol=0.02, atol=0)
    made = normalizer.target
    stains.fit_slides(normalizer, dataset.tiles[:2], recipe)
    assert normalizer.target is made  # of the training tiles, which come first


def test_a_run_takes_the_mosaic_of_its_training_tiles(tmp_path):
    root, out = _folder(tmp_path / "tiles", patients=6), tmp_path / "run"
    recipe = _recipe(method="ruifrok", target="mosaic", min_tissue=50)
    api.train(recipe, root, out, console=Console(file=io.StringIO()))
    dataset, train = data.read_tile_folder(root), set(json.loads((out / "split.json").read_text())["train"])
    assert len(train) < len(dataset)
    alone = stains.build_normalizer(recipe)
    stains.fit_slides(alone, [tile for tile in dataset.tiles if tile.id in train], recipe)
    kept = stains.load_normalizer(out, recipe)
    assert torch.equal(kept.target.maxima, alone.target.maxima)


def test_blank_tiles_make_no_mosaic(tmp_path):
    for number in range(2):
        write_image(tmp_path / "a" / "image" / f"P-{number}.png", np.full((32, 32, 3), 245, np.uint8))
    recipe = _recipe(method="macenko", target="mosaic")
    with pytest.raises(config.ConfigError, match=r"target = \"mosaic\" cannot be used: .*two stains"):
        stains.fit_slides(stains.build_normalizer(recipe), data.read_tile_folder(tmp_path).tiles, recipe)


def test_another_run_reads_no_pixels_of_indexed_slides(tmp_path, monkeypatch):
    slide = write_tiff(tmp_path / "one.tif", tissue(size=128)[0].permute(1, 2, 0).numpy())
    data.index_slide(slide)
    regions = [data.Region(slide, x, y, 64, 64) for x in (0, 64) for y in (0, 64)]
    tiles = [data.Tile(str(number), region, None, None, "P") for number, region in enumerate(regions)]

    def fitted(method):
        recipe = _recipe(method=method, min_tissue=50, sample=2)
        normalizer = stains.build_normalizer(recipe)
        stains.fit_slides(normalizer, tiles, recipe)
        return normalizer.slides[str(slide)]

    first = fitted("macenko")
    monkeypatch.setattr(slide_statistics, "open_picture", lambda picture: pytest.fail("looked at again"))
    assert torch.equal(fitted("macenko").vectors, first.vectors)
    assert not torch.equal(fitted("ruifrok").vectors, first.vectors)


def test_many_slides_are_told_of(tmp_path, monkeypatch):
    monkeypatch.setattr(stains, "_PRINT_EVERY", 2)
    recipe, said = _recipe(method="macenko"), io.StringIO()
    tiles = data.read_tile_folder(_folder(tmp_path, patients=5, tiles=1)).tiles
    stains.fit_slides(stains.build_normalizer(recipe), tiles, recipe, console=Console(file=said))
    assert said.getvalue().splitlines() == ["stains: 2 of 5 slides", "stains: 4 of 5 slides"]


def test_a_target_is_looked_for_where_fastmtl_is_started(tmp_path, monkeypatch):
    """As data.root and data.index_folder are, wherever the recipe's file lies."""
    tile = next((_folder(tmp_path / "tiles") / "Normal" / "image").iterdir())
    write_image(tmp_path / "here" / "target.png", data.open_picture(tile))
    (tmp_path / "recipes").mkdir()
    path = tmp_path / "recipes" / "own.toml"
    path.write_text('extends = "ebhi_joint_unet"\n[data.stain]\nmethod = "reinhard"\ntarget = "target.png"\n')
    recipe = config.load_recipe(path)
    monkeypatch.chdir(tmp_path / "recipes")
    with pytest.raises(config.ConfigError, match=r"the target target.png does not exist \(in .*recipes\)"):
        stains.build_normalizer(recipe)
    monkeypatch.chdir(tmp_path / "here")
    assert stains.build_normalizer(recipe).target is not None


@pytest.mark.parametrize("method", ["reinhard", "vahadane"])
def test_every_method_trains_with_augmentation(tmp_path, method):
    """Reinhard has no stains to augment, and the rest of the augmentation goes on."""
    root, out = _folder(tmp_path / "tiles", patients=6), tmp_path / "run"
    target = str(next((root / "Normal" / "image").iterdir()))
    recipe = _recipe(method=method, target=target, min_tissue=50, sample=1)
    found = api.train(recipe, root, out, console=Console(file=io.StringIO()))
    assert found["num_images"] > 0
    assert stains.load_normalizer(out, recipe).augments == (method != "reinhard")


def test_a_run_goes_on_with_the_normaliser_it_kept(trained, tmp_path, monkeypatch):
    out = Path(shutil.copytree(trained, tmp_path / "run"))
    monkeypatch.setattr(data.StainNormalizer, "fit_slide", lambda *_: pytest.fail("looked at again"))
    (out / "summary.json").unlink()
    again = api.resume(out, console=Console(file=io.StringIO()))
    assert again["num_images"] == json.loads((trained / "summary.json").read_text())["num_images"]


def test_a_table_that_cannot_be_used_is_told_before_data_are_read(tmp_path):
    with pytest.raises(ValueError, match=r"the target nowhere\.png does not exist"):
        api.train(
            _recipe(method="macenko", target="nowhere.png"), tmp_path / "none", tmp_path / "run", console=Console()
        )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"methd": "macenko"}, "did you mean 'method'"),
        ({"method": "macenko", "augmentation": 0.2}, "two numbers"),
        ({"method": "macenko", "target": 3}, "image file"),
        ({"target": "x.png"}, "needs a method"),
        ({"method": "reinhard"}, "set target"),
        ({"method": "reinhard", "target": "mosaic"}, "no stains to estimate from a mosaic"),
        ({"method": "macenkko"}, "macenko"),
        ({"method": "macenko", "traget": "x.png"}, "did you mean 'target'"),
        ({"method": "macenko", "target": "nowhere.png"}, "nowhere.png"),
        ({"method": "reinhard", "per": "tile"}, "set target"),
        ({"method": "macenko", "sample": 0}, "sample"),
        ({"method": "macenko", "per": "patient"}, "`per`"),
    ],
)
def test_bad_tables_are_one_clear_line(options, message):
    with pytest.raises(ValueError, match=message):
        stains.build_normalizer(_recipe(**options))


def test_the_page_shows_every_option_and_its_default():
    page = (DOCS / "stain.md").read_text(encoding="utf-8")
    table = tomllib.loads(page.partition("```toml\n")[2].partition("```")[0])["data"]["stain"]
    assert tuple(sorted(table)) == tuple(sorted(stains._OPTIONS))
    assert table.pop("sample") == stains._SAMPLE
    shown = data.StainNormalizer(**{key: value for key, value in table.items() if key != "target"})
    for name in ("method", "per", "min_tissue", "fallback", "augmentation"):
        assert getattr(shown, name) == getattr(data.StainNormalizer(), name)


def test_no_table_is_no_normaliser(tmp_path):
    assert stains.build_normalizer(_recipe()) is None
    assert stains.load_normalizer(tmp_path, _recipe()) is None
