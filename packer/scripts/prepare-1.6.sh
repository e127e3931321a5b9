#!/bin/sh
# usage: sh packer-1.6/prepare.sh WORK
# Makes a copy of this folder that Packer 1.6 takes: without the list of plugins, and with its own sources.
# Where the machine is given its user by a seed, the seed and its key are made here, new for each build.
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
grep -q '/seed/' "$work/sources.pkr.hcl" || exit 0
user=$(sed -n 's/^ssh_username *= *"\(.*\)"$/\1/p' "$work"/*.auto.pkrvars.hcl)
mkdir -m 0700 "$work/seed"
ssh-keygen -q -t ed25519 -N "" -C build -f "$work/seed/key"
printf 'instance-id: build-%s\n' "$(date +%s)" > "$work/seed/meta-data"
cat > "$work/seed/user-data" << END
#cloud-config
users:
  - name: ${user:?}
    ssh_authorized_keys: ["$(cat "$work/seed/key.pub")"]
    lock_passwd: true
    shell: /bin/bash
    sudo: "ALL=(ALL) NOPASSWD:ALL"
ssh_genkeytypes: [ed25519]
locale: C.UTF-8
END
