"""Builds programs from upstream's Go modules, with checksums that are committed here.

A build is decided by the wrapper module, the exact toolchain, the flags and the architecture; where it is
built, and with which caches, does not show in the result. The module cache and the build cache are shared
and used in place. A build that finds all modules in the cache needs no network.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from imagebuilder import process
from imagebuilder.errors import (
    CommandError,
    DataError,
    ImagebuilderError,
    UnreachableError,
    UnresolvableError,
    UntrustedError,
)
from imagebuilder.events import Progress, Stage
from imagebuilder.model import ModuleBuild
from imagebuilder.process import Runner
from imagebuilder.sources import payload
from imagebuilder.sources.components import FILES, go_line, load_module, program_names
from imagebuilder.sources.download import Downloader
from imagebuilder.sources.elf import file_arch
from imagebuilder.sources.gotoolchain import REQUIREMENTS, Toolchain, toolchain

__all__ = ["Toolchain", "build", "load_module", "toolchain"]

BUILD_SECONDS = 7200.0  # a cold kubelet took 318 s on two busy cores
LIST_SECONDS = 120.0  # 3 s for kubernetes on two busy cores
FLAGS = ("-trimpath", "-buildvcs=false")
LINK_FLAGS = "-s -w -buildid="
ENVIRONMENT = {  # all of Go's own variables that decide a build's bytes, so that the host's do not
    "CGO_ENABLED": "0", "GOFLAGS": "-mod=readonly", "GOTOOLCHAIN": "local", "GOOS": "linux",
    "GOAMD64": "v1", "GOARM64": "v8.0", "GOFIPS140": "off", "GOWORK": "off", "GOENV": "off",
}  # fmt: skip
# How the host reaches modules. Settings made with ``go env -w`` count as well, so ``go env`` is asked.
HOST_VARIABLES = ("GOPROXY", "GOSUMDB", "GONOSUMDB", "GONOPROXY", "GOPRIVATE", "GOINSECURE")
TAMPERED = re.compile(r"SECURITY ERROR|checksum mismatch")
MISSING = re.compile(r"module lookup disabled by GOPROXY=off")
REFUSED = re.compile(r"(?:403 Forbidden|404 Not Found|410 Gone|not found: )")
NO_ANSWER = re.compile(
    r"dial tcp|no such host|connection (?:refused|reset)|i/o timeout|TLS handshake|proxyconnect"
    r"|x509: |unexpected EOF|50[234] |server misbehaving|Client\.Timeout"
)


def build(
    module: ModuleBuild,
    *,
    components_dir: Path,
    cache_dir: Path,
    runner: Runner,
    progress: Progress,
    arch: str,
    downloader: Downloader | None = None,
) -> Path:
    """Build a component, unless the cache has it, and return its payload folder.

    Args:
        module: as :func:`load_module` returns it.
        components_dir: the folder with the wrapper modules.
        cache_dir: the cache; ``go/build`` and ``go/mod`` in it are Go's own caches.
        runner: starts programs.
        progress: is told.
        arch: ``amd64`` or ``arm64``.
        downloader: asks whether the module proxy answers, before Go waits for it.

    Raises:
        UntrustedError: a module is not the one that go.sum names.
        UnreachableError: modules are missing in the cache, and the proxy does not answer.
        UnresolvableError: the proxy answers that it does not have, or does not give, a module.
        CommandError: a program does not compile.
        DataError: the wrapper is not the one that ``module`` was read from.
    """
    if load_module(components_dir, module.name) != module:
        raise DataError(f"components/{module.name} changed since the plan was made")
    text = f"Building {module.name} {module.version} from its Go modules"
    with progress.stage(f"source:{module.name}", text) as stage:
        minimum = go_line(components_dir, module.name)
        go = toolchain(runner, cache_dir, minimum, requirements=components_dir / REQUIREMENTS)
        wanted = _id(module, go, arch)
        if found := payload.find(cache_dir, wanted, stage.note):
            stage.cached = True
            return found
        _fill(module, go, components_dir, cache_dir, arch, _Build(runner, stage, module), downloader or Downloader())
        return cache_dir / "payloads" / wanted


def identity(
    module: ModuleBuild, *, components_dir: Path, cache_dir: Path, runner: Runner, arch: str
) -> tuple[str, str]:  # fmt: skip
    """Return the id of a component's build, and the version of the Go toolchain that this host builds it with.

    Raises:
        UnreachableError, UntrustedError, ToolMissingError: as :func:`toolchain` raises them.
    """
    go = toolchain(runner, cache_dir, go_line(components_dir, module.name), requirements=components_dir / REQUIREMENTS)
    return _id(module, go, arch), go.version


def check_reachable(
    module: ModuleBuild,
    *,
    components_dir: Path,
    cache_dir: Path,
    runner: Runner,
    arch: str,
    downloader: Downloader,
) -> None:
    """Return when a build has what it needs: it is done already, or the modules are cached, or the proxy answers.

    Raises:
        UnreachableError: it has not, and the proxy, or the place that has the toolchain, does not answer.
    """
    go = toolchain(runner, cache_dir, go_line(components_dir, module.name), requirements=components_dir / REQUIREMENTS)
    if payload.find(cache_dir, _id(module, go, arch)):
        return
    env = _environment(runner, go, cache_dir, arch)
    argv = [str(go.path), "list", "-deps", *module.programs]
    cached = runner.run(
        argv, env={**env, "GOPROXY": "off"}, cwd=components_dir / module.name, check=False, timeout=LIST_SECONDS
    )
    if cached.returncode == 0:
        return
    proxy = env.get("GOPROXY", "")
    if proxy == "off":
        raise UnreachableError(f"{module.name}: modules are missing in the cache, and the network is off (GOPROXY=off)")
    _probe(proxy, downloader)


def _fill(
    module: ModuleBuild,
    go: Toolchain,
    components_dir: Path,
    cache_dir: Path,
    arch: str,
    building: _Build,
    downloader: Downloader,
) -> None:
    """Build into a payload folder, in a scratch folder beside it."""
    origin = {"kind": "go-modules", "version": module.version, "toolchain": go.version, "arch": arch}
    with payload.filling(cache_dir, _id(module, go, arch), origin) as work:
        for name in FILES:
            shutil.copyfile(components_dir / module.name / name, work.scratch / name)
        env = _environment(building.runner, go, cache_dir, arch)
        building.run(_command(module, go, work.folder), env, work.scratch, downloader)
        _check(module, work.folder, arch)


class _Build:
    """One build, first from the module cache alone, then through the host's proxy."""

    def __init__(self, runner: Runner, stage: Stage, module: ModuleBuild) -> None:
        self.runner, self._stage, self._module = runner, stage, module

    def run(self, argv: Sequence[str | Path], env: Mapping[str, str], cwd: Path, downloader: Downloader) -> None:
        """Run ``go build``; ask the proxy, and whether it answers at all, only when a module is missing."""
        failed = self._once(argv, {**env, "GOPROXY": "off"}, cwd)
        proxy = env.get("GOPROXY", "")
        if failed and MISSING.search(failed[0]) and proxy != "off":
            self._stage.note(f"{self._module.name}: fetching Go modules, then compiling them, which takes minutes once")
            _probe(proxy, downloader)
            failed = self._once(argv, env, cwd)
        if failed:
            raise _explained(self._module, *failed) from failed[1]

    def _once(self, argv: Sequence[str | Path], env: Mapping[str, str], cwd: Path) -> tuple[str, CommandError] | None:
        """Run ``go build``; return what it said and the error when it failed."""
        lines: list[str] = []

        def keep(line: str) -> None:
            self._stage.log(line)
            if not line.startswith("go: downloading "):
                lines.append(line)

        try:
            self.runner.run(argv, env=env, cwd=cwd, on_line=keep, timeout=BUILD_SECONDS)
        except CommandError as error:
            return "\n".join(lines), error
        return None


def _id(module: ModuleBuild, go: Toolchain, arch: str) -> str:
    return payload.payload_id(
        {
            "kind": "go-modules", "module": module.digest, "toolchain": go.version, "arch": arch,
            "flags": [*FLAGS, LINK_FLAGS], "environment": ENVIRONMENT,
        }
    )  # fmt: skip


def _command(module: ModuleBuild, go: Toolchain, out: Path) -> list[str | Path]:
    stamp = "".join(f" -X {variable}={value}" for variable, value in module.stamp)
    return [go.path, "build", *FLAGS, "-ldflags", LINK_FLAGS + stamp, "-o", f"{out}/", *module.programs]


def _environment(runner: Runner, go: Toolchain, cache_dir: Path, arch: str) -> dict[str, str]:
    """Return Go's environment: fixed what decides bytes, the host's what decides how modules are reached."""
    asked = process.inherited(*HOST_VARIABLES) | {"GOTOOLCHAIN": "local"}
    answer = runner.run([go.path, "env", "-json", *HOST_VARIABLES], env=asked, capture=True, timeout=60)
    try:
        host = {name: value for name, value in json.loads(answer.stdout).items() if name in HOST_VARIABLES}
    except (ValueError, AttributeError):
        host = process.inherited(*HOST_VARIABLES)
    root = cache_dir.absolute() / "go"
    caches = {"GOCACHE": str(root / "build"), "GOMODCACHE": str(root / "mod"), "GOPATH": str(root / "path")}
    return {**host, **ENVIRONMENT, **caches, "GOARCH": arch, "GOROOT": ""} | _home()


def _home() -> dict[str, str]:
    return {} if "HOME" in os.environ else {"HOME": "/nonexistent"}  # go asks for one, for its telemetry


def _probe(proxies: str, downloader: Downloader) -> None:
    """Give up within seconds when the first proxy, and those that ``|`` joins to it, do not answer.

    Go itself waits for minutes. After a comma it goes on only when the proxy has answered "not found".
    """
    error: UnreachableError | None = None
    for proxy in proxies.split(",")[0].split("|"):
        if not proxy.startswith(("http://", "https://")):
            return
        try:
            downloader.probe(proxy)
        except UnreachableError as failed:
            error = failed
        else:
            return
    if error is not None:
        raise error


def _explained(module: ModuleBuild, output: str, error: CommandError) -> ImagebuilderError:
    """Return what went wrong, from what Go said."""
    if TAMPERED.search(output):
        return UntrustedError(
            f"{module.name}: a Go module is not the one that go.sum names; nothing was built",
            context=error.context,
        )
    if MISSING.search(output):
        message = f"{module.name}: Go modules are missing in the cache, and the network is off (GOPROXY=off)"
        return UnreachableError(message, context=error.context)
    if NO_ANSWER.search(output):
        return UnreachableError(f"{module.name}: the Go module proxy does not answer", context=error.context)
    if REFUSED.search(output):
        message = f"{module.name}: the Go module proxy does not have, or does not give, a module"
        return UnresolvableError(message, context=error.context, hint="go env GOPROXY")
    return CommandError(f"{module.name} {module.version} does not compile", context=error.context, hint=error.hint)


def _check(module: ModuleBuild, folder: Path, arch: str) -> None:
    wanted = program_names(module)
    found = sorted(path.name for path in folder.iterdir())
    wrong = [name for name in found if file_arch(folder / name) != arch]
    if found != sorted(wanted) or wrong:
        raise CommandError(
            f"go build of {module.name} did not make the programs it should",
            context=f"expected: {', '.join(sorted(wanted))}\nmade: {', '.join(found)}",
        )
