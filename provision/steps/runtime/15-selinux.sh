#!/bin/sh
# title: Keep SELinux enforcing, with the policy for containers
# why: it confines containers; without container-selinux the choice would be between broken pods and no SELinux
# families: redhat
# phase: build
. "${IB_PROVISION:?}/lib.sh"

pkg_install container-selinux
want_tool restorecon selinuxenabled
printf 'SELINUX=enforcing\nSELINUXTYPE=targeted\n' | put /etc/selinux/config
relabel /etc /opt /usr/libexec/imagebuilder # what was written before the policy knew of containers
