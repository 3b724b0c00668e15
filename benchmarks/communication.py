"""What a training step sends between ranks: a cost model, and the counter that checks it.

`python -m benchmarks.communication` runs steps of a small model in torch's fake process group, compares the bytes with
the model's, and prints the table of docs/distributed.md: predictions from bytes and stated bandwidths alone.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from fastmtl import balance
from fastmtl.distributed import World, global_losses
from fastmtl.training.sharding import shard

NVLINK, NETWORK = 450e9, 50e9  # bytes per second and direction of a GPU: NVLink 4, and one 400 Gb/s adapter
MACHINE = 8  # GPUs
BYTES = 4  # of a gradient
SMALL = 64  # numbers: what the model leaves out, for three tasks


def numbers_sent(
    strategy: str, tasks: int, shared: int, heads: int, ranks: int, *, replicas: int = 1, by_loss: bool = False
) -> dict[str, float]:
    """Numbers that each rank sends in a step by ring algorithms: among the ranks of a copy of the model ("shards") and
    between copies ("copies"). Sums of K x K numbers and the like are left out.

    Args:
        strategy: "reduce_scatter" or "all_reduce" of replicated parameters, or "fsdp2".
        tasks: K.
        shared, heads: numbers of parameters.
        ranks: of all copies.
        replicas: copies, for "fsdp2".
        by_loss: whether the balancer only weighs losses: one backward instead of K.

    >>> numbers_sent("reduce_scatter", 3, 1000, 0, 2)
    {'shards': 2000.0, 'copies': 0.0}
    """
    backwards = 1 if by_loss else tasks
    size = ranks // replicas
    within, between = (size - 1) / size, (replicas - 1) / replicas
    if strategy == "fsdp2":
        # Gathered for the forward and each backward, and scattered after each.
        found = (2 * backwards + 1) * shared + 3 * heads
        return {"shards": found * within, "copies": 2 * (backwards * shared + heads) / size * between}
    per_task = {"reduce_scatter": tasks + 1, "all_reduce": 2 * tasks}[strategy]
    return {"shards": ((2 if by_loss else per_task) * shared + 2 * heads) * within, "copies": 0.0}


class Counted(TorchDispatchMode):
    """Inside, counts the numbers that this rank sends in each collective, by ring algorithms: by size of the group."""

    def __init__(self) -> None:
        super().__init__()
        self.sent: Counter[int] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "c10d":
            self._count(func._schema.name.split("::")[1], args)
        return func(*args, **(kwargs or {}))

    def _count(self, name: str, args: Any) -> None:
        if name == "allreduce_":
            size = dist.ProcessGroup.unbox(args[1]).size()
            self.sent[size] += sum(2 * tensor.numel() * (size - 1) // size for tensor in args[0])
        elif name in ("_allgather_base_", "_reduce_scatter_base_"):
            output, given = args[:2]
            large, small = max(output.numel(), given.numel()), min(output.numel(), given.numel())
            self.sent[large // small] += large - small
        else:
            raise ValueError(f"no rule to count the collective {name}")


class Network(nn.Module):
    """Square layers, which any number of ranks up to `width` that divides it divides evenly."""

    def __init__(self, tasks: int, width: int, layers: int = 2) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder = nn.Sequential(*(nn.Linear(width, width, bias=False) for _ in range(layers)))
        self.heads = nn.ModuleList(nn.Linear(width, width, bias=False) for _ in range(tasks))

    def forward(self, x: Tensor) -> list[Tensor]:
        z = self.encoder(x)
        return [head(z) for head in self.heads]


def count_step(
    world: World, strategy: str, balancer: str, tasks: int, width: int, *, replicas: int = 1
) -> Counter[int]:
    """The numbers sent in a step, by size of the group; the process group has `world`'s ranks."""
    model, x = Network(tasks, width), torch.ones(2, width)
    if strategy == "fsdp2":
        shard(model, world, lambda: model(x), replicas=replicas, smallest=1)
    shared = list(model.encoder.parameters())
    made: Any = balance.create_balancer(balancer)
    made.distribute(model, method="reduce_scatter" if strategy == "fsdp2" else strategy)
    sent = Counter[int]()
    for _ in range(2):  # the first step agrees on what later ones know
        with Counted() as counted:
            losses = {f"task {k}": output.square().mean() for k, output in enumerate(model(x))}
            made.backward(global_losses(losses, torch.full((tasks,), 2)), shared)
        model.zero_grad()
        sent = counted.sent
    return sent


def seconds(numbers: dict[str, float], ranks: int, replicas: int) -> float:
    """At the stated bandwidths, if nothing overlaps and latencies cost nothing."""
    inner = NVLINK if ranks // replicas <= MACHINE else NETWORK
    return BYTES * (numbers["shards"] / inner + numbers["copies"] / NETWORK)


def main() -> None:
    """Raises RuntimeError if a count is not the model's."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    tasks, width = 3, 1024
    shared, heads = 2 * width**2, tasks * width**2
    print("| ranks | strategy | numbers sent, counted | predicted | 20M + 3 x 10M parameters, predicted |")
    print("|---|---|---|---|---|")
    for ranks in (8, 64, 256, 1024):
        dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=ranks)
        kinds = [("reduce_scatter", 1), ("all_reduce", 1), ("fsdp2", 1), ("fsdp2", ranks // MACHINE)]
        for strategy, replicas in dict.fromkeys(kinds):
            found = sum(count_step(World(0, ranks), strategy, "pcgrad", tasks, width, replicas=replicas).values())
            wanted = sum(numbers_sent(strategy, tasks, shared, heads, ranks, replicas=replicas).values())
            if abs(found - wanted) > SMALL:
                raise RuntimeError(f"{strategy} on {ranks} ranks sends {found} numbers, and the model says {wanted}")
            real = numbers_sent(strategy, tasks, 20_000_000, 30_000_000, ranks, replicas=replicas)
            copies = f", {replicas} copies" * (replicas > 1)
            time = 1000 * seconds(real, ranks, replicas)
            size = BYTES * sum(real.values()) / 1e6
            print(f"| {ranks} | {strategy}{copies} | {found:,} | {wanted:,.0f} | {size:.0f} MB, {time:.1f} ms |")
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
