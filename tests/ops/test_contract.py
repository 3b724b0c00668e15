"""The contract of every op on every backend: one suite over the registry in `helpers.op_specs`."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest
import torch
from helpers import op_table
from helpers.asserts import assert_bit_equal, assert_within_budget
from helpers.classes import CLASS_DTYPES
from helpers.inputs import LAYOUTS, TARGET_DTYPES, generator, layout
from helpers.op_backends import BACKENDS, SLOW_TRITON, device_of, dirty_memory, needs_cpp, needs_interpreter
from helpers.op_contract import assert_near, cases, outputs, over, run, to, with_kernels
from helpers.op_inputs import Call
from helpers.op_specs import ELSEWHERE, SPECS
from helpers.paths import ROOT
from torch import Tensor

from fastmtl import ops
from fastmtl.ops.core.backends import BackendError, interpreting

pytestmark = dirty_memory


@with_kernels()
def test_kernels_equal_float64(spec, backend):
    call = spec.make(spec.small, torch.float32, 0)
    for options in cases(spec, call):
        found = run(spec, to(call, device_of(backend)), backend=backend, **to(options, device_of(backend)))
        exact = run(spec, to(call, torch.float64), backend="reference", **to(options, torch.float64))
        assert_near(found, exact, spec.tolerance)


@needs_interpreter
@over(lambda spec: "triton" in spec.kernels)
def test_programs_of_a_launch_are_independent(spec):
    """They keep to their tensors and to their own part of them, and give the same bits in any order."""
    from helpers.triton_checks import checked

    call = spec.make(spec.small, torch.float32, 0)
    first, *others = cases(spec, call)
    results = []
    for seed in (None, 1):
        with checked(seed):
            results.append(run(spec, call, backend="triton", **first))
    assert_bit_equal(results)
    for options in others:
        with checked():
            run(spec, call, backend="triton", **options)


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


@with_kernels(lambda spec: spec.maps, slow_triton=True)
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


@with_kernels(lambda spec: spec.batches, slow_triton=True)
def test_every_target_dtype(spec, backend):
    """Together with every dtype of the logits: a kernel is compiled for each pair."""
    logits = (torch.float32, torch.bfloat16, torch.float16)
    dtypes = CLASS_DTYPES if spec.of_classes else TARGET_DTYPES
    for number, dtype in enumerate(dtypes):
        for kind in logits if backend == "cpp" else (logits[number % 3],):  # the interpreter is slow
            call = spec.make(spec.small, kind, 0)
            target = call.rest["target"]
            target = target.to(dtype) / 2 if dtype.is_floating_point and not spec.of_classes else target.to(dtype)
            call = Call(call.inputs, call.rest | {"target": target})
            exact = run(spec, to(call, torch.float64), backend="reference")
            step = {torch.float16: 1e-3, torch.bfloat16: 8e-3}.get(kind, spec.tolerance)
            found = run(spec, to(call, device_of(backend)), backend=backend)
            assert_near(found[: -len(call.inputs)], exact[: -len(call.inputs)], spec.tolerance)
            assert_near(found[-len(call.inputs) :], exact[-len(call.inputs) :], step)


@over(lambda spec: spec.batches)
@pytest.mark.parametrize("backend", SLOW_TRITON)
@pytest.mark.parametrize("kind", ["sample", "pixel"])
def test_masked_elements_take_part_in_nothing(spec, backend, kind):
    device = device_of(backend)
    call = to(spec.make(spec.small, torch.float32, 0), device)
    target = call.rest["target"]
    valid = torch.rand(target.shape, generator=generator(3)) < 0.67 if kind == "pixel" else torch.tensor([True, False])
    valid = valid.to(device)
    wide = valid.view(-1, *(1,) * (target.dim() - 1)).expand_as(target) if kind == "sample" else valid

    def excluded(x: Tensor) -> Tensor:
        """Where x [B, C, *spatial] belongs to no valid element; of a smaller head only samples are known."""
        if x.shape == target.shape:
            return ~wide
        if x.shape[2:] == target.shape[1:]:
            return ~wide.unsqueeze(1).expand_as(x)
        seen = torch.ones_like(valid[:, None]) if kind == "pixel" else valid
        return ~seen.view(len(x), -1)[:, :1].view(-1, *(1,) * (x.dim() - 1)).expand_as(x)

    wrong = target.masked_fill(~wide, float("nan") if target.is_floating_point() else 77)
    dirty = Call(tuple(x.masked_fill(excluded(x), float("nan")) for x in call.inputs), call.rest | {"target": wrong})
    off = torch.zeros(2, dtype=torch.bool, device=device)
    for options in cases(spec, call):
        options = to(options, device) | {"backend": backend}
        clean = run(spec, call, **options | {"mask": valid})
        assert_bit_equal([clean, run(spec, dirty, **options | {"mask": valid})])
        assert all(part.isfinite().all() for part in clean)
        for x, gradient in zip(call.inputs, clean[-len(call.inputs) :], strict=True):
            assert (gradient[excluded(x)] == 0).all()
        assert all((part == 0).all() for part in run(spec, dirty, **options | {"mask": off}))


@over(lambda spec: spec.differentiable and (spec.batches or spec.stem == "nt_xent"))
def test_results_are_float32_or_better_and_recorded_only_on_request(spec):
    for given, found in ((torch.float32,) * 2, (torch.bfloat16, torch.float32), (torch.float64,) * 2):
        call = spec.make(spec.small, given, 0)
        for autocast in (False, True):
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
                parts = outputs(spec, call.inputs, call.rest)
            assert {part.dtype for part in parts} == {found}
            assert not any(part.requires_grad for part in parts)


@over(lambda spec: spec.batches and spec.of_classes)
@pytest.mark.parametrize("backend", BACKENDS)
def test_pixels_of_the_ignored_class_are_masked_ones(spec, backend):
    call = to(spec.make(spec.small, torch.float32, 0), device_of(backend))
    valid = (torch.rand(call.rest["target"].shape, generator=generator(4)) < 0.67).to(device_of(backend))
    ignored = Call(call.inputs, call.rest | {"target": torch.where(valid, call.rest["target"], 200)})
    for options in cases(spec, call)[:1] if backend == "triton" else cases(spec, call):  # the interpreter is slow
        options = to(options, device_of(backend)) | {"backend": backend}
        masked = run(spec, call, **options | {"mask": valid, "ignore_index": 200})
        assert_bit_equal([masked, run(spec, ignored, **options | {"mask": None, "ignore_index": 200})])


@over(lambda spec: spec.batches and spec.stem != "deep_supervision")
@pytest.mark.parametrize("backend", BACKENDS)
def test_nan_stays_in_its_segment(spec, backend):
    """In its sample where a softmax or a mean joins the channels."""
    call = to(spec.make(spec.small, torch.float32, 0), device_of(backend))
    x = call.inputs[0].clone()
    x[(1, 0, *(1,) * (x.dim() - 2))] = float("nan")
    for options in cases(spec, call):
        options = {key: value for key, value in options.items() if key not in ("mask", "ignore_index")}
        if spec.stem != "overlap" and options.get("reduction") not in ("none", "sample"):
            continue
        *found, gradient = run(spec, Call((x,), call.rest), **to(options, device_of(backend)), backend=backend)
        for part in (found[0], gradient):
            if spec.by_channel and part.dim() > 1:
                assert part.isnan().reshape(2, 3, -1).any(2).tolist() == [[False] * 3, [True, False, False]]
            else:
                assert part.isnan().reshape(2, -1).any(1).tolist() == [False, True]


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
