"""The contract of every op on every backend: one suite over the registry in `helpers.op_specs`."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import op_table
from helpers.asserts import assert_bit_equal, assert_within_budget
from helpers.inputs import LAYOUTS, generator, layout
from helpers.op_backends import device_of, dirty_memory, needs_cpp
from helpers.op_specs import ELSEWHERE, SPECS, Call, OpSpec
from helpers.paths import ROOT
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from fastmtl import ops
from fastmtl.ops.core.backends import BackendError, interpreting, missing

pytestmark = [
    *dirty_memory,
    # torch prepares its forward-mode formulas with a function it has deprecated.
    pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning"),
]


def over(chosen: Callable[[OpSpec], bool] = lambda spec: True) -> pytest.MarkDecorator:
    specs = [spec for spec in SPECS if chosen(spec)]
    return pytest.mark.parametrize("spec", specs, ids=lambda spec: spec.name)


def with_kernels(chosen: Callable[[OpSpec], bool] = lambda spec: True) -> pytest.MarkDecorator:
    pairs = [(spec, backend) for spec in SPECS if chosen(spec) for backend in spec.kernels]
    marks = {b: pytest.mark.skipif(missing(b) is not None, reason=str(missing(b))) for b in ("cpp", "triton")}
    return pytest.mark.parametrize(
        ("spec", "backend"), [pytest.param(s, b, marks=marks[b], id=f"{s.name}-{b}") for s, b in pairs]
    )


def differentiable(spec: OpSpec) -> bool:
    return spec.differentiable


def cases(spec: OpSpec, call: Call) -> list[dict[str, Any]]:
    first = call.inputs[0] if call.inputs else next(iter(call.rest.values()))
    found = [dict(case(first.shape[1])) for case in spec.cases]
    for options in found:
        if isinstance(options.get("mask"), str):
            options["mask"] = torch.rand(call.rest["target"].shape, generator=generator(3)) < 0.67
    return found


def outputs(spec: OpSpec, inputs: tuple[Tensor, ...], rest: dict[str, Any]) -> tuple[Tensor, ...]:
    found = spec.function(*inputs, **rest)
    return (found,) if isinstance(found, Tensor) else tuple(found)


def total(spec: OpSpec, inputs: tuple[Tensor, ...], rest: dict[str, Any]) -> Tensor:
    """A scalar in which every output has a different weight."""
    flat = torch.cat([part.flatten() for part in outputs(spec, inputs, rest)])
    return (flat * torch.linspace(0.5, 1.5, flat.numel(), dtype=flat.dtype, device=flat.device)).sum()


def run(spec: OpSpec, call: Call, **options: Any) -> tuple[Tensor, ...]:
    """All outputs, and the gradients of their weighted sum; the inputs keep their strides."""
    rest = call.rest | options
    leaves = tuple(x.detach().clone(memory_format=torch.preserve_format).requires_grad_() for x in call.inputs)
    found = outputs(spec, leaves, rest)
    if not spec.differentiable:
        return found
    gradients = torch.autograd.grad(total(spec, leaves, rest), leaves)
    for leaf, gradient in zip(leaves, gradients, strict=True):
        assert (gradient.dtype, gradient.shape) == (leaf.dtype, leaf.shape)
    return *(part.detach() for part in found), *gradients


def to(call: Any, target: torch.dtype | str) -> Any:
    """`call` with its floating tensors in another dtype, or with all tensors on another device."""

    def move(value: Any) -> Any:
        moves = isinstance(value, Tensor) and (isinstance(target, str) or value.is_floating_point())
        return value.to(target) if moves else value

    return tree_map(move, call)


def assert_near(found: tuple[Tensor, ...], exact: tuple[Tensor, ...], tolerance: float) -> None:
    """Close relative to the largest number, with NaN at the same places."""
    for a, b in zip(found, exact, strict=True):
        scale = b.double().abs().max().clamp(min=1e-30).cpu()
        torch.testing.assert_close(a.cpu().double() / scale, b.cpu().double() / scale, rtol=0, atol=tolerance)


@with_kernels()
def test_kernels_equal_float64(spec, backend):
    call = spec.make(spec.small, torch.float32, 0)
    for options in cases(spec, call):
        found = run(spec, to(call, device_of(backend)), backend=backend, **to(options, device_of(backend)))
        exact = run(spec, to(call, torch.float64), backend="reference", **to(options, torch.float64))
        assert_near(found, exact, spec.tolerance)


@needs_cpp
@over(lambda spec: "cpp" in spec.kernels)
def test_several_chunks_give_the_same_bits_whatever_the_threads(spec, two_threads):
    call, runs = spec.make(spec.large, torch.float32, 0), []
    for threads in (2, 1, 2, 7):
        torch.set_num_threads(threads)
        runs.append(run(spec, call, backend="cpp"))
    if spec.maps:
        moved = Call(tuple(layout(x, "misaligned") for x in call.inputs), call.rest)
        runs.append(run(spec, moved, backend="cpp"))
    assert_bit_equal(runs)
    if spec.stem != "assignment":
        assert_near(runs[0], run(spec, to(call, torch.float64), backend="reference"), 2 * spec.tolerance)


@with_kernels(lambda spec: spec.naive is not None)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_error_is_within_the_naive_formulas(spec, backend, dtype):
    if (
        backend == "triton"
        and dtype == torch.bfloat16
        and interpreting()
        and spec.stem in ("regression", "cross_entropy")
    ):
        pytest.skip("the interpreter truncates bfloat16, compiled code rounds")
    call = spec.make((2, 3, 40, 40), dtype, 1)
    target = call.rest["target"]
    exact = run(spec, to(call, torch.float64), backend="reference")
    leaf = call.inputs[0].clone().requires_grad_()
    value = spec.naive(leaf, target)
    naive = value.detach(), *torch.autograd.grad(value, leaf)
    found = run(spec, to(call, device_of(backend)), backend=backend)
    for ours, plain, true in zip(found, naive, (exact[0], 2 * exact[1]), strict=True):
        scale = true.abs().max()
        ours = ours.cpu() if ours.dim() == 0 else 2 * ours.cpu()  # the weight of a single output is 0.5
        assert_within_budget(ours / scale, plain / scale, true / scale, dtype)


@over(differentiable)
def test_gradients_by_finite_differences(spec):
    """For the definition, which runs in float64, and the kernels that accept float64."""
    call = spec.make(spec.tiny, torch.float64, 0)
    leaves = tuple((x / 2).requires_grad_() for x in call.inputs)
    for number, options in enumerate(cases(spec, call)):
        rest = call.rest | to(options, torch.float64)

        def loss(*inputs: Tensor, rest: dict[str, Any] = rest) -> Tensor:
            return total(spec, inputs, rest)

        assert torch.autograd.gradcheck(loss, leaves)
        if number < 2 and leaves[0].numel() < 60:
            assert torch.autograd.gradgradcheck(loss, leaves)


@over(lambda spec: spec.differentiable and spec.forward)
def test_forward_mode(spec):
    """Directional derivatives in every API, and one product with the Hessian."""
    call = spec.make(spec.small, torch.float64, 0)
    x, others = call.inputs[0], call.inputs[1:]
    tangent = torch.randn(x.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def loss(x: Tensor) -> Tensor:
        return total(spec, (x, *others), call.rest)

    (gradient,) = torch.autograd.grad(loss(leaf := x.clone().requires_grad_()), leaf)
    expected = (gradient * tangent).sum()
    torch.testing.assert_close(torch.func.jvp(loss, (x,), (tangent,))[1], expected)
    for primal in (x, x.clone().requires_grad_()):
        with forward_ad.dual_level():
            found = forward_ad.unpack_dual(loss(forward_ad.make_dual(primal, tangent))).tangent
        torch.testing.assert_close(found, expected)
    found = torch.func.jvp(torch.func.grad(loss), (x,), (tangent,))[1]
    torch.testing.assert_close(found, torch.autograd.functional.hvp(loss, x, tangent)[1])


@over(lambda spec: spec.differentiable and bool(spec.kernels) and spec.stem != "points")  # linear in the maps
def test_double_backward_on_kernels(spec):
    call = spec.make(spec.small, torch.float32, 0)

    def penalty(call: Call, backend: str) -> tuple[Tensor, ...]:
        leaves = tuple(x.clone().requires_grad_() for x in call.inputs)
        gradients = torch.autograd.grad(
            total(spec, leaves, call.rest | {"backend": backend}), leaves, create_graph=True
        )
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        summed = (flat * torch.linspace(-1, 1, flat.numel(), dtype=flat.dtype)).sum()
        return torch.autograd.grad(summed, leaves, allow_unused=True, materialize_grads=True)

    assert_near(penalty(call, "auto"), penalty(to(call, torch.float64), "reference"), 2e-4)


class _Recorder(TorchDispatchMode):
    """Records each call of a fastmtl op, with copies of its tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: dict[str, tuple[Any, tuple[Any, ...]]] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.name()
        if name.startswith("fastmtl::") and name not in self.calls:

            def copy(value: Any) -> Any:
                if not isinstance(value, Tensor):
                    return value
                return value.detach().clone(memory_format=torch.preserve_format).requires_grad_(value.requires_grad)

            self.calls[name] = func, tree_map(copy, args)
        return func(*args, **(kwargs or {}))


@pytest.mark.long
@over(lambda spec: bool(spec.kernels))
def test_opcheck(spec):
    """Each registered op that a call and its backward reach: schema, fake kernel, autograd, symbolic sizes."""
    call = spec.make(spec.small, torch.float32, 0)
    recorder, options = _Recorder(), cases(spec, call)[-1]
    with recorder:
        run(spec, Call(tuple(layout(x, "channels_last") for x in call.inputs), call.rest), **options)
    assert recorder.calls
    for name, (op, arguments) in recorder.calls.items():
        if name.endswith("_backward"):
            arguments[0].requires_grad_()
        torch.library.opcheck(op, arguments)


@over()
@pytest.mark.parametrize("dynamic", [pytest.param(False, marks=pytest.mark.slow), True])
def test_compiles_in_one_graph(spec, dynamic):
    torch._dynamo.reset()
    call = spec.make(spec.small, torch.float32, 0)
    options = cases(spec, call)[-1] if dynamic else {}

    def doubled(*inputs: Tensor) -> Any:
        return spec.function(*[2 * x for x in inputs], **call.rest, **options)

    compiled = torch.compile(doubled, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    plain = Call(tuple(2 * x for x in call.inputs), call.rest)
    leaves = tuple(x.clone().requires_grad_() for x in call.inputs)
    found = compiled(*leaves)
    found = (found,) if isinstance(found, Tensor) else tuple(found)
    expected = run(spec, plain, **options)
    torch.testing.assert_close(tuple(part.detach() for part in found), expected[: len(found)])
    if spec.differentiable:
        flat = torch.cat([part.flatten() for part in found])
        weights = torch.linspace(0.5, 1.5, flat.numel(), dtype=flat.dtype)
        gradients = torch.autograd.grad((flat * weights).sum(), leaves)
        torch.testing.assert_close(gradients, tuple(2 * g for g in expected[len(found) :]))


@over(lambda spec: spec.batched)
def test_vmap_over_tasks(spec):
    tasks = [spec.make(spec.small, torch.float32, seed) for seed in range(3)]
    inputs = tuple(torch.stack(parts, 1) for parts in zip(*(task.inputs for task in tasks), strict=True))
    names = [name for name, value in tasks[0].rest.items() if isinstance(value, Tensor)]
    stacked = tuple(torch.stack([task.rest[name] for task in tasks]) for name in names)
    for options in cases(spec, tasks[0]):

        def one(*tensors: Tensor, options: dict[str, Any] = options) -> tuple[Tensor, ...]:
            rest = tasks[0].rest | dict(zip(names, tensors[len(inputs) :], strict=True)) | options
            return outputs(spec, tensors[: len(inputs)], rest)

        expected = [one(*task.inputs, *(task.rest[name] for name in names)) for task in tasks]
        found = torch.vmap(one, in_dims=(1,) * len(inputs) + (0,) * len(stacked))(*inputs, *stacked)
        torch.testing.assert_close(found, tuple(map(torch.stack, zip(*expected, strict=True))))


@over(lambda spec: spec.differentiable and spec.batched)
def test_vmap_of_the_backward(spec):
    """One gradient per output in one call, as gradient surgery needs them."""
    call = spec.make(spec.small, torch.float32, 0)
    leaves = tuple(x.requires_grad_() for x in call.inputs)
    for options in cases(spec, call):
        loss = next(part for part in outputs(spec, leaves, call.rest | options) if part.requires_grad)
        loss = loss.flatten()[:3]
        rows = torch.eye(loss.numel())
        together = torch.autograd.grad(loss, leaves, rows, is_grads_batched=True, retain_graph=True)
        alone = [torch.autograd.grad(loss, leaves, row, retain_graph=True) for row in rows]
        torch.testing.assert_close(together, tuple(map(torch.stack, zip(*alone, strict=True))), rtol=1e-4, atol=1e-6)


@with_kernels(lambda spec: spec.maps)
def test_layouts(spec, backend):
    call = to(spec.make(spec.small, torch.float32, 0), device_of(backend))

    def laid(value: Tensor, name: str) -> Tensor:
        lead = value.dim() == call.inputs[0].dim() - 1  # class numbers
        return layout(value.unsqueeze(1), name).squeeze(1) if lead else layout(value, name)

    names = [name for name in call.rest if name in ("target", "targets", "coordinates")]
    for name in LAYOUTS:
        inputs = tuple(laid(x, name) for x in call.inputs)
        rest = call.rest | {key: laid(call.rest[key], name) for key in names}
        same = Call(tuple(x.contiguous() for x in inputs), rest | {key: rest[key].contiguous() for key in names})
        found = run(spec, Call(inputs, rest), backend=backend)
        assert_near(found, run(spec, same, backend=backend), 2e-6)
        if name == "channels_last" and spec.stem != "points":
            assert found[-1].is_contiguous(memory_format=torch.channels_last)


@over(lambda spec: spec.batches)
@pytest.mark.parametrize("backend", ["reference", "cpp", "triton"])
def test_masked_samples_take_part_in_nothing(spec, backend):
    if reason := missing(backend):
        pytest.skip(reason)
    device = device_of(backend)
    call = to(spec.make(spec.small, torch.float32, 0), device)
    valid, off = to((torch.tensor([True, False]), torch.zeros(2, dtype=torch.bool)), device)

    def spoil(value: Any) -> Any:
        value = value.clone()
        value[1] = float("nan") if value.is_floating_point() else 77
        return value

    dirty = Call(tuple(map(spoil, call.inputs)), {name: spoil(value) for name, value in call.rest.items()})
    for options in cases(spec, call):
        options = to(options, device) | {"backend": backend}
        clean = run(spec, call, **options | {"mask": valid})
        assert_bit_equal([clean, run(spec, dirty, **options | {"mask": valid})])
        assert all(part.isfinite().all() for part in clean)
        assert all((gradient[1] == 0).all() for gradient in clean[-len(call.inputs) :])
        assert all((part == 0).all() for part in run(spec, dirty, **options | {"mask": off}))


@over(lambda spec: spec.kept is not None)
def test_backward_keeps_the_arguments_and_little_else(spec):
    call = spec.make(spec.small, torch.float32, 0)
    leaves = tuple(x.requires_grad_() for x in call.inputs)
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        outputs(spec, leaves, call.rest)
    given = {t.data_ptr() for t in (*leaves, *(v for v in call.rest.values() if isinstance(v, Tensor)))}
    extra = {t.data_ptr(): t.numel() for t in saved if t is not None and t.data_ptr() not in given}
    assert sum(extra.values()) <= spec.kept


@over()
def test_bad_arguments_are_named(spec):
    call = spec.make(spec.small, torch.float32, 0)
    name = spec.argument.replace("[", r"\[").replace("]", r"\]")

    def first(value: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if call.inputs:
            return (value, *call.inputs[1:]), call.rest
        return (), call.rest | {spec.argument: value}

    given: Any = call.inputs[0] if call.inputs else call.rest[spec.argument]
    empty_is_fine = spec.stem == "assignment"
    for value in (given.long(), given[0], *([] if empty_is_fine else [given[:0]])):
        inputs, rest = first(value)
        with pytest.raises(ValueError, match=f"`{name}`|`targets?` must"):
            spec.function(*inputs, **rest)
    if spec.argument != "G":
        inputs, rest = first(None)
        with pytest.raises(TypeError, match=f"`{name}` must be a [tT]ensor"):
            spec.function(*inputs, **rest)
    for key, value in call.rest.items():
        if isinstance(value, Tensor) and key != spec.argument:
            with pytest.raises(ValueError, match=f"`{key}` must be on "):
                spec.function(*call.inputs, **call.rest | {key: value.to("meta")})
    if spec.kernels:
        with pytest.raises(ValueError, match=r"`backend` must be one of .*; got 'gpu'"):
            spec.function(*call.inputs, **call.rest, backend="gpu")
        with pytest.raises(BackendError, match="no backend 'numba'"):
            spec.function(*call.inputs, **call.rest, backend="numba")
    if spec.batches:
        for option, bad in (("mask", torch.ones(2)), ("mask", torch.ones(5).bool()), ("mask", [True])):
            with pytest.raises((TypeError, ValueError), match=f"`{option}` must be "):
                spec.function(*call.inputs, **call.rest, **{option: bad})
        target = call.rest["target"].float().requires_grad_()
        with pytest.raises(ValueError, match=r"`target` (gets no gradient|must be)"):
            spec.function(*call.inputs, **call.rest | {"target": target})


@pytest.mark.slow
@needs_cpp
@pytest.mark.parametrize("isa", ["baseline", "avx2"])  # the best one is in all other tests
def test_every_instruction_set(isa):
    """All ops in one process, because the choice happens once, at load."""
    names = "kernels_equal or several_chunks or naive or extreme or confident or the_same_queries"
    files = [
        str(ROOT / "tests" / "ops" / f"test_{name}.py") for name in ("contract", "dice_bce", "focal", "assignment")
    ]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *files]
    chosen = ["-k", f"({names}) and not triton and not reference"]
    subprocess.run([*command, *chosen], env=os.environ | {"FASTMTL_ISA": isa}, check=True, timeout=600, cwd=ROOT)


def test_every_public_op_has_a_contract():
    public = {name for name in vars(ops) if not name.startswith("_") and name[0].islower()}
    public = {name for name in public if callable(getattr(ops, name)) or name == "fused_step"}
    assert public == {spec.name.split()[0] for spec in SPECS} | set(ELSEWHERE)
    for path in ELSEWHERE.values():
        assert (ROOT / path).is_file()


def test_contributing_lists_the_files_of_every_op():
    assert op_table.parts()[1] == op_table.table(), "run: PYTHONPATH=tests python -m helpers.op_table"
