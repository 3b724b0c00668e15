"""Limits for the options of built-in models, checked before memory is allocated."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_WHOLE = dict.fromkeys(
    ("base_channels", "decoder_channels", "film_features", "film_hidden", "head_hidden", "num_queries"), 16384
) | {"head_grid": 512, "decoder_layers": 1000}
_FACTORS = {"width": 64, "depth": 64}
_SHARES = ("drop_path", "dropout", "head_dropout")


def check_sizes(model: str, options: Mapping[str, Any]) -> None:
    """Raise ValueError for an option of a built-in model that is out of range.

    Counts are whole numbers of 1 or more, `width` and `depth` numbers above 0, and probabilities in [0, 1); None is
    left to the model, and so are values that are not numbers.
    """
    for name, value in options.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            continue
        if name in _WHOLE:
            good, what = isinstance(value, int) and 1 <= value <= _WHOLE[name], f"whole, 1 to {_WHOLE[name]}"
        elif name in _FACTORS:
            good, what = 0 < value <= _FACTORS[name], f"above 0, at most {_FACTORS[name]}"
        elif name in _SHARES:
            good, what = 0 <= value < 1, "a probability in [0, 1)"
        else:
            continue
        if not good:
            raise ValueError(f"`{name}` of model {model!r} must be {what}; got {value}.")
