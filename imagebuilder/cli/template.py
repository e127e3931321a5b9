"""``imagebuilder template``: folders for Packer."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from imagebuilder.cli.output import json_option, print_json, table
from imagebuilder.cli.request import request_options

if TYPE_CHECKING:
    from imagebuilder.model import BuildRequest
    from imagebuilder.templates import Rendered


@click.command("template")
@request_options
@click.option("--all", "every", is_flag=True, help="Every cell; --os, --target and --arch narrow it down.")
@click.option(
    "--output", type=click.Path(path_type=Path), required=True, metavar="DIR",
    help="The folder to make; with --all, the folder of the folders.",
)  # fmt: skip
@json_option
def command(request: BuildRequest, every: bool, output: Path, as_json: bool) -> None:
    """Write a folder for Packer; with --all, one for every cell.

    The folder works alone: packer init . && packer build . Needs no root, no network and no Packer. A folder that
    was made by this command is made anew; one that holds anything else is left alone.
    """
    from imagebuilder import templates

    output = output.absolute()
    done = templates.template_all(request, output) if every else [templates.template(request, output)]
    if as_json:
        for item in done:
            print_json(templates.as_data(item) | {"written": item.written})
    else:
        click.echo(_all(done, output) if every else _one(done[0]))


def _one(item: Rendered) -> str:
    folder = os.path.relpath(item.folder)
    return table([
        ("folder", folder), ("image", item.plan.id), ("builder", item.plan.target.builder),
        ("", "written" if item.written else "unchanged"),
        ("next", f"cd {folder} && packer init . && packer build ."),
    ])  # fmt: skip


def _all(done: list[Rendered], output: Path) -> str:
    written = sum(item.written for item in done)
    return f"{len(done)} folders in {os.path.relpath(output)} ({written} written, the others unchanged)"
