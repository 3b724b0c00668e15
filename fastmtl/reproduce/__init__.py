"""`fastmtl reproduce`: train the rows of a paper's tables and compare them with the published results."""

from .plan import Row, list_papers, plan
from .reproduction import reproduce
from .scores import Score, delta_m

__all__ = ["Row", "Score", "delta_m", "list_papers", "plan", "reproduce"]
