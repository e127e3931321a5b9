"""What an image has, as its files say."""

from __future__ import annotations

import sqlite3
import struct
import time
from contextlib import closing
from pathlib import Path

import pytest

from imagebuilder.errors import ArtifactError
from imagebuilder.steps import load_boot_steps
from imagebuilder.verify.inventory import parse_status, take_inventory
from imagebuilder.verify.model import DiskFacts, Expected, Image, Package, Subject
from imagebuilder.verify.rpmdb import parse_header, parse_rpmdb
from imagebuilder.verify.tree import file, in_memory, link

STATUS = """\
Package: jq
Status: install ok installed
Installed-Size: 90
Architecture: amd64
Version: 1.7.1-6
Description: a filter
 Version: of the words, not of the package

Package: gone
Status: deinstall ok config-files
Installed-Size: 7
Architecture: all
Version: 1

Package: adduser
Status: hold ok installed
Architecture: all
Version: 3.152
"""
FILES = {
    "/var/lib/dpkg/status": file(STATUS),
    "/usr/bin/jq": file(b"x" * 1000),
    "/usr/bin/q": link("jq"),
    "/etc/systemd/system/multi-user.target.wants/ssh.service": link("/usr/lib/systemd/system/ssh.service"),
    "/etc/systemd/system/kubelet.service.requires/containerd.service": link("/usr/lib/systemd/system/x"),
    "/etc/systemd/system/sockets.target.wants/ssh.service": link("/usr/lib/systemd/system/ssh.service"),
    "/etc/systemd/system/ssh.service.d/10.conf": file("[Service]\n"),
    "/usr/lib/systemd/system/multi-user.target.wants/static.service": link("../static.service"),
}


def image_of(files: dict[str, object], path: Path = Path("a.qcow2"), **subject: object) -> Image:
    words: dict[str, object] = {
        "path": path, "name": "a", "family": "debian", "os": "debian", "release": "13", "target": "qemu",
        "arch": "amd64", "firmware": ("bios",), "manifest": None, "expected": Expected(),
    }  # fmt: skip
    disk = DiskFacts(format="raw", size=1 << 30, table="gpt", partitions=(), boot_code=b"")
    return Image(subject=Subject(**(words | subject)), disk=disk, root=in_memory(files), esp=None)  # type: ignore[arg-type]


def test_packages_units_and_bytes_are_counted() -> None:
    inventory = take_inventory(image_of(dict(FILES)), 4096)
    assert [package.name for package in inventory.packages] == ["adduser", "jq"]
    assert inventory.packages[1] == Package(name="jq", version="1.7.1-6", arch="amd64", size=90 << 10)
    assert inventory.units == ("containerd.service", "ssh.service"), "each once; what a package has is not enabled"
    assert inventory.installed_size == len(STATUS) + 1000 + len("[Service]\n"), "links have no bytes of their own"
    assert (inventory.artifact_size, inventory.sockets) == (4096, ())
    assert inventory.boot_steps == len(load_boot_steps())


@pytest.mark.parametrize("size", ["-1", "1k", "٣", "9" * 400, "0x10"])
def test_a_size_that_is_no_number_is_refused(size: str) -> None:
    status = f"Package: a\nStatus: install ok installed\nInstalled-Size: {size}\n".encode()
    with pytest.raises(ArtifactError, match="Installed-Size is"):
        list(parse_status(status))


def header(**tags: tuple[int, int, bytes]) -> bytes:
    index, data = b"", b""
    for tag, kind, value in tags.values():
        index += struct.pack(">IIII", tag, kind, len(data), 1)
        data += value
    return struct.pack(">II", len(tags), len(data)) + index + data


def rpm(name: bytes, *, long: bool = False, epoch: bool = False) -> bytes:
    tags = {
        "name": (1000, 6, name + b"\0"), "version": (1001, 6, b"8.9\0"), "release": (1002, 6, b"1.el10\0"),
        "arch": (1022, 6, b"x86_64\0"), "other": (1004, 9, b"ignored\0"),
    }  # fmt: skip
    tags["size"] = (5009, 5, (5 << 32).to_bytes(8, "big")) if long else (1009, 4, (7000).to_bytes(4, "big"))
    if epoch:
        tags["epoch"] = (1003, 4, (2).to_bytes(4, "big"))
    return header(**tags)


def database(path: Path, blobs: list[object], table: str = "CREATE TABLE Packages (hnum INTEGER, blob BLOB)") -> bytes:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode=WAL")  # as rpm has it
        connection.execute(table)
        if "TABLE Packages" in table:
            connection.executemany("INSERT INTO Packages (blob) VALUES (?)", [(blob,) for blob in blobs])
        connection.commit()
    return path.read_bytes()


def test_packages_of_an_rpm_database_are_read(tmp_path: Path) -> None:
    data = database(tmp_path / "db", [rpm(b"vim", epoch=True), rpm(b"gpg-pubkey"), rpm(b"bash"), rpm(b"k", long=True)])
    files = {"/usr/lib/sysimage/rpm/rpmdb.sqlite": file(data)}
    packages = take_inventory(image_of(files), 0).packages
    assert [(one.name, one.version, one.size) for one in packages] == [
        ("bash", "8.9-1.el10", 7000), ("k", "8.9-1.el10", 5 << 32), ("vim", "2:8.9-1.el10", 7000),
    ]  # fmt: skip
    assert packages[0].arch == "x86_64"


@pytest.mark.parametrize(
    ("blob", "message"),
    [
        pytest.param(None, "has no header", id="null"),
        pytest.param("text", "has no header", id="text"),
        pytest.param(b"\0" * 7, "has no header", id="short"),
        pytest.param(b"\xff" * 64, "cut short", id="counts-that-lie"),
        pytest.param(rpm(b"a")[:-1], "cut short", id="truncated"),
        pytest.param(header(name=(1000, 6, b"a")), "has no end", id="text-without-end"),
        pytest.param(header(name=(1000, 6, b"a\0"), size=(1009, 4, b"\0")), "outside", id="number-outside"),
        pytest.param(header(name=(1000, 6, b"a\0")), "no name or no version", id="no-version"),
    ],
)
def test_damaged_headers_are_refused(blob: object, message: str) -> None:
    with pytest.raises(ArtifactError, match=message):
        parse_header(blob)


@pytest.mark.parametrize("data", [b"", b"SQLite format 3\0", b"x" * 4096, b"SQLite format 3\0" + b"\xff" * 8176])
def test_what_is_no_database_is_refused(data: bytes) -> None:
    with pytest.raises(ArtifactError, match="rpm database"):
        parse_rpmdb(data)


def test_a_view_in_the_tables_place_is_not_run(tmp_path: Path) -> None:
    endless = (
        "CREATE VIEW Packages AS WITH RECURSIVE n(blob) AS (SELECT 1 UNION ALL SELECT blob FROM n) SELECT * FROM n"
    )
    started = time.monotonic()
    with pytest.raises(ArtifactError, match="no table of packages"):
        parse_rpmdb(database(tmp_path / "db", [], endless))
    assert time.monotonic() - started < 5
