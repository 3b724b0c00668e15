"""HTML reports: `report.html` of a run, and the comparison of several runs; each is one self-contained file."""

from .compare import render_comparison
from .page import render
from .past_run import PastRun, read_run

__all__ = ["PastRun", "read_run", "render", "render_comparison"]
