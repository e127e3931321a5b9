"""cluster.toml: everything that is wrong with it is said at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from imagebuilder.datapackage.crosswise import dns_servers, load_cluster
from imagebuilder.errors import DataError
from tests.unit.datafolder import HEAD, NODES, SSH_KEY, write_cluster

ROOT = Path(__file__).resolve().parents[2]
WORKER = '[[nodes]]\nname = "w"\nrole = "worker"\n'


def problems(tmp_path: Path, text: str) -> str:
    with pytest.raises(DataError) as caught:
        load_cluster(write_cluster(tmp_path, text))
    return caught.value.context


def test_defaults_are_kubernetes_own(tmp_path: Path) -> None:
    cluster = load_cluster(write_cluster(tmp_path))
    assert (cluster.kubernetes.minimum, cluster.kubernetes.below) == ("1.35", "1.36")
    assert dns_servers(cluster) == ["10.96.0.10"]
    assert [node.name for node in cluster.workers] == ["worker-1"]
    assert (cluster.api_host, cluster.api_port) == ("192.0.2.1", 6443)
    assert cluster.nodes[0].manifests == (str(tmp_path / "hello.yaml"),)


def test_a_patch_and_a_range_of_kubernetes(tmp_path: Path) -> None:
    text = HEAD + NODES
    patch = load_cluster(write_cluster(tmp_path, text.replace('"1.35"', '"1.35.4"'))).kubernetes
    assert (patch.minimum, patch.below) == ("1.35.4", "1.36")
    wide = load_cluster(write_cluster(tmp_path, text.replace('"1.35"', '{ minimum = "1.35", below = "1.38" }')))
    assert wide.kubernetes.below == "1.38"


def test_all_problems_at_once(tmp_path: Path) -> None:
    text = (
        'nmae = "demo"\nkubernetes = "1.35"\nnetwork = "calico"\n[[nodes]]\nname = "A"\nrole = "worker"\nlabls = {}\n'
    )
    said = problems(tmp_path, text)
    assert 'nmae: unknown key (did you mean "name"?)' in said
    assert 'nodes.0.labls: unknown key (did you mean "labels"?)' in said
    assert "network: input should be 'flannel' or 'none'" in said
    assert "nodes.0.name: " in said and "\n".join(said.splitlines()).count("cluster.toml: ") == len(said.splitlines())


@pytest.mark.parametrize(
    ("text", "said"),
    [
        pytest.param('kubernetes = "latest"', '"latest" is not a version', id="version"),
        pytest.param('kubernetes = { minimum = "1.36", below = "1.36" }', "no version is >= 1.36", id="empty-range"),
        pytest.param('pod_cidrs = ["10.96.0.0/16"]', "service_cidrs: 10.96.0.0/12 overlap", id="overlap"),
        pytest.param('pod_cidrs = ["10.1.2.3/16"]', "has host bits set", id="host-bits"),
        pytest.param('pod_cidrs = ["10.1.0.0/16", "10.2.0.0/16"]', "two networks of one family", id="one-family"),
        pytest.param('pod_cidrs = ["10.1.0.0/25"]', "no room for a node's /24", id="pods-small"),
        pytest.param('service_cidrs = ["10.0.0.0/8"]', "too large or too small (/12 to /28)", id="services-large"),
        pytest.param('service_cidrs = ["fd00::/64"]', "too large or too small (/108 to /124)", id="services-six"),
        pytest.param('api_server = "https://10.96.0.1:6443"', "lies within service_cidrs", id="server-in-services"),
        pytest.param('api_server = "https://api.example:0"', "has no such port", id="port-zero"),
        pytest.param('api_server = "https://api.example:99999"', "has no such port", id="port-large"),
        pytest.param('api_server = "http://api.example"', "api_server: string should match", id="server-http"),
        pytest.param('api_server = ""', "missing, but there are workers", id="no-server"),
        pytest.param('dns_servers = ["dns"]', '"dns" is no address', id="dns-name"),
        pytest.param('dns_servers = ["192.0.2.53"]\naddons = ["coredns"]', "outside service_cidrs", id="dns-outside"),
        pytest.param('ssh_authorized_keys = ["ssh-ed25519 AAAA"]', "no public key of OpenSSH", id="ssh-damaged"),
        pytest.param('ssh_authorized_keys = ["command=\\"x\\" ssh-ed25519 AAAA"]', "without options", id="ssh-options"),
        pytest.param(f'ssh_authorized_keys = ["{SSH_KEY}\\nx"]', "only printable ASCII", id="ssh-line"),
        pytest.param('proxy = { http = "socks://x" }', "proxy.http", id="proxy-scheme"),
        pytest.param('proxy = { no = ["a b"] }', 'proxy.no: "a b"', id="no-proxy"),
        pytest.param('registries = { "docker.io" = { mirrors = ["mirror"] } }', "is no address like", id="mirror"),
        pytest.param('registries = { "docker.io" = { mirrors = ["http://m"] } }', "plain_http = true", id="plain"),
        pytest.param('registries = { "../x" = { mirrors = ["https://m"] } }', "registries.../x", id="registry-name"),
        pytest.param('images = { coredns = "x y" }', "images.coredns", id="image"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_the_cluster(tmp_path: Path, text: str, said: str) -> None:
    key = text.split(" =")[0]
    head = "".join(f"{line}\n" for line in HEAD.splitlines() if not line.startswith(f"{key} "))
    assert said in problems(tmp_path, f"{head}{text}\n{NODES}")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        pytest.param('addresses = ["10.244.1.1"]', "10.244.1.1 lies within 10.244.0.0/16", id="address-in-pods"),
        pytest.param('addresses = ["127.0.0.1"]', "no address of a machine", id="loopback"),
        pytest.param('addresses = ["192.0.2.1", "192.0.2.2"]', "two of one family", id="one-family"),
        pytest.param('selectors = { mac = ["52:54"] }', 'selectors.mac: "52:54"', id="mac"),
        pytest.param('selectors = { uuid = ["x"] }', "selectors.uuid", id="uuid"),
        pytest.param('selectors = { disk = ["x"] }', "selectors.disk: unknown key", id="selector"),
        pytest.param('manifests = ["a.yaml", "b/a.yaml"]', 'two files are named "a.yaml"', id="manifest-twice"),
        pytest.param('manifests = ["a.sh"]', "must end in .yaml or .json", id="manifest-name"),
        pytest.param('labels = { "kubernetes.io/role" = "x" }', "must not set", id="label-kubernetes"),
        pytest.param('labels = { "a b" = "x" }', "no name of a label", id="label-name"),
        pytest.param('labels = { a = "x,y=z" }', "no value of a label", id="label-value"),
        pytest.param('taints = ["a=b:Never"]', "taints.0", id="taint"),
        pytest.param('role = "control-plane"', "'standalone' or 'worker'", id="role"),
        pytest.param('bootstrap = { token_file = "t", ca_hash = "sha256:0" }', "ca_hash", id="ca-hash"),
    ],
)
def test_what_is_wrong_with_a_node(tmp_path: Path, text: str, said: str) -> None:
    node = WORKER.replace('role = "worker"\n', "") if text.startswith("role") else WORKER
    assert said in problems(tmp_path, f"{HEAD}{node}{text}\n")


def test_nodes_must_differ(tmp_path: Path) -> None:
    same = WORKER + 'addresses = ["192.0.2.7"]\nselectors = { mac = ["52:54:00:12:34:ab"] }\n'
    said = problems(tmp_path, HEAD + same + same.replace(":ab", ":AB"))
    assert 'the name "w" is there twice' in said
    assert "the address 192.0.2.7 is there twice" in said
    assert "the mac 52:54:00:12:34:ab selects two nodes" in said


def test_a_standalone_node_has_nobody_to_tell(tmp_path: Path) -> None:
    node = WORKER.replace("worker", "standalone")
    text = f'name = "demo"\nkubernetes = "1.35"\naddons = ["coredns"]\n{node}labels = {{ a = "b" }}\n'
    said = problems(tmp_path, text)
    assert "are for workers" in said and "there is no worker to run them" in said


def test_labels_that_a_kubelet_may_set(tmp_path: Path) -> None:
    names = ("example.com/a", "node.kubernetes.io/x", "a.kubelet.kubernetes.io/x", "topology.kubernetes.io/zone", "a")
    labels = ", ".join(f'"{name}" = "x"' for name in names)
    assert len(load_cluster(write_cluster(tmp_path, f"{HEAD}{WORKER}labels = {{ {labels} }}\n")).nodes[0].labels) == 5


def test_our_example_is_right() -> None:
    cluster = load_cluster(ROOT / "examples/cluster/cluster.toml")
    assert [node.role for node in cluster.nodes] == ["standalone", "worker"]
