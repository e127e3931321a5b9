"""``imagebuilder docs``: the generated pages under ``docs/``. Hidden: for developers of this project."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import click

ERRORS_HEAD = """\
# Errors and exit codes

Every error has a stable reference and an exit code. It says what happened, shows the evidence, and the hint is the
next thing to type. With `--json` it is a line of its own on standard output:
`{"error": {"ref": ..., "exit_code": ..., "message": ..., "context": ..., "hint": ...}}`.

This page is made by `imagebuilder docs errors`.

| Exit code | Reference | Meaning |
|---|---|---|
| 0 | | Done. |
"""
ERRORS_TAIL = "| 141 | | Whoever read the output went away (`imagebuilder ... \\| head`); nothing is printed. |\n"
STEPS_HEAD = """\
# The steps of the recipe

What is done when an image is built, layer by layer, and what is left for boot. Each step is one script under
`provision/steps/`; this page is made from their headers by `imagebuilder docs steps`.

"""


@click.command("docs", hidden=True)
@click.argument("page", type=click.Choice(["errors", "steps"]))
def command(page: str) -> None:
    """Print a generated page of the documentation."""
    click.echo(PAGES[page](), nl=False)


def errors() -> str:
    """Return ``docs/errors.md``."""
    from imagebuilder.errors import error_classes

    classes = sorted(error_classes(), key=lambda cls: cls.exit_code)
    rows = "".join(f"| {cls.exit_code} | `{cls.ref}` | {cls.meaning} |\n" for cls in classes)
    return ERRORS_HEAD + rows + ERRORS_TAIL


def steps() -> str:
    """Return ``docs/steps.md``."""
    from imagebuilder.steps import load_boot_steps, load_steps, render_markdown

    return STEPS_HEAD + render_markdown(load_steps(), load_boot_steps())


PAGES: Mapping[str, Callable[[], str]] = {"errors": errors, "steps": steps}
