"""The page of a run: whole without a network, honest about what is missing, and safe with any name."""

import json
import math
import re
import shutil

import pytest
import torch
from PIL import Image

from fastmtl.cli import main
from fastmtl.evaluation.per_image import PREDICTED_COLOUR, TRUE_COLOUR, ImageTable
from fastmtl.models import Output
from fastmtl.protocols import Batch
from fastmtl.report import read_run, render
from fastmtl.report.charts import Line, line_chart, ticks
from fastmtl.tasks import create_task

CLASSES = ["<b>x", "Polyp"]
EVIL = "<b>x"


def _record(epoch):
    dice = math.nan if epoch == 1 else 0.5 + 0.1 * epoch
    scores = {"outline": {"dice": dice}, "kind": {"accuracy": 0.75, "per_class": {EVIL: 0.5, "Polyp": None}}}
    loss = {"outline": 0.9 / epoch, "kind": 1.2 / epoch}
    return {
        "epoch": epoch,
        "step": 10 * epoch,
        "loss": loss,
        "images_per_second": 40.0,
        "waiting": 0.25,
        "seconds": 8.0,
        "validation": {"tasks": scores, "loss": loss, "score": dice, "num_images": 4},
        "validation_seconds": 2.0,
    }


def _look(step):
    numbers = {"weights": [1.0, 2.0], "norms": [0.5, math.nan], "cosines": [[1.0, -0.2], [-0.2, 1.0]]}
    return {"step": step, "epoch": 1, "loss": {"outline": 0.5, "kind": 0.7}, "gradient_norm": 2.0} | numbers


def _batch():
    """Four images of two patients: one mask right, one wrong, one empty, one without labels."""
    masks = torch.zeros(4, 1, 8, 8, dtype=torch.uint8)
    masks[:2, :, 2:6, 2:6] = 1
    has_label = torch.tensor([[True, True], [True, True], [True, True], [False, False]])
    targets = {"outline": masks, "kind": torch.tensor([0, 1, 1, 0])}
    ids = [f"{name}/tile-{index}" for index, name in enumerate([EVIL, "Polyp", "Polyp", "Polyp"])]
    return Batch(torch.zeros(4, 3, 8, 8), targets, has_label, ids=ids, groups=["P1", "P1", "P2", "P2"])


def _table(keep=6):
    tasks = [
        create_task("binary_segmentation", "outline", 0),
        create_task("classification", "kind", 1, class_names=CLASSES),
    ]
    assert tasks[0].output == Output("map", 1)
    batch = _batch()
    logits = torch.where(batch.targets["outline"].bool(), 9.0, -9.0)
    logits[1] = -logits[1]
    kinds = torch.tensor([[3.0, 0.0], [3.0, 0.0], [0.0, 3.0], [0.0, 3.0]])
    table = ImageTable(tasks, keep=keep)
    table(batch, {"outline": logits, "kind": kinds})
    return table


@pytest.fixture
def run(tmp_path):
    """A run folder made by hand, with everything in it."""
    folder = tmp_path / "run"
    (folder / "tiles").mkdir(parents=True)
    (folder / "config.toml").write_text(
        'name = "<i>recipe"\nsummary = "a & b"\n[balancer]\nname = "pcgrad"\n[training]\nepochs = 2\n'
    )
    facts = {"data": "tiles", "split": "drawn", "class_names": CLASSES}
    facts |= {"training_patients": ["P0"], "validation_patients": ["P1", "P2"]}
    facts |= {"precision": "bfloat16", "training_images": 31, "validation_images": 4}
    (folder / "run.json").write_text(json.dumps(facts))
    environment = {"fastmtl": "0", "commit": "abcdef0123456789", "threads": 2, "gpus": [], "command": "fastmtl train"}
    environment |= {"processor": "Fast 9000"}
    (folder / "environment.json").write_text(json.dumps(environment))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(_record(epoch)) + "\n" for epoch in (1, 2, 3)))
    (folder / "balance.jsonl").write_text("".join(json.dumps(_look(step)) + "\n" for step in range(5, 35, 5)))
    scores = _record(3)["validation"]["tasks"]
    summary = {"tasks": scores, "num_images": 4, "num_patients": 2, "checkpoint": "best"}
    (folder / "summary.json").write_text(json.dumps(summary))
    Image.new("RGB", (32, 24), (230, 180, 210)).save(tmp_path / "tile.png")
    _table().write(folder, dict.fromkeys(_batch().ids, tmp_path / "tile.png"))
    return folder


def test_folds_of_tiles_claim_nothing_of_patients(run):
    assert main(["report", str(run)]) == 0
    assert "2 patients, none of them in the training set" in (run / "report.html").read_text()
    config = run / "config.toml"
    config.write_text(config.read_text() + '[data]\ngroup_by = "tile"\n')
    assert main(["report", str(run)]) == 0
    page = (run / "report.html").read_text()
    assert "4 held-out images, split image by image: their patients may be in training too" in page
    assert "Per patient" not in page
    assert "none of them in the training set" not in page


def test_the_page_is_self_contained_and_has_every_section(run, capsys):
    assert main(["report", str(run)]) == 0
    assert capsys.readouterr().err == ""
    page = (run / "report.html").read_text()
    assert "://" not in page
    assert not re.search(r"<(script|link)\b|url\(|@import", page)
    assert all(source.startswith("data:image/jpeg;base64,/9j/") for source in re.findall(r'src="([^"]*)"', page))
    sections = re.findall("<h2>(.*?)</h2>", page)
    assert sections == [
        *("Tiles to look at", "Per class", "Per patient", "Learning curves", "Agreement of the task gradients"),
        *("Where the time went", "What ran"),
    ]
    for said in (
        "outline: the worst tiles",
        "outline: the typical tiles",
        "outline: the best tiles",
        "kind: the most confident mistakes",
        "kind: ROC",
        "Cosine between",
        "Norm of each",
        "Weight of",
    ):
        assert said in page
    for said in ("commit abcdef012345", "Fast 9000, 2 threads", "31 to train, 4 held out", "bfloat16"):
        assert said in page
    assert "so at 6 of the 6 steps" in page
    assert "per_class" not in page
    assert "waiting for data <b>20%</b>" in page  # 6 of 30 seconds
    assert "training steps <b>60%</b>" in page
    assert "Missing from this page" not in page


def test_scores_have_their_intervals_over_patients(run):
    assert "95% interval" not in render(read_run(run))
    summary = json.loads((run / "summary.json").read_text())
    intervals = {"kind": {"accuracy": [0.5, 0.9], "per_class.Polyp": [0.1, 0.2]}}
    over = {"unit": "patient", "count": 2, "intervals": intervals, "means": {"kind": {"accuracy": 0.625}}}
    (run / "summary.json").write_text(json.dumps(summary | {"patients": over}))
    page = render(read_run(run))
    assert "<b>0.750</b><small>0.500 to 0.900</small>" in page
    assert "95% interval over the 2 patients, which are resampled as a whole. Intervals of so few" in page
    assert "As a mean over patients, each counting alike: kind Accuracy 0.625." in page
    (run / "summary.json").write_text(json.dumps(summary | {"patients": over | {"intervals": [3]}}))
    assert "a file is not as fastmtl writes it" in render(read_run(run))


def test_names_are_escaped(run):
    page = render(read_run(run))
    assert EVIL not in page
    assert "<i>recipe" not in page
    assert "&lt;b&gt;x" in page


def test_values_that_are_not_numbers_leave_gaps(run):
    assert "nan" not in "".join(re.findall("<svg.*?</svg>", render(read_run(run)))).lower()
    drawn = line_chart("loss", [Line("a", [1, 2, 3, 4, 5], [math.nan, 1.0, math.inf, 3.0, 2.0])])
    assert drawn.count("<polyline") == 3  # the legend's sample and two stretches
    assert "No finite value" in line_chart("loss", [Line("a", [1], [math.nan])])
    assert "No finite value" in line_chart("loss", [])


@pytest.mark.parametrize(("low", "high"), [(0.0, 1e-7), (0.0, 0.0), (-1.0, 1.0), (0.0, 3.7e9), (0.0, 0.99)])
def test_an_axis_holds_its_values(low, high):
    marks = ticks(low, high)
    assert marks[0] <= low
    assert marks[-1] >= high
    assert 2 <= len(marks) <= 7
    assert marks == sorted(set(marks))


def test_every_image_gets_a_line_and_only_what_it_has_labels_for(run):
    lines = [json.loads(line) for line in (run / "evaluation.jsonl").read_text().splitlines()]
    assert [line["patient"] for line in lines] == ["P1", "P1", "P2", "P2"]
    right, wrong, empty, unlabelled = (line["tasks"] for line in lines)
    assert unlabelled == {}
    assert [entry["outline"]["dice"] for entry in (right, wrong, empty)] == [1, 0, 1]
    assert wrong["outline"]["true_area"] == pytest.approx(0.25)
    assert (wrong["kind"]["class"], wrong["kind"]["predicted"]) == ("Polyp", EVIL)
    assert wrong["kind"]["score"] == pytest.approx(1 - wrong["kind"]["probability"])
    assert "thumbnail" not in right["kind"], "only mistakes of a classification are worth a picture"


def test_thumbnails_are_of_the_best_the_worst_and_typical_images_and_show_both_outlines(run, tmp_path):
    table = _table(keep=1)
    table.write(run, dict.fromkeys(_batch().ids, tmp_path / "tile.png"))
    shown = [line["id"] for line in table.lines if "thumbnail" in line["tasks"].get("outline", {})]
    assert shown == [f"{EVIL}/tile-0", "Polyp/tile-1", "Polyp/tile-2"]
    assert [table.lines[n]["tasks"]["outline"]["shown"] for n in range(3)] == ["best", "worst", "typical"]
    assert len(list((run / "tiles").iterdir())) == 4
    with Image.open(run / table.lines[1]["tasks"]["outline"]["thumbnail"]) as picture:
        assert picture.size == (320, 240)
        pixels = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8).reshape(-1, 3).int()
    for colour in (TRUE_COLOUR, PREDICTED_COLOUR):
        assert ((pixels - torch.tensor(colour)).abs().amax(1) < 60).any()


@pytest.mark.parametrize(
    ("name", "said"), [("balance.jsonl", "no balance.jsonl"), ("evaluation.jsonl", "evaluation.jsonl does not exist")]
)
def test_what_a_run_lacks_is_said_in_its_place_and_named(run, name, said, capsys):
    (run / name).unlink()
    assert main(["report", str(run)]) == 1
    assert said in (run / "report.html").read_text()
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{name}: no such file; " in line


def test_a_run_without_metrics_promises_no_scores(run, capsys):
    (run / "metrics.jsonl").unlink()
    (run / "summary.json").unlink()
    assert main(["report", str(run)]) == 1
    curves, scores = capsys.readouterr().err.splitlines()
    assert "metrics.jsonl: no such file; there are no curves" in curves
    assert "summary.json: no such file; there are no scores" in scores
    assert "has no scores" in (run / "report.html").read_text()


def test_classes_that_were_never_found_stand_at_the_top(run):
    top = render(read_run(run)).split("<h2>")[0]
    assert "kind: sensitivity per class is from 50% (Polyp) to 100% (&lt;b&gt;x)." in top
    assert "never found" not in top
    lines = [json.loads(line) for line in (run / "evaluation.jsonl").read_text().splitlines()]
    for line in lines:
        if line["tasks"].get("kind", {}).get("class") == "Polyp":
            line["tasks"]["kind"]["predicted"] = EVIL
    (run / "evaluation.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    facts = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(facts | {"class_names": [*CLASSES, "Rare"]}))
    top = render(read_run(run)).split("<h2>")[0]
    assert "<p class=warn>kind: never found: Polyp (0 of 2 images).</p>" in top
    assert "from 0% (Polyp) to 100% (&lt;b&gt;x); no image of Rare was held out." in top


def test_a_tile_is_described_for_those_who_cannot_see_it(run):
    described = re.findall('alt="([^"]*)"', render(read_run(run)))
    assert "Dice 0.000, Polyp, taken for &lt;b&gt;x, area: true 25%, predicted 75%, tile-1" in described


def test_a_balancer_of_losses_reports_weights_alone(run):
    looks = [{"step": step, "loss": {"outline": 1.0, "kind": 1.0}, "weights": [1.0, 1.0]} for step in (1, 2)]
    (run / "balance.jsonl").write_text("".join(json.dumps(look) + "\n" for look in looks))
    page = render(read_run(run))
    assert "weighs losses" in page
    assert "Weight of each task" in page
    assert "Cosine between" not in page


@pytest.mark.parametrize("name", ["metrics.jsonl", "summary.json", "environment.json", "run.json"])
@pytest.mark.parametrize("content", [None, b"", b"[1]", b'{"epoch": "x"}', b"\xff\xfe{", b'{"tasks": 3, "epoch": 1}'])
def test_broken_and_missing_files_are_named_and_the_rest_goes_on(run, name, content, capsys):
    (run / name).unlink() if content is None else (run / name).write_bytes(content)
    broken = content in (None, b"", b"[1]", b"\xff\xfe{") or name in ("metrics.jsonl", "summary.json")
    assert main(["report", str(run)]) == (1 if broken else 0)
    said = capsys.readouterr().err
    assert all(line.startswith("fastmtl: ") for line in said.splitlines())
    assert (name in said) == broken
    page = (run / "report.html").read_text()
    assert "Tiles to look at" in page
    assert ("Missing from this page" in page) == broken


@pytest.mark.parametrize(
    ("name", "keys", "value"),
    [
        ("run.json", ["class_names"], [None]),
        ("run.json", ["training_patients"], 3),
        ("environment.json", ["gpus"], None),
        ("environment.json", ["packages"], []),
        ("evaluation.jsonl", ["tasks", "outline"], None),
        ("evaluation.jsonl", ["tasks", "outline", "dice"], "0.5"),
        ("evaluation.jsonl", ["tasks", "kind", "predicted"], None),
        ("evaluation.jsonl", ["tasks", "kind", "probabilities"], {}),
    ],
)
def test_values_of_another_form_are_named_and_the_rest_goes_on(run, name, keys, value, capsys):
    lines = (run / name).read_text().splitlines() if name.endswith("l") else [(run / name).read_text()]
    first = part = json.loads(lines[0])
    for key in keys[:-1]:
        part = part[key]
    part[keys[-1]] = value
    (run / name).write_text("\n".join([json.dumps(first), *lines[1:]]) + "\n")
    assert main(["report", str(run)]) == 1
    (said,) = capsys.readouterr().err.splitlines()
    assert "run: a file is not as fastmtl writes it (" in said
    page = (run / "report.html").read_text()
    assert "Missing from this page" in page
    assert "Where the time went" in page


def test_a_run_with_an_edited_file_is_left_out_of_a_comparison(run, tmp_path, capsys):
    shutil.copytree(run, tmp_path / "other")
    facts = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(facts | {"class_names": [None]}))
    assert main(["report", str(run), str(tmp_path / "other"), "--out", str(tmp_path / "both.html")]) == 1
    (said,) = capsys.readouterr().err.splitlines()
    assert "run: a file is not as fastmtl writes it (TypeError" in said
    assert "Comparison of 1 run" in (tmp_path / "both.html").read_text()


def test_a_broken_line_and_a_lost_picture_are_named(run, capsys):
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 4, "lo')
    (run / "tiles" / "001.jpg").unlink()
    assert main(["report", str(run)]) == 1
    first, second = capsys.readouterr().err.splitlines()
    assert "metrics.jsonl, line 4" in first
    assert "001.jpg" in second
    assert "epoch 3 of 3" in (run / "report.html").read_text()


def test_several_runs_on_one_page(run, tmp_path, capsys):
    other = tmp_path / "other"
    other.mkdir()
    for path in run.glob("*.json*"):
        (other / path.name).write_bytes(path.read_bytes())
    (other / "config.toml").write_text('name = "second"\n[balancer]\nname = "linear"\n')
    out = tmp_path / "pages" / "both.html"
    assert main(["report", str(run), str(other), "--out", str(out)]) == 0
    page = out.read_text()
    assert "://" not in page
    assert EVIL not in page
    assert "same patients" in page
    assert "balancer.name" in page
    assert page.count("commit abcdef012345") == 2
    assert page.count("<td>tiles</td>") == 2, "the data of both"
    assert page.count("<polyline") >= 4
    facts = json.loads((other / "run.json").read_text())
    (other / "run.json").write_text(json.dumps(facts | {"validation_patients": ["P9"]}))
    (other / "metrics.jsonl").unlink()
    capsys.readouterr()
    assert main(["report", str(run), str(other), str(tmp_path / "none"), "--out", str(out)]) == 1
    first, second = capsys.readouterr().err.splitlines()
    assert "none is not a run folder" in first
    assert "metrics.jsonl" in second
    assert "different patients" in out.read_text()


def test_mistakes_get_one_line(run, tmp_path, capsys):
    for arguments, said in [
        (["report", str(run), str(run)], "--out PAGE.html"),
        (["report", str(tmp_path)], "is not a run folder"),
    ]:
        assert main(arguments) == (1 if "folder" in said else 2)
        (line,) = capsys.readouterr().err.splitlines()
        assert said in line
    with pytest.raises(SystemExit, match="2"):
        main(["report"])
    assert "required: RUN" in capsys.readouterr().err
