"""How the K gradients are come by: K backwards, or something cheaper, by name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fastmtl.names import nearest

if TYPE_CHECKING:
    from .base import GradientBalancer

Scale = Tensor | float | None


class Strategy:
    """One step: `fill` at each micro-batch, `rows` and `leave` in the balancer's `_combine`.

    The balancer is passed in and never kept: a cycle would keep its arena alive.
    """

    name = ""
    needs_all_losses = False  # as a balancer's
    fills_arena = False  # whether `rows` are the gradients of the shared parameters themselves

    def __init__(self, reuse: int = 1) -> None:
        self.reuse = reuse
        self._served = 0  # steps that the last weights have served; 0 if there are none
        self._log: dict[str, Tensor] = {}  # of the step that measured them

    @property
    def stale(self) -> bool:
        """Whether this step takes the weights of an earlier one."""
        return 0 < self._served < self.reuse

    def writes(self, shared: Iterable[Tensor]) -> Iterable[Tensor]:
        """The parameters whose `.grad` gets the combined gradient of all ranks, rather than this rank's own."""
        return ()

    def fill(
        self,
        balancer: GradientBalancer,
        losses: Mapping[str, Tensor],
        shared: Iterable[Tensor],
        scale: Scale,
        last: bool,
        features: Tensor | Iterable[Tensor] | None,
    ) -> None:
        """Backpropagate a micro-batch."""
        if features is not None and self.name != "features":
            raise ValueError(f"`features` belongs to the strategy 'features'; this balancer's is {self.name!r}.")
        if self.stale:
            self._weigh(balancer, losses, shared, scale, self._log["weights"], features)
        else:
            self._fill(balancer, losses, shared, scale, last, features)

    def _fill(self, balancer, losses, shared, scale, last, features) -> None:
        raise NotImplementedError

    def rows(self, balancer: GradientBalancer) -> Tensor:
        """J [K, P] of the step."""
        raise NotImplementedError

    def leave(self, balancer: GradientBalancer, flat: Tensor, w: Tensor) -> None:
        """Put the combined gradient where the optimizer looks for it."""
        raise NotImplementedError

    def forget(self) -> None:
        """The step failed: drop what micro-batches left."""
        return

    def finish(
        self, balancer: GradientBalancer, losses: Mapping[str, Tensor], scale: Scale, active: Tensor | None
    ) -> dict[str, Tensor]:
        """The end of a step; what it returns is logged."""
        if self.stale:
            self._served = (self._served + 1) % self.reuse
            return dict(self._log)
        done = balancer._combine(losses, scale, active)
        if self.reuse > 1:
            self._keep(done)
        return done

    def _keep(self, done: dict[str, Tensor]) -> None:
        w, norms = done["weights"], done["norms"]
        before = self._log["weights"] if self._log else torch.ones_like(w)
        # A step that is skipped teaches nothing, and a task without labels in it keeps the weight it had.
        sound = (norms != 0) & w.isfinite().all() & norms.isfinite().all()
        self._log = done | {"weights": torch.where(sound, w, before.to(w.device))}
        self._served = 1 % self.reuse

    def state_dict(self) -> dict[str, Any]:
        if self.reuse == 1:
            return {}
        return {"reuse": {"served": self._served, **self._log}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if self.reuse > 1 and "reuse" in state:
            self._log = {name: value for name, value in state["reuse"].items() if name != "served"}
            self._served = state["reuse"]["served"]

    def _weigh(
        self,
        balancer: GradientBalancer,
        losses: Mapping[str, Tensor],
        shared: Iterable[Tensor],
        scale: Scale,
        w: Tensor,
        features: Tensor | Iterable[Tensor] | None = None,
    ) -> None:
        """One backward of sum_k w_k L_k for the shared parameters, and one of sum_k L_k for the heads alone."""
        ids = {id(parameter) for parameter in shared}
        reached = leaves(losses.values())
        targets = [leaf for leaf in reached if id(leaf) in ids]
        if not targets:
            raise ValueError(unreached(", ".join(losses)))
        heads = [leaf for leaf in reached if id(leaf) not in ids]
        if heads:
            plain = weighted_sum(losses.values(), torch.ones_like(w))
            backward(balancer._ranks.scaled(plain, scale), retain_graph=True, inputs=heads)
        weighted = weighted_sum(losses.values(), w)
        backward(balancer._ranks.scaled(weighted, scale), inputs=targets)


class Sequential(Strategy):
    """K backwards, each moved into its row while it is in the cache. Exact; works with everything."""

    name = "sequential"
    fills_arena = True

    def writes(self, shared: Iterable[Tensor]) -> Iterable[Tensor]:
        return () if self.stale else shared

    def _fill(self, balancer, losses, shared, scale, last, features) -> None:
        arena, ranks = balancer._arena, balancer._ranks
        with arena.open(shared, len(losses)):
            for task, (name, loss) in enumerate(losses.items()):
                with arena.record(task) as reached:
                    backward(ranks.scaled(loss, scale), retain_graph=task + 1 < len(losses))
                if not reached:
                    raise ValueError(unreached(name))
                if last:
                    ranks.launch(arena, task)

    def rows(self, balancer: GradientBalancer) -> Tensor:
        balancer._split = balancer._ranks.splits
        return balancer._ranks.collect(balancer._arena)

    def leave(self, balancer: GradientBalancer, flat: Tensor, w: Tensor) -> None:
        arena, ranks = balancer._arena, balancer._ranks
        arena.write_also(ranks.agree(arena.layout, arena.reached()))
        arena.write(ranks.spread(flat))


class Batched(Sequential):
    """One backward of all tasks at once (vmap over the backward). Exact; the same work and K times the memory for
    gradients of activations and parameters. Not with reentrant checkpointing or compiled backwards."""

    name = "batched"

    def _fill(self, balancer, losses, shared, scale, last, features) -> None:
        arena, ranks = balancer._arena, balancer._ranks
        with arena.open(shared, len(losses)):
            places = {id(parameter): place for place, parameter in enumerate(arena.parameters)}
            reached = [{id(leaf) for leaf in leaves([loss])} for loss in losses.values()]
            for name, ids in zip(losses, reached, strict=True):
                if not ids & places.keys():
                    raise ValueError(unreached(name))
            inputs = leaves(losses.values())
            for leaf, gradients in zip(inputs, _vectorised(losses, inputs, ranks, scale), strict=True):
                if gradients is None:
                    continue
                if id(leaf) in places:
                    for task, ids in enumerate(reached):
                        if id(leaf) in ids:
                            arena.take(task, places[id(leaf)], gradients[task])
                else:
                    total = gradients.sum(0)
                    leaf.grad = total if leaf.grad is None else leaf.grad + total
            if last:
                for task in range(len(losses)):
                    ranks.launch(arena, task)


class Features(Strategy):
    """Gradients of the shared part's outputs stand for those of its parameters; one backward goes on from there.

    APPROXIMATE: G_z is not G_theta. Rows of several micro-batches, or ranks, stand side by side: they are gradients of
    different samples' features.
    """

    name = "features"

    def __init__(self, reuse: int = 1) -> None:
        super().__init__(reuse)
        self._pieces: list[tuple[Tensor, list[tuple[Tensor, Any]]]] = []  # [K, P_i] and (leaf, its slot)

    def _fill(self, balancer, losses, shared, scale, last, features) -> None:
        cuts, arena = _cuts(features), balancer._arena
        with arena.open(cuts, len(losses)):
            for task, (name, loss) in enumerate(losses.items()):
                with arena.record(task) as reached:
                    backward(balancer._ranks.scaled(loss, scale), retain_graph=task + 1 < len(losses))
                if not reached:
                    raise ValueError(unreached(name, "`features`", "a tensor of"))
        rows = arena.finish()
        slots = [slot for slot in zip(arena.parameters, arena.slots, arena.reached(), strict=True) if slot[2]]
        # The arena's rows are written again at the next micro-batch.
        self._pieces.append((rows if last else rows.clone(), [(leaf, slot) for leaf, slot, _ in slots]))
        arena.clear()

    def rows(self, balancer: GradientBalancer) -> Tensor:
        balancer._split = balancer._ranks.size > 1 and not balancer._ranks.local
        rows = [rows for rows, _ in self._pieces]
        return rows[0] if len(rows) == 1 else torch.cat(rows, 1)

    def leave(self, balancer: GradientBalancer, flat: Tensor, w: Tensor) -> None:
        parts = flat.split([rows.shape[1] for rows, _ in self._pieces])
        with torch.enable_grad():
            for part, (_, slots) in zip(parts, self._pieces, strict=True):
                _continue([(leaf, slot.view(part).to(leaf.dtype)) for leaf, slot in slots])
        self.forget()

    def forget(self) -> None:
        self._pieces = []

    def _weigh(self, balancer, losses, shared, scale, w, features=None) -> None:
        cuts = _cuts(features)
        super()._weigh(balancer, losses, cuts, scale, w)
        gradients = [(leaf, leaf.grad) for leaf in cuts if leaf.grad is not None]
        for leaf in cuts:
            leaf.grad = None
        _continue(gradients)


class LastLayer(Strategy):
    """Weights from the gradients of one layer, K short backwards; then one weighted backward of everything.

    APPROXIMATE for every method that is defined on all shared parameters. Micro-batches are kept, graphs and all.
    """

    name = "last_layer"
    needs_all_losses = True

    def __init__(self, reuse: int = 1, layer: Tensor | None = None) -> None:
        super().__init__(reuse)
        self.layer = layer
        self._step: tuple[Any, ...] = ()
        self._J: Tensor | None = None

    def _fill(self, balancer, losses, shared, scale, last, features) -> None:
        layer = last_layer(shared) if self.layer is None else self.layer
        leaves(losses.values())  # before any work: raises where a graph hides parameters
        rows = [layer_row(name, balancer._ranks.scaled(loss, scale), layer) for name, loss in losses.items()]
        self._J = balancer._ranks.total(torch.stack(rows))
        self._step = (losses, shared, scale)

    def rows(self, balancer: GradientBalancer) -> Tensor:
        assert self._J is not None
        balancer._split = False
        return self._J

    def leave(self, balancer: GradientBalancer, flat: Tensor, w: Tensor) -> None:
        losses, shared, scale = self._step
        self.forget()
        with torch.enable_grad():
            self._weigh(balancer, losses, shared, scale, w)

    def forget(self) -> None:
        self._step, self._J = (), None


_STRATEGIES = {strategy.name: strategy for strategy in (Sequential, Batched, Features, LastLayer)}


def create_strategy(balancer: GradientBalancer, name: str, reuse: int, layer: Tensor | None) -> Strategy:
    """The strategy of that name, if `balancer` can work with it.

    Raises:
        ValueError: no such name, an option out of range, or the method loses its meaning.
    """
    if name not in _STRATEGIES:
        raise ValueError(f"unknown `strategy` {name!r}; {nearest(name, list(_STRATEGIES))}")
    method = type(balancer).__name__
    if name not in balancer.strategies:
        raise ValueError(
            f"`strategy` of {method} must be one of {', '.join(balancer.strategies)}; got {name!r}: the method works "
            "on the gradients themselves, and under this strategy there are none of the shared parameters."
        )
    if not isinstance(reuse, int) or reuse < 1:
        raise ValueError(f"`reuse` must be a number of steps, at least 1; got {reuse!r}.")
    if reuse > 1 and not balancer.reusable:
        raise ValueError(f"`reuse` must be 1 for {method}: its update is no weighted sum of the step's gradients.")
    if layer is not None and name != "last_layer":
        raise ValueError(f"`layer` belongs to the strategy 'last_layer'; got {name!r}.")
    if balancer._ranks.shards_parameters and (name != "sequential" or reuse > 1):
        raise ValueError(f"`strategy` must be 'sequential' and `reuse` 1 under FSDP2; got {name!r} and {reuse}.")
    return LastLayer(reuse, layer) if name == "last_layer" else _STRATEGIES[name](reuse)


def cut(features: Tensor) -> Tensor:
    """A leaf in the place of the shared part's output, where the K backwards of the strategy "features" stop.

    Feed it to the heads and give it to `backward(..., features=)`, which goes on into the shared part.

    >>> from fastmtl import balance
    >>> encoder, head_a, head_b = (torch.nn.Linear(4, n) for n in (4, 1, 2))
    >>> z = cut(encoder(torch.ones(8, 4)))
    >>> losses = {"a": head_a(z).mean(), "b": head_b(z).square().mean()}
    >>> log = balance.PCGrad().use("features").backward(losses, encoder.parameters(), features=z)
    >>> encoder.weight.grad.shape
    torch.Size([4, 4])
    """
    if not features.requires_grad:
        raise ValueError("`features` must carry a graph; got a tensor with requires_grad=False.")
    leaf = features.detach().requires_grad_()
    leaf._fastmtl_cut_from = features  # type: ignore[attr-defined]
    return leaf


def _cuts(features: Tensor | Iterable[Tensor] | None) -> list[Tensor]:
    cuts = [] if features is None else [features] if isinstance(features, Tensor) else list(features)
    if not cuts or not all(hasattr(leaf, "_fastmtl_cut_from") for leaf in cuts):
        found = "none" if not cuts else "tensors that `cut` did not make"
        raise ValueError(
            f"`features` must be what `balance.cut` made of the shared part's outputs, in every call; got {found}. "
            "Write z = balance.cut(encoder(x)), give z to the heads, and features=z to backward."
        )
    return cuts


def _continue(gradients: list[tuple[Tensor, Tensor]]) -> None:
    if gradients:
        origins = [leaf._fastmtl_cut_from for leaf, _ in gradients]  # type: ignore[attr-defined]
        torch.autograd.backward(origins, [gradient for _, gradient in gradients])


def last_layer(shared: Iterable[Tensor]) -> Tensor:
    """The last trainable parameter of two or more dimensions."""
    layers = [parameter for parameter in shared if parameter.ndim > 1 and parameter.requires_grad]
    if not layers:
        raise ValueError("`shared` must hold a trainable parameter of two or more dimensions, or give `layer`.")
    return layers[-1]


def layer_row(name: str, loss: Tensor, layer: Tensor) -> Tensor:
    """The layer's gradient, flat [P] in float32 or wider."""
    try:
        (gradient,) = torch.autograd.grad(loss, layer, retain_graph=True, allow_unused=True)
    except RuntimeError as error:
        _explain(error)
        raise
    if gradient is None:
        leaves([loss])  # raises if a checkpoint hides the layer
        raise ValueError(
            f"`losses[{name!r}]` must reach the layer {list(layer.shape)} that is measured. Give another `layer`, one "
            "that all tasks share."
        )
    return gradient.flatten().to(torch.promote_types(gradient.dtype, torch.float32))


def leaves(losses: Iterable[Tensor]) -> list[Tensor]:
    """The parameters that the graphs of `losses` reach, in a fixed order.

    Raises:
        RuntimeError: reentrant checkpointing hides some.
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
                "the graph holds a reentrant checkpoint, which hides its parameters from every backward but a plain "
                "one. Pass use_reentrant=False, or take the strategy 'sequential' with reuse=1."
            )
        variable = getattr(node, "variable", None)
        if isinstance(variable, Tensor):
            found[id(variable)] = variable
        nodes.extend(after for after, _ in node.next_functions if after is not None)
    return list(found.values())


def weighted_sum(losses: Iterable[Tensor], w: Tensor) -> Tensor:
    """sum_k w_k L_k, in float32 or, where all losses are, float64."""
    losses = list(losses)
    dtype = torch.float64 if all(loss.dtype == torch.float64 for loss in losses) else torch.float32
    return (torch.stack([loss.reshape(()).to(dtype) for loss in losses]) * w.to(dtype)).sum()


def unreached(name: str, where: str = "`shared`", what: str = "at least one parameter in") -> str:
    """What to say of a loss that reaches nothing shared."""
    return (
        f"`losses[{name!r}]` must reach {what} {where}; its graph holds none of them. Pass the parameters this task "
        "shares, or leave the task out of `losses`."
    )


def backward(loss: Tensor, retain_graph: bool = False, inputs: list[Tensor] | None = None) -> None:
    """`Tensor.backward`, with notes on what often goes wrong."""
    try:
        loss.backward(retain_graph=retain_graph, inputs=inputs)
    except RuntimeError as error:
        _explain(error)
        raise


def _vectorised(losses: Mapping[str, Tensor], inputs: list[Tensor], ranks: Any, scale: Scale) -> Iterable[Any]:
    """[K, *shape] for each of `inputs`: all tasks' gradients from one backward."""
    scaled = [ranks.scaled(loss, scale) for loss in losses.values()]
    K = len(scaled)
    picks = [
        torch.eye(K, dtype=loss.dtype, device=loss.device)[:, k].reshape(K, *loss.shape)
        for k, loss in enumerate(scaled)
    ]
    try:
        return torch.autograd.grad(scaled, inputs, picks, is_grads_batched=True, allow_unused=True)
    except RuntimeError as error:
        _explain(error)
        error.add_note(
            "The strategy 'batched' is a vmap over the backward, which Inductor's compiled ones do not take; "
            "'sequential' works with everything."
        )
        raise


def _explain(error: RuntimeError) -> None:
    if "donated buffer" in str(error):
        error.add_note(
            "A compiled model frees its buffers in the first of several backwards. Before compiling it set "
            "torch._functorch.config.donated_buffer = False."
        )
