"""No file makes fastmtl execute code: every module and call that could is in a list, with its reason."""

import ast
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from helpers.paths import ROOT

from fastmtl.models.weights import _read

MODULES = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "yaml", "runpy"}
CALLS = {"eval", "exec", "compile", "__import__", "system", "popen", "execv"}
BETWEEN_RANKS = {
    "broadcast_object_list", "all_gather_object", "gather_object", "scatter_object_list", "send_object_list",
    "recv_object_list",
}  # fmt: skip
LOADERS = {"torch.load", "np.load", "numpy.load", "torch.jit.load", "torch.package", "dcp.load", "torch.hub.load"}
OPTIONS = {("allow_pickle", True), ("weights_only", False), ("shell", True)}
ALLOWED = {
    ("models/weights.py", "torch.load"): "of the file that model.weights names, always with weights_only=True",
    ("data/stain/files.py", "np.load"): "with allow_pickle=False",
    ("data/slide_output/traced.py", "np.load"): "of its own nameless temporary file, with allow_pickle=False",
    ("distributed.py", "broadcast_object_list"): "between the processes of one run; no file",
    ("distributed.py", "all_gather_object"): "between the processes of one run; no file",
    ("distributed.py", "send_object_list"): "between the processes of one run; no file",
    ("distributed.py", "recv_object_list"): "between the processes of one run; no file",
    ("training/trainer.py", "torch.compile"): "compiles the network, no text",
}
"""(module, call) -> why it executes nothing that a file says."""


def _name(node: ast.expr) -> str:
    return f"{_name(node.value)}.{node.attr}" if isinstance(node, ast.Attribute) else getattr(node, "id", "")


def _found(tree: ast.AST) -> Iterator[str]:
    """What could execute code: names of modules and calls, also where a function is only named."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (one.name for one in node.names if one.name.partition(".")[0] in MODULES)
        elif isinstance(node, ast.ImportFrom) and not node.level and (node.module or "").partition(".")[0] in MODULES:
            yield str(node.module)
        elif isinstance(node, ast.Attribute | ast.Name):
            yield from _of_name(node)
        elif isinstance(node, ast.keyword) and isinstance(node.value, ast.Constant):
            given = (node.arg, node.value.value)
            yield from [f"{node.arg}={node.value.value}"] if given in OPTIONS else []


def _of_name(node: ast.Attribute | ast.Name) -> list[str]:
    name = _name(node)
    first, _, last = name.rpartition(".")
    if last in BETWEEN_RANKS:
        return [last]
    bare = isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)
    is_call = last in CALLS and (bare or first in ("os", "torch", "builtins"))
    return [name] if name in LOADERS or is_call else []


def _sources() -> Iterator[Path]:
    folders = (ROOT / "fastmtl").iterdir()
    return (path for one in folders for path in ([one] if one.suffix == ".py" else one.rglob("*.py")))


def test_nothing_in_the_package_can_execute_a_file():
    seen = set()
    for path in _sources():
        name = path.relative_to(ROOT / "fastmtl").as_posix()
        if name.startswith("benchmarks/"):  # times other libraries and reads no file of a user
            continue
        for found in _found(ast.parse(path.read_text(encoding="utf-8"))):
            assert (name, found) in ALLOWED, f"{name} uses {found}: read the file without executing it"
            seen.add((name, found))
    assert {entry for entry in ALLOWED if "distributed" not in entry[0]} <= seen, "a reason that no module needs"


@pytest.mark.parametrize(
    "text",
    [
        "import pickle",
        "from dill import load",
        "import yaml",
        "eval('1')",
        "import os\nos.system('x')",
        "import torch\ntorch.load(f)",
        "import numpy as np\nnp.load(f, allow_pickle=True)",
        "run(x, shell=True)",
        "import torch.distributed as dist\ndist.all_gather_object(a, b)",
    ],
)
def test_the_check_finds_what_it_forbids(text):
    assert list(_found(ast.parse(text)))


def test_reads_that_could_unpickle_say_that_they_do_not():
    for module, call, wanted in (
        ("models/weights.py", "torch.load", ("weights_only", True)),
        ("data/stain/files.py", "np.load", ("allow_pickle", False)),
    ):
        tree = ast.parse((ROOT / "fastmtl" / module).read_text(encoding="utf-8"))
        calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
        calls = [node for node in calls if call in (_name(node.func), *map(_name, node.args))]
        assert calls
        for node in calls:
            given = {(one.arg, one.value.value) for one in node.keywords if isinstance(one.value, ast.Constant)}
            assert wanted in given


class _Payload:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_payload_in_a_state_dict_is_not_run(tmp_path, legacy):
    made, path = tmp_path / "made", tmp_path / "weights.pt"
    torch.save({"a": torch.zeros(2), "b": _Payload(made)}, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(ValueError, match=r"weights\.pt cannot be read"):
        _read(path, path)
    assert not made.exists()
    torch.load(path, weights_only=False)
    assert made.exists()  # it is a payload
