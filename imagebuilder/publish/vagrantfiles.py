"""The Vagrantfile inside a box: defaults, which a project's own Vagrantfile overrides."""

from __future__ import annotations

_MACHINES = {"amd64": "x86_64", "arm64": "aarch64"}

_HEAD = """\
# The defaults of this box. A project's own Vagrantfile overrides every one of them.
Vagrant.configure("2") do |config|
  # One way, at up and reload: the box has no guest additions, and NFS would need root on the host.
  config.vm.synced_folder ".", "/vagrant", type: "rsync"
"""

_LIBVIRT = """\
  config.vm.provider :libvirt do |libvirt|
    libvirt.memory = {memory}
    libvirt.cpus = {cpus}
    libvirt.disk_bus = "virtio"
    libvirt.nic_model_type = "virtio"
  end
  config.vm.provider :qemu do |qemu|
    qemu.memory = "{memory}M"
    qemu.smp = "{cpus}"
    qemu.arch = "{machine}"
{extra}  end
end
"""

# vagrant-qemu's own defaults are those of an arm64 Mac; "max" runs under TCG and under every accelerator.
_QEMU_AMD64 = """\
    qemu.machine = "q35"
    qemu.cpu = "max"
    qemu.net_device = "virtio-net-pci"
"""

_VIRTUALBOX = """\
  config.vm.base_mac = "{mac}"
  config.vm.provider :virtualbox do |virtualbox|
    virtualbox.memory = {memory}
    virtualbox.cpus = {cpus}
    virtualbox.check_guest_additions = false
    virtualbox.functional_vboxsf = false
  end
end
"""


def vagrantfile(provider: str, arch: str, mac: str, memory: int, cpus: int) -> str:
    """Return the Vagrantfile of a box.

    Args:
        provider: as in ``metadata.json``.
        arch: ``amd64`` or ``arm64``.
        mac: address of the first network card, as Vagrant writes it.
        memory: in MiB.
        cpus: how many.
    """
    if provider == "virtualbox":
        return _HEAD + _VIRTUALBOX.format(mac=mac, memory=memory, cpus=cpus)
    extra = _QEMU_AMD64 if arch == "amd64" else ""
    return _HEAD + _LIBVIRT.format(memory=memory, cpus=cpus, machine=_MACHINES[arch], extra=extra)
