"""The system itself: that it is up, on a disk it fills, with the kernel's settings of a node and its own packages."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping

from imagebuilder.verify.booted.answers import sections
from imagebuilder.verify.model import BootedCheck, Subject

CHECKLIST = "https://kubernetes.io/docs/setup/production-environment/container-runtimes/"
BOOT_SLACK = 60  # seconds: a file with a time older than that before power-on was in the image
DISK_SLACK = 16 << 20  # bytes at a disk's end and between its partitions
FILE_SYSTEM_SHARE = 0.9  # of its partition; ext4 keeps 3 to 7 % for itself
CONTROLLERS = ("cpu", "cpuset", "io", "memory", "pids")
MODULES = ("overlay", "br_netfilter")
# As in provision/files/sysctl.conf.
SYSCTL: Mapping[str, str] = {
    "net.ipv4.ip_forward": "1",
    "net.ipv6.conf.all.forwarding": "1",
    "net.bridge.bridge-nf-call-iptables": "1",
    "net.bridge.bridge-nf-call-ip6tables": "1",
    "vm.overcommit_memory": "1",
    "vm.panic_on_oom": "0",
    "kernel.panic": "10",
    "kernel.panic_on_oops": "1",
    "kernel.keys.root_maxkeys": "1000000",
    "kernel.keys.root_maxbytes": "25000000",
    "fs.inotify.max_user_instances": "8192",
    "fs.inotify.max_user_watches": "524288",
    "net.ipv4.ip_local_reserved_ports": "10248-10250,10256",
}
_HELD_WHERE_INSTALLED = (
    "kubelet", "kubeadm", "kubectl", "containerd", "containerd.io", "docker.io", "docker-ce", "docker-cli", "runc",
)  # fmt: skip
_KERNELS = ("linux-image", "kernel", "linux-generic", "linux-virtual")
# What a step of ours removes, and what is made anew: no program misses it.
_NO_LOSS = re.compile(r"/(usr/share/(doc|man|info|locale)|var/(log|cache|lib/apt/lists))(/|$)")


def boot_completed(text: str, _: Subject) -> Iterator[str]:
    """Judge systemd's state; failed units are another check's."""
    state, *jobs = text.split("\n")
    if state not in ("running", "degraded"):
        yield f"the system is {state or 'without systemd'}, not running"
    yield from (f"still to be done: {' '.join(job.split()[1:])}" for job in jobs if job.strip())


def boot_firmware(text: str, subject: Subject) -> Iterator[str]:
    """Judge under which firmware it runs."""
    if text.strip() != subject.firmware[0]:
        yield f"it runs under {text.strip() or 'nothing known'}, and was started under {subject.firmware[0]}"


def failed_units(text: str, _: Subject) -> Iterator[str]:
    """Judge the list of failed units, which ends with a word of the shell's."""
    *units, end = text.rstrip().split("\n")
    if end != "== end":
        yield "systemctl did not list the failed units"
    yield from (f"{unit.split()[0]} failed" for unit in units if unit.strip())


def journal(text: str, subject: Subject) -> Iterator[str]:
    """Judge the journal's lines of priority err or worse: how many there are of any, then those as JSON."""
    count, *lines = text.split("\n")
    if not count.isdigit() or int(count) == 0:
        yield "the journal of this boot is empty"
    known = [re.compile(pattern) for pattern in subject.expected.journal]
    for line in filter(str.strip, lines):
        entry = json.loads(line)
        said = entry.get("MESSAGE") or ""
        said = said if isinstance(said, str) else bytes(said).decode("utf-8", "replace")  # how journald has binary
        unit = entry.get("_SYSTEMD_UNIT") or entry.get("_TRANSPORT") or ""
        whole = f"{unit}: {entry.get('SYSLOG_IDENTIFIER') or ''}: {said}"
        if not any(pattern.search(whole) for pattern in known):
            yield whole


def no_swap(text: str, _: Subject) -> Iterator[str]:
    """Judge /proc/swaps, whose first line is a heading (proc(5))."""
    head, *swaps = text.split("\n")
    if not head.startswith("Filename"):
        yield "the kernel does not say what swap there is"
    yield from (f"swap on {line.split()[0]}" for line in swaps if line.strip())


def root_grown(text: str, _: Subject) -> Iterator[str]:
    """Judge the root file system (options, bytes) against its partition and the disk (lsblk: name, bytes, type)."""
    parts = sections(text)
    blocks = [line.split() for line in parts.get("blocks", "").split("\n") if line]
    sizes = {block[0]: (int(block[1]), block[2]) for block in blocks}
    roots = [name for name, _size, kind, *where in blocks if kind == "part" and where == ["/"]]
    disks = [name for name, (_, kind) in sizes.items() if kind == "disk" and roots and roots[0].startswith(name)]
    if not roots or not disks:
        yield "the root file system is not on a partition of a disk"
        return
    used = sum(size for name, (size, kind) in sizes.items() if kind == "part" and name.startswith(disks[0]))
    if sizes[disks[0]][0] - used > DISK_SLACK:
        yield f"of the disk's {sizes[disks[0]][0]} bytes only {used} are in partitions: {roots[0]} did not grow"
    if int(parts.get("size") or 0) < sizes[roots[0]][0] * FILE_SYSTEM_SHARE:
        yield f"the file system has {parts.get('size')} bytes, its partition {sizes[roots[0]][0]}"
    if "rw" not in parts.get("options", "").split(","):
        yield f"the root file system is mounted {parts.get('options')}"


def cgroups(text: str, _: Subject) -> Iterator[str]:
    """Judge the file system at /sys/fs/cgroup and its controllers."""
    kind, controllers = (*text.strip().split("\n", 1), "")[:2]
    if kind != "cgroup2fs":
        yield f"/sys/fs/cgroup is {kind or 'not there'}, not cgroup2fs"
    yield from (f"no controller {name}" for name in CONTROLLERS if name not in controllers.split())


def modules(text: str, _: Subject) -> Iterator[str]:
    """Judge which kernel modules are loaded, or built in."""
    yield from (f"the kernel module {name} is not loaded" for name in MODULES if name not in text.split())


def sysctl(text: str, _: Subject) -> Iterator[str]:
    """Judge kernel parameters, ``name=value`` a line."""
    found = dict(line.split("=", 1) for line in text.split("\n") if "=" in line)
    for name, wanted in SYSCTL.items():
        if " ".join(found.get(name, "").split()) != wanted:
            yield f"{name} is {found.get(name) or 'not there'}, not {wanted}"


def made_at_boot(text: str, _: Subject) -> Iterator[str]:
    """Judge files that are unique to a machine: its start in seconds since 1970, then name, time and content."""
    start, *files = text.strip().split("\n")
    if not start.isdigit():
        yield "the kernel does not say when it started"
        return
    if not files:
        yield "there is none"
    for line in files:
        name, time, *content = line.split()
        if int(time) < int(start) - BOOT_SLACK:
            yield f"{name} was not made at this boot, and so is the same on every node"
        if content and not re.fullmatch(r"[0-9a-f]{32}", content[0]):
            yield f"{name} holds no id"


def holds(text: str, _: Subject) -> Iterator[str]:
    """Judge which of the installed packages are held, as the package manager itself lists them."""
    parts = {name: part.split("\n") for name, part in sections(text).items()}
    installed, held = (list(filter(None, parts.get(name, []))) for name in ("installed", "held"))
    if not installed:
        yield "the package manager lists no package"

    def is_held(name: str) -> bool:
        # dnf 4: kubelet-0:1.35.8-1.*; dnf 5: "Package name: kubelet"
        return any(line.removeprefix("Package name: ") == name or re.match(rf"{name}-\d", line) for line in held)

    for name in _HELD_WHERE_INSTALLED:
        if name in installed and not is_held(name):
            yield f"{name} is not held"
    kernels = [name for name in installed if name.startswith(_KERNELS)]
    if kernels and not any(line.removeprefix("Package name: ").startswith(_KERNELS) for line in held):
        yield f"no kernel is held (installed: {', '.join(kernels)})"


def database(text: str, _: Subject) -> Iterator[str]:
    """Judge what the package manager says of packages that are not whole; then how many packages there are."""
    *lines, count = text.rstrip().split("\n")
    if not count.isdigit() or int(count) == 0:
        yield "the package manager lists no package"
    yield from (line.strip() for line in lines if line.strip())


def unaltered(text: str, _: Subject) -> Iterator[str]:
    """Judge files that are not as their package has them (rpm's format, which dpkg -V shares); then a count."""
    *lines, count = text.rstrip().split("\n")
    if not count.isdigit() or int(count) == 0:
        yield "the package manager lists no package"
    for line in filter(str.strip, lines):
        match = re.fullmatch(r"(?P<state>missing|[?.A-Z0-9]{9,})\s+(?P<kind>[acdglmnrpu]\s+)?(?P<path>/.*)", line)
        if match is None:
            yield line.strip()
        elif (match["kind"] or "").strip() in ("c", "d", "g") or _NO_LOSS.match(match["path"]):
            continue
        elif match["state"] == "missing" or "5" in match["state"]:
            yield f"{match['path']} is {'missing' if match['state'] == 'missing' else 'not as its package has it'}"


_BTIME = "sed -n 's/^btime //p' /proc/stat"
_COUNT = "if command -v dpkg-query > /dev/null; then dpkg-query -W | wc -l; else rpm -qa | wc -l; fi"
# One program for all. Not the shell's read: dash takes a byte at a time, and the kernel gives a number's first only.
_SYSCTL = f"cd /proc/sys && grep -sH '' {' '.join(name.replace('.', '/') for name in SYSCTL)} | sed 's|/|.|g; s|:|=|'"
_HOLDS = """
echo '== installed'
if command -v dpkg-query > /dev/null; then
    dpkg-query -W -f '${db:Status-Status} ${Package}\\n' | sed -n 's/^installed //p'
    echo '== held'; apt-mark showhold
else
    rpm -qa --qf '%{NAME}\\n'
    echo '== held'; dnf --quiet --disablerepo='*' versionlock list
fi"""

CHECKS = (
    BootedCheck(
        id="boot-completed",
        proves="The system comes up to the end: systemd has nothing left to start.",
        why="A job that hangs at boot delays or hides what depends on it, on every node.",
        link="https://www.freedesktop.org/software/systemd/man/latest/systemctl.html#is-system-running",
        fix="systemctl list-jobs, and systemd-analyze critical-chain, name the unit that is waited for.",
        command="systemctl is-system-running; systemctl list-jobs --no-legend --no-pager 2> /dev/null "
        "| grep -v '^No jobs'",
        judge=boot_completed,
    ),
    BootedCheck(
        id="boot-firmware",
        proves="It boots under each firmware that its target has.",
        why="An image for clouds starts under BIOS on one machine type, and under UEFI on the next.",
        link="https://uefi.org/specs/UEFI/2.10/03_Boot_Manager.html",
        fix="Install GRUB for both: in the BIOS boot partition and as EFI/BOOT/BOOTX64.EFI.",
        command="if [ -d /sys/firmware/efi ]; then echo uefi; else echo bios; fi",
        judge=boot_firmware,
    ),
    BootedCheck(
        id="no-failed-units",
        proves="No unit of systemd has failed.",
        why="A unit that fails on a fresh node fails on all of them; monitoring that counts failures is useless then.",
        link="https://www.freedesktop.org/software/systemd/man/latest/systemctl.html",
        fix="journalctl -u UNIT says why; mask what the image does not need.",
        command="systemctl --failed --no-legend --plain --no-pager && echo '== end'",
        judge=failed_units,
    ),
    BootedCheck(
        id="no-journal-errors",
        proves="The journal of the boot has no line of priority err or worse that is not known.",
        why="Errors of a fresh boot are the image's faults; nobody sees a new one among those that are always there.",
        link="https://www.freedesktop.org/software/systemd/man/latest/journalctl.html",
        fix="Mend what it complains of, or add the line to the family's known ones with the reason.",
        command="journalctl -b -q -n 1 -o cat --no-pager | wc -l; journalctl -b -q -p err -o json --no-pager "
        "--output-fields=MESSAGE,_SYSTEMD_UNIT,SYSLOG_IDENTIFIER,_TRANSPORT | head -n 500",
        judge=journal,
    ),
    BootedCheck(
        id="swap-off",
        proves="No swap is in use.",
        why="kubelet does not start with swap unless told to; memory limits of pods assume none.",
        link="https://kubernetes.io/docs/concepts/cluster-administration/swap-memory-management/",
        fix="Remove swap from /etc/fstab, mask swap.target, and empty zram-generator.conf.",
        command="cat /proc/swaps",
        judge=no_swap,
    ),
    BootedCheck(
        id="root-grown",
        proves="The root file system is writable, and has grown to the disk.",
        why="The image is small: a node that does not grow runs out of disk with its first images.",
        link="https://www.freedesktop.org/software/systemd/man/latest/systemd-repart.service.html",
        fix="systemctl status systemd-repart systemd-growfs-root says what they found.",
        command="echo '== options'; findmnt -no OPTIONS /; echo '== size'; findmnt -bnro SIZE /; "
        "echo '== blocks'; lsblk -blno NAME,SIZE,TYPE,MOUNTPOINT",
        judge=root_grown,
    ),
    BootedCheck(
        id="cgroup-v2",
        proves="The kernel has cgroup v2 with the controllers that kubelet wants.",
        why="kubelet refuses cgroup v1 from 1.35 on.",
        link="https://kubernetes.io/docs/concepts/architecture/cgroups/",
        fix="Remove systemd.unified_cgroup_hierarchy=0 from the kernel's line.",
        command="stat -fc %T /sys/fs/cgroup; cat /sys/fs/cgroup/cgroup.controllers",
        judge=cgroups,
    ),
    BootedCheck(
        id="kernel-modules-loaded",
        proves="overlay and br_netfilter are loaded.",
        why="Containers' file systems are overlays; without br_netfilter pods' bridged traffic passes by all policies.",
        link=CHECKLIST,
        fix="Name them in /etc/modules-load.d; on EL10 install kernel-modules-extra.",
        command=f"for name in {' '.join(MODULES)}; do [ ! -d /sys/module/$name ] || echo $name; done",
        judge=modules,
    ),
    BootedCheck(
        id="sysctl-booted",
        proves="The kernel's parameters are those of a node, once all files of sysctl.d have been read.",
        why="A file of the distribution that is read later undoes ours: only the running kernel tells.",
        link="https://kubernetes.io/docs/tasks/administer-cluster/kubelet-config-file/",
        fix="sysctl --system lists which file set a parameter last.",
        command=_SYSCTL,
        judge=sysctl,
    ),
    BootedCheck(
        id="machine-id-made",
        proves="The machine has an id, which was made at this boot.",
        why="Nodes with the same id get the same DHCP lease and count as one machine.",
        link="https://www.freedesktop.org/software/systemd/man/latest/machine-id.html",
        fix="Leave /etc/machine-id empty in the image.",
        command=f'{_BTIME}; stat -c "%n %Y" /etc/machine-id | tr "\\n" " "; cat /etc/machine-id',
        judge=made_at_boot,
    ),
    BootedCheck(
        id="host-keys-made",
        proves="SSH's host keys were made at this boot.",
        why="Whoever has the image has the private keys of all nodes that share them.",
        link="https://www.rfc-editor.org/rfc/rfc4251#section-4.1",
        fix="Delete /etc/ssh/ssh_host_* in the image, and have a service make them at first boot.",
        command=f'{_BTIME}; for key in /etc/ssh/ssh_host_*_key; do [ ! -e "$key" ] || stat -c "%n %Y" "$key"; done',
        judge=made_at_boot,
    ),
    BootedCheck(
        id="packages-held",
        proves="The package manager itself says that kernel, runtime and Kubernetes packages are held.",
        why="An upgrade on a live node restarts pods, or breaks the pair that was tested.",
        link="https://kubernetes.io/docs/setup/production-environment/tools/kubeadm/install-kubeadm/",
        fix="apt-mark hold, or dnf versionlock add.",
        command=_HOLDS,
        judge=holds,
    ),
    BootedCheck(
        id="package-database-sound",
        proves="The package manager knows of no package that is half installed, or lacks what it depends on.",
        why="The next installation on the node fails, whatever it is for.",
        link="https://man7.org/linux/man-pages/man1/dpkg.1.html",
        fix="dpkg --configure -a and apt-get -f install in the step that left it so.",
        command="if command -v dpkg > /dev/null; then dpkg --audit; else rpm -Va --nofiles --nodigest; fi 2>&1; "
        + _COUNT,
        judge=database,
    ),
    BootedCheck(
        id="packages-unaltered",
        proves="Every file that is no configuration is as its package has it.",
        why="A file that was altered is lost with the next update, and is none that anybody has reviewed.",
        link="https://man7.org/linux/man-pages/man1/dpkg.1.html",
        fix="Put what differs beside the package's file, in /etc or by a drop-in.",
        command="if command -v dpkg > /dev/null; then dpkg -V; else rpm -Va --nodeps; fi 2>&1 "
        "| grep -vE ' /usr/share/(doc|man|info|locale)(/|$)'; " + _COUNT,
        judge=unaltered,
    ),
)  # fmt: skip
