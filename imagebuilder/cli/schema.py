"""``imagebuilder schema``: the JSON Schemas of the files that people write."""

from __future__ import annotations

import click


@click.command("schema")
@click.argument("name", required=False)
def command(name: str | None) -> None:
    """Print the JSON Schema of a file that people write.

    Without NAME, the names are listed.
    """
    import json

    from imagebuilder.schema import NAMES, schema

    click.echo(json.dumps(schema(name), indent=2, ensure_ascii=False) if name else "\n".join(NAMES))
