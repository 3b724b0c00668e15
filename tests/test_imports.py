"""Import rules, checked in the source: which package may import which, and no import cycle."""

import ast
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from helpers.paths import ROOT

PACKAGE = ROOT / "fastmtl"
# package of fastmtl -> the packages of fastmtl that it may import; a new one takes its place here first.
ALLOWED = {
    "errors": set(),
    "reference": set(),
    "kernels": set(),
    "utils": {"errors"},
    "heartbeat": set(),
    "rank_store": set(),
    "distributed": {"errors", "heartbeat", "rank_store"},
    "ops": {"errors", "reference", "kernels", "_C"},
    "losses": {"ops", "utils"},
    "integrations": {"losses", "ops", "utils"},
    "models": {"utils"},
    "config": {"errors", "utils"},
    "protocols": {"models", "utils"},
    "tasks": {"losses", "models", "protocols", "utils"},
    "data": {"errors", "kernels", "ops", "protocols", "utils"},
    "balance": {"distributed", "kernels", "ops", "protocols", "utils"},
    "builders": {"balance", "config", "data", "distributed", "models", "protocols", "tasks", "utils"},
    "training": {"balance", "builders", "config", "distributed", "errors", "models", "ops", "protocols", "utils"},
    "trainer": {"training"},
    "evaluation": {"builders", "config", "data", "protocols", "tasks", "training", "utils"},
    "report": {"training", "utils"},
    "prediction": {"data", "distributed", "errors", "evaluation", "protocols", "training", "utils"},
    "api": {
        *("builders", "config", "data", "distributed", "errors", "evaluation", "ops", "prediction", "protocols"),
        *("report", "training", "utils"),
    },
    "reproduce": {"api", "builders", "config", "data", "evaluation", "report", "training", "utils"},
    "benchmarks": {
        *("api", "balance", "builders", "config", "data", "distributed", "integrations", "kernels", "losses", "models"),
        *("ops", "protocols", "reference", "tasks", "training", "utils"),
    },
    "cli": {
        "api",
        "benchmarks",
        "builders",
        "config",
        "data",
        "errors",
        "models",
        "ops",
        "rank_store",
        "reproduce",
        "training",
        "utils",
    },
    "__main__": {"cli"},
}
# The same inside a package: its folders, and the modules that lie loose in it.
INSIDE = {
    "ops": {
        "core": set(),
        "losses": {"core"},
        "gradients": {"core"},
        "matching": {"core"},
        "stain": {"core"},
    },
    "data": {
        "text": set(),
        "sizes": set(),
        "identifiers": set(),
        "patient_names": {"identifiers"},
        "dataset": {"identifiers", "patient_names"},
        "slides": {"dataset", "identifiers", "sizes"},
        "images": {"dataset", "identifiers", "sizes", "slides", "text"},
        "stain": {"dataset", "images", "slides"},
        "loading": {"dataset", "images", "sizes", "slides"},
        "slide_output": {"dataset", "patient_names", "slides"},
        "manifest": {"dataset", "identifiers", "images", "patient_names", "slides", "text"},
        "synthetic": {"manifest"},
        "splits": {"dataset", "identifiers", "images", "manifest", "patient_names", "text"},
        "formats": {"dataset", "identifiers", "images", "manifest", "patient_names", "sizes", "slides", "text"},
        "checks": {"dataset", "formats", "images", "manifest", "patient_names", "sizes", "slides", "splits"},
    },
}
THIRD_PARTY = {
    "reference": {"torch", "math", "typing", "dataclasses"},
    "kernels": {"torch", "triton", "numba", "cupy", "numpy", "math", "functools", "collections", "typing"},
}


def _files() -> list[Path]:
    linked = (PACKAGE / "benchmarks", PACKAGE / "kernels")  # which rglob does not follow
    return sorted(path for folder in (PACKAGE, *linked) for path in folder.rglob("*.py"))


def _name(path: Path) -> str:
    """`fastmtl.data.dataset`; a package by its own name."""
    parts = ["fastmtl", *path.relative_to(PACKAGE).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {_name(path): path for path in _files()}


def _imports(path: Path) -> set[str]:
    """Dotted names that `path` imports, lazily or for types alone too; relative ones resolved to `fastmtl.…`."""
    parts = ["fastmtl", *path.relative_to(PACKAGE).with_suffix("").parts]
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = [*parts[: len(parts) - node.level]] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            inside = module == "fastmtl" or module.startswith("fastmtl.")
            found |= {f"{module}.{alias.name}" for alias in node.names} if inside else {module}
    return found


def _modules_of(name: str) -> Iterator[str]:
    """The module of the project that an imported name lies in, if any; the bare package is no module."""
    while name.count(".") and name not in MODULES:
        name = name.rpartition(".")[0]
    if name.count("."):
        yield name


GRAPH = {
    name: {module for found in _imports(path) for module in _modules_of(found)} - {name}
    for name, path in MODULES.items()
}


@pytest.mark.parametrize("package", sorted({name.split(".")[1] for name in MODULES if name.count(".")}))
def test_imports_run_downwards(package):
    assert package in ALLOWED, f"{package} has no place in ALLOWED: add it with what it may import"
    for name, path in MODULES.items():
        if name.split(".")[1:2] != [package]:
            continue
        for found in _imports(path):
            if found.startswith("fastmtl."):
                target = found.split(".")[1]
                assert target in ALLOWED[package] | {package, "__version__"}, f"{name} must not import fastmtl.{target}"
            elif package in THIRD_PARTY and found.split(".")[0] not in {*THIRD_PARTY[package], "__future__"}:
                pytest.fail(f"{name} must not import {found}")


@pytest.mark.parametrize("package", INSIDE)
def test_imports_run_downwards_inside(package):
    allowed = INSIDE[package]
    for name, targets in GRAPH.items():
        place = name.split(".")[1:]
        if place[:1] != [package] or len(place) < 2:  # the package's own __init__ shows what all of it has
            continue
        assert place[1] in allowed, f"{name} has no place in {package}: add it to INSIDE"
        for target in targets:
            other = target.split(".")[1:]
            if other[0] == package and len(other) > 1:
                assert other[1] in allowed[place[1]] | {place[1]}, f"{name} must not import {target}"


def _circle(graph: Mapping[str, set[str]]) -> list[str]:
    """One circle of the graph, or nothing: modules without a way onwards are taken away until none is left."""
    left = {name: set(targets) for name, targets in graph.items()}
    while ends := {name for name, targets in left.items() if not targets & left.keys()}:
        left = {name: targets for name, targets in left.items() if name not in ends}
    path = [min(left)] if left else []
    while path and path[-1] not in path[:-1]:
        path.append(min(left[path[-1]] & left.keys()))
    return path[path.index(path[-1]) :] if path else []


def test_a_circle_is_found():
    assert _circle({"a": {"b"}, "b": {"c"}, "c": set()}) == []
    assert _circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]


def test_no_import_runs_in_a_circle():
    """Lazy and type-only imports count: a circle that is tied late is still one that nobody can read in order."""
    packages = {name for name, path in MODULES.items() if path.name == "__init__.py"}
    # A package's __init__ imports what it shows; a module that imports its own package's sibling names the sibling.
    assert _circle({name: targets - packages for name, targets in GRAPH.items() if name not in packages}) == []


@pytest.mark.long
def test_ops_need_torch_and_numpy_alone():
    """Someone who installs fastmtl for the ops has none of the extras."""
    script = (
        "import sys, fastmtl, fastmtl.ops, fastmtl.losses, fastmtl.balance, fastmtl.models, fastmtl.data\n"
        "extras = {'nvidia', 'PIL', 'cv2', 'rich', 'torchmetrics', 'safetensors', 'tifffile', 'sklearn', 'numba'}\n"
        "extras |= {'triton'}  # which torch's compiler loads, too\n"
        "loaded = sorted(extras & {name.split('.')[0] for name in sys.modules})\n"
        "assert not loaded, loaded\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)


def test_few_modules_lie_loose():
    loose = [path.stem for path in PACKAGE.glob("*.py")]
    assert len(loose) <= 12, loose
