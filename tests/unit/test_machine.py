"""QEMU's command line, and the decision between KVM and TCG, without running either."""

from __future__ import annotations

import base64
import itertools
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from imagebuilder.errors import DeadlineError, ToolMissingError, UsageError
from imagebuilder.process import Result
from imagebuilder.vm import accel, machine
from imagebuilder.vm.accel import ANSWER, Accelerator, accelerator, probe_sector
from imagebuilder.vm.boot import BootRequest, _config
from imagebuilder.vm.machine import Firmware, Machine, MachineConfig, arguments, credential_files

TCG = Accelerator(name="tcg", reason="a test")
KVM = Accelerator(name="kvm", reason="a test")
OVMF = Firmware(code=Path("/fw/CODE.fd"), variables=Path("/fw/VARS.fd"))
CONFIG = MachineConfig(disk=Path("/d/disk.qcow2"), disk_format="qcow2", console_log=Path("/l/console.log"))


def options(command: list[str], option: str) -> list[str]:
    return [value for word, value in itertools.pairwise(command) if word == option]


def test_the_disk_is_a_throwaway_overlay() -> None:
    first = options(arguments(CONFIG, TCG, None), "-drive")[0]
    assert "file=/d/disk.qcow2,format=qcow2" in first
    assert "snapshot=on" in first.split(",")


def test_bios_has_no_flash_and_uefi_has_code_and_private_variables() -> None:
    assert not [drive for drive in options(arguments(CONFIG, TCG, None), "-drive") if "pflash" in drive]
    flash = [drive for drive in options(arguments(CONFIG, TCG, OVMF), "-drive") if "pflash" in drive]
    assert flash == [
        "if=pflash,unit=0,format=raw,readonly=on,file=/fw/CODE.fd",
        "if=pflash,unit=1,format=raw,file=vars.fd",
    ]


@pytest.mark.parametrize(
    ("chosen", "accel_option", "cpu"),
    [pytest.param(TCG, "tcg,thread=multi", "max", id="tcg"), pytest.param(KVM, "kvm", "host", id="kvm")],
)
def test_the_accelerator_brings_its_cpu(chosen: Accelerator, accel_option: str, cpu: str) -> None:
    command = arguments(CONFIG, chosen, None)
    assert (options(command, "-accel"), options(command, "-cpu")) == ([accel_option], [cpu])


def test_size_and_forwards() -> None:
    config = replace(CONFIG, memory_mib=512, cpus=3, forwards=((8080, 80), (0, 22)))
    command = arguments(config, TCG, None)
    assert (options(command, "-m"), options(command, "-smp")) == (["512"], ["3"])
    assert options(command, "-netdev") == ["user,id=net,hostfwd=tcp:127.0.0.1:8080-:80,hostfwd=tcp:127.0.0.1:0-:22"]


def test_credentials_travel_in_files_not_in_values() -> None:
    config = replace(CONFIG, credentials={"data": b"very \0 secret", "ssh.authorized_keys.root": b"ssh-x"})
    command = arguments(config, TCG, None)
    assert options(command, "-smbios") == ["type=11,path=credential-0", "type=11,path=credential-1"]
    joined = " ".join(command) + repr(config)
    for value in config.credentials.values():
        assert base64.b64encode(value).decode() not in joined
        assert repr(value) not in joined
    encoded = base64.b64encode(b"very \0 secret")
    assert credential_files(config)["credential-0"] == b"io.systemd.credential.binary:data=" + encoded


def test_further_disks_are_only_read() -> None:
    command = arguments(replace(CONFIG, seeds=(Path("/a,b.iso"), Path("/c"))), TCG, None)
    assert "if=none,id=seed0,file=/a,,b.iso,format=raw,readonly=on" in options(command, "-drive")
    assert [words for words in options(command, "-device") if "seed" in words] == [
        "virtio-blk-pci,drive=seed0", "virtio-blk-pci,drive=seed1",
    ]  # fmt: skip


def test_files_of_the_fw_cfg_device_travel_in_files_too() -> None:
    config = replace(CONFIG, files={"opt/b": b"secret", "opt/a": b"1"})
    command = arguments(config, TCG, None)
    assert options(command, "-fw_cfg") == ["name=opt/a,file=fw-cfg-0", "name=opt/b,file=fw-cfg-1"]
    assert "secret" not in " ".join(command) + repr(config)


@pytest.mark.parametrize(("size", "way"), [(46_000, "credentials"), (46_001, "files"), (0, "")])
def test_a_data_package_takes_the_way_that_it_fits(size: int, way: str) -> None:
    request = BootRequest(disk=Path("/disk"), disk_format="raw", console_log=Path("/log"), data=bytes(size))
    made = _config(request, None)
    assert made.credentials == ({"imagebuilder.data": bytes(size)} if way == "credentials" else {})
    assert made.files == ({"opt/imagebuilder/data": bytes(size)} if way == "files" else {})


def test_commas_in_paths_are_doubled() -> None:
    config = replace(CONFIG, disk=Path("/a,b/disk"), console_log=Path("/a,b/log"))
    command = arguments(config, TCG, None)
    assert "file=/a,,b/disk," in options(command, "-drive")[0]
    assert "path=/a,,b/log" in options(command, "-chardev")[0]


def test_a_restart_is_the_end_unless_it_is_allowed() -> None:
    assert "-no-reboot" in arguments(CONFIG, TCG, None)
    assert "-no-reboot" not in arguments(replace(CONFIG, reboots=True), TCG, None)


def test_missing_firmware_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "OVMF", (("/nowhere/CODE.fd", "/nowhere/VARS.fd"),))
    with pytest.raises(ToolMissingError) as caught:
        machine.find_firmware()
    assert caught.value.hint == "apt-get install ovmf"


def test_other_architectures_are_refused() -> None:
    with pytest.raises(UsageError, match="arm64"):
        Machine(replace(CONFIG, arch="arm64"), TCG)


class FakeRunner:
    """Answers the probe, and nothing else."""

    def __init__(self, answer: Callable[[], int]) -> None:
        self.answer, self.probes = answer, 0

    def run(self, argv: Any, **options: Any) -> Result:
        words = tuple(str(word) for word in argv)
        assert words[0] == accel.QEMU
        assert options["timeout"] == accel.PROBE_SECONDS
        self.probes += 1
        code = self.answer()
        return Result(argv=words, returncode=code, stdout="", tail=("qemu: no",) if code < 0 else (), seconds=0)


def hang() -> int:
    raise DeadlineError("still running")


@pytest.fixture
def qemu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    program = tmp_path / "bin" / accel.QEMU
    program.parent.mkdir()
    program.touch(mode=0o755)
    monkeypatch.setenv("PATH", str(program.parent))
    return program


@pytest.fixture
def device(tmp_path: Path) -> Path:
    node = tmp_path / "kvm"
    node.touch()
    return node


@pytest.mark.parametrize(
    ("answer", "name", "reason"),
    [
        pytest.param(lambda: ANSWER, "kvm", "a guest under KVM answered", id="works"),
        pytest.param(hang, "tcg", "did not answer within 5 s", id="hangs"),
        pytest.param(lambda: 1, "tcg", "QEMU ended with 1", id="refuses"),
        pytest.param(lambda: -6, "tcg", "QEMU ended with -6: qemu: no", id="aborts"),
        pytest.param(lambda: 0, "tcg", "QEMU ended with 0", id="ends without the answer"),
    ],
)
def test_kvm_is_taken_only_when_a_guest_answers(
    qemu: Path, device: Path, tmp_path: Path, answer: Callable[[], int], name: str, reason: str
) -> None:
    runner = FakeRunner(answer)
    found = accelerator(runner, tmp_path / "cache", device=device)
    assert found.name == name
    assert reason in found.reason
    assert accelerator(runner, tmp_path / "cache", device=device) == found
    assert runner.probes == 1, "the second answer comes from memory"


def test_no_device_means_tcg_without_a_guest(qemu: Path, tmp_path: Path) -> None:
    runner = FakeRunner(hang)
    assert accelerator(runner, tmp_path, device=tmp_path / "none").name == "tcg"
    assert runner.probes == 0


def test_another_boot_or_another_qemu_is_asked_again(
    qemu: Path, device: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = FakeRunner(lambda: ANSWER)
    accelerator(runner, tmp_path, device=device)
    qemu.write_text("newer")
    accelerator(runner, tmp_path, device=device)
    assert runner.probes == 2
    (tmp_path / "boot_id").write_text("another")
    monkeypatch.setattr(accel, "BOOT_ID", tmp_path / "boot_id")
    accelerator(runner, tmp_path, device=device)
    assert runner.probes == 3


@pytest.mark.parametrize("broken", [b"", b"{", b"\xff\xfe", b"[]", b'{"key": 1}', b"null"])
def test_a_broken_memory_is_ignored_and_replaced(qemu: Path, device: Path, tmp_path: Path, broken: bytes) -> None:
    (tmp_path / accel.MEMORY).write_bytes(broken)
    assert accelerator(FakeRunner(lambda: ANSWER), tmp_path, device=device).name == "kvm"
    assert json.loads((tmp_path / accel.MEMORY).read_bytes())["name"] == "kvm"


def test_missing_qemu_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("imagebuilder.process.SYSTEM_PATH", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ToolMissingError) as caught:
        accelerator(FakeRunner(hang), tmp_path)
    assert caught.value.hint == "apt-get install qemu-system-x86"


def test_the_probe_is_one_boot_sector() -> None:
    sector = probe_sector()
    assert len(sector) == 512
    assert sector.endswith(b"\x55\xaa")
