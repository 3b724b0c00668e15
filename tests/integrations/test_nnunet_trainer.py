"""nnU-Net's trainer with our losses: the parts, and nnU-Net's commands on a data set made here."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from helpers.paths import ROOT
from torch import nn

from fastmtl.benchmarks import nnunet_step
from fastmtl.integrations import nnunet
from fastmtl.losses import patching

LABELS = 5


def _head(dims):
    torch.manual_seed(0)
    conv = {2: nn.Conv2d, 3: nn.Conv3d}[dims](6, LABELS, 1)
    features = torch.randn(2, 6, *(9, 7, 8)[:dims], requires_grad=True)
    return conv, features, torch.randint(0, LABELS, (2, 1, *features.shape[2:]))


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("dtype", [torch.int16, torch.float32], ids=str)
@pytest.mark.parametrize("options", [(None, False), (None, True), (2, False), (2, True)], ids=str)
def test_a_head_and_its_loss_are_the_loss_of_its_logits(dims, dtype, options):
    head, features, target = _head(dims)
    ignore_label, batch_dice = options
    loss = nnunet.loss_of(regions=False, ignore_label=ignore_label, batch_dice=batch_dice, ddp=False)
    given = features, head.weight, head.bias
    expected = loss(head(features), target.to(dtype))
    theirs = torch.autograd.grad(expected, given)
    nnunet.pass_inputs_on([head])
    passed = head(features)
    assert isinstance(passed, nnunet.HeadInput)
    for fuse in (None, True):
        found = loss.of_input(passed, target.to(dtype), fuse=fuse)
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(torch.autograd.grad(found, given), theirs)
    torch.testing.assert_close(loss(passed, target.to(dtype)), expected)


OTHER = {
    "class weights": ({}, {"weight": torch.arange(1.0, LABELS + 1)}),
    "label smoothing": ({}, {"label_smoothing": 0.1}),
    "sum": ({}, {"reduction": "sum"}),
    "ignored by the cross-entropy alone": ({}, {"ignore_index": 1}),
    "clipped Dice": ({"clip_tp": 200.0}, {}),
}


@pytest.mark.parametrize("options", OTHER)
def test_options_of_other_trainers_are_not_left_out(options):
    head, features, target = _head(3)
    dice, ce = OTHER[options]
    loss = nnunet.HeadLoss({"do_bg": False, "ddp": False} | dice, ce)
    expected = loss(head(features), target)
    assert torch.equal(loss(nnunet.HeadInput(features, head.weight, head.bias), target), expected)


def test_one_hot_targets_are_read_whole():
    head, features, target = _head(2)
    loss, one_hot = nnunet.HeadLoss({"ddp": False}, {}), nn.functional.one_hot(target[:, 0]).movedim(-1, 1).float()
    expected = loss(head(features), one_hot)
    assert torch.equal(loss(nnunet.HeadInput(features, head.weight, head.bias), one_hot), expected)


def test_minus_100_is_no_label():
    head, features, target = _head(2)
    loss = nnunet.loss_of(regions=False, ignore_label=None, batch_dice=False, ddp=False)
    target[0, 0, 0] = -100
    with pytest.raises(ValueError, match="no channel for"):
        loss.of_input(nnunet.HeadInput(features, head.weight, head.bias), target, fuse=True)


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("fuse", [False, True])
def test_what_is_no_number_is_no_label(wrong, fuse):
    head, features, target = _head(2)
    target = target.float()
    target[0, 0, 0] = wrong
    loss = nnunet.loss_of(regions=False, ignore_label=None, batch_dice=False, ddp=False)
    with pytest.raises(ValueError, match="no channel for"):
        loss.of_input(nnunet.HeadInput(features, head.weight, head.bias), target, fuse=fuse)
    with pytest.raises(ValueError, match="no channel for"):
        loss(head(features), target)


def test_an_evaluated_head_computes_logits():
    head, features, _ = _head(3)
    names, logits = list(head.state_dict()), head(features)
    nnunet.pass_inputs_on([head])
    assert torch.equal(head.eval()(features), logits)
    assert isinstance(head.train()(features), nnunet.HeadInput)
    assert list(head.state_dict()) == names


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("ignore_label", [None, 0, 2, LABELS])
@pytest.mark.parametrize("fuse", [False, True])
def test_counts_of_a_head_are_those_of_its_logits(dims, ignore_label, fuse):
    head, features, target = _head(dims)
    target[:, :, :2] = 2 if ignore_label is None else ignore_label
    predicted = nn.functional.one_hot(head(features).argmax(1), LABELS).movedim(-1, 1).bool()
    valid = target != (-1 if ignore_label is None else ignore_label)
    labels = target == torch.arange(LABELS).view(1, -1, *(1,) * dims)
    loss = nnunet.loss_of(regions=False, ignore_label=ignore_label, batch_dice=True, ddp=False)
    counts = loss.counts(nnunet.HeadInput(features, head.weight, head.bias), target.to(torch.int16), fuse=fuse)
    expected = (predicted & labels, predicted & ~labels, ~predicted & labels)
    for found, pixels in zip(counts, expected, strict=False):  # the fourth: pixels that are not finite
        assert torch.equal(found, (pixels & valid).flatten(2).sum(2))


def test_an_evaluated_network_passes_inputs_on_within_a_block_alone():
    head, features, _ = _head(3)
    network = nn.Sequential(head).eval()
    nnunet.pass_inputs_on([head])
    with nnunet.inputs_passed_on([head]):
        assert isinstance(network(features), nnunet.HeadInput)
    with pytest.raises(RuntimeError), nnunet.inputs_passed_on([head]):
        nn.Linear(2, 2)(torch.zeros(3))
    assert isinstance(network(features), torch.Tensor)


def test_a_compiled_network_passes_inputs_on():
    head, features, target = _head(3)
    loss = nnunet.loss_of(regions=False, ignore_label=None, batch_dice=False, ddp=False)
    expected = torch.autograd.grad(loss(head(features), target), [features, *head.parameters()])
    nnunet.pass_inputs_on([head])
    network = nn.Sequential(head)
    compiled = torch.compile(network, backend="aot_eager", fullgraph=True)
    found = torch.autograd.grad(loss(compiled(features), target), [features, *head.parameters()])
    torch.testing.assert_close(found, expected)
    network.eval()
    assert isinstance(compiled(features), torch.Tensor)
    with nnunet.inputs_passed_on([head]):
        assert isinstance(compiled(features), nnunet.HeadInput)


def test_autocast_features_meet_full_precision_weights():
    head, features, target = _head(3)
    loss = nnunet.loss_of(regions=False, ignore_label=None, batch_dice=False, ddp=False)
    expected = loss(head(features), target)
    given = nnunet.HeadInput(features.bfloat16(), head.weight, head.bias)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = loss.of_input(given, target, fuse=True)
    torch.testing.assert_close(found, expected, rtol=0.01, atol=0.0)
    assert all(one.dtype == torch.float32 for one in torch.autograd.grad(found, list(head.parameters())))


def test_regions_have_the_loss_of_regions():
    loss = nnunet.loss_of(regions=True, ignore_label=3, batch_dice=False, ddp=False)
    logits, target = torch.randn(2, 3, 8, 8), torch.randint(0, 2, (2, 4, 8, 8))
    assert loss(logits, target).isfinite()
    assert loss.use_ignore_label
    assert loss.dc.do_bg


def _installed(monkeypatch, version):
    """nnunetv2 of this version, which need not be installed; None: it is not."""
    monkeypatch.setitem(sys.modules, "nnunetv2", None if version is None else ModuleType("nnunetv2"))
    monkeypatch.setattr(patching, "version", lambda package: version)


def test_the_folder_of_the_trainer_is_printed(monkeypatch, capsys):
    _installed(monkeypatch, "2.8.1")
    nnunet.main()
    assert (Path(capsys.readouterr().out.strip()) / "nnUNetTrainerFastmtl.py").is_file()


@pytest.mark.parametrize(
    ("version", "message"),
    [
        (None, r"needs nnunetv2; install it with: pip install 'fastmtl-engine\[nnunet\]'"),
        ("2.9.0", "nnunetv2 2.9.0 is"),
    ],
)
def test_without_a_tested_nnunet_no_folder_is_printed(version, message, monkeypatch, capsys):
    _installed(monkeypatch, version)
    with pytest.raises(SystemExit, match=message) as exit_:
        nnunet.main()
    assert "\n" not in str(exit_.value)
    assert capsys.readouterr().out == ""


def test_the_page_has_the_measured_rows():
    page = (ROOT / "docs" / "nnunet.md").read_text(encoding="utf-8")
    rows = json.loads((ROOT / "benchmarks/results/nnunet-100-labels.json").read_text())["rows"]
    for theirs, ours in zip(rows[::2], rows[1::2], strict=True):
        losses = [[step["loss"] for step in [*row["steps"], row["validation"]]] for row in (theirs, ours)]
        assert losses[0] == pytest.approx(losses[1], rel=1e-6)
        cells = [
            " x ".join(map(str, theirs["patch"])),
            *(f"{row['MiB_more_with_validation']:,} MiB" for row in (theirs, ours)),
            "; ".join(", ".join(f"{loss:.5f}" for loss in one) for one in losses),
        ]
        assert f"| {' | '.join(cells)} |" in page


OWN = """
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from fastmtl.integrations.nnunet_trainers.nnUNetTrainerFastmtl import nnUNetTrainerFastmtl


class Short:
    def initialize(self):
        self.num_epochs, self.num_iterations_per_epoch, self.num_val_iterations_per_epoch = 1, 3, 1
        torch.manual_seed(0)
        self.steps = 0
        super().initialize()

    def train_step(self, batch):
        result = super().train_step(self.drawn(batch))
        print("loss of a step:", float(result["loss"]))
        return result

    def validation_step(self, batch):
        result = super().validation_step(self.drawn(batch))
        print("loss of a step:", float(result["loss"]))
        print("counts:", *(int(count) for name in ("tp_hard", "fp_hard", "fn_hard") for count in result[name]))
        return result

    def drawn(self, batch):
        drawn, labels = torch.Generator().manual_seed(self.steps), self.label_manager.num_segmentation_heads
        self.steps += 1
        batch["data"] = torch.randn(batch["data"].shape, generator=drawn)
        for target in batch["target"]:
            target.copy_(torch.randint(0, labels, target.shape, generator=drawn))
        return batch


class nnUNetTrainerTheirs(Short, nnUNetTrainer):
    pass


class nnUNetTrainerOurs(Short, nnUNetTrainerFastmtl):
    pass
"""


@pytest.mark.slow
def test_nnunet_plans_trains_goes_on_and_predicts(tmp_path):
    pytest.importorskip("nnunetv2")
    configuration, data = "3d_fullres", tmp_path / "raw" / "Dataset001_Boxes"
    nnunet_step.write_data_set(data, (12, 8, 8))  # large enough for heads fused with the loss
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "short_trainers.py").write_text(OWN)
    environment = os.environ | {
        "nnUNet_raw": str(tmp_path / "raw"),
        "nnUNet_preprocessed": str(tmp_path / "preprocessed"),
        "nnUNet_results": str(tmp_path / "results"),
        "nnUNet_extTrainer": os.pathsep.join([str(nnunet.TRAINERS), str(tmp_path / "own")]),
        "nnUNet_n_proc_DA": "1",
        "nnUNet_compile": "f",
    }

    def run(module: str, entry: str, *arguments: object) -> str:
        guard = "from fastmtl.utils.torchvision_guard import make_torchvision_importable as m; m()"
        code = f"{guard}; from {module} import {entry}; {entry}()"
        command = [sys.executable, "-c", code, *map(str, arguments)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
        return done.stdout

    plan = "nnunetv2.experiment_planning.plan_and_preprocess_entrypoints"
    run(plan, "plan_and_preprocess_entry", "-d", 1, "-c", configuration, "-np", 1)
    train = ("nnunetv2.run.run_training", "run_training_entry", 1, configuration, 0, "-device", "cpu", "-tr")
    losses, counts = {}, {}
    for name in ("nnUNetTrainerTheirs", "nnUNetTrainerOurs"):
        lines = run(*train, name).splitlines()
        losses[name] = [float(line.split(":")[1]) for line in lines if line.startswith("loss of a step")]
        (counts[name],) = ([int(one) for one in line.split()[1:]] for line in lines if line.startswith("counts"))
    assert len(losses["nnUNetTrainerOurs"]) == 3 + 1
    assert losses["nnUNetTrainerOurs"] == pytest.approx(losses["nnUNetTrainerTheirs"], rel=1e-5)
    # The training steps round differently, which may tip pixels whose two largest logits are almost equal.
    assert counts["nnUNetTrainerOurs"] == pytest.approx(counts["nnUNetTrainerTheirs"], rel=0.01, abs=20)
    run(*train, "nnUNetTrainerOurs", "--c")
    where = ("-d", 1, "-c", configuration, "-f", 0, "-tr", "nnUNetTrainerOurs", "-device", "cpu", "--disable_tta")
    predict = ("nnunetv2.inference.predict_from_raw_data", "predict_entry_point")
    run(*predict, "-i", data / "imagesTr", "-o", tmp_path / "out", *where)
    assert len(list((tmp_path / "out").glob("*.nii.gz"))) == 6
