"""Each paper has a page whose table of rows is what its recipes say."""

from __future__ import annotations

import pytest
from helpers.paths import DOCS

from fastmtl.cli.papers import how, row
from fastmtl.reproduce import list_papers, plan

PAGES = DOCS / "papers"


def table(paper: str) -> list[str]:
    """The lines of the page's table of rows."""
    found = [row(one.published) for one in plan(paper)]
    keys = list(dict.fromkeys(key for one in found for key in one["figures"] if ".per_" not in key))
    lines = [
        f"Figures: {', '.join(f'`{key}`' for key in keys)}.",
        "",
        "| recipe | table, row in the paper | model | how | figures |",
        "|---|---|---|---|---|",
    ]
    for one in found:
        figures = " ".join(f"{one['figures'][key]:g}" if key in one["figures"] else "-" for key in keys)
        where = f"{one['table']}: {one['row']}" if one["table"] else one["row"]
        name = one["recipe"].removeprefix(f"{paper}/")
        lines.append(
            f"| `{name}` | {where} | {one['model']} | {how(one)} | {figures if one['figures'] else one['note']} |"
        )
    return lines


@pytest.mark.parametrize("paper", list_papers())
def test_the_table_of_rows_is_what_the_recipes_say(paper):
    page = (PAGES / f"{paper}.md").read_text(encoding="utf-8")
    assert page.partition("## Rows\n\n")[2].split("\n##")[0].strip().splitlines() == table(paper)


@pytest.mark.parametrize("paper", list_papers())
def test_the_page_has_the_papers_title(paper):
    title = plan(paper)[0].published.paper.title
    assert (PAGES / f"{paper}.md").read_text(encoding="utf-8").startswith(f"# {title}\n")
