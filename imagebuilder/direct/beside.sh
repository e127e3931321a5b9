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
printf '%s\n' "$folder/real/$name" "$@" > "$job" # their scripts split the list at white space: no word has a line's end
echo "$job" > "$folder/queue"
