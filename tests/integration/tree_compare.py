"""Compares two root trees: what is there, modes, owners, links, contents, attributes, and what dpkg says."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from imagebuilder.content import sha256_file

Facts = dict[str, str]


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A path of which two trees say different things."""

    path: str
    one: str
    other: str

    def __str__(self) -> str:
        return f"{self.path}: {self.one} | {self.other}"


def names(root: Path, file: str) -> dict[int, str]:
    """Return the names of a tree's own users or groups, by number: numbers may differ, whom they mean may not."""
    lines = (root / "etc" / file).read_text().splitlines()
    return {int(line.split(":")[2]): line.split(":")[0] for line in lines}


def facts(root: Path) -> Facts:
    """Return what each path is, as one line."""
    users, groups = names(root, "passwd"), names(root, "group")
    links: dict[tuple[int, int], str] = {}
    found: Facts = {}
    for path in sorted(walk(root)):
        status = path.lstat()
        what = f"{stat.filemode(status.st_mode)} {users.get(status.st_uid)}:{groups.get(status.st_gid)}"
        name = str(path.relative_to(root))
        if stat.S_ISLNK(status.st_mode):
            what += f" -> {path.readlink()}"
        elif stat.S_ISREG(status.st_mode):
            first = links.setdefault((status.st_dev, status.st_ino), name)
            what += f" {sha256_file(path)[:16]}" if first == name else f" = {first}"
        elif status.st_rdev:
            what += f" {os.major(status.st_rdev)},{os.minor(status.st_rdev)}"
        for key in os.listxattr(path, follow_symlinks=False):
            what += f" {key}={os.getxattr(path, key, follow_symlinks=False).hex()}"
        found[name] = what
    return found


def walk(root: Path) -> Iterator[Path]:
    for folder, below, files in os.walk(root):
        yield from (Path(folder, name) for name in (*below, *files))


def listed(root: Path) -> set[str]:
    """Return every path that dpkg says belongs to a package."""
    lists = (root / "var/lib/dpkg/info").glob("*.list")
    return {line.lstrip("/") for path in lists for line in path.read_text().splitlines()}


def differences(one: Facts, other: Facts) -> list[Difference]:
    """Return every path of which two trees say different things."""
    return [
        Difference(path=path, one=one.get(path, "absent"), other=other.get(path, "absent"))
        for path in sorted(one.keys() | other.keys())
        if one.get(path) != other.get(path)
    ]


def stanzas(root: Path) -> dict[str, dict[str, str]]:
    """Return dpkg's status: per package its fields."""
    found = {}
    for text in (root / "var/lib/dpkg/status").read_text().strip().split("\n\n"):
        fields: dict[str, str] = {}
        key = ""
        for line in text.split("\n"):
            if line.startswith(" "):
                fields[key] += f"\n{line}"
            else:
                key, _, value = line.partition(":")
                fields[key] = value.strip()
        found[fields["Package"]] = fields
    return found
