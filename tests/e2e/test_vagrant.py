"""A baked box in the hands of Debian's own Vagrant: from the catalog to ssh, and gone again."""

from __future__ import annotations

from pathlib import Path

import pytest

from imagebuilder import process
from imagebuilder.process import RealRunner
from imagebuilder.publish.catalog import Catalog, Wanted
from tests.e2e.conftest import ROOT, Bake, needs_bake, needs_qemu

WANTED = ("vagrant", "libvirtd", "virtlogd", "virsh", "dnsmasq", "rsync", "qemu-system-x86_64")
pytestmark = [
    pytest.mark.bake, pytest.mark.boot, pytest.mark.timeout(1800), needs_bake, needs_qemu,
    pytest.mark.skipif(any(process.find(name) is None for name in WANTED), reason=f"needs {', '.join(WANTED)}"),
]  # fmt: skip
NAME = "k8s/debian-13"
SCRIPTS = ROOT / "tests/e2e/vagrant"


def living_in(world: Path) -> list[str]:
    """The processes that see a world's mounts: libvirt, what it started, and Vagrant."""
    found = []
    for path in Path("/proc").glob("[0-9]*/mountinfo"):
        try:
            if f"{world.parent.name}/{world.name}/lib" in path.read_text():
                found.append((path.parent / "comm").read_text().strip())
        except OSError:  # it has ended
            continue
    return found


def test_a_box_goes_up_as_a_node_and_away(baked: Bake, tmp_path: Path) -> None:
    result = baked(target="vagrant-libvirt", plain=True)
    assert result.manifest["artifact"]["boxProvider"] == "libvirt"
    catalog = Catalog(tmp_path / "catalog")
    catalog.create((tmp_path / "catalog").as_uri())
    added = catalog.add(result.artifact, Wanted(name=NAME, version="1.0.0"))
    work, home = tmp_path / "work", tmp_path / "home"
    work.mkdir()
    home.mkdir()
    world = tmp_path / "world"
    env = {"WORLD": str(world), "HOME": str(home), "VAGRANT_CHECKPOINT_DISABLE": "1"}
    log = tmp_path / "vagrant.log"
    command = [SCRIPTS / "world.sh", SCRIPTS / "life.sh", NAME, added.url]
    ended = RealRunner().run(command, env=env, cwd=work, log=log, timeout=1500, check=False)
    assert ended.returncode == 0, "\n".join(ended.tail)
    said = log.read_text("utf-8", "replace").replace("\r", "\n").splitlines()
    kubelet = result.manifest["capabilities"]["kubelet"]
    for line in (
        "user: vagrant, root: root", "docker: systemd overlay2", f"kubelet: Kubernetes v{kubelet}",
        "containerd: active", "failed: 0", "keys: 1, insecure: 0", "shared: hello", "mounts: 1",
    ):  # fmt: skip
        assert line in said, line
    assert any("Inserting generated public key" in line for line in said)
    assert living_in(world) == [], "nothing of it runs any more"
