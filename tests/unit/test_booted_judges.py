"""Every judge: a guest that is well, and what a guest says that is wrong in its way."""

from __future__ import annotations

import json
from collections.abc import Mapping

import pytest

from imagebuilder import resources
from imagebuilder.verify.booted import CHECKS, EVERY_BOOT
from imagebuilder.verify.booted.access import open_sockets
from imagebuilder.verify.booted.answers import Answer
from imagebuilder.verify.booted.session import judged
from imagebuilder.verify.booted.system import SYSCTL
from imagebuilder.verify.model import BootedCheck, CheckResult, Outcome
from tests.booted_mutants import BEFORE, MUTANTS, NO_GUEST
from tests.unit.booted_guest import MANIFEST, golden, subject

BY_ID = {check.id: check for check in CHECKS}
GOOD: Mapping[str, str] = {**golden(), "selinux-enforcing": "Enforcing\n"}
# By check: what a guest that is well said, one thing in it replaced, and what is then found.
BAD = (
    ("boot-completed", "running", "starting", "the system is starting"),
    ("boot-completed", "running\n", "running\n17 docker.service start running\n", "docker.service start running"),
    ("boot-firmware", "bios", "uefi", "runs under uefi"),
    ("no-failed-units", "== end", "a.service loaded failed failed A\n== end", "a.service failed"),
    ("no-failed-units", "== end", "", "did not list"),
    ("no-journal-errors", "pam_env", "pam_other", "session"),
    ("swap-off", "Priority\n", "Priority\n/var/swap file 1 0 -2\n", "swap on /var/swap"),
    ("root-grown", "vda3 8520708096", "vda3 4000000000", "did not grow"),
    ("root-grown", "== size\n8282415104", "== size\n900000000", "the file system has 900000000 bytes"),
    ("root-grown", "rw,", "ro,", "is mounted ro,"),
    ("root-grown", "part /", "part", "not on a partition"),
    ("cgroup-v2", "cgroup2fs", "tmpfs", "is tmpfs"),
    ("cgroup-v2", " memory ", " ", "no controller memory"),
    ("kernel-modules-loaded", "br_netfilter", "", "br_netfilter is not loaded"),
    ("sysctl-booted", "kernel.panic=10", "kernel.panic=0", "kernel.panic is 0, not 10"),
    ("sysctl-booted", "net.bridge.bridge-nf-call-iptables=1", "", "not there"),
    ("packages-held", "== held\ncontainerd\n", "== held\n", "containerd is not held"),
    ("packages-held", "\nlinux-image-cloud-amd64\nrunc", "\nrunc", "no kernel is held"),
    ("packages-held", "== installed", "== other", "lists no package"),
    ("sockets-known", "0.0.0.0:22 ", "0.0.0.0:23 ", "tcp/23 is open (sshd)"),
    ("passwords-locked", "root locked", "root password", "root can log in with a password"),
    ("passwords-locked", "daemon locked", "daemon empty", "daemon can log in with no password"),
    ("apparmor-enforces", "== enabled\nY", "== enabled\nN", "not enabled"),
    ("apparmor-enforces", "(enforce)", "(complain)", "no AppArmor profile"),
    ("selinux-enforcing", "Enforcing", "Permissive", "SELinux is Permissive"),
    ("lsm-list", ",apparmor", "", "without apparmor"),
    ("lsm-list", "yama,", "", "without yama"),
    ("address-by-dhcp", '"dynamic":true,', "", "no address is leased"),
    ("address-by-dhcp", '"ifname":"enp0s2"', '"ifname":"cni1"', "no card has an address"),
    ("default-route", '"gateway"', '"via"', "no default route"),
    ("resolver-configured", "nameserver 127.0.0.53", "", "names no server"),
    ("resolver-configured", "nameserver 10.0.2.3", "", "knows no server"),
    ("time-kept", " active", " inactive", "none of chrony"),
    ("containerd-config", "SystemdCgroup = true", "SystemdCgroup = false", "does not leave cgroups"),
    ("containerd-config", 'runtime_type = "io.containerd.runc.v2"', 'runtime_type = "other"', "no runtime"),
    ("containerd-config", "version = 2", "version = 1", "has version 1"),
    ("containerd-config", "[plugins]", "[plugins", "does not read"),
    ("pause-image-agreed", 'sandbox_image = "registry.k8s.io/pause:3.10.1"', 'sandbox_image = "p:1"', "kubeadm wants"),
    ("pause-image-agreed", 'sandbox_image = "registry.k8s.io/pause:3.10.1"', "", "names no sandbox image"),
    ("pause-image-agreed", "\nregistry.k8s.io/pause:3.10.1", "", "kubeadm does not name"),
    ("pause-image-agreed", ' "registry.k8s.io/pause:3.10.1"\n      ],', ' "other:1"\n      ],', "waits for a registry"),
    ("pause-image-agreed", '"pinned":  true', '"pinned":  false', "may be deleted"),
    ("cri-answers", "== unit\nactive", "== unit\nfailed", "containerd.service is failed"),
    ("cri-answers", "containerd\n", "crio\n", "no containerd answers"),
    ("cri-answers", "1.7.24", "1.7.23", "containerd 1.7.23"),
    ("cri-ready", '"status": true', '"status": false', "is not true"),
    ("cri-ready", "NetworkReady", "Network", "does not say whether it is NetworkReady"),
    ("docker-answers", '"Driver":"overlay2"', '"Driver":"vfs"', "with vfs"),
    ("docker-answers", '"CgroupDriver":"systemd"', '"CgroupDriver":"cgroupfs"', "cgroupfs"),
    ("docker-answers", '"CgroupVersion":"2"', '"CgroupVersion":"1"', "version 1"),
    ("docker-answers", "ServerVersion", "Other", "does not answer"),
    ("kubelet-version", "Kubernetes v1.35.8", "Kubernetes v1.34.1", "kubelet is 1.34.1, not 1.35.8"),
    ("kubelet-version", "== kubeadm\nv1.35.8", "== kubeadm\nv1.35.81", "kubeadm is 1.35.81"),
    ("kubelet-waits", "== enabled\nenabled", "== enabled\nmasked", "is masked"),
    ("kubelet-waits", "== active\ninactive", "== active\nactivating", "is activating without"),
    ("kubelet-waits", "kubelet not started", "all is well", "does not report"),
    ("kubelet-waits", "== config\n", "== config\nthere\n", "but kubelet is inactive"),
    ("kubelet-healthy", "== active\nactive", "== active\nfailed", "is failed"),
    ("kubelet-healthy", "200 OK", "500 Internal Server Error", "/healthz says HTTP/1.0 500"),
    ("static-pod-runs", "CONTAINER_RUNNING", "CONTAINER_EXITED", "imagebuilder-verify-verify does not run"),
    ("static-pod-runs", "SANDBOX_READY", "SANDBOX_NOTREADY", "of 1 static pods 0 run"),
    ("static-pod-runs", "pause.json\n", "", "no manifest"),
    ("static-pod-runs", '"kubernetes.io/config.source":  "file"', '"kubernetes.io/config.source":  "api"', "0 run"),
    ("agent-status", '"code": "OK"', '"code": "E_HEALTH"', "E_HEALTH: kubelet is healthy"),
    ("agent-status", '"watching": false', '"watching": true', "still waits"),
    ("agent-status", '"problems": []', '"problems": [{"code": "E_KEY", "text": "who"}]', "E_KEY: who"),
)  # fmt: skip


def judge(name: str, text: str) -> CheckResult:
    return judged(BY_ID[name], Answer(text=text, code=0), subject(family="debian"))


@pytest.mark.parametrize("name", [check.id for check in CHECKS])
def test_a_guest_that_is_well_passes(name: str) -> None:
    assert judge(name, GOOD[name]) == CheckResult(id=name, outcome=Outcome.PASSED)


@pytest.mark.parametrize(
    ("name", "old", "new", "found"), [pytest.param(*one, id=f"{one[0]}-{one[3]}".replace(" ", "-")) for one in BAD]
)
def test_a_guest_that_is_wrong_fails(name: str, old: str, new: str, found: str) -> None:
    assert old in GOOD[name]
    result = judge(name, GOOD[name].replace(old, new))
    assert result.outcome == Outcome.FAILED
    assert found in "\n".join(result.found)


# Those with times, or whose good answer is little more than nothing.
WRONG_TEXTS = (
    ("machine-id-made", "1795870423\n/etc/machine-id 1790000000 6f3a4563246a4816a3135e875426041c\n", "same on every"),
    ("machine-id-made", "1795870423\n/etc/machine-id 1795870450 uninitialized\n", "holds no id"),
    ("machine-id-made", "1795870423\n", "there is none"),
    ("host-keys-made", "1795870423\n/etc/ssh/ssh_host_rsa_key 1\n/etc/ssh/ssh_host_x_key 1795870499\n", "rsa_key was"),
    ("host-keys-made", "/etc/ssh/ssh_host_rsa_key 1795870499\n", "does not say when"),
    ("package-database-sound", "The following packages are only half configured:\n jq\n300\n", "jq"),
    ("package-database-sound", "0\n", "lists no package"),
    ("packages-unaltered", "??5??????   /usr/bin/jq\n300\n", "/usr/bin/jq is not as its package has it"),
    ("packages-unaltered", "S.5....T.    /usr/bin/jq\n300\n", "/usr/bin/jq is not as its package has it"),
    ("packages-unaltered", "missing     /usr/bin/jq\n300\n", "/usr/bin/jq is missing"),
    ("packages-unaltered", "dpkg: error\n300\n", "dpkg: error"),
    ("no-journal-errors", "0\n", "is empty"),
    ("no-journal-errors", '1\n{"MESSAGE":[98,97,100],"_TRANSPORT":"kernel"}\n', "kernel: : bad"),
)


@pytest.mark.parametrize(("name", "text", "found"), WRONG_TEXTS)
def test_a_text_that_is_wrong_fails(name: str, text: str, found: str) -> None:
    result = judge(name, text)
    assert result.outcome == Outcome.FAILED
    assert found in "\n".join(result.found)


@pytest.mark.parametrize("name", [check.id for check in CHECKS])
@pytest.mark.parametrize("text", ["", "\n", "sh: 1: not found\n", "[" * 100_000, "null", "== end", "0", "[1]", "\0"])
def test_a_guest_that_says_nothing_of_use_never_passes(name: str, text: str) -> None:
    if (name, text) == ("no-failed-units", "== end"):
        return  # that is the good one
    assert judge(name, text).outcome in (Outcome.FAILED, Outcome.NOT_RUN)


@pytest.mark.parametrize(
    "text",
    [
        "missing     /usr/share/doc/bash/README\n300\n",
        "missing     /var/log/apt\nmissing     /var/lib/apt/lists/partial\n300\n",
        "??5?????? c /etc/containerd/config.toml\n300\n",
        ".......T.    /usr/bin/jq\n300\n",
        "missing   c /etc/motd\n300\n",
    ],
)
def test_a_file_that_may_differ_is_no_finding(text: str) -> None:
    assert judge("packages-unaltered", text).outcome == Outcome.PASSED


@pytest.mark.parametrize(
    "held",
    ["kubelet-0:1.35.8-150500.1.1.*\nkernel-core-0:6.12.0-1.el10.*", "Package name: kubelet\nPackage name: kernel"],
)
def test_holds_are_read_as_each_dnf_lists_them(held: str) -> None:
    text = f"== installed\nkubelet\nkernel-core\nbash\n== held\n{held}\n"
    assert judge("packages-held", text).outcome == Outcome.PASSED
    assert judge(
        "packages-held", text.replace("kubelet-0", "kubelet-extra-0").replace("name: kubelet", "name: k")
    ).found


def test_containerd_2_names_its_sandbox_image_elsewhere() -> None:
    config = """version = 3
[plugins.'io.containerd.cri.v1.images'.pinned_images]
sandbox = 'registry.k8s.io/pause:3.10.1'
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
runtime_type = 'io.containerd.runc.v2'
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]
SystemdCgroup = true
"""
    rest = GOOD["pause-image-agreed"].partition("== kubeadm")
    assert judge("containerd-config", config).outcome == Outcome.PASSED
    assert judge("pause-image-agreed", f"== config\n{config}{''.join(rest[1:])}").outcome == Outcome.PASSED


def test_an_image_without_docker_need_not_answer_for_it() -> None:
    manifest = {"capabilities": {**MANIFEST["capabilities"], "runtimes": ["containerd"]}}
    result = judged(BY_ID["docker-answers"], Answer(text="", code=127), subject(manifest=manifest))
    assert result.outcome == Outcome.PASSED


def test_an_image_that_brings_a_configuration_has_its_kubelet_running() -> None:
    text = "== enabled\nenabled\n== active\nactive\n== config\nthere\n== said\n"
    assert judge("kubelet-waits", text).outcome == Outcome.PASSED


def test_an_agent_without_a_package_is_well_where_the_image_configures_the_node() -> None:
    status = json.dumps({"code": "E_NONE", "text": "no data package was found (net)", "problems": []})
    assert judge("agent-status", f"== config\nthere\n== status\n{status}").outcome == Outcome.PASSED
    assert judge("agent-status", f"== config\n== status\n{status}").outcome == Outcome.FAILED


def test_what_was_said_beside_a_finding_is_told() -> None:
    result = judged(BY_ID["docker-answers"], Answer(text="", code=127, said="sh: docker: not found"), subject())
    assert result.found[-1] == "it said: sh: docker: not found"


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("tcp LISTEN 0 128 0.0.0.0:22 0.0.0.0:*", ("tcp/22",)),
        ("tcp LISTEN 0 128 [::]:22 [::]:*", ("tcp/22",)),
        ("tcp LISTEN 0 4096 *:10250 *:*", ("tcp/10250",)),
        ("udp UNCONN 0 0 10.0.2.15%enp0s2:68 0.0.0.0:*", ("udp/68",)),
        ("udp UNCONN 0 0 127.0.0.53%lo:53 0.0.0.0:*", ()),
        ("udp UNCONN 0 0 [::1]:323 [::]:*", ()),
        ("tcp LISTEN 0 5 [::ffff:127.0.0.1]:99 *:*", ()),
        ("tcp LISTEN 0 5", ()),
        ("tcp LISTEN 0 5 *:x *:*", ("tcp/x",)),
    ],
)
def test_a_socket_is_open_when_it_listens_on_more_than_loopback(line: str, found: tuple[str, ...]) -> None:
    assert open_sockets(line) == found


def test_the_kernel_parameters_are_those_that_the_recipe_sets() -> None:
    lines = (resources.folder("provision") / "files/sysctl.conf").read_text().splitlines()
    assert dict(line.split(" = ", 1) for line in lines if "=" in line and not line.startswith("#")) == dict(SYSCTL)


def test_ids_are_unique_and_every_boot_looks_at_some_that_are_there() -> None:
    assert len(BY_ID) == len(CHECKS)
    assert set(BY_ID) > EVERY_BOOT


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.id)
def test_every_check_has_its_words(check: BootedCheck) -> None:
    assert [text for text in (check.proves, check.why, check.fix) if not text.endswith(".") or len(text) < 10] == []
    assert check.link.startswith("https://")


def test_every_check_has_a_guest_that_is_broken_in_its_way_or_says_why_not() -> None:
    mutants = [mutant.id for mutant in (*MUTANTS, *BEFORE)]
    assert sorted([*mutants, *NO_GUEST]) == sorted(BY_ID)
    assert all(BY_ID[mutant.id].before for mutant in BEFORE)
    assert not any(BY_ID[mutant.id].before for mutant in MUTANTS)


def test_every_check_has_a_text_that_is_wrong() -> None:
    assert {name for name, *_ in (*BAD, *WRONG_TEXTS)} == set(BY_ID)
