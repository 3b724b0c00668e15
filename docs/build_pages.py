"""What `mkdocs build` adds to the pages of docs/: the README, the pages beside the code, the API reference."""

from __future__ import annotations

import importlib
import inspect
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from griffe import Extension, Object
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = (
    "fastmtl",
    *("fastmtl.ops", "fastmtl.losses", "fastmtl.losses.monai", "fastmtl.losses.smp", "fastmtl.losses.nnunet"),
    *("fastmtl.balance", "fastmtl.data", "fastmtl.models", "fastmtl.tasks", "fastmtl.trainer", "fastmtl.protocols"),
    *("fastmtl.api", "fastmtl.config"),
)
_LINK = re.compile(r"(\]\(|^\[[^\]]+\]: )(?!\w+:|#)([^)\s#]+)", re.MULTILINE)
_DOCTEST = re.compile(r"^>>> .*(?:\n.+)*", re.MULTILINE)
_BESIDE = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "benchmarks/README.md", "benchmarks/results/*")


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Adds the files beside docs/ and the pages of `PACKAGES`."""
    for pattern in _BESIDE:
        for path in sorted(ROOT.glob(pattern)):
            name = path.relative_to(ROOT).as_posix()
            files.append(File.generated(config, _place(name), abs_src_path=str(path)))
    for package in PACKAGES:
        name = package.removeprefix("fastmtl.")
        files.append(File.generated(config, f"reference/{name}.md", content=_reference(package)))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links between files of the repository become links between pages of the site."""
    here = page.file.src_uri
    source = {_place(name): name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "benchmarks/README.md")}
    folder = posixpath.dirname(source.get(here, f"docs/{here}"))

    def replaced(link: re.Match[str]) -> str:
        target = _place(posixpath.normpath(posixpath.join(folder, link[2])))
        return link[1] + posixpath.relpath(target, posixpath.dirname(here) or ".")

    return _LINK.sub(replaced, markdown)


def _place(name: str) -> str:
    """Where a file of the repository is in the site's sources."""
    return "index.md" if name == "README.md" else name.removeprefix("docs/")


def _reference(package: str) -> str:
    """The page of a package: its public names in alphabetical order."""
    lines = [f"# {package}", "", inspect.getdoc(importlib.import_module(package)) or ""]
    for name, where in public_names(package):
        lines += ["", f"::: {where}", "    options:", f"      heading: {name}", f"      toc_label: {name}"]
    return "\n".join(lines)


def public_names(package: str) -> Iterator[tuple[str, str]]:
    """Each public class and function of a package with the path of its definition."""
    module = importlib.import_module(package)
    listed = getattr(module, "__all__", None)
    for name in sorted(listed or dir(module), key=str.lower):
        value: Any = getattr(module, name)
        if name.startswith("_") or not (inspect.isclass(value) or inspect.isfunction(value)):
            continue
        if listed or f"{value.__module__}.".startswith(f"{package}."):
            yield name, f"{value.__module__}.{value.__qualname__}"


class Doctests(Extension):
    """Examples of docstrings as code."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        if obj.docstring:
            obj.docstring.value = _DOCTEST.sub(r"```pycon\n\g<0>\n```", obj.docstring.value)
