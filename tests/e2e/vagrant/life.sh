#!/bin/sh
# What a user does with a box: init, up, ssh, destroy. usage: life.sh NAME URL; works in the current folder.
set -eux
vagrant init --minimal "$1" "$2"
cat >> Vagrantfile << 'RUBY'
Vagrant.configure("2") do |config|
  config.vm.boot_timeout = 900
  config.vm.provider(:libvirt) { |libvirt| libvirt.driver = "qemu" }
end
RUBY
echo hello > shared
echo "mounts: $(grep -c "/${WORLD##*/}/lib " /proc/self/mountinfo)" # by which the test knows what is left
vagrant up --provider libvirt
# shellcheck disable=SC2016 # the guest expands it
vagrant ssh -c '
set -eu
tries=0
until docker info > /dev/null 2>&1; do # sshd is up before docker is
    tries=$((tries + 1))
    [ "$tries" -lt 60 ] || { systemctl status docker --no-pager; exit 1; }
    sleep 3
done
echo "user: $(id -un), root: $(sudo id -un)"
echo "docker: $(docker info --format "{{.CgroupDriver}} {{.Driver}}")"
echo "kubelet: $(kubelet --version)"
echo "containerd: $(systemctl is-active containerd)"
echo "failed: $(systemctl --failed --no-legend | wc -l)"
echo "keys: $(wc -l < .ssh/authorized_keys), insecure: $(grep -c insecure .ssh/authorized_keys || :)"
echo "shared: $(cat /vagrant/shared)"
echo "root: $(df --output=size -BG / | tail -n 1 | tr -d " ")"
'
[ -s .vagrant/machines/default/libvirt/private_key ]
vagrant destroy --force
vagrant status --machine-readable | grep -q 'state,not_created'
