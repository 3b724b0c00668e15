"""`fastmtl doctor --resume RECIPE`: prints the certificate of exact resume."""

from __future__ import annotations

import argparse
import json

from ..api.resume_certificate import Certificate, certify, shortened
from ..config import parse_overrides
from ..utils.words import counted, listed
from .arguments import progress_console

_KILLS = 6


def print_certificate(parsed: argparse.Namespace) -> int:
    """Certify and print; 0 only if every part is equal."""
    recipe = shortened(parsed.resume, parse_overrides(parsed.sets), parsed.scale)
    found = certify(
        recipe, parsed.data, kills=_KILLS if parsed.kills is None else parsed.kills, console=progress_console()
    )
    if parsed.json:
        print(json.dumps(found.as_json(), indent=1))
    else:
        show(found)
    return 0 if found.equal else 1


def show(found: Certificate) -> None:
    """Print the certificate as a table and a few lines."""
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, soft_wrap=True)
    table = Table("part", "sha256", "after the kills", title="Certificate of exact resume", title_justify="left")
    for part, (whole, resumed, same) in found.parts.items():
        other = "[green]equal[/green]" if same else f"[red]different: {resumed[:16] or 'missing'}[/red]"
        table.add_row(part, whole[:16] or "missing", other)
    console.print(table)
    versions = found.as_json()["environment"]
    packages = [f"{name} {version}" for name, version in versions["packages"].items() if version]
    lines = [
        f"recipe: {found.recipe}, shortened to {counted(found.steps, 'step')} in {counted(found.epochs, 'epoch')}",
        f"seed: {found.seed}, device: {found.device}, {counted(versions['threads'], 'thread')}",
        f"versions: fastmtl {versions['fastmtl']}, python {versions['python']}, {', '.join(packages)}",
        f"killed: {', '.join(f'{kill.struck} (step {kill.step})' for kill in found.kills if kill.struck) or 'never'}",
        *(f"not killed: {one}" for one in found.not_killed),
    ]
    for line in lines:
        console.print(line, markup=False)
    console.print(_verdict(found), markup=False)


def _verdict(found: Certificate) -> str:
    if found.equal:
        struck = sum(bool(kill.struck) for kill in found.kills)
        return f"Exact: after {counted(struck, 'kill')}, every part is bit-equal to the uninterrupted training."
    differing = listed([part for part, (*_, same) in found.parts.items() if not same])
    why = (
        "An uninterrupted training repeats itself here, so resuming changed the result: please report it."
        if found.repeatable
        else "Two uninterrupted trainings differ here, too: this training is not repeatable on this device, whether it "
        "is resumed or not."
    )
    return f"Not exact: different are {differing}. {why} The runs: {found.kept}"
