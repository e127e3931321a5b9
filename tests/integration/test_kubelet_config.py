"""The configuration that we write, read by a real kubelet: one that a bake left in the cache, or the machine's own.

A kubelet reads and checks its configuration before anything else. It then looks for the container runtime, of which
there is none here, and ends.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from imagebuilder import process
from imagebuilder.cli.settings import default_cache
from imagebuilder.datapackage.crosswise import load_cluster
from imagebuilder.datapackage.render import bootstrap_kubeconfig, kubelet_configuration
from imagebuilder.process import RealRunner
from tests.unit.datafolder import HEAD, NODES, authority, write_cluster

pytestmark = pytest.mark.integration
Start = Callable[..., str]


def kubelets() -> list[Path]:
    """The newest kubelet of the cache, or else the machine's own."""
    layers = default_cache(os.environ, Path.home()) / "layers"
    found = sorted(layers.glob("*/root/usr/bin/kubelet"), key=lambda path: path.stat().st_mtime)
    own = process.find("kubelet")
    return [*([own] if own else []), *found][-1:]


needs_kubelet = pytest.mark.skipif(
    os.geteuid() != 0 or not kubelets(), reason="needs root and a kubelet: bake an image once"
)


@pytest.fixture
def start(tmp_path: Path) -> Start:
    """Starts a kubelet with a configuration, and returns what it said when it ended."""

    def run(config: dict[str, Any], *words: str) -> str:
        # Where things are on this machine; and the tests' host may still have cgroup v1.
        here = {"containerRuntimeEndpoint": f"unix://{tmp_path}/none.sock", "staticPodPath": str(tmp_path),
                "failCgroupV1": False, "failSwapOn": False}  # fmt: skip
        text = yaml.safe_dump(config | here).replace("/etc/kubernetes/pki", str(tmp_path))
        (tmp_path / "config.yaml").write_text(text)
        (tmp_path / "ca.crt").write_bytes(authority())
        folders = ["--root-dir", str(tmp_path / "root"), "--cert-dir", str(tmp_path / "root")]
        argv = [kubelets()[-1], "--config", tmp_path / "config.yaml", *folders, *words]
        said: list[str] = []
        RealRunner().run(argv, check=False, timeout=120, on_line=said.append)
        return "\n".join(said)

    return run


def read_and_checked(said: str) -> bool:
    """Tell whether a kubelet took its configuration, every key of it, and went on to its runtime."""
    strict = "lenient decoding" not in said and "failed to validate" not in said
    return strict and '"Kubelet version"' in said and "none.sock" in said


@needs_kubelet
@pytest.mark.parametrize("family", ["debian", "redhat"])
def test_standalone(start: Start, tmp_path: Path, family: str) -> None:
    cluster = load_cluster(
        write_cluster(tmp_path, (HEAD + NODES).replace("manifests", f'family = "{family}"\nmanifests'))
    )
    said = start(kubelet_configuration(cluster, cluster.nodes[0], serves=False))
    assert read_and_checked(said), said


@needs_kubelet
def test_worker(start: Start, tmp_path: Path) -> None:
    cluster = load_cluster(write_cluster(tmp_path, HEAD + NODES + 'taints = ["a=b:NoSchedule", "c:NoExecute"]\n'))
    config = yaml.safe_dump(bootstrap_kubeconfig(cluster, "abcdef.0123456789abcdef"))
    (tmp_path / "kubelet.conf").write_text(config.replace("/etc/kubernetes/pki", str(tmp_path)))
    words = ["--kubeconfig", str(tmp_path / "kubelet.conf"), "--hostname-override=worker-1", "--node-labels=a=1,b=2"]
    said = start(kubelet_configuration(cluster, cluster.nodes[1], serves=False), *words)
    assert read_and_checked(said), said


@needs_kubelet
@pytest.mark.parametrize("change", [{"clustersDNS": []}, {"maxPods": -4}], ids=["unknown-key", "bad-value"])
def test_a_wrong_configuration_is_noticed(start: Start, tmp_path: Path, change: dict[str, Any]) -> None:
    cluster = load_cluster(write_cluster(tmp_path))
    assert not read_and_checked(start(kubelet_configuration(cluster, cluster.nodes[0], serves=False) | change))
