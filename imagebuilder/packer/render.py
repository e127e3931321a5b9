"""A plan becomes a folder for Packer: what is in each file. :mod:`imagebuilder.packer.folder` writes it."""

from __future__ import annotations

import io
import re
import shlex
import tarfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imagebuilder import __version__, resources
from imagebuilder.errors import DataError, UsageError
from imagebuilder.packer.hcl import format_hcl, quote
from imagebuilder.plan import BuildPlan, LayerPlan, used_files
from imagebuilder.recipe_env import environment, layer_environment, repositories

if TYPE_CHECKING:
    import jinja2

GUEST = "/var/lib/imagebuilder-build"  # where the machine has what is uploaded; not on a tmpfs: it may reboot
OLD = "packer-1.6"
PACKERS = {"current": "", "1.6": f"{OLD}/"}  # the Packers that are rendered for, and where what differs goes
SCRIPTS = {  # ours -> where the folder has them
    "prepare.sh": "scripts/00-prepare.sh", "unpack.sh": "scripts/05-unpack.sh", "reboot.sh": "scripts/20-reboot.sh",
    "on-error.sh": "scripts/99-on-error.sh", "prepare-1.6.sh": f"{OLD}/prepare.sh",
}  # fmt: skip
PROVISION = "files/provision.tar"  # one file: Packer's upload takes a round trip for each
SHUTDOWN = "vm/shutdown.sh"  # of the recipe: removes the build user
UNATTENDED = {  # how an installer is told what to install -> part, and the file that it looks for
    "preseed": ("preseed.j2", "preseed.cfg"), "kickstart": ("kickstart.j2", "ks.cfg"),
    "autoinstall": ("autoinstall.j2", "user-data"),
}  # fmt: skip
NUMBERS = {"base": 10, "initramfs": 15, "runtime": 30, "kubernetes": 40, "guest": 45, "site": 50}
PROGRAM, TEXT = 0o755, 0o644


@dataclass(frozen=True, kw_only=True, slots=True)
class Item:
    """One file of the folder: its bytes, or where it is copied from; a folder there becomes a tar archive."""

    data: bytes | Path
    mode: int = TEXT


@dataclass(frozen=True, kw_only=True, slots=True)
class Supplies:
    """What the caller has already, and knows; all of it may be empty.

    Attributes:
        kubernetes: the exact version.
        payloads: per component the folder of its programs; others are installed as packages in the machine.
        pause: OCI archive of the pause image; without one the machine pulls it.
        images: OCI archives of the images to preload.
        checksum: of the source image, as ``sha256:<hex>``.
        values: of variables, over the plan's; those that the folder does not declare are left out.
    """

    kubernetes: str = ""
    payloads: Mapping[str, Path] = field(default_factory=dict)
    pause: Path | None = None
    images: tuple[Path, ...] = ()
    checksum: str = ""
    values: Mapping[str, str | int] = field(default_factory=dict)


NOTHING = Supplies()


def render_folder(
    plan: BuildPlan, supplies: Supplies = NOTHING, *, parts: Path | None = None, provision: Path | None = None
) -> dict[str, Item]:
    """Return the folder of one cell: what is in each file, by its path. Same input, same bytes.

    Args:
        plan: what was decided, for the engine ``packer``.
        supplies: what the caller has already.
        parts: the folder of the parts; ours by default.
        provision: the recipe's folder; ours by default.

    Raises:
        UsageError: a component comes from no packages, and is not among the supplies.
        DataError: the profile has no source image of the target's kind, or a part is wrong.
    """
    parts, provision = parts or resources.folder("packer"), provision or resources.folder("provision")
    context = _context(plan, supplies)
    files: dict[str, Item] = {}
    texts = {name: _Texts(parts, context, name) for name in PACKERS}
    for name, prefix in PACKERS.items():
        for file in ("sources.pkr.hcl", "build.pkr.hcl", "locals.pkr.hcl", "variables.pkr.hcl"):
            text = texts[name].file(file)
            if not prefix or text != texts["current"].file(file):
                files[f"{prefix}{file}"] = Item(data=text.encode())
    current = texts["current"]
    files["plugins.pkr.hcl"] = Item(data=current.file("plugins.pkr.hcl").encode())
    values = _values(plan, supplies, context["image"], current.variables())
    lines = "".join(f"{key} = {quote(value)}\n" for key, value in values.items())
    head = "# What was decided for this image; -var and -var-file win over it.\n\n"
    files["imagebuilder.auto.pkrvars.hcl"] = Item(data=format_hcl(head + lines).encode())
    files["README.md"] = Item(data=current.readme(values).encode())
    files |= {path: Item(data=data, mode=PROGRAM) for path, data in _scripts(parts).items()}
    files |= current.unattended()
    files |= _recipe(plan, supplies, provision, context)
    files |= _supplied(plan, supplies)
    return dict(sorted(files.items()))


def hcl_of(files: Mapping[str, Item], packer: str = "current") -> dict[str, str]:
    """Return the text of the HCL files that one Packer reads."""
    prefix = PACKERS[packer]
    chosen: dict[str, str] = {}
    for path, item in files.items():
        if path.endswith(".hcl") and isinstance(item.data, bytes):
            if "/" not in path and not (prefix and path == "plugins.pkr.hcl"):
                chosen.setdefault(path, item.data.decode())
            elif prefix and path.startswith(prefix):
                chosen[path.removeprefix(prefix)] = item.data.decode()
    return chosen


def _context(plan: BuildPlan, supplies: Supplies) -> dict[str, Any]:
    kind, profile = plan.target.source_kind, plan.profile
    image = profile.source_images.of(kind)
    if image is None:
        raise DataError(
            f"{profile.title} {profile.release} has no source image of the kind {kind}, which {plan.target.name} needs",
            hint="imagebuilder list cells",
        )
    exact = plan.kubernetes.count(".") == 2
    kubernetes = supplies.kubernetes or (plan.kubernetes if exact else plan.known_patch)
    tags = {
        "imagebuilder": __version__, "build": plan.id, "kubernetes": kubernetes, "os": profile.name,
        "release": profile.release, "arch": plan.cell.arch,
    }  # fmt: skip
    return {
        "plan": plan, "cell": plan.cell, "profile": profile, "target": plan.target, "image": image,
        "checksum": supplies.checksum, "kubernetes": kubernetes, "guest": GUEST, "tags": tags,
        "labels": {key: _label(value) for key, value in tags.items()},
        "plugin_name": plan.target.plugin.rpartition("/")[2],
        "layers": sorted(_script_name(layer) for layer in plan.layers),
        "packages": _packages(plan, supplies),
    }  # fmt: skip


def _label(value: str) -> str:
    """Return what a label of the Google Cloud may hold: lower case, digits, dashes, at most 63."""
    return re.sub(r"[^a-z0-9_-]", "-", value.lower())[:63]


def _script_name(layer: LayerPlan) -> str:
    return f"{NUMBERS[layer.name]}-{layer.name}.sh"


def _packages(plan: BuildPlan, supplies: Supplies) -> dict[str, tuple[str, tuple[str, ...]]]:
    """Return per component the kind of source, and the packages; none where its programs are supplied."""
    chosen: dict[str, tuple[str, tuple[str, ...]]] = {}
    for name, kinds in plan.sources.items():
        if name in supplies.payloads:
            chosen[name] = ("", ())
            continue
        for kind in kinds:
            names = plan.component(name).packages.get(kind, ())
            if name == "docker":
                names = plan.profile.runtime_packages(kind)
            if names:
                chosen[name] = (kind, tuple(names))
                break
        else:
            raise UsageError(
                f"{name} comes from {', '.join(kinds)}: a machine that Packer made can install only packages",
                hint=f"imagebuilder bake --engine packer, which uploads programs, or --source {name}=packages",
            )
    return chosen


def _values(plan: BuildPlan, supplies: Supplies, image: Any, declared: list[dict[str, str]]) -> dict[str, str | int]:
    """Return the values of the variables that the cell decides, for those that are declared."""
    known: dict[str, str | int] = {
        "build_name": plan.id, "disk_size_gib": plan.disk.size_gib, "ssh_username": image.ssh_user,
        "output_directory": "output",
    }  # fmt: skip
    if url := getattr(image, "url", ""):
        known |= {"source_image_url": url}
        if checksum := supplies.checksum or (image.checksum_url and f"file:{image.checksum_url}"):
            # Without a known sum Packer reads the publisher's list each time: the folder must work alone.
            known |= {"source_image_checksum": checksum}
    known |= supplies.values
    return {name: known[name] for variable in declared if (name := variable["name"]) in known}


class _Texts:
    """The rendered parts for one Packer; each is rendered once, and says what the later ones need."""

    def __init__(self, parts: Path, context: Mapping[str, Any], packer: str) -> None:
        self._jinja = _jinja(parts)
        self._target = context["target"].name
        self._context = {**context, "packer": packer}
        self._done: dict[str, str] = {}
        self._own = self._render(f"variables/{self._target}.pkr.hcl.j2")
        self._make("sources.pkr.hcl", f"sources/{self._target}.pkr.hcl.j2")
        # What the target's own parts declare is theirs: the common parts leave it out.
        self._declared = _declared(self._done["sources.pkr.hcl"]) | _declared(format_hcl(self._own))
        self._context |= {"uses": self._uses, "needs": self._needs}
        for name in ("build", "locals"):
            self._make(f"{name}.pkr.hcl", f"{name}.pkr.hcl.j2")
        self._make("variables.pkr.hcl", "variables.pkr.hcl.j2", own_variables=self._own)
        self._make("plugins.pkr.hcl", "plugins.pkr.hcl.j2")

    def file(self, name: str) -> str:
        """Return one file's text."""
        return self._done[name]

    def variables(self) -> list[dict[str, str]]:
        """Return name, description and kind of the variables, in their order."""
        return _variables(self._done["variables.pkr.hcl"])

    def readme(self, values: Mapping[str, Any]) -> str:
        """Return the README; it names the variables that have no value yet."""
        variables = self.variables()
        required = [v["name"] for v in variables if not v["known"] and v["name"] not in values]
        kinds = [{**v, "kind": v["kind"] or ("must be set" if v["name"] in required else "")} for v in variables]
        return self._render("README.md.j2", variables=kinds, required=required)

    def unattended(self) -> dict[str, Item]:
        """Return the answers for the installer that the target starts from, if it is one."""
        how = getattr(self._context["image"], "unattended", "")
        if not how:
            return {}
        part, name = UNATTENDED[how]
        files = {f"unattended/{name}": Item(data=self._render(f"unattended/{part}").encode())}
        return files | ({"unattended/meta-data": Item(data=b"")} if name == "user-data" else {})

    def _uses(self, name: str) -> bool:
        word = _word(name)
        return any(name in text and word.search(text) for text in (self._own, *self._done.values()))

    def _needs(self, name: str) -> bool:
        """Return whether the common parts must declare a name."""
        return name not in self._declared and self._uses(name)

    def _make(self, name: str, part: str, **more: Any) -> None:
        self._done[name] = format_hcl(self._render(part, **more))

    def _render(self, part: str, **more: Any) -> str:
        import jinja2

        try:
            return self._jinja.get_template(part).render(self._context, **more)
        except jinja2.TemplateNotFound as error:
            raise DataError(f"packer/{part} is missing", hint=f"{self._target} has the engine packer") from error
        except jinja2.TemplateError as error:
            line = getattr(error, "lineno", None) or _line_in(error, part)
            raise DataError(f"packer/{part}:{line}: {error}", hint="correct the part") from error


@cache
def _word(name: str) -> re.Pattern[str]:
    return re.compile(rf"(?<![\w.]){re.escape(name)}\b(?!-)")


@lru_cache(maxsize=256)
def _variables(text: str) -> list[dict[str, str]]:
    found = []
    for name, body in re.findall(r'^variable "([^"]+)" \{$(.*?)^\}$', text, re.M | re.S):
        stated = dict(re.findall(r"^  (\w+) += (.*)$", body, re.M))
        secret = "secret" if stated.get("sensitive") == "true" else ""
        known = "default" if "default" in stated else ""
        description = stated.get("description", "").strip('"')
        found.append({"name": name, "description": description, "kind": secret, "known": known})
    return found


@lru_cache(maxsize=1024)
def _declared(text: str) -> frozenset[str]:
    """Return what laid-out HCL declares, as ``var.x`` and ``local.x``; the checks read it properly."""
    found = {f"var.{name}" for name in re.findall(r'^variable "([^"]+)"', text, re.M)}
    found |= {f"local.{name}" for name in re.findall(r'^local "([^"]+)"', text, re.M)}
    for body in re.findall(r"^locals \{$(.*?)^\}$", text, re.M | re.S):
        found |= {f"local.{name}" for name in re.findall(r"^  (\w+) += ", body, re.M)}
    return frozenset(found)


def _line_in(error: BaseException, part: str) -> int:
    """Return the last line of a part that a traceback names."""
    line, trace = 1, error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename.endswith(part):
            line = trace.tb_lineno
        trace = trace.tb_next
    return line


@cache
def _jinja(parts: Path) -> jinja2.Environment:
    import jinja2

    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(parts), undefined=jinja2.StrictUndefined, keep_trailing_newline=True,
        trim_blocks=True, lstrip_blocks=True, auto_reload=False, autoescape=False,  # noqa: S701 - HCL, not HTML: the filter quotes
    )  # fmt: skip
    made.filters["hcl"] = quote
    return made


@cache
def _scripts(parts: Path) -> dict[str, bytes]:
    return {path: (parts / "scripts" / name).read_bytes() for name, path in SCRIPTS.items()}


@cache
def _provision(folder: Path) -> dict[str, Item]:
    """Return all files of the recipe, by their paths below ``provision/``."""
    return {
        path.relative_to(folder).as_posix(): Item(
            data=path.read_bytes(), mode=PROGRAM if path.stat().st_mode & 0o100 else TEXT
        )
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def _recipe(plan: BuildPlan, supplies: Supplies, provision: Path, context: Mapping[str, Any]) -> dict[str, Item]:
    every, packages = _provision(provision), context["packages"]
    wanted = repositories(plan, [kind for kind, _ in packages.values()])
    # Without any, there is nothing for the steps that set them up.
    layers = [
        replace(layer, steps=tuple(step for step in layer.steps if wanted or "repositories" not in step.when))
        for layer in plan.layers
    ]
    files = {PROVISION: Item(data=_archive(provision, _used(layers, plan, every)))}
    env = environment(
        plan, kubernetes=context["kubernetes"], inside=GUEST,
        packages={name: names for name, (_, names) in packages.items()}, payloads=supplies.payloads,
        pause=supplies.pause is not None,
    )  # fmt: skip
    for layer in layers:
        script = _layer_script(layer, layer_environment(layer, env | {"IB_REPOSITORIES": wanted}))
        files[f"scripts/{_script_name(layer)}"] = Item(data=script.encode(), mode=PROGRAM)
    return files


_USED: dict[tuple[str | int, ...], tuple[str, ...]] = {}  # cells have few different recipes; `every` is cached too


def _used(layers: Sequence[LayerPlan], plan: BuildPlan, every: Mapping[str, Item]) -> tuple[str, ...]:
    profile = plan.profile
    key = (profile.family, profile.init, id(every), *(step.key for layer in layers for step in layer.steps))
    if key not in _USED:
        known = dict.fromkeys(every, "")
        paths = {path for layer in layers for path in used_files(layer, profile, known)}
        _USED[key] = tuple(sorted(paths | {SHUTDOWN}))
    return _USED[key]


@lru_cache(maxsize=64)  # cells have few different recipes
def _archive(provision: Path, paths: tuple[str, ...]) -> bytes:
    """Return files of the recipe as a tar archive; nothing of this machine is in it."""
    every, stream = _provision(provision), io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for path in paths:
            item = every[path]
            assert isinstance(item.data, bytes)
            entry = tarfile.TarInfo(f"provision/{path}")
            entry.size, entry.mode = len(item.data), item.mode
            tar.addfile(entry, io.BytesIO(item.data))
    return stream.getvalue()


def _layer_script(layer: LayerPlan, env: Mapping[str, str]) -> str:
    lines = ["#!/bin/sh", f"# The layer {layer.name}:"]
    lines += [f"# {step.order:02d} {step.title}" for step in layer.steps]
    lines += ["set -eu", f"export IB_PROVISION={GUEST}/provision"]
    lines += [f"export {name}={shlex.quote(value)}" for name, value in sorted(env.items())]
    words = ['/bin/sh "$IB_PROVISION/run-steps.sh"', *(f"{step.key}.sh" for step in layer.steps)]
    lines.append(" \\\n    ".join(words))
    return "\n".join(lines) + "\n"


def _supplied(plan: BuildPlan, supplies: Supplies) -> dict[str, Item]:
    """Return what goes into the machine apart from the recipe: programs, images, the user's own."""
    files = {"files/agent.py": Item(data=resources.agent().read_bytes())}
    for component, folder in supplies.payloads.items():
        for path in sorted(folder.iterdir()):
            if path.is_file():
                mode = PROGRAM if path.stat().st_mode & 0o100 else TEXT
                files[f"files/payload/{component}/{path.name}"] = Item(data=path, mode=mode)
    if supplies.pause is not None:
        files["files/pause.tar"] = Item(data=supplies.pause)
    numbered: tuple[tuple[tuple[Path, ...], Callable[[int, Path], str], int], ...] = (
        (supplies.images, lambda at, _: f"images/{at:03d}.tar", TEXT),
        (plan.request.overlays, lambda at, _: f"overlays/{at:03d}.tar", TEXT),
        (plan.request.trust, lambda at, path: f"trust/{at:03d}-{path.stem}.pem", TEXT),
        (plan.request.scripts, lambda at, path: f"scripts/{at:03d}-{path.name}", PROGRAM),
    )
    for paths, name, mode in numbered:
        files |= {f"files/{name(at, path)}": Item(data=path, mode=mode) for at, path in enumerate(paths)}
    return files
