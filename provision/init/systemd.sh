# shellcheck shell=sh
# systemd, behind the words that the steps use. No step calls systemctl itself.

# machine_runs: true in a machine that systemd booted, false in a root tree (sd_booted(3) looks at the same folder).
machine_runs() { [ -d /run/systemd/system ]; }

# service_install NAME: puts the files of provision/services/NAME/systemd/ in place and enables its units; then those
# of its folder for the family. Files under root/ are copied as they are; enable lists units to enable, one a line.
service_install() {
    service_found=""
    for service_dir in "${IB_PROVISION:?}/services/$1/systemd" "$IB_PROVISION/services/$1/systemd/${IB_FAMILY:?}"; do
        if [ -d "$service_dir/root" ]; then
            service_found=1
            (cd "$service_dir/root" && find . -type f) | while read -r path; do
                mode=0644
                [ ! -x "$service_dir/root/$path" ] || mode=0755
                put "/${path#./}" "$mode" < "$service_dir/root/$path"
            done
        fi
        if [ -e "$service_dir/enable" ]; then
            service_found=1
            while read -r unit; do service_enable "$unit"; done < "$service_dir/enable"
        fi
    done
    [ -n "$service_found" ] || die "no service $1 for systemd"
}

service_enable() { systemctl --quiet enable "$@"; }

# service_stop UNIT...: stops units that run; in a root tree none does.
service_stop() {
    ! machine_runs || for unit in "$@"; do
        ! systemctl --quiet is-active "$unit" || systemctl stop "$unit"
    done
}

# service_mask UNIT...: makes units impossible to start, whether they are installed or not.
service_mask() {
    for unit in "$@"; do ln -sfn /dev/null "/etc/systemd/system/$unit"; done
}

# service_mask_present UNIT...: masks those that are installed.
service_mask_present() {
    for unit in "$@"; do
        for folder in /usr/lib/systemd/system /lib/systemd/system /etc/systemd/system; do
            [ ! -e "$folder/$unit" ] || service_mask "$unit"
        done
    done
}

# service_mask_generators NAME...: unit generators that find nothing on a node; each is a program run before any unit.
service_mask_generators() {
    mkdir -p /etc/systemd/system-generators
    for generator in "$@"; do ln -sfn /dev/null "/etc/systemd/system-generators/$generator"; done
}
