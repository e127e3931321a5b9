"""Guests under QEMU: which accelerator works, one machine, its console, a shell in it, a whole boot."""
