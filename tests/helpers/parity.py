"""Holding a loss to another library's: value, shape, gradient, warnings or the exception's type."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from fastmtl.utils.torchvision_guard import make_torchvision_importable

Loss = Callable[[Tensor, Tensor], Tensor]


def outcome(build: Callable[[], Loss], input: Tensor, target: Tensor) -> tuple[Any, bool]:
    """((loss, gradient) or the exception, whether a UserWarning was given); the losses are counted 1, 2, 3, ..."""
    with warnings.catch_warnings(record=True) as given:
        warnings.simplefilter("always")
        leaf = input.detach().clone().requires_grad_()
        try:
            value = build()(leaf, target.clone())
            counts = torch.arange(1, value.numel() + 1, dtype=value.dtype).view(value.shape)
            result: Any = (value.detach(), torch.autograd.grad(value, leaf, counts)[0])
        except Exception as error:
            result = error
    return result, any(issubclass(warning.category, UserWarning) for warning in given)


def assert_same(
    ours: Callable[[], Loss],
    theirs: Callable[[], Loss],
    input: Tensor,
    target: Tensor,
    *,
    their_target: Tensor | None = None,
    tolerance: float = 1e-9,
    check_warning: bool = True,
) -> None:
    """One of them raising means that the other raises the same type."""
    expected, they_warned = outcome(theirs, input, target if their_target is None else their_target)
    found, we_warned = outcome(ours, input, target)
    if isinstance(expected, Exception) or isinstance(found, Exception):
        assert type(found) is type(expected), f"ours: {found!r}, theirs: {expected!r}"
        return
    for a, b in zip(found, expected, strict=True):
        assert a.shape == b.shape
        torch.testing.assert_close(a, b.to(a.dtype), rtol=tolerance, atol=tolerance, equal_nan=True)
    if check_warning:
        assert we_warned == they_warned, "a UserWarning on one side alone"


@contextmanager
def about(case: object) -> Iterator[None]:
    """Name `case` where the block fails: one test has many."""
    try:
        yield
    except BaseException as error:
        error.add_note(f"case: {case}")
        raise


def signature(cls: type) -> dict[str, Any]:
    """Names and defaults of a constructor's arguments; classes by name."""
    parameters = inspect.signature(cls.__init__).parameters
    defaults = {name: parameter.default for name, parameter in parameters.items() if name != "self"}
    return {name: d.__name__ if isinstance(d, type) and d is not inspect.Parameter.empty else d
            for name, d in defaults.items()}  # fmt: skip


def transformers_mask2former() -> ModuleType:
    """transformers' module of Mask2Former; the test is skipped where it is not installed."""
    make_torchvision_importable()
    return pytest.importorskip("transformers.models.mask2former.modeling_mask2former", reason="no transformers")
