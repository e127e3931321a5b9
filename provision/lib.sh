# shellcheck shell=sh
# Words that the steps use. A step starts with:  . "${IB_PROVISION:?}/lib.sh"
# Everything here can be called twice: what is already there is left alone.

set -eu
umask 022
export DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8

say() { printf '%s\n' "$*"; }

die() {
    printf 'error: %s\n' "$*" >&2
    exit 1
}

# put PATH [MODE]: writes standard input to PATH if it differs, with its folders.
put() {
    mkdir -p "$(dirname "$1")"
    cat > "$1.imagebuilder-new"
    if [ -e "$1" ] && cmp -s "$1" "$1.imagebuilder-new"; then
        rm "$1.imagebuilder-new"
    else
        mv "$1.imagebuilder-new" "$1"
    fi
    chmod "${2:-0644}" "$1"
}

# render FILE NAME=VALUE...: prints a file of provision/files with @NAME@ replaced; a leftover @NAME@ is an error.
render() {
    render_script=""
    render_file="${IB_PROVISION:?}/files/$1"
    [ -f "$render_file" ] || die "there is no file $1 to fill in"
    shift
    for pair in "$@"; do
        value=$(printf '%s' "${pair#*=}" | sed 's/[\\|&]/\\&/g')
        render_script="$render_script;s|@${pair%%=*}@|$value|g"
    done
    sed "${render_script#;}" "$render_file" | awk '/@[A-Z_]+@/ { print "unset: " $0 > "/dev/stderr"; bad = 1 } { print } END { exit bad }'
}

# install_program FILE: puts one program of the payload into /usr/bin, if it differs.
install_program() {
    cmp -s "$1" "/usr/bin/$(basename "$1")" || install -m 0755 "$1" /usr/bin/
}

# want_program NAME: fails the step when a program that the image must hold is not there.
want_program() { command -v "$1" > /dev/null || die "$1 was not installed by any source"; }

# images_preload PIN FILE...: unpacks OCI archives into containerd's store, so that no first boot has to.
# PIN names the image that kubelet must never remove, or is empty. Uses a running containerd, or a private one.
images_preload() {
    preload_pin=$1
    shift
    [ $# -gt 0 ] || return 0
    preload_socket=/run/containerd/containerd.sock
    preload_pid=""
    if [ ! -S "$preload_socket" ]; then
        preload_socket=/run/imagebuilder-preload/containerd.sock
        mkdir -p "${preload_socket%/*}"
        render containerd/preload.toml "SOCKET=$preload_socket" > "${preload_socket%/*}/config.toml"
        containerd --config "${preload_socket%/*}/config.toml" --log-level warn &
        preload_pid=$!
        preload_wait=0
        until ctr --address "$preload_socket" version > /dev/null 2>&1; do
            kill -0 "$preload_pid" 2> /dev/null || die "containerd ended while images were preloaded"
            preload_wait=$((preload_wait + 1))
            [ "$preload_wait" -lt 300 ] || die "containerd did not answer within 30 s"
            sleep 0.1
        done
    fi
    # --local where there is a choice: the transfer service of containerd 2.x takes no archives with several names.
    preload_local=""
    ! ctr images import --help | grep -q -- --local || preload_local=--local
    for archive in "$@"; do
        # shellcheck disable=SC2086 # one option or none
        ctr --address "$preload_socket" --namespace k8s.io images import $preload_local "$archive"
    done
    [ -z "$preload_pin" ] \
        || ctr --address "$preload_socket" --namespace k8s.io images label "$preload_pin" io.cri-containerd.pinned=pinned
    if [ -n "$preload_pid" ]; then
        kill "$preload_pid"
        wait "$preload_pid" || true
        rm -rf /run/imagebuilder-preload
    fi
}

# shellcheck source=/dev/null
. "${IB_PROVISION:?}/family/${IB_FAMILY:?}.sh"
# shellcheck source=/dev/null
. "${IB_PROVISION:?}/init/${IB_INIT:?}.sh"
