"""``imagebuilder data``: data packages, what makes an image into one certain node."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from imagebuilder.cli.data_deliver import deliver
from imagebuilder.cli.data_fits import Fits, fits_data, other_way, render_fits
from imagebuilder.cli.output import json_option, print_json, size, table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from imagebuilder.datapackage.checks import Check
    from imagebuilder.datapackage.create import Created
    from imagebuilder.datapackage.format import Package
    from imagebuilder.datapackage.signing import Pointer

SHORT = 12  # digits of a checksum that are shown
POINTER_URL = "--pointer-url https://.../{node}.ibdata"

pki_option = click.option(
    "--pki", type=click.Path(path_type=Path, file_okay=False), default=Path("pki"), show_default=True, metavar="DIR",
    help="The folder that pki init made.",
)  # fmt: skip


@click.group("data")
def command() -> None:
    """Make, show, check and deliver data packages: what makes an image into one node."""


command.add_command(deliver)


@command.command("create")
@click.option(
    "--file", "file", type=click.Path(path_type=Path, dir_okay=False), default=Path("cluster.toml"), show_default=True,
    help="The cluster and its nodes.",
)  # fmt: skip
@pki_option
@click.option(
    "--output", type=click.Path(path_type=Path, file_okay=False), default=Path("data"), show_default=True,
    metavar="DIR", help="Where the packages go, with a record of the generations.",
)  # fmt: skip
@click.option("--node", "nodes", multiple=True, metavar="NAME", help="Only this node; may be repeated.")
@click.option("--generation", type=click.IntRange(min=1), metavar="N", help="State it, in place of the next one.")
@click.option(
    "--target", default="", metavar="NAME",
    help="Fail where a package does not fit the preferred way to it, and has no pointer.",
)  # fmt: skip
@click.option("--pointer-url", default="", metavar="URL", help="Make signed pointers to packages at this address.")
@json_option
def create(
    file: Path, pki: Path, output: Path, nodes: tuple[str, ...], generation: int | None, target: str,
    pointer_url: str, as_json: bool,
) -> None:  # fmt: skip
    """Make one package per node from cluster.toml.

    A package that says the same as the last one is left as it is. Of sizes, those after encoding are shown.
    """
    from datetime import UTC, datetime

    from imagebuilder.datapackage.create import Wanted
    from imagebuilder.datapackage.create import create as make
    from imagebuilder.datapackage.crosswise import load_cluster
    from imagebuilder.datapackage.deliver.transports import ways

    if target:
        ways(target)  # an unknown one is refused before anything is made
    wanted = Wanted(now=datetime.now(UTC), nodes=nodes, generation=generation, pointer_url=pointer_url)
    made = make(load_cluster(file), pki, output, wanted)
    if as_json:
        for one in made:
            print_json({"kind": "result"} | created_data(one))
    else:
        click.echo(render_created(made, output))
    if target and not pointer_url:
        require_fit(made, target)


@command.command("inspect")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@json_option
def inspect(file: Path, as_json: bool) -> None:
    """Show what a package says, and its size for each target.

    FILE is a package, or a pointer to one. What is in its files is never shown, and its signature not checked: see
    verify.
    """
    from imagebuilder.content import sha256_bytes
    from imagebuilder.datapackage.deliver.encodings import Payload
    from imagebuilder.datapackage.deliver.fits import fits
    from imagebuilder.datapackage.format import naming, unpack
    from imagebuilder.datapackage.signing import POINTER_SUFFIX, parse_pointer

    data = read_package(file)
    digest = sha256_bytes(data)
    said: dict[str, Any]
    if is_pointer(data):
        with naming(file):
            pointer = parse_pointer(data)
        name, text = file.name.removesuffix(POINTER_SUFFIX), render_pointer(pointer)
        said = {"pointer": pointer.model_dump(mode="json", by_alias=True)}
    else:
        with naming(file):
            package = unpack(data)
        name, text = package.manifest.node, render_package(package, len(data), digest)
        said = {"manifest": package.manifest.as_data()}
    found = fits(Payload(data=data, name=name))
    if as_json:
        facts = {"kind": "result", "file": str(file), "size": len(data), "sha256": digest}
        print_json(facts | said | {"targets": fits_data(found)})
    else:
        click.echo(f"{text}\n\n{render_fits(found)}")


@command.command("verify")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.option(
    "--image", type=click.Path(path_type=Path), metavar="DIR|FILE",
    help="An image it must fit: the folder that a bake wrote, or its manifest.json.",
)  # fmt: skip
@click.option(
    "--key", type=click.Path(path_type=Path, dir_okay=False), metavar="PUB",
    help="The public key that is trusted.  [default: package-signing.pub in --pki]",
)  # fmt: skip
@pki_option
@json_option
def verify(file: Path, image: Path | None, key: Path | None, pki: Path, as_json: bool) -> None:
    """Check a package, or a pointer to one, as a node would.

    That is its signature, digests and time; with --image, also whether that image can take it.
    """
    from datetime import UTC, datetime

    from imagebuilder.datapackage.checks import image_facts, pointer_checks, run_checks
    from imagebuilder.datapackage.format import naming, unpack
    from imagebuilder.datapackage.signing import PUBLIC_FILE, load_public_key
    from imagebuilder.errors import CheckFailedError

    trusted, data = load_public_key(key or pki / PUBLIC_FILE), read_package(file)
    facts = image_facts(image) if image else None
    with naming(file):
        checks = (
            pointer_checks(data, trusted)
            if is_pointer(data)
            else run_checks(unpack(data), trusted, datetime.now(UTC), facts)
        )
    if as_json:
        print_json({"kind": "result", "file": str(file), "checks": [dataclasses.asdict(check) for check in checks]})
    else:
        click.echo(render_checks(checks))
    failed = [check for check in checks if check.code]
    if not failed and not as_json:
        click.echo(f"next: imagebuilder data deliver {file} --target NAME")
    if failed:
        lines = [f"{check.code}: {check.text}" for check in failed]
        raise CheckFailedError(f"{file} would be refused", context="\n".join(lines), hint="docs/data-package.md, Codes")


def read_package(path: Path) -> bytes:
    """Return a file's bytes, no more than one byte above what a package may have.

    Raises:
        ArtifactError: it cannot be read.
    """
    from imagebuilder.datapackage.format import MAX_PACKED
    from imagebuilder.errors import ArtifactError

    try:
        with path.open("rb") as stream:
            return stream.read(MAX_PACKED + 1)
    except OSError as error:
        raise ArtifactError(f"{path}: {error.strerror}", hint="imagebuilder data create") from error


def is_pointer(data: bytes) -> bool:
    """Tell a pointer document from a package: it is JSON."""
    return data.startswith(b"{")


def require_fit(made: Sequence[Created], target: str) -> None:
    """Refuse packages that the preferred way to a target has no room for.

    Raises:
        PackageError: E_SIZE, one does not fit.
    """
    from imagebuilder.errors import PackageError

    found = [(one.node, created_fits(one, target)[target]) for one in made]
    title = found[0][1][0].way.title
    lines = []
    for node, ways in found:
        if not ways[0].fits:
            other = other_way(ways)
            lines.append(f"{node}: {ways[0].why}" + (f"; data deliver can make it fit as {other}" if other else ""))
    if lines:
        hint = f"imagebuilder data create --target {target} {POINTER_URL}, then deliver the pointers"
        raise PackageError("E_SIZE", f"{target} has no room ({title})", context="\n".join(lines), hint=hint)


def created_fits(one: Created, *targets: str) -> Fits:
    """Return what a package is for these targets, or for all."""
    from imagebuilder.datapackage.deliver.encodings import Payload
    from imagebuilder.datapackage.deliver.fits import fits

    return fits(Payload(data=one.path.read_bytes(), name=one.node), targets)


def created_data(one: Created) -> dict[str, Any]:
    """Return what was made of one node as plain data."""
    paths = {"path": str(one.path), "pointer": str(one.pointer) if one.pointer else None}
    return dataclasses.asdict(one) | paths | {"targets": fits_data(created_fits(one))}


def render_created(made: Sequence[Created], output: Path) -> str:
    """Return the table of packages, and what to do next."""
    rows = [
        (one.node, str(one.generation), "unchanged" if one.unchanged else "made", size(one.size), one.not_after,
         str(one.path))
        for one in made
    ]  # fmt: skip
    lines = [table(rows, ("node", "generation", "", "size", "valid until", "file"))]
    largest = max(made, key=lambda one: one.size)  # in every form, too
    found = created_fits(largest)
    heading = f"The largest, {largest.node}," if len(made) > 1 else "It"
    lines += ["", f"{heading} for each target, after encoding:", render_fits(found), ""]
    lines += [f"pointer: {one.pointer}" for one in made if one.pointer]
    if not all(ways[0].fits for ways in found.values()):
        lines.append(f"where it does not fit: {'deliver the pointer' if largest.pointer else POINTER_URL}")
    addons = output / "addons"
    lines += [f"for the cluster: kubectl apply -f {addons}"] if addons.is_dir() else []
    return "\n".join([*lines, f"next: imagebuilder data verify {made[0].path} --image out/<build identifier>"])


def render_package(package: Package, count: int, digest: str) -> str:
    """Return what a package says, for people."""
    manifest = package.manifest
    settings = manifest.settings
    facts = [
        ("node", f"{manifest.node}, {manifest.role}, of the cluster {manifest.cluster}"),
        ("generation", str(manifest.generation)),
        ("valid", f"{manifest.not_before} to {manifest.not_after}"),
        ("signed by", f"{manifest.key_id} (not checked)"),
        ("for", _pairs(manifest.selectors.model_dump(exclude_none=True)) or "any machine"),
        ("needs", _pairs(manifest.requires.model_dump(exclude_none=True)) or "nothing of the image"),
        ("sets", _pairs(settings.model_dump(exclude_none=True, exclude={"ssh_authorized_keys"})) or "nothing"),
        ("SSH keys", str(len(settings.ssh_authorized_keys or ()))),
        ("size", f"{count} bytes, sha256 {digest}"),
    ]
    files = [(file.path, file.mode, size(file.size), file.sha256[:SHORT]) for file in manifest.files]
    listed = table(files, ("file", "mode", "size", "sha256"))
    return f"{table(facts)}\n\n{listed}"


def render_pointer(pointer: Pointer) -> str:
    """Return what a pointer says, for people."""
    return table([
        ("pointer to", pointer.url), ("size", f"{pointer.size} bytes"), ("sha256", pointer.sha256),
        ("signed by", f"{pointer.key_id} (not checked)"),
    ])  # fmt: skip


def render_checks(checks: Sequence[Check]) -> str:
    """Return the table of checks."""
    return table([(check.name, check.code or "ok", check.text) for check in checks])


def _pairs(said: dict[str, Any]) -> str:
    return "; ".join(f"{name} {_words(value)}" for name, value in said.items())


def _words(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {item}" for name, item in value.items())
    return " or ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
