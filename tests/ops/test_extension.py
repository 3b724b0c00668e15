"""The compiled extension where it is missing."""

import sys
from types import ModuleType

import pytest

from fastmtl.ops.core import backends


@pytest.fixture(autouse=True)
def load_again():
    backends._load_extension.cache_clear()
    yield
    backends._load_extension.cache_clear()


def test_a_clone_that_is_not_built_says_how_to_build_it(tmp_path, monkeypatch):
    package = tmp_path / "clone" / "fastmtl"
    package.mkdir(parents=True)
    monkeypatch.setattr(backends, "_PACKAGE", package)
    monkeypatch.setattr(sys, "path", [str(tmp_path / "clone")])
    monkeypatch.setitem(sys.modules, "fastmtl._C", None)
    assert backends._load_extension() == (
        "fastmtl._C is not built: reinstall fastmtl on a machine with a C++17 compiler"
    )

    (tmp_path / "clone" / "setup.py").touch()
    backends._load_extension.cache_clear()
    assert backends._load_extension() == (
        f"fastmtl._C is not built in {tmp_path / 'clone'}, whose code is imported: "
        f"`python setup.py build_ext --inplace` in {tmp_path / 'clone'} builds it"
    )

    installed = tmp_path / "site-packages" / "fastmtl"
    installed.mkdir(parents=True)
    (installed / "_C.cpython-311.so").touch()
    monkeypatch.setattr(sys, "path", [*sys.path, str(installed.parent)])
    backends._load_extension.cache_clear()
    assert "start Python in another folder to use the installed fastmtl, or" in backends._load_extension()


def test_the_extension_of_another_clone_is_not_used(tmp_path, monkeypatch):
    other = ModuleType("fastmtl._C")
    other.__file__ = str(tmp_path / "fastmtl" / "_C.so")
    monkeypatch.setitem(sys.modules, "fastmtl._C", other)
    assert str(backends._load_extension()).startswith("fastmtl._C is not built")


def test_an_extension_that_is_a_link_into_a_cache_is_used(tmp_path, monkeypatch):
    package, cache = tmp_path / "site-packages" / "fastmtl", tmp_path / "cache"
    package.mkdir(parents=True)
    cache.mkdir()
    (cache / "_C.so").touch()
    (package / "_C.so").symlink_to(cache / "_C.so")
    (tmp_path / "link").symlink_to(package.parent)
    monkeypatch.setattr(backends, "_PACKAGE", package)
    for folder in (package, tmp_path / "link" / "fastmtl"):
        module = ModuleType("fastmtl._C")
        module.__file__ = str(folder / "_C.so")
        monkeypatch.setitem(sys.modules, "fastmtl._C", module)
        backends._load_extension.cache_clear()
        assert backends._load_extension() is module
