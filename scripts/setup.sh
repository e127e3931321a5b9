#!/bin/sh
# Installs what is missing: Debian's packages that bake and boot, and the Python package in .venv. With "tests" also
# what only the tests want, Vagrant and libvirt among them.
# Works on a fresh Debian machine, as root, with Python 3.11 or newer. Does nothing when all is there.
set -eu
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}

# program or file -> the package that has it
wanted="
mmdebstrap:mmdebstrap dpkg-deb:dpkg unshare:util-linux mount:mount newuidmap:uidmap tar:tar
/usr/share/keyrings/debian-archive-keyring.gpg:debian-archive-keyring
qemu-system-x86_64:qemu-system-x86 qemu-img:qemu-utils /usr/share/OVMF/OVMF_CODE_4M.fd:ovmf ssh:openssh-client
curl:curl git:git
"
for_tests="
shellcheck:shellcheck dash:dash gpg:gpg docker-registry:docker-registry apt-ftparchive:apt-utils sfdisk:fdisk sgdisk:gdisk
grub-mkimage:grub-common /usr/lib/grub/i386-pc/boot.img:grub-pc-bin e2fsck:e2fsprogs busybox:busybox-static
packer:packer xorriso:xorriso dnf:dnf rpmbuild:rpm createrepo_c:createrepo-c /etc/dnf/plugins/versionlock.conf:dnf-plugins-core
mkfs.vfat:dosfstools mcopy:mtools vagrant:vagrant rsync:rsync dnsmasq:dnsmasq-base virsh:libvirt-clients libvirtd:libvirt-daemon
/etc/libvirt/qemu.conf:libvirt-daemon-system /usr/share/doc/vagrant-libvirt:vagrant-libvirt chromium:chromium
"
[ "${1:-}" != tests ] || wanted="$wanted $for_tests"
missing=""
for pair in $wanted; do
    thing=${pair%%:*}
    case $thing in
        /*) [ -e "$thing" ] || missing="$missing ${pair##*:}" ;;
        *) command -v "$thing" > /dev/null || missing="$missing ${pair##*:}" ;;
    esac
done
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "Python 3.11 or newer is needed; PYTHON=/path/of/python3 names another one" >&2
    exit 1
}
"$python" -c 'import ensurepip, venv' 2> /dev/null || missing="$missing python3-venv"
if [ -n "$missing" ]; then
    echo "installing:$missing"
    export DEBIAN_FRONTEND=noninteractive
    [ "$(id -u)" = 0 ] || { echo "not root: apt-get install$missing" >&2; exit 1; }
    log=$(mktemp)
    # shellcheck disable=SC2086 # a list of names
    { apt-get update && apt-get install -y --no-install-recommends $missing; } > "$log" 2>&1 || {
        tail -20 "$log" >&2
        exit 1
    }
    rm -f "$log"
fi

# Installed again only when what is installed from has changed.
stamp=.venv/.imagebuilder-setup
want=$(cat pyproject.toml scripts/setup.sh | sha256sum)
if [ "$(cat $stamp 2> /dev/null)" != "$want" ]; then
    echo "installing the Python package in .venv"
    "$python" -m venv .venv
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
    echo "$want" > $stamp
fi
