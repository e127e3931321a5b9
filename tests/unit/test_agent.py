"""The agent on a node in a folder: what it accepts, what it changes, what it restarts, how it goes back."""

from __future__ import annotations

import base64
import fcntl
import hashlib
import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from imagebuilder.agent import agent
from tests.agent_node import BUILT, FILES, NOW, OWN, SPKI, Node, archive, entries, manifest, pack, package, pem, sign

CHANGED = {**FILES, "/etc/kubernetes/manifests/web.yaml": b"kind: Pod # 2\n"}
SETTINGS = {
    "hostname": "node-1", "sshAuthorizedKeys": ["ssh-ed25519 AAAA me@x"],
    "proxy": {"http": "http://u:50%25@proxy.example:3128", "no": "10.0.0.0/8,.local"},
}  # fmt: skip
YEAR = 365 * 86400


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node.make(tmp_path / "root")


@pytest.fixture(autouse=True)
def calls(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Programs that the agent runs; all of them succeed."""
    made: list[list[str]] = []

    def record(argv: Sequence[str], *_: Any, **__: Any) -> int:
        made.append(list(argv))
        return 0

    monkeypatch.setattr(agent, "run", record)
    return made


def test_a_package_is_applied(node: Node) -> None:
    assert node.apply(package()) == "OK"
    for path, data in FILES.items():
        assert node.read(path) == data
    assert (node.root / "var/lib/kubelet/pki/kubelet.key").stat().st_mode & 0o777 == 0o600
    assert (node.root / "var/lib/kubelet/pki").stat().st_mode & 0o777 == 0o700
    assert (node.root / "etc/kubernetes/manifests/web.yaml").stat().st_mode & 0o777 == 0o644
    status = node.document("status")
    assert (status["code"], status["generation"], status["watching"], status["problems"]) == ("OK", 1, False, [])
    assert status["origin"].startswith("file:")
    assert "data package generation 1 applied" in node.said
    assert not node.has("/var/lib/imagebuilder/journal.json")
    assert not list((node.root / "var/lib/imagebuilder/generations").glob("*/new"))


def test_the_same_package_again_changes_nothing(node: Node, calls: list[list[str]]) -> None:
    node.apply(package())
    before = {path: path.stat().st_mtime_ns for path in (node.root / "etc").rglob("*")}
    calls.clear()
    node.now += 10 * YEAR  # what is applied stays applied, even when it has expired
    assert node.apply(package()) == "OK"
    assert {path: path.stat().st_mtime_ns for path in (node.root / "etc").rglob("*")} == before
    assert calls == []


def test_what_the_new_generation_lacks_is_removed(node: Node) -> None:
    node.apply(package({**FILES, "/etc/containerd/certs.d/reg/hosts.toml": b"x", "/etc/cni/net.d/1.conf": b"y"}))
    assert node.apply(package(FILES, generation=2)) == "OK"
    assert not node.has("/etc/containerd/certs.d")
    assert not node.has("/etc/cni")
    assert node.read("/etc/kubernetes/kubelet.conf") == FILES["/etc/kubernetes/kubelet.conf"]


def test_a_folder_with_files_of_others_stays(node: Node) -> None:
    node.apply(package({**FILES, "/etc/cni/net.d/1.conf": b"y"}))
    (node.root / "etc/cni/net.d/mine.conf").write_text("mine")
    assert node.apply(package(FILES, generation=2)) == "OK"
    assert node.read("/etc/cni/net.d/mine.conf") == b"mine"


def test_settings_become_files(node: Node, calls: list[list[str]]) -> None:
    (node.root / "root/.ssh").mkdir()
    (node.root / "root/.ssh/authorized_keys").write_text("ssh-rsa BBBB other\n")
    assert node.apply(package(settings=SETTINGS)) == "OK"
    assert node.read("/etc/hostname") == b"node-1\n"
    keys = node.read("/root/.ssh/authorized_keys").decode()
    assert keys == f"ssh-rsa BBBB other\n{agent.KEYS_BEGIN}\nssh-ed25519 AAAA me@x\n{agent.KEYS_END}\n"
    for name in ("containerd", "docker"):
        dropin = node.root / f"etc/systemd/system/{name}.service.d/50-imagebuilder-proxy.conf"
        assert 'Environment="HTTP_PROXY=http://u:50%%25@proxy.example:3128"\n' in dropin.read_text()
        assert dropin.stat().st_mode & 0o777 == 0o600  # it may hold a password
    assert calls[0] == ["systemctl", "daemon-reload"]
    assert node.apply(package(generation=2)) == "OK"
    assert node.read("/root/.ssh/authorized_keys") == b"ssh-rsa BBBB other\n"
    assert not node.has("/etc/systemd/system/docker.service.d")
    assert node.read("/etc/hostname") == b"node-1\n"  # a machine needs a name


RESTARTS = [
    ("/etc/kubernetes/manifests/web.yaml", []),
    ("/etc/cni/net.d/10-x.conflist", []),
    ("/etc/containerd/certs.d/reg/hosts.toml", []),
    ("/etc/kubernetes/pki/apiserver.crt", []),
    ("/etc/kubernetes/admin.conf", []),
    ("/etc/containerd/conf.d/x.toml", ["restart containerd.service"]),
    ("/etc/docker/daemon.json", ["try-restart docker.service"]),
    ("/etc/default/kubelet", ["restart kubelet.service"]),
    ("/etc/kubernetes/kubelet.conf", ["restart kubelet.service"]),
    ("/var/lib/kubelet/config.yaml", ["restart kubelet.service"]),
    ("/var/lib/kubelet/pki/kubelet.key", ["restart kubelet.service"]),
]


@pytest.mark.parametrize(("path", "restarts"), [pytest.param(*item, id=item[0]) for item in RESTARTS])
def test_only_what_reads_a_file_at_its_start_is_restarted(
    node: Node, calls: list[list[str]], path: str, restarts: list[str]
) -> None:
    node.apply(package())
    calls.clear()
    assert node.apply(package({**FILES, path: b"changed"}, generation=2)) == "OK"
    assert [" ".join(call[1:]) for call in calls] == restarts


def test_at_boot_only_a_runtime_is_restarted_and_kubelet_is_watched_later(node: Node, calls: list[list[str]]) -> None:
    source = "file://" + node.file(package(settings=SETTINGS))
    assert node.act("boot", "--scope", "local", "--source", source) == "OK"
    early = ["systemctl", "--no-block", "try-restart"]
    # Units were read before the drop-ins came, and the runtimes started beside the agent.
    assert calls == [["systemctl", "daemon-reload"], [*early, "containerd.service"], [*early, "docker.service"]]
    assert node.document("status")["watching"]
    assert node.has("/run/imagebuilder/found-local")
    assert node.act("watch") == "OK"
    assert not node.document("status")["watching"]


def test_boot_without_a_package(node: Node) -> None:
    assert node.act("boot", "--scope", "net") == "E_NONE"
    assert not node.has("/run/imagebuilder/found-local")
    node.apply(package())
    assert node.act("boot", "--scope", "net") == "OK"
    assert node.document("status")["text"] == "generation 1 stays"


# --- refused


def with_file(**changes: Any) -> bytes:
    document = manifest()
    document["files"][0].update(changes)
    return pack(archive(entries(document, FILES)))


def renamed(path: str) -> bytes:
    return package({**FILES, path: b"x"})


REFUSED = {
    "generation": (package(generation=0), "E_FORMAT"),
    "generation-true": (package(generation=True), "E_FORMAT"),
    "unknown-key": (package(extra=1), "E_FORMAT"),
    "kind": (package(kind="Other"), "E_FORMAT"),
    "time": (package(notAfter="2027-13-24T00:00:00Z"), "E_FORMAT"),
    "turned-times": (package(notAfter="2020-01-01T00:00:00Z"), "E_FORMAT"),
    "selector-name": (package(selectors={"cpu": ["x"]}), "E_FORMAT"),
    "selector-empty": (package(selectors={"uuid": []}), "E_FORMAT"),
    "proxy-quote": (package(settings={"proxy": {"http": 'x"\nExecStart=/bin/sh'}}), "E_FORMAT"),
    "ssh-options": (package(settings={"sshAuthorizedKeys": ['command="x" ssh-ed25519 AAAA']}), "E_FORMAT"),
    "hostname": (package(settings={"hostname": "a\nb"}), "E_FORMAT"),
    "key": (package(keyId="0" * 32), "E_KEY"),
    "signature": (package(signer=lambda data: sign(data + b" ")), "E_SIGNATURE"),
    "digest": (with_file(sha256="0" * 64), "E_DIGEST"),
    "mode": (with_file(mode="0755"), "E_FORMAT"),
    "owner": (with_file(owner="1:1"), "E_FORMAT"),
    "size": (with_file(size=1), "E_DIGEST"),
    "size-cap": (with_file(size=1 << 30), "E_SIZE"),
    "path-parent": (renamed("/etc/kubernetes/../passwd"), "E_PATH"),
    "path-other": (renamed("/etc/passwd"), "E_PATH"),
    "path-unit": (renamed("/etc/systemd/system/x.service"), "E_PATH"),
    "path-empty": (renamed("/etc/kubernetes//x"), "E_PATH"),
    "path-space": (renamed("/etc/kubernetes/a b"), "E_PATH"),
    "path-folder": (renamed("/etc/kubernetes/"), "E_PATH"),
    "path-both": (renamed("/etc/kubernetes/kubelet.conf/x"), "E_PATH"),
    "early": (package(notBefore="2026-12-09T00:00:00Z"), "E_EARLY"),
    "expired": (package(notAfter="2026-11-30T00:00:00Z"), "E_EXPIRED"),
    "node": (package(selectors={"uuid": ["0"]}), "E_NODE"),
    "one-of-two": (package(selectors={**OWN, "mac": ["52:54:00:00:00:02"]}), "E_NODE"),
    "kubelet-old": (package(requires={"kubelet": {"min": "1.36"}}), "E_CAPABILITY"),
    "kubelet-new": (package(requires={"kubelet": {"below": "1.35"}}), "E_CAPABILITY"),
    "arch": (package(requires={"arch": "arm64"}), "E_CAPABILITY"),
    "init": (package(requires={"init": "sysvinit"}), "E_CAPABILITY"),
    "runtime": (package(requires={"runtime": "cri-o"}), "E_CAPABILITY"),
    "packed": (b"\x1f\x8b" + bytes(1 << 20), "E_SIZE"),
    "bomb": (pack(bytes(64 << 20)), "E_FORMAT"),
    "bomb-behind": (pack(archive(entries(manifest(), FILES)) + bytes(8 << 20)), "E_SIZE"),
    "two-members": (package() + package(), "E_FORMAT"),
    "empty": (b"", "E_FORMAT"),
}  # fmt: skip


@pytest.mark.parametrize(("data", "code"), [pytest.param(*item, id=name) for name, item in REFUSED.items()])
def test_what_is_refused_changes_nothing(node: Node, calls: list[list[str]], data: bytes, code: str) -> None:
    node.apply(package())
    before = node.tree()
    calls.clear()
    assert node.apply(data) == code
    assert node.tree() == before
    assert calls == []
    status = node.document("status")
    assert (status["code"], status["generation"]) == (code, 1)
    assert [event["code"] for event in node.document("history")["events"]] == ["OK", "OK", code]


def test_what_matches_is_accepted(node: Node) -> None:
    selectors = {**OWN, "hostname": ["other", "NODE-1"], "serial": ["abc"], "mac": ["52:54:00:00:00:01"]}
    requires = {"kubelet": {"min": "1.35", "below": "1.36"}, "runtime": "docker", "arch": "amd64", "init": "systemd"}
    assert node.apply(package(selectors=selectors, requires=requires)) == "OK"


def test_an_image_without_facts_takes_no_requirement(node: Node) -> None:
    (node.root / "usr/lib/imagebuilder/image.json").unlink()
    assert node.apply(package(requires={"kubelet": {"min": "1.1"}})) == "E_CAPABILITY"
    assert node.apply(package()) == "OK"


def test_generations_only_rise(node: Node) -> None:
    node.apply(package(generation=3))
    assert node.apply(package(CHANGED, generation=2)) == "E_GENERATION"
    assert node.apply(package(CHANGED, generation=3)) == "E_GENERATION"
    assert node.apply(package(CHANGED, generation=4)) == "OK"


def test_only_whole_keys_are_trusted(node: Node) -> None:
    trust = node.root / "etc/imagebuilder/trust.d"
    (trust / "a.pem").rename(trust / "a.txt")
    for number, data in enumerate((b"", pem(SPKI[:-1]), pem(SPKI) * 2, pem(b"\x30" + SPKI[1:-2] + b"\0"))):
        (trust / f"{number}.pem").write_bytes(data)
    assert node.apply(package()) == "E_KEY"
    shutil.rmtree(trust)
    assert node.apply(package()) == "E_KEY"


CLOCKS = {
    "right": (NOW, "2026-11-24T00:00:00Z", "2027-11-24T00:00:00Z", "OK"),
    "1970": (0.0, "2027-06-01T00:00:00Z", "2028-06-01T00:00:00Z", "OK"),
    "1970-expired-before-the-build": (0.0, "2026-01-01T00:00:00Z", "2026-11-01T00:00:00Z", "E_EXPIRED"),
    "local-time": (NOW, "2026-12-01T13:00:00Z", "2027-11-24T00:00:00Z", "OK"),
    "early": (NOW, "2026-12-03T00:00:00Z", "2027-11-24T00:00:00Z", "E_EARLY"),
    "years-ahead": (NOW + 20 * YEAR, "2026-11-24T00:00:00Z", "2027-11-24T00:00:00Z", "E_EXPIRED"),
    "just-before-the-build": (BUILT - 1, "2026-12-24T00:00:00Z", "2027-11-24T00:00:00Z", "OK"),
}


@pytest.mark.parametrize(("now", "first", "last", "code"), [pytest.param(*v, id=k) for k, v in CLOCKS.items()])
def test_the_rule_of_the_clock(node: Node, now: float, first: str, last: str, code: str) -> None:
    node.now = now
    assert node.apply(package(notBefore=first, notAfter=last)) == code


# --- links and other things in the way


@pytest.mark.parametrize(
    ("link", "target"),
    [
        pytest.param("etc/kubernetes/kubelet.conf", "/etc/passwd", id="file"),
        pytest.param("etc/kubernetes/manifests", "/usr", id="folder"),
        pytest.param("var/lib/kubelet/pki", "../../../usr", id="outer-folder"),
        pytest.param("root/.ssh", "/usr", id="settings"),
    ],
)
def test_no_link_is_followed(node: Node, link: str, target: str) -> None:
    path = node.root / link
    if path.is_dir():
        path.rmdir()
    path.symlink_to(target)
    before = node.tree()
    assert node.apply(package(settings=SETTINGS)) == "E_PATH"
    assert node.tree() == before


def test_a_folder_in_the_place_of_a_file_is_refused(node: Node) -> None:
    (node.root / "etc/kubernetes/kubelet.conf").mkdir()
    assert node.apply(package()) == "E_PATH"


def test_our_own_folder_must_not_be_a_link(node: Node) -> None:
    (node.root / "var/lib/imagebuilder").symlink_to("/usr")
    assert node.apply(package()) == "E_PATH"
    assert sorted(os.listdir(node.root / "usr")) == ["bin", "lib"]


# --- keys, locks, candidates


def test_keys_of_old_generations_are_overwritten(node: Node) -> None:
    node.apply(package())
    key = node.root / "var/lib/kubelet/pki/kubelet.key"
    with key.open("rb") as old:
        node.apply(package({**FILES, "/var/lib/kubelet/pki/kubelet.key": b"second\n"}, generation=2))
        assert old.read() == bytes(len(FILES["/var/lib/kubelet/pki/kubelet.key"]))
    (kept,) = (node.root / "var/lib/imagebuilder/generations/2/old").iterdir()
    with kept.open("rb") as old:
        node.apply(package({**FILES, "/var/lib/kubelet/pki/kubelet.key": b"third\n"}, generation=3))
        assert old.read() == bytes(len(FILES["/var/lib/kubelet/pki/kubelet.key"]))
    assert [path.name for path in (node.root / "var/lib/imagebuilder/generations").iterdir()] == ["3"]
    everything = b"".join(p.read_bytes() for p in (node.root / "var").rglob("*") if p.is_file())
    assert FILES["/var/lib/kubelet/pki/kubelet.key"] not in everything


def test_nobody_else_reads_what_is_staged(node: Node) -> None:
    node.apply(package())
    node.apply(package({**FILES, "/var/lib/kubelet/pki/kubelet.key": b"second\n"}, generation=2))
    for path in (node.root / "var/lib/imagebuilder/generations").rglob("*"):
        assert path.stat().st_mode & 0o077 == 0 or path.name == "changes.json"
    assert (node.root / "var/lib/imagebuilder/generations").stat().st_mode & 0o777 == 0o700


def test_two_agents_do_not_work_at_once(node: Node) -> None:
    node.apply(package())
    with (node.root / "run/imagebuilder/lock").open() as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        assert node.apply(package(CHANGED, generation=2)) == "E_BUSY"
        assert node.document("status")["code"] == "OK"
        assert node.act("status") == "OK"


def boot_with(node: Node, monkeypatch: pytest.MonkeyPatch, *candidates: agent.Candidate) -> str:
    monkeypatch.setattr(agent, "find", lambda scope, host: (list(candidates), []))
    return node.act("boot", "--scope", "local")


def pointer(data: bytes, **changes: Any) -> bytes:
    document = {
        "apiVersion": "imagebuilder/v1", "kind": "DataPackagePointer", "url": "http://127.0.0.1:9/x", "size": len(data),
        "sha256": hashlib.sha256(data).hexdigest(), "keyId": hashlib.sha256(SPKI).hexdigest()[:32], **changes,
    }  # fmt: skip
    signature = base64.b64encode(sign(agent.canonical(document))).decode()
    return agent.canonical({**document, "signature": signature})


def test_a_pointer_that_was_found_locally_waits_for_the_network(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    data = package()
    found = {"local": [agent.Candidate("cidata", pointer(data))], "net": []}
    monkeypatch.setattr(agent, "find", lambda scope, host: (list(found[scope]), []))
    monkeypatch.setattr(agent, "download", lambda host, url, limit, deadline: data)
    assert node.act("boot", "--scope", "local") == "E_NONE"
    assert not node.has("/run/imagebuilder/found-local")
    assert node.act("boot", "--scope", "net") == "OK"
    assert (node.document("status")["generation"], node.document("status")["origin"]) == (1, "cidata")


@pytest.mark.parametrize(
    ("changes", "code"), [({"keyId": "0" * 32}, "E_KEY"), ({"sha256": "0" * 64}, "E_DIGEST"), ({"size": 1}, "E_DIGEST")]
)
def test_a_pointer_is_followed_only_to_what_it_names_and_for_a_trusted_key(
    node: Node, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], code: str
) -> None:
    data = package()
    document = pointer(data, **changes)
    monkeypatch.setattr(agent, "find", lambda scope, host: ([agent.Candidate("ec2", document)] * (scope == "net"), []))
    monkeypatch.setattr(agent, "download", lambda host, url, limit, deadline: data)
    assert node.act("boot", "--scope", "net") == code
    assert not node.has("/var/lib/imagebuilder/state.json")


def test_a_pointer_with_another_address_than_was_signed_is_refused(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    document = pointer(package()).replace(b"127.0.0.1", b"127.0.0.2")
    monkeypatch.setattr(agent, "find", lambda scope, host: ([agent.Candidate("ec2", document)] * (scope == "net"), []))
    assert node.act("boot", "--scope", "net") == "E_SIGNATURE"


def test_the_highest_good_generation_wins(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    released: list[str] = []
    high = agent.Candidate("b", package(CHANGED, generation=5), lambda: released.append("b"))
    code = boot_with(
        node, monkeypatch, agent.Candidate("a", package(generation=4), lambda: released.append("a")), high,
        agent.Candidate("c", package(generation=9, signer=lambda data: b"0")),
    )  # fmt: skip
    assert (code, released) == ("OK", ["b"])
    problems = {problem["origin"]: problem["code"] for problem in node.document("status")["problems"]}
    assert problems == {"a": "E_GENERATION", "c": "E_SIGNATURE"}
    assert node.document("status")["generation"] == 5
    said = node.document("status")["problems"]
    assert node.act("watch") == "OK" and not node.document("status")["watching"]
    assert node.document("status")["problems"] == said, "a healthy kubelet does not unsay them"


def test_a_source_that_cannot_be_redacted_is_told(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise ValueError

    assert boot_with(node, monkeypatch, agent.Candidate("a", package(), fail)) == "OK"
    assert node.document("status")["problems"][0]["code"] == "E_SOURCE"


def test_a_failure_that_nobody_thought_of_has_a_code(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent, "plan_changes", lambda *_: 1 / 0)
    assert node.apply(package()) == "E_INTERNAL"
    assert agent.CODES["E_INTERNAL"] == 26
    assert node.document("status")["code"] == "E_INTERNAL"


# --- health


def test_an_unhealthy_generation_is_taken_back(node: Node, calls: list[list[str]]) -> None:
    node.apply(package())
    before = node.tree()
    node.healthy = lambda: False
    changed = {**CHANGED, "/var/lib/kubelet/config.yaml": b"bad\n", "/etc/cni/net.d/1.conf": b"new"}
    del changed["/var/lib/kubelet/pki/kubelet.key"]
    calls.clear()
    assert node.apply(package(changed, generation=2)) == "E_HEALTH"
    assert node.tree() == before
    assert agent.WATCH_SECONDS <= node.slept <= agent.WATCH_SECONDS + 1
    assert [" ".join(call[1:]) for call in calls] == ["restart kubelet.service"] * 2
    assert (node.document("status")["code"], node.document("status")["generation"]) == ("E_HEALTH", 1)
    assert not node.has("/var/lib/imagebuilder/watch.json")


def test_what_was_taken_back_is_not_tried_again_at_boot(node: Node) -> None:
    node.apply(package())
    node.healthy = lambda: False
    bad = package({**FILES, "/var/lib/kubelet/config.yaml": b"bad\n"}, generation=2)
    node.apply(bad)
    node.reboot()
    assert node.act("boot", "--scope", "local", "--source", "file://" + node.file(bad)) == "OK"
    assert node.document("status")["problems"][0]["code"] == "E_HEALTH"
    node.healthy = lambda: True
    assert node.apply(bad) == "OK"  # a person may


def test_a_service_that_does_not_start_is_unhealthy_at_once(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    node.apply(package())
    before = node.tree()
    monkeypatch.setattr(agent, "run", lambda argv, *_, **__: 1)
    assert node.apply(package({**FILES, "/etc/containerd/conf.d/x.toml": b"bad"}, generation=2)) == "E_HEALTH"
    assert (node.tree(), node.slept) == (before, agent.PROBE_SECONDS * (agent.PROBES - 1))


def test_a_kubelet_that_answers_now_and_then_is_not_healthy(node: Node) -> None:
    node.apply(package())
    answers = iter([True, False] * 1000)
    node.healthy = lambda: next(answers)
    assert node.apply(package({**FILES, "/etc/default/kubelet": b"x"}, generation=2)) == "E_HEALTH"


def test_the_first_generation_stays_where_there_is_none_before(node: Node) -> None:
    node.healthy = lambda: False
    assert node.apply(package()) == "E_HEALTH"
    assert node.document("status")["generation"] == 1
    assert node.read("/var/lib/kubelet/config.yaml") == FILES["/var/lib/kubelet/config.yaml"]


def test_the_first_generation_gives_way_to_the_images_own_configuration(node: Node) -> None:
    (node.root / "var/lib/kubelet/config.yaml").write_text("of the overlay\n")
    before = node.tree()
    node.healthy = lambda: False
    assert node.apply(package()) == "E_HEALTH"
    assert (node.tree(), node.document("status")["generation"]) == (before, 0)


def cut_while_watching(node: Node, after: float) -> None:
    class Off(BaseException):
        pass

    def healthy() -> bool:
        if node.slept >= after:
            raise Off
        return False

    node.healthy = healthy
    with pytest.raises(Off):
        node.apply(package({**FILES, "/etc/default/kubelet": b"bad"}, generation=2))
    node.reboot()
    node.healthy = lambda: False
    node.slept = 0.0
    assert node.act("boot", "--scope", "local") == "OK"


@pytest.mark.parametrize(("after", "left"), [pytest.param(30, 30, id="half"), pytest.param(58, 20, id="floor")])
def test_a_watch_goes_on_after_a_power_cut(node: Node, after: float, left: float) -> None:
    node.apply(package())
    before = node.tree()
    node.slept = 0.0
    cut_while_watching(node, after)
    assert node.document("status")["watching"]
    assert node.act("watch") == "E_HEALTH"
    assert node.tree() == before
    assert left <= node.slept <= left + agent.WATCH_SAVE + 1


def test_a_machine_that_restarts_again_and_again_is_not_healthy(node: Node) -> None:
    node.apply(package())
    before = node.tree()
    node.slept = 0.0
    cut_while_watching(node, 1)

    def off() -> bool:
        raise KeyboardInterrupt

    node.healthy = off
    for _ in range(agent.WATCH_BOOTS - 1):
        with pytest.raises(KeyboardInterrupt):
            node.act("watch")
        node.reboot()
    assert node.act("watch") == "E_HEALTH"
    assert node.tree() == before


def test_rollback_by_hand(node: Node) -> None:
    node.apply(package(settings=SETTINGS))
    first = node.tree()
    node.apply(package(CHANGED, generation=2))
    assert node.act("rollback") == "OK"
    assert node.tree() == first
    assert node.document("status")["generation"] == 1
    assert node.act("rollback") == "E_GENERATION"  # only one generation is kept
    source = "file://" + node.file(package(CHANGED, generation=2))
    assert node.act("boot", "--scope", "local", "--source", source) == "OK"
    assert node.tree() == first  # a boot does not undo what a person did


def test_status_and_history_for_people(node: Node, capsys: pytest.CaptureFixture[str]) -> None:
    assert node.act("status") == "E_NONE"
    node.apply(package())
    capsys.readouterr()
    assert node.act("status") == "OK"
    assert capsys.readouterr().out == "OK: kubelet is healthy (generation 1)\n"
    assert node.act("history") == "OK"
    assert capsys.readouterr().out.splitlines()[0] == "2026-12-01T00:00:00Z  generation 1  OK  generation 1 is applied"


def test_every_code_has_its_own_exit_code() -> None:
    assert len(set(agent.CODES.values())) == len(agent.CODES) == 17
    assert min(agent.CODES.values()) > 2


def test_a_file_that_is_not_there_is_a_source_that_failed(node: Node) -> None:
    assert node.act("apply", str(node.root / "missing")) == "E_SOURCE"


def test_the_console_gets_a_line(node: Node, capsys: pytest.CaptureFixture[str]) -> None:
    agent.Host(str(node.root)).say("data package generation 1 applied")
    assert node.read("/dev/console") == b"\r\nimagebuilder: data package generation 1 applied after 12.34 s\r\n"
    assert capsys.readouterr().out == "imagebuilder: data package generation 1 applied after 12.34 s\n"


def test_the_document_lists_the_codes() -> None:
    text = (Path(agent.__file__).parents[2] / "docs/boot.md").read_text()
    listed = {code: int(number) for code, number in re.findall(r"^\| `(E_[A-Z]+)` \| (\d+) \|", text, re.MULTILINE)}
    assert listed == agent.CODES
