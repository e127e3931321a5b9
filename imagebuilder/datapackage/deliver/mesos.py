"""A kubelet on top of a Mesos cluster: a bundle, the data package, and the description of the task that fetches them.

    bundle.tar.gz        launch.sh, kubelet, root/ with the agent, trusted keys and facts: no secret in it
    imagebuilder.ibdata  the data package, fetched as it is
    task.json            TaskInfo of Mesos' v1 API, for mesos-execute
    app.json             the same for Marathon

Mesos' fetcher puts all addresses of a task into its sandbox, unpacks archives there and then starts the command in it.
Formats: https://mesos.apache.org/documentation/latest/fetcher/, Mesos' ``include/mesos/v1/mesos.proto``, and
Marathon's ``AppDefinition``.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from imagebuilder.content import canonical_json, write_atomic, writing
from imagebuilder.datapackage.deliver.encodings import FILE_NAME
from imagebuilder.datapackage.signing import load_public_key
from imagebuilder.errors import UsageError
from imagebuilder.gzips import Writer
from imagebuilder.sources.elf import file_arch

AGENT = Path(__file__).resolve().parents[2] / "agent" / "agent.py"
LAUNCHER = Path(__file__).with_name("launch.sh")
BUNDLE, TASK, APP = "bundle.tar.gz", "task.json", "app.json"
COMMAND = "./launch.sh"
LEVEL = 6  # kubelet becomes a third of its size; higher levels take three times as long for 1%
CPUS, MEMORY_MIB, DISK_MIB = 1.0, 1024.0, 2048.0  # of kubelet itself; its pods are not the task's


@dataclass(frozen=True, kw_only=True, slots=True)
class Parts:
    """What goes into a bundle.

    Attributes:
        kubelet: the program.
        version: its version, like ``1.35.8``.
        trust: PEM files of the public keys whose packages are accepted.
        url: the address under which the files will be, without a slash at its end.
        agent: the agent's file.
    """

    kubelet: Path
    version: str
    trust: tuple[Path, ...]
    url: str
    agent: Path = AGENT


def write_mesos(folder: Path, name: str, package: bytes, parts: Parts) -> tuple[Path, ...]:
    """Write the bundle, the package and the two descriptions into a folder.

    Args:
        folder: where to.
        name: of the machine.
        package: the data package, or a pointer document.
        parts: what goes into the bundle.

    Raises:
        UsageError: kubelet is not a program for a known architecture, or the agent is missing.
        DataError: a key that is to be trusted is not a public one.
        HostError: it cannot be read.
    """
    arch = _checked(parts)
    with writing(folder / BUNDLE) as stream:
        _bundle(stream, parts, arch)
    write_atomic(folder / FILE_NAME, package, mode=0o600)
    for file, description in ((TASK, task(name, parts.url)), (APP, app(name, parts.url))):
        write_atomic(folder / file, json.dumps(description, indent=2) + "\n")
    return tuple(folder / file for file in (BUNDLE, FILE_NAME, TASK, APP))


def _checked(parts: Parts) -> str:
    arch = file_arch(parts.kubelet) if parts.kubelet.is_file() else ""
    if not arch:
        raise UsageError(f"{parts.kubelet} is not a Linux program for amd64 or arm64", hint="--kubelet FILE")
    if not parts.trust:
        raise UsageError("without a trusted key the agent accepts no package", hint="--trust KEY.pem")
    for path in parts.trust:
        load_public_key(path)  # the bundle is no secret: with the private one in it, everybody could sign
    if not parts.agent.is_file():
        raise UsageError(f"{parts.agent} is missing", hint="imagebuilder data deliver --help")
    return arch


def _bundle(stream: IO[bytes], parts: Parts, arch: str) -> None:
    facts = {
        "apiVersion": "imagebuilder/v1", "kind": "ImageFacts", "id": f"mesos-{arch}-k{parts.version}", "arch": arch,
        "init": "none", "kubelet": parts.version, "runtimes": ["containerd"],
    }  # fmt: skip
    with Writer(stream, LEVEL) as packed, tarfile.open(fileobj=packed, mode="w|", format=tarfile.USTAR_FORMAT) as tar:
        _add(tar, "launch.sh", LAUNCHER, 0o755)
        _add(tar, "kubelet", parts.kubelet, 0o755)
        _add(tar, "root/usr/lib/imagebuilder/agent.py", parts.agent, 0o644)
        data = canonical_json(facts) + b"\n"
        tar.addfile(_entry("root/usr/lib/imagebuilder/image.json", len(data), 0o644), io.BytesIO(data))
        for number, key in enumerate(parts.trust):
            _add(tar, f"root/etc/imagebuilder/trust.d/{number}.pem", key, 0o644)


def _entry(name: str, size: int, mode: int) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = size, mode
    return entry


def _add(tar: tarfile.TarFile, name: str, path: Path, mode: int) -> None:
    with path.open("rb") as stream:
        tar.addfile(_entry(name, path.stat().st_size, mode), stream)


def task(name: str, url: str) -> Mapping[str, Any]:
    """Return a ``TaskInfo``; the framework fills in the agent."""
    amounts = {"cpus": CPUS, "mem": MEMORY_MIB, "disk": DISK_MIB}
    return {
        "name": f"kubelet-{name}",
        "task_id": {"value": f"kubelet-{name}"},
        "agent_id": {"value": ""},
        "resources": [
            {"name": key, "type": "SCALAR", "scalar": {"value": value}} for key, value in amounts.items()
        ],
        "command": {
            "shell": True,
            "value": COMMAND,
            "user": "root",
            "uris": [
                {"value": f"{url}/{BUNDLE}", "extract": True, "executable": False, "cache": False},
                {"value": f"{url}/{FILE_NAME}", "extract": False, "executable": False, "cache": False},
            ],
        },
    }  # fmt: skip


def app(name: str, url: str) -> Mapping[str, Any]:
    """Return a Marathon application."""
    return {
        "id": f"/kubelet/{name}",
        "cmd": COMMAND,
        "user": "root",
        "cpus": CPUS,
        "mem": MEMORY_MIB,
        "disk": DISK_MIB,
        "instances": 1,
        "fetch": [
            {"uri": f"{url}/{BUNDLE}", "extract": True, "executable": False, "cache": False},
            {"uri": f"{url}/{FILE_NAME}", "extract": False, "executable": False, "cache": False},
        ],
    }
