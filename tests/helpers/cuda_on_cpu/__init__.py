"""CUDA C++ on the CPU: sources compiled as host C++ through `cuda_runtime.h` here, with AddressSanitizer and UBSan.

The sanitizers must be in the process from its start, so a test file calls `run_checks(__file__)`, which runs the file's
functions `check_*` in a process that has them.
"""

from __future__ import annotations

import ctypes
import faulthandler
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import nullcontext
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from helpers.paths import ROOT

HERE = Path(__file__).parent
COMPILER = shutil.which("g++") or "g++"
FLAGS = [
    *("-std=c++17", "-O0", "-g1", "-shared", "-fPIC", "-fvisibility=hidden", f"-I{HERE}", f"-I{ROOT / 'csrc'}"),
    *("-fsanitize=address,undefined,float-cast-overflow", "-fno-sanitize-recover=all"),
    "-ftrivial-auto-var-init=pattern",  # a local variable is never zero by chance
    "-ffp-contract=off",  # as the exact references round
]
ENTRY = 'extern "C" __attribute__((visibility("default"))) '
SEED = ENTRY + "void seed(unsigned value) { cuda_on_cpu::order.seed(value); }"
# What no macro can do.
REWRITTEN = {
    r"([\w:]+(?:<[\w, ]+>)?)<<<(.*?)>>>\(": r"cuda_on_cpu::Launch(\2)(\1, ",
    r"extern __shared__ (\w+) (\w+)\[\];": r"\1* const \2 = reinterpret_cast<\1*>(cuda_on_cpu::dynamic_shared);",
    r"__shared__ ([\w<>]+) (\w+)((?:\[\w+( / \w+)?\])?);": r"static \1 \2\3; cuda_on_cpu::share(&\2, sizeof(\2));",
}


@cache
def _runtime() -> str | None:
    """The libraries to load before all others; None where the compiler has no AddressSanitizer."""
    found = []
    for name in ("libasan.so", "libstdc++.so"):  # the second too, or the first would not know of its exceptions
        try:
            done = subprocess.run([COMPILER, f"-print-file-name={name}"], capture_output=True, text=True, check=True)
        except (OSError, subprocess.CalledProcessError):
            return None
        found.append(Path(done.stdout.strip()).resolve())
    return " ".join(map(str, found)) if all(path.is_file() for path in found) else None


def needs_sanitizers(test: Callable[[], None]) -> Callable[[], None]:
    missing = sys.platform != "linux" or _runtime() is None
    return pytest.mark.skipif(missing, reason="needs g++ with AddressSanitizer")(test)


def run_checks(file: str) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    environment |= {"LD_PRELOAD": str(_runtime()), "ASAN_OPTIONS": "detect_leaks=0", "OMP_NUM_THREADS": "1"}
    environment["CUDA_VISIBLE_DEVICES"] = ""  # a driver does not start beside AddressSanitizer
    environment["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # half the start
    options = ["-p", "no:cacheprovider", "--capture=no", "-o", "python_functions=check_*"]
    command = [sys.executable, "-m", "pytest", *options, file]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr


def compiled(source: str, *options: str) -> ctypes.CDLL:
    """The library of CUDA C++ `source`, of which only launches and the declarations of shared memory are rewritten."""
    for old, new in REWRITTEN.items():
        source = re.sub(old, new, source)
    assert "__shared__" not in source, "a declaration of shared memory that this does not know"
    with tempfile.TemporaryDirectory() as folder:
        file, library = Path(folder, "source.cpp"), Path(folder, "library.so")
        file.write_text(f'#include <cuda_runtime.h>\n#line 1 "source"\n{source}\n{SEED}\n', encoding="utf-8")
        command = [COMPILER, *FLAGS, *options, str(file), "-o", str(library)]
        environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return ctypes.CDLL(str(library))


def planted(source: str, old: str, new: str) -> str:
    assert old in source, f"no longer in the source: {old}"
    return source.replace(old, new, 1)


def ends_with(run: Callable[[], None]) -> str:
    """What `run` prints before it ends the process, in a copy of this one; empty where it returns."""
    with tempfile.TemporaryFile() as printed:
        if (child := os.fork()) == 0:
            faulthandler.disable()
            os.dup2(printed.fileno(), 2)
            try:
                run()
            finally:
                os._exit(0)
        _, status = os.waitpid(child, 0)
        printed.seek(0)
        text = printed.read().decode(errors="replace")
        return text if status else ""


def without_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let code that launches on torch's current stream run where there is none."""
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: SimpleNamespace(cuda_stream=0))
