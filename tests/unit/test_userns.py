"""User namespaces: who may make one, what the host says when he may not, and which ids are mapped."""

from __future__ import annotations

import errno
import os
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagebuilder import process, userns
from imagebuilder.errors import PrivilegeError, ToolMissingError
from imagebuilder.userns import IDS, Host, enter, enter_where_possible, mapped, mapping, obstacle

UID, GID = 4_000_000_001, 4_000_000_002  # of nobody here
GOOD = f"someone:100000:65536\n{UID}:200000:65536\n"


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.fixture
def host(tmp_path: Path) -> Host:
    """A host on which the user may."""
    write(tmp_path / "proc/self/ns/user", "")
    write(tmp_path / "proc/self/attr/current", "unconfined\n")
    write(tmp_path / "proc/sys/user/max_user_namespaces", "96364\n")
    write(tmp_path / "proc/sys/kernel/unprivileged_userns_clone", "1\n")
    write(tmp_path / "proc/sys/kernel/apparmor_restrict_unprivileged_userns", "0\n")
    for name in ("subuid", "subgid"):
        write(tmp_path / "etc" / name, GOOD)
    return Host(
        proc=tmp_path / "proc", etc=tmp_path / "etc", find=lambda name: Path("/bin", name), uid=UID, gid=GID
    )  # fmt: skip


def without(name: str) -> Callable[[Host], Host]:
    def change(host: Host) -> Host:
        def find(program: str) -> Path | None:
            return None if program == name else host.find(program)

        return Host(proc=host.proc, etc=host.etc, find=find, uid=UID, gid=GID)

    return change


def having(path: str, text: str) -> Callable[[Host], Host]:
    def change(host: Host) -> Host:
        write(host.proc.parent / path, text)
        return host

    return change


def no_namespaces(host: Host) -> Host:
    (host.proc / "self/ns/user").unlink()
    return host


APPARMOR = "proc/sys/kernel/apparmor_restrict_unprivileged_userns"
OBSTACLES: dict[str, tuple[Callable[[Host], Host], type[Exception], str, str]] = {
    "kernel": (no_namespaces, PrivilegeError, "the kernel has no user namespaces", "sudo imagebuilder"),
    "newuidmap": (without("newuidmap"), ToolMissingError, "newuidmap is not installed", "apt-get install uidmap"),
    "newgidmap": (without("newgidmap"), ToolMissingError, "newgidmap is not installed", "apt-get install uidmap"),
    "none allowed": (
        having("proc/sys/user/max_user_namespaces", "0\n"), PrivilegeError, "user.max_user_namespaces is 0",
        "sudo sysctl user.max_user_namespaces=15000",
    ),
    "Debian": (
        having("proc/sys/kernel/unprivileged_userns_clone", "0\n"), PrivilegeError,
        "kernel.unprivileged_userns_clone is 0", "sudo sysctl kernel.unprivileged_userns_clone=1",
    ),
    "Ubuntu": (
        having(APPARMOR, "1\n"), PrivilegeError, "kernel.apparmor_restrict_unprivileged_userns is 1",
        "sudo sysctl kernel.apparmor_restrict_unprivileged_userns=0",
    ),
    "no users": (
        having("etc/subuid", "someone:100000:65536\n"), PrivilegeError, f"{UID} has no subordinate ids",
        f"sudo usermod --add-subuids 165536-231071 --add-subgids 265536-331071 {UID}",
    ),
    "no groups": (
        having("etc/subgid", ""), PrivilegeError, "etc/subgid", "--add-subgids 100000-165535",
    ),
    "too few": (
        having("etc/subuid", f"{UID}:100000:1000\n"), PrivilegeError, "has 1000 of the 65535 ids", "--add-subuids",
    ),
    "no form": (
        having("etc/subuid", f"{UID}:100000:65535:1\n{UID}:-1:65536\n{UID}:x\n\n{UID}\n{UID}:1:²\n"), PrivilegeError,
        "no subordinate ids", "--add-subuids 100000-165535",
    ),
}  # fmt: skip


def test_a_host_that_allows_it_has_no_obstacle(host: Host) -> None:
    assert obstacle(host) is None


@pytest.mark.parametrize(("change", "kind", "said", "hint"), OBSTACLES.values(), ids=OBSTACLES)
def test_each_obstacle_is_told_with_what_to_do(
    host: Host, change: Callable[[Host], Host], kind: type[Exception], said: str, hint: str
) -> None:
    problem = obstacle(change(host))
    assert type(problem) is kind
    assert said in problem.message  # type: ignore[union-attr]
    assert hint in problem.hint  # type: ignore[union-attr]
    assert "root" in problem.hint or "sudo" in problem.hint  # type: ignore[union-attr]


def test_settings_that_a_kernel_does_not_have_forbid_nothing(host: Host) -> None:
    for path in (host.proc / "sys").rglob("*"):
        if path.is_file():
            path.unlink()
    assert obstacle(host) is None


def test_a_program_that_apparmor_knows_is_judged_by_its_profile(host: Host) -> None:
    write(host.proc.parent / APPARMOR, "1\n")
    write(host.proc / "self/attr/current", "imagebuilder (unconfined)\n")
    assert obstacle(host) is None


def test_the_user_is_root_inside_and_his_subordinate_ids_are_all_others(host: Host) -> None:
    assert mapping(host) == {
        "newuidmap": ["0", str(UID), "1", "1", "200000", "65535"],
        "newgidmap": ["0", str(GID), "1", "1", "200000", "65535"],
    }


@given(st.lists(st.tuples(st.integers(0, 2**31), st.integers(0, 70000)), max_size=8))
def test_any_ranges_map_each_id_once_and_none_beyond(ranges: list[tuple[int, int]]) -> None:
    lines = "".join(f"{UID}:{start}:{count}\n" for start, count in ranges)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(userns, "_read", lambda path: lines)
        words = [int(word) for word in mapping(Host(uid=UID, gid=GID))["newuidmap"]]
    triples = list(zip(words[::3], words[1::3], words[2::3], strict=True))
    inside = 0
    for start, _, count in triples:
        assert start == inside
        assert count > 0
        inside += count
    assert inside == min(IDS, 1 + sum(count for _, count in ranges))


@pytest.mark.parametrize(
    ("text", "is_mapped"),
    [
        pytest.param("         0          0 4294967295\n", False, id="the first namespace"),
        pytest.param("0 1000 1\n1 100000 65535\n", True, id="another"),
        pytest.param("", True, id="not mapped yet"),
    ],
)
def test_a_user_namespace_is_seen_by_its_map(tmp_path: Path, text: str, is_mapped: bool) -> None:
    write(tmp_path / "self/uid_map", text)
    assert mapped(tmp_path) is is_mapped


class Child:
    """What writes the maps: it ends well when it was told to begin."""

    returncode = 0

    def __init__(self, argv: list[str], stdin: int) -> None:
        self.argv, self.told = argv, os.dup(stdin)

    def communicate(self) -> tuple[bytes, None]:
        self.told, heard = -1, os.read(self.told, 9)
        self.returncode = self.returncode if heard else 1
        return b"newuidmap: said no\n" if self.returncode else b"", None


@pytest.fixture
def children(host: Host, monkeypatch: pytest.MonkeyPatch) -> list[Child]:
    """An ordinary user on a good host; the programs that were started."""
    found: list[Child] = []

    def spawn(argv: list[str], *, stdin: int) -> Any:
        found.append(Child(argv, stdin))
        return found[-1]

    monkeypatch.setattr(userns, "Host", lambda: host)
    monkeypatch.setattr(process, "spawn", spawn)
    monkeypatch.setattr(os, "geteuid", lambda: UID)
    return found


def test_root_enters_nothing(children: list[Child], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    enter()
    assert children == []


def test_the_maps_are_written_for_this_process_once_it_has_a_namespace(
    children: list[Child], monkeypatch: pytest.MonkeyPatch
) -> None:
    def unshare() -> int:
        monkeypatch.setattr(os, "geteuid", lambda: 0)
        return 0

    monkeypatch.setattr(userns, "_unshare", unshare)
    enter()
    shell, option, script = children[0].argv
    assert (shell, option) == ("/bin/sh", "-c")
    assert [shlex.split(part) for part in script.split(" && ")] == [
        ["read", "-r", "go"],
        ["newuidmap", str(os.getpid()), "0", str(UID), "1", "1", "200000", "65535"],
        ["newgidmap", str(os.getpid()), "0", str(GID), "1", "1", "200000", "65535"],
    ]


@pytest.mark.parametrize(
    ("code", "said"), [(errno.EPERM, "Operation not permitted"), (0, "its users could not be mapped")]
)
def test_a_namespace_that_is_refused_is_told(
    children: list[Child], monkeypatch: pytest.MonkeyPatch, code: int, said: str
) -> None:
    monkeypatch.setattr(Child, "returncode", 1)
    monkeypatch.setattr(userns, "_unshare", lambda: code)
    with pytest.raises(PrivilegeError, match=said) as caught:
        enter()
    assert "said no" in caught.value.context
    assert "root" in caught.value.hint


def test_what_works_without_goes_on_where_there_is_an_obstacle(
    children: list[Child], host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(userns, "enter", enter)
    write(host.etc / "subuid", "")
    enter_where_possible()
    assert children == []
