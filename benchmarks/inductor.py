"""The kernels that Inductor would run on a GPU for a loss, and the bytes they move, determined without a GPU.

The joint graph is traced on the CPU, split by torch's own partitioner, and lowered for a fake Hopper. Inductor reads a
few device properties from the driver to decide how to split reductions; the fake returns those of an H200. Register
counts are not available in this way, because Inductor picks block sizes by timing them on the device.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor

H200 = SimpleNamespace(
    name="NVIDIA H200",
    major=9,
    minor=0,
    multi_processor_count=132,
    warp_size=32,
    regs_per_multiprocessor=65536,
    max_threads_per_multi_processor=2048,
    max_threads_per_block=1024,
    shared_memory_per_block=49152,
    shared_memory_per_block_optin=232448,
    shared_memory_per_multiprocessor=233472,
    L2_cache_size=60 * 2**20,
    total_memory=141 * 10**9,
)


@dataclass(frozen=True)
class Generated:
    """One direction: the number of kernels, and the total bytes that they read and write."""

    kernels: int
    num_bytes: int


def generate(loss: Callable[..., Tensor], *inputs: Tensor) -> tuple[Generated, Generated]:
    """Forward and backward of `loss` on CPU tensors `inputs`; call it in a separate process, because it fakes a driver.

    Raises:
        RuntimeError: Inductor of this torch version cannot be used in this way; the message says where it stopped.
    """
    graphs = _trace(loss, inputs)
    with ExitStack() as stack:
        try:
            for patch in _driver():
                stack.enter_context(patch)
            forward, backward = (_lower(graph, examples) for graph, examples in graphs)
        except Exception as error:
            raise RuntimeError(f"torch {torch.__version__}: {type(error).__name__}: {error}") from error
    return forward, backward


def _trace(loss: Callable[..., Tensor], inputs: tuple[Tensor, ...]):
    from torch._functorch._aot_autograd.utils import make_boxed_func
    from torch._functorch.aot_autograd import aot_function
    from torch._functorch.partitioners import min_cut_rematerialization_partition
    from torch._inductor.decomposition import select_decomp_table

    graphs = []

    def keep(gm: torch.fx.GraphModule, example_inputs: Sequence[Any]) -> Any:
        graphs.append((gm, example_inputs))
        return make_boxed_func(gm.forward)

    options = {"partition_fn": min_cut_rematerialization_partition, "decompositions": select_decomp_table()}
    aot_function(loss, keep, keep, **options)(*inputs).backward()
    return graphs


def _driver():
    """Replaces the driver while Inductor lowers a graph."""
    import torch._inductor.scheduler as scheduler
    import torch.utils._triton as triton_of_torch

    def always(value: object):
        return lambda *_arguments, **_options: value

    return [
        mock.patch.object(torch.cuda, "is_available", always(True)),
        mock.patch.object(torch.cuda, "device_count", always(1)),
        mock.patch.object(torch.cuda, "current_device", always(0)),
        mock.patch.object(torch.cuda, "_lazy_init", always(None)),
        mock.patch.object(torch.cuda, "get_device_properties", always(H200)),
        mock.patch.object(torch.cuda, "_get_device_properties", always(H200), create=True),
        mock.patch.object(torch.cuda, "get_device_capability", always((9, 0))),
        mock.patch.object(torch.version, "cuda", "13.0"),
        mock.patch.object(scheduler, "has_triton", always(True)),
        mock.patch.object(triton_of_torch, "triton_hash_with_backend", always("none")),
    ]


def _lower(graph: torch.fx.GraphModule, examples: Sequence[Any]) -> Generated:
    from torch._guards import TracingContext, tracing
    from torch._inductor import metrics
    from torch._inductor.debug import DebugContext
    from torch._inductor.graph import GraphLowering
    from torch._inductor.virtualized import V
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.passes.fake_tensor_prop import FakeTensorProp

    for node in graph.graph.nodes:
        if node.kwargs.get("device") is not None:
            node.kwargs = {**node.kwargs, "device": torch.device("cuda", 0)}
    graph.recompile()
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fakes = [torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device="cuda") for x in examples]
        FakeTensorProp(graph, mode).propagate(*fakes)
    lowering = GraphLowering(graph, example_inputs=fakes)
    metrics.reset()
    with (
        V.set_fake_mode(mode),
        tracing(TracingContext(mode)),
        V.set_graph_handler(lowering),
        V.set_debug_handler(DebugContext()),
    ):
        lowering.run(*fakes)
        lowering.codegen()
        return Generated(metrics.generated_kernel_count, lowering.count_bytes()[0])


def main() -> int:
    """Print the kernels and bytes per logit, forward and backward, of the plain formulas, one line each."""
    from .cases import dice_bce, dice_ce, focal

    for formula, shape, target_shape in (
        (dice_bce.formula, (8, 1, 1024, 1024), (8, 1, 1024, 1024)),
        (dice_ce.formula, (4, 6, 512, 512), (4, 512, 512)),
        (dice_ce.formula, (2, 14, 64, 64, 64), (2, 64, 64, 64)),
        (focal.formula, (8, 1, 1024, 1024), (8, 1, 1024, 1024)),
    ):
        logits, target = torch.randn(shape, requires_grad=True), torch.ones(target_shape, dtype=torch.uint8)
        for direction in generate(formula, logits, target):
            print(direction.kernels, f"{direction.num_bytes / logits.numel():.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
