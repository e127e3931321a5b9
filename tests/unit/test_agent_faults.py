"""The agent loses power, or its disk fails, at each of its calls: the node is on the old generation or on the new."""

from __future__ import annotations

import errno
import os
import random
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from imagebuilder.agent import agent
from tests.agent_node import FILES, Node, PowerCut, TestDisk, package

OLD = package({**FILES, "/etc/containerd/certs.d/reg/hosts.toml": b"x", "/etc/kubernetes/manifests/old.yaml": b"old"})
NEW = package(
    {
        **{path: data for path, data in FILES.items() if not path.endswith("kubelet.conf")},
        "/etc/kubernetes/manifests/web.yaml": b"kind: Pod # 2\n",
        "/etc/kubernetes/manifests/new.yaml": b"new",
        "/var/lib/kubelet/pki/kubelet.key": b"another private key\n",
        "/etc/cni/net.d/10-new.conflist": b"{}",
    },
    generation=2,
    settings={"hostname": "node-1", "sshAuthorizedKeys": ["ssh-ed25519 AAAA x"], "proxy": {"http": "http://p"}},
)
Tree = dict[str, tuple[int, bytes]]


@pytest.fixture(autouse=True)
def _no_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent, "run", lambda *_, **__: 0)


class Lab:
    """Copies of a node on generation 1, for one experiment each."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.template = Node.make(folder / "template")
        assert self.template.apply(OLD) == "OK"
        self.old = self.template.tree()
        node = self.node()
        assert node.apply(NEW) == "OK"
        self.new = node.tree()
        assert self.old != self.new

    def node(self) -> Node:
        """Return a fresh copy; the last one is gone."""
        shutil.rmtree(self.folder / "node", ignore_errors=True)
        shutil.copytree(self.template.root, self.folder / "node", symlinks=True)
        return Node(self.folder / "node")

    def check(self, node: Node) -> str:
        """Say on which generation a node is; it must be exactly one, and say so itself."""
        tree = node.tree()
        assert tree in (self.old, self.new), {path for path in tree if tree.get(path) not in (self.old.get(path),)}
        name = "old" if tree == self.old else "new"
        assert node.document("state")["generation"] == {"old": 1, "new": 2}[name]
        assert not node.has("/var/lib/imagebuilder/journal.json")
        assert not [path for path in node.root.rglob("*.imagebuilder-new") if "lib/imagebuilder" not in str(path)]
        return name


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory where there is one: thousands of files are made and removed."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else tmp_path) as name:
        yield Path(name)


@pytest.fixture
def lab(folder: Path) -> Lab:
    return Lab(folder)


def cut(node: Node, do: Callable[[TestDisk], object], at: int, lossy: bool) -> bool:
    """Do something and lose power at a call; return False when it was done before that."""
    disk = TestDisk(str(node.root), at, lossy=lossy)
    try:
        do(disk)
    except PowerCut:
        if lossy:
            disk.lose()
        shutil.rmtree(node.root / "graves", ignore_errors=True)
        node.reboot()
        return True
    finally:
        agent.Disk.close(disk)
    return False


def boot(node: Node) -> str:
    return node.act("boot", "--scope", "local")


@pytest.mark.parametrize("lossy", [pytest.param(False, id="kept"), pytest.param(True, id="unsynced-lost")])
def test_power_is_lost_at_every_call_of_apply(lab: Lab, lossy: bool) -> None:
    found: list[str] = []
    at = 0
    while cut(node := lab.node(), lambda disk, node=node: node.apply(NEW, disk=disk), at, lossy):  # type: ignore[misc]
        assert boot(node) == "OK"
        found.append(lab.check(node))
        at += 1
    assert at > 150
    assert found == sorted(found, reverse=True)  # old, old, ..., new, new: there is one point of no return
    assert set(found) == {"old", "new"}


@pytest.mark.parametrize("lossy", [pytest.param(False, id="kept"), pytest.param(True, id="unsynced-lost")])
def test_power_is_lost_at_every_call_of_rollback(lab: Lab, lossy: bool) -> None:
    shutil.rmtree(lab.template.root)
    shutil.copytree(lab.folder / "node", lab.template.root)  # generation 2, with the way back
    found: list[str] = []
    at = 0
    while cut(node := lab.node(), lambda disk, node=node: node.act("rollback", disk=disk), at, lossy):  # type: ignore[misc]
        assert boot(node) == "OK"
        found.append(lab.check(node))
        at += 1
    assert found == sorted(found)
    assert set(found) == {"old", "new"}


def test_power_is_lost_again_while_a_change_is_completed(lab: Lab) -> None:
    chance = random.Random(5)
    for _ in range(60):
        node = lab.node()
        assert cut(node, lambda disk, node=node: node.apply(NEW, disk=disk), chance.randrange(200), True)  # type: ignore[misc]
        for _ in range(3):
            act = lambda disk, node=node: node.act("boot", "--scope", "local", disk=disk)  # noqa: E731
            cut(node, act, chance.randrange(150), True)
        assert boot(node) == "OK"
        lab.check(node)


def test_the_very_first_generation_too(folder: Path) -> None:
    template = Node.make(folder / "template")
    image, at, found = template.tree(), 0, set()
    while True:
        shutil.rmtree(folder / "node", ignore_errors=True)
        node = Node(Path(shutil.copytree(template.root, folder / "node")))
        if not cut(node, lambda disk, node=node: node.apply(OLD, disk=disk), at, True):  # type: ignore[misc]
            break
        code = boot(node)
        kept = node.tree() == image
        assert code == ("E_NONE" if kept else "OK")
        assert kept or all(node.read(path) == data for path, data in FILES.items())
        found.add(kept)
        at += 3
    assert found == {True, False}


FAULTS = [errno.ENOSPC, errno.EROFS, errno.EIO]


@pytest.mark.parametrize("fault", [pytest.param(number, id=errno.errorcode[number]) for number in FAULTS[:2]])
def test_one_write_fails(lab: Lab, fault: int) -> None:
    found = set()
    at = 0
    step = 1 if fault == errno.ENOSPC else 5
    while True:
        node = lab.node()
        disk = TestDisk(str(node.root), at, fault)
        code = node.apply(NEW, disk=disk)
        if disk.count <= at:
            break
        assert code in ("OK", "E_DISK")
        where = lab.check(node)  # at once, without a restart
        assert code == "E_DISK" or where == "new"
        found.add((code, where))
        at += step
    assert ("E_DISK", "old") in found
    assert at > 100


@pytest.mark.parametrize("fault", [pytest.param(number, id=errno.errorcode[number]) for number in FAULTS])
def test_the_disk_takes_nothing_any_more(lab: Lab, fault: int) -> None:
    found = set()
    for at in range(0, 200, 2 if fault == errno.ENOSPC else 7):
        node = lab.node()
        code = node.apply(NEW, disk=TestDisk(str(node.root), at, fault, stays=True))
        assert code in ("OK", "E_DISK")
        broken = node.has("/var/lib/imagebuilder/journal.json")  # kubelet's unit does not start with it
        if not broken:
            lab.check(node)
        found.add(broken)
        node.reboot()
        assert boot(node) == "OK"
        lab.check(node)
    assert found == {True, False}


def test_what_an_agent_left_that_was_killed_is_told_to_services(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []
    monkeypatch.setattr(agent, "run", lambda argv, *_, **__: made.append(" ".join(argv)) or 0)
    node, at = lab.node(), 0
    while not node.has("/var/lib/imagebuilder/journal.json"):
        disk = TestDisk(str((node := lab.node()).root), at)
        with pytest.raises(PowerCut):
            node.apply(NEW, disk=disk)
        agent.Disk.close(disk)
        at += 5
    made.clear()
    assert node.act("status") == "OK"
    assert lab.check(node) == "new"
    assert "systemctl restart kubelet.service" in made
