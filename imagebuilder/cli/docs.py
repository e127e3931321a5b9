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
CERTIFICATES_HEAD = """\
# The certificates of a cluster

Everything that `imagebuilder pki init` and `imagebuilder pki issue <node>` write into the folder of a PKI. This page
is made from the table in the code by `imagebuilder docs certificates`.

Keys are ECDSA P-256, signatures SHA-256; an authority that is imported may be RSA. Authorities are valid for {ca_days}
days, certificates for {days} and never longer than their authority; both begin {skew} minutes in the past, for clocks
that are late. Keys and kubeconfigs have mode 0600, folders 0700. Names and subjects are those of kubeadm. Beside the
files below there are `cluster.json` (what the folder is for; it may be edited, then `imagebuilder pki renew`),
`cluster-admins.json` (bindings for a new API server: `kubectl apply -f`), and, after `imagebuilder pki token`,
`bootstrap-token.json` and `bootstrap.conf`. A `.csr` waits for an outside signer, because the authority's key is not
here: `imagebuilder pki import` takes the answer.

"""


@click.command("docs", hidden=True)
@click.argument("page", type=click.Choice(["certificates", "errors", "steps"]))
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


def certificates() -> str:
    """Return ``docs/certificates.md``."""
    from imagebuilder.pki.table import CA_DAYS, LEAF_DAYS, SKEW_MINUTES, render_markdown

    return CERTIFICATES_HEAD.format(ca_days=CA_DAYS, days=LEAF_DAYS, skew=SKEW_MINUTES) + render_markdown()


PAGES: Mapping[str, Callable[[], str]] = {"certificates": certificates, "errors": errors, "steps": steps}
