"""What is different between two images."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from test_inventory import FILES, image_of

from imagebuilder.errors import ArtifactError
from imagebuilder.verify import diff
from imagebuilder.verify.report.document import as_json
from imagebuilder.verify.tree import Changed, Entry, file, link
from tests import report_samples as samples

BASE: dict[str, Any] = {
    **FILES,
    "/etc/fstab": file("/dev/vda1 / ext4\n# one\n"),
    "/etc/shadow": file("root:*:0\n", mode=0o640),
    "/etc/host.conf": file(b"\0binary"),
    "/usr/bin/tool": file("same"),
    "/var/log/dpkg.log": file("one"),
}


def difference(changes: Mapping[str, tuple[Entry, bytes] | None], tmp_path: Path) -> diff.Difference:
    (tmp_path / "a.qcow2").write_bytes(b"1")
    before = image_of(dict(BASE), tmp_path / "a.qcow2")
    after = replace(before, root=Changed(before.root, changes))
    return diff.compare(before, after, {"id": "old"}, {"id": "new"})


def test_an_image_is_the_same_as_itself(tmp_path: Path) -> None:
    same = difference({}, tmp_path)
    assert (same.nothing, same.files, same.settings) == (True, (), ())
    assert diff.as_text(same) == "old -> new: nothing is different\n"


@pytest.mark.parametrize(
    ("path", "change", "what"),
    [
        ("/usr/bin/new", file("x"), "added"),
        ("/usr/bin/tool", None, "removed"),
        ("/usr/bin/tool", file("other one"), "content"),
        ("/usr/bin/tool", file("same", mode=0o755), "mode 100644 is 100755"),
        ("/usr/bin/tool", file("same", uid=3, gid=4), "owner 0:0 is 3:4"),
        ("/usr/bin/q", link("tool"), "link to jq is to tool"),
        ("/etc/fstab", file("/dev/vda1 / ext4\n# two\n"), "content"),
    ],
)
def test_each_kind_of_change_is_found(path: str, change: Any, what: str, tmp_path: Path) -> None:
    found = difference({path: change}, tmp_path)
    assert [(one.path, one.what) for one in found.files] == [(path, what)]
    assert f"  {path}: {what}\n" in diff.as_text(found)


def test_capabilities_of_a_file_are_compared(tmp_path: Path) -> None:
    entry, data = file("same")
    found = difference({"/usr/bin/tool": (replace(entry, capability=b"\1"), data)}, tmp_path)
    assert found.files[0].what == "capabilities"


def test_bytes_are_read_where_the_time_differs_and_below_etc() -> None:
    read: list[str] = []

    class Counting(Changed):
        def content(self, path: str, limit: int) -> bytes:
            read.append(path)
            return super().content(path, limit)

    before = image_of(dict(BASE)).root
    entry, _ = file("emas")
    changes = {
        "/usr/bin/tool": (entry, b"emas"),
        "/usr/bin/jq": (replace(FILES["/usr/bin/jq"][0], mtime=9), b"y" * 1000),
    }
    found = list(diff.file_changes(Counting(before, {}), Changed(before, changes)))
    assert [one.path for one in found] == ["/usr/bin/jq"], "equal size and time are taken for equal bytes"
    assert {path for path in read if not path.startswith("/etc/")} == {"/usr/bin/jq"}
    assert "/etc/fstab" in read


def test_noise_is_left_out(tmp_path: Path) -> None:
    assert difference({"/var/log/dpkg.log": file("two")}, tmp_path).files == ()


def test_settings_are_shown_as_a_diff(tmp_path: Path) -> None:
    new = file("/dev/vda1 / ext4\n# tw\x1bo\n")
    found = difference({"/etc/fstab": new, "/etc/motd": file("hello\n")}, tmp_path)
    assert found.settings == (
        "--- a/etc/fstab", "+++ b/etc/fstab", "@@ -1,2 +1,2 @@", " /dev/vda1 / ext4", "-# one", "+# tw\ufffdo",
        "--- a/etc/motd", "+++ b/etc/motd", "@@ -0,0 +1 @@", "+hello",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("path", "change"),
    [
        ("/etc/shadow", file("root:$y$secret\n", mode=0o640)),
        ("/etc/host.conf", file(b"\0others")),
        ("/etc/fstab", file("x" * (diff.MAX_TEXT + 1))),
        ("/etc/fstab", file(b"\xff\xfe")),
    ],
)
def test_secret_binary_and_long_files_are_named_but_not_shown(path: str, change: Any, tmp_path: Path) -> None:
    found = difference({path: change}, tmp_path)
    assert ([one.path for one in found.files], found.settings) == ([path], ())


def test_settings_have_a_limit(tmp_path: Path) -> None:
    files = {f"/etc/{at:03d}": file("line\n" * 500) for at in range(30)}
    settings = difference(files, tmp_path).settings
    assert len(settings) == diff.MAX_SETTINGS + 1
    assert settings[-1] == "and more: only 2000 lines are shown"


def test_packages_and_units_are_compared(tmp_path: Path) -> None:
    status = FILES["/var/lib/dpkg/status"][1].decode()
    changed = {
        "/var/lib/dpkg/status": file(status.replace("1.7.1-6", "1.8").replace("adduser", "tmux")),
        "/etc/systemd/system/sockets.target.wants/docker.socket": link("/x"),
    }
    text = diff.as_text(difference(changed, tmp_path))
    for line in ("+ tmux 3.152", "- adduser 3.152", "jq 1.7.1-6 -> 1.8", "+ docker.socket"):
        assert f"  {line}\n" in text


def test_boot_seconds_are_those_of_the_reports_beside_the_artifacts(tmp_path: Path) -> None:
    images = []
    for name, late in (("a", 0.0), ("b", 2.5)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "disk.qcow2").write_bytes(b"12")
        boot = replace(samples.BOOTS[0], stages={"kubelet": 40 + late})
        document = as_json(samples.report(boots=(boot,)), samples.CHECKS)
        (tmp_path / name / "verify.json").write_text(json.dumps(document))
        manifest = {"artifact": {"file": "disk.qcow2"}}
        images.append(image_of(dict(BASE), tmp_path / name, manifest=manifest))
    found = diff.compare(*images)
    assert [(one.firmware, one.stage, one.before, one.after) for one in found.changes.boots] == [
        ("bios", "kubelet", 40, 42.5)
    ]
    assert found.changes.artifact_size == (2, 2)
    assert "bios, until kubelet: 40.0 s -> 42.5 s" in diff.as_text(found)


def test_a_damaged_report_beside_an_artifact_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "verify.json").write_text("{")
    with pytest.raises(ArtifactError):
        difference({}, tmp_path)


def test_the_document_is_plain_json(tmp_path: Path) -> None:
    document = diff.as_json(difference({"/etc/fstab": file("x\n"), "/usr/bin/tool": None}, tmp_path))
    assert json.loads(json.dumps(document)) == document
    assert (document["kind"], document["before"], document["same"]) == ("Difference", "old", False)
    assert [(one["path"], one["what"], one["grown"]) for one in document["files"]] == [
        ("/etc/fstab", "content", -21), ("/usr/bin/tool", "removed", -4),
    ]  # fmt: skip
