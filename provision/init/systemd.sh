# shellcheck shell=sh
# systemd, behind the words that the steps use. No step calls systemctl itself.

# service_install NAME: puts the files of provision/services/NAME/systemd/ in place and enables its units.
# Files under root/ are copied as they are; enable lists units to enable, one a line.
service_install() {
    service_dir="${IB_PROVISION:?}/services/$1/systemd"
    [ -d "$service_dir" ] || die "no service $1 for systemd"
    (cd "$service_dir/root" && find . -type f) | while read -r path; do
        mode=0644
        [ ! -x "$service_dir/root/$path" ] || mode=0755
        put "/${path#./}" "$mode" < "$service_dir/root/$path"
    done
    [ ! -e "$service_dir/enable" ] || while read -r unit; do service_enable "$unit"; done < "$service_dir/enable"
}

service_enable() { systemctl --quiet enable "$@"; }

# service_mask UNIT...: makes units impossible to start, whether they are installed or not.
service_mask() {
    for unit in "$@"; do ln -sfn /dev/null "/etc/systemd/system/$unit"; done
}

# service_mask_generators NAME...: unit generators that find nothing on a node; each is a program run before any unit.
service_mask_generators() {
    mkdir -p /etc/systemd/system-generators
    for generator in "$@"; do ln -sfn /dev/null "/etc/systemd/system-generators/$generator"; done
}
