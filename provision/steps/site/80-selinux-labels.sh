#!/bin/sh
# title: Give every file its SELinux label, and check
# why: a file with a wrong label is one that a service may not read, and an enforcing node does not come up
# families: redhat
# phase: build
# when: vm_build
. "${IB_PROVISION:?}/lib.sh"

want_tool selinuxenabled matchpathcon
selinuxenabled || die "SELinux is off in the source image: labels cannot be written"
relabel /boot /etc /home /opt /root /usr /var/lib
for path in /usr/bin/containerd /usr/bin/kubelet /usr/bin/runc /usr/libexec/imagebuilder/* /opt/cni/bin/loopback \
    /etc/containerd/config.toml /etc/kubernetes /etc/systemd/system/*.service /var/lib/kubelet /var/lib/containerd; do
    [ ! -e "$path" ] || matchpathcon -V "$path" > /dev/null || die "$path has another SELinux label than the policy says"
done
