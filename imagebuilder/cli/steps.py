"""``imagebuilder steps``: what the recipe does, and what is left for boot."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from imagebuilder.steps import Step


@click.command("steps")
@click.option("--format", "form", type=click.Choice(["text", "markdown", "json"]), default="text", show_default=True)
@click.option("--os", "os_name", default="", metavar="NAME[-RELEASE]", help="Only the steps of this operating system.")
@click.option("--target", default="", metavar="NAME", help="Only the steps of this target; with --os.")
def command(form: str, os_name: str, target: str) -> None:
    """List the steps of the recipe.

    Build time and boot time are apart. With --os and --target only the steps of that image are listed.
    """
    from imagebuilder.errors import UsageError
    from imagebuilder.steps import load_boot_steps, load_steps, render_json, render_markdown, render_text

    if bool(os_name) != bool(target):
        raise UsageError("--os and --target go together", hint="imagebuilder list cells")
    steps = cell_steps(os_name, target) if os_name else load_steps()
    renderers = {"text": render_text, "markdown": render_markdown, "json": render_json}
    click.echo(renderers[form](steps, load_boot_steps()), nl=False)


def cell_steps(os_name: str, target: str) -> tuple[Step, ...]:
    """Return the steps that one image takes, as its plan has them."""
    from imagebuilder.cells import plan_request, split_os
    from imagebuilder.model import BuildRequest

    name, release = split_os(os_name)
    plan = plan_request(BuildRequest(os=name, release=release, target=target))
    return tuple(step for layer in plan.layers for step in layer.steps)
