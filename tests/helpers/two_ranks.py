"""What each of two gloo ranks runs for test_balance_ranks.py: every case once distributed, once alone on the whole
batch. Results go to a file."""

from __future__ import annotations

import gc
import warnings
from collections import Counter
from copy import deepcopy
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from fastmtl import balance
from fastmtl.balance import collectives, join_ranks
from fastmtl.balance.gradient_balancer import GradientBalancer
from helpers.loop import Model, inputs
from helpers.ranked_loop import CUTS, labelled, left, means, train

RANKS = 2
GRADIENT_METHODS = [
    name for name in balance.list_balancers() if isinstance(balance.create_balancer(name), GradientBalancer)
]
# Every method and how its gradients travel; of loss methods nothing but the sum does.
PATHS = [
    (name, path)
    for name in balance.list_balancers()
    for path in (*(join_ranks.METHODS if name in GRADIENT_METHODS else ["all_reduce"]), "micro")
]
NEWER = ("excess_mtl", "go4align", "modo", "momentum_config", "stch")
RESUMED = ("pcgrad", "db_mtl", "famo", "gradvac", "uncertainty", *NEWER)
SHARDED = ("pcgrad", "mgda", "cagrad", "db_mtl", "linear", "uncertainty", "famo", *NEWER)
STEPS = {"dwa": 3}  # two, but for a method that weighs equally for two epochs
Case = dict[str, Any]


def alone(name: str, options: dict[str, object], steps: int, micro: int, features: bool) -> Case:
    """The steps of one process on the whole batch."""
    single = balance.create_balancer(name, **options).distribute(None)
    return train(single, Model(), range(steps), micro=micro, features=features)


class Pairs:
    """Distributed cases, and the same alone, which each rank computes a part of."""

    def __init__(self, rank: int) -> None:
        self.rank = rank
        self._wanted: dict[str, tuple] = {}
        self.found: dict[str, Case] = {}

    def add(self, case: str, name: str, *, options=None, join=None, micro=1, features=False) -> None:
        """`join` goes to `distribute`."""
        options, steps = options or {}, STEPS.get(name, 2)
        model, balancer = Model(), balance.create_balancer(name, **options)
        balancer.distribute(model, **(join or {}))
        ours = train(balancer, model, range(steps), rank=self.rank, micro=micro, features=features)
        self.found[case] = {"ours": ours}
        self._wanted[case] = (name, options, steps, micro, features)

    def add_sharded(self, case: str, name: str) -> None:
        self.found[case] = {"ours": fsdp(name, self.rank)}
        self._wanted[case] = (name, {}, STEPS.get(name, 2), 1, False)

    def complete(self) -> dict[str, Case]:
        different = {str(wanted): wanted for wanted in self._wanted.values()}
        mine = {key: alone(*wanted) for key, wanted in list(different.items())[self.rank :: RANKS]}
        parts: list[dict[str, Case]] = [{}] * RANKS
        dist.all_gather_object(parts, mine)
        results = {key: result for part in parts for key, result in part.items()}
        for case, wanted in self._wanted.items():
            self.found[case]["alone"] = results[str(wanted)]
        return self.found


def cases(rank: int) -> Case:
    pairs = Pairs(rank)
    for name, path in PATHS:
        if path == "micro":
            pairs.add(f"{name}-micro", name, micro=2)
        else:
            pairs.add(f"{name}-{path}", name, join={"method": path})
    pairs.add("sdmgrad-micro-all_reduce", "sdmgrad", micro=2, join={"method": "all_reduce"})
    pairs.add("mgda-loss", "mgda", options={"normalization": "loss"})
    for name in ("pcgrad", "mgda", "cagrad"):
        pairs.add(f"{name}-batched", name, options={"strategy": "batched"})
        pairs.add(f"{name}-features", name, options={"strategy": "features"}, features=True)
        pairs.add(f"{name}-features-micro", name, options={"strategy": "features"}, features=True, micro=2)
        pairs.add(f"{name}-last_layer", name, options={"strategy": "last_layer"})
        pairs.add(f"{name}-reuse", name, options={"reuse": 2})
    for name in SHARDED:
        pairs.add_sharded(f"fsdp-{name}", name)
    found: Case = dict(pairs.complete())
    for method in join_ranks.METHODS:
        found[f"overlap-{method}"] = overlap(rank, method)
    for name in RESUMED:
        found[f"resume-{name}"] = resume(name, rank)
    found["ddp"], found["ddp-inside"] = ddp(rank), ddp(rank, inside=True)
    found["earlier"] = earlier(rank)
    found["fused"] = fused(rank)
    found["spoilt"] = spoilt(rank)
    found["traffic"] = {method: traffic(method) for method in join_ranks.METHODS}
    found["errors"] = errors(rank)
    found["undistributed"] = undistributed(rank)
    return found


def overlap(rank: int, method: str) -> Case:
    """Rows sent while the next backward runs, and without that."""
    results = []
    for overlapped in (True, False):
        model = Model()
        balancer = balance.PCGrad().distribute(model, method=method, overlap=overlapped)
        results.append(train(balancer, model, range(2), rank=rank))
    return {"ours": results[0], "alone": results[1]}


def resume(name: str, rank: int) -> Case:
    """Two steps, state_dict, a new balancer, two more: as four."""
    model, straight = Model(), balance.create_balancer(name)
    straight.distribute(model)
    whole = train(straight, model, range(4), rank=rank)
    model, first = Model(), balance.create_balancer(name)
    first.distribute(model)
    train(first, model, range(2), rank=rank)
    second = balance.create_balancer(name)
    second.load_state_dict(first.state_dict())
    second.distribute(model)
    rest = train(second, model, range(2, 4), rank=rank)
    whole["weights"] = whole["weights"][2:]
    return {"ours": rest, "alone": whole}


def ddp(rank: int, inside: bool = False) -> Case:
    """A model wrapped in DistributedDataParallel, whose forward goes through the wrapper; `distribute` is given the
    wrapper or what is inside."""

    class Whole(Model):
        def forward(self, x: Tensor, has_label: Tensor) -> dict[str, Tensor]:
            return means(self, x, has_label)

    wrapped = nn.parallel.DistributedDataParallel(Whole(), find_unused_parameters=True)
    balancer = balance.PCGrad().distribute(wrapped.module if inside else wrapped)
    x, has_label = inputs(n=9), labelled()
    mine = slice(*CUTS[rank])
    local = wrapped(x[mine], has_label[mine])
    balancer.backward(balance.global_losses(local, has_label[mine].sum(0)), wrapped.module.encoder.parameters())
    model = Model()
    balance.PCGrad().distribute(None).backward(means(model, x, has_label), model.encoder.parameters())
    return {
        "ours": left(wrapped.module),
        "alone": left(model),
    }


def earlier(rank: int) -> Case:
    """Gradients that are there before the step are added to, not averaged again; no label for task a on rank 1."""
    results = []
    for alone in (False, True):
        model, balancer = Model(), balance.PCGrad()
        for parameter in [*model.encoder.parameters(), *model.heads["a"].parameters()]:
            parameter.grad = torch.ones_like(parameter)
        balancer.distribute(None if alone else model)
        x, has_label = inputs(n=9), labelled()
        has_label[5:, 0] = False
        mine = slice(None) if alone else slice(*CUTS[rank])
        losses = means(model, x[mine], has_label[mine])
        losses = losses if alone else balance.global_losses(losses, has_label[mine].sum(0))
        balancer.backward(losses, model.shared())
        results.append(left(model))
    return {"ours": results[0], "alone": results[1]}


def fused(rank: int) -> Case:
    """Three steps of FusedStep, and of a copy of the balancer, which is alone."""
    results = []
    for alone in (False, True):
        model, balancer = Model(), balance.PCGrad()
        balancer.distribute(None if alone else model)
        assert deepcopy(balancer)._ranks.size == 1
        step = balance.FusedStep(torch.optim.SGD(model.parameters(), lr=0.05), clip_norm=0.5)
        x, has_label = inputs(n=9), labelled()
        mine = slice(None) if alone else slice(*CUTS[rank])
        for _ in range(3):
            losses = means(model, x[mine], has_label[mine])
            losses = losses if alone else balance.global_losses(losses, has_label[mine].sum(0))
            step(balancer, losses, model.encoder.parameters())
        results.append({"parameters": torch.cat([p.detach().flatten() for p in model.parameters()])})
    return {"ours": results[0], "alone": results[1]}


def spoilt(rank: int) -> dict[str, Tensor]:
    """A NaN on one rank, then a good step."""
    model, balancer = Model(), balance.GradVac()
    balancer.distribute(model)
    x, has_label = inputs(n=9), labelled()
    found = {}
    for name in ("bad", "good"):
        model.zero_grad()
        losses = means(model, x, has_label)
        if name == "bad" and rank == 0:
            losses["b"] = losses["b"] * float("nan")
        balancer.backward(losses, model.encoder.parameters())
        found[name] = torch.cat([p.grad.flatten() for p in model.encoder.parameters()])
    return found


def fsdp(name: str, rank: int) -> dict[str, Tensor]:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    model = Model()
    mesh = init_device_mesh("cpu", (RANKS,))
    for part in (model.encoder[0], model.encoder, *model.heads.values()):
        fully_shard(part, mesh=mesh)
    shared, everything = list(model.encoder.parameters()), [*model.encoder.parameters(), *model.heads.parameters()]
    balancer = balance.create_balancer(name).distribute(model)
    return train(balancer, model, range(STEPS.get(name, 2)), rank=rank, shared=shared, root=everything)


def traffic(method: str) -> dict[str, int]:
    """Numbers handed to each collective in one step."""
    sent: Counter[str] = Counter()
    model, balancer = Model(), balance.PCGrad()
    balancer.distribute(model, method=method)
    losses = means(model, inputs(n=9), labelled())
    originals = {
        "all_reduce": dist.all_reduce,
        "reduce_scatter": collectives.collective("reduce_scatter_single"),
        "all_gather": collectives.collective("all_gather_single"),
    }

    def counting(name):
        def collective(first, *rest, **options):
            sent[name] += (rest[0] if name == "reduce_scatter" else first).numel()
            return originals[name](first, *rest, **options)

        return collective

    try:
        for name, original in originals.items():
            setattr(dist, original.__name__, counting(name))
        balancer.backward(losses, model.encoder.parameters())
    finally:
        for original in originals.values():
            setattr(dist, original.__name__, original)
    return dict(sent) | {"P": balancer.arena.rows.shape[1]}


def errors(rank: int) -> dict[str, str]:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    def message(act) -> str:
        try:
            act()
        except (ValueError, RuntimeError) as error:
            return str(error)
        return "nothing was raised"

    other = Model()
    with torch.no_grad():
        other.encoder[0].bias += rank
    sharded = Model()
    for part in (sharded.encoder, *sharded.heads.values()):
        fully_shard(part, mesh=init_device_mesh("cpu", (RANKS,)))
    moved = balance.PCGrad()
    moved.distribute(model := Model())
    moved.backward(means(model, inputs(n=9), labelled()), model.encoder[2].parameters())
    return {
        "seed": message(lambda: balance.PCGrad(seed=rank).distribute(Model())),
        "model": message(lambda: balance.PCGrad().distribute(other)),
        "batched fsdp": message(lambda: balance.PCGrad().use("batched").distribute(sharded)),
        "use fsdp": message(lambda: balance.PCGrad().distribute(sharded).use("last_layer")),
        "placements": message(lambda: balance.PCGrad().distribute(divided_twice())),
        "gradnorm fsdp": message(lambda: balance.GradNorm().distribute(sharded)),
        "whole": message(
            lambda: (
                balance.PCGrad()
                .distribute(sharded)
                .backward(means(model, inputs(n=9), labelled()), model.encoder.parameters())
            )
        ),
        "static graph": message(
            lambda: balance.PCGrad().distribute(nn.parallel.DistributedDataParallel(Model(), static_graph=True))
        ),
        "new": message(
            lambda: moved.backward(
                means(model, inputs(n=9), labelled()) | {"c": model.unused.weight.sum() + model.encoder[2].bias.sum()},
                model.encoder[2].parameters(),
            )
        ),
    }


def divided_twice() -> nn.Module:
    """A layer as tensor parallelism divides it, over two dimensions of a mesh."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    layer = nn.Linear(4, 4, bias=False)
    mesh = init_device_mesh("cpu", (RANKS, 1))
    layer.weight = nn.Parameter(distribute_tensor(layer.weight.detach(), mesh, (Shard(0), Shard(1))))
    return layer


def undistributed(rank: int) -> dict[str, str]:
    """What each way of stepping says of a balancer that nobody told of the other rank; "" where it works alone."""

    def said(step) -> str:
        try:
            step()
        except RuntimeError as error:
            return "\n".join([str(error), *getattr(error, "__notes__", [])])
        return ""

    def backward(balancer, wrap=False) -> str:
        model = Model()
        network = nn.parallel.DistributedDataParallel(model, find_unused_parameters=True) if wrap else model
        losses = means(network.module if wrap else network, inputs(n=9), labelled())
        return said(lambda: balancer.backward(losses, model.encoder.parameters()))

    def fused(balancer) -> str:
        model = Model()
        step = balance.FusedStep(torch.optim.SGD(model.parameters(), lr=0.05))
        losses = means(model, inputs(n=9), labelled())
        return said(lambda: step(balancer, losses, model.encoder.parameters()))

    class Whole(Model):
        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return means(self, x, labelled())

    def wrapped_after(distributed: bool) -> str:
        model = Whole()
        del model.unused
        balancer = balance.PCGrad().distribute(model if distributed else None)
        wrapped = nn.parallel.DistributedDataParallel(model)
        return said(lambda: balancer.backward(wrapped(inputs(n=9)), model.encoder.parameters()))

    torch.manual_seed(rank)  # alone, each rank may have a model of its own
    distributed_once = balance.PCGrad()
    distributed_once.distribute(Model())
    found = {name: backward(balance.create_balancer(name)) for name in balance.list_balancers()}
    return found | {
        "wrapped": backward(balance.PCGrad(), wrap=True),
        "copy": backward(deepcopy(distributed_once)),
        "fused": fused(balance.MGDA()),
        "fused alone": fused(balance.MGDA().distribute(None)),
        "alone": backward(balance.PCGrad().distribute(None)),
        "alone again": backward(distributed_once.distribute(None)),
        "copy alone": backward(deepcopy(balance.Linear().distribute(None))),
        "wrapped after": wrapped_after(True),
        "marked twice": wrapped_after(False),
    }


def main(rank: int, rendezvous: str, folder: str) -> None:
    warnings.simplefilter("error")
    torch.set_num_threads(1)
    gc.freeze()  # `distribute` looks for wrappers among all objects: not among those of the imports, 200 times
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=RANKS)
    try:
        torch.save(cases(rank), f"{folder}/{rank}.pt")
    finally:
        dist.destroy_process_group()
