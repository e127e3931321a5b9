"""``imagebuilder diff``: what changed between two images."""

from __future__ import annotations

from pathlib import Path

import click

from imagebuilder.cli.output import json_option, print_json
from imagebuilder.cli.settings import Settings, cache_option


@click.command("diff")
@click.argument("before", type=click.Path(path_type=Path))
@click.argument("after", type=click.Path(path_type=Path))
@click.option("--os", default="", metavar="NAME[-RELEASE]", help="What OS they are of, where no manifest says so.")
@json_option
@cache_option
@click.pass_obj
def command(settings: Settings, before: Path, after: Path, os: str, as_json: bool) -> None:
    """Show what changed between two images: packages, files, settings, sizes, boot times.

    BEFORE and AFTER are folders that a bake wrote, or disks of any format that verify takes.
    """
    from imagebuilder.verify.diff import as_json as as_document
    from imagebuilder.verify.diff import as_text, compare
    from imagebuilder.verify.run import opened, scratch
    from imagebuilder.verify.subject import Said

    said = Said(os=os)
    with (
        scratch(settings.cache) as folder,
        opened(before, said, folder) as (one, _),
        opened(after, said, folder) as (other, _),
    ):
        difference = compare(one, other, one.subject.manifest, other.subject.manifest)
    if as_json:
        print_json({"kind": "result", **as_document(difference)})
    else:
        click.echo(as_text(difference))
