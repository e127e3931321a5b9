"""Baked images, booted: what the README promises, seen from inside the guest."""

from __future__ import annotations

import hashlib
import json
import time
import urllib.request
from pathlib import Path

import pytest

from imagebuilder.bake import BakeResult
from imagebuilder.process import RealRunner
from imagebuilder.vm.boot import RunningGuest
from tests.e2e.conftest import Bake, Boot, needs_bake, needs_qemu

pytestmark = [pytest.mark.bake, pytest.mark.boot, pytest.mark.timeout(1800), needs_bake, needs_qemu]
HEALTHZ = (
    "python3 -c 'import urllib.request as r; print(r.urlopen(\"http://127.0.0.1:10248/healthz\").read().decode())'"
)
HELLO = "hello from a pod that was in the image"


def out(guest: RunningGuest, command: str) -> str:
    assert guest.ssh is not None
    return guest.ssh.run(command, timeout=180).stdout.strip()


def get(url: str, seconds: float = 120) -> str:
    deadline = time.monotonic() + seconds
    while True:
        try:
            with urllib.request.urlopen(url, timeout=10) as answer:
                return str(answer.read().decode())
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(1)


def test_debian_13_runs_a_pod_under_bios(baked: Bake, booted: Boot) -> None:
    result = baked()
    before = hashlib.sha256(result.artifact.read_bytes()).hexdigest()
    assert before == result.manifest["artifact"]["sha256"]
    with booted(result, until="pods", forwards=((0, 8080),)) as guest:
        assert guest.report.firmware == "bios"
        assert HELLO in get(f"http://127.0.0.1:{guest.machine.host_port(8080)}/")
        assert out(guest, "kubelet --version") == "Kubernetes v" + result.manifest["capabilities"]["kubelet"]
        assert (
            out(guest, "exec 3<>/dev/tcp/127.0.0.1/10248; printf 'GET /healthz HTTP/1.0\\r\\n\\r\\n' >&3; tail -n1 <&3")
            == "ok"
        )
        check_runtimes(guest)
        check_node(guest)
    assert hashlib.sha256(result.artifact.read_bytes()).hexdigest() == before


def check_runtimes(guest: RunningGuest) -> None:
    """Both runtimes answer, with one cgroup driver, and the images were unpacked at build time."""
    info = json.loads(out(guest, "crictl info"))
    assert all(condition["status"] for condition in info["status"]["conditions"])
    assert info["config"]["containerd"]["runtimes"]["runc"]["options"]["SystemdCgroup"] is True
    assert info["config"]["sandboxImage"].startswith("registry.k8s.io/pause:")
    docker = json.loads(out(guest, "docker info --format '{{json .}}'"))
    assert (docker["CgroupDriver"], docker["CgroupVersion"], docker["Driver"]) == ("systemd", "2", "overlay2")
    images = out(guest, "crictl images")
    assert "registry.k8s.io/pause" in images and "imagebuilder.example/hello" in images


def check_node(guest: RunningGuest) -> None:
    """The node checklist, as booted."""
    assert out(guest, "systemctl --failed --no-legend") == ""
    assert out(guest, "cat /proc/swaps | wc -l") == "1"
    assert out(guest, "stat -fc %T /sys/fs/cgroup") == "cgroup2fs"
    for key, value in (
        ("net.ipv4.ip_forward", "1"), ("net.bridge.bridge-nf-call-iptables", "1"),
        ("net.ipv6.conf.all.forwarding", "1"), ("vm.overcommit_memory", "1"), ("kernel.panic", "10"),
        ("fs.inotify.max_user_instances", "8192"),
    ):  # fmt: skip
        assert out(guest, f"sysctl -n {key}") == value, key
    assert {"overlay", "br_netfilter"} <= set(out(guest, "lsmod | cut -d' ' -f1").split())
    assert {"bridge", "loopback", "host-local", "portmap"} <= set(out(guest, "ls /opt/cni/bin").split())
    assert {"docker.io", "containerd", "runc"} <= set(out(guest, "apt-mark showhold").split())
    assert out(guest, "dpkg --audit") == ""
    assert len(out(guest, "cat /etc/machine-id")) == 32
    assert "/etc/ssh/ssh_host_ed25519_key" in out(guest, "ls /etc/ssh/ssh_host_*_key").split()
    assert "imagebuilder" not in out(guest, "cat /etc/apt/sources.list")
    assert out(guest, "findmnt -no SOURCE,FSTYPE /").split() == ["/dev/vda3", "ext4"]
    assert "UUID=" in out(guest, "cat /proc/cmdline")


def test_debian_13_boots_under_uefi_and_grows_to_a_larger_disk(baked: Bake, booted: Boot, tmp_path: Path) -> None:
    result = baked()
    larger = tmp_path / "larger.qcow2"
    RealRunner().run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", result.artifact, "-F", "qcow2", larger, "20G"])
    grown = BakeResult(folder=tmp_path, artifact=larger, manifest=result.manifest, unchanged=True)
    with booted(grown, until="login", firmware="uefi") as guest:
        assert out(guest, "test -d /sys/firmware/efi && echo yes") == "yes"
        assert out(guest, "systemctl is-active ssh") == "active"
        assert int(out(guest, "df --output=size -BG / | tail -1").strip("G ")) >= 18


def test_debian_12_runs_a_pod(baked: Bake, booted: Boot) -> None:
    with booted(baked(release="12"), until="pods", forwards=((0, 8080),)) as guest:
        assert HELLO in get(f"http://127.0.0.1:{guest.machine.host_port(8080)}/")
        assert out(guest, "systemctl --failed --no-legend") == ""
