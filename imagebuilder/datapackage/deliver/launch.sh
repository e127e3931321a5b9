#!/bin/sh
# Makes a machine of a Mesos cluster a Kubernetes node: applies the data package below the sandbox, becomes kubelet.
#
# MESOS_SANDBOX   the folder with this script, kubelet, root/ (agent, trusted keys, facts) and imagebuilder.ibdata
# KUBELET_ARGS    more arguments for kubelet
set -eu
umask 077
sandbox=${MESOS_SANDBOX:?is set by Mesos}
root=$sandbox/root run=$sandbox/run
conf=$root/etc/kubernetes

python3 "$root/usr/lib/imagebuilder/agent.py" --root "$root" apply --no-restart "$sandbox/imagebuilder.ibdata"

# The package's files name each other where they would be on a machine that is a node and nothing else.
mkdir -p "$run" "$sandbox/kubelet-data"
rebase() {
    # The separator cannot be in a path of the package's; a sandbox with one in its path is refused.
    case $root in *[\|\&\\]*) echo "launch.sh: $root has a character that sed would take for its own" >&2; exit 1 ;; esac
    sed -e "s|/etc/kubernetes/|$root&|g" -e "s|/var/lib/kubelet/|$root&|g" "$1" > "$2"
}
rebase "$root/var/lib/kubelet/config.yaml" "$run/config.yaml"
set -- --config="$run/config.yaml" --root-dir="$sandbox/kubelet-data" --cert-dir="$root/var/lib/kubelet/pki"
if [ -e "$conf/bootstrap-kubelet.conf" ]; then
    rebase "$conf/bootstrap-kubelet.conf" "$run/bootstrap-kubelet.conf"
    set -- "$@" --bootstrap-kubeconfig="$run/bootstrap-kubelet.conf" --kubeconfig="$run/kubelet.conf"
elif [ -e "$conf/kubelet.conf" ]; then
    rebase "$conf/kubelet.conf" "$run/kubelet.conf"
    set -- "$@" --kubeconfig="$run/kubelet.conf"
fi
if [ -s "$root/etc/hostname" ]; then
    set -- "$@" --hostname-override="$(cat "$root/etc/hostname")"
fi
# shellcheck disable=SC2086  # several words, on purpose
exec "$sandbox/kubelet" "$@" ${KUBELET_ARGS:-}
