"""What ``deliver`` writes, what fits where, and what it refuses."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import os
from collections.abc import Callable
from email import message_from_bytes
from pathlib import Path

import pytest
from click.testing import CliRunner

from imagebuilder.cli import docs
from imagebuilder.cli.data_deliver import deliver as command
from imagebuilder.datapackage.deliver import encodings
from imagebuilder.datapackage.deliver.delivery import NAME, URL, Payload, deliver, read_payload
from imagebuilder.datapackage.deliver.fits import fits
from imagebuilder.datapackage.deliver.iso9660 import iso9660
from imagebuilder.datapackage.deliver.mesos import Parts, write_mesos
from imagebuilder.datapackage.deliver.transports import targets, ways
from imagebuilder.datapackage.format import unpack
from imagebuilder.errors import ArtifactError, DataError, PackageError, UsageError
from imagebuilder.targets import target_names

VECTORS = Path(__file__).parents[1] / "vectors" / "data-package"
PACKAGE, POINTER = VECTORS / "good-standalone.ibdata", VECTORS / "pointer-good.json"
NODE = unpack(PACKAGE.read_bytes()).manifest.node
SMALL = Payload(data=b"\x1f\x8b" + b"x" * 100, name="node-1", url="https://a.example/node-1.ibdata")


def payload(size: int) -> Payload:
    return Payload(data=b"\x1f\x8b" + bytes(size - 2), name="node-1")


def test_every_target_has_a_way() -> None:
    assert set(targets()) == {*target_names(), "mesos"}


def test_unknown_targets_get_the_nearest() -> None:
    with pytest.raises(UsageError, match='did you mean "openstack"'):
        ways("openstac")


@pytest.mark.parametrize("target", [target for target in targets() if target != "mesos"])
def test_commands_name_files_that_are_there(tmp_path: Path, target: str) -> None:
    done = deliver(SMALL, target, tmp_path / "out")
    assert done.left_out == () and len(done.written) == len(ways(target))
    readme = (tmp_path / "out/README.md").read_text()
    for written in done.written:
        assert written.path.is_file()
        assert str(written.path) in written.command + written.note or written.fit.way.form == "kernel-line"
        assert all(line.strip() in readme for line in written.command.splitlines())
        assert "{" not in written.command or target == "kubevirt"
        assert SMALL.data.hex() not in readme and encodings.one_line(SMALL).decode() not in readme
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {written.path.name for written in done.written} | {"README.md"}


@pytest.mark.parametrize(
    ("target", "form", "most"),
    [
        # The package's bytes of which the encoded form is just what the platform takes.
        ("aws", "raw", 16384),
        ("gce", "base64", 262144 // 4 * 3),
        ("vsphere", "base64", 65535 // 4 * 3),
    ],
)
def test_limits_are_those_after_encoding(tmp_path: Path, target: str, form: str, most: int) -> None:
    fitting = deliver(payload(most), target, tmp_path / "a").written
    (written,) = [one for one in fitting if one.fit.way.form == form]
    assert written.fit.left is not None and 0 <= written.fit.left <= 3
    larger = payload(most + 1)
    (fit,) = [fit for fit in fits(larger)[target] if fit.way.form == form]
    assert not fit.fits and fit.left is not None and fit.left < 0
    if len(ways(target)) == 1:
        with pytest.raises(PackageError, match="E_SIZE: the package does not fit") as caught:
            deliver(larger, target, tmp_path / "b")
        assert f"{fit.size:,} bytes after encoding, and {fit.way.limit:,} are allowed" in caught.value.context
        assert not (tmp_path / "b").exists()


def test_what_is_told_is_what_is_written(tmp_path: Path) -> None:
    told = fits(SMALL)
    assert set(told) == set(targets())
    for target in set(targets()) - {"mesos"}:
        done = deliver(SMALL, target, tmp_path / target)
        assert tuple(one.fit for one in done.written) == told[target]
        for one in done.written:
            size = one.path.stat().st_size
            assert one.fit.size == (size if one.fit.way.measured == "file" else len(base64.b64encode(bytes(size))))


def test_a_form_is_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []

    def counting(form: str) -> Callable[[Payload], bytes]:
        def encode(payload: Payload) -> bytes:
            made.append(form)
            return encodings.FORMS[form][1](payload)

        return encode

    forms = {form: (name, counting(form)) for form, (name, _) in encodings.FORMS.items()}
    monkeypatch.setattr("imagebuilder.datapackage.deliver.fits.FORMS", forms)
    assert len(fits(SMALL)) == len(targets()) and sorted(made) == sorted(encodings.FORMS)
    made.clear()
    assert list(fits(payload(100), ["raw"])) == ["raw"] and made == ["cidata"], "no kernel line without an address"


def test_openstack_counts_the_base64_of_the_mime_text() -> None:
    way = ways("openstack")[0]
    assert [way.measure(size) for size in (0, 1, 3, 4)] == [0, 4, 4, 8]
    assert (
        way.measure(len(encodings.mime(payload(36_000))))
        < way.limit
        < way.measure(len(encodings.mime(payload(37_000))))
    )


def test_what_does_not_fit_is_left_out_and_said(tmp_path: Path) -> None:
    deliver(SMALL, "aws", tmp_path)
    assert (tmp_path / "user-data.txt").exists()
    done = deliver(payload(15_000), "aws", tmp_path)
    assert [one.fit.way.form for one in done.written] == ["raw"]
    assert [one.way.form for one in done.left_out] == ["mime"]
    assert not (tmp_path / "user-data.txt").exists(), "of the delivery before"
    assert "## Not possible" in (tmp_path / "README.md").read_text()


def test_a_kernel_line_needs_an_address(tmp_path: Path) -> None:
    done = deliver(payload(100), "raw", tmp_path)
    assert [(one.way.form, "--pointer-url" in one.why) for one in done.left_out] == [("kernel-line", True)]
    digest = hashlib.sha256(SMALL.data).hexdigest()
    assert encodings.kernel_line(SMALL) == f"imagebuilder.data={SMALL.url} imagebuilder.sha256={digest}\n".encode()
    many = Payload(data=SMALL.data, name="n", url="https://a.example/{uuid}.ibdata")
    assert encodings.kernel_line(many) == b"imagebuilder.data=https://a.example/{uuid}.ibdata\n"


@pytest.mark.parametrize("form", sorted(encodings.FORMS))
def test_the_same_bytes_every_time(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    encode = encodings.FORMS[form][1]
    first = encode(SMALL)
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    monkeypatch.setattr("time.time", lambda: 2e9)
    assert encode(SMALL) == first


def test_the_mime_text_is_one_for_others_too() -> None:
    (part,) = message_from_bytes(encodings.mime(SMALL)).get_payload()
    assert part.get_content_type() == "application/x-imagebuilder-data"
    assert part.get_payload(decode=True) == SMALL.data
    assert max(len(line) for line in encodings.mime(SMALL).splitlines()) <= 76


def test_another_package_is_the_same_instance_to_cloud_init() -> None:
    other = Payload(data=SMALL.data + b"2", name=SMALL.name)
    assert encodings.seed(other)["meta-data"] == encodings.seed(SMALL)["meta-data"]
    assert json.loads(encodings.seed(SMALL)["meta-data"]) == {"instance-id": "imagebuilder-node-1"}


def test_an_image_has_room_for_what_is_in_it() -> None:
    data = os.urandom(5000)
    image = iso9660("cidata", {"a/b/c.txt": data, "a/empty": b""})
    assert len(image) % 2048 == 0 and image.count(data) == 1
    assert int.from_bytes(image[16 * 2048 + 80 : 16 * 2048 + 84], "little") * 2048 == len(image)
    for files in ({"x" * 200: b""}, {f"a-file-with-a-name-{number}": b"" for number in range(20)}):
        with pytest.raises(UsageError):
            iso9660("cidata", files)


@pytest.mark.parametrize("name", ["Node", "a b", "-a", "a-", "a/b", "", "a" * 64, "a'b", "a$b"])
def test_names_that_no_machine_can_have(name: str) -> None:
    assert not NAME.fullmatch(name)


@pytest.mark.parametrize(
    "url", ["file:///a", "http://a b", 'http://a"b', "http://a'b", "http://a`b`", "http://a\nb", ""]
)
def test_addresses_that_no_kernel_line_can_have(url: str) -> None:
    assert not URL.fullmatch(url)


def test_what_is_no_package_is_refused(tmp_path: Path) -> None:
    bad = {
        "a.ibdata": b"PK\x03\x04",
        "b.ibdata": b"",
        "c.ibdata": b"\x1f\x8b" + bytes(1 << 20),
        "d.pointer.json": b"{}",
    }
    bad["e.ibdata"] = PACKAGE.read_bytes()[:-1]
    for name, data in bad.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(PackageError, match=name):
            read_payload(tmp_path / name)
    with pytest.raises(ArtifactError, match="cannot be read"):
        read_payload(tmp_path / "none.ibdata")


def test_a_payload_knows_its_machine(tmp_path: Path) -> None:
    other = tmp_path / "Any Name"
    other.write_bytes(PACKAGE.read_bytes())
    assert read_payload(other, "https://a/{node}/{mac}") == Payload(
        data=PACKAGE.read_bytes(), name=NODE, url=f"https://a/{NODE}/{{mac}}"
    )
    with pytest.raises(UsageError, match="kernel line"):
        read_payload(other, "ftp://a")
    pointer = tmp_path / "node-9.pointer.json"
    pointer.write_bytes(POINTER.read_bytes())
    assert read_payload(pointer).name == "node-9"
    with pytest.raises(UsageError, match='"A B" cannot be'):
        read_payload(pointer.rename(tmp_path / "A B.pointer.json"))


def test_a_folder_that_a_command_would_have_to_quote(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="quote"):
        deliver(SMALL, "qemu", tmp_path / "a b")
    assert list(tmp_path.iterdir()) == []


def test_a_readme_of_somebody_else_stays(tmp_path: Path) -> None:
    for name in ("README.md", "user-data.txt"):
        (tmp_path / name).write_text("mine\n")
    with pytest.raises(UsageError, match="would be replaced"):
        deliver(SMALL, "aws", tmp_path)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["mine\n"] * 2


def test_a_bundle_needs_its_parts(tmp_path: Path) -> None:
    (tmp_path / "kubelet").write_text("#!/bin/sh\n")
    parts = Parts(kubelet=tmp_path / "kubelet", version="1.35.8", trust=(), url="https://a")
    with pytest.raises(UsageError, match="not a Linux program"):
        write_mesos(tmp_path / "out", "n", b"", parts)
    (tmp_path / "kubelet").write_bytes(b"\x7fELF\x02\x01" + bytes(10) + b"\x02\x00\xb7\x00")
    with pytest.raises(UsageError, match="accepts no package"):
        write_mesos(tmp_path / "out", "n", b"", parts)
    private = dataclasses.replace(parts, trust=(VECTORS / "signing.key",))
    with pytest.raises(DataError, match="not a public key"):
        write_mesos(tmp_path / "out", "n", b"", private)
    with pytest.raises(UsageError, match="needs --kubelet"):
        deliver(SMALL, "mesos", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_command_prints_what_to_type(tmp_path: Path) -> None:
    (tmp_path / "node-1.ibdata").write_bytes(PACKAGE.read_bytes())
    words = [f"{tmp_path}/node-1.ibdata", "--target", "gce", "--output", f"{tmp_path}/out"]
    result = CliRunner().invoke(command, words, catch_exceptions=False)
    assert f"--metadata-from-file imagebuilder-data={tmp_path}/out/data.b64" in result.output
    assert "of 262,144 bytes" in result.output
    (line,) = CliRunner().invoke(command, [*words, "--json"], catch_exceptions=False).output.splitlines()
    assert [file["path"] for file in json.loads(line)["files"]] == [f"{tmp_path}/out/data.b64"]


def test_the_command_says_what_mesos_needs(tmp_path: Path) -> None:
    (tmp_path / "node-1.ibdata").write_bytes(PACKAGE.read_bytes())
    words = [f"{tmp_path}/node-1.ibdata", "--target", "mesos", "--output", f"{tmp_path}/out"]
    assert "a kubelet, a trusted key and an address" in str(CliRunner().invoke(command, words).exception)
    words += ["--kubelet", "k", "--trust", "t", "--bundle-url", "https://a", "--kubelet-version", "1.35"]
    assert '"1.35" is no version' in str(CliRunner().invoke(command, words).exception)
    words[2] = "aws"
    assert "for --target mesos alone" in str(CliRunner().invoke(command, words).exception)


def test_the_page_is_what_the_data_says() -> None:
    page = (Path(__file__).parents[2] / "docs" / "transports.md").read_text()
    assert page == docs.transports(), "make docs"
    assert all(f"| {target} |" in page for target in targets())
