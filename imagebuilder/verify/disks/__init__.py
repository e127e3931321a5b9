"""Disks of unknown origin, read without root and without mounts: formats, partition tables, file systems."""

from imagebuilder.verify.disks.opening import OpenDisk, open_image

__all__ = ["OpenDisk", "open_image"]
