"""A bake with Packer: what it refuses, the source image's checksum, and what goes into the output folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from imagebuilder.bake import BakeOptions, bake
from imagebuilder.bake_packer import check_private, checksum_in, installed, manifest_data, source_checksum, source_image
from imagebuilder.cells import plan_request
from imagebuilder.errors import ToolMissingError, UnreachableError, UntrustedError, UsageError
from imagebuilder.events import Progress
from imagebuilder.model import BuildRequest
from imagebuilder.packer.engine import MANIFEST, Built
from imagebuilder.packer.render import Supplies

PLAN = plan_request(BuildRequest(os="debian", target="qemu", engine="packer"))
SHA256, SHA512 = "a" * 64, "b" * 128


@pytest.mark.parametrize(
    ("text", "sum_"),
    [
        pytest.param(f"{SHA512}  x.qcow2\n", f"sha512:{SHA512}", id="gnu"),
        pytest.param(f"{SHA256} *x.qcow2\n", f"sha256:{SHA256}", id="gnu-binary"),
        pytest.param(f"{SHA256}  ./x.qcow2\n", f"sha256:{SHA256}", id="gnu-folder"),
        pytest.param(f"# x.qcow2: 5 bytes\nSHA256 (x.qcow2) = {SHA256.upper()}\n", f"sha256:{SHA256}", id="bsd"),
        pytest.param(f"{SHA256}\n", f"sha256:{SHA256}", id="alone"),
        pytest.param(f"{'c' * 64}  ax.qcow2\n{SHA256}  x.qcow2\n", f"sha256:{SHA256}", id="other-names"),
    ],
)
def test_a_checksum_is_found_in_the_publishers_list(text: str, sum_: str) -> None:
    assert checksum_in(text, "x.qcow2", "SUMS") == sum_


@pytest.mark.parametrize("text", ["", f"{SHA256}  y.qcow2\n", "d41d8cd98f00b204e9800998ecf8427e  x.qcow2\n"])
def test_a_list_without_the_image_is_not_trusted(text: str) -> None:
    with pytest.raises(UntrustedError, match=r"states no checksum of x\.qcow2"):
        checksum_in(text, "x.qcow2", "SUMS")


class Silent:
    """A downloader that nobody answers."""

    def get_bytes(self, url: str, **_: Any) -> Any:
        raise UnreachableError("no answer")


def test_a_publisher_that_does_not_answer_leaves_it_to_packer() -> None:
    assert source_checksum(PLAN, Silent()) == ""  # type: ignore[arg-type]


def test_without_packer_nothing_is_asked_and_nothing_written(tmp_path: Path) -> None:
    class Missing:
        def run(self, argv: Any, **_: Any) -> Any:
            assert argv[0] == "packer"
            raise ToolMissingError("packer is not installed")

    options = BakeOptions(output=tmp_path / "out", cache=tmp_path / "cache")
    with pytest.raises(ToolMissingError) as caught:
        bake(PLAN, options=options, runner=Missing(), progress=Progress())  # type: ignore[arg-type]
    assert "apt-get install packer" in caught.value.hint
    assert not (tmp_path / "out").exists()


VARIABLES = 'variable "token" {\n  sensitive = true\n}\nvariable "zone" {\n}\n'


@pytest.mark.parametrize("text", ['token = "x"\n', '{"token": "x"}\n'], ids=["hcl", "json"])
def test_a_file_with_secrets_must_be_private(tmp_path: Path, text: str) -> None:
    path = tmp_path / "values"
    path.write_text(text)
    path.chmod(0o640)
    with pytest.raises(UsageError, match="holds token, and others can read it") as caught:
        check_private([path], VARIABLES)
    assert caught.value.hint == f"chmod 600 {path}"
    path.chmod(0o600)
    check_private([path], VARIABLES)


def test_a_file_without_secrets_may_be_public(tmp_path: Path) -> None:
    path = tmp_path / "values"
    path.write_text('zone = "token"\n')
    path.chmod(0o644)
    check_private([path], VARIABLES)
    with pytest.raises(UsageError, match="cannot be read"):
        check_private([tmp_path / "gone"], VARIABLES)


@pytest.mark.parametrize(
    "text",
    ['source_image_url = "/my/base.qcow2"\nzone = "z"\n', '{"zone": "z", "source_image_url": "/my/base.qcow2"}'],
    ids=["hcl", "json"],
)
def test_the_manifest_names_the_image_that_was_really_taken(tmp_path: Path, text: str) -> None:
    """Not the profile's, which the build never saw."""
    path = tmp_path / "values"
    path.write_text(text)
    taken = source_image(PLAN, "", [path])
    assert taken == {"kind": "cloud-image", "statedBy": "var-file", "source_image_url": "/my/base.qcow2"}
    path.write_text('zone = "z"\n')
    taken = source_image(PLAN, "sha256:1", [path])
    assert (taken["statedBy"], taken["checksum"]) == ("profile", "sha256:1")
    assert taken["url"].startswith("https://")


def test_the_manifest_names_an_image_in_a_cloud(tmp_path: Path) -> None:
    build = {"packer_run_uuid": "1", "artifact_id": "eu:ami-1", "builder_type": "amazon-ebs", "files": None}
    (tmp_path / MANIFEST).write_text(json.dumps({"builds": [build], "last_run_uuid": "1"}))
    made = manifest_data(PLAN, Supplies(), Built(folder=tmp_path, artifacts=(), packer="1.16.0"), Progress())
    assert made["artifact"]["images"] == [{"builder": "amazon-ebs", "id": "eu:ami-1"}]
    assert made["tool"]["packer"] == "1.16.0"
    assert made["sourceImage"]["kind"] == "cloud-image"
    json.dumps(made)


def test_of_a_disk_that_is_not_read_no_packages_are_stated(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.write_bytes(b"XFSB" * 4096)
    assert installed(disk, tmp_path) == []
