"""The GPU side of stain normalisation without a GPU: Triton's kernel in the interpreter, CUDA C++ through nvcc."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers.op_backends import needs_triton
from helpers.stain import odd_tiles, tissue

from fastmtl import data, ops


@needs_triton
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("convention", ["torchstain", "staintools", "histomicstk"])
def test_triton_agrees_with_cpp(convention, dtype, poisoned_memory):
    from helpers.triton_checks import checked

    images = torch.cat([tissue(number=2, size=20), torch.full((1, 3, 20, 20), 250, dtype=torch.uint8)])
    inside = torch.rand(3, 20, 20, generator=torch.Generator().manual_seed(0)) < 0.9
    for layout in (images, images.contiguous(memory_format=torch.channels_last)):
        options = {"convention": convention, "inside": inside, "fallback": "pass", "min_tissue": 50, "dtype": dtype}
        with checked():
            made = ops.stain_normalize(layout, backend="triton", **options)
        expected = ops.stain_normalize(layout, **options)
        torch.testing.assert_close(made.float(), expected.float(), rtol=0, atol=1)


@needs_triton
def test_triton_takes_the_loaders_call():
    batch, draws = tissue(number=2, size=16), torch.rand(2, 4, generator=torch.Generator().manual_seed(1))
    colour = torch.eye(3, 4).expand(2, 3, 4) * 1.1
    calls = [data.StainNormalizer(per="tile", min_tissue=20, backend=backend) for backend in ("triton", "auto")]
    made, expected = (one(batch, slides=["", ""], colour=colour, draws=draws) for one in calls)
    torch.testing.assert_close(made, expected, rtol=0, atol=0.02)


@needs_triton
def test_odd_tiles_on_triton_are_finite():
    assert ops.stain_normalize(odd_tiles(), backend="triton", dtype=torch.float32).isfinite().all()


def test_the_cuda_kernels_compile_for_hopper_without_spills(tmp_path):
    home = Path(os.environ.get("CUDA_HOME", "/usr/local/cuda")) / "bin"
    nvcc = shutil.which("nvcc", path=str(home)) or shutil.which("nvcc")
    if nvcc is None:
        pytest.skip("there is no nvcc here")
    from fastmtl.kernels import stain_histogram_cupy as kernels

    source = tmp_path / "stain.cu"
    source.write_text(kernels.SOURCE, encoding="utf-8")
    command = [nvcc, "-std=c++17", "-arch=sm_90", "-cubin", "-Xptxas=-v", *kernels.DEFINES, str(source)]
    done = subprocess.run([*command, "-o", str(tmp_path / "stain.cubin")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(re.findall(r"Compiling entry function 'stain_\w+'", done.stderr)) == 4
    assert not re.search(r"[1-9]\d* bytes spill", done.stderr), done.stderr


@pytest.mark.gpu
@pytest.mark.unsanitized
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("method", ["macenko", "vahadane", "ruifrok", "reinhard", "modified_reinhard"])
def test_a_gpu_agrees_with_the_cpu_to_a_grey_level(method):
    images, target = tissue(number=4, size=128), tissue(3)[0]
    on_gpu = ops.stain_normalize(images.cuda(), method, target=target, dtype=torch.float32).cpu()
    on_cpu = ops.stain_normalize(images, method, target=target, dtype=torch.float32)
    assert (on_gpu - on_cpu).abs().max() <= 1


def test_every_device_may_use_the_shared_memory(monkeypatch):
    """The attribute belongs to the device that is current when it is set."""
    from fastmtl.kernels import stain_histogram_cupy as kernels

    current, set_on = [0], []

    class Kernel:
        def __call__(self, grid, block, arguments, shared_mem):
            assert shared_mem <= 48 * 1024 or current[0] in set_on

        @property
        def max_dynamic_shared_size_bytes(self):
            raise AssertionError("only written")

        @max_dynamic_shared_size_bytes.setter
        def max_dynamic_shared_size_bytes(self, size):
            set_on.append(current[0])

    class Device(contextlib.nullcontext):
        def __init__(self, index):
            super().__init__()
            current[0] = index

    module = SimpleNamespace(get_function=lambda name: Kernel())
    cuda = SimpleNamespace(Device=Device, ExternalStream=lambda stream: contextlib.nullcontext())
    monkeypatch.setitem(sys.modules, "cupy", SimpleNamespace(RawModule=lambda **_: module, cuda=cuda))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: SimpleNamespace(cuda_stream=0))
    kernels._kernel.cache_clear()
    for index in (0, 1, 0):
        pixels = torch.empty(1, 3, 4, 4, dtype=torch.uint8)
        images = SimpleNamespace(data_ptr=pixels.data_ptr, stride=pixels.stride, shape=pixels.shape)
        images.device = torch.device("cuda", index)
        kernels.launch("stain_angles", images, None, 1)
    kernels._kernel.cache_clear()
    assert set_on == [0, 1]
