"""`balance.FusedStep` equals the unfused step bit for bit on the CPU, and torch's optimizers up to rounding."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers.fused import OPTIMIZERS, Convolutions, Seen, assert_near, assert_same, by_definition, plain, snapshot
from helpers.loop import Model, inputs
from helpers.op_backends import needs_cpp
from helpers.paths import ROOT
from torch import nn
from torch.optim import AdamW

from fastmtl import balance


def _to_the_bit(name: str, K: int, clip: float, steps: int = 3) -> None:
    one, two = Convolutions(K), Convolutions(K)
    a, b = (OPTIMIZERS[name](model.parameters()) for model in (one, two))
    step, balancers = balance.FusedStep(a, clip_norm=clip, backend="cpp"), (Seen(), Seen())
    for seed in range(steps):
        step(balancers[0], one.losses(seed), one.encoder.parameters())
        by_definition(two, b, balancers[1], two.losses(seed), two.encoder.parameters(), clip)
    assert_same(snapshot(one, a), snapshot(two, b))


@needs_cpp
@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("clip", [0.0, 0.05])
def test_combine_clip_and_a_scalar_optimizer_to_the_bit(name, clip):
    _to_the_bit(name, 3, clip)


@needs_cpp
@pytest.mark.parametrize("K", [1, 2, 4, 5, 8])
def test_any_number_of_tasks_to_the_bit(K):
    _to_the_bit("adamw", K, 0.1, steps=2)


@needs_cpp
@pytest.mark.slow
@pytest.mark.parametrize("isa", ["baseline", "avx2"])
def test_to_the_bit_on_lesser_instruction_sets(isa):
    chosen = "test_combine_clip_and_a_scalar or any_number_of_tasks_to"
    environment = os.environ | {"FASTMTL_ISA": isa}
    run = [sys.executable, "-m", "pytest", str(Path(__file__)), "-q", "-k", chosen]
    subprocess.run(run, check=True, env=environment, timeout=300)


@pytest.mark.parametrize("backend", ["reference", pytest.param("cpp", marks=needs_cpp)])
@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("variant", [{"fused": True}, {"foreach": True}], ids=["fused", "foreach"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_torchs_optimizers_to_rounding(name, variant, backend, dtype):
    one, two = Convolutions().to(dtype), Convolutions().to(dtype)
    a, b = OPTIMIZERS[name](one.parameters()), OPTIMIZERS[name](two.parameters(), **variant)
    step = balance.FusedStep(a, clip_norm=0.5, backend=backend)
    first, second = balance.PCGrad(), balance.PCGrad()
    for seed in range(3):
        two.load_state_dict(one.state_dict())
        log = step(first, one.losses(seed), one.encoder.parameters())
        norm = plain(two, b, second, two.losses(seed), two.encoder.parameters(), clip=0.5)
        rtol = 1e-6 if dtype == torch.float32 else 1e-14
        assert_near([p.detach() for p in one.parameters()], [p.detach() for p in two.parameters()], rtol)
        torch.testing.assert_close(log["gradient_norm"].to(dtype), norm, rtol=10 * rtol, atol=0)
        assert not log["skipped"]


@pytest.mark.parametrize("name", ["adamw", "sgd with momentum"])
def test_fifty_steps_in_float64(name):
    one, two = Model(), Model()
    a, b = OPTIMIZERS[name](one.parameters()), OPTIMIZERS[name](two.parameters())
    step, first, second = balance.FusedStep(a, clip_norm=1.0), balance.PCGrad(), balance.PCGrad()
    for seed in range(50):
        step(first, one.losses(inputs(seed=seed)), one.shared())
        plain(two, b, second, two.losses(inputs(seed=seed)), two.shared(), clip=1.0)
    assert_near(snapshot(one, a), snapshot(two, b), rtol=1e-10)


OTHERS = ["linear", "uncertainty", "famo", "graddrop", "sdmgrad", "moco", "db_mtl", "mgda"]


@pytest.mark.parametrize("name", [*OTHERS, "excess_mtl", "modo", "momentum_config"])
def test_other_balancers(name):
    one, two = Model(), Model()
    first, second = balance.create_balancer(name), balance.create_balancer(name)
    a, b = (AdamW([*model.parameters()], lr=1e-2) for model in (one, two))
    for balancer, optimizer in ((first, a), (second, b)):
        if learned := list(balancer.parameters()):
            optimizer.add_param_group({"params": learned, "weight_decay": 0.0, "lr": 0.1})
    step = balance.FusedStep(a, clip_norm=1.0)
    for seed in range(4):
        log = step(first, one.losses(inputs(seed=seed)), one.shared())
        b.zero_grad()
        done = second.backward(two.losses(inputs(seed=seed)), two.shared())
        nn.utils.clip_grad_norm_([p for group in b.param_groups for p in group["params"]], 1.0)
        b.step()
        torch.testing.assert_close(log["weights"], done["weights"])
    # The learned weights of `uncertainty` are float32.
    assert_near(snapshot(one, a), snapshot(two, b), rtol=1e-6 if name == "uncertainty" else 1e-9)


def test_a_plain_loss():
    one, two = Model(), Model()
    a, b = AdamW(one.parameters()), AdamW(two.parameters())
    step = balance.FusedStep(a)
    for seed in range(3):
        losses = one.losses(inputs(seed=seed))
        step(None, losses if seed else sum(losses.values()))
        b.zero_grad()
        sum(two.losses(inputs(seed=seed)).values()).backward()
        b.step()
    assert_near(snapshot(one, a), snapshot(two, b), rtol=1e-10)
    with pytest.raises(ValueError, match="`losses` must be a scalar"):
        step(None, torch.ones(2))


def test_micro_batches():
    one, two = Model(), Model()
    a, b = AdamW(one.parameters()), AdamW(two.parameters())
    step, second = balance.FusedStep(a), balance.PCGrad()
    before = snapshot(one, a)
    first = balance.PCGrad()
    assert step(first, one.losses(inputs(seed=0)), one.shared(), last=False) == {}
    assert_same(snapshot(one, a), before)
    log = step(first, one.losses(inputs(seed=1)), one.shared())
    second.backward(two.losses(inputs(seed=0)), two.shared(), last=False)
    plain_log = second.backward(two.losses(inputs(seed=1)), two.shared())
    b.step()
    assert torch.equal(log["weights"], plain_log["weights"])
    assert_near(snapshot(one, a), snapshot(two, b), rtol=1e-12)


@needs_cpp
def test_the_same_bits_for_every_number_of_threads(two_threads):
    found = []
    for threads in (1, 2, 7):
        torch.set_num_threads(threads)
        torch.manual_seed(0)
        parameters = [nn.Parameter(torch.randn(n)) for n in (70_001, 5, 130_000)]
        heads = [nn.Parameter(torch.randn(n)) for n in (40_003, 3)]
        optimizer = AdamW([*parameters, *heads])
        step = balance.FusedStep(optimizer, clip_norm=1.0, backend="cpp")
        for _ in range(2):
            losses = {"a": sum(p.square().sum() for p in [*parameters, heads[0]])}
            losses["b"] = -sum((p - 1).square().sum() for p in [*parameters, heads[1]])
            log = step(balance.PCGrad(), losses, parameters)
        found.append([*(p.detach().clone() for p in [*parameters, *heads]), log["gradient_norm"]])
    assert_same(found[0], found[1])
    assert_same(found[0], found[2])


NVCC = shutil.which("nvcc", path="/usr/local/cuda/bin") or shutil.which("nvcc")


@pytest.mark.slow
@pytest.mark.skipif(NVCC is None, reason="nvcc is not installed")
def test_the_gpu_kernels_compile_for_hopper_without_spills(tmp_path):
    source = ROOT / "csrc" / "gradients" / "fused_step.cu"
    flags = ["-std=c++17", "-O3", f"-I{ROOT / 'csrc'}", "-gencode=arch=compute_90a,code=sm_90a", "-Xptxas=-v", "-c"]
    done = subprocess.run(
        [NVCC, *flags, str(source), "-o", str(tmp_path / "out.o")], capture_output=True, text=True, check=True
    )
    found = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", done.stderr)
    assert len(found) >= 8
    assert set(found) == {("0", "0", "0")}
