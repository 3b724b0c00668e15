"""Stain normalisation from a recipe: options, the stains of slides, and the run that keeps its normaliser."""

import io
import json
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
from _tiles import write_image
from rich.console import Console

from fastmtl import commands, config, data, staining
from fastmtl.data.tissue import ARCHITECTURES, expose, paint, random_stain


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
    normalizer = staining.build_normalizer(recipe)
    staining.fit_slides(normalizer, dataset.tiles, recipe)
    assert set(normalizer.slides) == {"P0", "P1"}
    vectors = [normalizer.slides[key].vectors for key in ("P0", "P1")]
    assert not torch.allclose(*vectors, atol=1e-3)
    monkeypatch.setattr(normalizer, "fit_slide", lambda *_: pytest.fail("looked at again"))
    staining.fit_slides(normalizer, dataset.tiles, recipe)


def test_a_run_keeps_its_normaliser_for_other_data(tmp_path):
    root, out = _folder(tmp_path / "tiles", patients=6), tmp_path / "run"
    target = tmp_path / "target.png"
    write_image(target, data.open_picture(next((root / "Normal" / "image").iterdir())))
    recipe = _recipe(method="macenko", target=str(target), min_tissue=50, sample=2)
    commands.train(recipe, root, out, console=Console(file=io.StringIO()))
    target.unlink()
    kept = data.StainNormalizer.load(out / staining.FILE)
    assert set(kept.slides) == {f"P{patient}" for patient in range(6)}
    found = commands.evaluate(out, _folder(tmp_path / "others", patients=8), everything=True)
    assert found["num_images"] == 24


@pytest.mark.parametrize("method", ["reinhard", "vahadane"])
def test_every_method_trains_with_augmentation(tmp_path, method):
    """Reinhard has no stains to augment, and the rest of the augmentation goes on."""
    root, out = _folder(tmp_path / "tiles", patients=6), tmp_path / "run"
    target = str(next((root / "Normal" / "image").iterdir()))
    recipe = _recipe(method=method, target=target, min_tissue=50, sample=1)
    found = commands.train(recipe, root, out, console=Console(file=io.StringIO()))
    assert found["num_images"] > 0
    assert staining.load_normalizer(out).augments == (method != "reinhard")


def test_a_run_goes_on_with_the_normaliser_it_kept(tmp_path, monkeypatch):
    root, out = _folder(tmp_path / "tiles", patients=6), tmp_path / "run"
    target = tmp_path / "target.png"
    write_image(target, data.open_picture(next((root / "Normal" / "image").iterdir())))
    recipe = _recipe(method="macenko", target=str(target), min_tissue=50, sample=2)
    commands.train(recipe, root, out, console=Console(file=io.StringIO()))
    target.unlink()
    monkeypatch.setattr(data.StainNormalizer, "fit_slide", lambda *_: pytest.fail("looked at again"))
    again = commands.resume(out, console=Console(file=io.StringIO()))
    assert again["num_images"] == json.loads((out / "summary.json").read_text())["num_images"]


def test_a_table_that_cannot_be_used_is_told_before_data_are_read(tmp_path):
    with pytest.raises(ValueError, match="there is no target nowhere"):
        commands.train(
            _recipe(method="macenko", target="nowhere.png"), tmp_path / "none", tmp_path / "run", console=Console()
        )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"methd": "macenko"}, "did you mean 'method'"),
        ({"method": "macenko", "augmentation": 0.2}, "two numbers"),
        ({"method": "macenko", "target": 3}, "image file"),
        ({"target": "x.png"}, "needs a method"),
        ({"method": "reinhard"}, "give target"),
        ({"method": "macenkko"}, "macenko"),
        ({"method": "macenko", "traget": "x.png"}, "did you mean 'target'"),
        ({"method": "macenko", "target": "nowhere.png"}, "nowhere.png"),
        ({"method": "reinhard", "per": "tile"}, "give target"),
        ({"method": "macenko", "sample": 0}, "sample"),
        ({"method": "macenko", "per": "patient"}, "`per`"),
    ],
)
def test_bad_tables_are_one_clear_line(options, message):
    with pytest.raises(ValueError, match=message):
        staining.build_normalizer(_recipe(**options))


def test_the_page_shows_every_option_and_its_default():
    page = (Path(__file__).parent.parent / "docs" / "stain.md").read_text(encoding="utf-8")
    table = tomllib.loads(page.partition("```toml\n")[2].partition("```")[0])["data"]["stain"]
    assert tuple(sorted(table)) == tuple(sorted(staining._OPTIONS))
    assert table.pop("sample") == staining._SAMPLE
    shown = data.StainNormalizer(**{key: value for key, value in table.items() if key != "target"})
    for name in ("method", "per", "min_tissue", "fallback", "augmentation"):
        assert getattr(shown, name) == getattr(data.StainNormalizer(), name)


def test_no_table_is_no_normaliser(tmp_path):
    assert staining.build_normalizer(_recipe()) is None
    assert staining.load_normalizer(tmp_path) is None
