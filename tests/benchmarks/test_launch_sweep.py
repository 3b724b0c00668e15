"""Every Triton launch compiles for NVIDIA GPUs under its real specialisation, which the interpreter never applies."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.paths import ROOT

pytest.importorskip("triton", reason="Triton is not installed")
OLDER_TRITON = ROOT / "build" / "triton-3.6.0"  # pip install --no-deps --target of the oldest Triton that is supported


def _sweep(*arguments: str, path: tuple[Path, ...] = (), cache: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(map(str, (*path, ROOT, ROOT / "tests"))),
        "TRITON_CACHE_DIR": str(cache),
        "TRITON_INTERPRET": "0",
        "TRITON_DISABLE_LINE_INFO": "1",
    }
    command = [sys.executable, "-W", "ignore", "-m", "helpers.launch_sweep", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


@pytest.mark.long
def test_every_launch_specialises_for_hopper(tmp_path: Path):
    done = _sweep("90", "quick", cache=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(done.stdout.splitlines()[-1].split()[0]) > 1000, done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("capability", ["80", "90"])
def test_every_launch_compiles_to_machine_code(capability: str, tmp_path: Path):
    done = _sweep(capability, cache=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(done.stdout.splitlines()[-1].split()[0]) > 1000, done.stdout


@pytest.mark.slow
@pytest.mark.skipif(not OLDER_TRITON.exists(), reason=f"no Triton in {OLDER_TRITON.relative_to(ROOT)}")
def test_every_launch_compiles_with_the_oldest_triton(tmp_path: Path):
    done = _sweep("90", path=(OLDER_TRITON,), cache=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1].endswith("Triton 3.6.0"), done.stdout


PLANTED = """
import sys
import torch, triton, triton.language as tl
from fastmtl.benchmarks.hopper.launch_compiler import LaunchCompiler
NAN = float("nan")

@triton.jit
def planted(x, n):
    tl.store(x, n.to(tl.int64))

@triton.jit
def unequal(x):
    tl.store(x, NAN_CONSTANT)

NAN_CONSTANT = tl.constexpr(NAN)
compiler = LaunchCompiler(whole=False).start()
for n in (2, 1):
    planted[(1,)](torch.zeros(1, dtype=torch.int64), n)
for _ in range(2):
    unequal[(1,)](torch.zeros(1))
print([name for name, error in compiler.failures])
"""


def test_the_sweep_sees_a_launch_that_cannot_specialise(tmp_path: Path):
    """An integer that is 1 has no `.to`; a global NaN differs from itself."""
    (tmp_path / "planted.py").write_text(PLANTED)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-W", "ignore", str(tmp_path / "planted.py")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.stdout.split() == ["['planted',", "'unequal',", "'unequal']"], done.stdout + done.stderr
