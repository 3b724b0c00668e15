"""Counts the steps that were skipped because a loss or gradient was not finite, or a loss was a spike, without waiting
for the device, and decides what follows (`TrainingConfig.on_nonfinite`)."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from math import isfinite
from pathlib import Path

import torch
from torch import Tensor

from ..config import TrainingConfig
from ..protocols import Batch
from ..utils.words import counted
from .bad_batches import RecordedStep, SkippedStep, write_batches
from .errors import NonFiniteError

_MOST_STEPS = 256  # between two calls of `judge`
_IN_A_ROW = 10  # skipped steps in a row after which the training counts as diverged
_KEPT_BYTES = 256 << 20  # of the latest batches, kept in case they must be written


class GoBack(Exception):
    """The training must continue from its last checkpoint; the message says why."""


class SkippedSteps:
    """The losses of the steps that have not been judged, on the device, and the verdict on them.

    Whether a loss is finite is the same on all ranks, so that all ranks come to the same verdict.

    Args:
        config: `log_every`, `on_nonfinite`, `max_skipped`, `max_restores`, `spike_factor`.
        tasks: their names.
        device: of the losses.
        scaled: whether a GradScaler is used, which finds its scale by infinite gradients: then only losses count.
        folder: of the batches whose steps were skipped, the same on all ranks; None writes none.
        rank: of this process.

    Attributes:
        in_epoch: steps of this epoch that were skipped or passed over.
        restores: how often the training went back to a checkpoint.
    """

    def __init__(
        self,
        config: TrainingConfig,
        tasks: Sequence[str],
        device: torch.device,
        *,
        scaled: bool = False,
        folder: Path | None = None,
        rank: int = 0,
    ) -> None:
        self._config, self._tasks, self._scaled, self._folder, self._rank = config, list(tasks), scaled, folder, rank
        rows = min(config.log_every, _MOST_STEPS)
        # losses, spikes, skipped
        self._rows = torch.zeros(rows, 2 * len(self._tasks) + 1, dtype=torch.float64, device=device)
        self._recent: deque[RecordedStep] = deque(maxlen=rows)
        self._next = 0  # row of the next step
        self._passed: set[int] = set()
        self._in_a_row = 0
        self.in_epoch = self.restores = 0

    def add(self, step: int, losses: Tensor, skipped: Tensor, batch: Batch, spikes: Tensor | None = None) -> Tensor:
        """Record a step (counted from 1) with its losses [K] float64, and bool [K] which of them are spikes; returns
        whether it counts as skipped, on the device. The host does not wait."""
        spikes = torch.zeros_like(losses) if spikes is None else spikes.double()
        self._rows[self._next].copy_(torch.cat([losses, spikes, skipped.reshape(1).double()]))
        self._recent.append(RecordedStep(step, self._next, batch.ids, _size(batch), batch))
        self._next = (self._next + 1) % len(self._rows)
        self._drop_batches()
        unsound = ~losses.isfinite().all() | spikes.any()
        return unsound if self._scaled else unsound | skipped.reshape(())

    @property
    def full(self) -> bool:
        """Whether `judge` must be called before the next step."""
        return len(self._recent) == len(self._rows)

    def clear(self) -> None:
        """Forget the steps that have not been judged."""
        self._recent.clear()

    def passes_over(self, step: int) -> bool:
        """Whether `step` was skipped before the training went back, so that its batch must not be trained on again."""
        if step not in self._passed:
            return False
        self.in_epoch += 1
        return True

    def judge(self, epoch: int, num_batches: int) -> None:
        """Judge the steps since the last call, if there are any; waits for the device.

        Args:
            epoch: from 0.
            num_batches: of an epoch.

        Raises:
            GoBack: the training must go back to its last checkpoint.
            NonFiniteError: it cannot continue.
        """
        if not self._recent:
            return
        last = self._recent[-1].step
        bad, longest = self._read()
        if not bad:
            return
        self.in_epoch += len(bad)
        files = write_batches(self._folder, bad, epoch, self._rank)
        message = _sentence(bad, last, epoch, self._config.spike_factor) + (f" Look at {files}." if files else "")
        policy, most = self._config.on_nonfinite, self._config.max_restores
        if policy == "restore" and self.restores < most:
            self.restores += 1
            self._passed |= {one.recorded.step for one in bad}
            raise GoBack(f"{message} Restore {self.restores} of {most}.")
        if policy == "restore":
            message += f" The training went back to a checkpoint {counted(most, 'time')} (training.max_restores)."
        elif policy == "skip":
            limit = max(1.0, self._config.max_skipped * num_batches)
            if longest < _IN_A_ROW and self.in_epoch <= limit:
                return
            message += (
                f" Of this epoch's {counted(num_batches, 'step')} {self.in_epoch} were skipped, up to {longest} in a "
                f"row; training.max_skipped = {self._config.max_skipped:g} allows {limit:.0f}, and fewer than "
                f"{_IN_A_ROW} in a row."
            )
        raise NonFiniteError(f"{message} Lower optimizer.lr, set training.clip_norm, or look for broken targets.")

    def close_epoch(self) -> None:
        """Start counting another epoch."""
        self.in_epoch = 0

    def state_dict(self) -> dict[str, int]:
        """Counts that belong to a checkpoint; `judge` was called after the last step."""
        return {"in_epoch": self.in_epoch, "in_a_row": self._in_a_row, "restores": self.restores}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue from a `state_dict`; {} of an older version counts from 0. The number of restores never falls."""
        self.clear()
        self.in_epoch, self._in_a_row = state.get("in_epoch", 0), state.get("in_a_row", 0)
        self.restores = max(self.restores, state.get("restores", 0))

    def _read(self) -> tuple[list[SkippedStep], int]:
        """The skipped steps among those to judge, and the longest run of them."""
        rows, found, longest, count = self._rows.tolist(), [], 0, len(self._tasks)
        for one in self._recent:
            *values, skipped = rows[one.row]
            losses = dict(zip(self._tasks, values[:count], strict=True))
            spikes = [name for name, spike in zip(self._tasks, values[count:], strict=True) if spike]
            if all(map(isfinite, values)) and not spikes and (self._scaled or not skipped):
                self._in_a_row = 0
            else:
                self._in_a_row += 1
                longest = max(longest, self._in_a_row)
                found.append(SkippedStep(one, losses, spikes))
        self._recent.clear()
        return found, longest

    def _drop_batches(self) -> None:
        """Drop the oldest batches until the others fit; the newest stays."""
        total = sum(one.size for one in self._recent if one.batch is not None)
        for one in self._recent:
            if total <= _KEPT_BYTES or one is self._recent[-1]:
                return
            if one.batch is not None:
                total, one.batch = total - one.size, None


def _sentence(bad: Sequence[SkippedStep], last: int, epoch: int, factor: float) -> str:
    names = list(dict.fromkeys(name for one in bad for name in one.not_finite))
    spikes = list(dict.fromkeys(name for one in bad for name in one.spikes))
    said = [f"the loss of {_tasks(names)} was NaN or infinite"] if names else []
    if spikes:
        said.append(f"the loss of {_tasks(spikes)} was above {factor:g} times its running median")
    if any(not one.not_finite and not one.spikes for one in bad):
        said.append("the gradient was NaN or infinite")
    return (
        f"{', and '.join(said)} in {len(bad)} of the steps up to step {last} (epoch {epoch + 1}); those steps were "
        "skipped and the weights are finite."
    )


def _tasks(names: Sequence[str]) -> str:
    return " and of ".join(f"task {name!r}" for name in names)


def _size(batch: Batch) -> int:
    tensors = (batch.images, *batch.targets.values(), *batch.metadata.values())
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
