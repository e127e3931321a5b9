"""A node that is what its data package says: at boot, redeployed live, and taken back."""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import time
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import TypeVar

import pytest

from imagebuilder.agent.agent import CODES
from imagebuilder.bake import BakeResult
from imagebuilder.content import sha256_bytes
from imagebuilder.datapackage.create import Wanted, create
from imagebuilder.datapackage.crosswise import load_cluster
from imagebuilder.datapackage.deliver.encodings import Payload, cidata, config_drive, kernel_line, seed
from imagebuilder.datapackage.format import pack, unpack
from imagebuilder.datapackage.render import KUBELET_CONFIG
from imagebuilder.datapackage.signing import KEY_FILE, PUBLIC_FILE, load_private_key, sign
from imagebuilder.errors import DeadlineError
from imagebuilder.pki.changes import Terms, init, issue
from imagebuilder.pki.cluster import stated
from imagebuilder.pki.folder import Folder
from imagebuilder.process import RealRunner
from imagebuilder.vm.boot import CREDENTIAL_BYTES, SLIPPED, RunningGuest
from tests.e2e.conftest import BOOT_SECONDS, ROOT, Bake, Boot, needs_bake, needs_qemu
from tests.e2e.controlplane import FROM_GUEST, ControlPlane, control_plane
from tests.e2e.controlplane_programs import build_programs
from tests.e2e.test_images import HELLO, get, out
from tests.integration.local_servers import Site

pytestmark = [pytest.mark.bake, pytest.mark.boot, pytest.mark.timeout(3600), needs_bake, needs_qemu]
EXAMPLE = ROOT / "examples/cluster"
ATTEMPT_SECONDS = 60  # to let us in; longer than an exchange of keys takes a busy guest
Answer = TypeVar("Answer")


@pytest.fixture
def pki(tmp_path: Path) -> Path:
    folder = Folder(tmp_path / "pki")
    init(folder, stated("demo", server=f"https://{FROM_GUEST}:6443"), Terms(now=dt.datetime.now(dt.UTC)))
    return folder.path


def package(pki: Path, work: Path, node: str, change: Callable[[str], str], manifest: Callable[[str], str]) -> bytes:
    """Make a node's package of the example, its cluster.toml and its static pod changed."""
    folder = work / "cluster"
    folder.mkdir(exist_ok=True)
    (folder / "cluster.toml").write_text(change((EXAMPLE / "cluster.toml").read_text()))
    (folder / "hello.yaml").write_text(manifest((EXAMPLE / "hello.yaml").read_text()))
    wanted = Wanted(now=dt.datetime.now(dt.UTC), nodes=[node])
    (made,) = create(load_cluster(folder / "cluster.toml"), pki, work / "data", wanted)
    return made.path.read_bytes()


def same(text: str) -> str:
    return text


def large(text: str) -> str:
    """Return a static pod with another port than the deployment's, and with much to say."""
    padding = Random(7).randbytes(60_000).hex()
    text = text.replace("hostPort: 8080", "hostPort: 8082").replace("name: hello\n", "name: static\n", 1)
    return text.replace("metadata:\n", f"metadata:\n  annotations: {{ padding: {padding} }}\n", 1)


def deaf(data: bytes, pki: Path) -> bytes:
    """Return the next generation of a package, whose kubelet cannot start."""
    old = unpack(data)
    config = old.files[KUBELET_CONFIG] + b"clusterDNS: not a list\n"
    entries = tuple(
        item.model_copy(update={"sha256": sha256_bytes(config), "size": len(config)})
        if item.path == KUBELET_CONFIG
        else item
        for item in old.manifest.files
    )
    manifest = old.manifest.model_copy(update={"files": entries, "generation": old.manifest.generation + 1})
    signature = sign(load_private_key(pki / KEY_FILE), manifest.to_bytes())
    return pack(manifest, {**old.files, KUBELET_CONFIG: config}, signature)


def apply(guest: RunningGuest, data: bytes) -> int:
    assert guest.ssh is not None
    command = "cat > /run/new.ibdata && imagebuilder-agent apply /run/new.ibdata"
    return guest.ssh.run(command, stdin=data, check=False, timeout=600).returncode


def status(guest: RunningGuest) -> dict[str, object]:
    found = json.loads(out(guest, "cat /var/lib/imagebuilder/status.json"))
    return {key: found[key] for key in ("code", "generation", "origin")}


def problems(guest: RunningGuest) -> list[tuple[str, str]]:
    found = json.loads(out(guest, "cat /var/lib/imagebuilder/status.json"))
    return [(problem["origin"], problem["code"]) for problem in found["problems"]]


def again(guest: RunningGuest, end: str) -> None:
    """Have the guest start anew by a command that ends it, and wait until it lets us in again."""
    assert guest.ssh is not None
    boot_id = "cat /proc/sys/kernel/random/boot_id"
    before = out(guest, boot_id)
    # Later, and with no stream of ssh's: a guest that goes at once leaves ssh waiting for how its command ended.
    guest.ssh.run(f"sync; (sleep 3; {end}) < /dev/null > /dev/null 2>&1 &", check=False)
    guest.ssh.close()
    deadline = time.monotonic() + 2 * BOOT_SECONDS  # seen under load: a restart takes five times as long as alone
    while time.monotonic() < deadline:
        if any(SLIPPED.search(line) for line in guest.machine.console.drain()):
            guest.machine.reset()  # the emulator's fault, as at a first boot
        with contextlib.suppress(DeadlineError):
            guest.ssh.wait(ATTEMPT_SECONDS)
            found = guest.ssh.run(boot_id, check=False, timeout=180)
            if found.returncode == 0 and found.stdout.strip() != before:
                return
        guest.ssh.close()
        time.sleep(1)
    raise AssertionError("the guest did not start anew")


def eventually(question: Callable[[], Answer], answer: Answer, seconds: float = 300) -> None:
    """Ask until the answer is the expected one; else show the last."""
    deadline = time.monotonic() + seconds
    while (found := question()) != answer:
        assert time.monotonic() < deadline, f"{found} is not {answer}"
        time.sleep(2)


def volumes(pki: Path, tmp_path: Path) -> tuple[list[bytes], tuple[Path, ...]]:
    """Return three generations of a package, each on a disk of its own kind: ISO 9660 and FAT seeds, a config drive."""
    made = [
        package(pki, tmp_path, "node-1", same, lambda text, number=number: f"{text}# {number}\n")  # type: ignore[misc]
        for number in range(3)
    ]
    one, two, three = (Payload(data=data, name="node-1") for data in made)
    paths = tuple(tmp_path / name for name in ("cidata.iso", "cidata.img", "config-2.iso"))
    paths[0].write_bytes(cidata(one))
    files = tmp_path / "files"
    files.mkdir()
    for name, data in seed(two).items():
        (files / name).write_bytes(data)
    run = RealRunner().run
    run(["mkfs.vfat", "-n", "CIDATA", "-C", paths[1], "2048"])
    run(["mcopy", "-i", paths[1], *sorted(files.iterdir()), "::"])
    paths[2].write_bytes(config_drive(three))
    return made, paths


def test_a_package_makes_a_node_which_is_redeployed_and_taken_back(
    baked: Bake, booted: Boot, pki: Path, tmp_path: Path
) -> None:
    made, seeds = volumes(pki, tmp_path)
    result: BakeResult = baked(trust=(pki / PUBLIC_FILE,), overlays=())
    with booted(result, until="pods", forwards=((0, 8080), (0, 8081)), seeds=seeds, reboots=True) as guest:
        assert HELLO in get(f"http://127.0.0.1:{guest.machine.host_port(8080)}/")
        assert status(guest) == {"code": "OK", "generation": 3, "origin": "config-2:/dev/vdd"}
        assert problems(guest) == [("cidata:/dev/vdb", "E_GENERATION"), ("cidata:/dev/vdc", "E_GENERATION")]
        assert "/dev/vd" not in out(guest, "mount | grep -v /dev/vda || true"), "they are unmounted again"
        assert out(guest, "hostname") == "node-1"
        kubelet = out(guest, "systemctl show -p MainPID --value kubelet")

        fourth = package(pki, tmp_path, "node-1", same, lambda text: text.replace("hostPort: 8080", "hostPort: 8081"))
        assert apply(guest, fourth) == 0
        assert HELLO in get(f"http://127.0.0.1:{guest.machine.host_port(8081)}/")
        assert out(guest, "systemctl show -p MainPID --value kubelet") == kubelet, "a manifest restarts nothing"

        assert apply(guest, made[0]) == CODES["E_GENERATION"]
        torn = unpack(fourth)
        assert apply(guest, pack(torn.manifest, torn.files, torn.signature[:-1] + b"\0")) == CODES["E_SIGNATURE"]
        assert apply(guest, deaf(fourth, pki)) == CODES["E_HEALTH"]
        check_taken_back(guest, fourth)

        # The next one has just been applied, and kubelet is being watched, when the power goes.
        assert guest.ssh is not None
        guest.ssh.run("cat > /run/new.ibdata", stdin=deaf(deaf(fourth, pki), pki))
        guest.ssh.run("imagebuilder-agent apply /run/new.ibdata > /dev/null 2>&1 &")
        generation = "cat /var/lib/imagebuilder/state.json"
        eventually(lambda: json.loads(out(guest, generation))["generation"], 6)
        eventually(lambda: out(guest, "test -e /var/lib/imagebuilder/watch.json && echo watched || true"), "watched")
        again(guest, "echo b > /proc/sysrq-trigger")
        eventually(lambda: status(guest)["code"], "E_HEALTH")
        check_taken_back(guest, fourth)
    assert "data package generation 3 applied" in guest.report.console_log.read_text("utf-8", "replace")


def check_taken_back(guest: RunningGuest, fourth: bytes) -> None:
    """The node is on generation 4, with all that it had, and its kubelet and pod run."""
    assert status(guest) == {"code": "E_HEALTH", "generation": 4, "origin": "file:/run/new.ibdata"}
    assert out(guest, "cat /var/lib/kubelet/config.yaml").encode() == unpack(fourth).files[KUBELET_CONFIG].strip()
    assert HELLO in get(f"http://127.0.0.1:{guest.machine.host_port(8081)}/")
    assert out(guest, "systemctl is-active kubelet") == "active"


def test_a_raw_disk_starts_no_kubelet_until_the_kernel_line_says_where_its_package_is(
    baked: Bake, booted: Boot, pki: Path, tmp_path: Path
) -> None:
    result = baked(target="raw", plain=True, trust=(pki / PUBLIC_FILE,))
    assert result.artifact.suffix == ".raw"
    assert result.artifact.stat().st_blocks * 512 < 3 << 30, "the file is sparse"
    data = package(pki, tmp_path, "node-1", same, same)
    with booted(result, until="runtime", firmware="uefi", reboots=True) as guest, contextlib.closing(Site()) as site:
        assert "cloud" not in out(guest, "uname -r"), "it has the generic kernel"
        assert out(guest, "systemctl show -p ActiveState --value kubelet") == "inactive"
        assert "imagebuilder: kubelet not started" in guest.report.console_log.read_text("utf-8", "replace")

        url = site.serve("/52:54:00:12:34:56/node-1.ibdata", data).replace("127.0.0.1", FROM_GUEST)
        line = kernel_line(Payload(data=data, name="node-1", url=url.replace("52:54:00:12:34:56", "{mac}"))).decode()
        # To GRUB a brace that is not quoted is its own.
        out(guest, f"""sed -i "s|^[[:space:]]*linux.*|& '{line.strip()}'|" /boot/grub/grub.cfg""")
        again(guest, "systemctl reboot")
        eventually(lambda: status(guest), {"code": "OK", "generation": 1, "origin": "kernel-line"})
        assert out(guest, "hostname") == "node-1"
        eventually(lambda: out(guest, "systemctl show -p ActiveState --value kubelet"), "active")


def ready(plane: ControlPlane) -> bool:
    answer = plane.get("/api/v1/nodes/worker-1")
    conditions = answer.data.get("status", {}).get("conditions", []) if answer.status == 200 else []
    return any(item["type"] == "Ready" and item["status"] == "True" for item in conditions)


def pods(plane: ControlPlane) -> list[tuple[str, str]]:
    found = plane.get("/api/v1/namespaces/default/pods").data["items"]
    return [(pod["spec"].get("nodeName", ""), pod["status"]["phase"]) for pod in found]


DEPLOYMENT = {
    "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "hello"},
    "spec": {
        "replicas": 1,
        "selector": {"matchLabels": {"app": "hello"}},
        "template": {
            "metadata": {"labels": {"app": "hello"}},
            "spec": {"containers": [{
                "name": "hello", "image": "imagebuilder.example/hello:1", "imagePullPolicy": "Never",
                "ports": [{"containerPort": 8080, "hostPort": 8080}],
            }]},
        },
    },
}  # fmt: skip


def test_a_worker_joins_a_cluster_and_runs_a_deployment(baked: Bake, booted: Boot, tmp_path: Path) -> None:
    with control_plane(tmp_path / "plane", build_programs(), host=FROM_GUEST) as plane:
        issue(plane.pki, "worker-1", None, Terms(now=dt.datetime.now(dt.UTC)))

        def change(text: str) -> str:
            text = text.replace('name = "demo"', 'name = "e2e"').replace(":6443", f":{plane.port}")
            text = text.replace('network = "flannel"', 'network = "none"').replace('["coredns"]', "[]")
            return text.replace('role = "worker"\n', 'role = "worker"\nmanifests = ["hello.yaml"]\n')

        data = package(plane.pki.path, tmp_path, "worker-1", change, large)
        assert len(data) > CREDENTIAL_BYTES, "too large for the SMBIOS table: it goes by fw_cfg"
        # No registry is in reach for flannel: the network is the site's own here.
        overlay = tmp_path / "overlay"
        conflist = "etc/cni/net.d/10-bridge.conflist"
        (overlay / conflist).parent.mkdir(parents=True)
        (overlay / conflist).write_bytes((ROOT / "examples/standalone/overlay" / conflist).read_bytes())
        result = baked(trust=(plane.pki.path / PUBLIC_FILE,), overlays=(overlay,))
        with booted(result, until="kubelet", forwards=((0, 8080),), data=data) as guest:
            assert status(guest) == {"code": "OK", "generation": 1, "origin": "fw_cfg"}
            plane.wait("the node is ready", lambda: ready(plane), 600)
            answer = plane.post("/apis/apps/v1/namespaces/default/deployments", DEPLOYMENT)
            assert answer.status == 201, answer
            assert HELLO in get(f"http://127.0.0.1:{guest.machine.host_port(8080)}/", 600)
            node = plane.get("/api/v1/nodes/worker-1").data
            assert node["status"]["nodeInfo"]["kubeletVersion"] == "v" + result.manifest["capabilities"]["kubelet"]
            plane.wait("the pod is known to run there", lambda: pods(plane) == [("worker-1", "Running")] * 2)
