"""The catalog with real processes, and with Debian's real Vagrant: add, outdated, update, and a wrong checksum."""

from __future__ import annotations

import functools
import http.server
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from imagebuilder import process
from imagebuilder.process import RealRunner, Result
from imagebuilder.publish.boxes import BoxSpec, pack_box
from imagebuilder.publish.boxnames import version_key
from imagebuilder.publish.catalog import Catalog, Wanted

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]
NAME = "k8s/debian-13"
ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
needs_vagrant = pytest.mark.skipif(
    process.find("vagrant") is None or process.find("qemu-img") is None, reason="needs vagrant and qemu-img"
)
Vagrant = Callable[..., Result]


def make_box(folder: Path, content: str, provider: str = "libvirt", arch: str = "amd64") -> Path:
    disk, box = folder / "disk.img", folder / f"{content}-{provider}-{arch}.box"
    RealRunner().run(["qemu-img", "create", "-q", "-f", "qcow2", disk, "1G"])
    info = {"kubernetes": "1.35.8", "content": content}
    spec = BoxSpec(provider=provider, name="x", arch=arch, virtual_size=1 << 30, seed=content, info=info)
    pack_box(spec, disk, box, description="<Envelope/>")
    return box


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Catalog]:
    """A catalog behind Python's own static web server, which knows nothing of Vagrant."""
    folder = tmp_path / "catalog"
    handler = functools.partial(Quiet, directory=str(folder))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    catalog = Catalog(folder)
    catalog.create(f"http://127.0.0.1:{server.server_port}")
    yield catalog
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def vagrant(tmp_path: Path) -> Vagrant:
    """Runs vagrant with a home of its own."""
    home, work = tmp_path / "home", tmp_path / "work"
    home.mkdir()
    work.mkdir()
    env = {"HOME": str(home), "VAGRANT_HOME": str(home / "v"), "VAGRANT_CHECKPOINT_DISABLE": "1"}
    env |= {"VAGRANT_NO_COLOR": "1", "no_proxy": "127.0.0.1"}

    def run(*words: str, check: bool = True) -> Result:
        return RealRunner().run(["vagrant", *words], env=env, cwd=work, check=check, timeout=120)

    return run


def said(result: Result) -> str:
    return ANSI.sub("", "\n".join(result.tail))


def url(catalog: Catalog) -> str:
    return f"{catalog.state().url}/{NAME}.json"


@needs_vagrant
def test_vagrant_adds_finds_outdated_and_updates(served: Catalog, vagrant: Vagrant, tmp_path: Path) -> None:
    served.add(make_box(tmp_path, "one"), Wanted(name=NAME, version="1.9.0"))
    served.add(make_box(tmp_path, "arm", arch="arm64"), Wanted(name=NAME, version="1.9.0"))
    served.add(make_box(tmp_path, "vb", "virtualbox"), Wanted(name=NAME, version="1.9.0"))
    assert "Successfully added box" in said(vagrant("box", "add", "--provider", "libvirt", url(served)))
    listed = said(vagrant("box", "list", "--box-info"))
    assert f"{NAME} (libvirt, 1.9.0" in listed and "content: one" in listed, "amd64 is the one that is taken"
    (tmp_path / "work/Vagrantfile").write_text(
        f'Vagrant.configure("2") {{ |config| config.vm.box = "{NAME}"; config.vm.box_version = ">= 1" }}\n'
    )
    assert "up to date" in said(vagrant("box", "outdated", "--global"))
    served.add(make_box(tmp_path, "two"), Wanted(name=NAME, version="1.10.0"))
    assert "1.10.0" in said(vagrant("box", "outdated", "--global"))
    vagrant("box", "update", "--box", NAME, "--provider", "libvirt")
    listed = said(vagrant("box", "list", "--box-info"))
    assert f"{NAME} (libvirt, 1.10.0" in listed and "content: two" in listed


@needs_vagrant
def test_vagrant_refuses_a_box_with_another_checksum(served: Catalog, vagrant: Vagrant, tmp_path: Path) -> None:
    added = served.add(make_box(tmp_path, "one"), Wanted(name=NAME, version="1.0.0"))
    shutil.copy(make_box(tmp_path, "two"), added.path)
    result = vagrant("box", "add", "--provider", "libvirt", url(served), check=False)
    assert result.returncode != 0
    assert "checksum of the downloaded box did not match" in said(result)
    assert "no installed boxes" in said(vagrant("box", "list"))
    assert served.check() == [f"{NAME}/1.0.0/libvirt-amd64.box: its checksum is not the one in the catalog"]


@needs_vagrant
def test_the_vagrantfile_of_every_box_is_ruby(tmp_path: Path) -> None:
    for provider in ("libvirt", "qemu", "virtualbox"):
        for arch in ("amd64", "arm64"):
            spec = BoxSpec(provider=provider, name="x", arch=arch, virtual_size=1 << 30, seed="x")
            result = RealRunner().run(["ruby", "-c"], stdin=spec.texts()["Vagrantfile"].encode(), capture=True)
            assert result.stdout.strip() == "Syntax OK"


@pytest.mark.skipif(process.find("ruby") is None, reason="needs ruby")
def test_rubygems_has_the_same_order_of_versions() -> None:
    parts = ["0", "1", "01", "10", "a", "b2", "rc1", "2-rc1", "0-1", "20261124"]
    versions = [f"{a}.{b}" for a in ("0", "1", "10") for b in parts]
    versions += [f"1.{a}.{b}" for a in parts if "-" not in a for b in ("0", "1", "a", "a-1")]
    compare = "v.map { |a| v.map { |b| Gem::Version.new(a) <=> Gem::Version.new(b) } }"
    code = f"require 'json'; v = JSON.parse(STDIN.read); puts JSON.dump({compare})"
    result = RealRunner().run(["ruby", "-e", code], stdin=json.dumps(versions).encode(), capture=True)
    keys = [version_key(version) for version in versions]
    ours = [[(a > b) - (a < b) for b in keys] for a in keys]
    assert ours == json.loads(result.stdout)


def program(folder: Path, *words: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "imagebuilder", "box", *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=folder, env=dict(os.environ))


def test_adds_at_the_same_time_all_land(tmp_path: Path) -> None:
    catalog = Catalog(tmp_path / "catalog")
    catalog.create("https://boxes.example.com")
    boxes = [make_box(tmp_path, str(number)) for number in range(4)]
    added = [
        program(tmp_path, "add", str(box), "--catalog", "catalog", "--name", NAME, "--version", f"1.0.{number}")
        for number, box in enumerate(boxes)
    ]
    for child in added:
        output = child.communicate(timeout=120)[0]
        assert child.returncode == 0, output
    assert [version.version for version in catalog.boxes()[0].versions] == ["1.0.3", "1.0.2", "1.0.1", "1.0.0"]
    assert catalog.check() == []
    page = (catalog.folder / "index.html").read_text()
    assert all(f"1.0.{number}" in page for number in range(4))


def test_an_add_that_is_killed_leaves_a_good_catalog(tmp_path: Path) -> None:
    catalog = Catalog(tmp_path / "catalog")
    catalog.create("https://boxes.example.com")
    catalog.add(make_box(tmp_path, "one"), Wanted(name=NAME, version="1.0.0"))
    box = make_box(tmp_path, "two")
    # Killed by itself, in the middle of the copy: at the first piece.
    script = (
        "import os, signal, imagebuilder.publish.catalog as c\n"
        "from pathlib import Path\n"
        "kill = lambda done, total: os.kill(os.getpid(), signal.SIGKILL)\n"
        f"wanted = c.Wanted(name={NAME!r}, version='2.0.0')\n"
        f"c.Catalog(Path('catalog')).add(Path({str(box)!r}), wanted, on_progress=kill)\n"
    )
    child = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=False)
    assert child.returncode == -9
    assert list((catalog.folder / NAME / "2.0.0").glob(".*.part")), "it was in the middle of the copy"
    assert [version.version for version in catalog.boxes()[0].versions] == ["1.0.0"]
    added = catalog.add(box, Wanted(name=NAME, version="2.0.0"))
    assert not added.unchanged
    catalog.prune(5)
    assert catalog.check() == []


def test_the_command_line_from_a_folder_that_a_bake_wrote(tmp_path: Path) -> None:
    box = make_box(tmp_path, "one")
    baked = tmp_path / "out"
    baked.mkdir()
    box.rename(baked / "a.box")
    digest = RealRunner().run(["sha256sum", baked / "a.box"], capture=True).stdout.split()[0]
    (baked / "manifest.json").write_text(json.dumps({"artifact": {"format": "box", "file": "a.box", "sha256": digest}}))
    steps = (
        ("catalog", "--output", "c", "--url", "https://boxes.example.com/v", "--title", "Boxes"),
        ("add", "out", "--catalog", "c", "--name", NAME, "--json"),
        ("list", "--catalog", "c", "--check"),
        ("prune", "--catalog", "c", "--keep", "1"),
    )
    outputs = []
    for words in steps:
        child = program(tmp_path, *words)
        outputs.append(child.communicate(timeout=60)[0].decode())
        assert child.returncode == 0, outputs[-1]
    result = json.loads(outputs[1].splitlines()[-1])
    assert re.fullmatch(r"\d{8}\.0", result["version"])
    assert result["url"] == f"https://boxes.example.com/v/{NAME}.json"
    assert "every file is as the catalog says" in outputs[2]
    (baked / "a.box").write_bytes(b"other")
    child = program(tmp_path, "add", "out", "--catalog", "c", "--name", NAME)
    assert "error:" in child.communicate(timeout=60)[0].decode() and child.returncode == 13
