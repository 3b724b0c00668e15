"""What does not fit, in one line before a run folder exists: maps, sizes, packages that are missing or broken."""

import importlib.metadata
import re
import tomllib
from pathlib import Path

import numpy as np
import pytest
from helpers.paths import ROOT
from helpers.published import write_ebhi, write_gi_tract
from helpers.tiles import write_image

from fastmtl import tasks
from fastmtl.cli import main
from fastmtl.data import RunLengths, Tile, TileReadError, check_tiles, read_tile_folder, wrong_maps
from fastmtl.data.loading.quarantine import Quarantine
from fastmtl.protocols import Target
from fastmtl.utils import optional_imports

TINY = ["--scale", "tiny"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("published")
    gi_tract = write_gi_tract(root / "gi", cases=range(1, 7), size=(32, 32))
    return {"gi_tract": gi_tract, "mask2tasks": write_ebhi(root / "ebhi")}


@pytest.mark.long
@pytest.mark.parametrize(
    ("recipe", "options", "says"),
    [
        ("gi_tract/small", ["--set", 'tasks.organs.structures=["a","b"]'], r"\(a, b\): .*slice_0001.*has 3 channels"),
        ("gi_tract/small", ["--set", 'tasks.organs.structures=["a","b","c","d"]'], "has 3 channels, and each"),
        (
            "mask2tasks/uniform",
            ["--set", 'tasks.segmentation.structures=["background","a","b"]'],
            r"label/GT\S+ holds 255, and class indices are 0 to 2",
        ),
        ("mask2tasks/uniform", ["--size", "48"], "data.size is 48, but mask2tasks needs a multiple of 32; 64 is the"),
    ],
)
def test_what_does_not_fit_the_data_is_told_before_training(recipe, options, says, folders, tmp_path, capsys):
    if recipe.startswith("mask2tasks"):
        pytest.importorskip("transformers", reason="extra models is not installed")
    out = tmp_path / "run"
    assert (
        main(["train", recipe, "--data", str(folders[recipe.split("/")[0]]), "--out", str(out), *TINY, *options]) == 1
    )
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert re.search(says, last)
    assert len(last) < 500  # no run-length codes in it
    assert not out.exists()


@pytest.mark.parametrize("recipe", ["unet_multi/base", "joint_unet/bce_15"])  # the second reads one format alone
def test_a_papers_recipe_is_not_trained_on_another_papers_data(recipe, folders, tmp_path, capsys):
    arguments = ["--data", str(folders["mask2tasks"]), "--out", str(tmp_path / "run"), *TINY]
    assert main(["train", recipe, *arguments]) == 1
    said = capsys.readouterr().err.strip()
    assert f"looks like tile_folder, but {recipe} needs" in said
    assert f'write your own recipe with extends = "{recipe}"' in said
    assert "\n" not in said
    assert not (tmp_path / "run").exists()


def test_a_recipe_of_ones_own_takes_any_data(folders, tmp_path, capsys):
    mine = tmp_path / "mine.toml"
    mine.write_text('extends = "unet_multi/base"\n[scales.tiny.model]\npreset = "no such"\n')
    assert main(["train", str(mine), "--data", str(folders["mask2tasks"]), "--out", str(tmp_path / "run"), *TINY]) == 1
    said = capsys.readouterr().err
    assert "to train" in said  # the data were taken
    assert "looks like" not in said


@pytest.mark.parametrize("group_by", ["tile", "patient"])
def test_tiles_are_called_patients_where_they_stand_for_them(group_by, folders, tmp_path, capsys):
    pytest.importorskip("transformers", reason="extra models is not installed")
    options = ["--set", f"data.group_by={group_by}", "data.folds=0", "--size", "48"]  # a size it does not take
    arguments = ["--data", str(folders["mask2tasks"]), "--out", str(tmp_path / "run"), *TINY, *options]
    assert main(["train", "mask2tasks/uniform", *arguments]) == 1
    said = capsys.readouterr().err
    assert "to train" in said
    assert bool(re.search(r"tiles of \d+ patients", said)) == (group_by == "patient")
    if group_by == "tile":
        assert "its own patient" not in said


def test_masks_of_zero_and_one_are_no_empty_masks(tmp_path):
    root = write_ebhi(tmp_path / "tiles")
    tiles = read_tile_folder(root).tiles
    assert wrong_maps(tiles, Target("mask"), 1) is None
    for path in root.glob("*/label/*.png"):
        write_image(path, (np.arange(64 * 64).reshape(64, 64) % 2).astype(np.uint8))
    assert "no value above 1, and pixels above 127 are foreground" in wrong_maps(tiles, Target("mask"), 1)
    assert wrong_maps(tiles, Target("classes"), 2) is None
    write_image(tiles[3].mask, np.full((64, 64), 255, np.uint8))
    assert wrong_maps(tiles, Target("classes"), 2, ignore_index=255) is None
    assert "holds 255" in wrong_maps(tiles, Target("classes"), 2)
    assert "above 1, and pixels above 127 are foreground (" in wrong_maps(tiles, Target("mask"), 1)  # all but one


def test_extras_are_those_of_the_project():
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    modules = {
        "pillow": "PIL",
        "scikit-learn": "sklearn",
        "segmentation-models-pytorch": "segmentation_models_pytorch",
        "nvidia-dali-cuda130": "nvidia",
        "openslide-python": "openslide",
        "tomli-w": "tomli_w",
    }
    for extra in ("train", "models", "wsi", "dicom", "zarr"):
        for requirement in declared[extra]:
            name = re.match(r"[\w.-]+", requirement)[0]
            if name != "openslide-bin":  # openslide imports it
                assert (
                    optional_imports.install_command(modules.get(name, name))
                    == f"pip install 'fastmtl-engine[{extra}]'"
                ), name
    for path in (ROOT / "fastmtl").rglob("*.py"):
        for module, given in re.findall(
            r'\brequire\(\s*"([\w.]+)",[^()]*?"[^"]*"(?:,\s*(?:extra=)?"(\w+)")?', path.read_text()
        ):
            assert optional_imports.install_command(module) == f"pip install 'fastmtl-engine[{given or 'train'}]'", (
                f"{path}: {module}"
            )


@pytest.mark.parametrize(
    ("module", "says"),
    [
        ("numba", "numba is not installed: pip install 'fastmtl-engine[train]'"),
        ("scipy", "scipy is not installed: pip install 'fastmtl-engine[models]'"),
        ("somebodys", "No module named 'somebodys'"),
    ],
)
def test_a_missing_package_is_named_with_the_extra_that_has_it(module, says, monkeypatch, capsys):
    def missing(arguments):
        raise ModuleNotFoundError(f"No module named {module!r}", name=module)

    monkeypatch.setattr("fastmtl.cli.models.list_models", missing)
    assert main(["models"]) == 1
    assert capsys.readouterr().err == f"fastmtl: {says}\n"


def test_a_missing_package_damages_no_tile(tmp_path):
    class NeedsMore:
        def draw(self):
            raise ModuleNotFoundError("No module named 'numba'", name="numba")

    image = write_image(tmp_path / "image.png", np.zeros((8, 8, 3), np.uint8))
    with pytest.raises(ModuleNotFoundError, match="numba"):
        check_tiles([Tile("one", image, NeedsMore(), 0, "P")])


def test_a_damaged_code_is_told_by_its_images_file():
    tile = Tile("one", Path("scan.png"), RunLengths("1 2 " * 500, 8, 8), 0, "P")
    quarantine = Quarantine(0.0, 1)
    with pytest.raises(TileReadError, match=r"tile one cannot be read: scan.png: has 1 channels") as caught:
        quarantine.report(0, tile, tile.mask, "has 1 channels, not 2")
    assert len(str(caught.value)) < 200


def test_a_broken_packages_task_is_named(monkeypatch):
    broken = importlib.metadata.EntryPoint("broken", "no_such_package_here:Task", "fastmtl.tasks")
    monkeypatch.setattr(
        tasks.registry, "entry_points", lambda group, name="broken": [broken] if name == "broken" else []
    )
    with pytest.raises(ValueError, match="task kind 'broken' of package no_such_package_here:Task cannot be loaded"):
        tasks.create_task("broken", "it", 0)
