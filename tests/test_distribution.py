"""What pip installs: a name that is ours, and the files of a source distribution."""

import re
import subprocess
import tomllib

from helpers.paths import ROOT

from fastmtl.utils.optional_imports import DISTRIBUTION

WORDS = (".md", ".py", ".toml", ".txt", ".yml", ".yaml", ".cff", ".sh", "Makefile")


def test_no_text_installs_the_other_project_of_the_package_index():
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["name"] == DISTRIBUTION
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    theirs = re.compile(r"pip install [^\n`#]*\bfastmtl(?!-engine|/|\.git)\b|fastmtl\\?\[\w")
    found = []
    for name in listed.splitlines():
        if name.endswith(WORDS) and (path := ROOT / name).is_file():
            found += [f"{name}: {match[0]}" for match in theirs.finditer(path.read_text(encoding="utf-8"))]
    assert not [line for line in found if not line.startswith("tests/test_distribution.py")]
