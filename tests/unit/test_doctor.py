"""The doctor: what it asks the host, and what it makes of the answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from imagebuilder import doctor, userns
from imagebuilder.doctor import AREAS, CHECKS, Answer, Check, Finding, Host, examine, install_command
from imagebuilder.errors import DeadlineError, ToolMissingError
from imagebuilder.process import Result, Runner
from imagebuilder.vm.accel import Accelerator
from imagebuilder.vm.machine import Firmware

MOUNT = "--mount --propagation private -- mount -t overlay overlay -o lowerdir=lower,upperdir=upper,workdir=work"

ROOT = "root, or user namespaces"


@dataclass
class FakeRunner:
    """Answers the doctor's two commands, and refuses any other."""

    go: str = "go1.99.0"
    overlay: tuple[int, str] = (0, "")
    seen: list[tuple[str, ...]] = field(default_factory=list)

    def run(
        self,
        argv: Sequence[str | Path],
        *,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        stdin: bytes = b"",
        capture: bool = False,
        check: bool = True,
        log: Path | None = None,
        on_line: Callable[[str], None] | None = None,
        timeout: float | None = None,
    ) -> Result:
        words = tuple(map(str, argv))
        self.seen.append(words)
        assert timeout, "the doctor never waits for ever"
        match words:
            case ("/bin/go", "env", "GOVERSION"):
                code, stdout, tail = 0, f"{self.go}\n", ""
            case ("unshare", *_):
                assert MOUNT in " ".join(words)
                assert cwd is not None and {path.name for path in cwd.iterdir()} == {"lower", "upper", "work", "mnt"}
                (code, tail), stdout = self.overlay, ""
            case _:
                raise AssertionError(f"unexpected command {words}")
        return Result(argv=words, returncode=code, stdout=stdout, tail=(tail,) if tail else (), seconds=0.0)


def kvm(runner: Runner, cache: Path) -> Accelerator:
    return Accelerator(name="kvm", reason="a guest under KVM answered")


def tcg(runner: Runner, cache: Path) -> Accelerator:
    return Accelerator(name="tcg", reason="there is no /dev/kvm")


def no_firmware() -> Firmware:
    raise ToolMissingError("the UEFI firmware OVMF is not installed", hint="apt-get install ovmf")


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    """A host that has everything."""
    monkeypatch.setattr(doctor, "_keyrings", lambda host: Answer(good=True, text="there"))
    return Host(
        runner=FakeRunner(), cache=tmp_path / "cache", output=tmp_path / "out", root=True,
        find=lambda name: Path("/bin") / name, firmware=lambda: Firmware(code=tmp_path, variables=tmp_path),
        accelerate=kvm, has_pip=False, has_boto3=True,
    )  # fmt: skip


def only(name: str) -> list[Check]:
    return [check for check in CHECKS if check.name == name]


def one(host: Host, name: str) -> Finding:
    (finding,) = examine(host, only(name))
    return finding


def test_a_good_host_lacks_nothing(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "CACHE_GIB", 0.0)
    checks = [check for check in CHECKS if not check.name.startswith(("archive", "room"))]
    findings = examine(host, checks)
    assert {finding.state for finding in findings} == {"ok"}
    assert {finding.hint for finding in findings} == {""}
    assert not (host.cache.exists() or host.output.exists())


def test_missing_programs_are_named_with_the_command_that_installs_them(host: Host) -> None:
    bare = replace(host, find=lambda name: None)
    findings = examine(bare, [check for check in CHECKS if check.package and check.name != "UEFI firmware"])
    missing = doctor.missing_for_baking(findings)
    assert [finding.name for finding in missing if finding.package == "util-linux"] == ["unshare", "setpriv"]
    assert install_command(missing).startswith("apt-get install util-linux mount")
    qemu = next(finding for finding in findings if finding.name == "qemu-system-x86_64")
    assert (qemu.area, qemu.state, qemu.hint) == ("boot", "missing", "apt-get install qemu-system-x86")
    assert qemu not in missing


def test_an_ordinary_user_without_the_programs_for_it_cannot_bake(host: Host, tmp_path: Path) -> None:
    user = replace(host, root=False, users=users(tmp_path, find=lambda name: None))
    finding = one(user, ROOT)
    assert (finding.state, finding.hint) == ("missing", "apt-get install uidmap, or run it as root")
    assert finding.text == "newuidmap is not installed: an ordinary user cannot bake here"


def test_a_user_with_subordinate_ids_can_bake(host: Host, tmp_path: Path) -> None:
    user = replace(host, root=False, users=users(tmp_path))
    assert (one(user, ROOT).state, one(user, ROOT).text) == ("ok", "an ordinary user with subordinate ids")
    assert one(user, "overlayfs").state == "ok"
    assert isinstance(user.runner, FakeRunner)
    (words,) = user.runner.seen
    assert words[1:4] == ("--user", "--map-root-user", "--mount")
    assert words[-2].endswith(",userxattr")


def users(folder: Path, find: Callable[[str], Path | None] = Path) -> userns.Host:
    """A host as far as user namespaces go."""
    (folder / "self/ns/user").mkdir(parents=True)
    for name in ("subuid", "subgid"):
        (folder / name).write_text("4000000001:100000:65536\n")
    return userns.Host(proc=folder, etc=folder, find=find, uid=4_000_000_001, gid=4_000_000_001)


def test_overlay_is_really_mounted_where_the_cache_is(host: Host) -> None:
    assert one(host, "overlayfs").text == f"works in {host.cache.parent}"
    failing = replace(host, runner=FakeRunner(overlay=(32, "mount: wrong fs type")))
    finding = one(failing, "overlayfs")
    assert finding.state == "missing"
    assert finding.text == f"an overlay cannot be mounted in {host.cache.parent}: mount: wrong fs type"
    assert "--cache-dir" in finding.hint


def test_boto3_is_only_advised(host: Host) -> None:
    finding = one(replace(host, has_boto3=False), "boto3")
    assert (finding.state, finding.hint) == ("advice", "pip install 'imagebuilder[s3]'")


def test_apt_is_advised_because_a_mirror_brings_it_along(host: Host) -> None:
    assert one(host, "apt, and mmdebstrap").text == "/bin/apt-get, /bin/mmdebstrap"
    finding = one(replace(host, find=lambda name: None if name == "mmdebstrap" else Path(name)), "apt, and mmdebstrap")
    assert (finding.state, finding.hint) == ("advice", "apt-get install apt mmdebstrap")
    assert finding.text.startswith("not installed: mmdebstrap; name a mirror (--mirror debian=URL)")
    assert {check.name for check in CHECKS}.isdisjoint({"gpg", "dpkg-deb", "apt-get"})


def test_keyring_is_that_of_the_profiles_or_our_own(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    real = Path.is_file
    monkeypatch.setattr(Path, "is_file", lambda path: not str(path).startswith("/usr/share/keyrings") and real(path))
    found = one(host, "archive keyring")
    assert found.state == "ok"
    assert found.text.endswith("os_profiles/keyrings/debian-archive-keyring.gpg")
    monkeypatch.setattr(Path, "is_file", lambda path: path.suffix != ".gpg" and real(path))
    found = one(host, "archive keyring")
    assert (found.state, found.hint) == ("missing", "apt-get install debian-archive-keyring")
    assert found.text == "the keyring /usr/share/keyrings/debian-archive-keyring.gpg is not on this host"


@pytest.mark.parametrize(
    ("version", "pip", "state", "said"),
    [
        pytest.param("go1.99.0", False, "ok", "/bin/go is 1.99.0", id="new"),
        pytest.param("go1.99rc1", False, "ok", "/bin/go is 1.99rc1", id="candidate"),
        pytest.param("go1.20.1", True, "ok", "is fetched with pip", id="old-but-pip"),
        pytest.param("go1.20.1", False, "missing", "there is no pip", id="old"),
        pytest.param("", False, "missing", "/bin/go is broken", id="broken"),
    ],
)
def test_go(host: Host, version: str, pip: bool, state: str, said: str) -> None:
    finding = one(replace(host, runner=FakeRunner(go=version), has_pip=pip), "go")
    assert finding.state == state
    assert said in finding.text


def test_no_go_is_no_obstacle_with_pip(host: Host) -> None:
    finding = one(replace(host, find=lambda name: None, has_pip=True), "go")
    assert finding.state == "ok"
    assert finding.text.startswith("there is no go; Go 1.")


def test_emulation_and_missing_firmware_are_advice(host: Host) -> None:
    finding = one(replace(host, accelerate=tcg), "accelerator")
    assert (finding.state, finding.text) == ("advice", "tcg: there is no /dev/kvm")
    finding = one(replace(host, firmware=no_firmware), "UEFI firmware")
    assert (finding.state, finding.hint) == ("advice", "apt-get install ovmf")


@pytest.mark.parametrize("error", [DeadlineError("too slow"), OSError(30, "Read-only file system")])
def test_a_check_that_cannot_be_done_is_not_good(host: Host, error: Exception) -> None:
    def fail(host: Host) -> Answer:
        raise error

    (finding,) = examine(host, [Check(area="bake", name="x", probe=fail, hint="do")])
    assert (finding.state, finding.text, finding.hint) == ("missing", str(error), "do")


def test_room_is_only_advice(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "CACHE_GIB", 1e9)
    finding = one(host, "room for the cache")
    assert finding.state == "advice"
    assert f"free in {host.cache.parent}" in finding.text


def test_every_check_says_what_to_do() -> None:
    assert [check.name for check in CHECKS if not (check.package or check.hint)] == []
    assert {check.area for check in CHECKS} == set(AREAS)
    assert len({check.name for check in CHECKS}) == len(CHECKS)
