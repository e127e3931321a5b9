"""``imagebuilder doctor``: what this host has, and what installs the rest."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from imagebuilder.cli.output import json_option, print_json, table
from imagebuilder.cli.settings import Settings, cache_option

if TYPE_CHECKING:
    from imagebuilder.doctor import Finding


@click.command("doctor")
@click.option(
    "--output", type=click.Path(path_type=Path, file_okay=False), default="out", metavar="DIR", show_default=True,
    help="Where images would go.",
)  # fmt: skip
@json_option
@cache_option
@click.pass_obj
def command(settings: Settings, output: Path, as_json: bool) -> None:
    """Check what this host has for baking and booting.

    Exits with 1 when something is missing without which nothing can be baked.
    """
    from imagebuilder.doctor import Host, examine, install_command, missing_for_baking
    from imagebuilder.errors import CheckFailedError
    from imagebuilder.process import RealRunner

    findings = examine(Host(runner=RealRunner(), cache=settings.cache, output=output))
    missing = missing_for_baking(findings)
    if as_json:
        print_json({"can_bake": not missing, "findings": [dataclasses.asdict(finding) for finding in findings]})
    else:
        click.echo(render(findings))
    if missing:
        names = ", ".join(finding.name for finding in missing)
        others = [finding.hint for finding in missing if not finding.package]
        hint = "; ".join(filter(None, [install_command(missing), *others]))
        raise CheckFailedError(f"this host cannot bake yet; missing: {names}", hint=hint)
    if not as_json and (install := install_command(findings)):
        click.echo(f"\nto install the rest: {install}")


def render(findings: Sequence[Finding]) -> str:
    """Return the findings as one table per area."""
    from imagebuilder.doctor import AREAS

    parts = []
    for area, title in AREAS.items():
        rows = [
            (finding.state, finding.name, f"{finding.text}{f'  ->  {finding.hint}' if finding.hint else ''}")
            for finding in findings
            if finding.area == area
        ]
        if rows:
            parts.append(f"{title}\n{table(rows, indent='  ')}")
    return "\n".join(parts)
