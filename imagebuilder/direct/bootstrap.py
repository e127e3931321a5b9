"""The base layer's packages, unpacked and configured by mmdebstrap, from a local repository of exactly those."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from imagebuilder import process
from imagebuilder.direct.layers import remove_tree
from imagebuilder.events import Stage
from imagebuilder.model import LockedPackage
from imagebuilder.process import Runner, namespaces, pasteable

# Manuals, translations and documents are of no use on a node; licences stay. The step base/25-no-documents removes
# what the first packages bring: mmdebstrap would filter those with a Python program, which costs ten seconds.
EXCLUDES = ("/usr/share/man/*", "/usr/share/locale/*", "/usr/share/doc/*", "/usr/share/info/*")
INCLUDES = ("/usr/share/doc/*/copyright", "/usr/share/locale/locale.alias")
FORCE = ("force-unsafe-io", "force-confold", "force-confdef")
PARTIAL = ("var/cache/apt/archives/partial", "var/lib/apt/lists/partial")
CONFIG = "/etc/dpkg/dpkg.cfg.d/90imagebuilder"
DPKG_OPTIONS = (*FORCE, *(f"path-exclude={path}" for path in EXCLUDES), *(f"path-include={path}" for path in INCLUDES))


def bootstrap(
    packages: Sequence[LockedPackage],
    *,
    repository: Path,
    suite: str,
    arch: str,
    root: Path,
    runner: Runner,
    stage: Stage,
    log: Path,
) -> None:
    """Fill the empty folder ``root`` with these packages, configured; no initramfs is made, no service started.

    Args:
        packages: the exact set, essential packages included.
        repository: a local repository that holds exactly them.
        suite: the name of the suite that the repository says it is.
        arch: architecture in Debian's name.
        root: where the tree goes.
        runner: runs mmdebstrap.
        stage: gets the progress.
        log: the whole output.

    Raises:
        CommandError: mmdebstrap, or a maintainer script, failed.
    """
    process.require("mmdebstrap", package="mmdebstrap")
    argv = [
        *namespaces(),
        "mmdebstrap", "--mode=root", "--variant=essential", "--format=directory", "--verbose",
        "--skip=check/empty,download/empty", f"--architectures={arch}",
        f"--include={','.join(package.name for package in packages)}",
        *(f"--aptopt={line}" for line in ('APT::Install-Recommends "false"', "Dpkg::Use-Pty 0")),
        *(f"--dpkgopt={option}" for option in FORCE),
        # Between the first packages and the others.
        f"--essential-hook=printf '%s\\n' {pasteable(DPKG_OPTIONS)} > \"$1{CONFIG}\"",
        suite, str(root), f"deb [trusted=yes] copy:{quote(str(repository))} ./",
    ]  # fmt: skip
    done = 0

    def count(line: str) -> None:
        nonlocal done
        if line.startswith("Setting up "):
            done += 1
            stage.update(done, len(packages), "packages configured")

    # INITRD=No: initramfs-tools makes none while packages are configured; the last step makes it, once.
    # TMPDIR: what a killed mmdebstrap leaves in there is swept with the rest.
    with tempfile.TemporaryDirectory(dir=root.parent) as scratch:
        runner.run(argv, env={"INITRD": "No", "TMPDIR": scratch}, log=log, on_line=count, timeout=1800)
    (root / CONFIG.lstrip("/")).unlink()
    for path in (root / "etc/resolv.conf", root / "etc/hostname"):  # mmdebstrap's copies of this host's
        if path.is_file() and not path.is_symlink():
            path.unlink()
    _same_for_all(root)


def _same_for_all(root: Path) -> None:
    """Take away what is not the same for whoever bakes."""
    for path in (root / "dev").iterdir():  # only root can make device nodes; the kernel has its own
        remove_tree(path)
    for name in PARTIAL:  # apt gives them to its own user, where that one can read the repository
        os.chown(root / name, 0, 0, follow_symlinks=False)
