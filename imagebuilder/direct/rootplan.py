"""Where the members of many packages go in one tree, decided before anything is written. No I/O.

What dpkg does one package after the other is done at once here: a folder that is a link elsewhere is followed
(/lib of an older package is /usr/lib), a file of two packages goes to the one that replaces the other
(deb-control(5), "Replaces"), and what path-exclude names is left out (dpkg(1)). The plan has no path that leads through
a link: whoever writes folders, then files, then links never follows one.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from imagebuilder.errors import ArtifactError
from imagebuilder.sources.debtar import ANOTHER_WAY, DEPTH_LIMIT, PATH_LIMIT, Kind, Member

HOPS = 40  # links that a path may lead through, as in Linux (path_resolution(7))
ENTRY_LIMIT = 2_000_000  # of a whole tree: a desktop has 400,000


@dataclass(frozen=True, kw_only=True, slots=True)
class Contents:
    """What one package brings.

    Attributes:
        replaces: names of packages whose files it may take over.
        skip: says of a member whether it is left out.
    """

    package: str
    members: Sequence[Member]
    replaces: frozenset[str] = frozenset()
    skip: Callable[[Member], bool] = lambda member: False


@dataclass(frozen=True, kw_only=True, slots=True)
class Placed:
    """A member, the number of the package that it is from, and its path in the tree."""

    package: int
    path: bytes
    member: Member


@dataclass(kw_only=True, slots=True)
class RootPlan:
    """A tree: no path twice, each in a folder of the plan, folders before what is in them.

    Attributes:
        folders: by path; None stands for one that no package lists.
        links: hard links, with the path of the file in place of the member's target.
        lost: per package, paths as it lists them that another package took over.
    """

    folders: dict[bytes, Placed | None] = field(default_factory=dict)
    files: list[Placed] = field(default_factory=list)
    links: list[tuple[Placed, bytes]] = field(default_factory=list)
    symlinks: list[Placed] = field(default_factory=list)
    lost: list[set[bytes]] = field(default_factory=list)


def plan_root(packages: Sequence[Contents], *, aliases: Iterable[bytes] = ()) -> RootPlan:
    """Return where everything goes.

    Args:
        packages: of two that list the same folder, the mode and owner of the first count.
        aliases: names of the root that are links to their name in ``usr``, although no package may say so.

    Raises:
        ArtifactError: two packages have a file in one place, or a path leads nowhere.
    """
    if sum(len(package.members) for package in packages) > ENTRY_LIMIT:
        raise ArtifactError(f"the packages list more than {ENTRY_LIMIT} files", hint=ANOTHER_WAY)
    return _Planner(packages, aliases).plan()


class _Planner:
    """Collects the tree."""

    def __init__(self, packages: Sequence[Contents], aliases: Iterable[bytes]) -> None:
        self._packages, self._aliases = packages, tuple(aliases)
        self._taken: dict[bytes, Placed] = {}
        self._plan = RootPlan(lost=[set() for _ in packages])
        self._targets = {alias: b"usr/" + alias for alias in self._aliases}
        self._kept = [[member for member in package.members if not package.skip(member)] for package in packages]
        self._folders: dict[bytes, bytes] = {}  # resolved before

    def plan(self) -> RootPlan:
        shallow = sorted(
            (member for kept in self._kept for member in kept if member.kind is Kind.SYMLINK),
            key=lambda member: member.path.count(b"/"),
        )
        for member in shallow:  # what a path leads through lies above it
            self._targets.setdefault(self._place(member.path), member.target)
        self._folders.clear()
        plan = self._plan
        plan.folders[b""] = None
        for number, kept in enumerate(self._kept):
            for member in kept:
                self._add(number, member)
        for alias in self._aliases:
            self._folder(b"usr/" + alias)
            link = Member(alias, Kind.SYMLINK, 0o777, 0, 0, 0, 0, 0, b"usr/" + alias)
            self._taken.setdefault(alias, Placed(package=0, path=alias, member=link))
        files = {path for path, placed in self._taken.items() if placed.member.kind is not Kind.SYMLINK}
        for path, placed in sorted(self._taken.items()):
            if path in plan.folders:
                raise _conflict(path, "is a folder, and is none")
            self._sort_in(placed, files)
        plan.folders = dict(sorted(plan.folders.items()))
        return plan

    def _sort_in(self, placed: Placed, files: set[bytes]) -> None:
        member, plan = placed.member, self._plan
        if member.kind is Kind.SYMLINK:
            plan.symlinks.append(placed)
        elif member.kind is Kind.FILE:
            plan.files.append(placed)
        else:
            target = self._place(member.target)
            if target not in files or self._taken[target].package != placed.package:
                raise _conflict(placed.path, "is a hard link to a file that is not kept")
            plan.links.append((placed, target))

    def _add(self, number: int, member: Member) -> None:
        if member.kind is Kind.FOLDER:
            path = self._resolve(member.path)
            self._folder(path.rpartition(b"/")[0])
            if self._plan.folders.get(path) is None:
                self._plan.folders[path] = Placed(package=number, path=path, member=member)
            return
        path = self._place(member.path)
        self._folder(path.rpartition(b"/")[0])
        new, old = Placed(package=number, path=path, member=member), self._taken.get(path)
        if old is None or self._replaces(new, old):
            self._taken[path] = new
            if old is not None:
                self._plan.lost[old.package].add(old.member.path)
        elif self._replaces(old, new):
            self._plan.lost[number].add(member.path)
        else:
            names = " and ".join(self._packages[placed.package].package for placed in (old, new))
            raise _conflict(path, f"is in {names}")

    def _replaces(self, one: Placed, other: Placed) -> bool:
        return self._packages[other.package].package in self._packages[one.package].replaces

    def _folder(self, path: bytes) -> None:
        """Have a folder, and those above it."""
        while path not in self._plan.folders:
            self._plan.folders[path] = None
            path = path.rpartition(b"/")[0]

    def _place(self, path: bytes) -> bytes:
        """Return where something goes: the folder that it is in is followed, its own name is not."""
        above, slash, name = path.rpartition(b"/")
        if not slash:
            return path
        folder = self._folders.get(above)
        if folder is None:
            folder = self._folders[above] = self._resolve(above)
        return folder + b"/" + name if folder else name

    def _resolve(self, path: bytes) -> bytes:
        """Return a folder's path without links, never above the root (path_resolution(7))."""
        rest, done, hops = path.split(b"/")[::-1], list[bytes](), 0
        while rest:
            name = rest.pop()
            if name in (b"", b"."):
                continue
            if name == b"..":
                del done[-1:]
                continue
            done.append(name)
            if len(done) > DEPTH_LIMIT:
                raise _conflict(path, "is too long")
            target = self._targets.get(b"/".join(done))
            if target is not None:
                hops += 1
                if hops > HOPS:
                    raise _conflict(path, "leads through too many links")
                done = [] if target.startswith(b"/") else done[:-1]
                rest += target.split(b"/")[::-1]
        found = b"/".join(done)
        if len(found) > PATH_LIMIT:
            raise _conflict(path, "is too long")
        return found


def _conflict(path: bytes, why: str) -> ArtifactError:
    return ArtifactError(f"the packages do not make one tree: /{path[:200].decode('utf-8', 'replace')} {why}",
                         hint=ANOTHER_WAY)  # fmt: skip


def path_filter(exclude: Sequence[str], include: Sequence[str]) -> Callable[[Member], bool]:
    """Return what says whether dpkg would leave a member out, given its ``--path-exclude`` and ``--path-include``.

    As in dpkg(1): a folder, or a link that may be one, is kept where something below it may be included again.
    """
    no, yes = (re.compile("|".join(map(fnmatch.translate, patterns)) or r"(?!)") for patterns in (exclude, include))
    # Up to its first wildcard, an included path is what a folder may lie above of, or below.
    above = tuple(re.split(r"[*?\[\\]", pattern)[0].rstrip("/") for pattern in include)

    def skip(member: Member) -> bool:
        path = "/" + member.path.decode("latin-1")
        if not no.fullmatch(path) or yes.fullmatch(path):
            return False
        return member.kind not in (Kind.FOLDER, Kind.SYMLINK) or not path.startswith(above)

    return skip
