"""Every block of README.md and docs/ runs as it stands: a newcomer copies it.

The pages in OWN_TESTS and the blocks of training loops have tests of their own.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.pages import Block, blocks, claim, is_of_a_loop
from helpers.runs import untrained
from helpers.slides import tissue_like, write_tiff
from helpers.tiles import random_pixels, write_folder, write_image
from PIL import Image

import fastmtl
from fastmtl import data
from fastmtl.builders import components, datasets, stains
from fastmtl.cli import main
from fastmtl.config import DistributedConfig, load_recipe
from fastmtl.utils.torchvision_guard import make_torchvision_importable

make_torchvision_importable()
OWN_TESTS = ("cluster.md", "extending.md", "pretrained.md", "reliability.md", "sets.md", "splits.md", "stages.md")
BLOCKS = [block for block in blocks() if block.page not in OWN_TESTS and not is_of_a_loop(block)]
SMALL = ["--epochs", "1", "--size", "32", "--batch-size", "2", "--set", "model.base_channels=4"]
CLAIMED: list[Block] = []
_block = partial(claim, BLOCKS, CLAIMED)

IN_A_CLONE = [  # what sets up and runs these tests
    _block("README.md", "pip install"),
    _block("install.md", "pip install"),
    _block("install.md", "make demo"),
]
DATA_COMMANDS = _block("data.md", "fastmtl data check")
READ_ONLY = _block("data.md", "--index-folder")
DATA_RECIPE = _block("data.md", "[data.columns]")
POLYGON_RECIPE = _block("data.md", "polygon_rename")
_block("nnunet.md", "nnUNetv2_train")  # tests/integrations/test_nnunet_trainer.py runs what it names
RANKS_RECIPE = _block("distributed.md", "[distributed]")
TORCHRUN = _block("distributed.md", "torchrun")
REPRODUCE = _block("papers.md", "fastmtl reproduce")
PREDICT = [_block("prediction.md", words) for words in ("a folder of slides", "torchrun", "--min-area")]
LOADED = _block("prediction.md", "fastmtl.load")
BASE_RECIPE = _block("recipes.md", "without = ")
SLIDE = _block("slides.md", "open_slide")
_block("slides.md", "fastmtl prepare")  # tests/slides/test_five_formats.py runs them
_block("slides.md", "ebhi_joint_unet")  # with this recipe
STAINS = _block("stain.md", "fit_slide")
PILLOW = _block("stain.md", "Image.open")
STAIN_RECIPE = _block("stain.md", "[data.stain]")
COMMANDS = _block("training.md", "fastmtl report")
RECIPE = _block("training.md", "[tasks.grade]")
PYTHON = _block("training.md", "api.train(")


def test_every_block_is_run_here():
    assert sorted(CLAIMED) == sorted(BLOCKS)


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    yield tmp_path
    data.use_index_folder(None)  # which data.index_folder set for the process


def _run(words: list[str], *options: str) -> None:
    """A command line of the page, with options that make it small; torchrun's in this process alone."""
    words = words[words.index("fastmtl") + 1 :] if words[0] == "torchrun" else words[1:]
    is_new = words[0] == "train" and "--resume" not in words
    assert main([*words, *(SMALL if is_new else ()), *options]) == 0, words


def _slides(folder: Path) -> None:
    """Four slides of four patients, and what their glands and grades are."""
    folder.mkdir()
    rows = ["slide,mask,label,grade,case,day,patient"]
    for seed, name in enumerate("ABCD"):
        write_tiff(folder / f"{name}.tif", tissue_like(seed=seed), levels=2)
        glands = np.kron(random_pixels(seed, 20)[..., 0] > 127, np.ones((15, 15))).astype(np.uint8)[:210, :300] * 255
        write_tiff(folder / f"{name}_mask.tif", glands, compression="lzw")
        rows.append(
            f"{name}.tif,{name}_mask.tif,{'benign' if seed % 2 else 'malignant'},{1 + seed % 3},C{name},1,P{name}"
        )
    (folder / "manifest.csv").write_text("\n".join(rows))


@pytest.fixture
def folders(here):
    write_folder(here / "DIR", {"Normal": 6, "Polyp": 6}, size=32)
    write_folder(here / "OTHER", {"Normal": 2, "Polyp": 2}, size=32)
    for number in range(2):
        write_image(here / "IMAGES" / f"{number}.png", random_pixels(number, 32))
    _slides(here / "SLIDES")
    return here


@pytest.mark.long
def test_the_commands_of_the_training_page(folders):
    options = "\n[data]\ntile_size = 64\nmin_tissue = 0.0\n"
    Path("my_recipe.toml").write_text(RECIPE.text + options)
    for words in COMMANDS.commands:
        if words[1] == "prepare":
            Path("SLIDES/manifest.csv").replace("known.csv")  # what is known of the slides
        if words[1:3] == ["data", "check"]:
            Path("known.csv").replace("SLIDES/manifest.csv")
        if "..." not in words:
            _run(words, *(["--everything"] if words[1] == "eval" else []))
    assert Path("both.html").is_file()
    assert len(list(Path("runs/slides").rglob("*.geojson"))) == 4


def test_training_from_python(folders):
    small = '{"training": {"epochs": 1}, "data": {"size": 32, "batch_size": 2}, "model": {"base_channels": 4}}'
    scope = {}
    write_folder(folders / "OTHER", {"Normal": 8, "Polyp": 8}, size=32)  # two patients more than DIR
    exec(PYTHON.text.replace('{"training": {"epochs": 3}}', small), scope)
    assert scope["summary"]["tasks"].keys() == scope["scores"]["tasks"].keys()
    assert Path("runs/python/report.html").is_file()


def test_a_run_from_python(here):
    untrained(Path("runs/mine"))
    write_image(Path("tile.png"), np.zeros((40, 50, 3), np.uint8))
    scope = {"fastmtl": fastmtl}
    exec(LOADED.text, scope)
    assert scope["found"]["segmentation"]["mask"].shape == (40, 50)
    assert sum(scope["found"]["classification"]["probabilities"].values()) == pytest.approx(1, abs=1e-5)


def test_a_recipe_with_grades_that_are_numbers(folders):
    """1, 2 and 3 are classes of a task that learns classes, and the recipe need not say so."""
    Path("my_recipe.toml").write_text(RECIPE.text)
    recipe = load_recipe("my_recipe.toml", {"data": {"tile_size": 64, "min_tissue": 0.0}})
    dataset = datasets.read_data(recipe, folders / "SLIDES")
    assert dataset.classes["grade"] == ("1", "2", "3")
    datasets.check_targets(components.build_tasks(recipe, dataset.class_names, dataset.classes), dataset)


@pytest.mark.parametrize(("block", "folder"), [(DATA_COMMANDS, "DIR"), (READ_ONLY, "SLIDES")], ids=["DIR", "read only"])
def test_commands_on_own_data(block, folder, folders):
    where = {
        "DIR": folder,
        "RECIPE": "ebhi_joint_unet",
        "ROOT": f"{folders}/{folder}",
        "INDEX": f"{folders}/HERE/index",
    }
    if folder == "SLIDES":  # `prepare` names no label
        (folders / "label_task.toml").write_text('extends = "ebhi_joint_unet"\nwithout = ["tasks.classification"]\n')
        where["RECIPE"] = "label_task.toml"
    for words in block.commands:
        words = [_told(word, where) for word in words]
        _run(words, *(["--set", "data.tile_size=64", "data.min_tissue=0.0"] if words[1] == "train" else []))


def _told(word: str, where: dict[str, str]) -> str:
    """A word, or the value of KEY=WORD, with what stands for it here."""
    key, pair, value = word.rpartition("=")
    return f"{key}{pair}{where.get(value, value)}"


@pytest.mark.slow
def test_commands_of_the_papers_page(here):
    classes = ["Adenocarcinoma", "High-grade IN", "Low-grade IN", "Normal", "Polyp", "Serrated adenoma"]
    write_folder(here / "EBHI_SEG", dict.fromkeys(classes, 12), size=32)
    where = {"small": "tiny", "3": "2"}
    for number, words in enumerate(REPRODUCE.commands):
        words = [_told(word, where | {"RUN": f"RUN{number}"}) for word in words]
        is_table = words[1] == "reproduce"
        options = ["--out", f"table{number}", "--rows", "uniform"] if is_table else ["--epochs", "1"]
        scale = [] if "--scale" in words else ["--scale", "tiny"]
        assert main([*words[1:], *options, *scale]) == 0, words
    assert len(list(Path().glob("table*/table.md"))) == 2


def test_torchrun_lines_and_predicting_slides(folders):
    for words in TORCHRUN.commands:
        _run(words)
    for number, block in enumerate(PREDICT):
        for words in block.commands:
            _run([_told(word, {"DIR": f"maps{number}"}) for word in words])
    assert len(list(Path("maps2").rglob("*.ome.tif"))) == 4


def test_recipes_of_the_data_page(folders):
    Path("mine.toml").write_text('extends = "ebhi_joint_unet"\n' + DATA_RECIPE.text)
    recipe = load_recipe("mine.toml", {"data": {"tile_size": 64, "min_tissue": 0.0, "folds": 0}})
    dataset = datasets.read_data(recipe, folders / "SLIDES")
    assert dataset.groups == ("CA-1", "CB-1", "CC-1", "CD-1")
    datasets.check_targets(components.build_tasks(recipe, dataset.class_names, dataset.classes), dataset)
    assert datasets.read_splits(recipe, folders / "SLIDES").validation.tiles


def test_polygons_of_the_data_page(here):
    write_image(here / "a.png", random_pixels(0))
    polygons = [
        {"type": "Polygon", "coordinates": [[[x, 0], [x + 4, 0], [x + 4, 9], [x, 9]]]} for x in (0, 4, 8, 12, 16)
    ]
    area = {"type": "Polygon", "coordinates": [[[0, 0], [20, 0], [20, 20], [0, 20]]]}
    named = zip([area, *polygons], ["ROI", "Tumour", "Stroma", "Vessel", "", "Ignore*"], strict=True)
    (here / "a.geojson").write_text(
        json.dumps([{"type": "Feature", "properties": {"class": name}, "geometry": shape} for shape, name in named])
    )
    (here / "manifest.csv").write_text("image,mask\na.png,a.geojson\n")
    Path("mine.toml").write_text('extends = "demo"\n' + POLYGON_RECIPE.text)
    (tile,) = datasets.read_data(load_recipe("mine.toml"), here / "manifest.csv").tiles
    assert tile.mask.draw()[4].tolist() == [1] * 4 + [2] * 4 + [0] * 4 + [2] * 4 + [255] * 4 + [255] * 4


def test_a_recipe_on_a_base(here):
    Path("mine.toml").write_text(BASE_RECIPE.text)
    recipe = load_recipe("mine.toml", scale="tiny")
    components.check_names(recipe)
    assert (recipe.data.size, recipe.stages[0].epochs, list(recipe.tasks)) == (64, 1, ["classification"])


def test_the_table_of_the_ranks(tmp_path, monkeypatch):
    """It shows the defaults."""
    monkeypatch.chdir(tmp_path)
    Path("mine.toml").write_text('extends = "ebhi_joint_unet"\n' + RANKS_RECIPE.text)
    assert load_recipe("mine.toml").distributed == DistributedConfig()


def test_stains_in_a_recipe(here):
    write_image(here / "target.png", tissue_like(64, 64))
    Path("mine.toml").write_text('extends = "ebhi_joint_unet"\n' + STAIN_RECIPE.text)
    assert stains.build_normalizer(load_recipe("mine.toml")) is not None


# --- slides and stains from Python ---


@pytest.mark.long
def test_a_slide(here):
    write_tiff(here / "slide.svs", tissue_like(2300, 2300), levels=2, tile=256)
    scope: dict = {}
    exec(SLIDE.text, scope)
    assert scope["regions"]


def test_stains(here):
    tiles = torch.from_numpy(np.stack([tissue_like(64, 64, seed) for seed in range(4)]))
    per_tile = {"keys": ["slide-7"] * 4, "draws": torch.rand(4, 4), "inside": None, "colour": None}
    scope = {"tiles": tiles, "tile": tiles[0], "sampled_tiles": tiles, **per_tile}
    scope |= {"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}
    exec(STAINS.text, scope)
    assert scope["inputs"].shape == (4, 3, 64, 64)
    write_image(here / "target.png", tissue_like(64, 64))
    scope = {"data": data, "Image": Image, "np": np, "torch": torch, "image": tissue_like(48, 40), "tiles": tiles}
    exec(PILLOW.text, scope)
    assert scope["picture"].shape == (40, 48, 3)
