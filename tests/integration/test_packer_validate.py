"""Every target's HCL parts: Packer 1.6.6 and current Packer accept them, and find their layout right.

1.6.6 is Debian's package. Current Packer, and those plugins that the Go module proxy has, are what
scripts/packer-current.sh builds; of other plugins only what needs none is checked: the layout.
"""

from __future__ import annotations

import json
import os
import shutil
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import pytest

from imagebuilder.process import RealRunner, find
from tests.integration.fake_keystone import keystone
from tests.integration.packer_folders import CASES, UNATTENDED, Case, render_for_test

pytestmark = pytest.mark.integration
ROOT = Path(__file__).parents[2]
SCRIPT = "scripts/packer-current.sh"
BUILT = ("digitalocean", "hashicorp/amazon", "hashicorp/googlecompute", "hashicorp/openstack")
VALID = {"1.6": "", "current": "The configuration is valid."}
SECONDS = 120.0  # each takes one; a busy machine has been seen to need ten


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


def can(which: str, case: Case) -> bool:
    """Return whether a Packer validates the targets of a plugin: 1.6 has all of them built in."""
    return which == "1.6" or case.plugin in BUILT


def write(folder: Path, files: dict[str, str], values: dict[str, object]) -> Path:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    (folder / "test.auto.pkrvars.json").write_text(json.dumps(values), encoding="utf-8")
    if (folder / "seed/key").is_file():
        (folder / "seed/key").unlink()
        RealRunner().run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / "seed/key"])
    return folder


def check(packer: Packer, folder: Path, env: dict[str, str] | None = None) -> None:
    """Validate a folder. Packer 1.6 has been seen to print errors with rc 0: the output counts too."""
    assert packer.run(folder, "validate", ".", env=env) == (0, VALID[packer.name])


@pytest.mark.parametrize("arch", ("amd64", "arm64"))
@pytest.mark.parametrize("target", CASES)
def test_layout_is_packers_own(target: str, arch: str, packer: Packer, tmp_path: Path) -> None:
    folder = write(tmp_path / "folder", render_for_test(target, packer.name, arch=arch), {})
    assert packer.run(folder, "fmt", "-check", "-diff", ".") == (0, "")


@pytest.mark.parametrize("arch", ("amd64", "arm64"))
@pytest.mark.parametrize(
    ("target", "which"), [(name, which) for which in PACKERS for name, case in CASES.items() if can(which, case)]
)
def test_packer_accepts_the_parts(target: str, which: str, arch: str, tmp_path: Path) -> None:
    packer, case = PACKERS[which](), CASES[target]
    folder = write(tmp_path / "folder", render_for_test(target, packer.name, arch=arch), case.values)
    with keystone() if target == "openstack" else nullcontext() as cloud:
        check(packer, folder, cloud.environment if cloud else None)
        assert cloud is None or cloud.tokens == 1


@pytest.mark.parametrize("kind", UNATTENDED)
def test_every_unattended_install_is_accepted(kind: str, tmp_path: Path) -> None:
    packer = packer_16()
    folder = write(tmp_path / "folder", render_for_test("virtualbox", "1.6", unattended=kind), {})
    assert packer.run(folder, "fmt", "-check", "-diff", ".") == (0, "")
    check(packer, folder)


@pytest.mark.parametrize("target", [name for name, case in CASES.items() if case.values])
def test_what_must_be_given_is_asked_for(target: str, tmp_path: Path) -> None:
    packer = packer_16()
    folder = write(tmp_path / "folder", render_for_test(target, "1.6"), {})
    code, said = packer.run(folder, "validate", ".")
    assert code != 0
    assert any(name in said for name in CASES[target].values), said


def test_a_field_that_packer_does_not_know_is_refused(packer: Packer, tmp_path: Path) -> None:
    """Else the tests above prove nothing."""
    files = render_for_test("gce", packer.name)
    files["sources.pkr.hcl"] = files["sources.pkr.hcl"].replace("disk_type ", "disk_sort ")
    code, said = packer.run(write(tmp_path / "folder", files, CASES["gce"].values), "validate", ".")
    assert code != 0
    assert "disk_sort" in said


def test_no_secret_has_a_default_in_the_parts() -> None:
    """A secret comes from the environment or is given: no part has one, and each is declared sensitive."""
    for target in CASES:
        for block in render_for_test(target, "current")["variables.pkr.hcl"].split("\nvariable ")[1:]:
            name = block.split('"')[1]
            if any(word in name for word in ("password", "secret", "token")):
                assert "sensitive   = true" in block, name
                assert "default     = env(" in block, name


@pytest.mark.skipif("CI" not in os.environ, reason="only CI must have everything")
def test_ci_has_both_packers() -> None:
    assert packer_16().name == "1.6"
    plugins = packer_current().plugins
    assert plugins
    assert all((plugins / "github.com" / plugin).is_dir() for plugin in BUILT)
