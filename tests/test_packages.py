"""Source distribution and wheel, built and used as somebody does who has neither clone nor git."""

import os
import re
import subprocess
import sys
import tarfile

import pytest
from helpers.paths import ROOT

pytestmark = pytest.mark.slow

USE = """
import sys, torch, fastmtl
from fastmtl import balance, ops
assert fastmtl.__file__.startswith(sys.argv[1]), fastmtl.__file__
x, target = torch.randn(1, 1, 16, 16, requires_grad=True), torch.ones(1, 1, 16, 16)
ops.dice_bce_loss(x, target, backend="cpp").backward()
layer = torch.nn.Linear(3, 2)
out = layer(torch.randn(4, 3))
losses = {"a": out[:, 0].mean(), "b": out[:, 1].square().mean()}
balance.PCGrad().backward(losses, shared=layer.parameters())
assert x.grad.abs().sum() > 0 and layer.weight.grad.abs().sum() > 0
"""


def _run(*command: object, cwd: object, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=cwd,
        env=os.environ | {"FASTMTL_CUDA": "0"} | environment,
        capture_output=True,
        text=True,
        timeout=1800,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def test_the_wheel_of_the_source_distribution_trains(tmp_path):
    source = tmp_path / "source"
    subprocess.run(["git", "clone", "-q", str(ROOT), str(source)], check=True)
    build = "from setuptools import build_meta; print(build_meta.build_sdist('..'))"
    archive = tmp_path / _run("-c", build, cwd=source).split()[-1]
    with tarfile.open(archive) as packed:
        names = {name.partition("/")[2] for name in packed.getnames()}
        packed.extractall(tmp_path / "unpacked", filter="data")
    tracked = subprocess.run(["git", "ls-files"], cwd=source, capture_output=True, text=True, check=True).stdout
    wanted = {name for name in tracked.split("\n") if name.startswith(("csrc/", "tests/", "kernels/", "docs/"))}
    assert wanted <= names, sorted(wanted - names)[:10]

    (unpacked,) = (tmp_path / "unpacked").iterdir()
    pip = ["-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--target", tmp_path / "site", unpacked]
    _run(*pip, cwd=tmp_path)
    installed = {"PYTHONPATH": str(tmp_path / "site")}
    _run("-c", USE, tmp_path / "site", cwd=tmp_path, **installed)
    options = ["--size", 32, "--epochs", 1, "--out", tmp_path / "run"]
    _run("-m", "fastmtl", "train", "demo", *options, cwd=tmp_path, **installed)
    assert (tmp_path / "run" / "report.html").is_file()
    assert re.search(r"cpp\s+│ ready", _run("-m", "fastmtl", "doctor", cwd=tmp_path, **installed))
