#!/bin/sh
# Builds current Packer and the plugins that tests/packer/go.mod names, for tests only, and prints their folder:
# packer, and plugins/ for PACKER_PLUGIN_PATH. Kept in the user's cache by the hash of what they are made from;
# a second run does nothing. Cold it takes some ten minutes on two cores and about 5 GB of Go's own caches.
set -eu
cd "$(dirname "$0")/.."
module=tests/packer
python=${PYTHON:-.venv/bin/python}
caches=${XDG_CACHE_HOME:-$HOME/.cache}
root=$caches/imagebuilder-test
folder=$root/packer-$(cat $module/go.mod $module/go.sum | sha256sum | cut -c 1-16)

[ ! -e "$folder/complete" ] || { echo "$folder"; exit 0; }
[ "${1:-}" != --if-built ] || { echo "not built yet: sh scripts/packer-current.sh" >&2; exit 1; }

mkdir -p "$root"
exec 9> "$root/.lock"
flock 9 # another run may build the same; then this one finds it done
[ ! -e "$folder/complete" ] || { echo "$folder"; exit 0; }
new=$(mktemp -d "$root/.new.XXXXXX")
trap 'rm -rf "$new"' EXIT
trap 'exit 130' INT TERM

# The host's Go or the pinned wheel, as for the components of an image.
go=$("$python" - "$caches/imagebuilder" "$(sed -n 's/^go //p' $module/go.mod)" <<'PYTHON'
import sys
from pathlib import Path

from imagebuilder.process import RealRunner
from imagebuilder.sources.gotoolchain import toolchain

print(toolchain(RealRunner(), Path(sys.argv[1]), sys.argv[2]).path)
PYTHON
)
export CGO_ENABLED=0 GOFLAGS=-mod=readonly GOTOOLCHAIN=local CHECKPOINT_DISABLE=1

build() { # build NAME MODULE [LINKER FLAGS]
    echo "building $2" >&2
    nice -n 19 "$go" -C "$PWD/$module" build -trimpath -buildvcs=false -ldflags "-s -w ${3:-}" -o "$new/$1" "$2" >&2
}

build packer github.com/hashicorp/packer
for owner_name in hashicorp/openstack hashicorp/googlecompute hashicorp/amazon digitalocean/digitalocean; do
    name=${owner_name#*/}
    plugin=github.com/${owner_name%/*}/packer-plugin-$name
    # Some tags still call themselves "-dev", which packer init does not take for the version.
    build "packer-plugin-$name" "$plugin" "-X $plugin/version.VersionPrerelease="
    PACKER_PLUGIN_PATH=$new/plugins "$new/packer" plugins install --path "$new/packer-plugin-$name" \
        "github.com/$owner_name" >&2
    rm "$new/packer-plugin-$name"
done
: > "$new/complete"
rm -rf "$folder"
mv "$new" "$folder"
echo "$folder"
