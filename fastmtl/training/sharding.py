"""Divides a model among ranks by FSDP2, and converts its state between whole tensors and this rank's shards.

A checkpoint holds whole tensors, so that a run continues on any number of ranks and with any strategy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook
from torch.utils._pytree import tree_leaves, tree_map

from ..balance.shards import is_shard
from ..builders.components import empty_batch
from ..config import ConfigError, Recipe, TrainingConfig
from ..distributed import World, is_of_communication
from ..models.momentum import MomentumQueue
from ..protocols import Balancer

_SMALLEST = 1 << 20  # parameters of a module that is gathered by itself: 4 MB, above which networks reach their speed


def is_sharded(model: nn.Module) -> bool:
    return any(is_shard(parameter) for parameter in model.parameters())


def why_not(
    model: nn.Module,
    balancer: Balancer,
    optimizer: torch.optim.Optimizer,
    config: TrainingConfig,
    *,
    by_fused_step: bool,
) -> str:
    """What of a training does not work with FSDP2; "" if everything does."""
    name, kind = type(balancer).__name__, type(optimizer)
    watched = config.gradient_stats_every and not getattr(balancer, "sees_gradients", False)
    problems = {
        f"{name}'s averages or sums of the gradients cannot be divided": getattr(balancer, "split_state", ()),
        getattr(balancer, "why_not_sharded", str)(): True,
        "the momentum encoder cannot follow a divided encoder": any(
            isinstance(module, MomentumQueue) for module in model.modules()
        ),
        "a parameter without dimensions cannot be divided": any(not parameter.ndim for parameter in model.parameters()),
        f"apex's {kind.__name__} does not take parts of parameters": kind.__module__.startswith("apex"),
        "training.compile must be false": config.compile,
        f"training.gradient_stats_every must be 0 with {name}, whose steps measure no gradients": watched,
        'training.precision = "float16" needs the fused step': config.precision == "float16" and not by_fused_step,
    }
    return next((problem for problem, found in problems.items() if problem and found), "")


def divide(recipe: Recipe, model: nn.Module, world: World, *, smallest: int = _SMALLEST) -> bool:
    """Divide the model among the ranks if the recipe says so; returns whether. All ranks call it, before the optimizer
    is created.

    Raises:
        ConfigError: the model does not work with FSDP2; `why_not` has been asked before.
    """
    if recipe.distributed.strategy != "fsdp2" or world.size == 1:
        return False
    device = next(model.parameters()).device
    batch = empty_batch(recipe, 2, len(recipe.tasks), device)
    training = model.training
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            shard(model, world, lambda: model(batch), replicas=recipe.distributed.replicas, smallest=smallest)
            outputs = [leaf for leaf in tree_leaves(model.eval()(batch)) if isinstance(leaf, Tensor)]
            if learned := [output.sum() for output in outputs if output.requires_grad]:
                torch.stack(learned).sum().backward()
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        if is_of_communication(error):
            raise
        raise ConfigError(
            f"recipe {recipe.name}: {recipe.model['name']} does not work with FSDP2 ({' '.join(str(error).split())}); "
            'use distributed.strategy = "ddp".'
        ) from error
    model.zero_grad()
    model.train(training)
    return True


def shard(
    model: nn.Module, world: World, forward: Callable[[], Any], *, replicas: int = 1, smallest: int = _SMALLEST
) -> None:
    """Divide `model` among the ranks, in place. Modules of `smallest` parameters or more are gathered one by one when
    they are used, the rest at once. Create the optimizer afterwards.

    Args:
        model: on its device, equal on all ranks.
        world: the ranks; all call it.
        forward: a trial pass of the model, to see which modules are called.
        replicas: copies of the model, each divided among ranks / replicas ranks.
        smallest: parameters of a module that is gathered by itself.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    device = next(model.parameters()).device
    if replicas == 1:
        mesh = init_device_mesh(device.type, (world.size,))
    else:
        mesh = init_device_mesh(device.type, (replicas, world.size // replicas), mesh_dim_names=("copies", "shards"))
    units = list(_units(model, _called(model, forward), smallest))
    for parameter in model.parameters():
        parameter.data = parameter.data.contiguous()  # FSDP2 takes no other memory order
    for module in (*units, model):
        # The root too: after a pass without a backward it would keep the parameters of before the next step.
        fully_shard(module, mesh=mesh, reshard_after_forward=True)
    model.register_forward_hook(_own_outputs, prepend=True)


def gathered(state: Any, *, keep: bool) -> Any:
    """`state` with whole tensors on the CPU instead of shards; all ranks call it. Without `keep`, None instead: the
    ranks that write nothing need no memory for them."""
    if isinstance(state, Tensor) and is_shard(state):
        whole = cast(Any, state).full_tensor().detach()  # one at a time: a GPU need not hold the whole model
        return whole.cpu() if keep else None
    if isinstance(state, dict):
        return {key: gathered(value, keep=keep) for key, value in state.items()}
    if isinstance(state, list | tuple):
        return type(state)(gathered(value, keep=keep) for value in state)
    return state


def like(own: Tensor, whole: Tensor) -> Tensor:
    """This rank's shard of `whole`, divided as `own` is; `whole` itself if `own` is not divided."""
    if not is_shard(own) or is_shard(whole):
        return whole
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(own, DTensor)
    whole = whole.detach().to(own.device)
    return distribute_tensor(whole, own.device_mesh, own.placements, src_data_rank=None)  # nothing is sent


def model_like(model: nn.Module, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`weights` of a whole model, divided as `model` is."""
    own = model.state_dict()
    return {name: like(own[name], value) if name in own else value for name, value in weights.items()}


def optimizer_like(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> dict[str, Any]:
    """A state of `optimizer` with whole moments, divided as its parameters are."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    numbers = [number for group in state["param_groups"] for number in group["params"]]
    owners = dict(zip(numbers, parameters, strict=True))
    moments = {
        number: {name: _moment_like(owners[number], value) for name, value in values.items()}
        for number, values in state["state"].items()
    }
    return {**state, "state": moments}


def _moment_like(parameter: Tensor, value: Any) -> Any:
    return like(parameter, value) if isinstance(value, Tensor) and value.shape == parameter.shape else value


def _called(model: nn.Module, forward: Callable[[], Any]) -> set[nn.Module]:
    """The modules that `forward` calls and that return tensors of their own: only those can gather their parameters in
    time for the backward. A view would lose FSDP2's hook by an operation in place."""
    found: set[nn.Module] = set()
    unfit: set[nn.Module] = set()

    def note(module: nn.Module, _inputs: object, output: object) -> None:
        returned = [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]
        found.add(module)
        if not returned or any(tensor._is_view() for tensor in returned):
            unfit.add(module)

    training = model.training
    model.eval()
    handle = register_module_forward_hook(note)
    try:
        with torch.no_grad():
            forward()
    finally:
        handle.remove()
        model.train(training)
    return found - unfit


def _own_outputs(_model: nn.Module, _inputs: object, outputs: Any) -> Any:
    """Copies instead of views, see `_called`."""
    return tree_map(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) and leaf._is_view() else leaf, outputs)


def _units(model: nn.Module, called: set[nn.Module], smallest: int) -> Iterator[nn.Module]:
    """Disjoint parts of `model` to gather one by one, inner ones first. Parameters that several modules share stay with
    the module that has all of them."""
    uses: dict[int, int] = {}
    for _, parameter in model.named_parameters(remove_duplicate=False):
        uses[id(parameter)] = uses.get(id(parameter), 0) + 1
    taken: set[int] = set()

    def visit(module: nn.Module) -> Iterator[nn.Module]:
        for child in module.children():
            yield from visit(child)
        left = {id(p): p for p in module.parameters() if id(p) not in taken}
        own: dict[int, int] = {}
        for _, parameter in module.named_parameters(remove_duplicate=False):
            own[id(parameter)] = own.get(id(parameter), 0) + 1
        closed = all(own[key] == uses[key] for key in left)
        if module in called and closed and sum(p.numel() for p in left.values()) >= smallest:
            taken.update(left)
            yield module

    for child in model.children():
        yield from visit(child)
