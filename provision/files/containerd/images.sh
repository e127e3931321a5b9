# shellcheck shell=sh
# Words for containerd's image store; the steps that fill it read this file after lib.sh.

# containerd_begin: has a containerd answer until containerd_end: the one that runs, or a private one.
containerd_begin() {
    containerd_socket=/run/containerd/containerd.sock
    containerd_pid=""
    if [ ! -S "$containerd_socket" ]; then
        containerd_socket=/run/imagebuilder-preload/containerd.sock
        mkdir -p "${containerd_socket%/*}"
        render containerd/preload.toml "SOCKET=$containerd_socket" > "${containerd_socket%/*}/config.toml"
        containerd --config "${containerd_socket%/*}/config.toml" --log-level warn &
        containerd_pid=$!
        containerd_wait=0
        until ctr --address "$containerd_socket" version > /dev/null 2>&1; do
            kill -0 "$containerd_pid" 2> /dev/null || die "containerd ended while images were preloaded"
            containerd_wait=$((containerd_wait + 1))
            [ "$containerd_wait" -lt 300 ] || die "containerd did not answer within 30 s"
            sleep 0.1
        done
    fi
}

# containerd_end: has garbage removed, and ends the private containerd, if there is one. An archive's own index is
# garbage, which containerd removes some time later, or ends before: the store would not be the same each time.
containerd_end() {
    containerd_lease=$(leases create)
    leases delete --sync "$containerd_lease" > /dev/null
    relabel /var/lib/containerd
    [ -n "$containerd_pid" ] || return 0
    kill "$containerd_pid"
    wait "$containerd_pid" || true
    rm -rf /run/imagebuilder-preload
}

# leases WORD...: "ctr leases" in the same namespace; the end of one with --sync waits for the garbage's.
leases() { ctr --address "$containerd_socket" --namespace k8s.io leases "$@"; }

# images WORD...: "ctr images" in the namespace that kubelet sees.
images() { ctr --address "$containerd_socket" --namespace k8s.io images "$@"; }

# images_local WORD: prints --local where "ctr images WORD" has it: there, the transfer service of containerd 2.x is
# the default, which takes no archives with several names and knows nothing of this shell's proxy.
images_local() { ! ctr images "$1" --help | grep -q -- --local || say --local; }

# images_preload PIN FILE...: unpacks OCI archives into containerd's store, so that no first boot has to.
# PIN names the image that kubelet must never remove, or is empty.
images_preload() {
    preload_pin=$1
    shift
    [ $# -gt 0 ] || return 0
    containerd_begin
    for archive in "$@"; do
        # shellcheck disable=SC2046 # one option or none
        images import $(images_local import) "$archive"
    done
    [ -z "$preload_pin" ] || images label "$preload_pin" io.cri-containerd.pinned=pinned
    containerd_end
}

# image_pull REFERENCE: pulls an image, unless it is there, and pins it. A digest is what is pulled, if one is stated.
image_pull() {
    pull_name=$(image_name "$1")
    pull_from=$1
    [ "$pull_name" = "$1" ] || pull_from=${pull_name%:*}@${1#*@}
    containerd_begin
    if [ -z "$(images list --quiet "name==$pull_name")" ]; then
        # shellcheck disable=SC2046 # one option or none
        images pull $(images_local pull) "$pull_from" || die "the image $pull_from cannot be pulled"
        [ "$pull_from" = "$pull_name" ] || images tag "$pull_from" "$pull_name"
    fi
    images label "$pull_name" io.cri-containerd.pinned=pinned
    containerd_end
}
