"""Every launcher of a Triton kernel runs on the device of its tensors, which need not be the current one of several."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from helpers.paths import ROOT

Name = tuple[str, str]  # module and function


def _unguarded(sources: dict[str, str]) -> set[Name]:
    """The functions that can launch outside of `torch.cuda.device_of` and that no other launcher calls."""
    calls: dict[Name, list[Name | None]] = {}  # the calls that no guard surrounds; None is a launch
    called: set[Name] = set()
    for module, source in sources.items():
        tree = ast.parse(source)
        names = {f.name: (module, f.name) for f in tree.body if isinstance(f, ast.FunctionDef)}
        for line in tree.body:
            if isinstance(line, ast.ImportFrom) and line.module in sources:
                names |= {alias.asname or alias.name: (line.module, alias.name) for alias in line.names}
        for function in tree.body:
            if isinstance(function, ast.FunctionDef) and "jit" not in "".join(
                map(ast.unparse, function.decorator_list)
            ):
                called |= {name for call in ast.walk(function) if (name := _callee(call, names))}
                calls[module, function.name] = [
                    None if isinstance(call.func, ast.Subscript) else name
                    for call in _outside_guards(function)
                    if (name := _callee(call, names)) or isinstance(call.func, ast.Subscript)
                ]
    found: set[Name] = set()
    while True:
        more = {name for name, made in calls.items() if any(one is None or one in found for one in made)}
        if more == found:
            return found - called
        found = more


def _callee(node: ast.AST, names: dict[str, Name]) -> Name | None:
    is_call = isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    return names.get(node.func.id) if is_call else None


def _outside_guards(node: ast.AST) -> Iterator[ast.Call]:
    if isinstance(node, ast.With) and any("torch.cuda.device_of" in ast.unparse(item) for item in node.items):
        return
    if isinstance(node, ast.Call):
        yield node
    for child in ast.iter_child_nodes(node):
        yield from _outside_guards(child)


def test_launchers_are_guarded():
    files = sorted((ROOT / "kernels").glob("*_triton.py"))
    assert len(files) > 20
    assert _unguarded({path.stem: path.read_text(encoding="utf-8") for path in files}) == set()


def test_the_check_finds_launches_without_a_guard():
    source = """
def _inner(x):
    kernel[(1,)](x)

def guarded(x):
    with torch.cuda.device_of(x):
        _inner(x)

def through_another(x):
    _inner(x)

def direct(x):
    kernel[grid](x)
"""
    other = "from .one import _inner\ndef imported(x):\n    _inner(x)\n"
    expected = {("one", "through_another"), ("one", "direct"), ("two", "imported")}
    assert _unguarded({"one": source, "two": other}) == expected
