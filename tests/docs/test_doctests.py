"""Every example in a docstring runs."""

import doctest
import importlib
import pkgutil

import pytest
import torch
from helpers.parity import about

import fastmtl

SKIPPED = (
    "fastmtl.kernels",  # device code
    "fastmtl.benchmarks",  # measured elsewhere
    "fastmtl._C",  # compiled
    "fastmtl.integrations.nnunet_trainers.",  # nnU-Net imports them
)


def _modules() -> list[str]:
    found = pkgutil.walk_packages(fastmtl.__path__, "fastmtl.")
    return [module.name for module in found if not module.name.startswith(SKIPPED)]


MODULES = _modules()


@pytest.mark.parametrize("package", sorted({name.split(".")[1] for name in MODULES}))
def test_doctests(package):
    for name in (name for name in MODULES if name.split(".")[1] == package):
        with about(name):
            module = importlib.import_module(name)
            failed, _ = doctest.testmod(module, extraglobs={"torch": torch}, optionflags=doctest.NORMALIZE_WHITESPACE)
            assert failed == 0
