"""A real Packer builds a node on top of a bare image of ours: it must pass what the direct engine's image passes."""

from __future__ import annotations

import datetime
import json
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from imagebuilder import process
from imagebuilder.bake import BakeOptions, BakeResult, bake
from imagebuilder.cells import plan_request
from imagebuilder.config import load_config
from imagebuilder.content import content_id, sha256_file, write_atomic
from imagebuilder.events import Progress
from imagebuilder.model import BuildRequest
from imagebuilder.packer.engine import PackerEngine
from imagebuilder.packer.folder import digest
from imagebuilder.packer.render import Supplies, render_folder
from imagebuilder.process import RealRunner
from imagebuilder.verify.subject import Said
from imagebuilder.vm.boot import RunningGuest
from tests.e2e.conftest import EXAMPLE, ROOT, Bake, Boot, Prove, needs_bake, needs_qemu, telling
from tests.e2e.test_images import HELLO, get, out
from tests.integration.smallstack import CACHE

needs_packer = pytest.mark.skipif(process.find("packer") is None, reason="needs packer")
pytestmark = [
    pytest.mark.bake, pytest.mark.boot, pytest.mark.timeout(3600), needs_bake, needs_qemu, needs_packer,
]  # fmt: skip
# There is no network to look for a cloud in: the seed of the build, or none.
OVERLAY = Path(__file__).with_name("no-cloud")
QUESTIONS = (
    "command -v cloud-init && cloud-init status || true",
    "ls /home",
    "ls -d /var/lib/imagebuilder-build 2>/dev/null || echo none",
)


def make(request: BuildRequest, output: Path, cache: Path, *var_files: Path) -> BakeResult:
    options = BakeOptions(output=output, cache=cache, var_files=var_files)
    return bake(plan_request(request), options=options, runner=RealRunner(), progress=Progress())


def kept(request: BuildRequest, source: str, output: Path, cache: Path, values: Path) -> BakeResult:
    """Return what Packer makes, or made this week by the same program of the same: it takes a quarter of an hour.

    Args:
        request: what is baked.
        source: SHA-256 of the image that Packer starts from.
        output: where it is made.
        cache: the user's cache.
        values: file with values of Packer's variables.
    """
    plan, runner = plan_request(request), RealRunner()
    packer = PackerEngine(runner=runner, progress=Progress(), log=output, downloads=cache).version()
    files = render_folder(plan, Supplies(images=tuple(Path(image) for image in request.images)))
    week = datetime.date.today().isocalendar()[:2]
    program = [sha256_file(path) for path in sorted((ROOT / "imagebuilder").rglob("*.py"))]
    key = content_id([{path: digest(item) for path, item in files.items()}, program, source, packer, week])
    folder = CACHE / f"packer-node-{key[:16]}"
    if not folder.exists():
        make(request, output, cache, values)
        for old in CACHE.glob("packer-node-*"):
            shutil.rmtree(old)
        shutil.copytree(output, folder.with_suffix(".new"))
        folder.with_suffix(".new").rename(folder)
    (found,) = folder.iterdir()
    manifest = json.loads((found / "manifest.json").read_bytes())
    return BakeResult(folder=found, artifact=found / manifest["artifact"]["file"], manifest=manifest, unchanged=True)


def test_packer_makes_the_same_node(baked: Bake, cache: Path, tmp_path: Path, booted: Boot, proven: Prove) -> None:
    """What it makes passes the very checks that the direct engine's image passes: that is the test of parity."""
    bare = baked(bare=True, overlays=(OVERLAY,)).artifact
    assert bare is not None
    values = tmp_path / "base.pkrvars.hcl"
    sha256 = (bare.parent / "SHA256SUMS").read_text().split()[0]
    text = f'source_image_url = "{bare}"\nsource_image_checksum = "sha256:{sha256}"\n'
    write_atomic(values, text, mode=0o600)
    config = load_config(EXAMPLE)
    wanted = BuildRequest(
        os="debian", target="qemu", engine="packer", overlays=config.overlay, images=config.image
    )  # fmt: skip
    result = kept(wanted, sha256, tmp_path / "out", cache, values)
    assert result.manifest["capabilities"]["kubelet"].startswith("1.35.")
    said: list[str] = []

    def ask(guest: RunningGuest) -> Iterator[str]:
        yield get(f"http://127.0.0.1:{guest.machine.host_port(8080)}/")
        yield from (out(guest, question) for question in QUESTIONS)

    opener = telling(partial(booted, result, until="pods", forwards=((0, 8080),)), ask, said)
    report, wrong = proven(result.folder, said=Said(firmware=("bios",)), opener=opener)
    assert wrong == {}
    assert [boot.firmware for boot in report.boots] == ["bios"]
    pod, cloud_init, homes, build = said
    assert HELLO in pod
    # cloud-init, which is in the bare image, is off here: it does not make its default user anew.
    assert cloud_init.endswith("disabled")
    assert (homes, build) == ("", "none")
