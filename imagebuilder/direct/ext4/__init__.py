"""An ext4 file system, laid out in memory and read on demand.

Reference: the kernel's Documentation/filesystems/ext4 ("doc" in this package; files of it are named where they
matter), and e2fsprogs 1.47 where ``mke2fs`` decides something. What is made is what ``mke2fs`` of Debian makes,
without the two features that older readers do not know (metadata_csum_seed, orphan_file); files lie in the order of
their paths, nothing in it is random or of this moment.
"""
