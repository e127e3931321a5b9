#!/bin/sh
# The init of the small initramfs: loads the drivers, waits for the root file system, mounts it, hands over to its init.
# Started by the kernel with the arguments that it does not know; the system's init gets the same ones.
# Kernel arguments (bootparam(7)): root=UUID=|LABEL=|/dev/..., rootfstype, rootflags, rootdelay=SECONDS, ro, rw, init,
# break (a shell before the root is mounted), panic=SECONDS (no shell: the machine restarts).
export PATH=/bin
LONGEST=30 # seconds until the disk must be there: a controller's own scan takes ten at most

# give_up WHAT ARGUMENT...: says what is missing, then starts a shell; when that ends, all is tried again.
give_up() {
    printf '\nALERT! %s\n' "$1"
    shift
    echo "Kernel arguments: $(cat /proc/cmdline)"
    echo "Drivers that did not load:${failed:- none}"
    echo "Drivers that there are: $(while read -r name; do printf '%s ' "$name"; done < /modules/order)"
    echo "Disks and partitions that the kernel sees:"
    cat /proc/partitions
    for device in /sys/bus/pci/devices/*; do
        read -r class < "$device/class" || continue
        read -r alias < "$device/modalias" || continue
        case $class in # of mass storage
            0x01*) [ -e "$device/driver" ] || echo "Disk controller without a driver: ${device##*/} $alias" ;;
        esac
    done
    if [ -n "$panic" ]; then
        echo "panic=$panic: the machine restarts"
        sleep "$panic"
        reboot -f
    fi
    /bin/busybox --install -s /bin
    PS1='(initramfs) ' setsid cttyhack sh
    exec /init "$@"
}

# found: true once the root's device is there; its name is in $device.
found() {
    case $root in
        UUID=* | LABEL=*) device=$(findfs "$root" 2> /dev/null) ;;
        /dev/*) device=$root ;;
        *) device="" ;;
    esac
    [ -b "$device" ]
}

if [ ! -e /proc/cmdline ]; then # else the shell has ended
    mount -t devtmpfs -o nosuid,mode=0755 dev /dev
    mount -t proc -o nosuid,nodev,noexec proc /proc
    mount -t sysfs -o nosuid,nodev,noexec sysfs /sys
fi

root="" type=ext4 flags="" mode=ro init=/sbin/init wait=$LONGEST stop="" panic=""
read -r line < /proc/cmdline
for word in $line; do
    case $word in
        root=*) root=${word#root=} ;;
        rootfstype=*) type=${word#*=} ;;
        rootflags=*) flags=,${word#*=} ;;
        rootdelay=*[!0-9]* | rootdelay=) ;;
        rootdelay=*) wait=${word#*=} ;;
        ro | rw) mode=$word ;;
        init=*) init=${word#init=} ;;
        panic=*) panic=${word#panic=} ;;
        break | break=*) stop=1 ;;
    esac
done

failed=""
while read -r name; do
    # A driver for hardware that is not there may refuse to load: that matters only where the root is not found.
    [ -d "/sys/module/$name" ] || insmod "/modules/$name.ko" 2> /dev/null || failed="$failed $name"
done < /modules/order

[ -z "$stop" ] || give_up "break: a shell before the root is mounted" "$@"
tenths=$((wait * 10))
until found; do
    [ "$tenths" -gt 0 ] || give_up "The root file system root=$root does not exist (waited for $wait s)." "$@"
    tenths=$((tenths - 1))
    sleep 0.1
done
mount -t "$type" -o "$mode$flags" "$device" /root || give_up "$device cannot be mounted as the root, a $type." "$@"
# Not -x: it may be a link, which leads somewhere only once its root is ours.
[ -e "/root$init" ] || [ -L "/root$init" ] || give_up "$init on the root $device does not exist." "$@"

for folder in dev proc sys; do
    mount -o move "/$folder" "/root/$folder" || give_up "The root $device has no /$folder." "$@"
done
exec switch_root /root "$init" "$@"
