"""The table of docs/balancing.md: every method under every condition a training loop may bring; a cell is a test here.

`python tests/balance/test_balance_table.py` prints the table.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy

import pytest
import torch
import torch._functorch.config as functorch_config
from helpers.loop import Model, all_gradients, assert_steps_equal, inputs, losses_of, shared_of
from helpers.paths import DOCS
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from fastmtl import balance

METHODS = balance.list_balancers()
PAGE = DOCS / "balancing.md"
HALF = {"rtol": 0.0, "atol": 0.05}  # of the largest element, for bfloat16

PAIRS = "micro-batches are the independent batches it compares: not equal to one batch"
# (method, condition) -> why the cell is no plain yes.
EXCEPTIONS = {
    ("modo", "accumulation"): PAIRS,
    ("sdmgrad", "accumulation"): PAIRS,
    ("gradnorm", "checkpointing"): "with use_reentrant=False; reentrant checkpoints are refused by name",
    ("momentum_config", "AMP"): "of the direction; the update divides it by its size, so elements near 0 change sign",
}
CONDITIONS: dict[str, Callable[[str], None]] = {}


def condition(name: str):
    def register(test: Callable[[str], None]) -> Callable[[str], None]:
        CONDITIONS[name] = test
        return test

    return register


def after(method: str, steps: list[Callable[[Model], dict[str, Tensor]]], *, dtype=torch.float64, of=None, **options):
    """The gradients and weights after each step; `of` are the balancer's options."""
    model, balancer, left = Model(dtype), balance.create_balancer(method, **(of or {})), []
    for losses in steps:
        model.zero_grad()
        log = balancer.backward(losses(model), shared_of(model), **options)
        left.append([*all_gradients(model), log["weights"]])
        balancer.after_step(lambda: losses_of(model, inputs(dtype)))
    return left


def plain(seed: int, dtype=torch.float64) -> Callable[[Model], dict[str, Tensor]]:
    return lambda model: losses_of(model, inputs(dtype, seed=seed))


@condition("AMP")
def autocast(method: str) -> None:
    """bfloat16 losses and float32 parameters: every gradient in the parameter's dtype, and near the float32 one."""

    def half(model: Model) -> dict[str, Tensor]:
        with torch.autocast("cpu", torch.bfloat16):
            return losses_of(model, inputs(torch.float32, seed=1))

    of = {"beta2": None} if (method, "AMP") in EXCEPTIONS else None
    (found,) = after(method, [half], dtype=torch.float32, of=of)
    (expected,) = after(method, [plain(1, torch.float32)], dtype=torch.float32, of=of)
    size = max(grad.abs().max() for grad in expected[:-1] if grad is not None)
    for ours, exact in zip(found[:-1], expected[:-1], strict=True):
        assert (ours is None) == (exact is None)
        if ours is not None:
            assert ours.dtype == torch.float32
            torch.testing.assert_close(ours / size, exact / size, **HALF)


@condition("GradScaler")
def grad_scaler(method: str) -> None:
    """After `unscale_` the gradients are those without scaling; an overflow skips the step and lowers the scale."""
    model, balancer = Model(torch.float32), balance.create_balancer(method)
    (expected,) = after(method, [plain(1, torch.float32)], dtype=torch.float32)
    optimizer = torch.optim.SGD([*model.parameters(), *balancer.parameters()], lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scale = scaler.scale(torch.ones(()))
    balancer.backward(plain(1, torch.float32)(model), shared_of(model), scale=scale)
    scaler.unscale_(optimizer)
    assert_steps_equal([all_gradients(model)], [expected[:-1]], rtol=1e-4, atol=1e-6)
    scaler.step(optimizer)
    scaler.update()
    before = deepcopy(model.state_dict())
    optimizer.zero_grad()
    losses = plain(2, torch.float32)(model)
    balancer.backward(losses | {"b": losses["b"] * float("inf")}, shared_of(model), scale=scale)
    scaler.step(optimizer)
    scaler.update()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert scaler.get_scale() == 512.0


@pytest.fixture(scope="module")
def compiled() -> Model:
    model = Model()
    model.compiled = torch.compile(model.encoder, fullgraph=True, backend="aot_eager")
    return model


@condition("compile")
@functorch_config.patch(donated_buffer=False)  # as the error for K backwards says
def compiled_encoder(method: str, compiled: Model) -> None:
    expected = after(method, [plain(1), plain(2)])
    balancer = balance.create_balancer(method)
    found = []
    for seed in (1, 2):
        compiled.zero_grad()
        x = inputs(seed=seed)
        log = balancer.backward(losses_of(compiled, x, compiled.compiled(x)), shared_of(compiled))
        found.append([*all_gradients(compiled), log["weights"]])
        balancer.after_step(lambda: losses_of(compiled, inputs()))
    assert_steps_equal(found, expected)


@condition("accumulation")
def accumulation(method: str) -> None:
    """Three micro-batches, twice, equal two batches; one of them has no label for task b."""
    results = []
    for parts in (1, 3):
        model, balancer = Model(), balance.create_balancer(method)
        left = []
        for seed in (1, 2):
            model.zero_grad()
            pieces = [losses_of(model, part) for part in inputs(n=9, seed=seed).chunk(3)]
            pieces[1]["b"] = pieces[1]["b"] * 0
            if parts == 1:
                pieces = [{name: sum(piece[name] for piece in pieces) for name in "abc"}]
            for number, piece in enumerate(pieces):
                log = balancer.backward(piece, shared_of(model), last=number + 1 == len(pieces))
            left.append([*all_gradients(model), log["weights"]])
            balancer.after_step(lambda model=model: losses_of(model, inputs()))
        results.append(left)
    if (method, "accumulation") in EXCEPTIONS:
        assert not torch.allclose(results[0][0][-1], results[1][0][-1])
        assert_steps_equal([results[1][0][12:-1]], [results[0][0][12:-1]])  # its heads are plain
        return
    assert_steps_equal(results[1], results[0], rtol=1e-7, atol=1e-11)


@condition("checkpointing")
def checkpointing(method: str) -> None:
    expected = after(method, [plain(1), plain(2)])
    for use_reentrant in (False, True):

        def recomputed(seed: int, use_reentrant: bool = use_reentrant) -> Callable[[Model], dict[str, Tensor]]:
            def losses(model: Model) -> dict[str, Tensor]:
                x = inputs(seed=seed).requires_grad_()
                return losses_of(model, x, checkpoint(model.encoder, x, use_reentrant=use_reentrant))

            return losses

        if (method, "checkpointing") in EXCEPTIONS and use_reentrant:
            with pytest.raises(RuntimeError, match="use_reentrant"):
                after(method, [recomputed(1)])
            continue
        assert_steps_equal(after(method, [recomputed(1), recomputed(2)]), expected)


@condition("frozen")
def frozen(method: str) -> None:
    """Frozen and unused parameters keep None, so that no optimizer decays them; the rest is as if they did not exist.
    Unfrozen parameters take part again."""
    model, balancer = Model(), balance.create_balancer(method)
    model.encoder[0].requires_grad_(False)
    log = balancer.backward(losses_of(model, inputs()), shared_of(model))
    assert all(p.grad is None for p in [*model.encoder[0].parameters(), *model.unused.parameters()])
    other, alone = Model(), balance.create_balancer(method)
    other.encoder[0].requires_grad_(False)
    expected = alone.backward(losses_of(other, inputs()), [*other.unused.parameters(), *other.encoder[2].parameters()])
    torch.testing.assert_close(log["weights"], expected["weights"])
    assert_steps_equal([all_gradients(model)], [all_gradients(other)])
    balancer.after_step(lambda: losses_of(model, inputs()))
    model.encoder[0].requires_grad_(True)
    balancer.backward(losses_of(model, inputs(seed=2)), shared_of(model))
    assert all(p.grad.isfinite().all() and (p.grad != 0).any() for p in model.encoder[0].parameters())


@condition("missing task")
def missing_task(method: str) -> None:
    """A task without labels has weight 0 and its head gets 0; the others are balanced as if it did not exist, except
    for the random weights of three tasks (RLW) and a start that counts three (MoCo)."""

    def without_b(model: Model) -> dict[str, Tensor]:
        losses = losses_of(model, inputs())
        return losses | {"b": losses["b"] * 0}

    (found,) = after(method, [without_b], active=torch.tensor([True, False, True]))
    model = Model()
    log = balance.create_balancer(method).backward(
        {name: loss for name, loss in losses_of(model, inputs()).items() if name != "b"}, shared_of(model)
    )
    assert found[-1][1] == 0
    names = [name for name, _ in model.named_parameters()]
    for name, ours, two in zip(names, found[:-1], all_gradients(model), strict=True):
        if name.startswith("heads.b"):
            assert (ours == 0).all()
        elif name.startswith("unused"):
            assert ours is None
        elif method not in ("rlw", "moco"):
            torch.testing.assert_close(ours, two, rtol=1e-7, atol=1e-11)
        else:
            assert ours.isfinite().all()
    if method not in ("rlw", "moco"):
        torch.testing.assert_close(found[-1][[0, 2]], log["weights"], rtol=1e-7, atol=1e-11)


@condition("CUDA graph")
def cuda_graph(method: str) -> None:
    """Two replays, each on other inputs, equal two steps."""
    model, balancer = Model(torch.float32).cuda(), balance.create_balancer(method)
    twin, alone = deepcopy(model), balance.create_balancer(method)
    x = inputs(torch.float32).cuda()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):  # compiles, and lays the arena
            model.zero_grad()
            balancer.backward(losses_of(model, x), model.encoder.parameters())
    torch.cuda.current_stream().wait_stream(side)
    for _ in range(3):
        alone.backward(losses_of(twin, x), twin.encoder.parameters())
    model.zero_grad()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        balancer.backward(losses_of(model, x), model.encoder.parameters())
    for seed in (5, 6):
        x.copy_(inputs(torch.float32, seed=seed))
        graph.replay()
        twin.zero_grad()
        alone.backward(losses_of(twin, x), twin.encoder.parameters())
        assert_steps_equal([all_gradients(model)], [all_gradients(twin)], rtol=1e-4, atol=1e-6)


def cells() -> list:
    gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")]
    return [
        pytest.param(method, name, id=f"{method}-{name.replace(' ', '_')}", marks=gpu if name == "CUDA graph" else ())
        for name in CONDITIONS
        for method in METHODS
    ]


@pytest.mark.parametrize(("method", "name"), cells())
def test_matrix(method, name, request):
    if name == "compile":
        CONDITIONS[name](method, request.getfixturevalue("compiled"))
    else:
        CONDITIONS[name](method)


def table() -> str:
    """As docs/balancing.md has it. "2 ranks" is test_balance_ranks.py::test_equals_one_process, "CUDA graph"
    test_balance_capture.py::test_replays_are_steps."""
    columns = [*[*CONDITIONS][:-1], "2 ranks", "CUDA graph"]
    notes = list(dict.fromkeys(EXCEPTIONS.values()))
    lines = ["| method | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for method in METHODS:
        row = []
        for name in columns:
            mark = "replay" if name == "CUDA graph" else "yes"
            note = EXCEPTIONS.get((method, name))
            row.append(mark if note is None else f"({notes.index(note) + 1})")
        lines.append(f"| `{method}` | " + " | ".join(row) + " |")
    return "\n".join([*lines, "", *(f"{number}. {note}" for number, note in enumerate(notes, 1))])


def test_the_docs_show_this_table():
    assert table() in PAGE.read_text(encoding="utf-8"), (
        "run python tests/balance/test_balance_table.py and paste what it prints"
    )


if __name__ == "__main__":
    print(table())
