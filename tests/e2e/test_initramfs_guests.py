"""The small initramfs in guests with each kind of disk: it finds the root, or says what is missing."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from imagebuilder import resources
from imagebuilder.cells import plan_request
from imagebuilder.direct.disk import find_kernel
from imagebuilder.direct.engine import DirectEngine
from imagebuilder.direct.ext4.layout import lay_out
from imagebuilder.direct.ext4.superblock import Identity
from imagebuilder.direct.initramfs import APPLETS, small_initramfs
from imagebuilder.direct.jobs import layer_jobs
from imagebuilder.direct.layers import Layer, LayerStore
from imagebuilder.direct.sandbox import Overlay, command
from imagebuilder.direct.tree import merge
from imagebuilder.direct.virtual import VirtualDisk, materialize
from imagebuilder.events import Progress, Stage
from imagebuilder.fetch import Fetcher, Materials
from imagebuilder.model import BuildRequest, LockedPackage
from imagebuilder.process import RealRunner
from imagebuilder.resolve import Resolver
from imagebuilder.sources.debs import make_repository
from imagebuilder.targets import load_target
from imagebuilder.vm.accel import CPU, QEMU
from imagebuilder.vm.console import Console, fatal
from tests.e2e.conftest import BOOT_SECONDS, needs_bake, needs_qemu

pytestmark = [pytest.mark.bake, pytest.mark.boot, pytest.mark.timeout(3600), needs_bake, needs_qemu]
ROOT_UUID, EPOCH, SIZE = uuid.UUID("0c6b2a7e-7f43-4ce5-9d14-3a3f4b5c6d7e"), 1_700_000_000, 16 << 20
RUNNER = RealRunner()
Q35, I440FX = "q35", "pc"
SCSI = ("-device", "scsi-hd,drive=disk")
DEVICES = {
    "virtio-blk": (Q35, "-device", "virtio-blk-pci,drive=disk"),
    "virtio-scsi": (Q35, "-device", "virtio-scsi-pci", *SCSI),
    "nvme": (Q35, "-device", "nvme,drive=disk,serial=1"),
    "ahci": (Q35, "-device", "ide-hd,drive=disk"),
    "piix": (I440FX, "-device", "ide-hd,drive=disk"),
    "pvscsi": (Q35, "-device", "pvscsi", *SCSI),
    "lsilogic": (Q35, "-device", "lsi53c895a", *SCSI),
    # mptsas takes no disk whose SAS address is 0, which is what QEMU gives it unless told another one.
    "lsilogic-sas": (Q35, "-device", "mptsas1068", "-device", f"{SCSI[1]},wwn=0x5000c50015ea71ac"),
}
# "lsilogic" is libvirt's name of the LSI 53C895A. VMware's "LSI Logic Parallel" is the LSI 53C1030, which QEMU does not
# have: mptspi, its driver, is not tested.
# The target whose list of drivers is taken, with the devices that machines of its kind have.
LISTS = {
    ("13", "proxmox"): ("virtio-blk", "virtio-scsi", "lsilogic"),
    ("13", "vsphere"): ("pvscsi", "nvme", "lsilogic-sas"),
    ("13", "virtualbox"): ("ahci", "piix"),
    ("12", "qemu"): ("virtio-blk", "virtio-scsi", "nvme"),
}
CASES = [
    pytest.param(release, target, device, id=f"{release}-{target}-{device}")
    for (release, target), devices in LISTS.items()
    for device in devices
]
# A base layer that the other tests need too; its kernel is the one of all lists of that release above.
BASES = {"13": "raw", "12": "qemu"}
INIT = """\
#!/bin/busybox sh
/bin/busybox echo "the init of $(/bin/busybox grep ' / ' /proc/mounts | /bin/busybox tail -n 1) got: $*"
/bin/busybox reboot -f
"""


@dataclass(frozen=True, kw_only=True)
class Stack:
    """A base layer with its kernel, and the tools tree."""

    base: Layer
    tools: Sequence[Layer]
    kernel: str

    @property
    def image(self) -> Path:
        return self.base.root / f"boot/vmlinuz-{self.kernel}"

    def initramfs(self, drivers: Sequence[str]) -> bytes:
        return small_initramfs([self.base], self.tools, self.kernel, drivers, EPOCH)

    def list_of(self, target: str) -> tuple[str, ...]:
        modules = load_target(target).initramfs_modules
        assert not isinstance(modules, str)
        return modules


Stacks = Callable[[str], Stack]


@pytest.fixture(scope="module")
def stacks(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stacks]:
    """The stack of a release; only what the cache does not have is built."""
    log, found = tmp_path_factory.mktemp("stack") / "log", dict[str, Stack]()
    with LayerStore(cache) as store:

        def get(release: str) -> Stack:
            if release not in found:
                found[release] = _stack(release, cache, store, log)
            return found[release]

        yield get


def _stack(release: str, cache: Path, store: LayerStore, log: Path) -> Stack:
    plan = plan_request(BuildRequest(os="debian", release=release, target=BASES[release]))
    progress = Progress()
    lock = Resolver(cache=cache, runner=RUNNER, progress=progress, log=log).resolve(plan)
    fetcher = Fetcher(cache=cache, runner=RUNNER, progress=progress, log=log)

    def repository(packages: Sequence[LockedPackage], out: Path, stage: Stage) -> Path:
        make_repository(packages, fetcher.packages(packages, plan, lock, stage), plan.profile.suite, out, RUNNER)
        return out

    provision = resources.folder("provision")
    base = layer_jobs(plan, lock, Materials(payloads={}, pause=None, images=()), provision)[:1]
    engine = DirectEngine(
        store=store, runner=RUNNER, progress=progress, provision=provision, suite=plan.profile.suite, arch="amd64",
        log=log, make_repository=repository,
    )  # fmt: skip
    layers = engine.build(base)
    return Stack(base=layers[0], tools=engine.tools(layers[0], lock.packages["tools"]), kernel=find_kernel(layers))


@dataclass(frozen=True, kw_only=True)
class Guest:
    """Boots a kernel with an initramfs until the machine restarts, and returns what its console said."""

    folder: Path
    stack: Stack

    def boot(self, drivers: Sequence[str], *device: str, words: str, typed: bytes = b"") -> list[str]:
        (self.folder / "initrd").write_bytes(self.stack.initramfs(drivers))
        machine, *devices = device or (Q35,)
        disk = ["-drive", f"if=none,id=disk,file={self.disk()},format=raw,snapshot=on"] if devices else []
        line = f"root=UUID={ROOT_UUID} ro console=ttyS0 {words}"
        argv = [
            QEMU, "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-machine", machine,
            "-accel", "tcg", "-cpu", CPU["tcg"], "-smp", "1", "-m", "512", "-chardev", "stdio,id=console,signal=off,"
            f"logfile={self.folder / 'console'}", "-serial", "chardev:console", "-kernel", str(self.stack.image),
            "-initrd", str(self.folder / "initrd"), "-append", line, *disk, *devices,
        ]  # fmt: skip
        RUNNER.run(argv, stdin=typed, cwd=self.folder, log=self.folder / "qemu", timeout=BOOT_SECONDS)
        return Console(self.folder / "console").drain()

    def disk(self) -> Path:
        """Make a disk with nothing but a root file system, whose init says that it runs."""
        root, image = self.folder / "root", self.folder / "disk"
        for name in ("bin", "dev", "proc", "sbin", "sys"):
            (root / name).mkdir(parents=True)
        busybox = next(layer.root / "usr/bin/busybox" for layer in reversed(self.stack.tools))
        (root / "bin/busybox").write_bytes(busybox.read_bytes())
        (root / "sbin/init").write_text(INIT)
        for path in (root / "bin/busybox", root / "sbin/init"):
            path.chmod(0o755)
        identity = Identity(uuid=ROOT_UUID, label="root", epoch=EPOCH)
        materialize(VirtualDisk(SIZE, lay_out(merge([root]), SIZE, identity)), image)
        return image


@pytest.mark.parametrize(("release", "target", "device"), CASES)
def test_the_root_is_found_on_each_kind_of_disk(
    release: str, target: str, device: str, stacks: Stacks, tmp_path: Path
) -> None:
    stack = stacks(release)
    lines = Guest(folder=tmp_path, stack=stack).boot(
        stack.list_of(target), *DEVICES[device], words="quiet panic=1 word"
    )
    (said,) = [line for line in lines if line.startswith("the init of")]
    assert " / ext4 ro," in said
    assert said.endswith("got: word")
    assert not [line for line in lines if fatal(line)]


def test_without_its_driver_the_machine_says_which_controller_it_is(stacks: Stacks, tmp_path: Path) -> None:
    stack = stacks("13")
    guest = Guest(folder=tmp_path, stack=stack)
    lines = guest.boot(["virtio_blk", "ext4"], *DEVICES["nvme"], words="quiet rootdelay=1 panic=1")
    (alert,) = [line for line in lines if fatal(line)]
    assert alert == f"ALERT! The root file system root=UUID={ROOT_UUID} does not exist (waited for 1 s)."
    said = "\n".join(lines)
    assert "Drivers that did not load: none" in said
    assert "virtio_blk" in said[said.index("Drivers that there are:") :]
    assert "Disk controller without a driver: 0000:00:" in said
    assert "bc01sc08i02" in said  # PCI's class of NVMe controllers
    assert "the init of" not in said


def test_a_person_gets_a_shell(stacks: Stacks, tmp_path: Path) -> None:
    stack = stacks("13")
    # The kernel's own driver of the line drops what comes while it starts: at first nothing that matters.
    typed = b"\n" * 40 + b"echo said-$((6 * 7)); ls /modules; reboot -f\n"
    guest = Guest(folder=tmp_path, stack=stack)
    lines = guest.boot(["virtio_blk", "ext4"], words="quiet rootdelay=0", typed=typed)
    assert "said-42" in "\n".join(lines)
    assert any("virtio_blk.ko" in line for line in lines)
    assert len([line for line in lines if line.startswith("ALERT!")]) == 1


def inside(stack: Stack, folder: Path, *argv: str) -> list[str]:
    """Run a program in the base layer, with what is in the folder ``upper`` over it."""
    mnt, upper, work = (folder / name for name in ("mnt", "upper", "work"))
    mnt.mkdir()
    work.mkdir()
    tree = Overlay(lower=[stack.base.root], upper=upper, work=work)
    return RUNNER.run(command(mnt, [tree], argv), capture=True).stdout.splitlines()


def test_the_distribution_s_own_programs_can_read_it(stacks: Stacks, tmp_path: Path) -> None:
    stack = stacks("13")
    (tmp_path / "upper").mkdir()
    (tmp_path / "upper/initrd").write_bytes(stack.initramfs(["virtio_blk"]))
    listed = {line.split()[8]: line.split()[0] for line in inside(stack, tmp_path, "lsinitramfs", "-l", "/initrd")}
    assert {
        "init": "-rwxr-xr-x",
        "bin/busybox": "-rwxr-xr-x",
        "modules/virtio_blk.ko": "-rw-r--r--",
    }.items() <= listed.items()
    assert {f"bin/{name}" for name in APPLETS} <= listed.keys()


def test_a_node_that_updates_its_initramfs_gets_the_distribution_s_with_the_same_drivers(
    stacks: Stacks, tmp_path: Path
) -> None:
    stack = stacks("12")
    name = f"boot/initrd.img-{stack.kernel}"
    (tmp_path / "upper/boot").mkdir(parents=True)
    (tmp_path / "upper" / name).write_bytes(stack.initramfs(stack.list_of("qemu")))
    said = inside(stack, tmp_path, "/bin/sh", "-euc", f"update-initramfs -u && lsinitramfs /{name}")
    assert f"update-initramfs: Generating /{name}" in said
    assert "scripts/local" in said  # initramfs-tools' own
    for driver in ("virtio_blk", "virtio_scsi"):
        assert any(line.endswith(f"/{driver}.ko") for line in said)
