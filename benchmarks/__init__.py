"""Benchmarks: they produce every figure in the docs. See `fastmtl bench --help`."""

import importlib
import pkgutil


def load_cases() -> dict[str, Exception]:
    """Import every module of `cases`, which registers its cases; returns the import errors by module name."""
    from . import cases

    broken: dict[str, Exception] = {}
    for module in pkgutil.iter_modules(cases.__path__):
        try:
            importlib.import_module(f"{cases.__name__}.{module.name}")
        except Exception as error:  # a missing or broken extra; the other cases can still run
            broken[module.name] = error
    return broken
