"""``imagebuilder data deliver``: what hands a data package to a machine."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from imagebuilder.cli.data_fits import fit_data
from imagebuilder.cli.output import json_option, print_json

if TYPE_CHECKING:
    from imagebuilder.datapackage.deliver.delivery import Delivery
    from imagebuilder.datapackage.deliver.mesos import Parts

VERSION = re.compile(r"\d+\.\d+\.\d+")
VERSION_SECONDS = 20  # kubelet takes a tenth of one


@click.command("deliver")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--target", required=True, metavar="NAME", help="Where the machine is; an unknown one names them all.")
@click.option(
    "--output", type=click.Path(path_type=Path, file_okay=False), metavar="DIR",
    help="The folder to write the files to.  [default: NODE-NAME beside FILE]",
)  # fmt: skip
@click.option("--pointer-url", default="", metavar="URL", help="Where FILE will be, for a kernel line (PXE).")
@click.option("--kubelet", type=click.Path(path_type=Path), help="mesos: the kubelet that goes into the bundle.")
@click.option("--kubelet-version", default="", help="mesos: its version.  [default: what it says itself]")
@click.option(
    "--trust", type=click.Path(path_type=Path), multiple=True, metavar="PUB",
    help="mesos: a public key whose packages are accepted; may be repeated.",
)  # fmt: skip
@click.option("--bundle-url", default="", metavar="URL", help="mesos: the address of the folder, once it is served.")
@json_option
def deliver(
    file: Path, target: str, output: Path | None, pointer_url: str, kubelet: Path | None, kubelet_version: str,
    trust: tuple[Path, ...], bundle_url: str, as_json: bool,
) -> None:  # fmt: skip
    """Write the files that hand a package to a machine.

    FILE is a package, or a pointer to one. Beside the files is a README with the commands that use them.
    """
    from imagebuilder.datapackage.deliver import delivery
    from imagebuilder.datapackage.deliver.transports import ways
    from imagebuilder.errors import UsageError

    ways(target)  # an unknown one is refused whatever the file is
    payload = delivery.read_payload(file, pointer_url)
    parts: Parts | None = None
    if target == "mesos":
        parts = mesos_parts(kubelet, kubelet_version, trust, bundle_url)
    elif kubelet or kubelet_version or trust or bundle_url:
        raise UsageError("--kubelet, --kubelet-version, --trust and --bundle-url are for --target mesos alone")
    done = delivery.deliver(payload, target, output or file.parent / f"{payload.name}-{target}", mesos=parts)
    if as_json:
        print_json(as_data(done))
    else:
        click.echo(render(done))


def mesos_parts(kubelet: Path | None, version: str, trust: tuple[Path, ...], url: str) -> Parts:
    """Return what goes into a bundle for Mesos, from the options of the same names.

    Raises:
        UsageError: one is missing, or is not what it must be.
    """
    from imagebuilder.datapackage.deliver.delivery import URL
    from imagebuilder.datapackage.deliver.mesos import Parts
    from imagebuilder.errors import UsageError

    if kubelet is None or not trust or not URL.fullmatch(url):
        hint = "--kubelet FILE --trust pki/package-signing.pub --bundle-url https://..."
        raise UsageError("a bundle for Mesos needs a kubelet, a trusted key and an address", hint=hint)
    if version and not VERSION.fullmatch(version):
        raise UsageError(f'"{version}" is no version of a kubelet', hint="--kubelet-version 1.35.8")
    return Parts(kubelet=kubelet, version=version or asked_version(kubelet), trust=trust, url=url.rstrip("/"))


def asked_version(kubelet: Path) -> str:
    """Return what ``kubelet --version`` says, like ``1.35.8``.

    Raises:
        UsageError: it says something else, or cannot be run here.
    """
    from imagebuilder.errors import CommandError, DeadlineError, ToolMissingError, UsageError
    from imagebuilder.process import RealRunner

    try:
        said = RealRunner().run([kubelet.absolute(), "--version"], capture=True, timeout=VERSION_SECONDS).stdout
    except (CommandError, DeadlineError, ToolMissingError, OSError) as error:
        raise UsageError(f"{kubelet} does not say its version", hint="--kubelet-version 1.35.8") from error
    found = re.fullmatch(r"Kubernetes v(\d+\.\d+\.\d+)\S*", said.strip())
    if found is None:
        raise UsageError(f'{kubelet} says "{said.strip()[:60]}" for a version', hint="--kubelet-version 1.35.8")
    return found[1]


def as_data(done: Delivery) -> dict[str, Any]:
    """Return a delivery as plain data."""
    return {
        "kind": "result",
        "target": done.target,
        "files": [
            fit_data(one.fit) | {"path": str(one.path), "command": one.command, "note": one.note}
            for one in done.written
        ],
        "left_out": [{"title": one.way.title, "why": one.why} for one in done.left_out],
    }  # fmt: skip


def render(done: Delivery) -> str:
    """Return a delivery for people: every way with the command that uses it."""
    from imagebuilder.datapackage.deliver.delivery import README

    lines = []
    for one in done.written:
        way = one.fit.way
        limit = f" of {way.limit:,}" if way.limit else ""
        lines += [f"{way.title}: {one.path} ({one.fit.size:,}{limit} bytes)"]
        lines += [f"    {line}" for line in one.command.splitlines()]
    lines += [f"not possible: {one.way.title}: {one.why}" for one in done.left_out]
    return "\n".join([*lines, f"all of this is in {done.folder / README}"])
