#!/bin/sh
# usage: sh packer-1.6/prepare.sh WORK
# Makes a copy of this folder that Packer 1.6 takes: without the list of plugins, and with its own sources.
# Where cloud-init gives the machine its user, what it reads is written here: a new key and a new password for each build.
set -eu
from=$(cd "$(dirname "$0")/.." && pwd)
work=${1:?usage: prepare.sh WORK}
mkdir "$work" # fails when it is there
cp -R "$from/scripts" "$from/files" "$work/"
for file in "$from"/*.hcl "$from"/packer-1.6/*.hcl; do
    case $file in
        */plugins.pkr.hcl | *'*'*) ;;
        *) cp "$file" "$work/" ;;
    esac
done
[ ! -d "$from/unattended" ] || cp -R "$from/unattended" "$work/"
grep -q '/cloud-init/' "$work/sources.pkr.hcl" || exit 0
user=$(sed -n 's/^ssh_username *= *"\(.*\)"$/\1/p' "$work"/*.auto.pkrvars.hcl)
password=$(od -An -N 18 -tx1 /dev/urandom | tr -d ' \n')
umask 077
mkdir "$work/cloud-init"
ssh-keygen -q -t ed25519 -N "" -C build -f "$work/cloud-init/key"
if grep -q '"ssh_password"' "$work/variables.pkr.hcl"; then
    printf 'ssh_password = "%s"\n' "$password" > "$work/credential.auto.pkrvars.hcl"
fi
printf 'instance-id: build-%s\n' "$(date +%s)" > "$work/cloud-init/meta-data"
cat > "$work/cloud-init/user-data" << END
#cloud-config
users:
  - name: ${user:?}
    ssh_authorized_keys: ["$(cat "$work/cloud-init/key.pub")"]
    plain_text_passwd: "$password"
    lock_passwd: false
    shell: /bin/bash
    sudo: "ALL=(ALL) NOPASSWD:ALL"
ssh_pwauth: true
ssh_genkeytypes: [ed25519]
locale: C.UTF-8
END
