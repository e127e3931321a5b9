"""Vagrant boxes: the same every time, and read with distrust."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from collections.abc import Mapping
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imagebuilder.errors import ArtifactError
from imagebuilder.publish import boxfile
from imagebuilder.publish.boxes import PROVIDERS, BoxSpec, pack_box
from imagebuilder.publish.boxfile import read_box

QCOW2 = b"QFI\xfb" + Random(1).randbytes(300_000)
METADATA = {"provider": "libvirt", "format": "qcow2", "virtual_size": 20, "architecture": "amd64"}


def spec(provider: str = "libvirt", arch: str = "amd64", **changes: Any) -> BoxSpec:
    fields = {"name": "debian", "virtual_size": 20 << 30, "seed": "ab", "info": {"kubernetes": "1.35.8"}} | changes
    return BoxSpec(provider=provider, arch=arch, **fields)


def packed(folder: Path, box: BoxSpec, name: str = "a.box") -> Path:
    disk = folder / "disk"
    disk.write_bytes(QCOW2)
    pack_box(box, disk, folder / name, description="<Envelope/>" if box.provider == "virtualbox" else "")
    return folder / name


def entry(name: str, data: bytes = b"", **fields: Any) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for field, value in fields.items():
        setattr(info, field, value)
    return info, data


def tar(*entries: tuple[tarfile.TarInfo, bytes], form: int = tarfile.USTAR_FORMAT) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=form) as archive:
        for info, data in entries:
            archive.addfile(info, io.BytesIO(data))
    return stream.getvalue()


def box_bytes(metadata: Any = METADATA, files: Mapping[str, bytes] | None = None) -> bytes:
    files = {"box.img": QCOW2} if files is None else files
    return tar(entry("metadata.json", json.dumps(metadata).encode()), *(entry(*item) for item in files.items()))


def read(folder: Path, data: bytes) -> boxfile.BoxInfo:
    (folder / "x.box").write_bytes(data)
    return read_box(folder / "x.box")


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("arch", ["amd64", "arm64"])
def test_what_is_packed_is_read_back(provider: str, arch: str, tmp_path: Path) -> None:
    info = read_box(packed(tmp_path, spec(provider, arch)))
    assert (info.provider, info.arch) == (PROVIDERS[provider].metadata, arch)
    assert info.info == {"kubernetes": "1.35.8"}
    assert info.files[PROVIDERS[provider].disk] == len(QCOW2)
    assert {"metadata.json", "info.json", "Vagrantfile"} <= set(info.files)


def test_the_same_box_has_the_same_bytes_and_nothing_of_this_machine(tmp_path: Path) -> None:
    first, second = packed(tmp_path, spec()), packed(tmp_path, spec(), "b.box")
    assert first.read_bytes() == second.read_bytes()
    assert first.read_bytes()[4:10] == b"\0\0\0\0\0\xff", "no time, no system"
    with tarfile.open(first) as archive:
        members = archive.getmembers()
    assert {(m.mtime, m.uid, m.gid, m.uname, m.mode) for m in members} == {(0, 0, 0, "", 0o644)}
    assert members[-1].name == "box.img", "what describes the disk comes before it"


def texts(box: BoxSpec) -> tuple[dict[str, Any], str]:
    found = box.texts()
    return json.loads(found["metadata.json"]), found["Vagrantfile"]


def test_a_libvirt_box_states_its_size_in_whole_gib_rounded_up() -> None:
    metadata, vagrantfile = texts(spec(virtual_size=(20 << 30) + 1))
    assert metadata == METADATA | {"virtual_size": 21}
    assert "libvirt.memory = 2048" in vagrantfile and "driver" not in vagrantfile
    assert 'type: "rsync"' in vagrantfile


def test_a_box_for_qemu_is_a_libvirt_box_to_vagrant() -> None:
    metadata, vagrantfile = texts(spec("qemu"))
    assert metadata == METADATA
    assert 'qemu.arch = "x86_64"' in vagrantfile and 'qemu.machine = "q35"' in vagrantfile
    assert 'qemu.arch = "aarch64"' in texts(spec("qemu", "arm64"))[1]
    assert "q35" not in texts(spec("qemu", "arm64"))[1]


def test_a_virtualbox_box_has_an_address_of_virtualbox_that_follows_from_the_seed() -> None:
    metadata, vagrantfile = texts(spec("virtualbox"))
    assert metadata == {"provider": "virtualbox", "architecture": "amd64"}
    mac = spec("virtualbox").base_mac
    assert mac.startswith("080027") and len(mac) == 12
    assert f'config.vm.base_mac = "{mac}"' in vagrantfile
    assert spec("virtualbox", seed="cd").base_mac != mac


def test_boxes_of_others_are_read(tmp_path: Path) -> None:
    foreign = {"provider": "hyperv"}
    assert read(tmp_path, gzip.compress(box_bytes(foreign, {"disk.vhdx": b"x"}))).provider == "hyperv"
    assert read(tmp_path, box_bytes()).arch == "amd64", "without gzip"
    two = METADATA | {"disks": [{"path": "a.img"}, {"path": "b.img"}]}
    assert read(tmp_path, box_bytes(two, {"a.img": QCOW2, "b.img": QCOW2})).provider == "libvirt"
    bsd = tar(entry("./metadata.json", b'{"provider": "hyperv"}'), entry("./Virtual/", type=tarfile.DIRTYPE))
    assert read(tmp_path, bsd).arch == ""


HOSTILE = {
    "absolute": (tar(entry("/etc/passwd", b"x")), "leads outside"),
    "parent": (tar(entry("a/../../x", b"x")), "leads outside"),
    "backslash": (tar(entry("..\\x", b"x")), "leads outside"),
    "symlink": (tar(entry("box.img", type=tarfile.SYMTYPE, linkname="/etc/shadow")), "neither a file nor a folder"),
    "hardlink": (tar(entry("box.img", type=tarfile.LNKTYPE, linkname="x")), "neither a file nor a folder"),
    "device": (tar(entry("box.img", type=tarfile.BLKTYPE)), "neither a file nor a folder"),
    "long name": (tar(entry("x" * 300, b"x"), form=tarfile.GNU_FORMAT), "neither a file nor a folder"),
    "pax name": (tar(entry("x" * 300, b"x"), form=tarfile.PAX_FORMAT), "renames"),
    "twice": (tar(entry("a", b"1"), entry("a", b"2")), "twice"),
    "many": (tar(*(entry(f"f{number}") for number in range(100))), "more than 64 entries"),
    "large text": (tar(entry("metadata.json", bytes((1 << 20) + 1))), "larger than 1 MiB"),
    "no metadata": (tar(entry("box.img", QCOW2)), "no metadata.json"),
    "list": (box_bytes([]), "no JSON object"),
    "deep": (tar(entry("metadata.json", b"[" * 200_000)), "no JSON"),
    "no provider": (box_bytes({"format": "qcow2"}), "names no provider"),
    "provider": (box_bytes({"provider": "../x"}), "names no provider"),
    "architecture": (box_bytes(METADATA | {"architecture": "vax"}), "'vax'"),
    "format": (box_bytes(METADATA | {"format": "raw"}), '"format": "qcow2"'),
    "size": (box_bytes(METADATA | {"virtual_size": "20"}), "virtual_size"),
    "no disk": (box_bytes(files={}), "box.img is not there"),
    "disk": (box_bytes(files={"box.img": b"MZ"}), "no qcow2 disk"),
    "disks": (box_bytes(METADATA | {"disks": [1]}, {}), "no qcow2 disk"),
    "no ovf": (box_bytes({"provider": "virtualbox"}, {"a.vmdk": b"x"}), ".ovf"),
    "cut": (box_bytes()[:200_000], "cut off"),
    "cut gzip": (gzip.compress(box_bytes())[:200_000], "cut off"),
    "checksum": (gzip.compress(box_bytes())[:-8] + bytes(8), "incorrect data check"),
    "damaged gzip": (b"\x1f\x8b\x08\0\0\0\0\0\0\xff" + b"\xff" * 600, "no box"),
    "empty": (b"", "no metadata.json"),
    "text": (b"hello " * 400, "not a tar"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_box_is_refused(case: str, tmp_path: Path) -> None:
    data, message = HOSTILE[case]
    with pytest.raises(ArtifactError) as caught:
        read(tmp_path, data)
    assert message in caught.value.message
    assert caught.value.hint


def test_a_bomb_is_given_up_at_its_cap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(boxfile, "MAX_UNPACKED", 8 << 20)
    bomb = gzip.compress(tar(entry("metadata.json", b"{}"), entry("zeros", bytes(64 << 20))))
    assert len(bomb) < 100_000
    with pytest.raises(ArtifactError, match="more than a box can hold"):
        read(tmp_path, bomb)


def test_a_path_that_is_no_file_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "absent.box"):
        with pytest.raises(ArtifactError, match=r"cannot be read|no file"):
            read_box(path)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_damaged_boxes_are_refused_or_read_but_never_break_the_reader(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("fuzz")
    good = box_bytes(files={"box.img": QCOW2[:2000]})
    whole = bytearray(gzip.compress(good) if data.draw(st.booleans()) else good)
    for at, value in data.draw(st.lists(st.tuples(st.integers(0, len(whole) - 1), st.integers(0, 255)), max_size=6)):
        whole[at] = value
    cut = data.draw(st.integers(0, len(whole)))
    try:
        info = read(folder, bytes(whole[:cut]))
    except ArtifactError as error:
        assert error.hint
    else:
        assert info.provider and all(not name.startswith("/") for name in info.files)
