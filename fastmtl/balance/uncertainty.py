"""Weights that are learned with the model (uncertainty, IMTL-L; pass their parameters to the optimizer), and GLS."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from fastmtl.ops.core.constants import to_device

from .base import values
from .gramian import given_weights
from .loss_base import LossBalancer

_FORMS = ("regression", "classification")


class Learned(LossBalancer):
    """Base: one learned number per task. The parameter is empty until the first `backward`, which sets K and device."""

    def __init__(self, initial: float | Mapping[str, float] | Sequence[float]) -> None:
        super().__init__()
        self._initial = initial
        self._s = Parameter(torch.empty(0))

    def parameters(self) -> Iterable[Parameter]:
        """The learned numbers [K] float32: pass them to the optimizer, without weight decay."""
        return [self._s]

    def _learned(self, losses: Mapping[str, Tensor]) -> Tensor:
        device = next(iter(losses.values())).device
        if self._s.numel() == 0:
            ones = torch.ones(len(losses), dtype=torch.float64)
            if isinstance(self._initial, float | int):
                start = ones * self._initial
            else:
                start = given_weights(self._initial, losses, ones)
            # Assign the data, because the optimizer already holds this parameter.
            self._s.data = to_device(start.tolist(), device).float()
        elif self._s.device != device:
            self._s.data = self._s.data.to(device)
        return self._s.double()

    def state_dict(self) -> dict[str, Any]:
        """The tasks' names and the learned numbers."""
        return super().state_dict() | {"learned": self._s.detach().clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        learned = state["learned"].detach()
        # The optimizer would not notice another length: it updates as many numbers as its moments have.
        if learned.shape not in ((0,), (len(self._tasks or ()),)):
            raise ValueError(f"`state` must have a number for each of {self._tasks}; got {list(learned.shape)}.")
        self._s.data = learned.clone().to(self._s.device, torch.float32)


class Uncertainty(Learned):
    """Homoscedastic uncertainty of Kendall et al., CVPR 2018, with s = log sigma^2 learned for each task.

    A regression loss becomes exp(-s)/2 L + s/2 (equation 7), a classification loss exp(-s) L + s/2 (equation 10).
    LibMTL and TorchJD use the first form for every task. Pass `parameters()` to the optimizer.

    For a paper that learns s' = log sigma, s = 2 s': initial values 0, 0, 4 there are 0, 0, 8 here, so that its third
    task starts with the weight exp(-8)/2 = 1/5962. Steps differ too, unless `log="deviation"`.

    Args:
        forms: "regression" or "classification", one for all tasks, or task -> form, or one per task in order.
        initial: initial value, one for all tasks, by name or in order; LibMTL uses s = -0.5.
        log: "variance" learns s = log sigma^2 (the paper), "deviation" s' = log sigma: exp(-2 s')/2 L + s'.

    Raises:
        ValueError: a form or `log` is not one of these; at `backward`, the forms do not match the tasks.

    >>> parameter = torch.nn.Parameter(torch.ones(2))
    >>> balancer = Uncertainty(["regression", "classification"])
    >>> balancer.backward({"depth": parameter.sum(), "class": parameter.sum()})["weights"]
    tensor([0.5000, 1.0000], dtype=torch.float64)
    """

    def __init__(
        self,
        forms: str | Mapping[str, str] | Sequence[str] = "classification",
        *,
        initial: float | Mapping[str, float] | Sequence[float] = 0.0,
        log: str = "variance",
    ) -> None:
        given = [forms] if isinstance(forms, str) else list(forms.values()) if isinstance(forms, Mapping) else forms
        for form in given:
            if form not in _FORMS:
                raise ValueError(f"`forms` must be 'regression' or 'classification'; got {form!r}.")
        if log not in ("variance", "deviation"):
            raise ValueError(f"`log` must be 'variance' or 'deviation'; got {log!r}.")
        super().__init__(initial)
        self.forms, self.log = forms, log
        self._factors: Tensor | None = None  # [K]: 1/2 for a regression, 1 for a classification

    def __repr__(self) -> str:
        return f"Uncertainty(forms={self.forms!r}, initial={self._initial!r}, log={self.log!r})"

    def weights(self, G: Tensor | None, losses: Mapping[str, Tensor]) -> Tensor:
        """exp(-s), or exp(-s)/2 for regression, [K] float64 with a graph to s; G is not used."""
        s = self._learned(losses)
        if self._factors is None or self._factors.device != s.device:
            self._factors = to_device([0.5 if f == "regression" else 1.0 for f in self._each(losses)], s.device)
        return self._factors * (-s if self.log == "variance" else -2 * s).exp()

    def _each(self, losses: Mapping[str, Tensor]) -> list[str]:
        if isinstance(self.forms, str):
            return [self.forms] * len(losses)
        if isinstance(self.forms, Mapping):
            if set(self.forms) != set(losses):
                raise ValueError(f"`forms` must name the tasks {list(losses)}; got {list(self.forms)}.")
            return [self.forms[name] for name in losses]
        if len(self.forms) != len(losses):
            raise ValueError(f"`forms` must hold one form per task, {len(losses)}; got {len(self.forms)}.")
        return list(self.forms)

    def _regularizer(self, active: Tensor) -> Tensor:
        return torch.where(active, self._s.double() * (0.5 if self.log == "variance" else 1.0), 0.0).sum()


class IMTLL(Learned):
    """Impartial losses of Liu et al., ICLR 2021, equation 8: sum_k exp(s_k) L_k - s_k with s learned.

    At the minimum all weighted losses are 1. The losses must be positive. Pass `parameters()` to the optimizer.

    Args:
        initial: initial s, one for all tasks, by name or in order.
    """

    def __init__(self, initial: float | Mapping[str, float] | Sequence[float] = 0.0) -> None:
        super().__init__(initial)

    def __repr__(self) -> str:
        return f"IMTLL(initial={self._initial!r})"

    def weights(self, G: Tensor | None, losses: Mapping[str, Tensor]) -> Tensor:
        """exp(s), [K] float64 with a graph to s; G is not used."""
        return self._learned(losses).exp()

    def _regularizer(self, active: Tensor) -> Tensor:
        return -torch.where(active, self._s.double(), 0.0).sum()


class GLS(LossBalancer):
    """Geometric loss strategy of Chennupati et al., CVPR workshops 2019: the geometric mean of the losses.

    Its gradient is sum_k w_k grad L_k with w_k = (prod L)^(1/K) / (K L_k), over the K active tasks. It is computed with
    logarithms, because the product of small losses underflows. The losses must be positive. The mean is not linear in
    the losses, so the graphs of all micro-batches are kept until the last one, and micro-batches save no memory.

    >>> parameter = torch.nn.Parameter(torch.tensor([1.0, 4.0]))
    >>> GLS().backward({"a": parameter[0], "b": parameter[1]})["weights"]
    tensor([1.0000, 0.2500], dtype=torch.float64)
    """

    needs_all_losses = True

    def __repr__(self) -> str:
        return "GLS()"

    def weights(self, G: Tensor | None, losses: Mapping[str, Tensor]) -> Tensor:
        """[K] float64, 0 for tasks whose loss is 0, NaN if a loss is negative; G is not used."""
        found = values(losses)
        active = found != 0
        count = active.sum().clamp(min=1)
        logs = torch.where(active, found, 1.0).log()
        return torch.where(active, (logs.sum() / count - logs).exp() / count, 0.0)
