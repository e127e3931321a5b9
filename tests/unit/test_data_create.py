"""Packages are made whole, once, and with a number that is never given twice."""

from __future__ import annotations

import contextlib
import errno
import json
import stat
import tomllib
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from imagebuilder.content import write_atomic
from imagebuilder.datapackage import create as module
from imagebuilder.datapackage.create import Created, Wanted, create
from imagebuilder.datapackage.crosswise import load_cluster
from imagebuilder.datapackage.format import Package, unpack
from imagebuilder.datapackage.pkifiles import ca_hash
from imagebuilder.datapackage.signing import verify_pointer
from imagebuilder.errors import DataError, HostError, PackageError, UsageError
from tests.unit.datafolder import HEAD, NODES, NOW, POD, SSH_KEY, authority, make_folder, write_cluster
from tests.vectors.make import key

TOKEN = "abcdef.0123456789abcdef"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_folder(tmp_path)


def run(folder: Path, text: str = HEAD + NODES, *, days: float = 0, **wanted: Any) -> list[Created]:
    cluster = load_cluster(write_cluster(folder, text))
    return create(cluster, folder / "pki", folder / "data", Wanted(now=NOW + timedelta(days=days), **wanted))


def read(folder: Path, node: str) -> Package:
    return unpack((folder / "data" / f"{node}.ibdata").read_bytes())


def everything(folder: Path) -> dict[str, bytes]:
    paths = (folder / "data").rglob("*")
    return {str(path): path.read_bytes() for path in paths if path.is_file() and path.name != ".lock"}


def test_one_package_per_node_that_others_may_not_read(folder: Path) -> None:
    made = run(folder)
    assert [(one.node, one.generation, one.unchanged) for one in made] == [
        ("node-1", 1, False), ("worker-1", 1, False),
    ]  # fmt: skip
    assert {stat.S_IMODE(one.path.stat().st_mode) for one in made} == {0o600}
    assert stat.S_IMODE((folder / "data").stat().st_mode) == 0o700
    assert read(folder, "worker-1").manifest.not_before == "2026-11-24T11:55:00Z"
    assert read(folder, "worker-1").manifest.not_after == "2027-11-24T12:00:00Z"


def test_a_standalone_node_has_pods_a_network_and_no_credentials(folder: Path) -> None:
    run(folder)
    files = read(folder, "node-1").files
    assert list(files) == [
        "/etc/cni/net.d/10-bridge.conflist", "/etc/kubernetes/manifests/hello.yaml", "/var/lib/kubelet/config.yaml",
    ]  # fmt: skip
    assert files["/etc/kubernetes/manifests/hello.yaml"] == POD.encode()
    config = yaml.safe_load(files["/var/lib/kubelet/config.yaml"])
    assert config["authentication"] == {"anonymous": {"enabled": False}, "webhook": {"enabled": False}}
    assert config["cgroupDriver"] == "systemd" and config["staticPodPath"] == "/etc/kubernetes/manifests"


def test_a_worker_has_its_own_certificate(folder: Path) -> None:
    for name in ("kubelet.crt", "kubelet.key"):
        (folder / "pki/nodes/worker-1" / name).write_text(name)
    run(folder)
    package = read(folder, "worker-1")
    modes = {file.path: file.mode for file in package.manifest.files}
    assert modes == {
        "/etc/cni/net.d/10-flannel.conflist": "0644", "/etc/default/kubelet": "0644",
        "/etc/kubernetes/kubelet.conf": "0600", "/etc/kubernetes/pki/ca.crt": "0644",
        "/var/lib/kubelet/config.yaml": "0644", "/var/lib/kubelet/pki/kubelet.crt": "0644",
        "/var/lib/kubelet/pki/kubelet.key": "0600",
    }  # fmt: skip
    config = yaml.safe_load(package.files["/var/lib/kubelet/config.yaml"])
    assert config["authentication"]["x509"] == {"clientCAFile": "/etc/kubernetes/pki/ca.crt"}
    assert (config["clusterDNS"], config["clusterDomain"]) == (["10.96.0.10"], "cluster.local")
    assert config["tlsPrivateKeyFile"] == "/var/lib/kubelet/pki/kubelet.key"
    assert package.files["/etc/kubernetes/kubelet.conf"] == b"SECRET kubeconfig\n"


def test_a_worker_with_a_token_asks_for_its_certificate(folder: Path) -> None:
    (folder / "token").write_text(f"{TOKEN}\n")
    (folder / "token").chmod(0o600)
    pin = ca_hash(authority())
    bootstrap = f'bootstrap = {{ token_file = "token", ca_hash = "{pin}" }}\n'
    run(folder, HEAD + NODES + bootstrap)
    files = read(folder, "worker-1").files
    assert "/etc/kubernetes/kubelet.conf" not in files
    config = yaml.safe_load(files["/etc/kubernetes/bootstrap-kubelet.conf"])
    assert config["users"][0]["user"] == {"token": TOKEN}
    assert config["clusters"][0]["cluster"]["server"] == "https://192.0.2.1:6443"
    with pytest.raises(DataError, match="not the one that ca_hash pins"):
        run(folder, HEAD + NODES + bootstrap.replace(pin, f"sha256:{'0' * 64}"))
    # Without a file of its own, the token of the PKI folder.
    write_atomic(folder / "pki/bootstrap.conf", files["/etc/kubernetes/bootstrap-kubelet.conf"], mode=0o600)
    run(folder, HEAD + NODES + "bootstrap = {}\n")
    assert read(folder, "worker-1").files == files
    (folder / "pki/bootstrap.conf").write_text("kind: Config\nusers: []\n")
    with pytest.raises(DataError, match="holds no bootstrap token"):
        run(folder, HEAD + NODES + "bootstrap = {}\n")
    (folder / "token").chmod(0o644)
    with pytest.raises(HostError, match="may be read by others"):
        run(folder, HEAD + NODES + bootstrap)


def test_what_a_node_is_told_in_its_arguments(folder: Path) -> None:
    more = 'family = "redhat"\naddresses = ["192.0.2.7"]\nlabels = { b = "2", a = "1" }\n'
    more += 'taints = ["gpu=yes:NoSchedule", "x:NoExecute"]\n'
    run(folder, HEAD + NODES + more)
    files = read(folder, "worker-1").files
    words = "--hostname-override=worker-1 --node-labels=a=1,b=2 --node-ip=192.0.2.7"
    assert files["/etc/sysconfig/kubelet"].decode() == f'KUBELET_EXTRA_ARGS="{words}"\n'
    config = yaml.safe_load(files["/var/lib/kubelet/config.yaml"])
    assert config["registerWithTaints"] == [
        {"key": "gpu", "effect": "NoSchedule", "value": "yes"}, {"key": "x", "effect": "NoExecute"},
    ]  # fmt: skip
    assert "resolvConf" not in config


def test_settings_selectors_and_requirements(folder: Path) -> None:
    head = HEAD + f'ssh_authorized_keys = ["{SSH_KEY}"]\nproxy = {{ http = "http://p:3128", no = ["x.example"] }}\n'
    run(folder, head + NODES + 'arch = "arm64"\nselectors = { mac = ["52:54:00:12:34:AB"] }\n')
    manifest = read(folder, "worker-1").manifest.as_data()
    assert manifest["selectors"] == {"mac": ["52:54:00:12:34:ab"]}
    assert manifest["requires"] == {
        "kubelet": {"min": "1.35", "below": "1.36"}, "runtime": "containerd", "arch": "arm64", "init": "systemd",
    }  # fmt: skip
    no_proxy = "localhost,127.0.0.1,10.244.0.0/16,10.96.0.0/12,.cluster.local,192.0.2.1,x.example"
    assert manifest["settings"] == {
        "hostname": "worker-1", "sshAuthorizedKeys": [SSH_KEY], "proxy": {"http": "http://p:3128", "no": no_proxy},
    }  # fmt: skip


def test_mirrors_of_registries(folder: Path) -> None:
    (folder / "ca.pem").write_text("CA\n")
    text = """
[registries."docker.io"]
mirrors = ["http://mirror.example:5000"]
plain_http = true
[registries."registry.example:5000"]
mirrors = ["https://one.example", "https://two.example/v2/x"]
ca_file = "ca.pem"
[registries._default]
mirrors = ["https://all.example"]
"""
    run(folder, HEAD + text + NODES)
    files = read(folder, "node-1").files
    hosts = {path.split("/")[4]: tomllib.loads(data.decode()) for path, data in files.items() if "hosts.toml" in path}
    every = ["pull", "resolve"]
    ca = "/etc/containerd/certs.d/registry.example:5000/ca.crt"
    assert hosts == {
        "docker.io": {"server": "https://registry-1.docker.io",
                      "host": {"http://mirror.example:5000": {"capabilities": every}}},
        "registry.example:5000": {"server": "https://registry.example:5000", "host": {
            "https://one.example": {"capabilities": every, "ca": ca},
            "https://two.example/v2/x": {"capabilities": every, "ca": ca}}},
        "_default": {"host": {"https://all.example": {"capabilities": every}}},
    }  # fmt: skip
    assert files[ca] == b"CA\n"
    docker = json.loads(files["/etc/docker/daemon.json"])
    assert docker["exec-opts"] == ["native.cgroupdriver=systemd"], "what the image has stays"
    assert docker["registry-mirrors"] == ["http://mirror.example:5000"]
    assert docker["insecure-registries"] == ["mirror.example:5000"]


def test_no_network_is_no_file(folder: Path) -> None:
    run(folder, HEAD + NODES)
    assert (folder / "data/addons/flannel.yaml").is_file()
    run(folder, HEAD + 'network = "none"\n' + NODES)
    found = [path for node in ("node-1", "worker-1") for path in read(folder, node).files if "/cni/" in path]
    assert found == [] and not (folder / "data/addons/flannel.yaml").exists()


def test_two_families(folder: Path) -> None:
    head = HEAD + 'pod_cidrs = ["10.244.0.0/16", "fd00:1::/56"]\nservice_cidrs = ["10.96.0.0/12", "fd00:2::/108"]\n'
    run(folder, head + 'addons = ["coredns"]\n' + NODES)
    bridge = json.loads(read(folder, "node-1").files["/etc/cni/net.d/10-bridge.conflist"])["plugins"][0]["ipam"]
    assert bridge["ranges"] == [[{"subnet": "10.244.0.0/16"}], [{"subnet": "fd00:1::/56"}]]
    assert bridge["routes"] == [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]
    flannel = list(yaml.safe_load_all((folder / "data/addons/flannel.yaml").read_text()))
    network = json.loads(next(one for one in flannel if one["kind"] == "ConfigMap")["data"]["net-conf.json"])
    assert (network["Network"], network["IPv6Network"], network["EnableIPv6"]) == ("10.244.0.0/16", "fd00:1::/56", True)
    dns = list(yaml.safe_load_all((folder / "data/addons/coredns.yaml").read_text()))
    assert next(one for one in dns if one["kind"] == "Service")["spec"]["clusterIPs"] == ["10.96.0.10", "fd00:2::a"]


# --- generations ---


def test_same_content_stays_as_it_is(folder: Path) -> None:
    run(folder)
    before = everything(folder)
    assert [one.unchanged for one in run(folder, days=180)] == [True, True]
    assert everything(folder) == before


def test_new_content_is_a_new_generation_of_that_node(folder: Path) -> None:
    run(folder)
    (folder / "hello.yaml").write_text(POD.replace("hello", "world"))
    made = run(folder)
    assert [(one.generation, one.unchanged) for one in made] == [(2, False), (1, True)]
    (folder / "hello.yaml").write_text(POD)
    assert run(folder)[0].generation == 3, "going back is going on"


def test_a_package_is_renewed_when_half_of_its_time_is_over(folder: Path) -> None:
    run(folder)
    assert [one.generation for one in run(folder, days=183)] == [2, 2]
    assert [one.generation for one in run(folder, HEAD + "validity_days = 30\n" + NODES, days=183)] == [3, 3]


def test_a_package_that_is_gone_or_damaged_is_made_again_as_it_was(folder: Path) -> None:
    run(folder)
    before = everything(folder)
    (folder / "data/node-1.ibdata").unlink()
    (folder / "data/worker-1.ibdata").write_bytes(b"x")
    assert [one.unchanged for one in run(folder, days=1)] == [False, False]
    assert everything(folder) == before


def test_a_lost_record_does_not_count_backwards(folder: Path) -> None:
    run(folder, generation=7)
    (folder / "data/generations.json").unlink()
    assert [one.generation for one in run(folder)] == [8, 8]


def test_a_stated_generation(folder: Path) -> None:
    assert [one.generation for one in run(folder, generation=5)] == [5, 5]
    assert [one.unchanged for one in run(folder, generation=5)] == [True, True]
    for number in (4, 5):
        with pytest.raises(UsageError, match="generation 5 was given away"):
            run(folder, HEAD + "validity_days = 9\n" + NODES, generation=number)


def test_only_some_nodes(folder: Path) -> None:
    assert [one.node for one in run(folder, nodes=["worker-1"])] == ["worker-1"]
    assert [one.generation for one in run(folder)] == [1, 1]
    with pytest.raises(UsageError, match=r'no node "worker" \(did you mean "worker-1"\?\)'):
        run(folder, nodes=["worker"])


def test_folder_of_another_cluster(folder: Path) -> None:
    run(folder)
    with pytest.raises(UsageError, match="of the cluster demo"):
        run(folder, HEAD.replace("demo", "other") + NODES)


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"kind": "Generations", "cluster": "demo", "nodes": {"node-1": {}}}']
)
def test_damaged_record_is_refused(folder: Path, text: str) -> None:
    run(folder)
    (folder / "data/generations.json").write_text(text)
    with pytest.raises(DataError):
        run(folder)


# --- faults ---


def test_pointers(folder: Path) -> None:
    with pytest.raises(UsageError, match="an address of its own"):
        run(folder, pointer_url="https://files.example/a")
    made = run(folder, pointer_url="https://files.example/{node}.ibdata")
    for one in made:
        assert one.pointer is not None
        found = verify_pointer(one.pointer.read_bytes(), key("signing").public_key())
        assert (found.url, found.sha256) == (f"https://files.example/{one.node}.ibdata", one.sha256)
    (folder / "hello.yaml").write_text(POD.replace("hello", "world"))
    run(folder)
    assert [one.pointer.is_file() for one in made if one.pointer] == [False, True], "no pointer to what is gone"


def test_a_manifest_may_be_as_large_as_a_package_and_no_larger(folder: Path) -> None:
    (folder / "hello.yaml").write_text(POD + "# " + "x" * (1 << 20))
    run(folder)
    (folder / "hello.yaml").write_text(POD + "# " + "x" * (4 << 20))
    with pytest.raises(DataError, match="has more than 4096 KiB"):
        run(folder)


@pytest.mark.parametrize("missing", ["package-signing.key", "ca.crt", "nodes/worker-1/kubelet.conf"])
def test_missing_file_stops_everything_before_anything_is_written(folder: Path, missing: str) -> None:
    (folder / "pki" / missing).unlink()
    with pytest.raises(HostError) as caught:
        run(folder)
    assert missing.rsplit("/", maxsplit=1)[-1] in caught.value.message
    assert caught.value.hint.startswith("imagebuilder pki ")
    assert not (folder / "data").exists()


def test_missing_half_of_a_pair(folder: Path) -> None:
    (folder / "pki/nodes/worker-1/kubelet.crt").write_text("x")
    with pytest.raises(HostError) as caught:
        run(folder)
    assert caught.value.hint == f"imagebuilder pki issue worker-1 --dir {folder / 'pki'}"


def test_pki_of_another_cluster(folder: Path) -> None:
    said = {"name": "other", "server": "https://192.0.2.2:6443", "serviceCidrs": ["10.96.0.0/12"]}
    (folder / "pki/cluster.json").write_text(json.dumps(said))
    with pytest.raises(DataError) as caught:
        run(folder)
    assert [line.split(" = ")[0] for line in caught.value.context.splitlines()] == [
        "cluster.toml has name", "cluster.toml has api_server",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("a: [", id="not-yaml"),
        pytest.param("apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: x}\nspec: {}\n", id="not-a-pod"),
        pytest.param(f"{POD}---\n{POD}", id="two"),
        pytest.param("", id="empty"),
        pytest.param("apiVersion: v1\nkind: Pod\nmetadata: {}\nspec: {}\n", id="no-name"),
    ],
)
def test_what_is_no_static_pod(folder: Path, text: str) -> None:
    (folder / "hello.yaml").write_text(text)
    with pytest.raises(DataError, match=r"hello\.yaml"):
        run(folder)


def test_the_same_pod_twice(folder: Path) -> None:
    (folder / "again.yaml").write_text(POD)
    with pytest.raises(DataError, match="both the pod default/hello"):
        run(folder, (HEAD + NODES).replace('["hello.yaml"]', '["hello.yaml", "again.yaml"]'))


def test_too_much_for_a_package(folder: Path) -> None:
    noise = "".join(f"# {at * 2654435761 % (1 << 32):08x}\n" for at in range(23_000))
    names = [f"pod-{at}" for at in range(17)]
    for name in names:
        (folder / f"{name}.yaml").write_text(POD.replace("hello", name) + noise)
    text = (HEAD + NODES).replace('["hello.yaml"]', json.dumps([f"{name}.yaml" for name in names]))
    with pytest.raises(PackageError, match="E_SIZE"):
        run(folder, text)
    assert list((folder / "data").glob("*.ibdata")) == []


def test_more_than_a_manifest_takes(folder: Path) -> None:
    names = json.dumps([f"host-{at}.example.com" for at in range(80)])
    with pytest.raises(DataError, match="worker-1: a manifest has no room") as caught:
        run(folder, HEAD + NODES + f"selectors = {{ hostname = {names} }}\n")
    assert caught.value.context.startswith("hostname: ")


def test_cut_short_anywhere_no_number_has_two_contents(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk is full at the n-th write; then the content changes, and it is tried again."""
    real, seen, done = module.write_atomic, {}, []
    for room in range(6):
        left = iter(range(room))

        def failing(path: Path, data: bytes, *, mode: int = 0o644, left: Iterator[int] = left) -> None:
            if next(left, None) is None:
                raise OSError(errno.ENOSPC, "No space left on device")
            real(path, data, mode=mode)

        (folder / "hello.yaml").write_text(POD.replace("hello", f"pod-{room}"))
        monkeypatch.setattr(module, "write_atomic", failing)
        with contextlib.suppress(OSError):
            run(folder)
            done.append(room)
        for path in (folder / "data").glob("*.ibdata"):
            found = unpack(path.read_bytes())
            name = (path.name, found.manifest.generation)
            assert seen.setdefault(name, found.manifest_bytes) == found.manifest_bytes
    assert done == [4, 5], "the record, flannel.yaml, and two packages"
    assert ("node-1.ibdata", 5) in seen, "one of each content but the first, which left nothing"
