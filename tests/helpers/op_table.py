"""The table of ops and their files in CONTRIBUTING.md, made from the registry and the names of files.

`PYTHONPATH=tests python -m helpers.op_table` writes it.
"""

from __future__ import annotations

from helpers.op_spec import OpSpec
from helpers.op_specs import SPECS
from helpers.paths import ROOT

PAGE = ROOT / "CONTRIBUTING.md"
BEGIN, END = "<!-- ops: begin -->\n", "<!-- ops: end -->"
# Heading, the folder that all its files are in, and their names in it.
COLUMNS = (
    ("definition", "fastmtl/reference/", ("{stem}.py",)),
    ("public function, backends", "fastmtl/ops/", ("*/{stem}.py", "*/{stem}_backends.py")),
    ("CPU kernels", "csrc/", ("*/{stem}*_cpu.cpp",)),
    ("NVIDIA kernels", "kernels/", ("{stem}_triton.py",)),
    ("tests", "tests/ops/", ("test_{stem}.py",)),
    ("benchmark", "benchmarks/cases/", ("{stem}.py",)),
)


def _files(spec: OpSpec, folder: str, names: tuple[str, ...]) -> str:
    patterns = (name.format(stem=stem) for stem in (spec.stem, *spec.shares) for name in names)
    found = (path.relative_to(ROOT / folder) for pattern in patterns for path in sorted((ROOT / folder).glob(pattern)))
    return ", ".join(f"`{path}`" for path in dict.fromkeys(found))


def table() -> str:
    """A row for each op, or for each kind of it; ops of the same files share one."""
    same: dict[tuple[str, ...], list[str]] = {}
    for spec in SPECS:
        row = tuple(_files(spec, folder, names) for _, folder, names in COLUMNS)
        same.setdefault(row, []).append(f"`{spec.name}`")
    rows = [["op", *(f"{heading} (`{folder}`)" for heading, folder, _ in COLUMNS)], ["---"] * (1 + len(COLUMNS))]
    rows += [[", ".join(names), *row] for row, names in same.items()]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def parts() -> tuple[str, str, str]:
    """The page before, in and after the table."""
    before, rest = PAGE.read_text().split(BEGIN)
    inside, after = rest.split(END)
    return before, inside, after


if __name__ == "__main__":
    before, _, after = parts()
    PAGE.write_text(before + BEGIN + table() + END + after)
