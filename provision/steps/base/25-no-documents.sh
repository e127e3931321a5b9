#!/bin/sh
# title: Leave out manuals, translations and documents
# why: nobody reads them on a node, and they are a tenth of the tree; licences stay
# families: debian redhat
# phase: build
. "${IB_PROVISION:?}/lib.sh"

rm -rf /usr/share/man/* /usr/share/info/*
find /usr/share/doc -mindepth 1 ! -type d ! -name copyright -delete
find /usr/share/doc -mindepth 1 -type d -empty -delete
find /usr/share/locale -mindepth 1 -maxdepth 1 ! -name locale.alias -exec rm -rf {} +
