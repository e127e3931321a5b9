"""OVF descriptions of one-disk machines, for VirtualBox boxes and for OVA archives.

Reference: DMTF DSP0243 1.1 ("Open Virtualization Format Specification"); resource types are those of DMTF's
CIM_ResourceAllocationSettingData. What VirtualBox itself exports has the same shape (its own section, vbox:Machine,
is optional, and left out: it would fix settings that belong to its version).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape  # of what XML knows too; xml.sax would bring a web client along

STREAM = "http://www.vmware.com/interfaces/specifications/vmdk.html#streamOptimized"
_SPACES = (
    ("", "http://schemas.dmtf.org/ovf/envelope/1"),
    (":ovf", "http://schemas.dmtf.org/ovf/envelope/1"),
    (":rasd", "http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_ResourceAllocationSettingData"),
    (":vssd", "http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_VirtualSystemSettingData"),
    (":vbox", "http://www.virtualbox.org/ovf/machine"),
)
_CPU, _MEMORY, _NETWORK, _DISK = 3, 4, 10, 17  # resource types
_LINUX_64 = 101  # CIM_OperatingSystem.OSType; more exact ones differ between hypervisors


def _quoted(text: str) -> str:
    return f'"{escape(text)}"'


@dataclass(frozen=True, kw_only=True, slots=True)
class Hardware:
    """What the machine is made of, in the words of the hypervisor.

    Attributes:
        system: the family of virtual hardware.
        controller: resource type and subtype of the disk's controller (6: SCSI, 20: SATA).
        network: subtype of the network card.
        network_name: the network that it is on.
    """

    system: str
    controller: tuple[int, str]
    network: str
    network_name: str


VIRTUALBOX = Hardware(system="virtualbox-2.2", controller=(20, "AHCI"), network="E1000", network_name="NAT")
# ESXi 6.5 and later; VirtualBox imports it too.
VMWARE = Hardware(system="vmx-13", controller=(6, "lsilogic"), network="VmxNet3", network_name="VM Network")


@dataclass(frozen=True, kw_only=True, slots=True)
class Machine:
    """What a description states.

    Attributes:
        name: of the machine.
        disk: the disk's file name.
        disk_uuid: as in the disk.
        file_size: of the disk file, in bytes.
        capacity: of the disk, in bytes.
    """

    name: str
    disk: str
    disk_uuid: str
    file_size: int
    capacity: int
    memory_mib: int = 2048
    cpus: int = 2


def render(machine: Machine, hardware: Hardware) -> str:
    """Return the OVF description."""
    name, network = _quoted(machine.name), _quoted(hardware.network_name)
    spaces = "\n".join(f"  xmlns{prefix}={_quoted(uri)}" for prefix, uri in _SPACES)
    return f"""\
<?xml version="1.0" encoding="UTF-8"?>
<Envelope ovf:version="1.0" xml:lang="en-US"
{spaces}>
  <References>
    <File ovf:id="file1" ovf:href={_quoted(machine.disk)} ovf:size="{machine.file_size}"/>
  </References>
{_sections(machine, network)}
  <VirtualSystem ovf:id={name}>
    <Info>A Kubernetes node</Info>
    <Name>{escape(machine.name)}</Name>
    <OperatingSystemSection ovf:id="{_LINUX_64}">
      <Info>The operating system</Info>
      <Description>Linux_64</Description>
      <vbox:OSType ovf:required="false">Linux_64</vbox:OSType>
    </OperatingSystemSection>
    <VirtualHardwareSection>
      <Info>The virtual hardware</Info>
      <System>
        <vssd:ElementName>Virtual Hardware Family</vssd:ElementName>
        <vssd:InstanceID>0</vssd:InstanceID>
        <vssd:VirtualSystemIdentifier>{escape(machine.name)}</vssd:VirtualSystemIdentifier>
        <vssd:VirtualSystemType>{hardware.system}</vssd:VirtualSystemType>
      </System>
{_items(machine, hardware)}
    </VirtualHardwareSection>
  </VirtualSystem>
</Envelope>
"""


def _sections(machine: Machine, network: str) -> str:
    return f"""\
  <DiskSection>
    <Info>The virtual disks</Info>
    <Disk ovf:diskId="disk1" ovf:fileRef="file1" ovf:capacity="{machine.capacity}" ovf:format="{STREAM}"
      vbox:uuid="{machine.disk_uuid}"/>
  </DiskSection>
  <NetworkSection>
    <Info>The networks</Info>
    <Network ovf:name={network}>
      <Description>The node's network</Description>
    </Network>
  </NetworkSection>"""


def _items(machine: Machine, hardware: Hardware) -> str:
    kind, subtype = hardware.controller
    rows = (
        [("ElementName", f"{machine.cpus} virtual CPU"), ("InstanceID", "1"), ("ResourceType", str(_CPU)),
         ("VirtualQuantity", str(machine.cpus))],
        [("AllocationUnits", "byte * 2^20"), ("ElementName", f"{machine.memory_mib} MB of memory"),
         ("InstanceID", "2"), ("ResourceType", str(_MEMORY)), ("VirtualQuantity", str(machine.memory_mib))],
        [("Address", "0"), ("ElementName", "disk controller"), ("InstanceID", "3"), ("ResourceSubType", subtype),
         ("ResourceType", str(kind))],
        [("AddressOnParent", "0"), ("ElementName", "disk"), ("HostResource", "ovf:/disk/disk1"), ("InstanceID", "4"),
         ("Parent", "3"), ("ResourceType", str(_DISK))],
        [("AutomaticAllocation", "true"), ("Connection", hardware.network_name), ("ElementName", "network card"),
         ("InstanceID", "5"), ("ResourceSubType", hardware.network), ("ResourceType", str(_NETWORK))],
    )  # fmt: skip
    return "\n".join(_item(row) for row in rows)


def _item(fields: Sequence[tuple[str, str]]) -> str:
    # DSP0243: the elements of an item stand in the order of their names.
    lines = "\n".join(f"        <rasd:{name}>{escape(value)}</rasd:{name}>" for name, value in fields)
    return f"      <Item>\n{lines}\n      </Item>"
