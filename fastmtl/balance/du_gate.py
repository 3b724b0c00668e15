"""Du et al.'s gate: an auxiliary gradient is used only if it agrees with the main task's gradient."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from .gradient_balancer import GradientBalancer
from .gramian import cosines, gramian, mask_inactive


class DuGate(GradientBalancer):
    """Du et al., Adapting Auxiliary Losses Using Gradient Similarity, 2018, equations 4 (weighted) and 5 (unweighted).

    The main task has weight 1. For every other task cos is the cosine of its gradient with the main task's, and the
    weight is 1 if cos >= 0 and 0 otherwise, or max(0, cos) if `weighted`. If the batch has no labels for the main task,
    all cosines are 0.

    Args:
        main: the main task's name, or its index in the losses.
        weighted: use max(0, cos) instead of 0 or 1.

    Raises:
        ValueError: at `backward`, there is no such task.

    >>> DuGate().weights(torch.tensor([[1.0, -1.0], [-1.0, 4.0]], dtype=torch.float64), {})
    tensor([1., 0.], dtype=torch.float64)
    """

    def __init__(self, main: str | int = 0, *, weighted: bool = False) -> None:
        super().__init__()
        self.main, self.weighted = main, weighted

    def __repr__(self) -> str:
        return f"DuGate(main={self.main!r}, weighted={self.weighted})"

    def weights(self, G: Tensor | None, losses: Mapping[str, Tensor]) -> Tensor:
        """w [K] float64, 0 for inactive tasks, from G [K, K] float64; `losses` gives the tasks' names."""
        C, _, active = cosines(G := gramian(G))
        main = place_of(self.main, list(losses) or [str(k) for k in range(len(G))])
        cosine = C[main]
        w = cosine.clamp(min=0) if self.weighted else (cosine >= 0).to(C.dtype)
        return mask_inactive(w, G, active)


def place_of(task: str | int, tasks: list[str]) -> int:
    """The index of `task` in `tasks`.

    Raises:
        ValueError: there is no such task.
    """
    if isinstance(task, int) and not isinstance(task, bool) and 0 <= task < len(tasks):
        return task
    if task not in tasks:
        raise ValueError(f"`main` must be one of the tasks {tasks} or its place, 0 to {len(tasks) - 1}; got {task!r}.")
    return tasks.index(task)
