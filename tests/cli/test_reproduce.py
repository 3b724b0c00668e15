"""`fastmtl reproduce`: the paper's table beside ours, kept and continued runs, and one clear line for wrong data."""

import csv
import json
import shutil
from pathlib import Path

import pytest
from helpers.published import write_ebhi, write_hep2, write_pets
from helpers.tiles import shared_data, write_folder

from fastmtl import api
from fastmtl.cli import main
from fastmtl.config import load_recipe
from fastmtl.reproduce import Score, delta_m, figures, plan, tables
from fastmtl.reproduce.plan import Result, RunKey
from fastmtl.reproduce.roc_figure import answers
from fastmtl.reproduce.scores import metric, over_folds
from fastmtl.training.errors import Interrupted
from fastmtl.training.run_dir import RunFolder

ROWS = ("single_efficientnet", "single_resnet50")
SMALL = ("--scale", "tiny", "--set", "data.size=32", "training.device=cpu")


@pytest.fixture(scope="module")
def ebhi(tmp_path_factory):
    return write_ebhi(tmp_path_factory.mktemp("ebhi"))


def _reproduce(*arguments) -> int:
    return main(["reproduce", *map(str, arguments)])


@pytest.mark.parametrize("name", ["uniform", "linear_scalarization", "pcgrad", "famo", "two_stage"])
def test_delta_m_of_the_published_rows(name):
    """Golden: the formula and the recipes' baselines give the paper's table 5."""
    paper = load_recipe(f"mask2tasks/{name}").paper
    assert delta_m(paper.figures, paper.baselines) == pytest.approx(paper.figures["delta_m"], abs=1e-3)


def test_delta_m_needs_every_baseline():
    with pytest.raises(ValueError, match=r"must have every baseline's metric; b\."):
        delta_m({"a": 1.0}, {"a": 1.0, "b": 2.0})
    with pytest.raises(ValueError, match="must not be 0"):
        delta_m({"a": 1.0}, {"a": 0.0})


def test_metrics_are_found_and_averaged():
    runs = [{"tasks": {"m": {"dice": x}}, "test": {"tasks": {"m": {"dice": 1 - x}}}} for x in (0.25, 0.75)]
    assert over_folds(runs, "m.dice") == Score((0.25, 0.75))
    assert over_folds(runs, "m.dice").mean == 0.5
    assert over_folds(runs, "m.dice").std == pytest.approx(0.5**0.5 / 2)
    assert metric(runs[0], "test.m.dice") == 0.75
    assert over_folds(runs, "m.jaccard") is None
    assert Score((1.0,)).std is None


@pytest.mark.long
def test_two_rows_print_the_papers_table_and_are_kept(ebhi, tmp_path, capsys):
    out = tmp_path / "out"
    arguments = ["mask2tasks", "--data", ebhi, "--out", out, "--folds", 1, "--rows", *ROWS, *SMALL]
    assert _reproduce(*arguments) == 0
    printed = capsys.readouterr()
    assert "| Resnet50 | 0.895 ± 0.013 | " in printed.out
    assert "**Not the published setting.**" in printed.out
    assert "- `data.size` = 32 (224)" in printed.out
    assert "- `training.epochs` = 1 (100)" in printed.out
    assert (out / "table.md").read_text() == printed.out
    found = json.loads((out / "single_resnet50" / "fold-0" / "summary.json").read_text())
    lines = csv.DictReader((out / "table.csv").read_text().splitlines())
    by_key = {(line["recipe"], line["metric"]): line for line in lines}
    line = by_key["mask2tasks/single_resnet50", "classification.accuracy"]
    assert (line["published"], line["published_std"]) == ("0.895", "0.013")
    assert float(line["mean"]) == found["tasks"]["classification"]["accuracy"]
    assert (line["std"], line["folds"], line["scale"]) == ("", "1", "tiny")
    times = {path: path.stat().st_mtime_ns for path in out.rglob("summary.json")}
    assert _reproduce(*arguments) == 0
    assert "single_resnet50, fold 0: kept" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in out.rglob("summary.json")} == times
    assert _reproduce(*arguments, "--set", "optimizer.lr=0.5") == 1
    assert "is a run with optimizer.lr = 0.0001, and now it is 0.5; choose another --out" in capsys.readouterr().err


@pytest.mark.long
def test_rows_trained_before_stay_in_the_table(ebhi, tmp_path, capsys, monkeypatch):
    """A row that is added, and one that is stopped, leave the others where they are; other settings are left out."""
    out = tmp_path / "out"
    arguments = ["mask2tasks", "--data", ebhi, "--out", out, *SMALL, "--rows"]
    summary = {"tasks": {"classification": {"accuracy": 0.5}}}

    def trained(recipe, root, folder, **options):
        run = RunFolder(folder)
        facts = {key: [] for key in ("class_names", "training_patients", "validation_patients", "test_patients")}
        facts |= {"data": str(root.resolve()), "split_file": None, "split": "", "classes": {}}
        run.create(recipe, facts)
        run.write_summary(summary)
        return summary

    def stopped(recipe, *rest, **options):
        raise Interrupted("stopped at epoch 1, step 2; continue with: something else")

    monkeypatch.setattr(api, "train", trained)
    assert _reproduce(*arguments, ROWS[0]) == 0
    capsys.readouterr()
    assert _reproduce(*arguments, ROWS[1]) == 0
    printed = capsys.readouterr()
    assert f"in the table too, trained before: {ROWS[0]}" in printed.err
    rows = [line for line in printed.out.splitlines() if "0.500" in line]
    assert [line.split(" | ")[0] for line in rows] == ["| Resnet50", "| EfficientNet"]  # in the paper's order
    assert all(line.endswith(" 5 |") for line in rows)
    monkeypatch.setattr(api, "train", stopped)
    assert _reproduce(*arguments, ROWS[0], "single_swin") == 75
    capsys.readouterr()
    lines = list(csv.DictReader((out / "table.csv").read_text().splitlines()))
    finished = [line["recipe"] for line in lines if line["folds"] == "5"]
    assert finished == ["mask2tasks/single_resnet50", "mask2tasks/single_efficientnet"]
    monkeypatch.setattr(api, "train", trained)
    assert _reproduce(*arguments, "single_swin", "--set", "optimizer.lr=0.5") == 0
    printed = capsys.readouterr()
    assert "in the table too" not in printed.err
    assert "Resnet50" not in printed.out


@pytest.mark.long
def test_what_was_interrupted_goes_on_and_what_fails_is_told(ebhi, tmp_path, capsys, monkeypatch):
    pytest.importorskip("matplotlib")
    out = tmp_path / "out"
    arguments = ["mask2tasks", "--data", ebhi, "--out", out, "--folds", 1, "--rows", *ROWS, *SMALL]
    real = api.train

    def stopped_at_the_second(recipe, *rest, **options):
        if recipe.name.endswith("resnet50"):
            raise Interrupted("stopped at epoch 1, step 2; continue with: something else")
        return real(recipe, *rest, **options)

    def broken_at_the_second(recipe, *rest, **options):
        raise RuntimeError("the disk is full")

    monkeypatch.setattr(api, "train", stopped_at_the_second)  # the order is the paper's: resnet50 comes first
    assert _reproduce(*arguments) == 75
    assert "stopped at epoch 1, step 2; the same command continues" in capsys.readouterr().err
    monkeypatch.setattr(api, "train", real)
    assert _reproduce(*arguments[: -len(SMALL) - 2], ROWS[1], *SMALL) == 0
    (out / ROWS[1] / "fold-0" / "summary.json").unlink()  # as if stopped between the last checkpoint and the scores
    monkeypatch.setattr(api, "train", broken_at_the_second)
    capsys.readouterr()
    assert _reproduce(*arguments) == 1
    printed = capsys.readouterr()
    assert "already finished" in printed.err  # the first went on from its checkpoint
    assert "## Failed" in printed.out
    assert "- EfficientNet, fold 0: RuntimeError: the disk is full" in printed.out
    assert (out / "figures.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (
            {"protocol": "published", "training": {"checkpoint": "best"}},
            "Protocol `published`. Ours are means ± standard deviations (n - 1) over folds, of the best epoch's "
            "weights, chosen by the held-out images, which are also scored.",
        ),
        (
            {"training": {"checkpoint": "best"}, "data": {"inner_fraction": 0.2}},
            "Protocol `unbiased`. Ours are means ± standard deviations (n - 1) over folds, of the best epoch's "
            "weights, chosen by an inner share of the training patients; the scored images chose nothing.",
        ),
        ({}, "over folds, of the last epoch's weights, chosen by nothing: no image had a part in it."),
    ],
)
def test_the_table_says_the_protocol_and_which_weights_are_judged(overrides, said, tmp_path):
    results = [Result(row) for row in plan("mask2tasks", rows=["pcgrad", "famo"], overrides=overrides)]
    page = tables.markdown("mask2tasks", results, tmp_path, "full", 5)
    assert said in page
    assert "`protocol` =" not in page
    results[0].summaries[RunKey(0)] = {"tasks": {}, "chosen_by": "a run that was resumed"}
    page = tables.markdown("mask2tasks", results, tmp_path, "full", 5)
    assert "chosen by a run that was resumed (pcgrad); or of the" in page
    assert "(famo)." in page


def test_the_protocol_of_the_rows(ebhi, tmp_path, capsys):
    """The scored images would choose, and the row says so before anything is trained."""
    arguments = ["mask2tasks", "--data", ebhi, "--out", tmp_path, *SMALL, "training.checkpoint=best"]
    assert _reproduce(*arguments) == 1
    assert 'protocol = "unbiased", but training.checkpoint = "best" and' in capsys.readouterr().err
    for name in ("gi_tract/small", "unet_multi/mtl", "switched_aux/pvtv2_normal", "joint_unet/bce_15"):
        assert load_recipe(name).protocol == "unbiased"


def test_published_losses_by_epoch_stand_beside_ours(tmp_path):
    """Table VIII of joint_unet: the label's loss of a network that collapses; a shorter run leaves cells empty."""
    results = [Result(row) for row in plan("joint_unet", rows=["dice_15", "dice_alpha_6"])]
    page = tables.markdown("joint_unet", results, tmp_path, "full", 5)
    assert page.count("training losses by epoch") == 1
    assert "| 15 | 0.138 |  | 952752 |  | 0.6926 |  |" in page
    run = tmp_path / "fold-0"
    run.mkdir()
    losses = [{"mask": 0.25, "label": 1.5, "intensity": 0.5}, {"mask": 0.125, "label": 12345.678, "intensity": 0.75}]
    lines = [json.dumps({"epoch": epoch, "loss": loss}) for epoch, loss in enumerate(losses, 1)]
    (run / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    results[1].summaries[RunKey(0)], results[1].folders[RunKey(0)] = {"tasks": {}}, run
    page = tables.markdown("joint_unet", results, tmp_path, "full", 5)
    assert "## Dice (6): training losses by epoch, fold 1" in page
    assert "| 2 | 0.11 | 0.125 | 0.621 | 12345.7 | 0.31 | 0.75 |" in page
    assert "| 3 | 0.094 |  | 0.37 |  | 0.25 |  |" in page


def test_roc_is_of_the_second_class_over_all_folds(tmp_path):
    """The finding stands second, whatever the alphabet says; `intensity` is what joint_unet's paper draws."""
    pytest.importorskip("matplotlib")
    (row,) = plan("joint_unet", rows=["dice_30"])
    result = Result(row, folders={RunKey(fold): tmp_path / str(fold) for fold in (0, 1)})
    for fold, (name, share) in enumerate((("weak", 0.25), ("bright", 0.75))):
        entry = {"class": name, "score": 0.75, "probabilities": {"weak": 1 - share, "bright": share}}
        result.folders[RunKey(fold)].mkdir()
        lines = [
            {"id": "a", "tasks": {"intensity": entry}},
            {"id": "b", "tasks": {}},
            {"id": "c", "tasks": {"intensity": {"class": name}}},
        ]
        (result.folders[RunKey(fold)] / "evaluation.jsonl").write_text(
            "".join(json.dumps(line) + "\n" for line in lines)
        )
    assert answers(result, "intensity") == ([False, True], [0.25, 0.75])
    assert figures.write_figures([result], tmp_path, "tiny", samples=0) == [tmp_path / "roc-intensity.png"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["mask2tasks", "--data", "{hep2}"], "looks like hep2, but mask2tasks needs tile_folder data"),
        (["joint_unet", "--data", "{ebhi}"], "looks like tile_folder, but joint_unet needs hep2 data"),
        (["mask2tasks", "--data", "{other}"], "has Cat, Dog: it is not the paper's data set"),
        (
            ["mask2tasks", "--data", "{few}"],
            "fold 0 of 5 of {few} holds none out of class 'Polyp', which has 1 image(s)",
        ),
        (["mask2tasks", "--data", "{ebhi}", "--folds", "6"], "--folds must be 1 to 5: mask2tasks has 5 folds; got 6"),
        (["unet_multi", "--data", "{pets}", "--folds", "2"], "unet_multi has one split and no folds; got 2"),
        (["mask2tasks", "--data", "nowhere"], "nowhere does not exist"),
        (["mask2tasks", "--data", "{ebhi}", "--scale", "huge"], "has no scale 'huge'; it has tiny, small, full"),
        (["mask2task", "--data", "{ebhi}"], "unknown paper 'mask2task'; did you mean 'mask2tasks'?"),
    ],
)
def test_wrong_data_is_one_line_before_any_training(arguments, message, ebhi, tmp_path, capsys):
    made = {
        "{ebhi}": lambda: ebhi,
        "{hep2}": lambda: write_hep2(tmp_path / "hep2"),
        "{pets}": lambda: write_pets(tmp_path / "pets"),
        "{other}": lambda: write_folder(tmp_path / "other", {"Cat": 5, "Dog": 5}).root,
        "{few}": lambda: _few(shutil.copytree(ebhi, tmp_path / "few")),
    }
    arguments = [made[one]() if one in made else one for one in arguments]
    assert _reproduce(*arguments, "--out", tmp_path / "out") == 1
    said = capsys.readouterr().err.strip()
    assert message.replace("{few}", str(tmp_path / "few")) in said
    assert "\n" not in said
    assert not (tmp_path / "out").exists()


def _few(root):
    """All Polyp images but one are gone."""
    for path in sorted((root / "Polyp" / "image").iterdir())[1:]:
        path.unlink()
        (root / "Polyp" / "label" / path.name).unlink()
    return root


@pytest.mark.long
def test_recipes_are_listed_paper_by_paper_in_80_columns(capsys):
    assert main(["recipes"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert any(line.split() == ["pcgrad", "mask2tasks", "pcgrad", "0.926", "0.887", "3.372"] for line in lines)
    assert main(["recipes", "--json"]) == 0
    found = {one["recipe"]: one for one in json.loads(capsys.readouterr().out)}
    assert found["joint_unet/bce_30"]["figures"]["mask.pixel_accuracy"] == 0.969
    assert found["switched_aux/coat_switched"]["stages"] == ["block_2", "block_1"]


def test_one_papers_recipes_are_listed_in_its_tables_order(capsys):
    assert main(["recipes", "mask2tasks"]) == 0
    lines = capsys.readouterr().out.splitlines()
    names = [line.split()[0] for line in lines[-12:]]
    assert names[:4] == ["single_swin", "single_resnet50", "single_efficientnet", "uniform"]
    assert not any("gi_tract" in line or "demo" in line for line in lines)
    assert main(["recipes", "mask2task"]) == 1
    assert "unknown paper 'mask2task'; did you mean 'mask2tasks'?" in capsys.readouterr().err


@pytest.mark.slow
def test_the_real_tiles_at_scale_tiny(tmp_path, capsys):
    """Every row of Mask2Tasks on EBHI-Seg, one fold."""
    arguments = ["mask2tasks", "--data", shared_data("ebhi_seg"), "--out", tmp_path, "--folds", 1, *SMALL]
    assert _reproduce(*arguments) == 0
    printed = capsys.readouterr().out
    assert printed.count("± ") >= 20
    assert "U-Net, cited by the paper" in printed


def test_less_of_an_error_is_a_gain():
    assert delta_m({"size.mae": 1.0}, {"size.mae": 2.0}) == pytest.approx(50)
    assert delta_m({"mask.dice": 0.5, "size.rmse": 3.0}, {"mask.dice": 0.25, "size.rmse": 2.0}) == pytest.approx(25)
    assert delta_m({"size.r2": -0.1}, {"size.r2": -0.2}) == pytest.approx(50), "of a baseline below 0"
    assert delta_m({"t.surface": 1.0}, {"t.surface": 2.0}, {"t.surface": False}) == pytest.approx(50)
    assert delta_m({"t.surface": 1.0}, {"t.surface": 2.0}) == pytest.approx(-50)


def test_a_table_says_of_which_metrics_less_is_better_and_what_was_odd():
    rows = plan("mask2tasks", rows=["pcgrad", "uniform"])
    for row in rows:
        row.published.paper.figures["size.mae"] = 2.0
    odd = {"notices": ["A/x.png: odd", "B/y.png: odd"]}
    results = [Result(row, {RunKey(0): {"tasks": {"size": {"mae": 1.0}}}}) for row in rows]
    results[0].summaries[RunKey(0)] |= odd
    results[1].summaries[RunKey(0)] |= {"notices": odd["notices"][:1]}
    page = tables.markdown("mask2tasks", results, Path("data"), "full", 1)
    assert "size mae, ours, less is better" in page
    assert "accuracy, ours, less" not in page
    notices = page.partition("## Notices")[2].split("\n")
    assert "- A/x.png: odd" in notices
    assert [line for line in notices if "y.png" in line] == [f"- B/y.png: odd ({results[0].row.name})"]
