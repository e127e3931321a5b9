"""The shell of the recipe: linted, run twice in a small root tree, and failing loudly."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from fakeroot import FakeRoot, write_program, written
from local_archive import Key
from steptree import (
    BUILD_TRACES,
    ENV,
    PAUSE,
    PROVISION,
    SYSTEMS,
    TRUSTED,
    System,
    give_repositories,
    make_root,
    pem,
    repositories,
)

from imagebuilder import process, resources
from imagebuilder.direct.sandbox import Bind
from imagebuilder.errors import CommandError

pytestmark = pytest.mark.integration
root_only = pytest.mark.skipif(os.geteuid() != 0, reason="a sandbox needs root")

DEBIAN = SYSTEMS["debian"]
STEPS = DEBIAN.steps
KERNEL = DEBIAN.kernels[-1]
SERVICES = sorted(path for path in PROVISION.glob("services/**/root/**/*") if path.is_file())
SCRIPTS = [
    *sorted(PROVISION.rglob("*.sh")),
    *(path for path in SERVICES if path.read_bytes().startswith(b"#!/bin/sh")),
    *sorted(resources.folder("provision").parent.glob("scripts/*.sh")),
    *sorted((Path(process.__file__).parent / "direct").glob("*.sh")),
]
REWRITTEN = {  # with the same content
    "initramfs/10-initramfs.sh": {f"root/boot/init{name}" for system in SYSTEMS.values() for kernel in system.kernels
                             for name in (f"rd.img-{kernel}", f"ramfs-{kernel}.img")},
    "site/90-clean.sh": {"root/etc/machine-id"} | {f"root/{name}" for system in SYSTEMS.values()
                         for name in {**BUILD_TRACES, **system.texts} if name.startswith("var/log/")},
}  # fmt: skip


CHANGING = (
    "apt-get install", "apt-get purge", "dnf install", "dnf remove", "useradd", "ctr images pull", "systemctl stop",
)  # fmt: skip


def linter(program: str) -> Any:
    return pytest.param(program, marks=pytest.mark.skipif(not process.find(program), reason=f"{program} is missing"))


@pytest.mark.parametrize("program", [linter("dash"), linter("shellcheck")])
def test_every_script_is_clean(program: str) -> None:
    options = {"dash": ["-n"], "shellcheck": ["-x", "-s", "sh"]}[program]
    for script in SCRIPTS:
        process.RealRunner().run([program, *options, script], cwd=PROVISION, timeout=60)


@pytest.fixture(scope="module")
def keys() -> Iterator[tuple[Key, Key]]:
    made = (Key("kubernetes"), Key("docker"))
    yield made
    for key in made:
        key.close()


@pytest.fixture
def root(tmp_path: Path) -> FakeRoot:
    """A tree as Debian's packages would have left it, with traces of a build in it."""
    return make_root(tmp_path, DEBIAN)


@root_only
@pytest.mark.parametrize(
    ("system", "step"),
    [pytest.param(system, step, id=f"{name}-{step}") for name, system in SYSTEMS.items() for step in system.steps],
)
def test_a_step_that_runs_again_changes_nothing(
    tmp_path: Path, system: System, step: str, keys: tuple[Key, Key]
) -> None:
    root = make_root(tmp_path, system)
    give_repositories(root, *repositories(system, *keys))
    root.steps(step)
    before, first = root.snapshot(), root.calls()
    root.steps(step)
    after = root.snapshot()
    changed = set(written(before, after))
    assert changed - REWRITTEN.get(step, set()) == set()
    assert [name for name in changed if before[name][-1] != after[name][-1]] == []
    assert [call for call in root.calls() if call.startswith(CHANGING)] == []
    assert not any(call.startswith("refuse") for call in first)


@root_only
def test_where_the_engine_makes_the_initramfs_the_step_only_says_what_later_ones_have(root: FakeRoot) -> None:
    root.run("/bin/sh", "/provision/run-steps.sh", "site/12-initramfs.sh")
    assert (root.path / "etc/initramfs-tools/modules").read_text() == "virtio_blk\next4\n"
    assert not list(root.path.glob("boot/initrd.img-*"))
    assert not [call for call in root.calls() if call.startswith("update-initramfs")]


@root_only
def test_what_the_steps_leave(root: FakeRoot) -> None:
    done = root.steps(*STEPS)
    assert [line for line in done.tail if line.startswith("@@")][-1] == "@@steps-done"
    tree = root.path
    assert (tree / "etc/fstab").read_text() == "/dev/a / ext4 rw 0 1\n"
    for gone in ("etc/hostname", "swapfile", "etc/ssh/ssh_host_ed25519_key", "root/.ssh", "var/log/old.gz"):
        assert not (tree / gone).exists(), gone
    for empty in ("etc/machine-id", "var/log/syslog"):
        assert (tree / empty).read_bytes() == b"", empty
    assert [path.name for path in (tree / "etc/apparmor.d/disable").iterdir()] == ["complains"]
    for unit in ("swap.target", "fstrim.timer", "apt-daily.timer"):
        assert (tree / "etc/systemd/system" / unit).readlink() == Path("/dev/null")
    assert f'sandbox_image = "{PAUSE}"' in (tree / "etc/containerd/config.toml").read_text().replace("'", '"')
    manifest = tree / "etc/kubernetes/manifests/pod.yaml"
    assert (manifest.stat().st_uid, manifest.stat().st_mode & 0o777) == (0, 0o644)
    assert (tree / f"boot/initrd.img-{KERNEL}").exists()
    ours = tree.parent / "upper/lib/imagebuilder"
    facts = json.loads((ours / "image.json").read_text())
    assert (facts["id"], facts["kubelet"], facts["init"]) == ("debian-13-amd64-k1.35", "1.35.8", "systemd")
    assert facts["runtimes"] == ["containerd", "docker"]
    assert list(ours.glob("__pycache__/agent.*.pyc"))
    assert (tree.parent / "upper/sbin/imagebuilder-agent").stat().st_mode & 0o777 == 0o755
    assert not list(tree.rglob("*.imagebuilder-new"))
    calls = root.calls()
    assert "apt-get install docker.io containerd" in calls
    assert "apt-mark hold docker.io" in calls
    assert "apt-mark hold not-installed" not in calls
    assert f"ctr images label {PAUSE} io.cri-containerd.pinned=pinned" in calls
    assert (tree / "etc/imagebuilder/trust.d/00-demo.pem").read_bytes() == TRUSTED
    assert f"ctr images import --local {ENV['IB_PAUSE_ARCHIVE']}" in calls


@root_only
@pytest.mark.parametrize(
    ("key", "said"),
    [
        (ec.generate_private_key(ec.SECP256R1()), "holds a private key"),
        (ec.generate_private_key(ec.SECP384R1()).public_key(), "is not of the curve P-256"),
        (None, "is not a public key in PEM"),
    ],
    ids=["private", "curve", "nothing"],
)
def test_what_is_no_public_key_is_not_trusted(root: FakeRoot, key: Any, said: str) -> None:
    data = pem(key) if key else b"ssh-ed25519 AAAA\n"
    (root.path / "materials/trust/00-demo.pem").write_bytes(data)
    with pytest.raises(CommandError) as caught:
        root.steps("site/35-trust.sh")
    assert f"00-demo.pem {said}" in caught.value.context
    assert not (root.path / "etc/imagebuilder").exists()


@root_only
def test_installing_asks_only_for_what_is_missing(root: FakeRoot) -> None:
    (root.path / "packages/socat").touch()
    root.shell("pkg_install socat ethtool jq; pkg_install socat jq")
    assert root.calls() == ["apt-get update", "apt-get install ethtool jq"]
    root.shell("pkg_install")
    assert root.calls() == []


@root_only
def test_a_stand_in_refuses_what_it_does_not_know(root: FakeRoot) -> None:
    with pytest.raises(CommandError, match="exit code 64") as caught:
        root.shell("apt-get --fix-broken install x")
    assert "does not know: --fix-broken" in caught.value.context


@root_only
def test_put_replaces_only_what_differs(root: FakeRoot) -> None:
    root.shell("printf 'a\\n' | put /etc/new/file 0600")
    path = root.path / "etc/new/file"
    first = path.stat()
    assert (path.read_text(), first.st_mode & 0o777) == ("a\n", 0o600)
    root.shell("printf 'a\\n' | put /etc/new/file")
    assert (path.stat().st_ino, path.stat().st_mode & 0o777) == (first.st_ino, 0o644)
    root.shell("printf 'b' | put /etc/new/file")
    assert path.read_text() == "b"
    assert [entry.name for entry in path.parent.iterdir()] == ["file"]


def with_files(root: FakeRoot, tmp_path: Path, **files: str) -> None:
    """Give the tree a provision folder of its own with these templates."""
    shutil.copytree(PROVISION, tmp_path / "provision")
    for name, text in files.items():
        (tmp_path / "provision/files" / name).write_text(text)
    root.mounts.append(Bind(source=tmp_path / "provision", target="/provision"))


@root_only
def test_render_fills_in_and_refuses_what_is_left_over(root: FakeRoot, tmp_path: Path) -> None:
    with_files(root, tmp_path, template="a = @A@\nb = @LONG_NAME@ @A@\n")
    value = r"x|y&z\1 @a@/'"
    done = root.run(
        "/bin/sh", "-c", '. "$IB_PROVISION/lib.sh"; render template "A=$VALUE" "LONG_NAME=2"', env={"VALUE": value}
    )
    assert list(done.tail) == [f"a = {value}", f"b = 2 {value}"]
    with pytest.raises(CommandError) as caught:
        root.shell("render template A=1 > /etc/out; touch /etc/went-on")
    assert "unset: b = @LONG_NAME@ 1" in caught.value.context
    with pytest.raises(CommandError) as caught:
        root.shell("render no-such-file A=1 > /etc/out; touch /etc/went-on")
    assert "no-such-file" in caught.value.context
    assert not (root.path / "etc/went-on").exists()


@root_only
def test_a_template_with_a_leftover_never_becomes_a_file(root: FakeRoot, tmp_path: Path) -> None:
    with_files(root, tmp_path)
    for name in ("config-v2.toml", "config-v3.toml"):
        path = tmp_path / "provision/files/containerd" / name
        path.write_text(path.read_text() + "# @FORGOTTEN@\n")
    with pytest.raises(CommandError) as caught:
        root.steps("kubernetes/05-containerd.sh")
    assert "unset: # @FORGOTTEN@" in caught.value.context
    assert not (root.path / "etc/containerd/config.toml").exists()


@root_only
def test_a_service_is_put_in_place_and_enabled(root: FakeRoot) -> None:
    for _ in range(2):
        root.shell("service_install kubelet")
        assert root.calls() == ["systemctl enable kubelet.service"]
    source = PROVISION / "services/kubelet/systemd/root"
    for path in (path for path in source.rglob("*") if path.is_file()):
        name = path.relative_to(source)
        target = root.path.parent / "upper" / name.relative_to("usr") if name.parts[0] == "usr" else root.path / name
        assert target.read_bytes() == path.read_bytes()
        assert target.stat().st_mode & 0o777 == (0o755 if os.access(path, os.X_OK) else 0o644)
    with pytest.raises(CommandError) as caught:
        root.shell("service_install no-such-service")
    assert "no service no-such-service for systemd" in caught.value.context


@root_only
def test_masking_works_for_units_that_are_not_there(root: FakeRoot) -> None:
    (root.path / "etc/systemd/system/here.service").write_text("[Unit]\n")
    root.shell("service_mask here.service missing.timer; service_mask; service_mask missing.timer")
    for unit in ("here.service", "missing.timer"):
        assert (root.path / "etc/systemd/system" / unit).readlink() == Path("/dev/null")
    assert root.calls() == []


def forget_payload(root: FakeRoot) -> None:
    (root.path / "materials/cni/portmap").unlink()


def other_kubelet(root: FakeRoot) -> None:
    write_program(root.path / "materials/kubernetes/kubelet", "echo Kubernetes v1.34.0")


def forget_module(root: FakeRoot) -> None:
    (root.path.parent / "modules" / KERNEL / "br_netfilter").unlink()


def forget_kernel(root: FakeRoot) -> None:
    (root.path / "boot" / f"vmlinuz-{KERNEL}").unlink()


def bad_script(root: FakeRoot) -> None:
    write_program(root.path / "materials/scripts/50-bad.sh", "echo about to fail\nfalse\necho not reached")


def dead_containerd(root: FakeRoot) -> None:
    write_program(root.path / "stubs/containerd", "echo no overlay here >&2\nexit 1")


@root_only
@pytest.mark.parametrize(
    ("step", "spoil", "said"),
    [
        pytest.param("runtime/40-cni.sh", forget_payload, "the CNI plugin portmap was not installed", id="cni"),
        pytest.param(
            "kubernetes/10-kubernetes.sh", other_kubelet, 'says "Kubernetes v1.34.0", not v1.35.8', id="kubelet"
        ),
        pytest.param("base/30-kernel-modules.sh", forget_module, f"{KERNEL} has no module br_netfilter", id="module"),
        pytest.param("initramfs/10-initramfs.sh", forget_kernel, f"have no /boot/vmlinuz-{KERNEL}", id="kernel"),
        pytest.param("site/50-scripts.sh", bad_script, "about to fail", id="script"),
        pytest.param("kubernetes/40-pause-image.sh", dead_containerd, "containerd ended while", id="containerd"),
    ],
)
def test_a_step_that_cannot_do_its_work_stops_everything(
    root: FakeRoot, step: str, spoil: Callable[[FakeRoot], None], said: str
) -> None:
    spoil(root)
    with pytest.raises(CommandError) as caught:
        root.steps(step, "base/40-sysctl.sh")
    lines = caught.value.context.splitlines()
    assert lines[0] == f"@@step {step.removesuffix('.sh')}"
    assert said in caught.value.context
    assert "not reached" not in caught.value.context
    assert not any(line.startswith(("@@step base/40", "@@steps-done")) for line in lines)
