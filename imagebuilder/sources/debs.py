"""Package files on disk: checks them against the lock, and makes a local repository of exactly these."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from imagebuilder.content import cores, mark_used, sha256_file, write_atomic
from imagebuilder.errors import ArtifactError, UntrustedError
from imagebuilder.model import LockedPackage
from imagebuilder.process import Runner
from imagebuilder.sources.debfile import control_text

PACKAGES = "Packages"  # the index of a repository


def present(path: Path, size: int) -> bool:
    """Return whether a file is there, whole: its hash is not read."""
    return path.is_file() and path.stat().st_size == size


def check_package(path: Path, package: LockedPackage) -> None:
    """Check that a file is the locked package.

    Raises:
        UntrustedError: it is missing or not the one.
    """
    if not present(path, package.size) or sha256_file(path) != package.sha256:
        path.unlink(missing_ok=True)
        raise UntrustedError(
            f"{package.filename} is not the file that the lock names",
            context=f"expected sha256 {package.sha256}, {package.size} bytes, from {package.uri or 'the archive'}",
            hint="run the command again: the file was removed and will be fetched anew",
        )


def make_repository(packages: Sequence[LockedPackage], store: Path, suite: str, out: Path, runner: Runner) -> None:
    """Write a flat, local apt repository of exactly these packages into the empty folder ``out``.

    The files are hard links into ``store``; each is checked before. It needs no signature: nothing else writes there.

    Raises:
        UntrustedError: a file in the store is not the locked one.
    """
    out.mkdir(parents=True, exist_ok=True)

    def stanza(package: LockedPackage) -> str:
        source = store / package.filename
        check_package(source, package)
        mark_used(source)
        _link(source, out / package.filename)
        control = _control(source, out / f"{package.sha256}.control", runner)
        return f"{control.rstrip()}\nFilename: ./{package.filename}\n{sizes_of(package.size, package.sha256)}"

    with ThreadPoolExecutor(cores()) as pool:  # for the hashing
        write_index(out, suite, "\n".join(pool.map(stanza, packages)))


def sizes_of(size: int, sha256: str) -> str:
    """Return the lines of an index that tell a package's file from any other."""
    return f"Size: {size}\nSHA256: {sha256}\n"


def write_index(out: Path, suite: str, index: str) -> None:
    """Write the index of a flat repository, and the Release file that names it."""
    write_atomic(out / PACKAGES, index)
    digest = sha256_file(out / PACKAGES)
    release = f"Suite: {suite}\nCodename: {suite}\nSHA256:\n {digest} {len(index.encode())} {PACKAGES}\n"
    write_atomic(out / "Release", release)


def _control(package: Path, scratch: Path, runner: Runner) -> str:
    try:
        return control_text(package, scratch, runner)
    except ArtifactError:  # what we will not read, dpkg may: a program to start for each package costs seconds
        return runner.run(["dpkg-deb", "--field", package], capture=True).stdout


def _link(source: Path, target: Path) -> None:
    try:
        target.hardlink_to(source)
    except OSError:  # another file system, or one without links
        shutil.copyfile(source, target)
