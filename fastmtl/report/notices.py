"""Notices about the data and scores of a run, near the top of its page."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape

from .past_run import PastRun

_SHOWN = 10  # entries before the others are collapsed
_ALIKE = 3  # more notices than this that differ only in names and numbers become one entry


def notice_section(run: PastRun) -> str:
    """A list; similar notices are one entry, and only the first entries are expanded. "" for a run without notices."""
    if not run.notices:
        return ""
    entries = [_entry(one) for one in _kinds(run.notices)]
    shown = f"<ul>{''.join(entries[:_SHOWN])}</ul>"
    rest = entries[_SHOWN:]
    more = f"<details><summary>{len(rest)} more</summary><ul>{''.join(rest)}</ul></details>" if rest else ""
    return f"<h2>Notices</h2><div class=warn>{shown}{more}</div>"


def _kinds(notices: Sequence[str]) -> list[list[str]]:
    """Notices grouped if many differ only in numbers; in order of the first of each group."""
    alike: dict[str, list[str]] = {}
    for notice in dict.fromkeys(notices):
        reason = notice.rpartition(": ")[2]
        alike.setdefault(re.sub(r"\d+", "0", reason), []).append(notice)
    return [part for found in alike.values() for part in ([found] if len(found) > _ALIKE else [[one] for one in found])]


def _entry(notices: Sequence[str]) -> str:
    if len(notices) == 1:
        return f"<li>{escape(notices[0])}</li>"
    items = "".join(f"<li>{escape(notice)}</li>" for notice in notices)
    said = f"{len(notices)} like this: {notices[0]}"
    return f"<li><details><summary>{escape(said)}</summary><ul>{items}</ul></details></li>"
