"""The disk that Packer leaves becomes the same box as the direct engine's: read back by qemu-img."""

from __future__ import annotations

import tarfile
from pathlib import Path
from random import Random

import pytest

from imagebuilder import process
from imagebuilder.bake_packer import _place
from imagebuilder.cells import plan_request
from imagebuilder.model import BuildRequest
from imagebuilder.process import RealRunner
from imagebuilder.publish.boxes import GIB
from imagebuilder.publish.boxfile import read_box

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(process.find("qemu-img") is None, reason="qemu-img is not installed"),
]
RUNNER = RealRunner()
HAS = {"kubelet": "1.35.8", "containerd": "1.7.24"}


@pytest.mark.parametrize(
    ("target", "left", "options", "inside"),
    [
        ("vagrant-libvirt", "node.qcow2", ["-c", "-O", "qcow2"], "box.img"),
        ("vagrant-virtualbox", "node.vmdk", ["-O", "vmdk", "-o", "subformat=streamOptimized"], "box-disk001.vmdk"),
    ],
)
def test_a_box_holds_the_disk_that_packer_left(
    tmp_path: Path, target: str, left: str, options: list[str], inside: str
) -> None:
    raw, disk, new = tmp_path / "built", tmp_path / left, tmp_path / "out" / "new"
    new.parent.mkdir()
    raw.write_bytes(Random(7).randbytes(1 << 20))
    with raw.open("r+b") as file:
        file.truncate(2 * GIB)  # another size than the plan's: a variable of the user's can say so
    RUNNER.run(["qemu-img", "convert", "-f", "raw", *options, raw, disk])
    plan = plan_request(BuildRequest(os="debian", target=target, engine="packer"))
    name = _place(disk, new, plan, HAS, "seed", RUNNER, tmp_path / "log")
    assert name == f"{plan.id}.box"
    found = read_box(new)
    assert (found.provider, found.arch) == (plan.target.box_provider, "amd64")
    with tarfile.open(new) as box:
        box.extract(inside, tmp_path, filter="data")
        assert b'"containerd": "1.7.24"' in (box.extractfile("info.json") or pytest.fail("no info.json")).read()
        if target == "vagrant-libvirt":
            assert b'"virtual_size": 2' in (box.extractfile("metadata.json") or pytest.fail("none")).read()
    RUNNER.run(["qemu-img", "compare", "-f", "raw", raw, tmp_path / inside])


def test_a_disk_of_any_other_format_is_published_as_it_is(tmp_path: Path) -> None:
    disk, new = tmp_path / "node.qcow2", tmp_path / "new"
    disk.write_bytes(b"QFI\xfb")
    plan = plan_request(BuildRequest(os="debian", target="qemu", engine="packer"))
    assert _place(disk, new, plan, HAS, "seed", RUNNER, tmp_path / "log") == f"{plan.id}.qcow2"
    assert new.read_bytes() == b"QFI\xfb"
    assert not disk.exists()
