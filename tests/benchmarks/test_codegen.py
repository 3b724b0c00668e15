"""What the Triton kernels become on Hopper, without a GPU: no spilled register, 16-byte loads on aligned inputs.

The kernels and their limits stand in benchmarks/hopper/; the table of what was found in benchmarks/README.md.
"""

from __future__ import annotations

import pytest

from fastmtl.benchmarks import codegen
from fastmtl.benchmarks.hopper import KERNELS, Code, Kernel, compile_kernels

pytestmark = pytest.mark.long

triton = pytest.importorskip("triton", reason="Triton is not installed")


@pytest.fixture(scope="module")
def compiled() -> dict[str, Code]:
    return compile_kernels(KERNELS)


@pytest.mark.parametrize("kernel", KERNELS, ids=str)
def test_compiles_for_hopper_without_spills_and_with_wide_loads(kernel: Kernel, compiled: dict[str, Code]):
    code = compiled[str(kernel)]
    assert not code.error, code.error
    assert code.spilled_bytes == 0, code
    assert code.wide_loads >= kernel.wide_loads, code.loads
    assert not (kernel.wide_offsets and code.narrow_offsets), code


def test_the_published_table_is_of_this_code(compiled: dict[str, Code]):
    published = codegen.README.read_text(encoding="utf-8")
    if f"Triton {triton.__version__}" not in published:
        pytest.skip("the table in benchmarks/README.md was made with another Triton")
    for kernel in KERNELS:
        row = codegen.row(kernel, compiled[str(kernel)])
        assert row in published, f"run `fastmtl bench --codegen`: benchmarks/README.md lacks\n{row}"
