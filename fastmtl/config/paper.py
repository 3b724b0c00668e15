"""The table [paper] of a recipe: the paper's figures that it reproduces."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class PaperConfig:
    """Which row of which table of a paper the recipe is, and the figures to reproduce."""

    key: str = ""
    """The paper's short name; its recipes are in a folder with this name."""
    title: str = ""
    """The paper's title."""
    formats: list[str] = field(default_factory=list[str])
    """Formats of the paper's data: names in `data.list_formats()`."""
    classes: list[str] = field(default_factory=list[str])
    """Class folders of the paper's data, which distinguish it from other data of the same format."""
    order: list[str] = field(default_factory=list[str])
    """The paper's rows in the order of its tables."""
    also: list[str] = field(default_factory=list[str])
    """More metrics to print, which the paper does not report."""
    curves: list[str] = field(default_factory=list[str])
    """Two-class tasks whose ROC curves the paper shows."""
    saliency: list[str] = field(default_factory=list[str])
    """Rows whose saliency maps the paper shows side by side, in its order."""
    feature_maps: list[str] = field(default_factory=list[str])
    """Rows whose feature maps the paper shows side by side."""
    table: str = ""
    """The paper's table that has the figures."""
    row: str = ""
    """The paper's name of the row."""
    figures: dict[str, float] = field(default_factory=dict[str, float])
    """Published values: TASK.METRIC as in summary.json, test.TASK.METRIC for the test set, or delta_m."""
    spreads: dict[str, float] = field(default_factory=dict[str, float])
    """Their published standard deviations, under the same names."""
    epochs: dict[str, list[float]] = field(default_factory=dict[str, list[float]])
    """Published training losses by epoch: task -> losses, from the first epoch."""
    epochs_fold: int = 0
    """The fold that they are of."""
    baselines: dict[str, float] = field(default_factory=dict[str, float])
    """Single-task values that delta_m compares with, under the same names."""
    baseline_rows: dict[str, str] = field(default_factory=dict[str, str])
    """The rows of these values, so that our rows are compared with our baselines."""
    cited: dict[str, dict[str, float]] = field(default_factory=dict[str, dict[str, float]])
    """Rows that the paper cites from others: name -> figures."""
    caption: str = ""
    """For all rows: how our setup differs from the paper's."""
    note: str = ""
    """A remark on the row."""
