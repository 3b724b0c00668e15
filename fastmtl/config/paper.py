"""What a recipe says of the paper that it is from."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class PaperConfig:
    """Which row of which table in a paper a recipe is, and the figures to reproduce."""

    key: str = ""
    """The paper's name here, which its recipes' folder has too."""
    title: str = ""
    """The paper's own."""
    formats: list[str] = field(default_factory=list)
    """How its data may lie on disk: names in `data.list_formats()`."""
    classes: list[str] = field(default_factory=list)
    """Of its data, where folders name them: they tell it from other data of the same format."""
    order: list[str] = field(default_factory=list)
    """Its rows in the order of its tables."""
    also: list[str] = field(default_factory=list)
    """Metrics to print for all rows, though the paper has no figures of them."""
    curves: list[str] = field(default_factory=list)
    """Tasks of two classes whose ROC curves it draws."""
    table: str = ""
    """Where the figures stand."""
    row: str = ""
    """What the paper calls the row."""
    figures: dict[str, float] = field(default_factory=dict)
    """Published values: TASK.METRIC as in summary.json, test.TASK.METRIC for the test, or delta_m."""
    spreads: dict[str, float] = field(default_factory=dict)
    """Their published standard deviations, under the same names."""
    baselines: dict[str, float] = field(default_factory=dict)
    """Single-task values that delta_m compares with, under the same names."""
    baseline_rows: dict[str, str] = field(default_factory=dict)
    """The rows that these values are of, so that ours can be compared with ours."""
    cited: dict[str, dict[str, float]] = field(default_factory=dict)
    """Rows that the paper cites from others: name -> figures."""
    caption: str = ""
    """What holds for all its rows: how ours differ from the paper's."""
    note: str = ""
    """What is to be known about the row."""
