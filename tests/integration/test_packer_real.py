"""Debian's packer 1.6.6 on what we render: layout, validation, quoting, interruption."""

from __future__ import annotations

import json
import shutil
import signal
import sys
import threading
import unicodedata
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from imagebuilder.cells import plan_request
from imagebuilder.errors import CheckFailedError, CommandError, DeadlineError
from imagebuilder.events import Progress
from imagebuilder.model import BuildRequest
from imagebuilder.packer.engine import PackerEngine
from imagebuilder.packer.folder import write_folder
from imagebuilder.packer.hcl import format_hcl, quote
from imagebuilder.packer.render import Supplies, render_folder
from imagebuilder.process import RealRunner

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(shutil.which("packer") is None, reason="packer is not installed"),
]
PLAN = plan_request(BuildRequest(os="debian", target="qemu", engine="packer"))
SUM = "sha256:" + "0" * 64
NULL = 'source "null" "node" {\n  communicator = "none"\n}\nbuild {\n  sources = ["source.null.node"]\n%s}\n'


def engine(tmp_path: Path, **changes: float) -> PackerEngine:
    return PackerEngine(
        runner=RealRunner(), progress=Progress(), log=tmp_path / "log/build.log", downloads=tmp_path / "down",
        environment={}, **changes,  # type: ignore[arg-type]
    )  # fmt: skip


def old(tmp_path: Path) -> PackerEngine:
    made = engine(tmp_path)
    if made.version() >= (1, 7, 0):
        pytest.skip("this packer has its builders as plugins")
    return made


def null_folder(tmp_path: Path, inside: str) -> Path:
    """A folder that any packer builds without a plugin."""
    folder = tmp_path / "folder"
    (folder / "packer-1.6").mkdir(parents=True)
    (folder / "packer-1.6/prepare.sh").write_text('mkdir "$1" && cp ./*.hcl "$1"\n')
    (folder / "a.pkr.hcl").write_text(NULL % inside)
    return folder


def test_a_rendered_folder_is_formatted_and_valid(tmp_path: Path) -> None:
    made = old(tmp_path)
    write_folder(tmp_path / "folder", render_folder(PLAN, Supplies(checksum=SUM)), name=PLAN.id)
    RealRunner().run(["packer", "fmt", "-check", tmp_path / "folder"])
    work = made._prepare(tmp_path / "folder", made.version(), PLAN.target.plugin, None)  # type: ignore[arg-type]
    RealRunner().run(["packer", "fmt", "-check", work])
    result = RealRunner().run(["packer", "validate", work], capture=True, cwd=work)
    assert result.stdout == "", "1.6 says something only when it has something to complain about"
    assert not (work / "plugins.pkr.hcl").exists()
    for name in ("key", "user-data"):
        assert (work / "cloud-init" / name).stat().st_mode & 0o077 == 0


def test_two_copies_have_two_credentials(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    write_folder(folder, render_folder(PLAN), name=PLAN.id)
    for name in ("one", "two"):
        RealRunner().run(["sh", "packer-1.6/prepare.sh", tmp_path / name], cwd=folder)
    assert (tmp_path / "one/cloud-init/key").read_text() != (tmp_path / "two/cloud-init/key").read_text()
    with pytest.raises(CommandError):
        RealRunner().run(["sh", "packer-1.6/prepare.sh", tmp_path / "one"], cwd=folder)


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")), max_size=12))
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_packer_reads_back_what_was_quoted(tmp_path: Path, texts: list[str]) -> None:
    path = tmp_path / "q.pkr.hcl"
    path.write_text(format_hcl(f"locals {{\nout = jsonencode({quote(texts)})\n}}\n"))
    said = RealRunner().run(["packer", "console", path], stdin=b"local.out\n", capture=True).stdout
    # Packer keeps strings in Unicode's composed form.
    assert json.loads(said) == [unicodedata.normalize("NFC", text) for text in texts]


def test_a_failed_command_is_an_error(tmp_path: Path) -> None:
    folder = null_folder(tmp_path, '  provisioner "shell-local" {\n    inline = ["echo no disk >&2", "exit 3"]\n  }\n')
    with pytest.raises(CommandError, match="non-zero exit status: 3") as caught:
        engine(tmp_path).build(folder, plugin="github.com/hashicorp/null")
    assert "no disk" in caught.value.context


def test_wrong_hcl_is_named_with_file_and_line(tmp_path: Path) -> None:
    folder = null_folder(tmp_path, "  bogus = 1\n")
    with pytest.raises(CheckFailedError, match=r"a\.pkr\.hcl:6: Unsupported argument"):
        engine(tmp_path).build(folder, plugin="github.com/hashicorp/null")


def test_the_deadline_ends_packer_and_its_clean_up_is_waited_for(tmp_path: Path) -> None:
    inside = '  provisioner "shell-local" {\n    inline = ["sleep 60"]\n  }\n'
    made = engine(tmp_path, timeout=4.0)
    with pytest.raises(DeadlineError):
        made.build(null_folder(tmp_path, inside), plugin="github.com/hashicorp/null")
    assert "Cleanly cancelled builds" in made.log.read_text()


def test_an_interruption_is_passed_on_and_waited_for(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "import os, signal, time\n"
        "def end(*_):\n    time.sleep(0.3)\n    os.write(1, b'cleaned up\\n')\n    os._exit(1)\n"
        "signal.signal(signal.SIGTERM, end)\nos.write(1, b'ready\\n')\ntime.sleep(60)\n"
    )
    said: list[str] = []

    def follow(line: str) -> None:
        said.append(line)
        if line == "ready":
            signal.raise_signal(signal.SIGINT)

    assert threading.current_thread() is threading.main_thread()
    with pytest.raises(KeyboardInterrupt):
        RealRunner().run([sys.executable, program], on_line=follow, patience=30)
    assert said == ["ready", "cleaned up"]
