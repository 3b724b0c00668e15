"""What the Triton kernels become on Hopper, without a GPU: instructions, loads, spills, and the published table."""

from __future__ import annotations

import re

import pytest

from fastmtl.benchmarks import codegen
from fastmtl.benchmarks.hopper import Compiled, compile_cases

pytestmark = pytest.mark.slow

triton = pytest.importorskip("triton", reason="Triton is not installed")
# Kernels that need more than 255 registers a thread: a window of 16 x 16 target pixels, a thousand queries.
SPILLING = ("deep_supervision_sums-f32-u8-max-mask", "assignment_kernel-f32-1000")


@pytest.fixture(scope="module")
def compiled() -> dict[str, Compiled]:
    return compile_cases()


def test_all_compile_without_spills(compiled: dict[str, Compiled]):
    assert not {name: code.error for name, code in compiled.items() if code.error}
    spilling = {name for name, code in compiled.items() if code.usage and code.usage.spilled_bytes}
    assert spilling <= set(SPILLING)


def test_hot_loops_read_large_tensors_16_bytes_at_a_time(compiled: dict[str, Compiled]):
    """At least nine of ten bytes: the others are bytes of a target, or a number per plane."""
    for name, code in compiled.items():
        if code.loop and "sample-mask" not in name:
            wide = sum(size for size in code.loop.loads if size == 16)
            assert wide >= 0.8 * sum(code.loop.loads), (name, code.loop.loads)


def test_no_kernel_needs_a_tenth_more_instructions_than_published(compiled: dict[str, Compiled]):
    published = codegen.README.read_text(encoding="utf-8")
    if f"Triton {triton.__version__}" not in published:
        pytest.skip("the table in benchmarks/README.md was made with another Triton")
    rows = dict(re.findall(r"^\| `(\S+)` \| \S+ \| ([\d.]+) \| \d+, ", published, flags=re.MULTILINE))
    assert set(rows) == {name for name, code in compiled.items() if code.prediction}, "run `fastmtl bench --codegen`"
    for name, instructions in rows.items():
        found = compiled[name].instructions_per_element
        assert found <= 1.1 * float(instructions), (
            f"{name}: {found:.1f} instructions per element, {instructions} published"
        )
