#!/bin/sh
# Runs a command in a root tree, inside mount, pid, uts, ipc and network namespaces that end with it.
# usage: sandbox.sh ROOT OVERLAY_OPTION [overlay TARGET LOWER UPPER WORK | overlay-ro TARGET LOWER | bind SOURCE TARGET
#                         | robind SOURCE TARGET | tmpfs TARGET | network]... -- COMMAND...
# network says that the network is the host's: then a user namespace may not mount what shows it, /sys.
# TARGET is inside ROOT. Started by sandbox.py under unshare; nothing is mounted outside of the namespace.
set -eu
root=$1
option=${2:+,$2}
sys=yes
tmp=yes
shift 2

# A target inside the tree must not lead out of it through a link: looked at before anything is made there.
inside() {
    target=$root/${1#/}
    case $(realpath -m "$target")/ in
        "$(realpath "$root")"/*) ;;
        *) echo "mount target $1 leads out of the root tree" >&2; exit 1 ;;
    esac
}

# In a user namespace, what the host forbids of a mount (nosuid, nodev) must be said again when it is changed.
read_only() {
    mount -o remount,bind,ro "$1" 2> /dev/null && return
    flags=$(findmnt -n -o VFS-OPTIONS --mountpoint "$1")
    mount -o "remount,bind,ro${flags#rw}" "$1"
}

while [ "$1" != -- ]; do
    case $1 in
        overlay)
            inside "$2"
            mkdir -p "$target"
            # volatile: fsync in there is free. What is kept of it is synced as a whole when a layer is committed.
            mount -t overlay -o "lowerdir=$3,upperdir=$4,workdir=$5,volatile$option" overlay "$target"
            shift 5
            ;;
        overlay-ro)
            inside "$2"
            mkdir -p "$target"
            mount -t overlay -o "ro,lowerdir=$3$option" overlay "$target"
            shift 3
            ;;
        bind | robind)
            inside "$3"
            if [ -d "$2" ]; then
                mkdir -p "$target"
            else
                mkdir -p "$(dirname "$target")"
                [ -e "$target" ] || : > "$target"
            fi
            mount --bind "$2" "$target"
            [ "$1" = bind ] || read_only "$target"
            shift 3
            ;;
        tmpfs)
            inside "$2"
            mkdir -p "$target"
            mount -t tmpfs -o mode=0755 tmpfs "$target"
            [ "$2" != /tmp ] || tmp="" # what was mounted in there since then is to be seen
            shift 2
            ;;
        network)
            sys=""
            shift
            ;;
        *)
            echo "unknown mount: $1" >&2
            exit 1
            ;;
    esac
done
shift

for target in /proc /sys /dev /tmp; do inside "$target"; done
mount -t proc -o nosuid,nodev,noexec proc "$root/proc"
[ -z "$sys" ] || mount -t sysfs -o ro,nosuid,nodev,noexec sysfs "$root/sys"
mount -t tmpfs -o mode=0755,size=1m,nosuid dev "$root/dev"
for node in null zero full random urandom tty; do
    : > "$root/dev/$node"
    mount --bind "/dev/$node" "$root/dev/$node"
done
mkdir -p "$root/dev/shm" "$root/dev/pts"
ln -s /proc/self/fd "$root/dev/fd"
ln -s /proc/self/fd/0 "$root/dev/stdin"
ln -s /proc/self/fd/1 "$root/dev/stdout"
ln -s /proc/self/fd/2 "$root/dev/stderr"
[ -z "$tmp" ] || mount -t tmpfs -o mode=1777 tmpfs "$root/tmp"

hostname localhost
exec chroot "$root" "$@"
