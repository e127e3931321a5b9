"""From the tool to the node: what ``deliver`` writes for each target is found by the agent, byte for byte."""

from __future__ import annotations

import base64
import json
import os
import stat
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import metadata_servers as cloud
import pytest
from click.testing import CliRunner
from local_servers import ELF, Site
from node_standins import Node

from imagebuilder.agent import agent
from imagebuilder.cli.data_deliver import deliver as command
from imagebuilder.datapackage.deliver.delivery import Payload, Written, deliver
from imagebuilder.datapackage.deliver.iso9660 import iso9660
from imagebuilder.datapackage.deliver.mesos import Parts
from imagebuilder.datapackage.deliver.transports import targets, ways
from imagebuilder.process import RealRunner

pytestmark = pytest.mark.integration

VECTORS = Path(__file__).parents[1] / "vectors/data-package"
PACKAGE = b"\x1f\x8b" + os.urandom(3000)
META_DATA = b"instance-id: i-1\n"


@pytest.fixture
def site() -> Iterator[Site]:
    made = Site()
    yield made
    made.close()


Carrier = Callable[[Path, Site, bytes], tuple[Node, str]]


def service(firmware: str, name: str, serve: Callable[[Site, bytes], None]) -> Carrier:
    """A cloud: what was delivered is what its service gives."""

    def carry(folder: Path, site: Site, data: bytes) -> tuple[Node, str]:
        node = Node(folder, firmware)
        serve(site, data)
        node.host.services[name] = [site.url]
        return node, "net"

    return carry


def disk(folder: Path, site: Site, data: bytes) -> tuple[Node, str]:
    node = Node(folder)
    node.disk("vdb", data)
    return node, "local"


def file(name: str) -> Carrier:
    def carry(folder: Path, site: Site, data: bytes) -> tuple[Node, str]:
        node = Node(folder)
        node.put(name, data)
        return node, "local"

    return carry


def oem_strings(folder: Path, site: Site, data: bytes) -> tuple[Node, str]:
    node = Node(folder)
    node.put("/sys/firmware/dmi/entries/11-0/raw", bytes((11, 5, 0, 14, 1)) + data + b"\0\0")
    return node, "local"


def guestinfo(folder: Path, site: Site, data: bytes) -> tuple[Node, str]:
    node = Node(folder, "vsphere")
    (node.values / "guestinfo.imagebuilder.data").write_bytes(data)
    return node, "local"


def azures_cd(folder: Path, site: Site, data: bytes) -> tuple[Node, str]:
    node = Node(folder, "azure")
    document = b"<ns1:Environment><wa:A><CustomData>%s</CustomData></wa:A></ns1:Environment>"
    node.disk("sr0", iso9660("rd_rdfe_1", {"ovf-env.xml": document % base64.b64encode(data)}))
    return node, "local"


def proxmoxs_drive(folder: Path, site: Site, data: bytes) -> tuple[Node, str]:
    return disk(folder, site, iso9660("cidata", {"user-data": data, "meta-data": META_DATA, "network-config": b""}))


def kubevirts_drive(folder: Path, site: Site, data: bytes) -> tuple[Node, str]:
    secret = json.loads(data)
    assert (secret["kind"], secret["metadata"]["name"]) == ("Secret", "node-1-data")
    return disk(folder, site, iso9660("cidata", {key: base64.b64decode(text) for key, text in secret["data"].items()}))


def kernel_line(folder: Path, site: Site, data: bytes) -> tuple[Node, str]:
    site.serve("/node-1.ibdata", PACKAGE)
    node = Node(folder)
    node.put("/proc/cmdline", b"root=UUID=1 quiet " + data.replace(b"http://pxe.example", site.url.encode()))
    return node, "net"


CARRIERS: dict[tuple[str, str], Carrier] = {
    ("aws", "mime"): service("aws", "ec2", cloud.ec2),
    ("aws", "raw"): service("aws", "ec2", cloud.ec2),
    ("gce", "base64"): service("gce", "gce", lambda site, data: cloud.gce(site, {"imagebuilder-data": data})),
    ("azure", "mime"): service("azure", "azure", cloud.azure),
    ("openstack", "mime"): service("openstack", "openstack", cloud.openstack),
    ("openstack", "config-drive"): disk,
    ("vsphere", "base64"): guestinfo,
    ("vsphere", "cidata"): disk,
    ("proxmox", "mime"): proxmoxs_drive,
    ("qemu", "cidata"): disk,
    ("qemu", "raw"): file(agent.FW_CFG),
    ("qemu", "smbios"): oem_strings,
    ("kubevirt", "secret"): kubevirts_drive,
    ("raw", "cidata"): disk,
    ("raw", "kernel-line"): kernel_line,
    ("vagrant-libvirt", "cidata"): disk,
    ("vagrant-virtualbox", "cidata"): disk,
    ("vagrant-qemu", "cidata"): disk,
    ("virtualbox", "cidata"): disk,
    ("digitalocean", "mime"): service("digitalocean", "digitalocean", cloud.digitalocean),
    ("hcloud", "mime"): service("hcloud", "hcloud", cloud.hcloud),
}
PAYLOAD = Payload(data=PACKAGE, name="node-1", url="http://pxe.example/node-1.ibdata")


def one(written: tuple[Written, ...], form: str) -> Path:
    return next(found.path for found in written if found.fit.way.form == form)


def found_by(node: Node, scope: str) -> list[agent.Candidate]:
    candidates, problems = agent.find(scope, node.host)
    assert [problem.text for problem in problems] == []
    return candidates


def test_every_way_has_a_carrier() -> None:
    every = {(target, way.form) for target in targets() for way in ways(target)}
    assert every == {*CARRIERS, ("mesos", "mesos")}


@pytest.mark.parametrize(("target", "form"), [pytest.param(*key, id="-".join(key)) for key in CARRIERS])
def test_what_is_delivered_is_found(tmp_path: Path, site: Site, target: str, form: str) -> None:
    path = one(deliver(PAYLOAD, target, tmp_path / "out").written, form)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    node, scope = CARRIERS[target, form](tmp_path, site, path.read_bytes())
    (candidate,) = found_by(node, scope)
    assert candidate.data == PACKAGE
    mounted = [call for call in node.calls() if call in ("mount", "umount")]
    assert mounted == (["mount", "umount"] if mounted else [])
    assert list((node.root / "run").iterdir()) == []


@pytest.mark.parametrize("carry", [azures_cd], ids=["custom-data"])
def test_azures_other_way(tmp_path: Path, site: Site, carry: Carrier) -> None:
    path = one(deliver(PAYLOAD, "azure", tmp_path / "out").written, "mime")
    (candidate,) = found_by(*carry(tmp_path, site, path.read_bytes()))
    assert (candidate.origin, candidate.data) == ("azure:/dev/sr0", PACKAGE)


def test_azures_udf_cd_and_its_custom_data_file(tmp_path: Path) -> None:
    image = bytearray(iso9660("rd_rdfe_1", {"CustomData.bin": PACKAGE}))
    image[18 * 2048 : 18 * 2048 + 7] = b"\0NSR02\x01"  # a bridge disk: UDF for who knows it
    node = Node(tmp_path, "azure")
    node.disk("sr0", bytes(image))
    assert [candidate.data for candidate in found_by(node, "local")] == [PACKAGE]
    assert "mount -t udf" in node.log.read_text()
    elsewhere = Node(tmp_path / "other")
    elsewhere.disk("sr0", bytes(image))
    assert found_by(elsewhere, "local") == [] and elsewhere.calls() == []


def test_a_nova_config_drive_in_fat(tmp_path: Path) -> None:
    image, files = tmp_path / "image", tmp_path / "openstack" / "latest"
    files.mkdir(parents=True)
    (files / "user_data").write_bytes(PACKAGE)
    image.write_bytes(bytes(64 << 20))
    runner = RealRunner()
    runner.run(["mkfs.vfat", "-n", "CONFIG-2", image])
    runner.run(["mcopy", "-s", "-i", image, files.parent, "::/"])
    node = Node(tmp_path / "here")
    node.disk("vdb", image.read_bytes())
    (candidate,) = found_by(node, "local")
    assert (candidate.origin, candidate.data) == ("config-2:/dev/vdb", PACKAGE)


def test_a_label_that_udev_alone_knows(tmp_path: Path) -> None:
    image, data = tmp_path / "image", tmp_path / "imagebuilder.ibdata"
    data.write_bytes(PACKAGE)
    image.write_bytes(bytes(4 << 20))
    RealRunner().run(["mkfs.vfat", image])
    RealRunner().run(["mcopy", "-i", image, data, "::/"])
    node = Node(tmp_path / "here")
    node.disk("sdb1", image.read_bytes())
    assert found_by(node, "local") == []
    (node.root / "dev/disk/by-label").mkdir(parents=True)
    (node.root / "dev/disk/by-label/CIDATA").symlink_to("../../sdb1")
    assert [candidate.data for candidate in found_by(node, "local")] == [PACKAGE]


def test_sources_come_in_their_order(tmp_path: Path) -> None:
    node = Node(tmp_path)
    node.put(agent.FW_CFG, PACKAGE + b"1")
    node.disk("vdb", iso9660("CONFIG-2", {"openstack/latest/user_data": PACKAGE + b"2"}))
    node.disk("vdc", iso9660("cidata", {"user-data": PACKAGE + b"3", "imagebuilder.ibdata": PACKAGE + b"4"}))
    node.disk("vda", bytes(100_000))
    node.disk("loop0", iso9660("cidata", {"imagebuilder.ibdata": PACKAGE}))
    assert [(one.origin, one.data[-1:]) for one in found_by(node, "local")] == [
        ("cidata:/dev/vdc", b"4"), ("cidata:/dev/vdc", b"3"), ("config-2:/dev/vdb", b"2"), ("fw_cfg", b"1"),
    ]  # fmt: skip


def test_a_link_on_a_disk_leads_nowhere(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "user_data").write_bytes(PACKAGE)
    disk = tmp_path / "disk"
    (disk / "openstack").mkdir(parents=True)
    (disk / "openstack" / "latest").symlink_to(secret)
    (disk / "imagebuilder.ibdata").symlink_to(secret / "user_data")
    image = tmp_path / "image"
    RealRunner().run(["xorriso", "-as", "mkisofs", "-quiet", "-V", "config-2", "-R", "-o", image, disk])
    node = Node(tmp_path / "here")
    node.disk("vdb", image.read_bytes())
    assert found_by(node, "local") == [] and node.calls() == ["mount", "umount"]


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("mount", "#!/bin/sh\necho 'wrong fs type' >&2\nexit 32\n", "mount ended with 32: wrong fs type"),
        ("mount", "#!/bin/sh\nexec sleep 600\n", "did not end within"),
        ("mount", "#!/bin/sh\nexec cat /dev/zero\n", "wrote more than"),
        ("umount", "#!/bin/sh\necho 'target is busy' >&2\nexit 32\n", "umount ended with 32: target is busy"),
    ],
    ids=["refused", "hangs", "floods", "busy"],
)
def test_a_disk_that_fails_is_a_problem(tmp_path: Path, name: str, text: str, said: str) -> None:
    node = Node(tmp_path)
    node.disk("vdb", iso9660("cidata", {"imagebuilder.ibdata": PACKAGE}))
    node.program(name, text)
    node.hurry()
    candidates, problems = agent.find("local", node.host)
    assert candidates == [] and [problem.origin for problem in problems] == ["cidata:/dev/vdb"]
    assert said in problems[0].text


def test_guestinfo_is_taken_away_once_it_was_applied(tmp_path: Path, site: Site) -> None:
    node, scope = guestinfo(tmp_path, site, base64.b64encode(PACKAGE))
    (candidate,) = found_by(node, scope)
    assert candidate.release is not None
    candidate.release()
    assert (node.values / "guestinfo.imagebuilder.data").read_text() == "---"
    assert found_by(node, scope) == []
    assert PACKAGE.hex() not in node.log.read_text() and base64.b64encode(PACKAGE).decode() not in node.log.read_text()


def test_guestinfo_through_vmtoolsd_and_the_ovf_environment(tmp_path: Path, site: Site) -> None:
    node, scope = guestinfo(tmp_path, site, base64.b64encode(PACKAGE))
    node.program("vmtoolsd", '#!/bin/sh\n[ "$1 $#" = "--cmd 2" ] || exit 64\nexec {log}.tool "$2"\n')
    os.rename(node.host.commands["vmware-rpctool"], f"{node.log}.tool")
    assert [candidate.data for candidate in found_by(node, scope)] == [PACKAGE]
    (node.values / "guestinfo.imagebuilder.data").unlink()
    assert found_by(node, scope) == []
    document = f'<Property oe:key="imagebuilder.data" oe:value="{base64.b64encode(PACKAGE).decode()}"/>'
    (node.values / "guestinfo.ovfEnv").write_text(document)
    assert [candidate.origin for candidate in found_by(node, scope)] == ["ovfenv"]


def test_a_vmware_machine_without_tools_says_so(tmp_path: Path) -> None:
    node = Node(tmp_path, "vsphere")
    node.host.commands["vmware-rpctool"] = str(tmp_path / "none")
    candidates, problems = agent.find("local", node.host)
    assert candidates == [] and [problem.origin for problem in problems] == ["vmware"]
    assert "cannot be started" in problems[0].text


# ---- Mesos


AGENT = """
import sys, tarfile, pathlib
assert sys.argv[1] == "--root" and sys.argv[3:5] == ["apply", "--no-restart"], sys.argv
root, package = pathlib.Path(sys.argv[2]), pathlib.Path(sys.argv[5])
assert (root / "etc/imagebuilder/trust.d/0.pem").read_text() == {key}
facts = (root / "usr/lib/imagebuilder/image.json").read_text()
assert '"kubelet":"1.35.8"' in facts and '"arch":"amd64"' in facts
if package.read_bytes()[2:3] == b"!":
    sys.exit("refused")
for name, text in {files}.items():
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(text)
"""
KUBELET = '#!/bin/sh\n{ env; for word in "$@"; do echo "arg=$word"; done; } > "$MESOS_SANDBOX/seen"\nexit 7\n'
WORKER = {
    "etc/kubernetes/bootstrap-kubelet.conf": "certificate-authority: /etc/kubernetes/pki/ca.crt\n",
    "var/lib/kubelet/config.yaml": "ca: /etc/kubernetes/pki/ca.crt\nx: /var/lib/kubelet/pki/a\ny: /etc/hosts\n",
    "etc/hostname": "node-1\n",
}


def bundle(folder: Path, files: dict[str, str], data: bytes = PACKAGE) -> Path:
    (folder / "kubelet").write_bytes(ELF)
    agent = AGENT.replace("{files}", repr(files)).replace("{key}", repr((VECTORS / "signing.pub").read_text()))
    (folder / "agent.py").write_text(agent)
    parts = Parts(
        kubelet=folder / "kubelet", version="1.35.8", trust=(VECTORS / "signing.pub",), url="https://files.example/n",
        agent=folder / "agent.py",
    )  # fmt: skip
    deliver(Payload(data=data, name="node-1"), "mesos", folder / "out", mesos=parts)
    return folder / "out"


def fetched(out: Path, sandbox: Path) -> str:
    """Lay a sandbox out as Mesos' fetcher does, and return the task's command."""
    task = json.loads((out / "task.json").read_text())
    sandbox.mkdir()
    for uri in task["command"]["uris"]:
        file = out / uri["value"].removeprefix("https://files.example/n/")
        if uri["extract"] and file.name.endswith(".tar.gz"):
            with tarfile.open(file) as archive:
                archive.extractall(sandbox, filter="fully_trusted")
        else:
            (sandbox / file.name).write_bytes(file.read_bytes())
    return str(task["command"]["value"])


def launch(out: Path, sandbox: Path) -> int:
    word = fetched(out, sandbox)
    assert (sandbox / "kubelet").read_bytes() == ELF  # a real one would be run here
    (sandbox / "kubelet").write_text(KUBELET)
    script = f'cd "$MESOS_SANDBOX" && exec {word}'
    env = {"MESOS_SANDBOX": str(sandbox), "KUBELET_ARGS": "--v=2 --node-labels=a=b"}
    return RealRunner().run(["sh", "-c", script], env=env, check=False).returncode


def test_a_mesos_task_becomes_a_kubelet(tmp_path: Path) -> None:
    out, box = bundle(tmp_path, WORKER), tmp_path / "sandbox"
    assert launch(out, box) == 7
    seen = (box / "seen").read_text().splitlines()
    assert [line for line in seen if line.startswith("arg=")] == [
        f"arg=--config={box}/run/config.yaml",
        f"arg=--root-dir={box}/kubelet-data",
        f"arg=--cert-dir={box}/root/var/lib/kubelet/pki",
        f"arg=--bootstrap-kubeconfig={box}/run/bootstrap-kubelet.conf",
        f"arg=--kubeconfig={box}/run/kubelet.conf",
        "arg=--hostname-override=node-1",
        "arg=--v=2",
        "arg=--node-labels=a=b",
    ]
    assert f"MESOS_SANDBOX={box}" in seen
    assert (box / "run/config.yaml").read_text() == (
        f"ca: {box}/root/etc/kubernetes/pki/ca.crt\nx: {box}/root/var/lib/kubelet/pki/a\ny: /etc/hosts\n"
    )
    assert stat.S_IMODE((box / "run/bootstrap-kubelet.conf").stat().st_mode) == 0o600


def test_a_standalone_kubelet_has_no_kubeconfig(tmp_path: Path) -> None:
    out = bundle(tmp_path, {"var/lib/kubelet/config.yaml": "a: b\n"})
    assert launch(out, tmp_path / "sandbox") == 7
    assert "kubeconfig" not in (tmp_path / "sandbox/seen").read_text()


def test_a_refused_package_starts_no_kubelet(tmp_path: Path) -> None:
    out = bundle(tmp_path, WORKER, b"\x1f\x8b!")
    assert launch(out, tmp_path / "sandbox") == 1
    assert not (tmp_path / "sandbox/seen").exists()


def test_the_sandbox_is_a_source_of_the_agent(tmp_path: Path) -> None:
    fetched(bundle(tmp_path, WORKER), tmp_path / "sandbox")
    host = agent.SourceHost(str(tmp_path / "root"), sandbox=str(tmp_path / "sandbox"))
    assert [candidate.data for candidate in agent.find("local", host)[0]] == [PACKAGE]


def test_bundles_are_the_same_bytes_and_hold_no_secret(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    first, second = bundle(tmp_path / "a", WORKER), bundle(tmp_path / "b", WORKER, PACKAGE + b"2")
    assert (first / "bundle.tar.gz").read_bytes() == (second / "bundle.tar.gz").read_bytes()
    assert stat.S_IMODE((first / "imagebuilder.ibdata").stat().st_mode) == 0o600
    app = json.loads((first / "app.json").read_text())
    assert [one["uri"] for one in app["fetch"]] == [
        "https://files.example/n/bundle.tar.gz", "https://files.example/n/imagebuilder.ibdata"
    ]  # fmt: skip


def test_the_command_asks_kubelet_for_its_version(tmp_path: Path) -> None:
    (tmp_path / "node-1.ibdata").write_bytes((VECTORS / "good-standalone.ibdata").read_bytes())
    (tmp_path / "kubelet").write_text("#!/bin/sh\necho Kubernetes v1.35.8\n")
    (tmp_path / "kubelet").chmod(0o755)
    (tmp_path / "key.pem").write_text("key")
    words = [
        f"{tmp_path}/node-1.ibdata", "--target", "mesos", "--output", f"{tmp_path}/out", "--trust",
        f"{tmp_path}/key.pem", "--kubelet", f"{tmp_path}/kubelet", "--bundle-url", "https://a.example",
    ]  # fmt: skip
    result = CliRunner().invoke(command, words)
    assert "not a Linux program" in str(result.exception)  # it is a script: the version was no hindrance
    (tmp_path / "kubelet").write_text("#!/bin/sh\necho no version\n")
    assert "for a version" in str(CliRunner().invoke(command, words).exception)
