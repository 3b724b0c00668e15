"""The functions behind the `fastmtl` commands, for use from Python:

>>> from pathlib import Path
>>> from fastmtl import api, config
>>> recipe = config.load_recipe("demo", {"training": {"epochs": 2}})
>>> summary = api.train(recipe, None, Path("runs/demo"))  # doctest: +SKIP
>>> scores = api.evaluate(Path("runs/demo"), Path("colon-tiles"))  # doctest: +SKIP
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .loaded_run import LoadedRun as LoadedRun
    from .loaded_run import load as load
    from .runs import MapOptions as MapOptions
    from .runs import analyse as analyse
    from .runs import predict as predict
    from .runs import report as report
    from .scoring import evaluate as evaluate
    from .training import resume as resume
    from .training import train as train

_HOME = {
    **dict.fromkeys(("train", "resume"), "training"),
    "evaluate": "scoring",
    **dict.fromkeys(("LoadedRun", "load"), "loaded_run"),
    **dict.fromkeys(("MapOptions", "predict", "analyse", "report"), "runs"),
}
__all__ = ["LoadedRun", "MapOptions", "analyse", "evaluate", "load", "predict", "report", "resume", "train"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'fastmtl.api' has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
