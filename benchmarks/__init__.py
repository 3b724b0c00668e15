"""Benchmarks: every figure in the docs comes from here. `fastmtl bench --help` tells how."""

import importlib
import pkgutil


def load_cases() -> dict[str, Exception]:
    """Import every module of `cases`, which registers what it measures; returns those that cannot be imported here."""
    from . import cases

    broken: dict[str, Exception] = {}
    for module in pkgutil.iter_modules(cases.__path__):
        try:
            importlib.import_module(f"{cases.__name__}.{module.name}")
        except Exception as error:  # an extra that is missing or broken; the other cases can still run
            broken[module.name] = error
    return broken
