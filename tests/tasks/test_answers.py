"""The table of images and the predictions, for every kind of task: right where they make sense, silent elsewhere."""

from __future__ import annotations

import json

import pytest
import torch
from PIL import Image

from fastmtl import data
from fastmtl.evaluation.per_image import ImageTable
from fastmtl.models.heads import Queries
from fastmtl.prediction.images import write_predictions
from fastmtl.protocols import Batch
from fastmtl.tasks import create_task, list_tasks

OPTIONS = {
    "multilabel_segmentation": {"structures": ["left", "right"]},
    "multiclass_segmentation": {"structures": ["ground", "left", "right"]},
    "classification": {"class_names": ["a", "b", "c"]},
    "binary_classification": {"class_names": ["no", "yes"]},
}
SIDE = 8


def _perfect(kind):
    """Targets and the outputs that are right about them, for two images; the second is empty where it can be."""
    mask = torch.zeros(2, 1, SIDE, SIDE, dtype=torch.uint8)
    mask[0, :, 2:6, 1:4] = 1
    box = torch.tensor([[2.5, 4.0, 3.0, 4.0], [4.0, 4.0, 2.0, 2.0]]) / SIDE
    sure = torch.where(mask.bool(), 9.0, -9.0)
    queries = Queries(torch.tensor([[[9.0, 0, 0], [0, 9.0, 0]]] * 2), torch.cat([-sure, sure], 1), ())
    classes = torch.nn.functional.one_hot((2 * mask[:, 0]).long(), 3).movedim(-1, 1) * 9.0
    label = torch.tensor([1, 0])
    return {
        "binary_segmentation": (mask, sure),
        "multilabel_segmentation": (torch.cat([mask, 1 - mask], 1), torch.cat([sure, -sure], 1)),
        "multiclass_segmentation": (2 * mask, classes),
        "universal_segmentation": (mask, queries),
        "classification": (label, torch.nn.functional.one_hot(label, 3) * 9.0),
        "binary_classification": (label, torch.tensor([[9.0], [-9.0]])),
        "regression": (torch.tensor([2.0, 3.0]), torch.tensor([[2.0], [3.5]])),
        "bounding_box": (box, box.logit()),
        "auxiliary_segmentation": (mask, sure[:, :, ::4, ::4]),
        "contrastive": (torch.tensor([1, 0]), torch.randn(2, 128)),
        "reconstruction": (torch.zeros(2), torch.randn(2, 3, SIDE, SIDE)),
    }[kind]


def _all():
    kinds = list_tasks()
    tasks = [create_task(kind, kind, column, **OPTIONS.get(kind, {})) for column, kind in enumerate(kinds)]
    made = {kind: _perfect(kind) for kind in kinds}
    targets = {kind: target for kind, (target, _) in made.items()}
    has_label = torch.ones(2, len(kinds), dtype=torch.bool)
    batch = Batch(torch.zeros(2, 3, SIDE, SIDE), targets, has_label, ids=["x/one", "two"], groups=["p", "q"])
    return tasks, batch, {kind: output for kind, (_, output) in made.items()}


def _lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def picture(tmp_path):
    Image.new("RGB", (24, 16), "pink").save(tmp_path / "tile.png")
    return tmp_path / "tile.png"


def test_the_table_knows_every_kind_of_task(tmp_path, picture):
    tasks, batch, outputs = _all()
    table = ImageTable(tasks)
    table(batch, outputs)
    (tmp_path / "run").mkdir()
    table.write(tmp_path / "run", dict.fromkeys(batch.ids, picture))
    first, second = (one["tasks"] for one in _lines(tmp_path / "run" / "evaluation.jsonl"))
    assert first.keys() == second.keys() == set(outputs) - {"auxiliary_segmentation", "contrastive", "reconstruction"}
    for kind in ("binary", "multilabel", "multiclass", "universal"):
        assert first[f"{kind}_segmentation"]["dice"] == second[f"{kind}_segmentation"]["dice"] == 1.0
        assert (tmp_path / "run" / first[f"{kind}_segmentation"]["thumbnail"]).is_file()
    assert first["multiclass_segmentation"]["true_area"] == pytest.approx(12 / 64)
    assert first["classification"].pop("probabilities") == pytest.approx({"a": 0, "b": 1, "c": 0}, abs=1e-3)
    assert first["classification"] == {"score": pytest.approx(1, abs=1e-3), "class": "b", "predicted": "b"} | {
        "probability": pytest.approx(1, abs=1e-3)
    }
    assert second["binary_classification"]["predicted"] == "no"
    assert second["regression"] == {"score": -0.5, "value": 3.0, "predicted": 3.5}
    assert first["bounding_box"]["iou"] == pytest.approx(1)
    assert first["bounding_box"]["value"] == pytest.approx([0.3125, 0.5, 0.375, 0.5])


def test_a_missed_class_and_an_ignored_pixel():
    task = create_task("multiclass_segmentation", "map", 0, structures=["ground", "left", "right"])
    target = torch.zeros(1, 1, 4, 4, dtype=torch.uint8)
    target[..., :2], target[..., 3] = 1, 255
    target = torch.cat([target, torch.full_like(target, 255)])
    logits = torch.zeros(2, 3, 4, 4)
    logits[:, 2, :, 3] = 9.0  # wrong, and ignored
    logits[:, 1, :, 0] = 9.0  # half of what is there
    table = ImageTable([task])
    table(
        Batch(torch.zeros(2, 3, 4, 4), {"map": target}, torch.ones(2, 1).bool(), ids=["i", "j"], groups=["p", "p"]),
        {"map": logits},
    )
    assert table.lines[0]["tasks"]["map"]["dice"] == pytest.approx((2 / 3 + 1) / 2)
    assert not table.lines[1]["tasks"]  # nothing in it counts


def test_predictions_of_every_kind_of_task(tmp_path, picture):
    tasks, batch, outputs = _all()

    class Model(torch.nn.Module):
        def forward(self, batch):
            return outputs

    tiles = [data.Tile(name, picture, mask=None, label=None, group="p") for name in batch.ids]
    assert write_predictions(Model(), tasks, iter([batch]), tiles, tmp_path / "out") == 2
    first, second = _lines(tmp_path / "out" / "predictions.jsonl")
    assert first["classification"]["class"] == "b"
    assert second["binary_classification"]["probabilities"]["yes"] == pytest.approx(0, abs=1e-3)
    assert second["regression"] == {"value": 3.5}
    assert first["bounding_box"]["pixels"] == pytest.approx([3, 4, 12, 12])
    assert "contrastive" not in first
    assert "reconstruction" not in first
    for found in (
        first["binary_segmentation"],
        first["universal_segmentation"],
        first["multilabel_segmentation"]["left"],
    ):
        with Image.open(tmp_path / "out" / found["mask"]) as mask:
            assert mask.size == (24, 16)
            assert set(mask.tobytes()) == {0, 255}
    with Image.open(tmp_path / "out" / first["multiclass_segmentation"]["classes"]) as classes:
        assert set(classes.tobytes()) == {0, 2}
    assert second["multiclass_segmentation"]["shares"] == {"ground": 1.0, "left": 0.0, "right": 0.0}


@pytest.mark.parametrize(("empty", "expected"), [("one", 1.0), ("zero", 0.0), ("skip", None)])
@pytest.mark.parametrize("kind", ["binary_segmentation", "multiclass_segmentation", "universal_segmentation"])
def test_the_table_scores_empty_masks_as_the_task_says(kind, empty, expected):
    target, output = _perfect(kind)
    task = create_task(kind, "map", 0, empty=empty, **OPTIONS.get(kind, {}))
    images, has_label = torch.zeros(2, 3, SIDE, SIDE), torch.ones(2, 1, dtype=torch.bool)
    table = ImageTable([task])
    table(Batch(images, {"map": target}, has_label, ids=["full", "empty"], groups=["p", "q"]), {"map": output})
    assert table.lines[1]["tasks"].get("map", {}).get("dice") == expected
