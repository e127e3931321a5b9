"""What changed between two inventories: the words of a budget, of the report's last part, and of ``diff``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from imagebuilder.verify.model import Boot, Inventory, Package

MOST = 5  # how many of those that grew are named


@dataclass(frozen=True, kw_only=True, slots=True)
class Baseline:
    """An earlier verification, or only the manifest of an earlier bake.

    Attributes:
        name: of the image.
        sha256: of its artifact.
        inventory: what it had.
        boots: how it booted.
        whole: False for a manifest, which knows neither sizes of packages nor units, sockets or boots.
    """

    name: str
    sha256: str
    inventory: Inventory
    boots: tuple[Boot, ...] = ()
    whole: bool = True


@dataclass(frozen=True, kw_only=True, slots=True)
class PackageChange:
    """A package before and after; None where it was not, or is not any more."""

    before: Package | None
    after: Package | None

    @property
    def name(self) -> str:
        """Return its name."""
        return (self.after or self.before or _NOBODY).name

    @property
    def grown(self) -> int:
        """Return how many bytes more it takes; a size nobody stated is 0."""
        if self.after is not None and self.before is not None and not self.before.size:
            return 0
        return (self.after.size if self.after else 0) - (self.before.size if self.before else 0)


@dataclass(frozen=True, kw_only=True, slots=True)
class BootChange:
    """Seconds until a stage of a firmware's boot, before and after."""

    firmware: str
    stage: str
    before: float
    after: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Changes:
    """What is different: pairs are before and after, in bytes; empty where nothing is, or nobody knows."""

    artifact_size: tuple[int, int]
    installed_size: tuple[int, int] | None
    packages: tuple[PackageChange, ...]
    units_added: tuple[str, ...] = ()
    units_removed: tuple[str, ...] = ()
    sockets_added: tuple[str, ...] = ()
    sockets_removed: tuple[str, ...] = ()
    boots: tuple[BootChange, ...] = ()

    @property
    def added(self) -> tuple[PackageChange, ...]:
        """Return the new packages."""
        return tuple(change for change in self.packages if change.before is None)

    @property
    def removed(self) -> tuple[PackageChange, ...]:
        """Return the packages that are gone."""
        return tuple(change for change in self.packages if change.after is None)

    @property
    def changed(self) -> tuple[PackageChange, ...]:
        """Return the packages that are another version, or another size."""
        return tuple(change for change in self.packages if change.before and change.after)

    @property
    def nothing(self) -> bool:
        """Whether both have the same of everything but boot seconds, which never are the same."""
        lists = (self.packages, self.units_added, self.units_removed, self.sockets_added, self.sockets_removed)
        sizes = (self.artifact_size, self.installed_size or (0, 0))
        return not any(lists) and all(before == after for before, after in sizes)


_NOBODY = Package(name="", version="", arch="", size=0)


def changes_since(baseline: Baseline, inventory: Inventory, boots: Sequence[Boot] = ()) -> Changes:
    """Return what an image has that its baseline has not, and the other way round."""
    old, whole = baseline.inventory, baseline.whole
    # Only a guest shows its sockets: where one of the two was not booted, nothing is known of them.
    seen = bool(whole and baseline.boots and boots)
    return Changes(
        artifact_size=(old.artifact_size, inventory.artifact_size),
        installed_size=(old.installed_size, inventory.installed_size) if whole else None,
        packages=package_changes(old.packages, inventory.packages),
        units_added=_without(inventory.units, old.units) if whole else (),
        units_removed=_without(old.units, inventory.units) if whole else (),
        sockets_added=_without(inventory.sockets, old.sockets) if seen else (),
        sockets_removed=_without(old.sockets, inventory.sockets) if seen else (),
        boots=_boot_changes(baseline.boots, boots),
    )


def package_changes(before: Sequence[Package], after: Sequence[Package]) -> tuple[PackageChange, ...]:
    """Return packages that are new, gone, or not the same, by name; several of a name and architecture by version."""
    old, new = _by_key(before), _by_key(after)
    return tuple(
        PackageChange(before=old.get(key), after=new.get(key))
        for key in sorted(old.keys() | new.keys())
        if _differ(old.get(key), new.get(key))
    )


def grew_most(changes: Changes, count: int = MOST) -> list[PackageChange]:
    """Return the packages that grew most, the largest first."""
    grown = [change for change in changes.packages if change.grown > 0]
    return sorted(grown, key=lambda change: (-change.grown, change.name))[:count]


def _by_key(packages: Sequence[Package]) -> Mapping[tuple[str, str, str], Package]:
    """Return packages by name and architecture; kernels of the Red Hat family are installed side by side."""
    found: dict[tuple[str, str, str], Package] = {}
    for package in packages:
        key = (package.name, package.arch, "")
        if key in found:
            key = (package.name, package.arch, package.version)
        found[key] = package
    return found


def _differ(before: Package | None, after: Package | None) -> bool:
    if before is None or after is None:
        return True
    return before.version != after.version or bool(before.size and before.size != after.size)


def _without(names: Sequence[str], others: Sequence[str]) -> tuple[str, ...]:
    return tuple(sorted(set(names) - set(others)))


def _boot_changes(before: Sequence[Boot], after: Sequence[Boot]) -> tuple[BootChange, ...]:
    old = {boot.firmware: boot.stages for boot in before}
    return tuple(
        BootChange(firmware=boot.firmware, stage=stage, before=old[boot.firmware][stage], after=seconds)
        for boot in after
        for stage, seconds in boot.stages.items()
        if stage in old.get(boot.firmware, {})
    )
