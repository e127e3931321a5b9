"""The agent as a program: real openssl, a recorded systemctl, each Python that is here, memory and time."""

from __future__ import annotations

import ast
import base64
import gzip
import http.server
import json
import os
import shutil
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from imagebuilder import process, resources
from imagebuilder.agent import agent
from imagebuilder.process import RealRunner, Result
from tests.agent_node import FILES, Node, key_id, package

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(not process.find("openssl"), reason="openssl is missing"),
]
AGENT = resources.agent()
PYENV = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))


def pythons() -> list[str]:
    """Return the Pythons of this machine, one of each minor: pyenv's, and those on the PATH that are no shims."""
    found = {
        f"python3.{path.parents[1].name.split('.')[1]}": str(path) for path in PYENV.glob("versions/3.*/bin/python3")
    }
    for minor in range(6, 20):
        path = shutil.which(f"python3.{minor}")
        if path and "shims" not in path:
            found.setdefault(f"python3.{minor}", path)
    return [found[name] for name in sorted(found, key=lambda name: int(name.split(".")[1]))] or [sys.executable]


MIB = 1 << 20


class Signer:
    """A key of its own."""

    def __init__(self) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())

    def form(self, encoding: serialization.Encoding) -> bytes:
        return self.key.public_key().public_bytes(encoding, serialization.PublicFormat.SubjectPublicKeyInfo)

    def __call__(self, data: bytes) -> bytes:
        return self.key.sign(data, ec.ECDSA(hashes.SHA256()))

    @property
    def id(self) -> str:
        return key_id(self.form(serialization.Encoding.DER))


@pytest.fixture(scope="module")
def signer() -> Signer:
    return Signer()


@pytest.fixture
def node(tmp_path: Path, signer: Signer) -> Node:
    made = Node.make(tmp_path / "root")
    (made.root / "etc/imagebuilder/trust.d/b.pem").write_bytes(signer.form(serialization.Encoding.PEM))
    systemctl = tmp_path / "bin/systemctl"
    systemctl.parent.mkdir()
    systemctl.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/calls\n')
    systemctl.chmod(0o755)
    return made


def signed(signer: Signer, files: dict[str, bytes] = FILES, **changes: Any) -> bytes:
    times = {"notBefore": "2020-01-01T00:00:00Z", "notAfter": "2099-01-01T00:00:00Z"}
    return package(files, signer, keyId=signer.id, **times, **changes)


def run(node: Node, *words: str, python: str = sys.executable, check: bool = False) -> Result:
    """Run the program on a node in a folder."""
    env = {"PATH": f"{node.root.parent}/bin:{os.environ['PATH']}"}
    argv = [python, "-IS", str(AGENT), "--root", str(node.root), *words]
    return RealRunner().run(argv, env=env, capture=True, check=check, timeout=120)


def calls(node: Node) -> list[str]:
    path = node.root.parent / "calls"
    return path.read_text().splitlines() if path.exists() else []


@pytest.mark.parametrize("python", pythons())
def test_every_python_here_applies_a_signed_package(node: Node, signer: Signer, python: str) -> None:
    done = run(node, "apply", "--no-restart", node.file(signed(signer)), python=python, check=True)
    assert "data package generation 1 applied after 12.34 s" in done.stdout
    for path, data in FILES.items():
        assert node.read(path) == data
    said = json.loads(run(node, "status", "--json", python=python, check=True).stdout)
    assert (said["code"], said["generation"], said["watching"]) == ("OK", 1, True)
    assert run(node, "apply", "--no-restart", node.file(signed(signer, generation=2)), python=python).returncode == 0
    assert calls(node) == []


def test_signatures_of_others_and_over_other_bytes_are_refused(node: Node, signer: Signer) -> None:
    other = Signer()
    assert run(node, "apply", node.file(signed(other))).returncode == agent.CODES["E_KEY"]
    stolen = package(FILES, other, keyId=signer.id)
    assert run(node, "apply", node.file(stolen)).returncode == agent.CODES["E_SIGNATURE"]
    assert run(node, "apply", node.file(package(FILES, lambda _: b"", keyId=signer.id))).returncode == 14
    assert not node.has("/etc/kubernetes/kubelet.conf")


def test_openssl_is_really_asked(node: Node, signer: Signer) -> None:
    """The other tests of the agent have a stand-in; this shows that it says what openssl says."""
    key, data = str(node.root / "etc/imagebuilder/trust.d/b.pem"), b"some bytes"
    good = signer(data)
    assert agent.openssl_verify(key, data, good)
    assert not agent.openssl_verify(key, data + b"x", good)
    for at in range(0, len(good), 5):
        assert not agent.openssl_verify(key, data, good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :])


def test_without_openssl_there_is_a_code(node: Node, signer: Signer) -> None:
    path = node.file(signed(signer))
    argv = ["/usr/bin/env", f"PATH={node.root.parent}/bin", sys.executable, "-IS", str(AGENT), "--root", str(node.root)]
    assert RealRunner().run([*argv, "apply", path], check=False, timeout=60).returncode == agent.CODES["E_SIGNATURE"]


@pytest.fixture
def kubelet(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """Something that answers as kubelet's healthz does."""

    class Healthz(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/healthz" else 404)
            self.end_headers()
            self.wfile.write(b"ok")

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Healthz)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server.server_port
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_live_node_is_told_what_changed_and_is_watched(
    node: Node, signer: Signer, kubelet: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", f"{node.root.parent}/bin:{os.environ['PATH']}")
    for generation, path, restarts in (
        (1, "/etc/containerd/conf.d/a.toml", ["restart containerd.service", "restart kubelet.service"]),
        (2, "/etc/kubernetes/manifests/b.yaml", []),
        (3, "/etc/docker/daemon.json", ["try-restart docker.service"]),
    ):
        (node.root.parent / "calls").unlink(missing_ok=True)
        files = {**FILES, "/etc/containerd/conf.d/a.toml": b"x", path: b"x"}
        host = agent.Host(str(node.root))
        host.health = ("127.0.0.1", kubelet)
        words = agent.parse(["apply", node.file(signed(signer, files, generation=generation))])
        assert agent.act(host, words) == "OK"
        assert calls(node) == restarts
        assert not node.document("status")["watching"]


def test_memory_stays_below_what_is_stated(node: Node, signer: Signer) -> None:
    """The largest good package, and bombs: 64 MiB are the limit, Python included."""
    noise = base64.b64encode(os.urandom(500 * 1024))
    large = {f"/etc/kubernetes/{number:03d}": noise[:12_000] for number in range(250)}
    inputs = [signed(signer, large), gzip.compress(bytes(200 * MIB), 9, mtime=0), bytes(40 * MIB)]
    codes = [run(node, "apply", "--no-restart", node.file(data)).returncode for data in inputs]
    assert codes == [0, agent.CODES["E_FORMAT"], agent.CODES["E_SIZE"]]
    limit = f"import resource, runpy, sys; resource.setrlimit(resource.RLIMIT_DATA, ({64 * MIB}, {64 * MIB})); "
    limit += "sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    for number, (data, code) in enumerate(zip(inputs, codes, strict=True)):
        fresh = node.file(data if number else signed(signer, large, generation=2))
        argv = [
            sys.executable,
            "-IS",
            "-c",
            limit,
            str(AGENT),
            "--root",
            str(node.root),
            "apply",
            "--no-restart",
            fresh,
        ]
        env = {"PATH": f"{node.root.parent}/bin:{os.environ['PATH']}"}
        assert RealRunner().run(argv, env=env, check=False, timeout=120).returncode == code


def test_its_syntax_and_what_it_calls_are_of_python_3_6() -> None:
    ast.parse(AGENT.read_text(), feature_version=(3, 6))
    done = RealRunner().run(
        [Path(sys.executable).with_name("vermin"), "-t=3.6-", "--no-tips", AGENT],
        capture=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout


def test_it_imports_the_standard_library_only_and_starts_programs_in_one_place() -> None:
    tree = ast.parse(AGENT.read_text())
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    assert {name.partition(".")[0] for name in names} <= set(sys.stdlib_module_names)
    starters = [
        node for node in ast.walk(tree) if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "subprocess"
    ]
    assert sorted({node.attr for node in starters}) == ["DEVNULL", "PIPE", "Popen", "TimeoutExpired"]
    assert len([node for node in starters if node.attr == "Popen"]) == 1
    text = AGENT.read_text()
    assert "shell=True" not in text
    assert "os.system" not in text
