"""What is different between two images: packages, files, settings, units, sizes, boots.

Entries are compared first. Bytes are read only of files that could differ: of equal size, but of another time, and of
those whose change matters most (below /etc and /boot).
"""

from __future__ import annotations

import difflib
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from imagebuilder.model import plain
from imagebuilder.publish.page import size
from imagebuilder.verify.changes import Baseline, Changes, changes_since
from imagebuilder.verify.inventory import take_inventory
from imagebuilder.verify.model import Boot, Image, limited
from imagebuilder.verify.report.document import REPORT_FILE, read_baseline
from imagebuilder.verify.report.words import clean
from imagebuilder.verify.tree import Entry, Tree, walk

READ_ALWAYS = ("/etc/", "/boot/")
SETTINGS = "/etc/"
NOISE = (  # what every bake writes anew, or what says where another file's bytes lie: it says nothing of the image
    "*/__pycache__/*", "/var/cache/*", "/var/log/*", "/var/lib/dpkg/info/*", "/var/lib/dpkg/*-old", "/etc/ld.so.cache",
    "/var/lib/containerd/io.containerd.metadata.v1.bolt/meta.db",
)  # fmt: skip
MAX_READ = 256 << 20  # bytes of one file: larger ones of equal size count as changed
MAX_TEXT = 64 << 10  # bytes: no file of settings is larger
MAX_SETTINGS = 2000  # lines of settings in one comparison
_CHUNK_LINES = 200  # of one file


@dataclass(frozen=True, kw_only=True, slots=True)
class FileChange:
    """A file before and after; None where it was not, or is not any more. ``what`` says what is different of it."""

    path: str
    before: Entry | None
    after: Entry | None
    what: str

    @property
    def grown(self) -> int:
        """Return how many bytes more it has."""
        return (self.after.size if self.after else 0) - (self.before.size if self.before else 0)


@dataclass(frozen=True, kw_only=True, slots=True)
class Difference:
    """Two images: ``changes`` of their inventories, ``files`` by path, ``settings`` as a unified diff, in lines."""

    before: str
    after: str
    changes: Changes
    files: tuple[FileChange, ...]
    settings: tuple[str, ...]

    @property
    def nothing(self) -> bool:
        """Whether both images have the same."""
        return self.changes.nothing and not self.files


def compare(
    a: Image, b: Image, manifest_a: Mapping[str, Any] | None = None, manifest_b: Mapping[str, Any] | None = None
) -> Difference:
    """Return what is different.

    Args:
        a: the image before, open.
        b: the image after, open.
        manifest_a: of the first one's bake, for its name; its subject's where it is left out.
        manifest_b: of the second one's.

    Raises:
        ArtifactError: a file system, a package database or a report beside an artifact is damaged.
    """
    before, after = _baseline(a, manifest_a), _baseline(b, manifest_b)
    files = tuple(file_changes(a.root, b.root))
    return Difference(
        before=before.name,
        after=after.name,
        changes=changes_since(before, after.inventory, after.boots),
        files=files,
        settings=tuple(_settings(a.root, b.root, files)),
    )


def _baseline(image: Image, manifest: Mapping[str, Any] | None) -> Baseline:
    """Return what an image has; its boots are in the report of its own verification, where there is one."""
    path = image.subject.path
    file = path / str((manifest or image.subject.manifest or {}).get("artifact", {}).get("file", ""))
    inventory = take_inventory(image, file.stat().st_size if file.is_file() else path.stat().st_size)
    name = str((manifest or {}).get("id", image.subject.name))
    return Baseline(name=name, sha256="", inventory=inventory, boots=_boots(path))


def _boots(artifact: Path) -> tuple[Boot, ...]:
    folder = artifact if artifact.is_dir() else artifact.parent
    report = folder / REPORT_FILE
    return read_baseline(report).boots if report.is_file() else ()


def file_changes(before: Tree, after: Tree) -> Iterator[FileChange]:
    """Yield the paths at which something else stands now, in order; what is ``NOISE`` is left out.

    Raises:
        ArtifactError: a file system is damaged.
    """
    old = {path: entry for path, entry in walk(before) if not is_noise(path)}
    new = {path: entry for path, entry in walk(after) if not is_noise(path)}
    for path in sorted(old.keys() | new.keys()):
        one, other = old.get(path), new.get(path)
        what = _what(before, after, path, one, other)
        if what:
            yield FileChange(path=path, before=one, after=other, what=what)


def is_noise(path: str) -> bool:
    """Tell whether a path's change says nothing of the image."""
    return any(fnmatchcase(path, pattern) for pattern in NOISE)


def _what(before: Tree, after: Tree, path: str, one: Entry | None, other: Entry | None) -> str:
    """Return what is different of a path, in words; empty where nothing is."""
    if one is None:
        return "added"
    if other is None:
        return "removed"
    words = []
    if one.mode != other.mode:
        words.append(f"mode {one.mode:o} is {other.mode:o}")
    if (one.uid, one.gid) != (other.uid, other.gid):
        words.append(f"owner {one.uid}:{one.gid} is {other.uid}:{other.gid}")
    if one.target != other.target:
        words.append(f"link to {one.target} is to {other.target}")
    if one.capability != other.capability:
        words.append("capabilities")
    if one.is_file and other.is_file and _bytes_differ(before, after, path, one, other):
        words.append("content")
    return ", ".join(words)


def _bytes_differ(before: Tree, after: Tree, path: str, one: Entry, other: Entry) -> bool:
    if one.size != other.size:
        return True
    if one.mtime == other.mtime and not path.startswith(READ_ALWAYS):
        return False
    return one.size > MAX_READ or before.content(path, one.size) != after.content(path, other.size)


def _settings(before: Tree, after: Tree, files: tuple[FileChange, ...]) -> Iterator[str]:
    """Yield a unified diff of the text files below /etc that anyone may read, up to ``MAX_SETTINGS`` lines."""
    left = MAX_SETTINGS
    for change in files:
        if not change.path.startswith(SETTINGS):
            continue
        texts = [_text(tree, change.path, entry) for tree, entry in ((before, change.before), (after, change.after))]
        if texts[0] is None or texts[1] is None:
            continue
        lines = difflib.unified_diff(
            texts[0], texts[1], f"a{change.path}", f"b{change.path}", lineterm="", n=1
        )  # fmt: skip
        for line in list(lines)[: min(left, _CHUNK_LINES)]:
            left -= 1
            yield clean(line)
        if left <= 0:
            yield f"and more: only {MAX_SETTINGS} lines are shown"
            return


def _text(tree: Tree, path: str, entry: Entry | None) -> list[str] | None:
    """Return a file's lines; None where it is no text, too long for one of settings, or secret (/etc/shadow)."""
    if entry is None or not entry.is_file:
        return []
    if entry.size > MAX_TEXT or not entry.mode & stat.S_IROTH:
        return None
    try:
        text = tree.content(path, MAX_TEXT).decode()
    except UnicodeDecodeError:
        return None
    return None if "\0" in text else text.splitlines()


def as_json(difference: Difference) -> dict[str, Any]:
    """Return the document: ``before``, ``after``, ``changes``, ``files`` (path, what, grown), ``settings`` (lines).

    ``changes`` has artifact_size and installed_size as pairs, packages (before and after: name, version, arch, size;
    null where it is not), units and sockets added and removed, boots (firmware, stage, before, after).
    """
    return {
        "apiVersion": "imagebuilder/v1",
        "kind": "Difference",
        "before": difference.before,
        "after": difference.after,
        "same": difference.nothing,
        "changes": plain(difference.changes),
        "files": [{"path": one.path, "what": one.what, "grown": one.grown} for one in difference.files],
        "settings": list(difference.settings),
    }


def as_text(difference: Difference) -> str:
    """Return the difference for a terminal."""
    changes = difference.changes
    parts = [("Sizes", _sizes(changes)), ("Packages", _packages(changes)), ("Units", _names(changes, "units"))]
    parts += [("Ports", _names(changes, "sockets")), ("Boot", _boot_lines(changes))]
    parts += [("Files", [f"{one.path}: {one.what}" for one in difference.files])]
    blocks = [
        f"{title}\n" + "".join(f"  {clean(line)}\n" for line in limited(lines)) for title, lines in parts if lines
    ]
    if difference.settings:
        blocks.append("Settings\n" + "".join(f"  {line}\n" for line in difference.settings))
    head = (
        f"{difference.before} -> {difference.after}: {'nothing is different' if difference.nothing else 'different'}\n"
    )
    return "\n".join([head, *blocks])


def _sizes(changes: Changes) -> list[str]:
    pairs = (("artifact", changes.artifact_size), ("files", changes.installed_size))
    return [f"{name}: {size(pair[0])} -> {size(pair[1])}" for name, pair in pairs if pair and pair[0] != pair[1]]


def _packages(changes: Changes) -> list[str]:
    lines = [f"+ {one.name} {one.after.version}" for one in changes.added if one.after]
    lines += [f"- {one.name} {one.before.version}" for one in changes.removed if one.before]
    return lines + [
        f"{one.name} {one.before.version} -> {one.after.version}" for one in changes.changed if one.before and one.after
    ]


def _names(changes: Changes, what: str) -> list[str]:
    added, removed = getattr(changes, f"{what}_added"), getattr(changes, f"{what}_removed")
    return [*(f"+ {name}" for name in added), *(f"- {name}" for name in removed)]


def _boot_lines(changes: Changes) -> list[str]:
    return [f"{one.firmware}, until {one.stage}: {one.before:.1f} s -> {one.after:.1f} s" for one in changes.boots]
