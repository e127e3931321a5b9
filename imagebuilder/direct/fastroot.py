"""The base layer's packages, unpacked all at once and configured by one run of dpkg: mmdebstrap's tree, sooner.

The packages are those of the lock, their hashes checked. Their archives come decompressed from the cache; where each
file goes is planned (:mod:`imagebuilder.direct.rootplan`) and written in parallel; dpkg's database says that all are
unpacked; their preinst scripts run in the order of their dependencies, and dpkg configures the rest. Two things differ
from dpkg's own way: a preinst runs when its package is unpacked already, and triggers run once, at the end.
mmdebstrap stays the oracle: an integration test compares the two trees.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from imagebuilder.direct import dpkgdb
from imagebuilder.direct.bootstrap import EXCLUDES, INCLUDES
from imagebuilder.direct.debcache import DebCache, Unpacked, mapped
from imagebuilder.direct.dpkgdb import Package, parse_package
from imagebuilder.direct.layers import removed_afterwards
from imagebuilder.direct.rootplan import Contents, RootPlan, path_filter, plan_root
from imagebuilder.direct.rootwriter import WORKERS, write_root
from imagebuilder.direct.sandbox import INSIDE, Bind, Mount, Tmpfs, command
from imagebuilder.errors import ArtifactError
from imagebuilder.events import Stage
from imagebuilder.model import LockedPackage
from imagebuilder.process import Runner
from imagebuilder.sources.debtar import ANOTHER_WAY, Kind, Member, members

SCRIPT = Path(__file__).with_name("fastroot.sh")
SECONDS = 900  # for configuring everything; takes 10 s on two cores
MERGED = frozenset({b"bin", b"sbin", b"lib", b"lib32", b"lib64", b"libo32", b"libx32"})  # links into usr (hier(7))
DPKG = "var/lib/dpkg"
DPKG_FOLDERS = ("alternatives", "info", "parts", "triggers", "updates")
# What runs while packages are configured, and starts nothing: services, and what asks for them directly.
# And no host keys: every node makes its own, and an RSA key takes seconds.
POLICY, NOTHING = "usr/sbin/policy-rc.d", "#!/bin/sh\nexit 0\n"
DUMMIES = {
    POLICY: "#!/bin/sh\nexit 101\n", "usr/sbin/start-stop-daemon": NOTHING, "usr/bin/ssh-keygen": NOTHING,
}  # fmt: skip
# Asked for by a script and by a trigger again: run once, when all else is done.
LATER = ("usr/sbin/update-ca-certificates",)
# Programs with work that nothing waits for, and the names by which they are called: see beside.sh.
BESIDE = Path(__file__).with_name("beside.sh")
KMOD = ("depmod", "insmod", "lsmod", "modinfo", "modprobe", "rmmod", "kmod")


@dataclass(frozen=True, kw_only=True, slots=True)
class Opened:
    """A package that is ready to be unpacked."""

    package: Package
    members: tuple[Member, ...]
    data: Path


def fast_root(
    packages: Sequence[LockedPackage],
    *,
    repository: Path,
    unpacked: Path,
    scratch: Path,
    root: Path,
    runner: Runner,
    stage: Stage,
    log: Path,
) -> None:
    """Fill the empty folder ``root`` with these packages, configured; no initramfs is made, no service started.

    Args:
        packages: the exact set, essential packages included.
        repository: a folder that holds their files, whose hashes are right.
        unpacked: the cache's folder for decompressed archives.
        scratch: a folder of this layer's on the same file system; what is put there is removed again.
        root: where the tree goes.
        runner: runs the sandbox, and zstd where packages need it.
        stage: gets the progress.
        log: the whole output.

    Raises:
        ArtifactError: a package is not fit to be unpacked, or two do not go together.
        CommandError: a maintainer script failed.
    """
    work = scratch / "fastroot"
    work.mkdir()
    with removed_afterwards(work):
        try:
            cache = DebCache(unpacked, work, runner)
            opened = open_packages(packages, cache, repository, stage)
            order = dpkgdb.in_order([item.package for item in opened])
            places = {package.key: place for place, package in enumerate(order)}
            opened.sort(key=lambda item: places[item.package.key])
            plan = plan_tree(opened)
            write_root(plan, lambda number: mapped(opened[number].data), root)
            _write_database(opened, plan, root)
            _configure(order, work, root, runner, stage, log)
        except FileExistsError as error:
            message = f"the packages bring {error.filename}, which is for dpkg or the kernel"
            raise ArtifactError(message, hint=ANOTHER_WAY) from error


def open_packages(
    packages: Sequence[LockedPackage], cache: DebCache, repository: Path, stage: Stage
) -> list[Opened]:  # fmt: skip
    """Decompress what is not in the cache, the largest first, and read what is in every package.

    Args:
        packages: whose hashes are right.
        cache: for decompressed archives.
        repository: a folder that holds their files.
        stage: gets the progress.

    Raises:
        ArtifactError: a package is not fit to be unpacked, or not the one that its file's name says.
    """
    largest = sorted(packages, key=lambda package: -package.size)

    def read(package: LockedPackage) -> tuple[LockedPackage, Unpacked]:
        return package, cache.get(repository / package.filename, package.sha256)

    opened = []
    with ThreadPoolExecutor(WORKERS) as pool:
        for number, (locked, found) in enumerate(pool.map(read, largest), start=1):
            package = parse_package(found.control)
            said = (package.name, package.fields["Version"], package.fields["Architecture"])
            if said != (locked.name, locked.version, locked.arch):
                message = f"{locked.filename} says that it is {' '.join(said)}"
                raise ArtifactError(message, context=f"the index says {locked.name} {locked.version} {locked.arch}")
            with mapped(found.data) as data:
                opened.append(Opened(package=package, members=tuple(members(data)), data=found.data))
            stage.update(number, len(packages), "packages unpacked")
    return opened


def plan_tree(opened: Sequence[Opened]) -> RootPlan:
    """Return where the packages' files go, /usr merged.

    Manuals, translations and documents are left out as mmdebstrap leaves them out: not those of the first packages.

    Raises:
        ArtifactError: two packages do not go together.
    """
    first, left_out = dpkgdb.essential([item.package for item in opened]), path_filter(EXCLUDES, INCLUDES)
    contents = [
        Contents(
            package=item.package.name,
            members=item.members,
            replaces=frozenset(name for group in item.package.names("Replaces") for name in group),
            skip=(lambda member: False) if item.package.key in first else left_out,
        )
        for item in opened
    ]
    top = {member.path.partition(b"/")[0] for item in opened for member in item.members}
    return plan_root(contents, aliases=sorted(top & MERGED))


def _put(path: Path, data: bytes | str, mode: int = 0o644) -> None:
    with path.open("xb") as stream:  # which neither follows a link nor changes what a package brought
        stream.write(data if isinstance(data, bytes) else data.encode("utf-8", "surrogateescape"))
        os.fchmod(stream.fileno(), mode)  # whatever the umask


def _write_database(opened: Sequence[Opened], plan: RootPlan, root: Path) -> None:
    """Write what dpkg would have written when it unpacked these packages in this order."""
    folder = folder_inside(root, DPKG)
    for name in DPKG_FOLDERS:
        folder_inside(folder, name)
    conffiles: dict[str, str] = {}
    for item, lost in zip(opened, plan.lost, strict=True):
        package = item.package
        for name, data in package.files.items():
            mode = 0o755 if name in dpkgdb.SCRIPTS else 0o644
            _put(folder / "info" / f"{package.key}.{name}", data, mode)
        _put(folder / "info" / f"{package.key}.list", dpkgdb.file_list(item.members, lost))
        wanted = {path.lstrip("/").encode("utf-8", "surrogateescape"): path for path in package.conffiles}
        sums = _sums(item, None if "md5sums" not in package.files else wanted.keys())
        conffiles |= {path: sums[name] for name, path in wanted.items() if name in sums}
        if "md5sums" not in package.files:
            _put(folder / "info" / f"{package.key}.md5sums", dpkgdb.sums(item.members, sums, package.conffiles))
    packages = [item.package for item in opened]
    _put(folder / "info/format", "1\n")
    _put(folder / "status", dpkgdb.status(packages, conffiles))
    for name, text in dpkgdb.triggers(packages).items():
        _put(folder / "triggers" / name, text)
    arches = sorted({package.fields["Architecture"] for package in packages} - {"all"})
    _put(folder / "arch", "".join(f"{arch}\n" for arch in arches))


def _sums(item: Opened, wanted: Collection[bytes] | None) -> dict[bytes, str]:
    """Return the MD5 of a package's files, by path: of those that are wanted, or of all."""
    if wanted is not None and not wanted:
        return {}
    with mapped(item.data) as data:
        return {
            member.path: dpkgdb.md5(data[member.offset : member.offset + member.size])
            for member in item.members
            if member.kind is Kind.FILE and (wanted is None or member.path in wanted)
        }


def folder_inside(root: Path, path: str) -> Path:
    """Return a folder of the tree that is made where it is not there, no link on the way to it.

    Raises:
        ArtifactError: a package put something else in its place.
    """
    folder = root
    for name in path.split("/"):
        folder /= name
        try:
            if not stat.S_ISDIR(folder.lstat().st_mode):
                raise ArtifactError(f"the packages put something at /{path} that is no folder", hint=ANOTHER_WAY)
        except FileNotFoundError:
            folder.mkdir(mode=0o755)
            folder.chmod(0o755)
    return folder


def _dummies(work: Path, root: Path) -> Iterator[Bind]:
    """Yield what hides programs that are not to run, and shows those that run later under another name."""
    for number, (name, text) in enumerate((*DUMMIES.items(), *((name, NOTHING) for name in LATER))):
        program = root / name
        if name != POLICY and (program.is_symlink() or not program.is_file()):
            continue
        if name in LATER and program.resolve().is_relative_to(root.resolve()):
            yield Bind(source=program, target=f"{INSIDE}/later/{program.name}")
        _put(work / str(number), text, 0o755)
        yield Bind(source=work / str(number), target=f"/{name}")


def _beside(work: Path, root: Path) -> Iterator[Mount]:
    """Yield what hides programs behind beside.sh, and shows them, under each of their names, to that alone."""
    script = work / BESIDE.name
    _put(script, BESIDE.read_bytes(), 0o755)
    yield Tmpfs(target=f"{INSIDE}/beside")
    programs = {
        root / "usr/bin/kmod": KMOD,
        **{path: (path.name, "python3") for path in root.glob("usr/bin/python3.[0-9]*")},
    }
    for program, names in programs.items():
        if program.is_symlink() or not program.is_file() or not os.access(program, os.X_OK):
            continue
        # The last of several Pythons has the common name; a Debian has one.
        yield from (Bind(source=program, target=f"{INSIDE}/beside/real/{name}") for name in names)
        yield Bind(source=script, target=f"/{program.relative_to(root)}")


def _preinsts(packages: Iterable[Package], work: Path) -> Path:
    """Lay out the control files of each package with a preinst as dpkg does while that runs: debconf reads them."""
    folder = work / "preinst"
    folder.mkdir()
    for package in packages:
        if "preinst" in package.files:
            below = folder / package.key
            below.mkdir()
            _put(below / "control", package.text)
            for name, data in package.files.items():
                _put(below / name, data, 0o755 if name in dpkgdb.SCRIPTS else 0o644)
    return folder


def _configure(
    order: Iterable[Package], work: Path, root: Path, runner: Runner, stage: Stage, log: Path
) -> None:  # fmt: skip
    packages = list(order)
    for name in ("dev", "proc", "run", "sys", "tmp"):
        folder_inside(root, name)
    mounts: list[Mount] = [
        Tmpfs(target="/run"),
        Bind(source=SCRIPT, target=f"{INSIDE}/fastroot.sh"),
        Bind(source=_preinsts(packages, work), target=f"{INSIDE}/preinst"),
        *_dummies(work, root),
        *_beside(work, root),
    ]
    versions = {package.name: package.fields["Version"] for package in packages}
    arches = {package.name: package.fields["Architecture"] for package in packages}
    if "dpkg" not in versions:
        raise ArtifactError("dpkg is not among the packages of the base layer", hint=ANOTHER_WAY)
    argv = [
        "/bin/sh", f"{INSIDE}/fastroot.sh", arches["dpkg"], versions["dpkg"],
        *(package.key for package in packages),
    ]  # fmt: skip
    done = 0

    def count(line: str) -> None:
        nonlocal done
        if line.startswith("Setting up "):
            done += 1
            stage.update(done, len(packages), "packages configured")

    # INITRD=No: initramfs-tools makes none while packages are configured; the last step makes it, once.
    runner.run(command(root, mounts, argv, {"INITRD": "No"}), log=log, on_line=count, timeout=SECONDS)
    (root / POLICY).unlink(missing_ok=True)  # the mount point
