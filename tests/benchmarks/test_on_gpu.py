"""The script for a machine with a GPU: what it does without one, and what it runs again."""

import os
import re
import subprocess
import sys

import pytest
from helpers.paths import ROOT


@pytest.mark.long
def test_on_gpu_script_says_when_there_is_no_gpu(tmp_path):
    script = ROOT / "benchmarks" / "on_gpu.sh"
    subprocess.run(["bash", "-n", script], check=True)
    environment = os.environ | {"OUT": str(tmp_path), "PYTHON": sys.executable, "CUDA_VISIBLE_DEVICES": ""}
    options = {"env": environment, "capture_output": True, "text": True, "timeout": 120}
    done = subprocess.run([script, "sanitize"], **options)
    assert done.returncode == 3, done.stderr
    assert "no GPU here" in done.stdout
    assert not (tmp_path / "sanitize.done").exists(), "with the tool it can still run"
    (tmp_path / "sanitize.done").touch()
    done = subprocess.run([script, "sanitize"], **options)
    assert "sanitize is done" in done.stdout
    assert done.returncode == 0
    assert subprocess.run([script, "everything"], **options).returncode == 2


def test_on_gpu_script_selects_tests_by_registered_markers(pytestconfig):
    """An unknown marker in `-m` would select all tests, or none, without an error."""
    script = (ROOT / "benchmarks" / "on_gpu.sh").read_text(encoding="utf-8")
    quoted = re.findall(r"-m '([a-z ]+)'", script) + re.findall(r'mark="([a-z ]+)"', script)
    named = {word for expression in quoted for word in expression.split()} - {"and", "not"}
    assert named == {"gpu", "slow", "unsanitized"}
    assert named <= {line.partition(":")[0] for line in pytestconfig.getini("markers")}


_FAKE_PYTHON = """#!/bin/sh
case "$*" in
*cuda.get_device_name*) ;;
*--list*) printf 'good\\nmissing\\nbroken\\nslow\\n' ;;
*'benchmarks.run good'*) echo "$*" >>"$(dirname "$0")/ran" ;;
*'benchmarks.run missing'*) echo "$*" >>"$(dirname "$0")/ran"; exit 3 ;;
*'benchmarks.run broken'*) echo "$*" >>"$(dirname "$0")/ran"; exit 1 ;;
*'benchmarks.run slow'*) exit 124 ;;
esac
"""


def test_on_gpu_script_runs_again_what_failed_and_only_that(tmp_path):
    """Its paths are the caller's, and a case that hits the time limit is named."""
    fake = tmp_path / "python"
    fake.write_text(_FAKE_PYTHON)
    fake.chmod(0o755)
    environment = os.environ | {"OUT": "rows", "PYTHON": "./python"}
    options = {"env": environment, "capture_output": True, "text": True, "timeout": 60, "cwd": tmp_path}

    def bench():
        done = subprocess.run([ROOT / "benchmarks" / "on_gpu.sh", "bench"], **options)
        ran = [line.split()[2] for line in (tmp_path / "ran").read_text().splitlines()]
        (tmp_path / "ran").unlink()
        assert done.returncode == 1, done.stderr
        assert "out of time in: slow (warm)" in done.stdout
        assert not (tmp_path / "rows" / "bench.done").exists()
        return ran

    assert bench() == ["good", "missing", "broken"]
    assert bench() == ["broken"]
