"""How a guest is broken in just one way, for every booted check; and mended, so that the next one finds it well."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from imagebuilder.verify.booted.kubernetes import HEALTHZ
from imagebuilder.verify.booted.session import GUEST_FILE
from imagebuilder.verify.model import BootedCheck

UNBROKEN = 99  # how a check's command ends when the guest could not be broken


@dataclass(frozen=True, kw_only=True, slots=True)
class Mutant:
    """A guest that is wrong.

    Attributes:
        id: of the check that must see it.
        breaks: for root's shell.
        mends: likewise; with none only the check's own command sees what was broken: in a mount namespace of its own,
            where something else lies over a file.
    """

    id: str
    breaks: str
    mends: str = ""

    def seen_by(self, check: BootedCheck) -> BootedCheck:
        """Return the check, which breaks the guest for itself where nothing is to be mended."""
        if self.mends:
            return check
        command = f"{{ {self.breaks}; }} >&2 || exit {UNBROKEN}\n{check.command}"
        return replace(check, command=f"exec unshare --mount sh -c {_quoted(command)}")


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


def over(path: str, make: str) -> str:
    """Return what puts a file made by a command over another."""
    return f'file=$(mktemp -p /var/tmp) && {{ {make}; }} > "$file" && mount --bind "$file" "{path}"'


_LISTEN = "import socket,time; s=socket.create_server(('0.0.0.0', 4444)); time.sleep(900)"
_CONFIG = "/etc/containerd/config.toml"
_STATUS = "/var/lib/dpkg/status"
_UNIT = "systemd-run -q --unit=ib-mutant"
_STOP = "systemctl stop ib-mutant; systemctl reset-failed ib-mutant 2> /dev/null || true"

MUTANTS = (
    Mutant(id="boot-completed", breaks=f"{_UNIT} --no-block -p Type=oneshot sleep 900", mends=_STOP),
    Mutant(id="boot-firmware", breaks="mount -t tmpfs none /sys/firmware && mkdir /sys/firmware/efi"),
    Mutant(id="no-failed-units", breaks=f"{_UNIT} --wait false || true", mends=_STOP),
    Mutant(
        id="swap-off",
        breaks="dd if=/dev/zero of=/var/tmp/ib-swap bs=1M count=8 && chmod 600 /var/tmp/ib-swap && "
        "mkswap /var/tmp/ib-swap && swapon /var/tmp/ib-swap",
        mends="swapoff /var/tmp/ib-swap && rm /var/tmp/ib-swap",
    ),
    Mutant(id="root-grown", breaks="mount -o remount,bind,ro /"),
    Mutant(id="cgroup-v2", breaks="mount -t tmpfs none /sys/fs/cgroup"),
    Mutant(id="kernel-modules-loaded", breaks="mount -t tmpfs none /sys/module"),
    Mutant(id="sysctl-booted", breaks="sysctl -q -w kernel.panic=0", mends="sysctl -q -w kernel.panic=10"),
    Mutant(
        id="machine-id-made", breaks=over("/etc/machine-id", "cat /etc/machine-id")
        + ' && touch -d 2020-01-01 "$file"',
    ),
    Mutant(
        id="host-keys-made", breaks="touch -d 2020-01-01 /etc/ssh/ssh_host_ed25519_key",
        mends="touch /etc/ssh/ssh_host_ed25519_key",
    ),
    Mutant(id="packages-held", breaks="apt-mark unhold containerd", mends="apt-mark hold containerd"),
    Mutant(
        id="package-database-sound",
        breaks=f"cp {_STATUS} /var/tmp/ib-status && "
        f"sed -i '/^Package: jq$/,/^Status:/s/install ok installed/install ok half-configured/' {_STATUS}",
        mends=f"mv /var/tmp/ib-status {_STATUS}",
    ),
    Mutant(id="packages-unaltered", breaks=over("/usr/bin/jq", "cat /usr/bin/jq; echo")),
    Mutant(
        id="sockets-known",
        breaks=f'{_UNIT} python3 -c "{_LISTEN}"; for second in 1 2 3 4 5 6 7 8 9; do '
        "ss -Hltn | grep -q :4444 && break; sleep 1; done",
        mends=_STOP,
    ),
    Mutant(
        id="passwords-locked", breaks="cp -p /etc/shadow /etc/shadow.ib && echo root:ib-mutant | chpasswd",
        mends="mv /etc/shadow.ib /etc/shadow",
    ),
    Mutant(id="apparmor-enforces", breaks=over("/sys/kernel/security/apparmor/profiles", ":")),
    Mutant(id="lsm-list", breaks=over("/sys/kernel/security/lsm", "printf capability,yama,landlock")),
    Mutant(
        id="address-by-dhcp",
        breaks="set -- $(ip -4 -o addr show to 10.0.2.15) && "
        "ip addr change $4 dev $2 valid_lft forever preferred_lft forever",
        mends="set -- $(ip -4 -o addr show to 10.0.2.15) && "
        "ip addr change $4 dev $2 valid_lft 80000 preferred_lft 80000",
    ),
    Mutant(
        id="default-route", breaks="ip -4 route show default > /var/tmp/ib-route && ip -4 route del default",
        mends="ip -4 route add $(cat /var/tmp/ib-route)",
    ),
    Mutant(id="resolver-configured", breaks=over("$(readlink -f /etc/resolv.conf)", "echo search .")),
    Mutant(id="time-kept", breaks="systemctl stop chrony", mends="systemctl start chrony"),
    Mutant(
        id="containerd-config", breaks=over(_CONFIG, f"sed 's/SystemdCgroup = true/SystemdCgroup = false/' {_CONFIG}")
    ),
    Mutant(id="pause-image-agreed", breaks=over(_CONFIG, f"sed 's/pause:[0-9.]*/pause:3.9/' {_CONFIG}")),
    Mutant(id="cri-answers", breaks="mount -t tmpfs none /run/containerd"),
    Mutant(
        id="cri-ready",
        breaks="mv /etc/cni/net.d/10-bridge.conflist /var/tmp/ && for second in 1 2 3 4 5 6 7 8 9; do "
        "crictl info | grep -q NetworkPluginNotReady && break; sleep 1; done",
        # containerd looks again when a file is written or goes, not when one is moved in.
        mends="cat /var/tmp/10-bridge.conflist > /etc/cni/net.d/10-bridge.conflist && "
        "while crictl info | grep -q NetworkPluginNotReady; do sleep 1; done",
    ),
    Mutant(
        id="docker-answers", breaks="systemctl stop docker.service docker.socket", mends="systemctl start docker"
    ),
    Mutant(
        id="kubelet-version",
        breaks="bin=$(mktemp -p /var/tmp) && printf '#!/bin/sh\\necho Kubernetes v1.34.0\\n' > $bin && "
        "chmod 755 $bin && mount --bind $bin /usr/bin/kubelet",
    ),
    Mutant(
        id="kubelet-healthy", breaks="systemctl stop kubelet",
        mends=f"systemctl start kubelet && until {HEALTHZ} | grep -q ' 200 '; do sleep 1; done",
    ),
    Mutant(
        id="static-pod-runs",
        breaks="systemctl stop kubelet && crictl stop --timeout 0 $(crictl ps -q --state Running)",
        mends="systemctl start kubelet && "
        "until crictl ps --state Running -o json | grep -q podSandboxId; do sleep 1; done",
    ),
    Mutant(
        id="agent-status",
        breaks="echo nonsense > /var/tmp/ib-data && { imagebuilder-agent apply /var/tmp/ib-data; [ $? = 12 ]; }",
        mends=f"imagebuilder-agent apply {GUEST_FILE}",
    ),
    Mutant(
        id="no-journal-errors", breaks="logger -p user.err ib-mutant && journalctl --sync",
        mends="sleep 2; journalctl -q --rotate && journalctl -q --vacuum-time=1s && logger mended",
    ),
)  # fmt: skip
# Before there is a data package.
BEFORE = (
    Mutant(id="kubelet-waits", breaks="systemctl disable -q kubelet", mends="systemctl enable -q kubelet"),
)  # fmt: skip
# No guest mutant: why, beside the text that a unit test judges.
NO_GUEST: Mapping[str, str] = {
    "selinux-enforcing": "the guest of the test is of the family debian, whose kernel runs with AppArmor",
}
