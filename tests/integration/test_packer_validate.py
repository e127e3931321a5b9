"""Every target's HCL parts: Packer 1.6.6 and current Packer accept them, and find their layout right.

1.6.6 is Debian's package. Current Packer, and those plugins that the Go module proxy has, are what
scripts/packer-current.sh builds; of other plugins only what needs none is checked: the layout.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import pytest

from imagebuilder.content import content_id, sha256_files
from imagebuilder.model import Cell
from imagebuilder.packer.folder import digest
from imagebuilder.packer.render import Item
from imagebuilder.process import RealRunner, find
from imagebuilder.targets import load_target
from tests.integration.fake_keystone import keystone
from tests.integration.packer_folders import TARGETS, VALUES, cells, chosen, files_of, render_for_test
from tests.integration.smallstack import CACHE

pytestmark = pytest.mark.integration
ROOT = Path(__file__).parents[2]
SCRIPT = "scripts/packer-current.sh"
BUILT = ("digitalocean", "hashicorp/amazon", "hashicorp/googlecompute", "hashicorp/openstack")
VALID = {"1.6": "", "current": "The configuration is valid."}
SECONDS = 300.0  # each takes one; a busy machine has been seen to need ten
UPLOADED = ("scripts/", "files/")
WORKERS = 2  # Packer starts a process for each part of a folder


@dataclass(frozen=True, kw_only=True)
class Packer:
    """A Packer to test with."""

    name: str
    program: Path
    plugins: Path | None = None

    def run(self, folder: Path, *words: str, env: dict[str, str] | None = None) -> tuple[int, str]:
        """Run it in a folder, with nothing of this machine's own configuration; return its code and output."""
        lines: list[str] = []
        home = folder.parent / "home"
        home.mkdir(exist_ok=True)
        variables = {
            "HOME": str(home), "XDG_CACHE_HOME": str(home), "PACKER_CACHE_DIR": str(home), "CHECKPOINT_DISABLE": "1",
            "AWS_EC2_METADATA_DISABLED": "true", "PACKER_NO_COLOR": "1", **(env or {}),
        }  # fmt: skip
        if self.plugins:
            variables["PACKER_PLUGIN_PATH"] = str(self.plugins)
        result = RealRunner().run(
            [self.program, *words], cwd=folder, env=variables, check=False, on_line=lines.append, timeout=SECONDS
        )
        return result.returncode, "\n".join(lines).strip()


def packer_16() -> Packer:
    program = find("packer")
    if program is None:
        pytest.skip("not installed: packer 1.6.6 (apt-get install packer)")
    version = RealRunner().run([program, "version"], capture=True, env={"CHECKPOINT_DISABLE": "1"}).stdout
    if not version.startswith("Packer v1.6."):
        pytest.skip(f"not installed: packer 1.6.6; {program} is {version.split()[1]}")
    return Packer(name="1.6", program=program)


def packer_current() -> Packer:
    env = {"PYTHON": shutil.which("python3") or "python3"}
    answer = RealRunner().run(["sh", ROOT / SCRIPT, "--if-built"], capture=True, check=False, env=env)
    if answer.returncode:
        pytest.skip(f"not built: current Packer (sh {SCRIPT}, some ten minutes once)")
    folder = Path(answer.stdout.strip())
    return Packer(name="current", program=folder / "packer", plugins=folder / "plugins")


PACKERS = {"1.6": packer_16, "current": packer_current}


@pytest.fixture(params=PACKERS)
def packer(request: pytest.FixtureRequest) -> Packer:
    return PACKERS[request.param]()


CELLS = chosen()
ONE_EACH = list({cell.target: cell for cell in CELLS}.values())


def can(which: str, cell: Cell) -> bool:
    """Return whether a Packer validates the targets of a plugin: 1.6 has all of them built in."""
    return which == "1.6" or load_target(cell.target).plugin.removeprefix("github.com/") in BUILT


def make(cell: Cell, packer: Packer, tmp_path: Path, values: dict[str, object] | None = None) -> Path:
    folder = render_for_test(cell, packer.name, tmp_path / "folder")
    given = VALUES.get(cell.target, {}) if values is None else values
    (folder / "test.auto.pkrvars.json").write_text(json.dumps(given), encoding="utf-8")
    return folder


def check(packer: Packer, folder: Path, env: dict[str, str] | None = None) -> None:
    """Validate a folder. Packer 1.6 has been seen to print errors with rc 0: the output counts too."""
    assert packer.run(folder, "validate", ".", env=env) == (0, VALID[packer.name])


def test_every_target_is_tested() -> None:
    assert {cell.target for cell in CELLS} == set(TARGETS)


@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_layout_is_packers_own(cell: Cell, packer: Packer, tmp_path: Path) -> None:
    assert packer.run(make(cell, packer, tmp_path), "fmt", "-check", "-diff", ".") == (0, "")


@pytest.mark.parametrize(
    ("which", "cell"), [(which, cell) for which in PACKERS for cell in CELLS if can(which, cell)], ids=str
)
def test_packer_accepts_the_folder(which: str, cell: Cell, tmp_path: Path) -> None:
    packer = PACKERS[which]()
    folder = make(cell, packer, tmp_path)
    with keystone() if cell.target == "openstack" else nullcontext() as cloud:
        check(packer, folder, cloud.environment if cloud else None)
        assert cloud is None or cloud.tokens == 1


def read_of(files: Mapping[str, Item]) -> dict[str, str]:
    """Return the sums of what Packer reads to validate a folder: what it uploads later must only be there."""
    return {path: "" if path.startswith(UPLOADED) else digest(item) for path, item in files.items()}


def same(packer: Packer) -> list[str]:
    """Return what tells this Packer, and its plugins, from any other."""
    plugins = sorted(path for path in (packer.plugins or Path("none")).rglob("*") if path.is_file())
    return sha256_files([packer.program, *plugins])


@pytest.mark.skipif("CI" not in os.environ, reason="only CI takes the minutes for every folder")
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("which", PACKERS)
def test_packer_accepts_every_folder(which: str, tmp_path: Path) -> None:
    """A folder that this very Packer has accepted is not shown to it again while what it reads there is the same.

    Of the folder that a user gets: what is made of it for Packer 1.6 has a key and a password of its own each time.
    """
    packer, accepted = PACKERS[which](), CACHE / "packer-accepted"
    accepted.mkdir(parents=True, exist_ok=True)
    tool = same(packer)
    with keystone() as cloud, ThreadPoolExecutor(WORKERS) as pool:

        def look(cell: Cell) -> str:
            mark = accepted / content_id([tool, which, read_of(files_of(cell)), VALUES.get(cell.target, {})])
            if not mark.exists():
                folder = make(cell, packer, tmp_path / str(cell))
                code, said = packer.run(folder, "validate", ".", env=cloud.environment)
                if (code, said) != (0, VALID[which]):
                    return f"{cell}: {said}"
            mark.touch()
            return ""

        refused = list(filter(None, pool.map(look, [cell for cell in cells() if can(which, cell)])))
    assert refused == []


@pytest.mark.parametrize("cell", [cell for cell in ONE_EACH if cell.target in VALUES], ids=str)
def test_what_must_be_given_is_asked_for(cell: Cell, tmp_path: Path) -> None:
    packer = packer_16()
    code, said = packer.run(make(cell, packer, tmp_path, {}), "validate", ".")
    assert code != 0
    assert any(name in said for name in VALUES[cell.target]), said


def test_a_field_that_packer_does_not_know_is_refused(packer: Packer, tmp_path: Path) -> None:
    """Else the tests above prove nothing."""
    cell = next(cell for cell in CELLS if cell.target == "gce")
    folder = make(cell, packer, tmp_path)
    sources = folder / "sources.pkr.hcl"
    sources.write_text(re.sub(r"\bdisk_type ", "disk_sort ", sources.read_text()))
    code, said = packer.run(folder, "validate", ".")
    assert code != 0
    assert "disk_sort" in said


@pytest.mark.parametrize("cell", ONE_EACH, ids=str)
def test_no_secret_has_a_default(cell: Cell, tmp_path: Path) -> None:
    """A secret is given, or comes from the environment; and it is declared as one."""
    text = (render_for_test(cell, "current", tmp_path / "folder") / "variables.pkr.hcl").read_text()
    for block in text.split("\nvariable ")[1:]:
        name = block.split('"')[1]
        if any(word in name for word in ("password", "secret", "token")):
            assert re.search(r"sensitive += true", block), name
            assert re.search(r'default += (env\(|"")', block), name


@pytest.mark.skipif("CI" not in os.environ, reason="only CI must have both Packers")
def test_ci_has_both_packers() -> None:
    assert packer_16().name == "1.6"
    plugins = packer_current().plugins
    assert plugins
    assert all((plugins / "github.com" / plugin).is_dir() for plugin in BUILT)
