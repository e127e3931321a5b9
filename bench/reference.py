"""The install-time reference: a plain image whose cloud-init installs at first boot what ours has in it.

It is kind to the reference: the plain image is our own base layer (no kernel, no tool has to be installed), the
packages and the kubelet come from a server on this very host, and no certificate is made.
"""

from __future__ import annotations

import contextlib
import functools
import json
import threading
from collections.abc import Iterator, Mapping
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from bench.ours import packages_of
from imagebuilder.bake import BakeOptions, bake
from imagebuilder.cells import plan_request
from imagebuilder.datapackage.deliver.iso9660 import iso9660
from imagebuilder.events import Progress
from imagebuilder.model import BuildRequest
from imagebuilder.process import RealRunner
from imagebuilder.sources.debs import make_repository
from imagebuilder.vm.artifact import find_artifact
from imagebuilder.vm.boot import BootRequest, boot

ROOT = Path(__file__).resolve().parents[1]
KUBELET_CONFIG = ROOT / "examples/standalone/overlay/var/lib/kubelet/config.yaml"
HOST = "10.0.2.2"  # as QEMU's user network shows this host to its guest
UNIT = """\
[Service]
ExecStart=/usr/bin/kubelet --config=/var/lib/kubelet/config.yaml
Restart=always
RestartSec=1
"""
INSTALL = """\
#!/bin/sh
set -eux
echo 'deb [trusted=yes] http://{server}/ ./' > /etc/apt/sources.list.d/bench.list
apt-get update -o Dir::Etc::sourcelist=/etc/apt/sources.list.d/bench.list -o Dir::Etc::sourceparts=-
DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends {packages}
mkdir -p /etc/containerd
containerd config default | sed 's/SystemdCgroup = false/SystemdCgroup = true/' > /etc/containerd/config.toml
systemctl restart containerd
for name in kubelet kubeadm kubectl; do
    /usr/lib/apt/apt-helper download-file "http://{server}/$name" "/usr/bin/$name"
    chmod 755 "/usr/bin/$name"
done
systemctl daemon-reload
systemctl start kubelet
while ! /usr/lib/apt/apt-helper download-file http://127.0.0.1:10248/healthz /run/healthz; do sleep 0.2; done
echo 'imagebuilder: kubelet healthy' > /dev/console
"""


@contextlib.contextmanager
def served(folder: Path) -> Iterator[str]:
    """Serve a folder to guests, and yield host and port as they see it."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (the base class names it)
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"{HOST}:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


def installed(cache: Path, work: Path) -> float:
    """Return the seconds from power-on until a kubelet that was installed at first boot is healthy.

    Args:
        cache: one in which the example was baked.
        work: an empty folder.

    Raises:
        DeadlineError, BootError: it did not come up.
    """
    runner = RealRunner()
    request = BuildRequest(os="debian", target="qemu", bare=True)
    baked = bake(
        plan_request(request), options=BakeOptions(output=work / "out", cache=cache), runner=runner, progress=Progress()
    )
    repository = work / "repository"
    packages = packages_of(cache, "runtime", "kubernetes")
    make_repository(packages, cache / "debs", "trixie", repository, runner)
    for program in next((cache / "payloads").glob("*/kubelet")).parent.glob("kube*"):
        (repository / program.name).symlink_to(program)
    with served(repository) as server:
        names = " ".join(package.name for package in packages)
        seed = work / "seed.iso"
        seed.write_bytes(iso9660("cidata", seed_files(INSTALL.format(server=server, packages=names))))
        found = find_artifact(baked.folder)
        wanted = BootRequest(
            disk=found.disk, disk_format=found.disk_format, console_log=work / "console.log", until="kubelet",
            seeds=(seed,), timeout=900,
        )  # fmt: skip
        with boot(wanted, runner=runner, progress=Progress(), cache_dir=cache) as guest:
            return guest.report.stages["kubelet"]


def baked(artifact: Path, work: Path) -> Mapping[str, float]:
    """Return the seconds from power-on to each stage of an image of ours; its pods are the last.

    Raises:
        DeadlineError, BootError: it did not come up.
    """
    wanted = BootRequest(disk=artifact, disk_format="qcow2", console_log=work / "baked.log", until="pods", timeout=600)
    with boot(wanted, runner=RealRunner(), progress=Progress(), cache_dir=work) as guest:
        return guest.report.stages


def seed_files(script: str) -> dict[str, bytes]:
    """Return the files of a NoCloud volume whose guest runs a script at its first boot (docs.cloud-init.io)."""
    files = [
        {"path": "/var/lib/kubelet/config.yaml", "content": KUBELET_CONFIG.read_text()},
        {"path": "/etc/systemd/system/kubelet.service", "content": UNIT},
        {"path": "/run/install.sh", "content": script},
    ]
    user_data = {"write_files": files, "runcmd": [["sh", "/run/install.sh"]]}  # /run takes no programs
    return {
        "user-data": b"#cloud-config\n" + json.dumps(user_data).encode() + b"\n",
        "meta-data": json.dumps({"instance-id": "bench"}).encode() + b"\n",
    }
