#!/bin/sh
# Stands in for a program while packages are configured: work that nothing waits for goes on beside dpkg; the rest is
# the program's own. Runs inside their root tree; see fastroot.py and fastroot.sh.
set -u
folder=/run/imagebuilder/beside
name=${0##*/}
case "$name $*" in
"depmod "* | "python3."*" -E -S /usr/lib/python3."*/py_compile.py\ *) ;; # the kernel's index; a package's .pyc files
# What a Python imports meanwhile, it must not write: that is not byte for byte what its package's script makes of it.
*) PYTHONDONTWRITEBYTECODE=1 exec "$folder/real/$name" "$@" ;;
esac
job=$(mktemp "$folder/job.XXXXXX")
for word in "$folder/real/$name" "$@"; do
    case $word in *[!A-Za-z0-9/._:=+~@-]*) exec "$folder/real/$name" "$@" ;; esac # what xargs takes as it is, or here
    echo "$word"
done > "$job"
echo "$job" > "$folder/queue"
