#!/bin/sh
# title: Make the user that Vagrant logs in as
# why: it wants sudo without a password and a key that it knows, which it replaces at the first up
# families: debian redhat
# phase: build
# when: vagrant
# uses: files/vagrant.pub
. "${IB_PROVISION:?}/lib.sh"

want_tool sudo
id -u vagrant > /dev/null 2>&1 || useradd --create-home --shell /bin/bash vagrant
usermod --password '*' vagrant # no password, but not locked either: sshd refuses locked accounts without PAM
! getent group docker > /dev/null || usermod --append --groups docker vagrant
printf 'vagrant ALL=(ALL) NOPASSWD: ALL\n' | put /etc/sudoers.d/vagrant 0440
home=$(getent passwd vagrant | cut -d: -f6)
put "$home/.ssh/authorized_keys" 0600 < "$IB_PROVISION/files/vagrant.pub"
chmod 0700 "$home/.ssh"
chown -R vagrant: "$home/.ssh"
relabel "$home"
