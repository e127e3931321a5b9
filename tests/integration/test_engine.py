"""The direct engine with real packages: what a layer holds, what never gets in, and what is left when it breaks off."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import smallstack
from smallstack import Want, baking, jobs, make_engine, wait_for

from imagebuilder import process
from imagebuilder.content import sha256_file
from imagebuilder.direct import gpt
from imagebuilder.direct.engine import DirectEngine
from imagebuilder.direct.layers import BEING_MADE, Layer
from imagebuilder.direct.sandbox import INSIDE
from imagebuilder.errors import HostError, StepError
from imagebuilder.events import Progress, Tape
from imagebuilder.process import RealRunner

NEEDED = ("mmdebstrap", "unshare", "debugfs", "e2fsck", "sfdisk")
MISSING = [program for program in NEEDED if not process.find(program)]
pytestmark = [
    pytest.mark.bake,
    pytest.mark.skipif(os.geteuid() != 0, reason="the direct engine needs root"),
    pytest.mark.skipif(bool(MISSING), reason=f"not installed: {' '.join(MISSING)}"),
]
PATIENCE = 2.0  # seconds until nothing of a killed bake may run any more
LEAK = "a-secret-of-the-builder"

Family = set[tuple[int, str]]


def processes() -> dict[int, tuple[int, str, str]]:
    """Return parent, state and start of every process."""
    found = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = entry.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        found[int(entry.parent.name)] = (int(fields[1]), fields[0], fields[19])
    return found


def family(pid: int) -> Family:
    """Return a process and all that descend from it, each with its start: numbers are used again."""
    table, found = processes(), {pid}
    while more := {child for child, (parent, _, _) in table.items() if parent in found} - found:
        found |= more
    return {(member, table[member][2]) for member in found if member in table}


def alive(members: Family) -> Family:
    table = processes()
    return {(pid, start) for pid, start in members if pid in table and table[pid][1:] != ("Z", start)} & {
        (pid, entry[2]) for pid, entry in table.items()
    }


def programs(child: process.Child) -> set[bytes]:
    """Return what a bake has running: before setpriv became the program, the kernel does not know yet to end it."""
    return {_read(Path(f"/proc/{pid}/cmdline")).partition(b"\0")[0] for pid, _ in family(child.pid)}


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def mounts() -> list[str]:
    return Path("/proc/self/mountinfo").read_text().splitlines()


def staged(cache: Path) -> list[str]:
    return sorted(path.name for path in (cache / "tmp").iterdir())


def strays() -> set[str]:
    """Return what bootstrapping leaves in the folders for temporary files when nobody cleans up."""
    return {path.name for path in Path("/tmp").glob("mmdebstrap*")}


@dataclass(frozen=True, kw_only=True)
class After:
    """What there is some time after a bake was ended."""

    members: int
    alive: Family
    mounts: list[str]
    strays: set[str]
    code: int


def end(child: process.Child, sig: signal.Signals) -> After:
    """End a bake by a signal to it alone, and look what is left."""
    members, before = family(child.pid), strays()
    os.kill(child.pid, sig)
    code = child.wait(30)
    deadline = time.monotonic() + PATIENCE
    while alive(members) and time.monotonic() < deadline:
        time.sleep(0.02)
    return After(members=len(members), alive=alive(members), mounts=mounts(), strays=strays() - before, code=code)


def until(condition: Callable[[], object], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came to that"
        time.sleep(0.02)


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache folder with a name that is hard on mount options."""
    smallstack.locked()
    return tmp_path_factory.mktemp("cache:with, odd")


@pytest.fixture(scope="session")
def killed(cache: Path) -> After:
    """The first bake of the session is killed while mmdebstrap bootstraps."""
    before = strays()
    with baking(cache, Want(layers=1, fast=False)) as child:
        until(lambda: list(cache.glob("tmp/*/root/var/lib/dpkg/info/*.list")))
        after = end(child, signal.SIGKILL)
        return replace(after, strays=strays() - before)


@dataclass(frozen=True, kw_only=True)
class Stack:
    """The layers that the tests share."""

    engine: DirectEngine
    layers: list[Layer]
    tape: Tape

    @property
    def cache(self) -> Path:
        return self.engine.store.layers.parent


@pytest.fixture(scope="session")
def stack(cache: Path, killed: After) -> Stack:
    """The whole small stack, built once, by the run after a killed one."""
    tape = Tape()
    engine = make_engine(cache, progress=Progress(tape))
    engine.store.sweep()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("IB_LEAK", LEAK)
        layers = engine.build(jobs(Want(layers=4)))
        engine.store.settle()
        return Stack(engine=engine, layers=layers, tape=tape)


@pytest.fixture(scope="session")
def disk(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return smallstack.disk(stack.engine, stack.layers, tmp_path_factory.mktemp("disk"))


@pytest.fixture(autouse=True)
def _nothing_left(request: pytest.FixtureRequest) -> Iterator[None]:
    before = mounts()
    yield
    assert mounts() == before


def attempt(stack: Stack, script: str) -> Path:
    """Run a script as the step of a layer of its own above the runtime, and return what the layer adds."""
    return stack.engine.build(jobs(Want(layers=3, attempt=script)))[-1].root


def test_a_bake_killed_while_it_bootstraps_leaves_nothing(killed: After, stack: Stack) -> None:
    assert killed.members > 4
    assert killed.alive == set()
    assert [line for line in killed.mounts if "odd" in line] == []
    assert killed.strays == set()
    assert [layer.info["name"] for layer in stack.layers] == ["base", "runtime", "upper", "site"]
    assert staged(stack.cache) == []


def test_a_layer_is_what_its_packages_and_steps_say(stack: Stack) -> None:
    base, runtime, upper, _ = (layer.root for layer in stack.layers)
    assert (base / "usr/bin/dpkg").exists()
    assert (runtime / "usr/bin/dbus-daemon").exists()
    assert not (runtime / "usr/bin/dpkg").exists()
    assert (upper / "etc/both").read_text() == "upper\n"
    for layer in stack.layers:
        assert sorted(path.name for path in layer.path.iterdir()) == ["layer.json", "root", "volumes"]
        assert not (layer.root / "usr/sbin/policy-rc.d").exists()
        assert not (layer.root / "run/imagebuilder").exists()


def test_a_bootstrapped_tree_has_nothing_of_this_host(stack: Stack) -> None:
    etc = stack.layers[0].root / "etc"
    assert not (etc / "resolv.conf").exists()
    assert not (etc / "hostname").exists()
    assert not (etc / "machine-id").exists()
    leaks = RealRunner().run(
        ["grep", "-rlF", "--devices=skip", "-e", LEAK, "-e", str(stack.cache), *(layer.root for layer in stack.layers)],
        capture=True, check=False,
    )  # fmt: skip
    assert leaks.stdout == ""


FACTS = """
mkdir /facts; cd /facts
env > env; hostname > hostname; cat /etc/hostname > hostname-file || true; cat /etc/resolv.conf > resolv.conf || true
cat /proc/net/dev > net; cat /proc/self/mountinfo > mounts; ls /dev > dev; id > id; umask > umask; ls / > top
for entry in /proc/[0-9]*; do tr '\\0' ' ' < $entry/cmdline; echo; done > processes
readlink /proc/self/fd/0 > stdin
for path in "$IB_HOST_FILE" /work /root/.cache; do [ ! -e "$path" ] || echo "$path"; done > seen
(sysctl -w kernel.hostname=changed || echo changed > /proc/sys/kernel/hostname) || true
/usr/sbin/policy-rc.d dbus start || echo $? > policy
invoke-rc.d dbus start > invoked 2>&1 || true
! touch /run/imagebuilder/provision/x && ! touch /run/imagebuilder/apt.conf && echo read-only > binds
"""


def test_nothing_of_the_host_gets_into_a_step(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IB_LEAK", LEAK)
    name = socket.gethostname()
    host_file = Path(__file__).resolve()
    facts = attempt(stack, FACTS.replace("$IB_HOST_FILE", str(host_file))) / "facts"
    text = {path.name: path.read_text() for path in facts.iterdir()}
    assert {line.partition("=")[0] for line in text["env"].splitlines() if not line.startswith(("OLDPWD", "_="))} >= {
        "APT_CONFIG", "HOME", "IB_PROVISION", "IB_TRY", "LC_ALL", "PATH", "PWD", "TZ"
    }  # fmt: skip
    assert LEAK not in text["env"]
    assert text["hostname"] == "localhost\n"
    assert socket.gethostname() == name
    assert text["resolv.conf"] == "" and name not in text["hostname-file"].split()
    assert [line.split(":")[0].strip() for line in text["net"].splitlines()[2:]] == ["lo"]
    running = [line for line in text["processes"].splitlines() if line]
    assert "run-steps.sh" in running[0] and len(running) < 6
    points = [line.split()[4] for line in text["mounts"].splitlines()]
    assert points[0] == "/" and not [
        point for point in points if point.startswith(("/work", "/home", str(stack.cache)))
    ]
    assert text["seen"] == ""
    assert "sda" not in text["dev"] and "vda" not in text["dev"] and "kvm" not in text["dev"]
    assert text["id"].startswith("uid=0(root) gid=0(root)")
    assert text["stdin"] == "/dev/null\n"
    assert text["policy"] == "101\n"
    assert "policy-rc.d denied" in text["invoked"] or "not found" in text["invoked"] or text["invoked"] == ""
    assert text["binds"] == "read-only\n"


def test_only_what_changed_is_built_again(stack: Stack) -> None:
    tape = Tape()
    engine = make_engine(stack.cache, progress=Progress(tape))
    layers = engine.build(jobs(Want(layers=2, attempt="true")))
    done = {event.stage: event.cached for event in tape.events if event.kind == "done"}
    assert done == {"layer:base": True, "layer:runtime": False}
    assert layers[0].id == stack.layers[0].id
    tape.events.clear()
    assert engine.build(jobs(Want(layers=2, attempt="true"))) == layers
    assert all(event.cached for event in tape.events if event.kind == "done")


def test_volumes_are_whole_copies_that_their_parent_does_not_see(stack: Stack) -> None:
    blobs = {layer.info["name"]: layer.volumes / "containerd/store/blob" for layer in stack.layers}
    assert not blobs["base"].exists()
    assert not blobs["runtime"].exists()
    assert blobs["upper"].read_text() == "image\n"
    assert blobs["site"].read_text() == "image\nmore\n"
    assert not list(stack.layers[-1].root.glob("var/lib/containerd/*"))


def test_a_layer_on_the_base_alone_sees_nothing_else_and_those_above_see_it(stack: Stack) -> None:
    *lower, site = jobs(Want(layers=4))
    script = "[ ! -e /var/lib/runtime ] && [ ! -e /var/lib/containerd ] && cat /etc/both > /etc/aside"
    steps = ("upper/30-try.sh",)
    aside = replace(lower[2], name="aside", id="a" * 64, steps=steps, env={"IB_TRY": script}, on_base=True)
    above = replace(site, id="b" * 64, steps=(*site.steps, *steps), env={"IB_TRY": "cat /etc/aside /etc/both > /seen"})
    layers = stack.engine.build([*lower, aside, above])
    assert (layers[-2].root / "etc/aside").read_text() == "lower\n"
    assert (layers[-1].root / "seen").read_text() == "lower\nupper\n"
    assert (layers[-1].volumes / "containerd/store/blob").read_text() == "image\nmore\n"


def test_a_failed_step_is_named_and_keeps_nothing(stack: Stack) -> None:
    layers = sorted(path.name for path in stack.engine.store.layers.iterdir())
    script = "setsid sleep 300 & echo last words; cat /no-such-file; echo not reached"
    with pytest.raises(StepError) as caught:
        attempt(stack, script)
    assert caught.value.message == "the step upper/30-try failed"
    assert caught.value.context.splitlines()[-2] == "last words"
    assert "/no-such-file" in caught.value.context.splitlines()[-1]
    assert caught.value.hint == f"the whole log is in {stack.engine.log}"
    assert "last words" in stack.engine.log.read_text()
    assert sorted(path.name for path in stack.engine.store.layers.iterdir()) == layers
    assert staged(stack.cache) == []


def test_packages_that_are_not_in_the_lock_are_found_out(stack: Stack) -> None:
    job = jobs(Want(layers=2, attempt="true # more"))[1]
    wrong = replace(job, id="0" * 64, installed={**job.installed, "dash": "0.1", "missing": "1"})
    with pytest.raises(StepError, match="does not have the packages") as caught:
        stack.engine.build([jobs(Want(layers=1))[0], wrong])
    assert re.search(r"^dash: \S+ instead of 0\.1\nmissing: not installed instead of 1$", caught.value.context)
    assert stack.engine.store.get(wrong.id) is None


def test_what_a_step_leaves_running_ends_with_it(stack: Stack) -> None:
    marker = f"300.{os.getpid()}"
    start = time.monotonic()
    attempt(stack, f"setsid sleep {marker} > /dev/null 2>&1 & sleep {marker} & sleep 0.2")
    assert time.monotonic() - start < 20
    left = [path for path in Path("/proc").glob("[0-9]*/cmdline") if marker.encode() in _read(path)]
    assert left == []


SLEEP = "echo here; sleep 300"
WRITING = "trap '' TERM; echo here; while :; do rm -rf /x; mkdir -p /x/y; for i in 1 2 3; do : > /x/y/$i; done; done"


@pytest.mark.parametrize("sig", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM], ids=lambda sig: sig.name)
@pytest.mark.parametrize("moment", ["configure", "step", "commit", "disk"])
def test_a_bake_that_is_ended_leaves_nothing(stack: Stack, moment: str, sig: signal.Signals) -> None:
    want = {
        "configure": Want(layers=1, base_salt=sig.name),
        "step": Want(layers=2, attempt=SLEEP),
        "commit": Want(layers=2, attempt="true; echo commit", stop_at="sync"),
        "disk": Want(layers=1, disk=True),
    }[moment]
    built = list((stack.cache / "layers").iterdir())
    smallstack.make_engine(stack.cache).tools(stack.layers[0], smallstack.locked()["tools"])
    before = mounts()
    with baking(stack.cache, replace(want, salt=sig.name)) as child:
        if moment == "configure":
            wait_for(child, "progress layer:base")
            until(lambda: b"dpkg" in programs(child))
        elif moment == "step":
            wait_for(child, "note layer:runtime upper/30-try")
        elif moment == "commit":
            wait_for(child, "holding")
            until(lambda: b"/usr/bin/sleep" in programs(child))
        else:
            until(lambda: list(stack.cache.glob("tmp/disk-*/out/core.img")))
        after = end(child, sig)
    assert after.members > 1
    assert after.alive == set()
    assert after.mounts == before
    assert after.code == (130 if sig != signal.SIGKILL else -sig)
    allowed = {layer.id for layer in stack.engine.tools(stack.layers[0], smallstack.locked()["tools"])}
    if moment == "commit":  # the layer is whole; whoever uses it next brings it to the disk
        allowed.add(jobs(replace(want, salt=sig.name))[-1].id)
    assert {path.name for path in (stack.cache / "layers").iterdir()} - {path.name for path in built} <= allowed
    if sig != signal.SIGKILL:
        assert staged(stack.cache) == []
    stack.engine.store.sweep()
    assert staged(stack.cache) == []


def test_after_a_kill_the_next_run_builds_the_layer(stack: Stack) -> None:
    want = Want(layers=2, attempt="[ -e /run/imagebuilder/provision/go ] || sleep 300")
    with baking(stack.cache, want) as child:
        wait_for(child, "note layer:runtime upper/30-try")
        end(child, signal.SIGKILL)
    (stack.cache / "provision/go").touch()
    with baking(stack.cache, want) as child:
        lines = wait_for(child, "baked")
        assert child.wait(10) == 0
    assert lines[-1] == f"baked {jobs(want)[-1].id}"
    assert staged(stack.cache) == []


def test_ctrl_c_while_a_step_writes_and_does_not_listen(stack: Stack) -> None:
    with baking(stack.cache, Want(layers=2, attempt=WRITING)) as child:
        wait_for(child, "note layer:runtime upper/30-try")
        time.sleep(0.3)
        after = end(child, signal.SIGINT)
        said = child.stdout.read().decode() if child.stdout else ""
    assert (after.code, after.alive) == (130, set()), said
    assert staged(stack.cache) == []


def test_two_bakes_at_once_build_a_layer_once(stack: Stack) -> None:
    want = Want(layers=2, attempt="sleep 1; date +%N > /etc/when")
    with baking(stack.cache, want) as first, baking(stack.cache, want) as second:
        ends = [wait_for(child, "baked") for child in (first, second)]
        assert [child.wait(10) for child in (first, second)] == [0, 0]
    assert ends[0][-1] == ends[1][-1]
    ran = [line for lines in ends for line in lines if line == "note layer:runtime upper/30-try"]
    assert len(ran) == 1
    assert staged(stack.cache) == []


@pytest.mark.parametrize("dies", [False, True])
def test_a_bake_that_waits_for_another_ones_layer_says_so(stack: Stack, dies: bool) -> None:
    """When the other one is killed, it makes the layer itself."""
    go = f"{INSIDE}/repository/go"
    want = Want(layers=2, attempt=f": {dies}; while [ ! -e {go} ]; do sleep 0.1; done; date +%N > /etc/when")
    with baking(stack.cache, want) as first:
        wait_for(first, "note layer:runtime upper/30-try")
        with baking(stack.cache, want) as second:
            wait_for(second, f"note layer:runtime {BEING_MADE}")
            if dies:
                first.kill()
                wait_for(second, "note layer:runtime upper/30-try")
            (repository,) = (stack.cache / "tmp").glob("*/repository")
            (repository / "go").touch()
            wait_for(second, "baked")
            assert second.wait(10) == 0
    assert staged(stack.cache) == []


def test_a_damaged_layer_is_made_again_by_the_next_bake_that_wants_it(stack: Stack) -> None:
    want = Want(layers=2, attempt="echo right > /etc/motd")
    with baking(stack.cache, want) as child:
        layer_id = wait_for(child, "baked")[-1].split()[-1]
        assert child.wait(10) == 0
    motd = stack.cache / "layers" / layer_id / "root/etc/motd"
    motd.write_text("wrong")
    with baking(stack.cache, want) as child:
        lines = wait_for(child, "baked")
        assert child.wait(10) == 0
    said = f"note layer:runtime layer {layer_id[:12]} in the cache is damaged"
    assert sum(line.startswith(said) for line in lines) == 1
    assert motd.read_text() == "right\n"
    with baking(stack.cache, want) as child:
        assert not [line for line in wait_for(child, "baked") if "damaged" in line]


def test_ctrl_c_at_the_command_line(tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "imagebuilder", "bake", "--os", "debian", "--target", "raw", "--verify", "none"]
    argv += ["--cache-dir", str(tmp_path / "cache"), "--output", str(tmp_path / "out")]
    child = process.spawn(argv)
    try:
        until(lambda: list((tmp_path / "cache").glob("apt/*")))
        after = end(child, signal.SIGINT)
        said = child.stdout.read().decode() if child.stdout else ""
    finally:
        process.stop(child)
        assert child.stdout is not None
        child.stdout.close()
    assert (after.code, after.alive) == (130, set())
    assert "(interrupted, exit code 130" in said
    assert staged(tmp_path / "cache") == []
    assert not (tmp_path / "out").exists()


def debugfs(root: Path, request: str) -> str:
    result = RealRunner().run(["debugfs", "-R", request, root], capture=True)
    return result.stdout + "\n".join(result.tail)


@pytest.fixture(scope="session")
def root_fs(disk: Path) -> Path:
    """The disk's root file system as a file."""
    layout = gpt.layout(1 << 30, "seed", arch=smallstack.ARCH)
    path = disk.with_name("root.ext4")
    argv = ["dd", f"if={disk}", f"of={path}", "bs=1M", "conv=sparse", "iflag=skip_bytes,count_bytes"]
    RealRunner().run([*argv, f"skip={layout.root.offset}", f"count={layout.root.size}"])
    return path


def test_the_partition_table_is_what_sfdisk_expects(disk: Path) -> None:
    found = json.loads(RealRunner().run(["sfdisk", "-J", disk], capture=True).stdout)["partitiontable"]
    layout = gpt.layout(1 << 30, "seed", arch=smallstack.ARCH)
    assert found["label"] == "gpt"
    starts = [partition["start"] * found["sectorsize"] for partition in found["partitions"]]
    assert layout.esp.offset in starts and layout.root.offset in starts
    assert RealRunner().run(["sfdisk", "--verify", disk], check=False).returncode == 0


def test_the_root_file_system_is_clean_and_is_the_whole_stack(root_fs: Path) -> None:
    RealRunner().run(["e2fsck", "-fn", root_fs])
    for gone in ("/etc/gone", "/etc/goes/a", "/usr/sbin/policy-rc.d", "/run/imagebuilder", "/facts"):
        assert "File not found" in debugfs(root_fs, f"stat {gone}"), gone
    for path, text in {
        "/etc/both": "upper\n", "/etc/goes/b": "y\n", "/var/lib/runtime": "1\n", "/boot/vmlinuz-6.1": "kernel",
        "/var/lib/containerd/store/blob": "image\nmore\n",
    }.items():  # fmt: skip
        assert debugfs(root_fs, f"cat {path}").startswith(text), path
    assert "UUID=" in debugfs(root_fs, "cat /etc/fstab")
    assert re.search(r"Type: directory +Mode: +0755", debugfs(root_fs, "stat /"))
    names = debugfs(root_fs, "ls -p /").split("/")
    assert not {"work", "image", "mnt-image"} & set(names)


def test_two_disks_of_one_stack_are_identical(stack: Stack, disk: Path, tmp_path: Path) -> None:
    """When they are made, and when files of the layers were last read or linked, is not in them."""
    touched = stack.layers[0].root / "etc/debian_version"
    os.utime(touched, ns=(time.time_ns(), touched.stat().st_mtime_ns))
    again = smallstack.disk(stack.engine, stack.layers, tmp_path)
    assert sha256_file(again) == sha256_file(disk)


def test_a_full_disk_is_named_as_such(tmp_path: Path) -> None:
    """In namespaces of its own the bake's cache is a file system with little space."""
    script = (
        f"mount -t tmpfs -o size=40m tmpfs {tmp_path}; exec {sys.executable} {smallstack.__file__} {tmp_path} '{{}}'"
    )
    found = RealRunner().run(["unshare", "--mount", "sh", "-c", script], check=False, timeout=60)
    assert found.returncode == HostError.exit_code
    assert found.tail[-1].startswith("(host,")
