"""The recipe in machines: Ubuntu and the Red Hat family, outside repositories, kernels, Vagrant's user, the end."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from fakeroot import FakeRoot, write_program
from local_archive import Key
from steptree import PAUSE, PROVISION, SYSTEMS, give_repositories, make_root, repositories

from imagebuilder.errors import CommandError

pytestmark = [pytest.mark.integration, pytest.mark.skipif(os.geteuid() != 0, reason="a sandbox needs root")]

OVERLAY = "/materials/overlays/00"


@pytest.fixture(scope="module")
def keys() -> Iterator[tuple[Key, Key]]:
    made = (Key("kubernetes"), Key("docker"))
    yield made
    for key in made:
        key.close()


@pytest.fixture
def ubuntu(tmp_path: Path) -> FakeRoot:
    return make_root(tmp_path, SYSTEMS["ubuntu"])


@pytest.fixture
def redhat(tmp_path: Path) -> FakeRoot:
    return make_root(tmp_path, SYSTEMS["redhat"])


def failure(root: FakeRoot, step: str) -> str:
    """Return what a step says when it fails."""
    with pytest.raises(CommandError) as caught:
        root.steps(step, "base/40-sysctl.sh")
    assert "@@step base/40-sysctl" not in caught.value.context
    return caught.value.context


def check_all(root: FakeRoot, keys: tuple[Key, Key], name: str) -> list[str]:
    """Run all steps of a system; check what is true of every machine's image; return the calls."""
    system = SYSTEMS[name]
    give_repositories(root, *repositories(system, *keys))
    done = root.steps(*system.steps)
    assert [line for line in done.tail if line.startswith("@@")][-1] == "@@steps-done"
    tree = root.path
    gone = (
        "etc/hostname", "etc/ssh/ssh_host_ed25519_key", "root/.ssh", "root/anaconda-ks.cfg", "var/lib/docker",
        "etc/cloud/cloud.cfg.d/99-installer.cfg", "etc/sudoers.d/90-cloud-init-users", "var/log/installer",
        "etc/ssh/sshd_config.d/50-cloud-init.conf", "etc/udev/rules.d/70-persistent-net.rules",
        "etc/lvm/devices/system.devices", "home/builder/.ssh/authorized_keys", "var/lib/cloud/data",
    )  # fmt: skip
    assert [path for path in gone if (tree / path).exists()] == []
    assert (tree / "etc/machine-id").read_bytes() == b""
    assert (tree / "etc/cloud/cloud.cfg.d/90_dpkg.cfg").exists()
    assert (tree / "etc/kubernetes/manifests/pod.yaml").exists()
    assert not list(tree.rglob("*.imagebuilder-new"))
    assert not [
        path for path in (*tree.glob("etc/**/imagebuilder-*.*"),) if "repo" in path.name or path.suffix == ".asc"
    ]
    calls = root.calls()
    assert {"cloud-init status --wait", "cloud-init clean --logs", "systemctl stop docker.service"} <= set(calls)
    assert not any(call.startswith("refuse") for call in calls)
    return calls


def test_what_is_left_on_ubuntu(ubuntu: FakeRoot, keys: tuple[Key, Key]) -> None:
    calls = check_all(ubuntu, keys, "ubuntu")
    tree = ubuntu.path
    assert (
        calls.index("apt-get check")
        < calls.index("apt-get dist-upgrade")
        < calls.index("apt-get install systemd chrony")
    )
    assert "apt-get purge snapd" in calls
    assert (tree / "etc/cloud/cloud-init.disabled").read_bytes() == b""
    assert "apt-get purge linux-image-6.8.0-40-generic" in calls
    assert not (tree / "var/lib/snapd").exists()
    for unit in ("ufw.service", "motd-news.timer", "apt-daily.timer", "unattended-upgrades.service"):
        assert (tree / "etc/systemd/system" / unit).readlink() == Path("/dev/null"), unit
    assert not (tree / "etc/systemd/system/ua-timer.timer").is_symlink()  # not installed, so nothing to mask
    assert (tree / "etc/default/motd-news").read_text() == "ENABLED=0\n"
    assert [path.name for path in (tree / "etc/netplan").iterdir()] == ["90-default.yaml"]
    assert [path.name for path in (tree / "etc/apt/sources.list.d").iterdir()] == ["ubuntu.sources"]
    assert not (tree / "etc/apt/apt.conf.d/90cloud-init-aptproxy").exists()
    assert (tree / "etc/systemd/network/80-imagebuilder-dhcp.network").exists()
    assert (tree / "etc/default/locale").read_text() == "LANG=C.UTF-8\n"
    assert "LLMNR=no\n" in (tree / "etc/systemd/resolved.conf.d/90-imagebuilder.conf").read_text()
    assert (tree / "etc/resolv.conf").readlink() == Path("../run/systemd/resolve/stub-resolv.conf")
    assert [path.name for path in (tree / "etc/apparmor.d/disable").iterdir()] == ["complains"]
    # The partition's type is unknown: not systemd-repart, which would make one.
    assert not (ubuntu.path.parent / "upper/lib/repart.d/50-root.conf").exists()
    assert (tree / "etc/systemd/system/grow-part.service").exists()
    assert "enable_selinux = false" in (tree / "etc/containerd/config.toml").read_text()


def test_what_is_left_on_the_red_hat_family(redhat: FakeRoot, keys: tuple[Key, Key]) -> None:
    calls = check_all(redhat, keys, "redhat")
    tree = redhat.path
    registered = calls.index("subscription-manager register --org 123 --activationkey secret")
    assert registered < calls.index("dnf --refresh upgrade") < calls.index("subscription-manager unregister")
    assert "dnf install container-selinux" in calls
    assert not (tree / "etc/cloud/cloud-init.disabled").exists()
    assert calls.index("dnf install python3-dnf-plugin-versionlock") < calls.index(
        "dnf --quiet --disablerepo=* versionlock add docker.io"
    )
    assert "dnf --quiet --disablerepo=* versionlock add not-installed" not in calls
    assert "dnf remove kernel-core-5.14.0-503.el9.x86_64" in calls
    assert (tree / "etc/selinux/config").read_text() == "SELINUX=enforcing\nSELINUXTYPE=targeted\n"
    assert "enable_selinux = true" in (tree / "etc/containerd/config.toml").read_text()
    connections = tree / "etc/NetworkManager/system-connections"
    assert [path.name for path in connections.iterdir()] == ["imagebuilder-dhcp.nmconnection"]
    kept = connections / "imagebuilder-dhcp.nmconnection"
    assert kept.stat().st_mode & 0o777 == 0o600
    assert not [line for line in kept.read_text().splitlines() if line.startswith("uuid=")]
    unmanaged = (tree / "etc/NetworkManager/conf.d/90-imagebuilder.conf").read_text()
    for name in ("cali", "tunl", "vxlan", "cni", "flannel"):
        assert f"interface-name:{name}*" in unmanaged
    for gone in ("etc/sysconfig/network-scripts/ifcfg-eth0", "var/lib/NetworkManager/secret_key"):
        assert not (tree / gone).exists(), gone
    assert not list((tree / "boot").glob("*rescue*"))
    for unit in ("firewalld.service", "dnf-makecache.timer", "nm-cloud-setup.timer"):
        assert (tree / "etc/systemd/system" / unit).readlink() == Path("/dev/null"), unit
    assert (tree / "etc/sysconfig/kubelet").read_text() == "KUBELET_EXTRA_ARGS=\n"
    assert [path.name for path in (tree / "etc/yum.repos.d").iterdir()] == ["redhat.repo"]
    dracut = (tree / "etc/dracut.conf.d/90-imagebuilder.conf").read_text()
    assert dracut == 'hostonly="no"\ncompress="zstd"\nadd_drivers+=" virtio_blk "\n'
    enabled = " ".join(call for call in calls if call.startswith("systemctl enable"))
    assert {"sshd.service", "chronyd.service", "NetworkManager.service"} <= set(enabled.split())
    for path in ("/etc/containerd/config.toml", "/usr/bin/kubelet", "/opt/cni", "/var/lib/containerd", "/home/vagrant"):
        assert f"restorecon {path}" in calls, path


def test_every_driver_is_dracuts_own_choice(redhat: FakeRoot) -> None:
    redhat.shell("initramfs_setup most && initramfs_build")
    assert (redhat.path / "etc/dracut.conf.d/90-imagebuilder.conf").read_text() == 'hostonly="no"\ncompress="zstd"\n'


def test_a_source_image_without_selinux_is_refused(redhat: FakeRoot) -> None:
    (redhat.path / "selinux-off").touch()
    assert "SELinux is off in the source image" in failure(redhat, "site/80-selinux-labels.sh")


def test_a_file_with_another_label_than_the_policys_is_found(redhat: FakeRoot) -> None:
    (redhat.path / "mislabelled").touch()
    (redhat.path / "etc/kubernetes").mkdir()
    assert "/etc/kubernetes has another SELinux label" in failure(redhat, "site/80-selinux-labels.sh")


def test_without_an_activation_key_nothing_is_registered(redhat: FakeRoot) -> None:
    redhat.env = {**redhat.env, "IB_RHSM_ACTIVATION_KEY": ""}
    redhat.steps("base/13-subscription.sh")
    assert redhat.calls() == []


# --- settling, kernels


def test_a_machine_is_waited_for(ubuntu: FakeRoot) -> None:
    (ubuntu.path / "active/apt-daily.service").touch()
    ubuntu.steps("base/12-settle.sh")
    assert ubuntu.calls() == ["systemctl stop apt-daily.service", "cloud-init status --wait", "apt-get check"]


def test_a_cloud_init_that_is_never_done_is_an_error(ubuntu: FakeRoot) -> None:
    (ubuntu.path / "cloud-init-status").write_text("124")
    assert "cloud-init was not done after 15 minutes" in failure(ubuntu, "base/12-settle.sh")


@pytest.mark.parametrize(("at", "said"), [pytest.param(0, "6.8.0-45-generic", id="old"), pytest.param(1, "", id="new")])
def test_a_reboot_is_asked_for_when_the_kernel_changed(ubuntu: FakeRoot, at: int, said: str) -> None:
    (ubuntu.path / "running").write_text(SYSTEMS["ubuntu"].kernels[at])
    step = "/bin/sh /provision/run-steps.sh base/95-reboot.sh; cat /run/imagebuilder/reboot-needed 2> /dev/null || true"
    assert list(ubuntu.run("/bin/sh", "-c", step).tail)[2:] == ([said] if said else [])


@pytest.mark.parametrize(
    ("running", "kernels", "removed"),
    [
        pytest.param("6.1.0-56-amd64", ["6.1.0-9-amd64", "6.1.0-56-amd64"], ["6.1.0-9-amd64"], id="debian"),
        pytest.param(
            "6.12.57+deb13-cloud-amd64",
            ["6.12.48+deb13-cloud-amd64", "6.12.48+deb13-amd64", "6.12.57+deb13-cloud-amd64"],
            ["6.12.48+deb13-cloud-amd64"],
            id="other-flavours-stay",
        ),
        pytest.param("6.8.0-1015-gcp", ["6.8.0-45-generic", "6.8.0-1015-gcp"], [], id="ubuntu"),
        pytest.param("6.8.0-40-generic", ["6.8.0-40-generic", "6.8.0-45-generic"], [], id="newer-stays"),
    ],
)
def test_older_kernels_are_removed(ubuntu: FakeRoot, running: str, kernels: list[str], removed: list[str]) -> None:
    for folder in (ubuntu.path.parent / "modules").iterdir():
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()
    for kernel in kernels:
        (ubuntu.path.parent / "modules" / kernel).mkdir()
        (ubuntu.path / f"packages/linux-image-{kernel}").write_text("1.0")
    (ubuntu.path / "running").write_text(running)
    ubuntu.steps("runtime/02-old-kernels.sh")
    assert ubuntu.calls() == [f"apt-get purge linux-image-{kernel}" for kernel in removed]


def test_red_hats_minor_releases_are_one_flavour(redhat: FakeRoot) -> None:
    redhat.steps("runtime/02-old-kernels.sh")
    assert redhat.calls() == ["dnf remove kernel-core-5.14.0-503.el9.x86_64"]


# --- repositories


def test_apt_repositories_are_trusted_for_one_key(ubuntu: FakeRoot, keys: tuple[Key, Key]) -> None:
    give_repositories(ubuntu, *repositories(SYSTEMS["ubuntu"], *keys))
    ubuntu.steps("runtime/05-repositories.sh")
    assert ubuntu.calls() == ["curl https://keys.example/kubernetes.key"]
    folder = ubuntu.path / "etc/apt/sources.list.d"
    assert (folder / "imagebuilder-kubernetes.sources").read_text() == (
        "Types: deb\nURIs: https://packages.example/kubernetes/?arch=$basearch*\nSuites: /\n"
        "Signed-By: /etc/apt/keyrings/imagebuilder-kubernetes.asc\n"
    )
    lines = (folder / "imagebuilder-docker-ce.sources").read_text().splitlines()
    assert lines[2:4] == ["Suites: noble", "Components: stable edge"]
    shown = ubuntu.run("/bin/sh", "-c", "gpg --show-keys --with-colons /etc/apt/keyrings/imagebuilder-kubernetes.asc")
    assert [line.split(":")[9] for line in shown.tail if line.startswith("fpr:")] == [keys[0].fingerprint]


def test_dnf_repositories_are_checked_with_a_local_key(redhat: FakeRoot, keys: tuple[Key, Key]) -> None:
    give_repositories(redhat, *repositories(SYSTEMS["redhat"], *keys))
    redhat.steps("runtime/05-repositories.sh")
    assert (redhat.path / "etc/yum.repos.d/imagebuilder-kubernetes.repo").read_text() == (
        "[imagebuilder-kubernetes]\nname=kubernetes\nbaseurl=https://packages.example/kubernetes/?arch=$basearch*\n"
        "enabled=1\ngpgcheck=1\ngpgkey=file:///etc/pki/rpm-gpg/RPM-GPG-KEY-imagebuilder-kubernetes\n"
    )
    key = (redhat.path / "etc/pki/rpm-gpg/RPM-GPG-KEY-imagebuilder-kubernetes").read_text()
    assert key.startswith("-----BEGIN PGP PUBLIC KEY BLOCK-----")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        pytest.param("a|https://x/|/||https://keys.example/kubernetes.key|{none}", "not {none}", id="another-key"),
        pytest.param("a|https://x/|/||http://keys.example/kubernetes.key|{good}", "not an https address", id="http"),
        pytest.param("a|https://x/|/||https://keys.example/lost|{good}", "cannot download", id="no-such-key"),
        pytest.param("a|https://x/|/||/materials/keys/lost|{good}", "no key file /materials/keys/lost", id="no-file"),
        pytest.param("a|https://x/|/||/materials/pause.tar|{good}", "/materials/pause.tar", id="not-a-key"),
        pytest.param("a|https://x/|/||/materials/keys/kubernetes.key|1234", "not a fingerprint: 1234", id="short"),
        pytest.param("a|ftp://x/|/||/materials/keys/kubernetes.key|{good}", "not an address: ftp://x/", id="ftp"),
        pytest.param("../a|https://x/|/||/materials/keys/kubernetes.key|{good}", "not a name", id="name"),
        pytest.param("a|https://x/|/||/materials/keys/kubernetes.key|{good}|x", "more than six fields", id="fields"),
    ],
)
def test_a_repository_that_cannot_be_trusted_is_refused(
    ubuntu: FakeRoot, keys: tuple[Key, Key], words: str, said: str
) -> None:
    files, _ = repositories(SYSTEMS["ubuntu"], *keys)
    names = {"good": keys[0].fingerprint, "none": "0" * 40}
    give_repositories(ubuntu, files, words.format(**names))
    assert said.format(**names) in failure(ubuntu, "runtime/05-repositories.sh")
    assert not list((ubuntu.path / "etc/apt/sources.list.d").glob("imagebuilder-*"))


# --- packages and images


def test_kubernetes_packages_are_of_one_version(ubuntu: FakeRoot) -> None:
    ubuntu.shell('pkg_install "$(pkg_version kubelet 1.35.8)"; pkg_install "$(pkg_version kubelet 1.35.8)" jq')
    assert ubuntu.calls() == [
        "apt-get update", "apt-get install kubelet=1.35.8-*", "apt-get update", "apt-get install jq",
    ]  # fmt: skip
    ubuntu.shell('pkg_install "$(pkg_version kubelet 1.35.9)"')
    assert ubuntu.calls()[1:] == ["apt-get install kubelet=1.35.9-*"]


def test_rpms_are_of_one_version(redhat: FakeRoot) -> None:
    (redhat.path / "provides").mkdir()
    (redhat.path / "provides/iptables").touch()
    redhat.shell('for _ in 1 2; do pkg_install "$(pkg_version kubelet 1.35.8)" iptables; done')
    assert redhat.calls() == ["dnf install kubelet-1.35.8"]


@pytest.mark.parametrize(
    ("reference", "pulled"),
    [
        pytest.param(PAUSE, [f"pull --local {PAUSE}"], id="name"),
        pytest.param(
            f"{PAUSE}@sha256:12",
            ["pull --local registry.k8s.io/pause@sha256:12", f"tag registry.k8s.io/pause@sha256:12 {PAUSE}"],
            id="digest",
        ),
    ],
)
def test_without_an_archive_the_pause_image_is_pulled_and_pinned(
    ubuntu: FakeRoot, reference: str, pulled: list[str]
) -> None:
    ubuntu.env = {**ubuntu.env, "IB_PAUSE_ARCHIVE": "", "IB_PAUSE_IMAGE": reference}
    ubuntu.steps("kubernetes/05-containerd.sh", "kubernetes/40-pause-image.sh", "kubernetes/40-pause-image.sh")
    label = f"label {PAUSE} io.cri-containerd.pinned=pinned"
    assert ubuntu.calls() == [f"ctr images {words}" for words in (*pulled, label, label)]
    assert f'sandbox_image = "{PAUSE}"' in (ubuntu.path / "etc/containerd/config.toml").read_text()


def test_an_image_that_cannot_be_pulled_is_an_error(ubuntu: FakeRoot) -> None:
    ubuntu.env = {**ubuntu.env, "IB_PAUSE_ARCHIVE": "", "IB_PAUSE_IMAGE": "example/no-such:1"}
    assert "example/no-such:1 cannot be pulled" in failure(ubuntu, "kubernetes/40-pause-image.sh")


@pytest.mark.parametrize("folder", ["/usr/lib/cni", "/usr/libexec/cni", "/opt/cni/bin"])
def test_plugins_of_any_package_end_in_one_folder(ubuntu: FakeRoot, folder: str) -> None:
    ubuntu.env = {**ubuntu.env, "IB_CNI_PAYLOAD": "", "IB_CNI_PACKAGES": "kubernetes-cni"}
    ubuntu.shell(f"mkdir -p {folder}; cp /materials/cni/[a-z]* {folder}/")
    ubuntu.steps("runtime/40-cni.sh")
    assert list(ubuntu.shell("/opt/cni/bin/loopback && echo works").tail) == ["works"]


def test_a_resolver_of_the_site_stays(ubuntu: FakeRoot) -> None:
    (ubuntu.path / "etc/resolv.conf").write_text("nameserver 192.0.2.1\n")
    resolver = ubuntu.path / f"{OVERLAY}/etc/resolv.conf".lstrip("/")
    resolver.parent.mkdir(parents=True, exist_ok=True)
    resolver.write_text("nameserver 192.0.2.1\n")
    ubuntu.steps("base/60-network.sh", "site/30-overlays.sh", "site/88-machine.sh")
    assert (ubuntu.path / "etc/resolv.conf").read_text() == "nameserver 192.0.2.1\n"


# --- Vagrant, the end


def test_vagrants_key_outlives_the_clean_up(ubuntu: FakeRoot) -> None:
    ubuntu.steps("site/15-vagrant-user.sh", "site/88-machine.sh", "site/90-clean.sh")
    home = ubuntu.path / "home/vagrant/.ssh"
    assert (home / "authorized_keys").read_bytes() == (PROVISION / "files/vagrant.pub").read_bytes()
    assert [path.stat().st_mode & 0o777 for path in (home, home / "authorized_keys")] == [0o700, 0o600]
    assert (home / "authorized_keys").stat().st_uid == 1000
    rule = ubuntu.path / "etc/sudoers.d/vagrant"
    assert (rule.read_text(), rule.stat().st_mode & 0o777) == ("vagrant ALL=(ALL) NOPASSWD: ALL\n", 0o440)
    assert not (ubuntu.path / "home/builder/.ssh/authorized_keys").exists()


@pytest.fixture
def uploaded(ubuntu: FakeRoot) -> FakeRoot:
    """A machine at its end, with the recipe where Packer uploads it and the user that it logs in as."""
    folder = ubuntu.path / "var/lib/upload"
    (folder / "vm").mkdir(parents=True)
    (folder / "vm/shutdown.sh").write_bytes((PROVISION / "vm/shutdown.sh").read_bytes())
    (ubuntu.path / "etc/passwd").write_text(
        "root:x:0:0::/root:/bin/sh\nbuilder:x:1001:1001::/home/builder:/bin/sh\nvagrant:x:1000:1000::/home/vagrant:\n"
    )
    (ubuntu.path / "active").mkdir(exist_ok=True)
    (ubuntu.path / "active/systemd-random-seed.service").touch()
    for name in ("builder", "vagrant"):
        (ubuntu.path / "etc/sudoers.d" / name).touch()
        (ubuntu.path / "home" / name).mkdir(exist_ok=True)
    return ubuntu


QUIET = "systemctl stop systemd-random-seed.service"
SHUTDOWN = ("/bin/sh", "/var/lib/upload/vm/shutdown.sh")


def test_the_end_removes_the_build_user_and_what_was_uploaded(uploaded: FakeRoot) -> None:
    seed = uploaded.path / "var/lib/systemd/random-seed"
    seed.parent.mkdir(parents=True, exist_ok=True)
    seed.write_bytes(b"seed")
    uploaded.run(*SHUTDOWN, "builder", "/var/lib/upload")
    assert not seed.exists()
    assert uploaded.calls() == ["userdel --force --remove builder", QUIET, "fstrim --all", "systemctl poweroff"]
    tree = uploaded.path
    for gone in ("home/builder", "etc/sudoers.d/builder", "etc/sudoers.d/90-cloud-init-users", "var/lib/upload"):
        assert not (tree / gone).exists(), gone
    assert (tree / "home/vagrant").is_dir()
    assert (tree / "var/log/syslog").read_bytes() == b""


def test_azures_agent_is_told_that_this_is_no_machine_any_more(uploaded: FakeRoot) -> None:
    write_program(uploaded.path / "stubs/waagent", 'echo "waagent $*" >> /calls/log')
    uploaded.run(*SHUTDOWN, "--stay", "builder")
    assert uploaded.calls() == [
        "userdel --force --remove builder",
        "waagent -force -deprovision",
        QUIET,
        "fstrim --all",
    ]


def test_a_builder_that_stops_the_machine_itself_finds_it_on(uploaded: FakeRoot) -> None:
    uploaded.run(*SHUTDOWN, "--stay", "builder")
    assert uploaded.calls() == ["userdel --force --remove builder", QUIET, "fstrim --all"]
    assert (uploaded.path / "var/lib/upload").is_dir()


@pytest.mark.parametrize("user", ["vagrant", "root"])
def test_users_of_the_image_are_not_removed(uploaded: FakeRoot, user: str) -> None:
    uploaded.run(*SHUTDOWN, user)
    assert uploaded.calls() == [QUIET, "fstrim --all", "systemctl poweroff"]
    assert (uploaded.path / "home/vagrant").is_dir()


def test_a_build_user_that_stays_is_an_error(uploaded: FakeRoot) -> None:
    (uploaded.path / "userdel-fails").touch()
    with pytest.raises(CommandError) as caught:
        uploaded.run(*SHUTDOWN, "builder")
    assert "the build user builder was not removed (userdel: exit code 8)" in caught.value.context
    assert uploaded.calls() == []
