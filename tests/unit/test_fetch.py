"""What is read again before layers are made of it: all that was in the cache, and nothing that has just come."""

from __future__ import annotations

from pathlib import Path

import pytest
from fake_runner import FakeRunner

from imagebuilder.cells import plan_request
from imagebuilder.content import sha256_file
from imagebuilder.errors import DataError
from imagebuilder.events import Event, Progress, Tape
from imagebuilder.fetch import Fetcher
from imagebuilder.model import BuildRequest
from imagebuilder.plan import BuildPlan
from imagebuilder.resolve import Lock, Taken
from imagebuilder.sources import local, payload

ELF = b"\x7fELF\2\1\1" + bytes(9) + b"\2\0" + b"\x3e\0"  # of amd64


@pytest.fixture
def plan(tmp_path: Path) -> BuildPlan:
    return plan_request(BuildRequest(os="debian", target="qemu", sources={"kubernetes": f"file:{tmp_path}/own"}))


@pytest.fixture
def lock(plan: BuildPlan, tmp_path: Path) -> Lock:
    """Return a lock of programs in a folder, and nothing else."""
    for name in plan.component("kubernetes").programs:
        path = tmp_path / "own" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(ELF + name.encode())
        path.chmod(0o755)
    taken = {"kubernetes": Taken(kind=f"file:{tmp_path}/own", version="1.35.8")}
    return Lock(epoch=0, taken=taken, packages={}, pause=None, images=(), apt_sources="", apt_folder="")


def fetcher(tmp_path: Path) -> tuple[Fetcher, list[Event]]:
    tape = Tape()
    made = Fetcher(cache=tmp_path / "cache", runner=FakeRunner(), progress=Progress(tape), log=tmp_path / "log")
    return made, tape.events


def test_programs_that_have_just_come_are_not_hashed_once_more(
    plan: BuildPlan, lock: Lock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[Path] = []
    monkeypatch.setattr(payload, "verify", read.append)
    first, _ = fetcher(tmp_path)
    materials = first.materials(plan, lock)
    assert first.damaged(materials, {"kubernetes"}) == []
    assert read == []
    later, _ = fetcher(tmp_path)
    later.damaged(later.materials(plan, lock), {"runtime"})
    assert read == [], "of a layer that is there"
    later.damaged(later.materials(plan, lock), {"kubernetes"})
    assert read == [materials.payloads["kubernetes"]]


def test_programs_that_a_bake_before_has_left_are_hashed(plan: BuildPlan, lock: Lock, tmp_path: Path) -> None:
    folder = fetcher(tmp_path)[0].materials(plan, lock).payloads["kubernetes"]
    right = (folder / "kubelet").read_bytes()
    (folder / "kubelet").write_bytes(right[::-1])
    later, events = fetcher(tmp_path)
    damaged = later.damaged(later.materials(plan, lock), {"kubernetes"})
    assert damaged == [folder]
    later.mend(damaged, plan, lock)
    assert (folder / "kubelet").read_bytes() == right
    assert [event.text.partition(":")[2] for event in events if event.kind == "note"] == [
        " it was removed, and is made again"
    ]


def test_programs_of_the_user_are_copied_and_what_was_written_is_what_was_hashed(
    plan: BuildPlan, lock: Lock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = fetcher(tmp_path)[0].materials(plan, lock).payloads["kubernetes"]
    names = plan.component("kubernetes").programs
    assert [(folder / name).read_bytes() for name in names] == [ELF + name.encode() for name in names]
    assert [program.sha256 for program in payload.verify(folder).programs] == [
        sha256_file(tmp_path / "own" / name) for name in sorted(names)
    ]
    monkeypatch.setattr(local, "sha256_files", lambda paths: ["0" * 64 for _ in paths])
    with pytest.raises(DataError, match="kubelet changed while it was copied"):
        fetcher(tmp_path)[0].materials(plan, lock)
    assert list((tmp_path / "cache/payloads").iterdir()) == [folder]
