"""What the checks ask a tree again and again; each question is answered once."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from imagebuilder.errors import ArtifactError
from imagebuilder.verify.tree import Entry, Tree, resolve, text, walk

DEBIAN, REDHAT = frozenset({"debian"}), frozenset({"redhat"})
MAX_FILES = 2_000_000  # in one file system; a node has some 10,000, and what is remembered of each is small
PROGRAMS = ("/usr/bin", "/usr/sbin", "/usr/local/bin", "/usr/local/sbin")  # /bin and /sbin are links to the first two
# Later ones hide files of the same name in earlier ones (sysctl.d(5), modules-load.d(5)).
DROP_IN_FOLDERS = ("/usr/lib", "/usr/local/lib", "/run", "/etc")


@dataclass(frozen=True, slots=True)
class Remembered:
    """A tree that asks the one below only once for an entry or a folder's names; contents are not kept."""

    base: Tree
    _entries: dict[str, Entry | None] = field(default_factory=dict, repr=False)
    _names: dict[str, list[str]] = field(default_factory=dict, repr=False)

    def entry(self, path: str) -> Entry | None:
        """Return what stands at a path; see :class:`Tree`.

        Raises:
            ArtifactError: the file system is damaged, or has more files than any node's.
        """
        if path not in self._entries:
            if len(self._entries) >= MAX_FILES:
                raise ArtifactError(f"the file system has more than {MAX_FILES} files")
            self._entries[path] = self.base.entry(path)
        return self._entries[path]

    def names(self, path: str) -> list[str]:
        """Return the names in a folder; see :class:`Tree`."""
        if path not in self._names:
            self._names[path] = self.base.names(path)
        return self._names[path]

    def content(self, path: str, limit: int) -> bytes:
        """Return the first bytes of a file; see :class:`Tree`."""
        return self.base.content(path, limit)


def names(root: Tree, folder: str) -> list[str]:
    """Return the names in a folder, links on the way followed; none where there is no such folder."""
    found = resolve(root, folder)
    return root.names(found[0]) if found else []


def paths(root: Tree, folder: str, pattern: str = "*") -> list[str]:
    """Return the paths of what is in a folder and has a name of this pattern."""
    return [f"{folder}/{name}" for name in names(root, folder) if fnmatchcase(name, pattern)]


def below(root: Tree, folder: str) -> Iterator[tuple[str, Entry]]:
    """Yield all that is below a folder, itself not included."""
    return ((path, entry) for path, entry in walk(root, folder) if path != folder)


def homes(root: Tree) -> list[str]:
    """Return the folders in which people have files of their own."""
    return ["/root", *paths(root, "/home")]


def matches(path: str, patterns: Iterable[str]) -> bool:
    """Tell whether a path is one of these; ``*`` stands for anything, slashes too."""
    return any(fnmatchcase(path, pattern) for pattern in patterns)


def settings(root: Tree, path: str) -> Iterator[str]:
    """Yield the lines of a file that are neither empty nor comments, without the spaces around them."""
    lines = (line.strip() for line in text(root, path).split("\n"))
    return (line for line in lines if line and not line.startswith(("#", ";")))


def drop_ins(root: Tree, folder: str, suffix: str = ".conf") -> list[str]:
    """Return the files of a folder such as ``sysctl.d`` in the order in which they are read, hidden ones left out."""
    found = {path.rsplit("/", 1)[1]: path for top in DROP_IN_FOLDERS for path in paths(root, f"{top}/{folder}")}
    return [found[name] for name in sorted(found) if name.endswith(suffix)]


def is_program(root: Tree, path: str) -> bool:
    """Tell whether a path leads to a file with content that may be executed."""
    found = resolve(root, path)
    return found is not None and found[1].is_file and found[1].mode & 0o111 == 0o111 and found[1].size > 0


def missing_programs(root: Tree, wanted: Iterable[str]) -> Iterator[str]:
    """Yield a line for every program that is in none of the folders of programs."""
    for name in wanted:
        if not any(is_program(root, f"{folder}/{name}") for folder in PROGRAMS):
            yield f"there is no program {name} in {', '.join(PROGRAMS[:2])}"


def kernel_arguments(root: Tree) -> list[str]:
    """Return what the boot menu gives to kernels, word by word."""
    return [word for line in menu_lines(root) if line[0] in ("linux", "options") for word in line[1:]]


def menu_lines(root: Tree) -> list[list[str]]:
    """Return the lines of the boot menu as words: GRUB's own, and those of the Boot Loader Specification.

    The words ``linux16``, ``linuxefi`` and so on are as ``linux``.
    """
    files = ["/boot/grub/grub.cfg", "/boot/grub2/grub.cfg", *paths(root, "/boot/loader/entries", "*.conf")]
    lines = [line.split() for file in files for line in settings(root, file)]
    return [[re.sub(r"(?<=linux|nitrd)(16|efi)$", "", line[0]), *line[1:]] for line in lines]
