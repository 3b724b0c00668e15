"""Saliency, feature maps and filters: right on networks whose gradients are known, and in the report of real runs."""

import json
import re
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers.tiles import write_folder
from PIL import Image
from torch import nn

from fastmtl import models
from fastmtl.cli import main
from fastmtl.evaluation import analyse, panels
from fastmtl.evaluation.feature_maps import feature_maps, first_filters
from fastmtl.evaluation.saliency import has_saliency, saliency
from fastmtl.models import Output
from fastmtl.protocols import Batch
from fastmtl.tasks import create_task
from fastmtl.utils.normalization import HALF

SMALL = ["--epochs", "1", "--size", "32", "--batch-size", "4", "--set", "model.base_channels=4"]


def _batch(count=2, side=8, **metadata):
    images = torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(1))
    return Batch(images, {}, torch.ones(count, 3, dtype=torch.bool), metadata)


class Known(nn.Module):
    """One output whose gradient can be read off."""

    def __init__(self, of):
        super().__init__()
        self.scale, self.of = nn.Parameter(torch.ones(())), of

    def forward(self, batch):
        return {"t": self.of(batch.images * self.scale)}


def test_saliency_of_a_class_is_that_of_the_predicted_classes_logit():
    task = create_task("classification", "t", 0, class_names=["a", "b"])
    weights = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(2))
    model = Known(lambda x: torch.einsum("bchw,kchw->bk", x, weights)).train()
    batch = _batch()
    chosen = model(batch)["t"].argmax(1)
    assert set(chosen.tolist()) == {0, 1}, "the draw should try both classes"
    assert torch.equal(saliency(model, task, batch), weights[chosen].abs().amax(1))
    assert model.training
    assert model.scale.grad is None
    assert not batch.images.requires_grad


def test_saliency_of_a_mask_is_that_of_the_predicted_foreground():
    task = create_task("binary_segmentation", "t", 0)
    batch = _batch()
    batch.images[1] = -batch.images[1].abs()  # no foreground there: the whole image counts
    model = Known(lambda x: 2 * x[:, :1])
    there = batch.images[:, 0] > 0
    there[1] = True
    assert torch.equal(saliency(model, task, batch), 2.0 * there)


def test_saliency_of_several_classes_leaves_the_background_out():
    task = create_task("multiclass_segmentation", "t", 0, structures=["ground", "a", "b"])
    batch = _batch()
    found = saliency(Known(lambda x: x * torch.tensor([5.0, 2.0, 3.0])[:, None, None]), task, batch)
    highest = (batch.images * torch.tensor([5.0, 2.0, 3.0])[:, None, None]).argmax(1)
    assert torch.equal(found, torch.tensor([0.0, 2.0, 3.0])[highest])


@pytest.mark.parametrize("kind", ["regression", "bounding_box"])
def test_saliency_of_numbers(kind):
    task = create_task(kind, "t", 0)
    model = Known(lambda x: x.sum((1, 2, 3))[:, None].repeat(1, task.output.channels))
    assert torch.equal(saliency(model, task, _batch()), torch.full((2, 8, 8), float(task.output.channels)))


def test_tasks_that_only_help_have_none():
    assert not has_saliency(create_task("contrastive", "t", 0))


def test_an_image_reaches_no_other_image():
    tasks = {"t": Output("vector", 1)}
    model = models.create_model("joint_unet", tasks=tasks, preset="tiny")  # with batch normalisation
    task = create_task("binary_classification", "t", 0, class_names=["no", "yes"])
    batch = _batch(side=32)
    alone = saliency(model, task, Batch(batch.images[:1], {}, batch.has_label[:1]))
    assert torch.allclose(saliency(model, task, batch)[:1], alone, atol=1e-7)


@pytest.mark.parametrize(
    ("name", "strides", "channels"),
    [("joint_unet", [1, 2, 4, 8, 16], 4), ("small_unet_film", [1, 2, 4, 8, 16], 6), ("mask2tasks", [4, 8, 16, 32], 12)],
)
def test_feature_maps_of_encoders(name, strides, channels):
    kind = "queries" if name == "mask2tasks" else "map"
    if kind == "queries":
        pytest.importorskip("transformers")
    model = models.create_model(name, tasks={"t": Output(kind, 2)}, preset="tiny")
    batch = _batch(side=64, film=torch.zeros(2, 7))
    found = feature_maps(model, batch)
    assert [one.stride for one in found] == strides
    assert [list(one.values.shape[-2:]) for one in found] == [[64 // stride] * 2 for stride in strides]
    assert found[0].values.shape[1] == channels
    weights = first_filters(model)
    assert weights.shape[1] == 3
    if kind == "queries":
        with torch.inference_mode():
            model(batch)  # what it keeps of an evaluation must not be in the way of gradients
        values = saliency(model, create_task("universal_segmentation", "t", 0), batch)
        assert values.shape == (2, 64, 64)
        assert values.isfinite().all()
        assert values.sum() > 0


def test_own_models_may_have_no_encoder():
    model = Known(lambda x: x)
    for what in (lambda: feature_maps(model, _batch()), lambda: first_filters(model)):
        with pytest.raises(ValueError, match="has no `parts"):
            what()
    model.parts = {"encoder": nn.Flatten()}
    with pytest.raises(ValueError, match="no feature maps"):
        feature_maps(model, _batch())
    with pytest.raises(ValueError, match="no convolution"):
        first_filters(model)


def test_pictures():
    flat = panels.grey(torch.full((4, 4), 3.0))
    assert flat.max() == 0
    assert sorted(set(panels.grey(torch.tensor([[1.0, 2.0, 3.0]])).flatten().tolist())) == [0, 128, 255]
    filtered = panels.coloured(torch.tensor([-2.0, 0.0, 2.0])[:, None, None])
    assert filtered.flatten().tolist() == [0, 128, 255]
    sheet = panels.multiples([flat] * 5, 4)
    assert sheet.size == (396, 196)
    assert sheet.getpixel((98, 50))[3] == 0, "what lies between is transparent, for light and dark pages"
    dark = panels.lit(torch.zeros(3, 8, 8), torch.zeros(8, 8), HALF)
    assert dark.size == (256, 256)
    assert panels.original(torch.zeros(3, 1, 1), HALF).tolist() == [[[128, 128, 128]]]


@pytest.fixture(scope="module")
def tiles(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("data") / "tiles", {"benign": 8, "malignant": 8}, size=32).root


@pytest.fixture(scope="module")
def run(tiles, tmp_path_factory):
    """A run whose balancer weighs losses, watched."""
    out = tmp_path_factory.mktemp("runs") / "small"
    options = ["balancer.name=linear", "--val-fraction", "0.5", "--log-every", "1", "--gradient-stats-every", "1"]
    assert main(["train", "ebhi_joint_unet", "--data", str(tiles), "--out", str(out), *SMALL, *options]) == 0
    return out


def test_a_run_ends_with_its_analyses(run):
    found = json.loads((run / "analyses.json").read_text())
    assert found["failed"] == {}
    assert len(found["images"]) == 4
    pairs = {(entry["image"], entry["task"]) for entry in found["saliency"]}
    assert pairs == {(number, task) for number in range(4) for task in ("segmentation", "classification")}
    assert [one["stride"] for one in found["features"]["maps"]] == [1, 2, 4, 8, 16]
    assert (found["filters"]["count"], found["filters"]["size"]) == (4, [3, 3])
    for entry in found["saliency"]:
        assert 0 <= entry["on_true"] <= 1
        assert 0 < entry["true_area"] < 1
    lines = {line["id"]: line for line in map(json.loads, (run / "evaluation.jsonl").read_text().splitlines())}
    examples = [lines[image["id"]]["tasks"]["segmentation"].get("shown") for image in found["images"]]
    assert examples[0] == "typical"
    assert {"worst", "best"} < set(examples)
    page = (run / "report.html").read_text()
    for said in ("<h2>Where the network looks", "<h2>Inside the encoder", "stride 16", "first convolution"):
        assert said in page
    assert "Missing from this page" not in page
    assert page.count("data:image/png;base64,") == 6
    assert not re.search(r'src="(?!data:)', page)


def test_the_curves_of_a_run(run):
    page = (run / "report.html").read_text()
    for said in ("classification: ROC", "Learning rate", "segmentation: held out", "Cosine between the tasks"):
        assert said in page
    looks = [json.loads(line) for line in (run / "balance.jsonl").read_text().splitlines()]
    for look in looks:
        (one, cosine), (same, other) = look["cosines"]
        assert one == pytest.approx(1)
        assert other == pytest.approx(1)
        assert cosine == pytest.approx(same)
        assert -1 <= cosine <= 1
    assert "so at" in page


def test_the_analyses_can_be_made_again(run, tmp_path):
    again = tmp_path / "again"
    shutil.copytree(run, again)
    shutil.rmtree(again / "analyses")
    (again / "analyses.json").unlink()
    assert main(["report", str(again)]) == 0
    assert "Where the network looks" not in (again / "report.html").read_text()
    assert main(["report", "--analyse", str(again)]) == 0
    assert (again / "analyses.json").read_bytes() == (run / "analyses.json").read_bytes()
    for path in (run / "analyses").iterdir():
        with Image.open(path) as one, Image.open(again / "analyses" / path.name) as other:
            assert one.tobytes() == other.tobytes(), path.name


def test_what_fails_is_one_line_and_the_rest_is_there(run, tmp_path, monkeypatch, capsys):
    again = tmp_path / "again"
    shutil.copytree(run, again)

    def refuse(*_):
        raise RuntimeError("no\ngradient <here>")

    monkeypatch.setattr(analyse, "saliency", refuse)
    assert main(["report", "--analyse", str(again)]) == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "saliency" in line]
    assert line == "fastmtl: saliency: the analysis failed: RuntimeError: no gradient <here>"
    page = (again / "report.html").read_text()
    assert "no gradient &lt;here&gt;" in page
    assert "Where the network looks" not in page
    assert "Inside the encoder" in page


def test_mistakes_get_one_line(run, tmp_path, capsys):
    again = tmp_path / "again"
    shutil.copytree(run, again)
    facts = json.loads((again / "run.json").read_text())
    (again / "run.json").write_text(json.dumps(facts | {"data": str(tmp_path / "gone")}))
    assert main(["report", "--analyse", str(again)]) == 1
    assert "gone, which no longer exists" in capsys.readouterr().err
    (again / "evaluation.jsonl").unlink()
    assert main(["report", "--analyse", str(again)]) == 1
    assert "has no evaluation.jsonl" in capsys.readouterr().err


@pytest.mark.parametrize("content", ["[1]", "{", '{"filters": 4}', '{"failed": 1}'])
def test_broken_analyses_are_named_and_left_out(run, tmp_path, content, capsys):
    again = tmp_path / "again"
    shutil.copytree(run, again, ignore=shutil.ignore_patterns("checkpoints", "tensorboard"))
    (again / "analyses.json").write_text(content)
    assert main(["report", str(again)]) == 1
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert ("a file is not as fastmtl writes it" if ": " in content else "analyses.json") in line
    assert "Learning curves" in (again / "report.html").read_text()


def test_no_picture_is_read_outside_of_the_run(run, tmp_path, capsys):
    again = tmp_path / "again"
    shutil.copytree(run, again, ignore=shutil.ignore_patterns("checkpoints", "tensorboard"))
    (tmp_path / "secret.jpg").write_bytes(b"secret")
    found = json.loads((again / "analyses.json").read_text())
    found["images"][0]["picture"] = "../secret.jpg"
    (again / "analyses.json").write_text(json.dumps(found))
    assert main(["report", str(again)]) == 1
    assert "cannot be read" in capsys.readouterr().err
    assert "c2VjcmV0" not in (again / "report.html").read_text()


def test_few_images_are_chosen_typical_first():
    def line(name, score, shown=None):
        entry = {"score": score} | ({"shown": shown} if shown else {})
        return {"id": name, "tasks": {"mask": entry}}

    lines = [line("a", 0.1, "worst"), line("b", 0.5), line("c", 0.6, "typical"), line("d", 0.9, "best"), line("e", 0.2)]
    dataset = SimpleNamespace(tiles=[SimpleNamespace(id=name) for name in "abcde"])
    assert analyse._chosen(lines, dataset) == ["c", "a", "d", "b"]


def test_pictures_of_values_that_are_not_finite_are_dark_and_warn_of_nothing():
    """Warnings are errors here; NumPy warns of a cast of NaN."""
    bad = torch.full((3, 8, 8), float("nan"))
    bad[:, 0] = float("inf")
    picture = panels.original(bad, HALF)
    assert picture[0].min() == 255
    assert not picture[1:].any()
    assert not np.asarray(panels.lit(bad, bad[0], HALF))[-1].any()
