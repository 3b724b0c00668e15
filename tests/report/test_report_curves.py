"""ROC curves, learning curves with their stages, cosines of many tasks: what the charts of a page say."""

import re

import pytest
import torch
from sklearn.metrics import roc_auc_score

from fastmtl.evaluation.per_image import ImageTable
from fastmtl.protocols import Batch
from fastmtl.report.charts import Line, line_chart
from fastmtl.report.curves import learning_section
from fastmtl.report.gradients import gradient_section
from fastmtl.report.past_run import PastRun
from fastmtl.report.roc import _curve, roc_section
from fastmtl.tasks import create_task


def _entries(truth, shares, names):
    return [
        {"class": true, "probabilities": dict(zip(names, share, strict=True))}
        for true, share in zip(truth, shares, strict=True)
    ]


def _drawn(count, names, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shares = torch.rand(count, len(names), generator=generator).softmax(1)
    truth = [names[i] for i in torch.randint(len(names), (count,), generator=generator).tolist()]
    return truth, shares.tolist()


def test_each_class_has_a_curve_with_its_area(tmp_path):
    names = ["a", "<b>", "c"]
    truth, shares = _drawn(60, names)
    found = PastRun(tmp_path)
    page = roc_section(found, "kind", _entries(truth, shares, names))
    for column, name in enumerate(names):
        area = roc_auc_score([true == name for true in truth], [share[column] for share in shares])
        assert f"<b>{area:.3f}</b>" in page
    assert "&lt;b&gt;" in page
    assert "<b> " not in page
    assert not found.problems


def test_two_classes_have_the_curve_of_the_second():
    entries = _entries(["no", "yes", "no", "yes"], [[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.7, 0.3]], ["no", "yes"])
    page = roc_section(PastRun("."), "kind", entries)
    assert "yes against no" in page
    assert page.count("<polyline") == 2  # the legend's sample and the curve
    assert "0.750" in page


def test_a_class_without_images_has_no_curve_and_is_named(tmp_path):
    names = ["a", "b", "c"]
    entries = _entries(*_drawn(30, names[:2]), names[:2])
    for entry in entries:
        entry["probabilities"]["c"] = 0.0
    page = roc_section(PastRun(tmp_path), "kind", entries)
    assert "None for c" in page
    assert page.count("</li>") == 2


def test_a_long_curve_keeps_both_ends():
    truth, shares = _drawn(3000, ["a", "b"])
    line = _curve("b", _entries(truth, shares, ["a", "b"]))
    assert 100 < len(line.xs) <= 200
    assert (line.xs[0], line.ys[0], line.xs[-1], line.ys[-1]) == (0, 0, 1, 1)
    assert list(line.ys) == sorted(line.ys)


def test_runs_of_earlier_versions_say_that_they_have_no_curve(tmp_path):
    found = PastRun(tmp_path)
    assert "No ROC curve" in roc_section(found, "kind", [{"class": "a", "predicted": "a", "probability": 0.9}])
    assert not found.problems


@pytest.mark.parametrize("missing", [0, 1])
def test_the_area_of_the_summary_is_over_classes_that_are_there(missing):
    """torchmetrics counts a class that no image has as 0."""
    task = create_task("classification", "kind", 0, class_names=["a", "b", "c"])
    truth = torch.tensor([0, 0, 1, 1]) if missing else torch.tensor([0, 1, 2, 2])
    shares = torch.eye(3)[truth] * 9
    batch = Batch(torch.zeros(4, 3, 8, 8), {"kind": truth}, torch.ones(4, 1, dtype=torch.bool))
    metrics = task.metrics()
    task.update(metrics, shares, batch)
    assert task.summary(metrics)["auroc"] == 1
    alone = task.metrics()
    task.update(alone, shares[:1], Batch(batch.images[:1], {"kind": truth[:1]}, batch.has_label[:1]))
    assert task.summary(alone)["auroc"] is None


def _record(epoch, stage, task):
    scores = {task: {"dice": 0.1 * epoch, "per_class": {"dice": {"x": 0.2, "y": 0.3}, "jaccard": {"x": 0.1, "y": 0.2}}}}
    found = {"epoch": epoch, "step": 10 * epoch, "loss": {task: 1 / epoch}, "lr": 1e-3}
    return found | ({"stage": stage} if stage else {}) | {"validation": {"tasks": scores, "loss": {task: 2 / epoch}}}


def test_stages_are_marked_where_they_begin(tmp_path):
    records = [_record(1, "outline", "mask"), _record(2, "outline", "mask"), _record(3, "kind", "label")]
    looks = [{"step": step, "loss": {"mask": 1.0}, "weights": [1.0]} for step in (5, 15, 25)]
    found = PastRun(tmp_path, records=records, looks=looks)
    page = learning_section(found)
    assert "outline: epochs 1 to 2; kind: epoch 3." in page
    assert page.index("<h3>mask</h3>") < page.index("<h3>label</h3>") < page.index("<h3>All tasks</h3>")
    assert page.count("class=mark") == 2 * page.count("<svg viewBox")
    assert "mask: held out, per class dice" in page
    (place,) = {float(x) for x in re.findall(r'class=mark x1="([\d.]+)"', page)} - {42.0}
    assert pytest.approx(place) == 42 + (330 - 42) * 0.75, "between epochs 2 and 3 of 1 to 3"
    assert "kind</text>" in gradient_section(found)
    late = line_chart("weights", [Line("a", [20, 30], [0.0, 1.0])], marks={0.0: "outline", 20.0: "kind"})
    assert late.count("class=mark") == 1, "names at one place would lie on each other"
    assert "kind</text>" in late
    plain = PastRun(tmp_path, records=[_record(1, "", "mask")])
    assert "class=mark" not in learning_section(plain)


def test_the_cosines_of_many_tasks_are_several_charts(tmp_path):
    def page(count):
        names = [f"t{number}" for number in range(count)]
        cosines = torch.eye(count) - 0.5 * (1 - torch.eye(count))
        look = {"loss": dict.fromkeys(names, 1.0), "cosines": cosines.tolist()}
        return gradient_section(PastRun(tmp_path, looks=[look | {"step": step} for step in (1, 2)]))

    assert page(2).count("Cosine between") == 2  # its title, for people and for those who cannot see
    five = page(5)
    assert five.count("Cosine between") == 4
    assert "t3 and t4" in five
    assert "so at 2 of the 2 steps" in five
    assert "the most opposed of 36 pairs" in page(9)
    assert "One task at a time" in page(1)


def test_steps_that_were_not_watched_do_not_tear_the_line(tmp_path):
    looks = [{"step": step, "loss": {"a": 1.0, "b": 1.0}, "weights": [1.0, 1.0]} for step in range(1, 9)]
    for look in looks[::2]:
        look["cosines"] = [[1.0, 0.3], [0.3, 1.0]]
    page = gradient_section(PastRun(tmp_path, looks=looks))
    cosines = page[page.index("<svg viewBox") : page.index("Weight of each")]
    assert cosines.count("<polyline") == 1
    assert cosines.count("<circle") == 4


def test_both_axes_of_a_square_chart_are_of_one_length():
    drawn = line_chart("ROC", [Line("a", [0, 0, 1], [0, 1, 1], "0.9")], high=1.0, square=True)
    (x1, y1, x2, y2) = map(float, re.search(r'class=mark x1="(.*?)" y1="(.*?)" x2="(.*?)" y2="(.*?)"', drawn).groups())
    assert x2 - x1 == pytest.approx(y1 - y2)
    assert "<b>0.9</b>" in drawn
    assert "<circle" not in drawn


def test_typical_images_are_near_the_median_whatever_their_number():
    task = create_task("binary_segmentation", "mask", 0)
    table = ImageTable([task], keep=6)
    for first in range(0, 300, 10):
        target = torch.zeros(10, 1, 16, 16, dtype=torch.uint8)
        target[:, :, :8] = 1
        logits = torch.full((10, 1, 16, 16), -9.0)
        for row in range(10):
            logits[row].view(-1)[: (first + row) * 128 // 300] = 9.0  # ever more of the target is found
        ids = [f"{first + row:03d}" for row in range(10)]
        table(
            Batch(torch.zeros(10, 3, 16, 16), {"mask": target}, torch.ones(10, 1).bool(), {}, ids, ids),
            {"mask": logits},
        )
    assert len(table._samples["mask"].kept) <= 32, "memory is bounded"
    chosen = [(shown, int(one.id)) for shown, one in table._chosen("mask")]
    assert sorted(number for shown, number in chosen if shown == "worst") == list(range(6))
    assert len({number for _, number in chosen}) == 18
    assert all(number > 285 for shown, number in chosen if shown == "best")
    assert all(abs(number - 150) <= 50 for shown, number in chosen if shown == "typical")
