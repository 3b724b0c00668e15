"""Trainers whose model FSDP2 divides among gloo ranks: one process with all ranks' batches, and checkpoints of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from helpers import models
from helpers.sharded_trainers import on_ranks, resumed, trained

from benchmarks import communication
from benchmarks.communication import SMALL, numbers_sent
from fastmtl import balance
from fastmtl.distributed import World
from fastmtl.training.sharding import shard
from fastmtl.training.weight_averaging import WeightAverage

pytestmark = pytest.mark.long

CPU = torch.device("cpu")

REFUSED = {
    "gradnorm": "GradNorm measures",
    "db_mtl": "DBMTL's averages",
    "excess_mtl": "ExcessMTL's averages or sums",
    "moco": "MoCo's averages",
    "momentum_config": "MomentumConFIG's averages",
}
DRAWN = ("graddrop",)  # its random numbers belong to columns, which the ranks number otherwise
FAST = (("pcgrad", True), ("cagrad", False), ("famo", True), ("uncertainty", True), ("uncertainty", False))
EVERY = [name for name in balance.list_balancers() if name not in REFUSED and name not in DRAWN]
ONE_MODEL = {"replicas": 1}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("fsdp2")


@pytest.fixture(scope="module")
def ranks(folder) -> list[dict[str, Any]]:
    """What two ranks found, all fast cases in one pair of processes."""
    cases: dict[str, tuple] = {
        f"{name} {fused}": ("trained", (name,), {"fused": fused} | ONE_MODEL) for name, fused in FAST
    }
    cases |= {f"missing {number}": ("unequal_validation", (number,), {}) for number in (0, 1, 4)}
    cases["epoch"] = ("continued", (folder / "epoch", "pcgrad", False), ONE_MODEL)
    cases["validation"] = ("continued", (folder / "validation", "uncertainty", True), ONE_MODEL)
    cases["whole"] = ("continued", (folder / "whole", "pcgrad", False), {})  # replicated
    cases["divided after it"] = ("resumed", (folder / "whole", "pcgrad"), ONE_MODEL)
    cases |= {f"sent {strategy} {name}": ("traffic", (strategy, name), {}) for strategy, name in TRAFFIC}
    cases |= {name: (name, (), {}) for name in ("skipped", "shards")}
    return on_ranks(2, folder, cases)


def _check_equal(found: Any, wanted: Any, near: float = 0.0) -> None:
    """Up to `near`; flags of the optimizer that say how it steps may differ."""
    assert type(found) is type(wanted)
    if isinstance(wanted, dict):
        assert found.keys() == wanted.keys()
        for key in wanted.keys() - {"fused", "foreach", "notes"}:
            _check_equal(found[key], wanted[key], near)
    elif isinstance(wanted, list):
        assert len(found) == len(wanted)
        for one, other in zip(found, wanted, strict=True):
            _check_equal(one, other, near)
    elif isinstance(wanted, torch.Tensor):
        torch.testing.assert_close(found, wanted, rtol=near, atol=near)
    else:
        assert found == (pytest.approx(wanted, rel=near, abs=near) if near and isinstance(wanted, float) else wanted)


def _without_validation(found: dict) -> dict:
    """Its loss is a mean over batches, whose missing labels fall otherwise on two ranks."""
    records = [
        {key: value for key, value in one.items() if key != "validation"} | _scores(one) for one in found["records"]
    ]
    return found | {"records": records}


def _scores(record: dict) -> dict:
    return {"scores": record["validation"]["tasks"]} if "validation" in record else {}


def _check_is_one_process(found: dict, name: str, **options) -> None:
    # Learned weights are float32; what follows from them is as near.
    near = 3e-7 if balance.create_balancer(name).state_dict().get("learned") is not None else 1e-12
    _check_equal(_without_validation(found), _without_validation(trained(World(), name, **options)), near)


@pytest.mark.parametrize(("name", "fused"), FAST)
def test_two_ranks_are_one_process_with_both_batches(ranks, name, fused):
    """Weights, moments, averages, losses and scores, with clipping and missing labels."""
    for rank in ranks:
        _check_is_one_process(rank[f"{name} {fused}"], name, fused=fused)


@pytest.mark.slow
def test_every_method_on_two_ranks(tmp_path):
    cases = {name: ("trained", (name,), ONE_MODEL) for name in (*EVERY, *DRAWN)}
    first, second = on_ranks(2, tmp_path, cases)
    for name in EVERY:
        _check_is_one_process(first[name], name)
    for name in cases:
        _check_equal(second[name], first[name])


@pytest.mark.slow
def test_every_network(tmp_path):
    """Divided into many parts, the gradients of two backward passes are those of the whole network."""
    pytest.importorskip("transformers", reason="extra models is not installed")
    # Not Mask2Tasks: its loss jumps with rounding, which depends on the addresses of the parameters.
    names = [name for name in models.ALL if name != "mask2tasks"]
    found = on_ranks(2, tmp_path, {"all": ("every_model", (names,), {})})
    for one in found:
        assert list(one["all"]) == names
        assert all(model["off"] < 1e-6 and model["units"] > 5 for model in one["all"].values()), one["all"]


@pytest.mark.slow
def test_stages(tmp_path):
    """With frozen parts, averages, a learning rate that is found, weights and moments of stages before; stopped in each
    stage or not."""
    cases = {
        strategy: ("staged", (tmp_path / strategy / "checkpoints", 0, strategy), {}) for strategy in ("ddp", "fsdp2")
    }
    cases |= {str(step): ("staged", (tmp_path / str(step) / "checkpoints", step, "fsdp2"), {}) for step in (2, 7, 15)}
    for found in on_ranks(2, tmp_path, cases):
        assert found["fsdp2"]["progress"][:4] == found["ddp"]["progress"][:4] == ["on", 3, 4, 16]
        _check_equal(
            found["fsdp2"]["weights"], found["ddp"]["weights"], 5e-4
        )  # float32, and Adam divides small gradients
        for step in ("2", "7", "15"):
            assert found[step]["message"].startswith("stopped at epoch")
            assert found[step]["progress"][:4] == found["fsdp2"]["progress"][:4]
            _check_equal(found[step]["weights"], found["fsdp2"]["weights"])


@pytest.mark.slow
def test_two_copies_of_two_shards(tmp_path):
    """The mesh of HSDP on four ranks; GradDrop draws the same numbers in both copies."""
    names = ("pcgrad", "cagrad", "upgrad", "uncertainty", "famo")
    found = on_ranks(4, tmp_path, {name: ("trained", (name,), {"replicas": 2}) for name in (*names, "graddrop")})
    for name in names:
        _check_is_one_process(found[0][name], name)
    for rank in found[1:]:
        _check_equal(rank, found[0])


def test_each_rank_has_a_part(ranks):
    """Otherwise nothing of this file would be about shards."""
    assert all(rank["shards"]["own"] < 0.7 * rank["shards"]["all"] for rank in ranks)


TRAFFIC = [(strategy, name) for strategy in ("reduce_scatter", "all_reduce", "fsdp2") for name in ("pcgrad", "linear")]


def _check_traffic(found: dict[int, int], ranks: int, strategy: str, balancer: str, replicas: int = 1) -> None:
    shared, heads, by_loss = 2 * 64**2, 3 * 64**2, balancer == "linear"
    wanted = numbers_sent(strategy, 3, shared, heads, ranks, replicas=replicas, by_loss=by_loss)
    assert sum(found.values()) == pytest.approx(sum(wanted.values()), abs=SMALL)


@pytest.mark.parametrize(("strategy", "balancer"), TRAFFIC)
def test_the_cost_model_of_communication_on_two_ranks(ranks, strategy, balancer):
    _check_traffic(ranks[0][f"sent {strategy} {balancer}"], 2, strategy, balancer)


@pytest.mark.slow
def test_the_cost_model_of_communication_on_four_ranks(tmp_path):
    cases = {f"{strategy} {name}": ("traffic", (strategy, name), {}) for strategy, name in TRAFFIC}
    copies = {f"copies {name}": ("traffic", ("fsdp2", name), {"replicas": 2}) for name in ("pcgrad", "linear")}
    found = on_ranks(4, tmp_path, cases | copies)[0]
    for strategy, name in TRAFFIC:
        _check_traffic(found[f"{strategy} {name}"], 4, strategy, name)
    for name in ("pcgrad", "linear"):
        _check_traffic(found[f"copies {name}"], 4, "fsdp2", name, replicas=2)


def test_the_cost_model_of_communication_in_the_fake_process_group(capsys):
    """8 to 1,024 ranks."""
    try:
        communication.main()
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
    assert "| 1024 | fsdp2, 128 copies |" in capsys.readouterr().out


def test_averages_of_a_weight_with_two_names_are_applied_and_taken_back(tmp_path):
    class Tied(torch.nn.Sequential):
        def __init__(self) -> None:
            super().__init__(*(torch.nn.Linear(4, 4, bias=False) for _ in range(2)))
            self[1].weight = self[0].weight

    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        model = Tied()
        shard(model, World(0, 1), lambda: model(torch.ones(1, 4)), smallest=1)
        average = WeightAverage(model, "ema", decay=0.5, start=0)
        weight = model[0].weight.to_local().detach()
        first = weight.clone()
        average.on_step(0)
        weight += 1
        average.on_step(0)
        for _ in range(2):
            with average.applied():
                torch.testing.assert_close(weight, first + 0.5)
            torch.testing.assert_close(weight, first + 1)
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize("missing", [1, 4])
def test_ranks_with_fewer_validation_batches_do_not_hang(ranks, missing):
    """Even one without any."""
    for rank in ranks:
        _check_equal(rank[f"missing {missing}"]["model"], rank["missing 0"]["model"])
    first, second = (rank[f"missing {missing}"]["records"] for rank in ranks)
    assert first == second
    whole = ranks[0]["missing 0"]["records"]
    images = [[one["validation"]["num_images"] for one in some if "epoch" in one] for some in (first, whole)]
    assert images[0] == [24 - 3 * missing] * 2
    assert images[1] == [24] * 2


def test_a_stopped_run_continues_bit_equal(ranks):
    for rank in ranks:
        assert rank["epoch"]["message"] == "stopped at epoch 1, step 3"
        assert rank["epoch"]["notes"] == ()
        for part in ("model", "average", "optimizer", "balancer"):
            _check_equal(rank["epoch"][part], rank["pcgrad True"][part])


def test_a_run_stopped_in_its_validation_continues_bit_equal(ranks):
    """Its first forward pass then belongs to the validation, with averaged weights."""
    for rank in ranks:
        assert rank["validation"]["message"] == "stopped in the validation of epoch 1, step 4"
        for part in ("model", "average", "optimizer", "balancer"):
            _check_equal(rank["validation"][part], rank["uncertainty True"][part])


def test_one_whole_model_continues_what_fsdp2_began_and_the_other_way_round(ranks, folder):
    """A checkpoint holds whole tensors."""
    found = resumed(World(), folder / "epoch", "pcgrad")
    assert found["notes"][0].startswith("continues on 1 rank what 2 ranks began")
    for other in (ranks[0]["whole"], ranks[0]["divided after it"]):
        for part in ("model", "average", "optimizer"):
            _check_equal(found[part], other[part], 1e-12)


def test_a_bad_loss_on_one_rank_is_skipped_on_both(ranks):
    for rank in ranks:
        assert rank["skipped"]["skipped"] == 1
        assert all(value.isfinite().all() for value in rank["skipped"]["model"].values())
    _check_equal(ranks[0]["skipped"]["model"], ranks[1]["skipped"]["model"])
