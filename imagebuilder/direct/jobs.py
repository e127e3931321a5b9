"""What each layer is built from: a plan, a lock, materials and the site's files become layer jobs with their ids."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from imagebuilder import resources
from imagebuilder.content import content_id, sha256_bytes, sha256_file
from imagebuilder.direct.layerjob import LayerJob
from imagebuilder.direct.sandbox import INSIDE, Bind
from imagebuilder.errors import UsageError
from imagebuilder.fetch import Materials
from imagebuilder.model import LAYERS, LockedPackage
from imagebuilder.plan import ON_BASE, BuildPlan, LayerPlan, layer_ids
from imagebuilder.recipe_env import environment, layer_environment
from imagebuilder.resolve import LAYER_OF, Lock

_Item = TypeVar("_Item")


def layer_jobs(plan: BuildPlan, lock: Lock, materials: Materials, provision: Path) -> list[LayerJob]:
    """Return the jobs of all layers, the lowest first.

    Args:
        plan: what was decided.
        lock: what was found.
        materials: what was fetched.
        provision: the ``provision`` folder.
    """
    fast = plan.request.root_builder == "fast"
    own: dict[str, dict[str, Any]] = {
        # The same files as mmdebstrap's, but not the same bytes: numbers of users, and files that scripts write.
        # Layers that mmdebstrap made are older than the choice: theirs is the id that does not name it.
        "base": {"root_builder": "fast"} if fast else {},
        "kubernetes": {"agent": sha256_file(resources.agent())},
        "site": site_inputs(plan),
    }
    inputs = {layer.name: _inputs(layer.name, lock, materials) | own.get(layer.name, {}) for layer in plan.layers}
    hashes = {
        path.relative_to(provision).as_posix(): f"{path.stat().st_mode & 0o111:o}-{sha256_bytes(path.read_bytes())}"
        for path in sorted(provision.rglob("*"))
        if path.is_file()
    }
    ids = layer_ids(plan, inputs, hashes)
    env, binds = _environment(plan, lock, materials), _binds(plan, materials)
    installed: dict[str, str] = {}
    jobs = []
    for layer in plan.layers:
        packages = lock.packages[layer.name]
        installed |= {package.name: package.version for package in packages}
        jobs.append(
            LayerJob(
                name=layer.name,
                id=ids[layer.name],
                packages=packages,
                installed=dict(installed),
                steps=tuple(f"{step.key}.sh" for step in layer.steps),
                env=layer_environment(layer, env),
                binds=tuple(binds[layer.name]),
                texts={"/etc/apt/sources.list": lock.apt_sources} if layer.name == "base" else {},
                info={"inputs": inputs[layer.name], "steps": _keys(layer)},
                on_base=layer.name in ON_BASE,
                fast=fast,
            )
        )
    return jobs


def _keys(layer: LayerPlan) -> list[str]:
    return [step.key for step in layer.steps]


def _inputs(name: str, lock: Lock, materials: Materials) -> dict[str, Any]:
    """Return what a layer's id covers beyond its steps: exact packages, payloads, images, files."""
    inputs: dict[str, Any] = {
        "packages": [package.exact for package in lock.packages[name]],
        "payloads": {
            component: folder.name
            for component, folder in sorted(materials.payloads.items())
            if LAYER_OF[component] == name
        },
    }
    if name == "base":
        inputs |= {"sources": lock.apt_sources}
    if name == "kubernetes":
        inputs |= {"version": lock.kubernetes, "pause": materials.pause.id if materials.pause else ""}
    if name == "site":
        inputs |= {"images": [image.id for image in materials.images]}
    return inputs


def _environment(plan: BuildPlan, lock: Lock, materials: Materials) -> dict[str, str]:
    # Without versions: the layer's own repository has only one of each.
    packages = {name: [p.partition("=")[0] for p in taken.packages] for name, taken in lock.taken.items()}
    return environment(
        plan, kubernetes=lock.kubernetes, packages=packages, payloads=materials.payloads, inside=INSIDE
    )  # fmt: skip


def _binds(plan: BuildPlan, materials: Materials) -> dict[str, list[Bind]]:
    binds: dict[str, list[Bind]] = {layer.name: [] for layer in plan.layers}
    for component, folder in materials.payloads.items():
        binds[LAYER_OF[component]].append(Bind(source=folder, target=f"{INSIDE}/payload/{component}"))
    if materials.pause:
        binds["kubernetes"].append(Bind(source=materials.pause.path, target=f"{INSIDE}/pause.tar"))
    if "kubernetes" in binds:  # a bare image has no such layer
        binds["kubernetes"].append(Bind(source=resources.agent(), target=f"{INSIDE}/agent.py"))
    site = binds["site"]
    for number, path in _numbered(plan.request.overlays):
        site.append(Bind(source=path, target=f"{INSIDE}/overlays/{number}"))
    for number, path in _numbered(plan.request.trust):
        site.append(Bind(source=path, target=f"{INSIDE}/trust/{number}-{path.stem}.pem"))
    for number, path in _numbered(plan.request.scripts):
        site.append(Bind(source=path, target=f"{INSIDE}/scripts/{number}-{path.name}"))
    for number, image in _numbered(materials.images):
        site.append(Bind(source=image.path, target=f"{INSIDE}/images/{number}.tar"))
    return binds


def _numbered(items: Sequence[_Item]) -> list[tuple[str, _Item]]:
    """Return items with numbers of one width: the steps take them in the order of their names."""
    width = max(2, len(str(len(items))))
    return [(f"{number:0{width}d}", item) for number, item in enumerate(items)]


def site_inputs(plan: BuildPlan) -> dict[str, Any]:
    """Return the digests of the user's overlays, keys and scripts.

    Raises:
        UsageError: one of them is not there, or cannot be read.
    """
    with _files_named("check the paths of --overlay, --trust and --script"):
        return {
            "overlays": [folder_digest(path) for path in plan.request.overlays],
            "trust": [[path.stem, sha256_file(path)] for path in plan.request.trust],
            "scripts": [[path.name, sha256_file(path)] for path in plan.request.scripts],
        }


@contextmanager
def _files_named(hint: str) -> Iterator[None]:
    """Say which file of the user's it is that cannot be read."""
    try:
        yield
    except OSError as error:
        raise UsageError(f"{error.filename}: {error.strerror}", hint=hint) from error


def folder_digest(folder: Path) -> str:
    """Return a digest of a folder: names, kinds, modes, links and contents; not owners and times.

    Raises:
        OSError: it is not there, or not all of it can be read.
    """
    entries: list[Sequence[str | int]] = []
    for root, names, files in os.walk(folder, onerror=_raise):
        for name in [*names, *files]:
            path = Path(root, name)
            mode = path.lstat().st_mode
            content = ""
            if stat.S_ISLNK(mode):
                content = str(path.readlink())
            elif stat.S_ISREG(mode):
                content = sha256_file(path)
            entries.append([path.relative_to(folder).as_posix(), mode & ~0o022, content])
    return content_id(sorted(entries))


def _raise(error: OSError) -> None:
    raise error


def installed_packages(lock: Lock) -> list[tuple[str, LockedPackage]]:
    """Return (layer, package) of everything in the image, by name."""
    found = [(layer, p) for layer in LAYERS for p in lock.packages[layer]]
    return sorted(found, key=lambda item: item[1].name)
