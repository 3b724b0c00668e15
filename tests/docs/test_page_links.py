"""The README stays short and lists every page, and every link in the pages leads somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from helpers.pages import PAGES
from helpers.paths import ROOT

TEXTS = [*PAGES, ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md", ROOT / "benchmarks" / "README.md"]


def _targets(page: Path) -> list[tuple[Path, str]]:
    """What a page links to inside the project: file and heading."""
    links = re.findall(r"(?:\]\(|^\[\w+\]: )([^)\s]+)", page.read_text(encoding="utf-8"), flags=re.M)
    pairs = [link.partition("#")[::2] for link in links if "://" not in link]
    return [((page.parent / name).resolve() if name else page, heading) for name, heading in pairs]


def _anchors(page: Path) -> set[str]:
    """Of its headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), flags=re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", TEXTS, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    for target, heading in _targets(page):
        assert target.exists(), target
        if heading and target.suffix == ".md":
            assert heading in _anchors(target), f"{target} has no heading {heading}"


def test_the_readme_lists_every_page_and_is_short():
    listed = {target for target, _ in _targets(ROOT / "README.md")}
    assert set((ROOT / "docs").glob("*.md")) <= listed
    assert len((ROOT / "README.md").read_text(encoding="utf-8").split()) <= 900


def test_the_papers_page_lists_every_paper():
    listed = {target for target, _ in _targets(ROOT / "docs" / "papers.md")}
    assert set((ROOT / "docs" / "papers").glob("*.md")) <= listed
