"""Every block of README.md and docs/ that stands in a training loop of one's own runs in one as it stands."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace

import pytest
import torch
from helpers.pages import Block, blocks, claim, is_of_a_loop
from torch import nn
from torch._functorch import config as functorch_config

from fastmtl import balance, ops
from fastmtl.utils.torchvision_guard import make_torchvision_importable

make_torchvision_importable()
BLOCKS = [block for block in blocks() if is_of_a_loop(block)]
CLAIMED: list[Block] = []
_block = partial(claim, BLOCKS, CLAIMED)

MONAI = _block("README.md", "monai import DiceCELoss")
SMP = _block("README.md", "smp import DiceLoss")
SURGERY = _block("README.md", "balance.PCGrad")
BACKWARD = _block("balancing.md", "create_balancer")
CUT = _block("balancing.md", "balance.cut")
FUSED_STEP = _block("balancing.md", "clip_norm=1.0), once")
SCALED = _block("balancing.md", "scaler.update()")
COMPILED = _block("balancing.md", "torch.compile")
RANKED = _block("distributed.md", "balancer.distribute")
PATCH = _block("losses.md", "fastmtl.patch")
LINEAR_LOSS = _block("losses.md", "linear_dice_ce_loss")
FUSED_LOSS = _block("losses.md", "ops.dice_bce_loss")


def test_every_block_of_a_loop_is_run_here():
    assert sorted(CLAIMED) == sorted(BLOCKS)


class Model(nn.Module):
    """An encoder and two heads, as the loops of the pages have them."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.encoder = nn.Sequential(nn.Linear(4, 6), nn.Tanh())
        self.mask, self.grade = nn.Linear(6, 1), nn.Linear(6, 2)

    def forward(self, x):
        z = self.encoder(x)
        return self.mask(z), self.grade(z)

    def losses(self, x, y):
        mask, grade = self(x) if x.shape[1] == 4 else (self.mask(x), self.grade(x))
        return {"mask": _mask_loss(mask, y), "grade": grade.square().mean()}


def _mask_loss(found, wanted):
    return (found[:, 0] - wanted).square().mean()


def _moved(side: str, strategy: str = "") -> Model:
    """The model after a loop in which the names that the page takes for granted stand for something."""
    model, draws = Model(), torch.Generator().manual_seed(1)
    x, y = torch.randn(8, 4, generator=draws), torch.randn(8, generator=draws)
    grade = torch.randint(0, 2, (8,), generator=draws)
    optimizer, balancer = torch.optim.AdamW(model.parameters(), lr=1e-2), balance.PCGrad()
    if strategy:
        balancer.use(strategy)
    scope = {
        "torch": torch,
        "balance": balance,
        "device": "cpu",
        "model": model,
        "optimizer": optimizer,
        "mask_loss": _mask_loss,
        "grade_loss": nn.functional.cross_entropy,
        "losses": model.losses(x, y),
        "batch": SimpleNamespace(has_label=torch.ones(8, 2, dtype=torch.bool)),
        "x": x,
        "y": y,
        "g": grade,
        "balancer": balancer,
        "step": balance.FusedStep(optimizer, clip_norm=1.0),
        "scaler": torch.amp.GradScaler("cpu", init_scale=16.0),
        "loader": [(x, y), (x, y)] if "for x, y in loader" in side else [(x, y, grade)] * 2,
    }
    exec(side, scope)
    if "step(" not in side:  # the block ends before it
        optimizer.step()
    assert not torch.equal(model.encoder[0].weight, Model().encoder[0].weight)
    return model


def _same(found: Model, wanted: Model, **tolerances) -> None:
    for one, other in zip(found.parameters(), wanted.parameters(), strict=True):
        torch.testing.assert_close(one, other, **tolerances)


@pytest.mark.parametrize(("library", "block"), [("monai", MONAI), ("segmentation_models_pytorch", SMP)])
def test_losses_under_their_own_names(library, block):
    pytest.importorskip(library)
    label = torch.randint(0, 3, (2, 1, 8, 8) if library == "monai" else (2, 8, 8))
    scope = {"loader": [(torch.randn(2, 3, 8, 8), label)], "model": nn.Conv2d(3, 3, 1)}
    losses = [exec(side, scope) or scope["loss"] for side in (block.before, block.after)]
    torch.testing.assert_close(losses[1], losses[0])


def test_a_fused_loss_is_the_two_it_stands_for():
    monai = pytest.importorskip("monai")
    target = torch.randint(0, 2, (2, 1, 32, 32), dtype=torch.uint8)
    scope = {"loader": [(torch.randn(2, 3, 32, 32), target)], "model": nn.Conv2d(3, 1, 1), "torch": torch}
    scope["monai"] = monai
    losses = [exec(side, scope) or scope["loss"] for side in (FUSED_LOSS.before, FUSED_LOSS.after)]
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-3, atol=1e-4)


def test_a_library_is_patched_and_restored(capsys):
    monai = pytest.importorskip("monai.losses")
    original = monai.DiceLoss
    exec(PATCH.text, {})
    assert monai.DiceLoss is original
    said = capsys.readouterr().err
    start, end = PATCH.text.partition("# fastmtl: ")[2].partition("\n")[0].split(" replaced in ")
    assert said.startswith(f"fastmtl: {start.removesuffix(', ...')}")
    assert end.rpartition("...")[2] in said


def test_a_loss_fused_with_its_layer_is_that_of_the_logits():
    loader = [(torch.randn(2, 32, 8, 8), torch.randint(0, 100, (2, 8, 8)))]
    scope = {"loader": loader, "model": nn.Identity(), "torch": torch, "ops": ops}
    losses = []
    for side in (LINEAR_LOSS.before, LINEAR_LOSS.after):
        torch.manual_seed(0)
        exec(side, scope)
        losses.append(scope["loss"])
    torch.testing.assert_close(losses[1], losses[0])


def test_the_rest_of_the_step():
    _same(_moved(FUSED_STEP.after), _moved(FUSED_STEP.before), rtol=1e-5, atol=1e-6)


@functorch_config.patch(donated_buffer=True)  # the page sets it, for good
@pytest.mark.parametrize("block", [SURGERY, SCALED, COMPILED], ids=["PCGrad", "scaler", "compiled"])
def test_both_sides_of_a_loop(block, monkeypatch):
    compiled = torch.compile
    monkeypatch.setattr(torch, "compile", lambda module: compiled(module, backend="aot_eager"))
    _moved(block.before)
    _moved(block.after)


def test_a_backward_and_a_cut():
    _moved(BACKWARD.text)
    _moved(CUT.text, strategy="features")


def test_a_backward_on_ranks(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        _moved(RANKED.text)
    finally:
        torch.distributed.destroy_process_group()
