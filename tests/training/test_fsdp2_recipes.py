"""Recipes with FSDP2: what is refused before the run begins, copies of shards, batch norm, the command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fastmtl import data
from fastmtl.api import evaluate
from fastmtl.builders import components
from fastmtl.builders.ranks import check_ranks, with_synced_batchnorm
from fastmtl.cli import main
from fastmtl.config import ConfigError, load_recipe
from fastmtl.distributed import World
from fastmtl.training.norm_statistics import NormStatistics
from fastmtl.training.stages import Stages

pytestmark = pytest.mark.long

CPU = torch.device("cpu")


RECIPE = {"distributed": {"strategy": "fsdp2"}, "model": {"base_channels": 4}, "data": {"size": 32}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"balancer": {"name": "gradnorm"}}, "GradNorm measures one layer's gradients"),
        ({"balancer": {"name": "moco"}}, "MoCo's averages or sums of the gradients cannot be divided"),
        ({"training": {"compile": True}}, "training.compile must be false"),
        ({"training": {"gradient_stats_every": 20}, "balancer": {"name": "linear"}}, "must be 0 with Linear"),
        ({"training": {"precision": "float16", "fused_step": False}}, "needs the fused step"),
    ],
)
def test_what_does_not_work_is_refused_before_the_run_begins(tmp_path, changes, message):
    recipe = load_recipe("demo", RECIPE | changes)
    wanted = rf'recipe demo: with distributed.strategy = "fsdp2", .*{message}.*(?<!\.)\. Use "ddp" or change it\.'
    with pytest.raises(ConfigError, match=wanted):
        _stages(recipe, World(0, 2), tmp_path).check()
    _stages(recipe, World(), tmp_path).check()  # one rank has the whole model


def _stages(recipe, world: World, folder: Path) -> Stages:
    tasks = components.build_tasks(recipe, ("a", "b", "c"))
    model = components.build_model(recipe, tasks, torch.device("cpu"))
    return Stages(recipe, model, tasks, device=torch.device("cpu"), folder=folder, world=world)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"strategy": "zero"}, "distributed.strategy must be one of 'ddp', 'fsdp2'; got 'zero'"),
        ({"replicas": 2}, 'distributed.replicas above 1 needs distributed.strategy = "fsdp2"; got 2'),
        ({"strategy": "fsdp2", "replicas": 0}, "distributed.replicas must be at least 1; got 0"),
        ({"stratgy": "fsdp2"}, "stratgy"),
    ],
)
def test_bad_tables_are_refused(values, message):
    with pytest.raises(ConfigError, match=message):
        load_recipe("demo", {"distributed": values})


@pytest.mark.parametrize(("size", "replicas", "fitting"), [(3, 2, "1"), (2, 2, "1"), (4, 3, "1 or 2")])
def test_copies_must_divide_the_ranks(size, replicas, fitting):
    recipe = load_recipe("demo", {"distributed": {"strategy": "fsdp2", "replicas": replicas}})
    wanted = f"distributed.replicas is {replicas}, which must divide the {size} ranks .*; set it to {fitting}\\."
    with pytest.raises(ConfigError, match=wanted):
        check_ranks(recipe, CPU, World(0, size))
    for world in (World(), World(0, 2 * replicas)):
        check_ranks(recipe, CPU, world)


def test_synced_batchnorm_needs_gpus():
    recipe = load_recipe("demo", {"distributed": {"sync_batchnorm": True}})
    with pytest.raises(ConfigError, match=r"sync_batchnorm needs GPUs, .*; the device is cpu\. Set it to false, or"):
        check_ranks(recipe, CPU, World(0, 2))
    check_ranks(recipe, torch.device("cuda", 0), World(0, 2))
    check_ranks(recipe, CPU, World())  # nothing to synchronise


def test_synced_batchnorm_keeps_the_state_and_the_evaluation():
    recipe = load_recipe("demo", {"distributed": {"sync_batchnorm": True}})
    tasks = components.build_tasks(recipe, ("a", "b", "c"))
    model = components.build_model(recipe, tasks, CPU).eval()
    before, batch = model.state_dict(), components.empty_batch(recipe, 2, len(tasks), CPU)
    with torch.no_grad():
        wanted = model(batch)
        assert with_synced_batchnorm(recipe, model, World()) is model
        number = sum(isinstance(module, torch.nn.BatchNorm2d) for module in model.modules())
        model = with_synced_batchnorm(recipe, model, World(0, 2))
        found = model(batch)
    assert sum(isinstance(module, torch.nn.SyncBatchNorm) for module in model.modules()) == number > 0
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in model.modules())
    assert all(value is before[name] or torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert len(NormStatistics(model)._layers) == number


def test_synced_batchnorm_keeps_the_activations_of_timm():
    """Its BatchNorm contains them."""
    model = {"name": "unet", "encoder": "tu-tf_efficientnet_lite0", "width": 0.25, "top": True}
    recipe = load_recipe("demo", {"model": model, "distributed": {"sync_batchnorm": True}})
    tasks = components.build_tasks(recipe, ("a", "b", "c"))
    network = components.build_model(recipe, tasks, CPU).eval()
    names, batch = [*network.state_dict()], components.empty_batch(recipe, 2, len(tasks), CPU)
    batch = replace(batch, images=torch.randn(batch.images.shape, generator=torch.Generator().manual_seed(1)))
    with torch.no_grad():
        wanted = network(batch)
        network = with_synced_batchnorm(recipe, network, World(0, 2))
        found = network(batch)
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in network.modules())
    assert [*network.state_dict()] == names
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


@pytest.mark.slow
def test_the_command_line(tmp_path):
    """Training, report, and an evaluation of the run by one process; then it continues on one rank as ddp."""
    tiles = data.generate(tmp_path / "colon", num_patients=6, tiles_per_patient=4, tile_size=64, num_slides=0)
    out = tmp_path / "run"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "fastmtl", "train", "demo", "--data", str(tiles), "--out", str(out), "--epochs", "1"]
    command += ["--size", "32", "--batch-size", "2", "--precision", "float32", "--average", "ema"]
    command += ["--set", "model.base_channels=4", "--set", "distributed.strategy=fsdp2"]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=600, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr
    assert (out / "report.html").is_file()
    found = evaluate(out, tiles)
    assert found["num_images"] == json.loads((out / "summary.json").read_text())["num_images"]
    assert main(["train", "--resume", "--out", str(out), "--epochs", "2", "--set", "distributed.strategy=ddp"]) == 0
