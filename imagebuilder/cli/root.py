"""The group of verbs. A verb's module is imported only when it is called: ``--help`` must not wait for them."""

from __future__ import annotations

import importlib
from collections.abc import Mapping

import click

from imagebuilder import __version__
from imagebuilder.cli.settings import Settings, cache_option

PROGRAM = "imagebuilder"

# The first line of each verb's help, so that the list needs no import; a test compares.
VERBS: Mapping[str, str] = {
    "bake": "Build a machine image.",
    "verify": "Prove that a finished image is right, or say what is wrong with it.",
    "boot": "Boot an image under QEMU and time its stages.",
    "diff": "Show what changed between two images: packages, files, settings, sizes, boot times.",
    "plan": "Show what bake would do; needs no root and no network.",
    "lock": "Write down exactly what a bake takes from outside.",
    "template": "Write a folder for Packer; with --all, one for every cell.",
    "list": "List what can be built: os, targets, cells or kubernetes.",
    "steps": "List the steps of the recipe.",
    "doctor": "Check what this host has for baking and booting.",
    "cache": "Show, empty or share the cache.",
    "pki": "Make and renew the certificates of a cluster.",
    "data": "Make, show, check and deliver data packages: what makes an image into one node.",
    "box": "Keep a catalog of Vagrant boxes.",
    "schema": "Print the JSON Schema of a file that people write.",
}
HIDDEN = ("docs",)
MODULES = {"list": "list_"}  # where the module cannot have the verb's name


class LazyGroup(click.Group):
    """A group whose commands are modules of this package, each with a ``command``."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the visible verbs, in the order in which they are of use."""
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import one verb."""
        if cmd_name not in (*VERBS, *HIDDEN):
            return None
        module = importlib.import_module(f"imagebuilder.cli.{MODULES.get(cmd_name, cmd_name)}")
        command: click.Command = module.command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the verb that was named; a misspelt one gets the nearest as a suggestion."""
        name = args[0]
        if self.get_command(ctx, name) is None and not name.startswith("-") and not ctx.resilient_parsing:
            import difflib

            close = difflib.get_close_matches(name, VERBS, n=1, cutoff=0.5)
            nearest = f' (did you mean "{close[0]}"?)' if close else f" (known: {', '.join(VERBS)})"
            raise click.UsageError(f'there is no command "{name}"{nearest}', ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of verbs from the table."""
        with formatter.section("Commands"):
            formatter.write_dl(list(VERBS.items()))


@click.group(
    cls=LazyGroup,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="Start with: imagebuilder bake --os debian --target qemu",
)
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.version_option(__version__, prog_name=PROGRAM, message="%(prog)s %(version)s")
@cache_option
@click.pass_context
def group(context: click.Context, debug: bool) -> None:
    """Machine images for Kubernetes nodes, made at build time instead of install time."""
    context.ensure_object(Settings).debug = debug
    if context.invoked_subcommand is None:
        click.echo(context.get_help())
        context.exit(2)
