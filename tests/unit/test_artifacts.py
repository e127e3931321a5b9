"""From a raw disk to the artifact: the parts of a box fit each other."""

from __future__ import annotations

import os
import re
import tarfile
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from imagebuilder.artifacts import Packing, write_artifact
from imagebuilder.direct import clusters
from imagebuilder.direct.formats import FORMATS, Subject
from imagebuilder.direct.virtual import RawFile
from imagebuilder.publish.boxes import PROVIDERS, BoxSpec
from imagebuilder.publish.boxfile import read_box
from imagebuilder.targets import TargetData, load_target, target_names

SUBJECT = Subject(name="debian-13-k1.35", seed="ab" * 32)
OVF = "{http://schemas.dmtf.org/ovf/envelope/1}"
VBOX = "{http://www.virtualbox.org/ovf/machine}"


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    path = tmp_path / "work" / "disk.raw"
    path.parent.mkdir()
    path.write_bytes(b"boot" * 1024 + bytes(4 << 20))
    return path


def write(raw: Path, out: Path, packed: Packing, *told: Any) -> None:
    with RawFile(raw) as disk:
        write_artifact(disk, out, packed, *told)


def box(provider: str, size: int) -> Packing:
    spec = BoxSpec(provider=provider, name="debian-13-k1.35", arch="amd64", virtual_size=size, seed=SUBJECT.seed)
    return Packing(format="box", subject=SUBJECT, box=spec)


def files_of(path: Path) -> dict[str, bytes]:
    with tarfile.open(path) as archive:
        return {member.name: archive.extractfile(member).read() for member in archive}  # type: ignore[union-attr]


@pytest.mark.parametrize("provider", PROVIDERS)
def test_a_box_is_written_around_the_disk_in_its_format(provider: str, raw: Path, tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    write(raw, tmp_path / "a.box", box(provider, raw.stat().st_size), lambda *both: calls.append(both))
    assert calls[-1][0] == calls[-1][1] > 0
    row = PROVIDERS[provider]
    assert read_box(tmp_path / "a.box").provider == row.metadata
    with RawFile(raw) as disk:
        FORMATS[row.format].writer(disk, tmp_path / row.disk, subject=SUBJECT)
    assert files_of(tmp_path / "a.box")[row.disk] == (tmp_path / row.disk).read_bytes()
    assert list(raw.parent.iterdir()) == [raw], "nothing is left beside the disk"


@pytest.mark.parametrize(
    "packed",
    [*(box(name, 4 << 20) for name in PROVIDERS), *(Packing(format=name, subject=SUBJECT) for name in FORMATS)],
    ids=[*PROVIDERS, *FORMATS],
)
def test_only_the_artifact_itself_is_brought_to_the_disk(
    packed: Packing, raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: set[str] = set()

    def sync(descriptor: int) -> None:
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        assert path.parent in (tmp_path, tmp_path / "out"), f"{path} is on the way only"
        synced.add(re.sub(r"^(\.a\.).*(part)$", r"\1\2", path.name))

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(os, "fdatasync", sync)
    monkeypatch.setattr(clusters, "_FLUSH", 1)  # in rounds, however small it is
    write(raw, tmp_path / "out" / "a", packed)
    assert synced == {"out", ".a.part"}


def test_the_description_of_a_virtualbox_box_fits_its_disk(raw: Path, tmp_path: Path) -> None:
    write(raw, tmp_path / "a.box", box("virtualbox", raw.stat().st_size))
    files = files_of(tmp_path / "a.box")
    tree = ElementTree.fromstring(files["box.ovf"])
    file, disk = tree.find(f".//{OVF}File"), tree.find(f".//{OVF}Disk")
    assert file is not None and disk is not None
    vmdk = files[str(file.get(f"{OVF}href"))]
    assert file.get(f"{OVF}size") == str(len(vmdk))
    assert disk.get(f"{OVF}capacity") == str(raw.stat().st_size)
    assert f'ddb.uuid.image = "{disk.get(f"{VBOX}uuid")}"'.encode() in vmdk


def test_other_formats_are_those_of_the_engine(raw: Path, tmp_path: Path) -> None:
    write(raw, tmp_path / "a.raw", Packing(format="raw", subject=SUBJECT))
    assert (tmp_path / "a.raw").read_bytes() == raw.read_bytes()


@pytest.mark.parametrize("name", target_names())
def test_a_target_is_a_box_just_when_it_names_a_provider(name: str) -> None:
    target = load_target(name)
    assert (target.format == "box") == bool(target.box_provider)
    assert target.box_provider in ("", *PROVIDERS)


def test_every_provider_can_be_named_by_a_target() -> None:
    allowed = TargetData.model_json_schema()["properties"]["box_provider"]["enum"]
    assert set(allowed) == {"", *PROVIDERS}
