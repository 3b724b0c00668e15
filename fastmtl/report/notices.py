"""What was odd about a run's data and scores, near the top of its page."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape

from .past_run import PastRun

_SHOWN = 10  # entries before the others are folded away
_ALIKE = 3  # notices that differ in names and numbers alone, beyond which they are one entry


def notice_section(run: PastRun) -> str:
    """A list; notices of one kind are one entry, and of many entries the first are open. "" for a run without."""
    if not run.notices:
        return ""
    entries = [_entry(one) for one in _kinds(run.notices)]
    shown = f"<ul>{''.join(entries[:_SHOWN])}</ul>"
    rest = entries[_SHOWN:]
    more = f"<details><summary>{len(rest)} more</summary><ul>{''.join(rest)}</ul></details>" if rest else ""
    return f"<h2>Notices</h2><div class=warn>{shown}{more}</div>"


def _kinds(notices: Sequence[str]) -> list[list[str]]:
    """Notices whose reasons differ in numbers alone together, where they are many; in the order of their first."""
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
