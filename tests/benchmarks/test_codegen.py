"""What the Triton kernels become on Hopper, without a GPU: instructions, loads, spills, and the published table."""

from __future__ import annotations

import re

import pytest

from fastmtl.benchmarks import codegen
from fastmtl.benchmarks.hopper import Compiled, compile_cases

pytestmark = pytest.mark.slow

triton = pytest.importorskip("triton", reason="Triton is not installed")
# Kernels that keep something in local memory.
WITH_STACK = {
    "deep_supervision_sums-f32-u8-max-mask": "windows of 16 x 16 target pixels for each logit",
    "deep_supervision_finish-f32-u8-nearest": "a few bytes, once per loss",
    "deep_supervision_finish-bf16-u8-area": "the same kernel",
    "deep_supervision_finish-f32-u8-max-mask": "the same kernel",
    "nt_xent_rows-f32": "16 bytes beside 64 x 64 products",
    "assignment_kernel-f32-1000": "16 bytes beside a thousand queries",
}
# Kernels whose loads are narrower than 16 bytes, by the start of their names.
NARROW = {
    "softmax_sums-f32-u8-32": "two pixels of 32 classes fill the registers",
    "softmax_gradient-f32-u8-32": "as above",
    "softmax_sums-bf16-u8-14": "four pixels of 14 classes fill the registers",
    "softmax_sums-bf16-u8-32": "two pixels",
    "softmax_gradient-bf16-u8-14": "as above",
    "softmax_gradient-bf16-u8-32": "as above",
    "softmax_focal_sums-bf16-u8-14": "as above",
    "softmax_focal_gradient-bf16-u8-14": "as above",
    **dict.fromkeys(
        ("transform_image_kernel", "warp_image_kernel", "transform_mask_kernel"), "bytes of pictures at odd places"
    ),
    "stain_apply": "looks up the densities of single bytes in a table",
}


@pytest.fixture(scope="module")
def compiled() -> dict[str, Compiled]:
    return compile_cases()


def test_all_compile_and_keep_their_numbers_in_registers(compiled: dict[str, Compiled]):
    assert not {name: code.error for name, code in compiled.items() if code.error}
    assert {name for name, code in compiled.items() if code.usage and code.usage.stack_bytes} <= set(WITH_STACK)


def test_hot_loops_read_large_tensors_16_bytes_at_a_time(compiled: dict[str, Compiled]):
    """At least half of the bytes; the others are bytes of a target, or a number per plane or class."""
    for name, code in compiled.items():
        if code.loop and not name.startswith(tuple(NARROW)):
            wide = sum(size for size in code.loop.loads if size == 16)
            assert wide >= 0.5 * sum(code.loop.loads), (name, code.loop.loads)


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
