#!/bin/sh
# title: Make the user vagrant, with sudo and the key that Vagrant replaces
# why: Vagrant's first up logs in with its well-known key, puts a new one in its place, and needs root
# families: debian
# phase: build
# when: vagrant
. "${IB_PROVISION:?}/lib.sh"

id vagrant > /dev/null 2>&1 || useradd --create-home --shell /bin/bash --user-group vagrant
usermod --password '*' vagrant # no password, but not locked either: sshd refuses locked accounts without PAM
! getent group docker > /dev/null || usermod --append --groups docker vagrant
printf 'vagrant ALL=(ALL) NOPASSWD: ALL\n' | put /etc/sudoers.d/vagrant 0440
# keys/vagrant.pub of hashicorp/vagrant: the one key that every version of Vagrant tries.
home=$(getent passwd vagrant | cut -d: -f6)
put "$home/.ssh/authorized_keys" 0600 << 'KEYS'
ssh-rsa AAAAB3NzaC1yc2EAAAABIwAAAQEA6NF8iallvQVp22WDkTkyrtvp9eWW6A8YVr+kz4TjGYe7gHzIw+niNltGEFHzD8+v1I2YJ6oXevct1YeS0o9HZyN1Q9qgCgzUFtdOKLv6IedplqoPkcmF0aYet2PkEDo3MlTBckFXPITAMzF8dJSIFo9D8HfdOV0IAdx4O7PtixWKn5y2hMNG0zQPyUecp4pzC6kivAIhyfHilFR61RGL+GPXQ2MWZWFYbAGjyiYJnAmCP3NOTd0jMZEnDkbUvxhMmBYSdETk1rRgm+R4LOzFUGaHqHDLKLX+FIPKcF96hrucXzcWyLbIbEgE98OHlnVYCzRdK8jlqm8tehUc9c9WhQ== vagrant insecure public key
KEYS
chmod 0700 "$home/.ssh"
chown -R vagrant:vagrant "$home/.ssh"
