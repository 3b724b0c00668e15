"""The page of a run: whole without a network, honest about what is missing, and safe with any name."""

import json
import math
import re

import pytest
import torch
from helpers.handmade_run import CLASSES, EVIL, batch, table
from PIL import Image

from fastmtl.cli import main
from fastmtl.evaluation.per_image import PREDICTED_COLOUR, TRUE_COLOUR
from fastmtl.report import read_run, render
from fastmtl.report.charts import Line, line_chart, ticks


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
    written = table(keep=1)
    written.write(run, dict.fromkeys(batch().ids, tmp_path / "tile.png"))
    shown = [line["id"] for line in written.lines if "thumbnail" in line["tasks"].get("outline", {})]
    assert shown == [f"{EVIL}/tile-0", "Polyp/tile-1", "Polyp/tile-2"]
    assert [written.lines[n]["tasks"]["outline"]["shown"] for n in range(3)] == ["best", "worst", "typical"]
    assert len(list((run / "tiles").iterdir())) == 4
    with Image.open(run / written.lines[1]["tasks"]["outline"]["thumbnail"]) as picture:
        assert picture.size == (320, 240)
        pixels = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8).reshape(-1, 3).int()
    for colour in (TRUE_COLOUR, PREDICTED_COLOUR):
        assert ((pixels - torch.tensor(colour)).abs().amax(1) < 60).any()


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
