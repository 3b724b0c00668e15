"""Shares of data sets that follow their gradients: what is measured, interruptions, ranks and the report."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from helpers import side_by_side
from helpers.runs import killed_at
from helpers.side_by_side import recipe_of, write_sets
from torch import nn
from torch.multiprocessing.spawn import spawn

from fastmtl import api
from fastmtl.balance.pike import pike_shares
from fastmtl.distributed import World
from fastmtl.protocols import Batch
from fastmtl.training.checkpoint_names import history
from fastmtl.training.fingerprint import fingerprint
from fastmtl.training.run_dir import RunFolder
from fastmtl.training.set_shares import SetShares
from fastmtl.training.trainer import Trainer

CPU = torch.device("cpu")
ZETA = [0.5, 0.5]


class Shares:
    """The shares of a loader, without the loader."""

    global_batch = 8

    def __init__(self, *shares):
        self.shares = shares

    def set_shares(self, shares):
        self.shares = tuple(shares)


def _measures(mixed=True, every=1, **options):
    options = {"zeta": (0.5, 0.25), "floor": 0.2, **options}
    return SetShares(("a", "b"), mixed=mixed, every=every, device=CPU, **options)


def _batch(images, names):
    ids = [f"{name}/{row}" for row, name in enumerate(names)]
    one = names[0] if len(set(names)) == 1 else ""
    return Batch(images, {}, torch.ones(len(names), 1, dtype=torch.bool), ids=ids, groups=ids, set=one)


def _look(measures, model, batch):
    measures.look(batch, model, list(model.parameters()), lambda own: model(own.images).square().mean())


def test_a_probe_is_its_formula():
    """The gradients of the halves, image by image."""
    torch.manual_seed(0)
    model, measures = nn.Linear(3, 2).double(), _measures()
    batch = _batch(torch.randn(9, 3, dtype=torch.double), list("abaababbb"))
    _look(measures, model, batch)
    loader = Shares(0.7, 0.3)
    record = measures.close_epoch(loader, World())
    wanted = []
    for name in "ab":
        rows = [row for row, one in enumerate(batch.ids) if one.startswith(name)]
        each = []
        for row in rows[: len(rows) // 2 * 2]:
            model.zero_grad()
            model(batch.images[row]).square().mean().backward()
            each.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
        half = len(each) // 2
        a, b = torch.stack(each[:half]).mean(0), torch.stack(each[half:]).mean(0)
        wanted.append((float(a @ b), float(half / 2 * (a - b).square().sum())))
        found = record[name]
        assert (found["squared_norm"], found["variance"]) == pytest.approx(wanted[-1], rel=1e-6)
    squares, variances = [max(one[0], 0) for one in wanted], [one[1] for one in wanted]
    after = pike_shares([0.7, 0.3], squares, variances, zeta=(0.5, 0.25), batch=8, floor=0.1)
    assert loader.shares == pytest.approx(after, rel=1e-6)
    assert [record[name]["share"] for name in "ab"] == [0.7, 0.3]  # of the epoch that has ended


def test_estimates_are_those_of_the_gradients_without_bias():
    """Images are noise around a mean: the loss w . x has the gradient x, whose mean and variance are known."""
    rng, mean, sigma = np.random.default_rng(0), np.array([1.0, -2.0, 0.5]), 3.0
    model, measures = nn.Linear(3, 1, bias=False).double(), _measures(mixed=False)
    for _ in range(2000):
        images = torch.from_numpy(mean + sigma * rng.standard_normal((4, 3)))
        measures.look(_batch(images, ["a"] * 4), model, [model.weight], lambda own: model(own.images).mean())
    found = measures.close_epoch(Shares(0.5, 0.5), World())["a"]
    assert found["squared_norm"] == pytest.approx(mean @ mean, rel=0.15)  # |mean of the batch|^2 would be twice that
    assert found["variance"] == pytest.approx(3 * sigma**2, rel=0.05)


def test_a_probe_changes_nothing_of_the_training():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 1)).train()
    model[1].eval()  # frozen statistics
    before = {name: value.clone() for name, value in model.state_dict().items()}
    batch = _batch(torch.randn(8, 3), list("aaaabbbb"))
    state = torch.get_rng_state()
    _look(_measures(), model, batch)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert [module.training for module in model] == [True, False, True, True]


def test_every_nth_batch_of_a_set_is_probed_from_the_first_of_an_epoch_on():
    model, measures, probed = nn.Linear(3, 1), _measures(mixed=False, every=3), []
    measures._probe = lambda number, *_: probed.append(number)
    for _ in range(2):
        for name in "aaaaabab":
            _look(measures, model, _batch(torch.zeros(2, 3), [name] * 2))
        measures.close_epoch(Shares(0.5, 0.5), World())
    assert probed == [0, 0, 1] * 2


def test_shares_stay_until_every_set_has_estimates_and_these_are_kept():
    torch.manual_seed(0)
    model, measures, loader = nn.Linear(3, 1), _measures(mixed=False), Shares(0.6, 0.4)
    _look(measures, model, _batch(torch.randn(4, 3), ["a"] * 4))
    record = measures.close_epoch(loader, World())
    assert loader.shares == (0.6, 0.4)
    assert record["b"] == {"share": 0.4, "squared_norm": None, "variance": None}
    _look(measures, model, _batch(torch.full((4, 3), float("nan")), ["b"] * 4))
    assert measures.close_epoch(loader, World())["b"]["variance"] is None  # not finite: not counted
    _look(measures, model, _batch(torch.randn(4, 3), ["b"] * 4))
    measures.close_epoch(loader, World())
    assert loader.shares != (0.6, 0.4)
    before = loader.shares
    measures.close_epoch(loader, World())  # no probe at all
    assert loader.shares != before


def test_a_state_of_two_ranks_continues_on_one():
    torch.manual_seed(0)
    model, parts = nn.Linear(3, 1), [_measures(), _measures()]
    for one in parts:
        _look(one, model, _batch(torch.randn(8, 3), list("aaaabbbb")))
    states = [one.state_dict(World()) for one in parts]
    both = {**states[0], "sums": torch.cat([state["sums"] for state in states])}
    alone, record = _measures(), [one.close_epoch(Shares(0.5, 0.5), World()) for one in parts]
    alone.load_state_dict(both, World())
    found = alone.close_epoch(Shares(0.5, 0.5), World())
    for key in ("squared_norm", "variance"):
        assert found["a"][key] == pytest.approx((record[0]["a"][key] + record[1]["a"][key]) / 2)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_sets(tmp_path_factory.mktemp("sets"))


def _recipe(root, *, batches="one", epochs=3, **data):
    data = {"sets_zeta": ZETA, "sets_probe_every": 2, "sets_batches": batches, **data}
    return recipe_of(root, data=data, training={"epochs": epochs, "checkpoint_steps": 2}, balancer={"name": "pcgrad"})


@pytest.fixture(scope="module", params=["one", pytest.param("mixed", marks=pytest.mark.slow)])
def run(request, root):
    """An uninterrupted run and its recipe."""
    recipe = _recipe(root, batches=request.param)
    api.train(recipe, root, root / request.param)
    return root / request.param, recipe


def test_shares_are_logged_follow_their_update_and_are_plotted(run):
    out, _ = run
    records = RunFolder(out).records()
    drawn = [[one["share"] for one in record["sets"].values()] for record in records]
    assert drawn[0] == pytest.approx([12 / 32, 20 / 32], abs=0.1)  # in proportion to the training tiles
    for before, after, record in zip(drawn, drawn[1:], records, strict=False):
        assert after == _after(record["sets"])
        assert after != before
    page = (out / "report.html").read_text()
    assert "Shares of the training" in page
    assert "share at the start" in page


def _after(logged):
    """The next shares, from what is logged of an epoch."""
    keys = ("share", "squared_norm", "variance")
    shares, squares, variances = ([one[key] for one in logged.values()] for key in keys)
    squares = [max(one, 0.0) for one in squares]
    return pike_shares(shares, squares, variances, zeta=tuple(ZETA), batch=4, floor=0.05)


@pytest.mark.long
def test_a_killed_run_continues_bit_for_bit_with_its_shares(run, root, tmp_path, monkeypatch):
    whole, recipe = run
    steps = [record["step"] for record in RunFolder(whole).records()]
    # in the third epoch, whose shares are new; two steps after a checkpoint
    killed_at(lambda: api.train(recipe, root, tmp_path / "run"), monkeypatch, Trainer, "step", steps[1] + 4)
    assert history(tmp_path / "run" / "checkpoints")
    api.train(recipe, root, tmp_path / "run")
    assert fingerprint(tmp_path / "run") == fingerprint(whole)
    assert [one["sets"] for one in RunFolder(tmp_path / "run").records()] == [
        one["sets"] for one in RunFolder(whole).records()
    ]


@pytest.mark.long
def test_stages_go_on_with_the_shares(root, tmp_path):
    stages = [{"name": "first", "epochs": 1, "tasks": ["gland"]}, {"name": "all", "epochs": 1}]
    recipe = recipe_of(root, data={"sets_zeta": ZETA, "sets_probe_every": 1}, stages=stages)
    api.train(recipe, root, tmp_path / "run")
    first, second = (record["sets"] for record in RunFolder(tmp_path / "run").records())
    assert [one["share"] for one in second.values()] == _after(first)


@pytest.mark.slow
def test_two_ranks_have_the_same_shares(root):
    spawn(side_by_side.follow_shares, args=(str(root / "meeting"), str(root)), nprocs=2)
    first, second = (json.loads((root / f"shares-{rank}.json").read_text()) for rank in range(2))
    assert first == second
    assert first[0] != first[1]
    assert len(first) == 3
