"""The recipe of ``template``: a request, or every cell, becomes folders for Packer."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from imagebuilder.cells import plan_cells, plan_request
from imagebuilder.errors import UsageError
from imagebuilder.model import BuildRequest
from imagebuilder.packer.checks import check_folder
from imagebuilder.packer.folder import check_ours, write_folder, write_index
from imagebuilder.packer.render import PACKERS, Supplies, hcl_of, render_folder
from imagebuilder.plan import BuildPlan

ENGINE = "packer"
INDEX_HEAD = """\
# Packer folders

One folder for each cell; each works alone: `packer init . && packer build .`. Made by `imagebuilder template --all`.
What several have in common is stored once (hard links): copy a folder (`cp -r`) before you change a file in place.

| Folder | Image |
|---|---|
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rendered:
    """A folder that was written, or was there already just like this."""

    plan: BuildPlan
    folder: Path
    written: bool


def template(request: BuildRequest, output: Path) -> Rendered:
    """Render one cell into ``output``.

    Raises:
        UsageError: the cell does not exist, or ``output`` holds something else.
        CheckFailedError: what was rendered is not what Packer takes.
    """
    if request.engine not in ("auto", ENGINE):
        raise UsageError(f"a template is for Packer, not for the {request.engine} engine", hint="leave --engine out")
    plan = plan_request(replace(request, engine=ENGINE))
    check_ours(output)
    files = render_folder(plan, _supplies(request))
    for packer in PACKERS:
        check_folder(hcl_of(files, packer))
    return Rendered(plan=plan, folder=output, written=write_folder(output, files, name=plan.id))


def template_all(request: BuildRequest, output: Path) -> list[Rendered]:
    """Render every cell that Packer can make below ``output``, with an index; the other wishes hold for all.

    Raises:
        UsageError: ``output`` holds something else.
    """
    done = []
    supplies = _supplies(request)
    shared: dict[tuple[str, int], Path] = {}
    # Not checked here: the HCL depends on our data alone, of which the tests check every cell.
    for plan in plan_cells(request, engine=ENGINE):
        files = render_folder(plan, supplies)
        folder = output / plan.id
        written = write_folder(folder, files, name=plan.id, shared=shared)
        done.append(Rendered(plan=plan, folder=folder, written=written))
    if not done:
        raise UsageError("no cell can be made by the packer engine", hint="imagebuilder list cells")
    os.sync()
    write_index(output, "".join(_index_lines(done)), json.dumps(index_data(done), indent=2) + "\n")
    return done


def _supplies(request: BuildRequest) -> Supplies:
    """Return what a request itself brings along: image archives; a template asks no registry.

    Raises:
        UsageError: an image is no archive.
    """
    if others := [image for image in request.images if not image.endswith(".tar")]:
        raise UsageError(
            f"--image {others[0]}: a template can carry OCI archives only", hint="imagebuilder bake --engine packer"
        )
    return Supplies(images=tuple(Path(image) for image in request.images))


def index_data(done: Sequence[Rendered]) -> dict[str, Any]:
    """Return the index of many folders as plain data."""
    return {"kind": "PackerFolders", "folders": [as_data(item) | {"folder": item.folder.name} for item in done]}


def as_data(item: Rendered) -> dict[str, Any]:
    """Return what one folder is for, as plain data."""
    cell = item.plan.cell
    return {
        "id": item.plan.id, "folder": str(item.folder), "os": cell.os, "release": cell.release, "arch": cell.arch,
        "target": cell.target, "kubernetes": item.plan.kubernetes_minor, "builder": item.plan.target.builder,
    }  # fmt: skip


def _index_lines(done: Sequence[Rendered]) -> Iterator[str]:
    yield INDEX_HEAD
    for item in done:
        profile, target = item.plan.profile, item.plan.target
        title = f"{profile.title} {profile.release} ({profile.arch}) for {target.title}"
        yield f"| [`{item.folder.name}`]({item.folder.name}/README.md) | {title} |\n"
