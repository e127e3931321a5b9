"""What the agent makes of payloads, superblocks, firmware and the kernel's line."""

from __future__ import annotations

import base64
import gzip
import io
import json
import os
import tarfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagebuilder.agent import agent
from imagebuilder.datapackage.deliver import encodings
from imagebuilder.datapackage.deliver.iso9660 import iso9660


def package(size: int = 100) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        entry = tarfile.TarInfo("manifest.json")
        entry.size = size
        tar.addfile(entry, io.BytesIO(os.urandom(size)))
    return gzip.compress(stream.getvalue(), mtime=0)


PACKAGE = package()
POINTER = json.dumps({"kind": "DataPackagePointer", "url": "https://a.example/b"}).encode()
MIME = encodings.mime(encodings.Payload(data=PACKAGE, name="n"))
OWN_PART = b"--==imagebuilder==\nContent-Type: text/cloud-config\n\n#cloud-config\npackages: [vim]\n"


@pytest.mark.parametrize(
    "payload",
    [
        pytest.param(PACKAGE, id="bare"),
        pytest.param(base64.b64encode(PACKAGE), id="base64"),
        pytest.param(b"\n " + base64.encodebytes(PACKAGE) + b"\r\n\n", id="base64-lines"),
        pytest.param(MIME, id="mime"),
        pytest.param(MIME.replace(b"\n", b"\r\n"), id="mime-crlf"),
        pytest.param(MIME.replace(b"--==imagebuilder==\n", OWN_PART + b"--==imagebuilder==\n", 1), id="mime-parts"),
        pytest.param(base64.b64encode(MIME), id="base64-mime"),
        pytest.param(gzip.compress(MIME), id="gzip-mime"),
        pytest.param(base64.b64encode(gzip.compress(PACKAGE)), id="gzip-and-base64"),
    ],
)
def test_a_package_is_found_in_every_wrapping(payload: bytes) -> None:
    assert agent.decode(payload) == PACKAGE


@pytest.mark.parametrize("payload", [POINTER, b"\n" + POINTER + b"\n", base64.b64encode(POINTER)])
def test_a_pointer_is_found_likewise(payload: bytes) -> None:
    assert agent.decode(payload) == POINTER
    assert agent.Candidate("x", POINTER).pointer and not agent.Candidate("x", PACKAGE).pointer


@pytest.mark.parametrize(
    "payload",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"   \n", id="blank"),
        pytest.param(b"#cloud-config\npackages: [vim]\n", id="cloud-config"),
        pytest.param(b"#!/bin/sh\necho hello\n", id="script"),
        pytest.param(gzip.compress(b"#cloud-config\n{}\n"), id="gzipped-cloud-config"),
        pytest.param(b'{"ignition": {"version": "3.4.0"}}', id="ignition"),
        pytest.param(b'{"kind": ' * 100_000, id="deep-json"),
        pytest.param(b"hello", id="word"),
        pytest.param(MIME.replace(b"application/x-imagebuilder-data", b"text/plain"), id="mail"),
        pytest.param(b"MIME-Version: 1.0\nContent-Type: text/plain\n\nhello\n", id="plain-mail"),
        pytest.param(b"Content-Type: multipart/mixed; boundary=x\n\n" + b"\n--x" * 100_000, id="many-parts"),
        pytest.param(b"Content-Type: multipart/mixed; boundary=x\n\n--x\n" * 20_000, id="deep-mail"),
        pytest.param(gzip.compress(bytes(64 << 20)), id="bomb"),
    ],
)  # fmt: skip
def test_what_is_somebody_elses_is_passed_over(payload: bytes) -> None:
    assert agent.decode(payload) is None
    assert list(agent._take("x", payload, False)) == []
    (problem,) = agent._take("x", payload, True)
    assert isinstance(problem, agent.Problem) and problem.code == "E_FORMAT"


def test_a_damaged_package_is_for_the_one_who_verifies() -> None:
    assert agent.decode(b"\x1f\x8bno gzip at all") == b"\x1f\x8bno gzip at all"


def test_wrappings_have_an_end() -> None:
    wrapped = PACKAGE
    for _ in range(agent.MAX_DEPTH + 1):
        wrapped = base64.b64encode(wrapped)
    assert agent.decode(wrapped) is None


@pytest.mark.parametrize("data", [package(agent.PACKED + 1), b"x" * (agent.MAX_PAYLOAD + 1)])
def test_too_large_is_said(data: bytes) -> None:
    with pytest.raises(agent.SourceError) as caught:
        agent.decode(data)
    assert caught.value.code == "E_SIZE"


def test_the_largest_package_fits_the_largest_wrapping() -> None:
    largest = package(agent.PACKED - 2048)
    assert agent.PACKED - 2048 < len(largest) <= agent.PACKED
    wrapped = base64.b64encode(encodings.mime(encodings.Payload(data=largest, name="n")))
    assert agent.decode(wrapped) == largest


@given(st.data())
def test_no_payload_breaks_the_decoder(data: Any) -> None:
    base = data.draw(st.sampled_from([PACKAGE, MIME, POINTER, base64.b64encode(MIME), gzip.compress(MIME)]))
    mutated = bytearray(base)
    for _ in range(data.draw(st.integers(1, 4))):
        mutated[data.draw(st.integers(0, len(mutated) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(mutated)))
    try:
        found = agent.decode(bytes(mutated[:cut]))
    except agent.SourceError as error:
        assert error.code == "E_SIZE"
    else:
        assert found is None or found[:2] == agent.GZIP or found[:1] == b"{"


def fat(label: bytes, kind: bytes) -> bytes:
    boot = bytearray(512)
    at = 71 if kind == b"FAT32" else 43
    boot[at : at + 11], boot[at + 11 : at + 19], boot[510:] = label.ljust(11), kind.ljust(8), b"\x55\xaa"
    return bytes(boot)


UDF = bytes(32768) + b"\0BEA01\x01".ljust(2048, b"\0") + b"\0NSR02\x01".ljust(2048, b"\0")


@pytest.mark.parametrize(
    ("data", "found"),
    [
        pytest.param(iso9660("cidata", {}), ("iso9660", "cidata"), id="iso9660"),
        pytest.param(fat(b"CIDATA", b"FAT16"), ("vfat", "CIDATA"), id="fat16"),
        pytest.param(fat(b"CIDATA", b"FAT32"), ("vfat", "CIDATA"), id="fat32"),
        pytest.param(UDF, ("udf", ""), id="udf"),
        pytest.param(b"", None, id="no-medium"),
        pytest.param(bytes(100_000), None, id="blank"),
        pytest.param(fat(b"CIDATA", b"NTFS"), None, id="other"),
    ],
)
def test_superblocks(tmp_path: Path, data: bytes, found: object) -> None:
    (tmp_path / "disk").write_bytes(data)
    assert agent.probe(str(tmp_path / "disk")) == found
    assert agent.probe(str(tmp_path / "none")) is None


def machine(folder: Path, **files: bytes) -> agent.SourceHost:
    places = {
        "cmdline": "proc/cmdline", "table": "sys/firmware/dmi/tables/DMI",
        "fw_cfg": agent.FW_CFG[1:], "smbios": "sys/firmware/dmi/entries/11-0/raw",
    }  # fmt: skip
    for name, data in files.items():
        path = folder / places.get(name, f"sys/class/dmi/id/{name}")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return agent.SourceHost(str(folder), sandbox="")


@pytest.mark.parametrize(
    ("files", "names"),
    [
        ({}, []),
        ({"sys_vendor": b"Dell Inc.\n", "product_name": b"PowerEdge\n"}, []),
        ({"sys_vendor": b"QEMU\n", "product_name": b"Standard PC (Q35 + ICH9, 2009)\n"}, []),
        ({"sys_vendor": b"Amazon EC2\n"}, ["ec2"]),
        ({"sys_vendor": b"Xen\n", "product_uuid": b"EC2F6B1A-0000\n"}, ["ec2"]),
        ({"sys_vendor": b"Xen\n", "product_uuid": b"1234\n"}, []),
        ({"product_name": b"Google Compute Engine\n"}, ["gce"]),
        ({"chassis_asset_tag": agent.AZURE_TAG.encode()}, ["azure"]),
        ({"product_name": b"OpenStack Nova\n"}, ["openstack"]),
        ({"chassis_asset_tag": b"OpenTelekomCloud\n"}, ["openstack"]),
        ({"sys_vendor": b"DigitalOcean\n"}, ["digitalocean"]),
        ({"sys_vendor": b"Hetzner\n"}, ["hcloud"]),
        ({"sys_vendor": b"Dell Inc.\n", "cmdline": b"quiet imagebuilder.services=openstack,ec2"}, ["openstack", "ec2"]),
    ],
)
def test_firmware_says_which_services_are_asked(tmp_path: Path, files: dict[str, bytes], names: list[str]) -> None:
    host = machine(tmp_path, **files)
    assert agent.services(host) == names
    assert [name for name, _, _ in agent._sources("net", host)] == sorted(names)


def test_bare_metal_finds_nothing_and_waits_for_nobody(tmp_path: Path) -> None:
    host = machine(tmp_path)
    assert agent.find("local", host) == ([], [])
    assert agent.find("net", host) == ([], [])


def smbios(*strings: bytes) -> bytes:
    return bytes((11, 5, 0, 14, len(strings))) + b"".join(text + b"\0" for text in strings) + b"\0"


def origins(found: tuple[list[agent.Candidate], list[agent.Problem]]) -> list[str]:
    assert [problem.text for problem in found[1]] == []
    assert {candidate.data for candidate in found[0]} <= {PACKAGE}
    return [candidate.origin for candidate in found[0]]


def test_firmware_and_sandbox_hold_a_package(tmp_path: Path) -> None:
    ours = encodings.smbios(encodings.Payload(data=PACKAGE, name="n"))
    host = machine(tmp_path / "root", fw_cfg=PACKAGE, smbios=smbios(b"somebody else's", ours))
    host.sandbox = str(tmp_path)
    (tmp_path / "imagebuilder.ibdata").write_bytes(PACKAGE)
    assert origins(agent.find("local", host)) == [
        f"mesos:{tmp_path}/imagebuilder.ibdata", "fw_cfg", "smbios:11-0"
    ]  # fmt: skip


def test_the_whole_table_serves_as_well(tmp_path: Path) -> None:
    ours = encodings.smbios(encodings.Payload(data=PACKAGE, name="n"))
    system = b"\x01\x08\x01\0\x01\x02\0\0QEMU\0pc\0\0"
    bare = b"\x7c\x05\x02\0\0\0\0"
    end = b"\x7f\x04\x03\0\0\0"
    table = system + bare + smbios(b"another", ours) + end
    host = machine(tmp_path, table=table)
    assert origins(agent.find("local", host)) == ["smbios"]
    for cut in range(len(table) - len(end) - 1):
        assert agent.find("local", machine(tmp_path, table=table[:cut]))[0] == []


@pytest.mark.parametrize("raw", [b"", b"\x0b", b"\x0b\xff\0\0\0", smbios(), smbios(b"x" * 300)])
def test_a_strange_table_is_no_source(tmp_path: Path, raw: bytes) -> None:
    assert origins(agent.find("local", machine(tmp_path, smbios=raw))) == []
    assert origins(agent.find("local", machine(tmp_path / "whole", table=raw))) == []


def test_a_source_that_is_named_is_the_only_one(tmp_path: Path) -> None:
    (tmp_path / "a file.ibdata").write_bytes(PACKAGE)
    for name in (f"file://{tmp_path}/a%20file.ibdata", f"{tmp_path}/a file.ibdata"):
        host = machine(tmp_path / "root", fw_cfg=PACKAGE, sys_vendor=b"Amazon EC2")
        host.source = name
        assert origins(agent.find("local", host)) == [f"source:{tmp_path}/a file.ibdata"]
        assert agent.find("net", host) == ([], [])


@pytest.mark.parametrize("name", ["http://a.example/x", "file://other/x", "/dev/null", "/none", "link"])
def test_a_source_that_is_no_file_is_a_problem(tmp_path: Path, name: str) -> None:
    (tmp_path / "link").symlink_to("/etc/passwd")
    host = agent.SourceHost(source=str(tmp_path / name) if name == "link" else name, sandbox="")
    candidates, problems = agent.find("local", host)
    assert candidates == [] and [problem.code for problem in problems] == ["E_SOURCE"]


def test_too_large_a_file_is_a_problem(tmp_path: Path) -> None:
    host = machine(tmp_path, fw_cfg=b"x" * (agent.MAX_PAYLOAD + 1))
    candidates, problems = agent.find("local", host)
    assert candidates == [] and [(problem.origin, problem.code) for problem in problems] == [("fw_cfg", "E_SIZE")]


def test_addresses_are_filled_in(tmp_path: Path) -> None:
    host = machine(tmp_path, product_uuid=b"ABCD-1\n", product_serial=b"S/N 1?\n")
    for card, address in (("lo", b"00:00:00:00:00:00"), ("eth1", b"52:54:00:00:00:02"), ("eth0", b"52:54:00:00:00:01")):
        path = tmp_path / "sys/class/net" / card / "address"
        path.parent.mkdir(parents=True)
        path.write_bytes(address + b"\n")
    assert agent.expand(host, "http://a/{uuid}/{mac}?s={serial}") == "http://a/abcd-1/52:54:00:00:00:01?s=S%2FN%201%3F"
    for unknown in ("http://a/{hostname}", "http://a/{secret}", "http://a/{}"):
        with pytest.raises(agent.SourceError, match="the machine has no"):
            agent.expand(host, unknown)


GOOD = {
    "apiVersion": "imagebuilder/v1", "kind": "DataPackagePointer", "url": "https://a.example/n.ibdata", "size": 100,
    "sha256": "0" * 64, "keyId": "1" * 32, "signature": base64.b64encode(b"signature").decode(),
}  # fmt: skip


@pytest.mark.parametrize(
    "change",
    [
        {"more": 1}, {"kind": "DataPackage"}, {"apiVersion": "imagebuilder/v2"}, {"url": "file:///etc/passwd"},
        {"url": "https://"}, {"url": 1}, {"size": 0}, {"size": True}, {"size": agent.PACKED + 1}, {"size": "1"},
        {"sha256": "0" * 63}, {"sha256": "0" * 64 + "\n"}, {"keyId": ""}, {"signature": "!"}, {"signature": None},
        {"signature": "A"},
    ],
)  # fmt: skip
def test_a_bad_pointer_is_refused_before_anything_else(change: dict[str, Any]) -> None:
    def verify(*_: object) -> None:
        raise AssertionError("not asked")

    with pytest.raises(agent.SourceError) as caught:
        agent.fetch_pointer(json.dumps(GOOD | change).encode(), agent.SourceHost(), verify)
    assert caught.value.code == "E_FORMAT"
    for data in (b"", b"[]", b"\xff", b'{"a":1}', b"[" * 100_000):
        with pytest.raises(agent.SourceError):
            agent.fetch_pointer(data, agent.SourceHost(), verify)


def test_nothing_is_fetched_when_the_signature_is_bad() -> None:
    class Bad(Exception):
        pass

    def verify(document: dict[str, Any], signature: bytes, key: str) -> None:
        assert document == {name: value for name, value in GOOD.items() if name != "signature"}
        assert (signature, key) == (b"signature", "1" * 32)
        raise Bad

    with pytest.raises(Bad):  # a connection would raise something else: see conftest.py
        agent.fetch_pointer(json.dumps(GOOD).encode(), agent.SourceHost(), verify)
