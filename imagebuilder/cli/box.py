"""``imagebuilder box``: a self-hosted catalog of Vagrant boxes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from imagebuilder.cli.output import json_option, print_json, size, table

if TYPE_CHECKING:
    from imagebuilder.publish.catalog import Added
    from imagebuilder.publish.catalogfile import BoxEntry, State

SHORT = 12  # digits of a checksum that are shown

catalog_option = click.option(
    "--catalog", type=click.Path(path_type=Path, file_okay=False), required=True, metavar="DIR",
    help="The folder of the catalog.",
)  # fmt: skip


@click.group("box")
def command() -> None:
    """Keep a catalog of Vagrant boxes."""


@command.command("catalog")
@click.option(
    "--output", type=click.Path(path_type=Path, file_okay=False), required=True, metavar="DIR",
    help="The folder of the catalog.",
)  # fmt: skip
@click.option("--url", required=True, help="The address under which the folder will be served.")
@click.option("--title", default="", help="The heading of the page.")
def create(output: Path, url: str, title: str) -> None:
    """Make a catalog, or change its address or title."""
    from imagebuilder.publish.catalog import Catalog

    new = Catalog(output).create(url, title)
    click.echo(f"{'made' if new else 'changed'} {output}")
    click.echo(f"next: imagebuilder box add out/<build identifier> --catalog {output} --name user/box")


@command.command("add")
@click.argument("box", type=click.Path(path_type=Path))
@catalog_option
@click.option("--name", default="", metavar="USER/BOX", help="The box's name in the catalog.  [default: from the box]")
@click.option("--version", default="", help="Its version.  [default: the date, and a number]")
@click.option("--description", default="", help="A sentence about it.")
@click.option("--arch", type=click.Choice(["amd64", "arm64"]), default="amd64", help="Where the box does not say it.")
@json_option
def add(box: Path, catalog: Path, name: str, version: str, description: str, arch: str, as_json: bool) -> None:
    """Add a box: the file, or the folder that a bake wrote."""
    import dataclasses
    from datetime import UTC, datetime

    from imagebuilder.cli.monitors import choose_monitor
    from imagebuilder.events import Progress
    from imagebuilder.publish.catalog import Catalog, Wanted

    file, digest = find_box(box)
    now = datetime.now(UTC)
    wanted = Wanted(
        name=name, version=version, arch=arch, description=description, sha256=digest,
        day=f"{now:%Y%m%d}", created_at=f"{now:%Y-%m-%dT%H:%M:%SZ}",
    )  # fmt: skip
    with Progress(choose_monitor(as_json)).stage("box", f"Box {file.name}") as stage:
        added = Catalog(catalog).add(file, wanted, on_progress=lambda done, all_: stage.update(done, all_, "B"))
        stage.cached = added.unchanged
    if as_json:
        print_json({"kind": "result"} | dataclasses.asdict(added) | {"path": str(added.path)})
    else:
        click.echo(describe(added))


@command.command("list")
@catalog_option
@click.option("--check", is_flag=True, help="Compare every file with its checksum; takes a second per GiB.")
@json_option
def show(catalog: Path, check: bool, as_json: bool) -> None:
    """List the boxes of a catalog, and check their files."""
    from imagebuilder.errors import CheckFailedError
    from imagebuilder.publish.catalog import Catalog

    found = Catalog(catalog)
    state, boxes = found.state(), found.boxes()
    problems = found.check() if check else []
    if as_json:
        print_json(as_data(state, boxes) | ({"problems": problems} if check else {}))
    else:
        click.echo(render(state, boxes))
    if problems:
        hint = "add the boxes again, or remove what is no longer wanted: imagebuilder box prune"
        raise CheckFailedError(f"{catalog}: {len(problems)} problems", context="\n".join(problems), hint=hint)
    if check and not as_json:
        click.echo("every file is as the catalog says")


@command.command("prune")
@catalog_option
@click.option("--keep", type=click.IntRange(min=1), required=True, metavar="N", help="Versions that stay, per box.")
@click.option("--box", default="", metavar="USER/BOX", help="Prune this box only.")
@json_option
def prune(catalog: Path, keep: int, box: str, as_json: bool) -> None:
    """Remove all but the newest versions."""
    from imagebuilder.publish.catalog import Catalog

    removed = Catalog(catalog).prune(keep, box)
    if as_json:
        print_json({"kind": "result", "removed": [{"name": name, "version": version} for name, version in removed]})
    else:
        click.echo("\n".join([*(f"removed {name} {version}" for name, version in removed), f"{len(removed)} removed"]))


def find_box(path: Path) -> tuple[Path, str]:
    """Return the box that a path means, and the sha256 that its manifest states, or an empty string.

    Raises:
        ArtifactError: the folder holds none.
    """
    from imagebuilder.errors import ArtifactError
    from imagebuilder.vm.artifact import MANIFEST, MAX_MANIFEST

    if not path.is_dir():
        return path, ""
    try:
        with (path / MANIFEST).open("rb") as stream:
            manifest = json.loads(stream.read(MAX_MANIFEST))
    except (OSError, ValueError) as error:
        hint = "name a box, or the folder out/<build identifier> that a bake wrote"
        raise ArtifactError(f"{path} has no {MANIFEST} that can be read", context=str(error), hint=hint) from error
    match manifest:
        case {"artifact": {"format": "box", "file": str(name), "sha256": str(digest)}} if Path(name).name == name:
            return path / name, digest
    hint = "imagebuilder bake --os debian --target vagrant-libvirt"
    raise ArtifactError(f"{path} does not hold a Vagrant box", hint=hint)


def describe(added: Added) -> str:
    """Return what an add did, for people."""
    what = "already there" if added.unchanged else "added"
    return table([
        ("box", f"{added.name} {added.version}, {what}"),
        ("provider", f"{added.provider}, {added.arch}"),
        ("file", str(added.path)),
        ("use it", f"vagrant init {added.name} {added.url}"),
    ])  # fmt: skip


def as_data(state: State, boxes: list[BoxEntry]) -> dict[str, Any]:
    """Return a catalog as plain data."""
    return {"url": state.url, "title": state.title, "boxes": [box.model_dump(mode="json") for box in boxes]}


def render(state: State, boxes: list[BoxEntry]) -> str:
    """Return the table of boxes."""
    rows = [
        (box.name, version.version, file.name, file.architecture, size(file.size), file.checksum[:SHORT])
        for box in boxes
        for version in box.versions
        for file in version.providers
    ]
    if not rows:
        return f"no boxes yet; the address is {state.url}"
    return table(rows, ("box", "version", "provider", "arch", "size", "sha256"))
