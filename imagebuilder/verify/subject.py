"""Finds out what an artifact claims to be: from the manifest beside it, else from what the user says of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imagebuilder.cells import split_os
from imagebuilder.errors import ArtifactError, UsageError
from imagebuilder.profiles import load_profile, profile_names
from imagebuilder.targets import load_target
from imagebuilder.verify.expected import load_expected
from imagebuilder.verify.model import Subject
from imagebuilder.vm.artifact import MANIFEST, read_manifest
from imagebuilder.vm.machine import FirmwareName

ANY_FIRMWARE = ("bios", "uefi")


@dataclass(frozen=True, kw_only=True, slots=True)
class Said:
    """What the user says of the artifact; empty where nothing.

    Attributes:
        os: may have a release: ``debian-13``.
        target: what it is for.
        arch: of its machines.
        firmware: what it is booted under, in this order.
    """

    os: str = ""
    target: str = ""
    arch: str = ""
    firmware: tuple[FirmwareName, ...] = ()


def find_subject(path: Path, said: Said) -> Subject:
    """Return what is to be verified.

    Args:
        path: the artifact, or the folder of a bake.
        said: what the user says of it: it is held against that, also where a manifest says otherwise.

    Raises:
        ArtifactError: there is no such file, or the folder is not whole.
        UsageError: nobody says what OS it is of, or there is no such OS or target.
    """
    path = path.absolute()
    manifest = _manifest(path)
    file = _file(path, manifest)
    cell = manifest.get("cell", {}) if manifest else {}
    name, release = split_os(said.os)
    if not name:
        name, release = str(cell.get("os", "")), str(cell.get("release", ""))
    if not name:
        known = ", ".join(profile_names())
        hint = f"imagebuilder verify {path} --os {profile_names()[0]}"
        raise UsageError(f"{path} has no manifest that says what OS it is of", context=f"--os {known}", hint=hint)
    if name not in profile_names():
        raise UsageError(
            f"there is no OS {name}", context=f"known: {', '.join(profile_names())}", hint="--os debian-13"
        )
    arch = said.arch or str(cell.get("arch", "amd64"))
    target = said.target or str(cell.get("target", ""))
    firmware = load_target(target).firmware if target else ANY_FIRMWARE
    profile = load_profile(name, release=release, arch=arch, target=target or "qemu")
    return Subject(
        path=file, name=str((manifest or {}).get("id", file.name)), family=profile.family, os=name,
        release=release, target=target, arch=arch,
        firmware=said.firmware or tuple((manifest or {}).get("capabilities", {}).get("firmware", firmware)),
        manifest=manifest,
        expected=load_expected(
            family=profile.family, os=name, target=target, release=release or profile.release, engine=_engine(manifest)
        ),
    )  # fmt: skip


def _engine(manifest: Mapping[str, Any] | None) -> str:
    """Return what made an image; somebody else's are mostly made as Packer makes them: from a cloud's."""
    return "direct" if manifest and "packer" not in manifest.get("tool", {}) else "packer"


def _manifest(path: Path) -> Mapping[str, Any] | None:
    """Return the manifest of a bake's folder, or of the folder a file is in, where it is that file's."""
    if path.is_dir():
        return read_manifest(path / MANIFEST)
    beside = path.parent / MANIFEST
    if not beside.is_file():
        return None
    manifest = read_manifest(beside)
    artifact = manifest.get("artifact")
    return manifest if isinstance(artifact, dict) and artifact.get("file") == path.name else None


def _file(path: Path, manifest: Mapping[str, Any] | None) -> Path:
    if not path.is_dir():
        if not path.is_file():
            raise ArtifactError(f"{path}: there is no such file", hint="name a disk, or the folder that a bake wrote")
        return path
    match manifest:
        case {"artifact": {"file": str(name)}} if Path(name).name == name and (path / name).is_file():
            return path / name
    raise ArtifactError(f"{path / MANIFEST} names no file that is there", hint="bake it again")
