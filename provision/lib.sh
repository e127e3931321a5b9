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
    relabel "$1"
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
    relabel "/usr/bin/$(basename "$1")"
}

# want_program NAME: fails the step when a program that the image must hold is not there.
want_program() { command -v "$1" > /dev/null || die "$1 was not installed by any source"; }

# want_tool PROGRAM...: installs the packages of programs that the build itself calls, where they are missing.
want_tool() {
    for tool in "$@"; do
        command -v "$tool" > /dev/null || pkg_install "$(tool_package "$tool")"
        want_program "$tool"
    done
}

# download URL FILE: fetches a small file over https only, redirects included.
download() {
    case $1 in https://*) ;; *) die "not an https address: $1" ;; esac
    curl --fail --silent --show-error --location --proto =https --proto-redir =https --max-filesize 1048576 \
        --connect-timeout 20 --max-time 120 --retry 3 --output "$2" "$1" || die "cannot download $1"
}

# kernels: prints the versions of the kernels in the tree, the newest last.
kernels() { find /lib/modules/ -mindepth 1 -maxdepth 1 -type d -printf '%f\n' | sort -V; }

# kernel_newest: prints the kernel that the next boot takes.
kernel_newest() {
    newest=$(kernels | tail -n 1)
    [ -n "$newest" ] || die "there is no kernel in /lib/modules"
    say "$newest"
}

# image_name REFERENCE: prints the name by which containerd's CRI finds an image: NAME:TAG@DIGEST is NAME:TAG.
image_name() {
    name=${1%%@*}
    case ${name##*/} in
        *:*) say "$name" ;;
        *) say "$1" ;;
    esac
}

# shellcheck source=/dev/null
. "${IB_PROVISION:?}/family/${IB_FAMILY:?}.sh"
# shellcheck source=/dev/null
. "${IB_PROVISION:?}/init/${IB_INIT:?}.sh"
