"""Every example in a docstring runs."""

import doctest
import importlib
import pkgutil

import pytest
import torch

import fastmtl

SKIPPED = ("fastmtl.kernels", "fastmtl.benchmarks", "fastmtl._C")  # device code; measured elsewhere; compiled


def _modules() -> list[str]:
    found = pkgutil.walk_packages(fastmtl.__path__, "fastmtl.")
    return [module.name for module in found if not module.name.startswith(SKIPPED)]


@pytest.mark.parametrize("name", _modules())
def test_doctests(name):
    module = importlib.import_module(name)
    failed, _ = doctest.testmod(module, extraglobs={"torch": torch}, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert failed == 0
