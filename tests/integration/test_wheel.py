"""The built wheel works outside of the checkout, its data folders with it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from imagebuilder.process import RealRunner, inherited

pytestmark = pytest.mark.integration
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh environment with the wheel in it; returns its bin folder."""
    folder = tmp_path_factory.mktemp("wheel")
    runner, pip = RealRunner(), inherited("PIP_")
    runner.run([sys.executable, "-m", "build", "--wheel", "--outdir", folder, ROOT], env=pip, timeout=300)
    (wheel,) = folder.glob("*.whl")
    runner.run([sys.executable, "-m", "venv", folder / "env"])
    runner.run([folder / "env/bin/python", "-m", "pip", "install", "--quiet", wheel], env=pip, timeout=300)
    return folder / "env/bin"


def test_the_wheel_plans_outside_of_the_checkout(installed: Path, tmp_path: Path) -> None:
    argv = [installed / "imagebuilder", "plan", "--os", "debian", "--target", "qemu", "--json"]
    plan = json.loads(RealRunner().run(argv, cwd=tmp_path, capture=True).stdout)
    assert plan["id"].startswith("debian-13-amd64-qemu-k1.")
    assert [layer["name"] for layer in plan["layers"]] == ["base", "runtime", "kubernetes", "site"]


def test_the_wheel_has_every_data_file_of_the_checkout(installed: Path) -> None:
    (site,) = (installed.parent / "lib").glob("python*/site-packages/imagebuilder")
    for name in ("os_profiles", "targets", "provision", "components", "packer", "verification"):
        here = {path.relative_to(ROOT / name) for path in (ROOT / name).rglob("*") if path.is_file()}
        there = {
            path.relative_to(site / "_data" / name) for path in (site / "_data" / name).rglob("*") if path.is_file()
        }
        assert {path for path in here if "__pycache__" not in path.parts} <= there
    for script in (site / "direct").glob("*.sh"):
        assert script.read_bytes() == (ROOT / "imagebuilder/direct" / script.name).read_bytes()
    start = "provision/services/kubelet/systemd/root/usr/libexec/imagebuilder/kubelet-start"
    assert (site / "_data" / start).stat().st_mode & 0o111, "programs of services stay executable"


def test_the_wheel_lists_steps(installed: Path, tmp_path: Path) -> None:
    result = RealRunner().run([installed / "imagebuilder", "steps"], cwd=tmp_path, capture=True)
    assert "kubelet" in result.stdout
