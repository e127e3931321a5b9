"""Which Kubernetes runs with which containerd, cgroup version and pause image."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Literal

from pydantic import Field

from imagebuilder import resources
from imagebuilder.errors import IncompatibleError, UsageError
from imagebuilder.strict import Strict, label, read_toml, validate

Version = tuple[int, ...]

# Debian: [epoch:]upstream[+repack|~pre|-revision]; only upstream's leading numbers count here
_VERSION = re.compile(r"^(?:\d+:)?v?(\d+(?:\.\d+)*)(?:[-+~][0-9A-Za-z.+~:-]*)?$")
_VERSION_TEXT = r"^\d+(\.\d+)+$"


class Range(Strict):
    """Versions from ``minimum``, included, to ``below``, excluded."""

    minimum: str = Field(description="Lowest version.", pattern=_VERSION_TEXT)
    below: str = Field(description="First version that does not belong.", pattern=_VERSION_TEXT)

    def __contains__(self, version: str) -> bool:
        return parse_version(self.minimum) <= parse_version(version) < parse_version(self.below)

    def __str__(self) -> str:
        return f">= {self.minimum}, < {self.below}"


class Minor(Strict):
    """What one Kubernetes minor needs."""

    patch: str = Field(description="Newest known patch release.", pattern=r"^\d+\.\d+\.\d+$")
    containerd: Range = Field(description="Versions of containerd that it runs with.")
    cgroup: Literal[1, 2] = Field(description="cgroup version that it needs.")
    pause: str = Field(description="Pause image that kubeadm of this patch names.", pattern=r"^[^:]+:[\w.]+$")


class Compat(Strict):
    """The table of all known Kubernetes minors."""

    kubernetes: Mapping[str, Minor] = Field(description="What each minor needs, by minor.", min_length=1)

    def minors(self) -> tuple[str, ...]:
        """Return the known minors, oldest first."""
        return tuple(sorted(self.kubernetes, key=parse_version))

    def exact(self, version: str) -> str:
        """Return an exact version: a minor becomes its newest known patch.

        Raises:
            UsageError: the minor is not known, or this is no version.
        """
        minor = self.minor(version)
        return minor.patch if len(parse_version(version)) == 2 else ".".join(map(str, parse_version(version)))

    def minor(self, version: str) -> Minor:
        """Return what a version needs, ``1.35`` or ``1.35.8``.

        Raises:
            UsageError: the minor is not known, or this is no version.
        """
        name, known = minor_of(version), self.minors()
        if name not in self.kubernetes:
            near = min(known, key=lambda minor: _distance(minor, name))
            raise UsageError(
                f'Kubernetes "{version}" is not known (did you mean "{near}"?)',
                hint=f"--kubernetes: {', '.join(known)}",
            )
        return self.kubernetes[name]

    def newest_minor_for(self, containerd_version: str) -> str:
        """Return the newest Kubernetes minor that runs with this containerd.

        Raises:
            IncompatibleError: none does.
        """
        for name in reversed(self.minors()):
            if containerd_version in self.kubernetes[name].containerd:
                return name
        oldest = self.minors()[0]
        raise IncompatibleError(
            f"no known Kubernetes runs with containerd {containerd_version}",
            hint=f"take containerd {self.kubernetes[oldest].containerd} (Kubernetes {oldest})",
        )

    def check(self, kubernetes_version: str, containerd_version: str) -> None:
        """Refuse a pair that cannot run together; the hint names the nearest good one.

        Raises:
            IncompatibleError: the pair is bad.
            UsageError: the Kubernetes minor is not known.
        """
        wanted = self.minor(kubernetes_version).containerd
        if containerd_version in wanted:
            return
        good = [name for name in self.minors() if containerd_version in self.kubernetes[name].containerd]
        hint = f"take containerd {wanted}"
        if good:
            minor = min(good, key=lambda name: _distance(name, minor_of(kubernetes_version)))
            hint = f"--kubernetes {minor} runs with containerd {containerd_version}; or {hint}"
        raise IncompatibleError(
            f"Kubernetes {kubernetes_version} needs containerd {wanted}; this image has {containerd_version}",
            hint=hint,
        )


def parse_version(text: str) -> Version:
    """Return the numbers of a version; ``v``, an epoch and Debian's suffixes are left out.

    ``1.7.24~ds1-6+deb13u1`` gives ``(1, 7, 24)``.

    Raises:
        UsageError: this is no version.
    """
    found = _VERSION.match(text)
    if not found:
        raise UsageError(f'"{text}" is not a version', hint="write it like 1.35 or 1.35.8")
    return tuple(int(part) for part in found[1].split("."))


def minor_of(version: str) -> str:
    """Return the minor of a version: ``1.35`` of ``v1.35.8``.

    Raises:
        UsageError: this is no version, or only one number.
    """
    numbers = parse_version(version)
    if len(numbers) not in (2, 3):
        raise UsageError(f'"{version}" is not a Kubernetes version', hint="write it like 1.35 or 1.35.8")
    return f"{numbers[0]}.{numbers[1]}"


def load_compat(*, folder: Path | None = None) -> Compat:
    """Return the table of known versions.

    Raises:
        DataError: the file does not follow the schema.
    """
    return _load(folder or resources.folder("components"))


@cache
def _load(folder: Path) -> Compat:
    path = folder / "compat.toml"
    return validate(read_toml(path), Compat, label(path))


def newest_minor_for(containerd_version: str, *, folder: Path | None = None) -> str:
    """Return the newest Kubernetes minor that runs with this containerd; see :meth:`Compat.newest_minor_for`."""
    return load_compat(folder=folder).newest_minor_for(containerd_version)


def check(kubernetes_version: str, containerd_version: str, *, folder: Path | None = None) -> None:
    """Refuse a pair that cannot run together; see :meth:`Compat.check`."""
    load_compat(folder=folder).check(kubernetes_version, containerd_version)


def _distance(one: str, other: str) -> int:
    """Return how many minors lie between two of one major."""
    first, second = parse_version(one), parse_version(other)
    return abs((first[0] - second[0]) * 1000 + first[1] - second[1])
