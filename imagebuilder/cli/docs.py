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
TRANSPORTS_HEAD = """\
# How a data package reaches a machine

`imagebuilder data deliver FILE --target NAME` writes the files for a target, and a README with the commands that use
them. FILE is a data package or, where one is too large, a signed pointer document to it: its address, size and
sha256, as `imagebuilder data create --pointer-url URL` writes it. This page is made by `imagebuilder docs transports`.

## What the node looks at, in this order
Local sources need no network. The agent reads all of them, and then takes the valid package of the highest
generation.

1. `imagebuilder.ibdata` in `$MESOS_SANDBOX`.
2. Volumes (vfat, iso9660) labelled `cidata`: `imagebuilder.ibdata`, `user-data`. Then `config-2`:
   `imagebuilder.ibdata`, `openstack/latest/user_data`. On Azure also the provisioning CD (UDF or ISO):
   `CustomData.bin`, `ovf-env.xml`. They are mounted read-only, without devices, programs and set-uid bits, in a
   folder of their own, and unmounted at once.
3. QEMU's fw_cfg: `opt/imagebuilder/data`.
4. SMBIOS type 11: `io.systemd.credential.binary:imagebuilder.data=<base64>`.
5. On VMware `guestinfo.imagebuilder.data`, which is overwritten with `---` after use, and the property
   `imagebuilder.data` of the OVF environment.

With the network:

6. The kernel line: `imagebuilder.data=URL imagebuilder.sha256=HEX`. `{{uuid}}`, `{{serial}}`, `{{mac}}` and
   `{{hostname}}` in the address are the machine's. The checksum may be left out: the package is signed.
7. The metadata service that the firmware (DMI) names: EC2 (IMDSv2 only), Compute Engine, Azure, OpenStack,
   DigitalOcean, Hetzner. Bare metal asks none, and waits for none. `imagebuilder.services=openstack,ec2` on the
   kernel line says otherwise.

`--source file:///...` is the only source when it is given.

## What bounds it
{connect} s for a connection, {read} s without a byte, {source} s for a source, {disk} s for disks, {fetch} s for a
download, {scope} s for all sources of a scope; 1 MiB for a package, 2 MiB encoded. 408, 429, 5xx and broken
connections are asked again after 0.5 s, 1 s, 2 s..., or when `Retry-After` says, within these seconds; on Azure 404
and 410 too. A metadata service that redirects is not followed; a download is, three times at most, and never from
https to anything else.
There is no proxy. What fails is a line in `status.json` with a code (`E_SOURCE`, `E_SIZE`, `E_FORMAT`, `E_DIGEST`),
and the next source's turn.

## What may be in it
The package as it is, its base64, gzip around either, or a part of type `application/x-imagebuilder-data` in a MIME
text beside cloud-init's own parts. cloud-init passes over that part with a warning in its log. User data without
anything of ours is left alone.

## What there is for each target
The preferred way comes first: it is what `data create` and `data inspect` show, and what `data create --target NAME`
asks for. Limits are of the bytes after encoding. Where no limit is given, none matters: a package has 1 MiB at most.

"""


@click.command("docs", hidden=True)
@click.argument("page", type=click.Choice(["certificates", "checks", "errors", "steps", "transports"]))
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


def checks() -> str:
    """Return ``docs/checks.md``."""
    from imagebuilder.verify import booted, offline
    from imagebuilder.verify.report.page_of_checks import render_markdown
    from imagebuilder.verify.run import ARTIFACT_CHECKS

    return render_markdown((*ARTIFACT_CHECKS, *offline.CHECKS), booted.CHECKS)


def transports() -> str:
    """Return ``docs/transports.md``."""
    from imagebuilder.agent.agent import SourceHost
    from imagebuilder.datapackage.deliver.transports import render_markdown

    host = SourceHost(sandbox="")
    seconds = {
        "connect": host.connect_seconds, "read": host.read_seconds, "source": host.source_seconds,
        "disk": host.disk_seconds,
        "fetch": host.fetch_seconds, "scope": host.scope_seconds,
    }  # fmt: skip
    return TRANSPORTS_HEAD.format(**{name: f"{value:g}" for name, value in seconds.items()}) + render_markdown()


PAGES: Mapping[str, Callable[[], str]] = {
    "certificates": certificates,
    "checks": checks,
    "errors": errors,
    "steps": steps,
    "transports": transports,
}
