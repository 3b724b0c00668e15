"""Autograd functions for the strategies: a graph's leaves, one layer's gradient, all tasks' gradients at once."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from ..utils.phases import phase

Scale = Tensor | float | None


def last_layer(shared: Iterable[Tensor]) -> Tensor:
    """The last trainable parameter of two or more dimensions."""
    layers = [parameter for parameter in shared if parameter.ndim > 1 and parameter.requires_grad]
    if not layers:
        raise ValueError("`shared` must hold a trainable parameter of two or more dimensions, or give `layer`.")
    return layers[-1]


@phase("backward")
def layer_row(name: str, loss: Tensor, layer: Tensor) -> Tensor:
    """The layer's gradient, flattened to [P], in float32 or wider."""
    try:
        (gradient,) = torch.autograd.grad(loss, layer, retain_graph=True, allow_unused=True)
    except RuntimeError as error:
        _explain(error)
        raise
    if gradient is None:
        leaves([loss])  # raises if a checkpoint hides the layer
        raise ValueError(
            f"`losses[{name!r}]` must depend on the layer {list(layer.shape)} whose gradients are measured. Choose a "
            "`layer` that all tasks share."
        )
    return gradient.flatten().to(torch.promote_types(gradient.dtype, torch.float32))


def leaves(losses: Iterable[Tensor]) -> list[Tensor]:
    """The parameters that the graphs of `losses` reach, in a fixed order.

    Raises:
        RuntimeError: a reentrant checkpoint hides some of them.
    """
    found, seen = {}, set()
    for loss in losses:
        if loss.grad_fn is None:
            found[id(loss)] = loss
    nodes = [loss.grad_fn for loss in losses if loss.grad_fn is not None]
    while nodes:
        node = nodes.pop()
        if node in seen:
            continue
        seen.add(node)
        if node.name() == "CheckpointFunctionBackward":
            raise RuntimeError(
                "the graph has a reentrant checkpoint, which hides its parameters from all but plain backwards. Pass "
                "use_reentrant=False, or use the strategy 'sequential' with reuse=1."
            )
        variable = getattr(node, "variable", None)
        if isinstance(variable, Tensor):
            found[id(variable)] = variable
        nodes.extend(after for after, _ in node.next_functions if after is not None)
    return list(found.values())


def weighted_sum(losses: Iterable[Tensor], w: Tensor) -> Tensor:
    """sum_k w_k L_k, in float64 if all losses are float64, else in float32."""
    losses = list(losses)
    dtype = torch.float64 if all(loss.dtype == torch.float64 for loss in losses) else torch.float32
    return (torch.stack([loss.reshape(()).to(dtype) for loss in losses]) * w.to(dtype)).sum()


def unreached(name: str, where: str = "`shared`", what: str = "at least one parameter in") -> str:
    """The error message for a loss that does not depend on shared parameters."""
    return (
        f"`losses[{name!r}]` must reach {what} {where}; its graph holds none of them. Pass the parameters this task "
        "shares, or leave the task out of `losses`."
    )


def backward(loss: Tensor, retain_graph: bool = False, inputs: list[Tensor] | None = None) -> None:
    """`Tensor.backward`; errors get a note on common causes."""
    try:
        loss.backward(retain_graph=retain_graph, inputs=inputs)
    except RuntimeError as error:
        _explain(error)
        raise


def vectorised(losses: list[Tensor], inputs: list[Tensor]) -> Iterable[Tensor | None]:
    """[K, *shape] for each of `inputs`: the gradients of all losses from one backward; None if no loss reaches it."""
    K = len(losses)
    picks = [
        torch.eye(K, dtype=loss.dtype, device=loss.device)[:, k].reshape(K, *loss.shape)
        for k, loss in enumerate(losses)
    ]
    try:
        return torch.autograd.grad(losses, inputs, picks, is_grads_batched=True, allow_unused=True)
    except RuntimeError as error:
        _explain(error)
        error.add_note(
            "The strategy 'batched' is a vmap over the backward, which Inductor's compiled backwards do not support; "
            "'sequential' works with everything."
        )
        raise


def _explain(error: RuntimeError) -> None:
    if "donated buffer" in str(error):
        error.add_note(
            "A compiled model frees its buffers in the first of several backwards. Before you compile it, "
            "import torch._functorch.config and set torch._functorch.config.donated_buffer = False."
        )
    elif "mark a variable ready only once" in str(error):
        error.add_note(
            "DistributedDataParallel averages gradients once per step, but a balancer runs several backwards. Call "
            "balancer.distribute(model) after wrapping: the balancer then averages instead of the wrapper."
        )
    elif "backward through the graph a second time" in str(error):
        error.add_note(
            "The balancer runs all backwards of a step itself. Remove `loss.backward()`, and compute new losses for "
            "every call."
        )
