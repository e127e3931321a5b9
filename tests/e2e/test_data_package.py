"""A node that is what its data package says: at boot, redeployed live, and taken back."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest

from imagebuilder.agent.agent import CODES
from imagebuilder.bake import BakeResult
from imagebuilder.content import sha256_bytes
from imagebuilder.datapackage.create import Wanted, create
from imagebuilder.datapackage.crosswise import load_cluster
from imagebuilder.datapackage.deliver.encodings import Payload, cidata
from imagebuilder.datapackage.format import pack, unpack
from imagebuilder.datapackage.render import KUBELET_CONFIG
from imagebuilder.datapackage.signing import KEY_FILE, PUBLIC_FILE, load_private_key, sign
from imagebuilder.pki.changes import Terms, init, issue
from imagebuilder.pki.cluster import stated
from imagebuilder.pki.folder import Folder
from imagebuilder.vm.boot import CREDENTIAL_BYTES, RunningGuest
from tests.e2e.conftest import ROOT, Bake, Boot, needs_bake, needs_qemu
from tests.e2e.controlplane import FROM_GUEST, ControlPlane, control_plane
from tests.e2e.controlplane_programs import build_programs
from tests.e2e.test_images import HELLO, get, out

pytestmark = [pytest.mark.bake, pytest.mark.boot, pytest.mark.timeout(3600), needs_bake, needs_qemu]
EXAMPLE = ROOT / "examples/cluster"
Packages = Callable[..., bytes]


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


def test_a_package_makes_a_node_which_is_redeployed_and_taken_back(
    baked: Bake, booted: Boot, pki: Path, tmp_path: Path
) -> None:
    first = package(pki, tmp_path, "node-1", same, same)
    result: BakeResult = baked(trust=(pki / PUBLIC_FILE,), overlays=())
    seed = tmp_path / "cidata.iso"
    seed.write_bytes(cidata(Payload(data=first, name="node-1")))
    with booted(result, until="pods", forwards=((0, 8080), (0, 8081)), seeds=(seed,)) as guest:
        assert HELLO in get(f"http://127.0.0.1:{guest.machine.host_port(8080)}/")
        assert status(guest) == {"code": "OK", "generation": 1, "origin": "cidata:/dev/vdb"}
        assert "cidata" not in out(guest, "mount"), "it is unmounted again"
        assert out(guest, "hostname") == "node-1"
        kubelet = out(guest, "systemctl show -p MainPID --value kubelet")

        second = package(pki, tmp_path, "node-1", same, lambda text: text.replace("hostPort: 8080", "hostPort: 8081"))
        assert apply(guest, second) == 0
        assert HELLO in get(f"http://127.0.0.1:{guest.machine.host_port(8081)}/")
        assert out(guest, "systemctl show -p MainPID --value kubelet") == kubelet, "a manifest restarts nothing"

        assert apply(guest, first) == CODES["E_GENERATION"]
        torn = unpack(second)
        assert apply(guest, pack(torn.manifest, torn.files, torn.signature[:-1] + b"\0")) == CODES["E_SIGNATURE"]
        assert apply(guest, deaf(second, pki)) == CODES["E_HEALTH"]
        assert status(guest) == {"code": "E_HEALTH", "generation": 2, "origin": "file:/run/new.ibdata"}
        assert out(guest, "cat /var/lib/kubelet/config.yaml").encode() == unpack(second).files[KUBELET_CONFIG].strip()
        assert HELLO in get(f"http://127.0.0.1:{guest.machine.host_port(8081)}/")
        assert out(guest, "systemctl is-active kubelet") == "active"
    assert "data package generation 1 applied" in guest.report.console_log.read_text("utf-8", "replace")


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
