#!/bin/sh
# title: Set up the package repositories from outside the distribution
# why: Kubernetes and docker come from their own; a repository is trusted only for the key whose fingerprint is stated
# families: debian redhat
# phase: build
# when: repositories
# inputs: IB_REPOSITORIES
. "${IB_PROVISION:?}/lib.sh"

# IB_REPOSITORIES: words NAME|URI|SUITE|COMPONENTS|KEY|FINGERPRINT; components are separated by commas, suite and
# components are empty for dnf, KEY is an https address or the absolute path of a file, which may hold other keys too.
want_tool curl gpg
folder=$(mktemp -d)
trap 'gpgconf --homedir "$folder" --kill all > /dev/null 2>&1 || true; rm -rf "$folder"' EXIT
gpg_do() { gpg --homedir "$folder" --batch --quiet --no-autostart "$@"; }

# key NAME KEY FINGERPRINT: writes the one key with the fingerprint to $folder/NAME.asc.
key() {
    case $2 in
        /*) cp "$2" "$folder/$1.key" || die "repository $1: there is no key file $2" ;;
        *) download "$2" "$folder/$1.key" ;;
    esac
    gpg_do --show-keys --with-colons "$folder/$1.key" > "$folder/$1.list" || die "repository $1: $2 holds no key"
    # The fingerprint after a "pub" line is the key's own, those after "sub" lines are of parts of it.
    found=$(awk -F: '$1 == "pub" { own = 1 } $1 == "fpr" && own { print $10; own = 0 }' "$folder/$1.list")
    printf '%s\n' "$found" | grep -qxF "$3" \
        || die "repository $1: the key at $2 is $(printf '%s' "$found" | tr '\n' ' '), not $3"
    gpg_do --import "$folder/$1.key"
    gpg_do --armor --export "$3" > "$folder/$1.asc"
    [ -s "$folder/$1.asc" ] || die "repository $1: the key $3 cannot be read"
}

set -f # addresses are no patterns of files
for repository in ${IB_REPOSITORIES:?}; do
    IFS='|' read -r name uri suite components key fingerprint rest << END
$repository
END
    printf '%s\n' "$name" | grep -qxE '[a-z0-9][a-z0-9-]*' || die "not a name of a repository: $name"
    printf '%s\n' "$fingerprint" | grep -qxE '[0-9A-F]{40}' || die "repository $name: not a fingerprint: $fingerprint"
    case $uri in https://* | http://* | file:/*) ;; *) die "repository $name: not an address: $uri" ;; esac
    [ -z "$rest" ] || die "repository $name: more than six fields"
    key "$name" "$key" "$fingerprint"
    pkg_repository "$name" "$uri" "$suite" "$(printf '%s' "$components" | tr , ' ')" "$folder/$name.asc"
done
