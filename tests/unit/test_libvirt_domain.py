"""The libvirt backend's words: its table, the description of a machine, and which machines can be adopted."""

import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from backends import config
from backends.errors import ConfigError
from backends.libvirt import description, domain, table
from backends.libvirt.adopt import NotAdoptable, examine
from backends.libvirt.description import DescriptionUnfit
from backends.libvirt.domain import Place
from backends.libvirt.image import Image
from backends.libvirt.table import Machine

APP_ID = "0123456789abcdef" * 2


def read(text: str) -> Machine:
    return table.read(config.parse(text))


def place(folder: str = "/n") -> Place:
    images = [Image(Path(folder, "a & b", f"{name}.qcow2"), "qcow2", 1 << 20) for name in ("instance", "app")]
    images.append(Image(Path(folder, "base"), "raw", 1 << 20))
    return Place(images, Path(folder, "vmlinuz"), Path(folder, "initrd"), Path(folder, "console"), "/bin/qemu", True)


def described(machine: Machine | None = None, folder: str = "/n") -> ET.Element:
    wanted = machine or Machine(cmdline="quiet", bridge="br0", ipv4="10.0.0.5/24", gateway="10.0.0.1")
    return ET.fromstring(domain.describe(APP_ID, wanted, "qemu", "pc-i440fx-7.2", place(folder)))


def text_of(root: ET.Element) -> str:
    return ET.tostring(root, encoding="unicode")


def add(root: ET.Element, path: str, fragment: str) -> str:
    parent = root if path == "." else root.find(path)
    assert parent is not None
    parent.append(ET.fromstring(fragment))
    return text_of(root)


# The table


def test_the_table_has_defaults() -> None:
    assert read("") == Machine(memory_mb=256, vcpus=1, kvm=None, disk_bus="virtio", bridge=None)


def test_all_keys_are_read() -> None:
    machine = read(
        '[libvirt]\nmemory_mb = 512\nvcpus = 2\ncmdline = "quiet"\nmachine = "pc-q35-7.2"\nkvm = false\n'
        'disk_bus = "sata"\nnetwork = "bridge:br-lan.5"\nmac = "02:00:00:AA:00:01"\nipv4 = "10.88.0.5/24"\n'
        'gateway = "10.88.0.1"\n'
    )
    assert machine == Machine(
        512, 2, "quiet", "pc-q35-7.2", False, "sata", "br-lan.5", "02:00:00:aa:00:01", "10.88.0.5/24", "10.88.0.1"
    )


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ('command = ["sh"]', "command"),
        ("[libvirt]\nmemory = 5", "libvirt.memory"),
        ("[libvirt]\nmemory_mb = 1", "libvirt.memory_mb"),
        ("[libvirt]\nmemory_mb = true", "libvirt.memory_mb"),
        ("[libvirt]\nvcpus = 1000", "libvirt.vcpus"),
        ("[libvirt]\nkvm = 1", "libvirt.kvm"),
        ('[libvirt]\nmachine = "pc,accel=tcg"', "libvirt.machine"),
        ('[libvirt]\nmachine = ""', "libvirt.machine"),
        ('[libvirt]\ncmdline = "a\\nb"', "libvirt.cmdline"),
        ('[libvirt]\ndisk_bus = "floppy"', "libvirt.disk_bus"),
        ('[libvirt]\nnetwork = "host"', "libvirt.network"),
        ('[libvirt]\nnetwork = "bridge:a b"', "libvirt.network"),
        ('[libvirt]\nmac = "02:00:00:00:00:01"', "libvirt.network"),
        ('[libvirt]\nnetwork = "bridge:b"\nmac = "01:00:00:00:00:01"', "libvirt.mac"),
        ('[libvirt]\nnetwork = "bridge:b"\nipv4 = "10.0.0.300"', "libvirt.ipv4"),
        ('[libvirt]\nnetwork = "bridge:b"\ngateway = "10.0.0.1/24"', "libvirt.gateway"),
    ],
)
def test_what_cannot_be_run_is_named(text: str, where: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(text)
    assert caught.value.where == where


# The description of a machine


def test_a_description_names_the_whole_chain() -> None:
    root = described()
    path, files = "devices/disk", []
    while (source := root.find(f"{path}/source")) is not None:
        files.append(source.get("file"))
        path += "/backingStore"
    assert files == ["/n/a & b/instance.qcow2", "/n/a & b/app.qcow2", "/n/base"]
    lowest = root.find(path)
    assert lowest is not None
    assert not len(lowest)
    assert root.findtext("os/cmdline") == "quiet p2p_ipv4=10.0.0.5/24 p2p_gateway=10.0.0.1"
    assert root.findtext("seclabel/label") == "+0:+0"


def test_without_a_kernel_the_disk_is_booted() -> None:
    given = place()
    bare = Place(given.images, None, None, given.console, None, False)
    root = ET.fromstring(domain.describe(APP_ID, Machine(), "kvm", "pc", bare))
    assert root.find("os/kernel") is None
    assert root.find("os/boot[@dev='hd']") is not None
    assert root.find("devices/interface") is None
    assert root.find("seclabel") is None
    assert root.find("cpu[@mode='host-model']") is not None


def test_the_address_of_its_own_is_the_same_everywhere() -> None:
    mac = described().find("devices/interface/mac")
    assert mac is not None
    assert mac.get("address") == "02:01:23:45:67:89" == domain.mac_of(APP_ID)


def test_a_saved_description_is_given_this_nodes_paths() -> None:
    saved = described(folder="/there")
    add(saved, "devices/disk", "<address type='pci' slot='0x07'/>")
    add(saved, "devices", "<console type='file'><source path='/there/console'/></console>")
    add(saved, "devices/interface", "<script path='/there/evil'/>")
    add(saved, "devices/interface", "<rom file='/there/shadow'/>")
    add(saved, "os", "<loader>/there/firmware</loader>")
    add(saved, ".", "<resource><partition>/there</partition></resource>")
    for model in ("dac", "apparmor"):
        add(saved, ".", f"<seclabel type='dynamic' model='{model}'><label>/there</label></seclabel>")
    for device in (
        "<input type='mouse' bus='ps2'/>",
        "<input type='keyboard' bus='ps2'/>",
        "<audio id='1' type='none'/>",
    ):
        add(saved, "devices", device)
    fitted = domain.fit(text_of(saved), APP_ID, Machine(cmdline="quiet", bridge="br1"), place("/here"))
    assert "/there" not in fitted
    root = ET.fromstring(fitted)
    assert root.find("devices/disk/address[@slot='0x07']") is not None
    assert root.find("devices/interface/source[@bridge='br1']") is not None
    assert root.findtext("os/kernel") == "/here/vmlinuz"
    assert root.find("devices/serial/source[@path='/here/console']") is not None


@pytest.mark.parametrize(
    ("path", "fragment", "told"),
    [
        ("devices", "<filesystem type='mount'><source dir='/'/></filesystem>", "device of kind filesystem"),
        ("devices", "<hostdev mode='subsystem' type='pci'/>", "device of kind hostdev"),
        ("devices", "<disk type='file'><source file='/etc/shadow'/></disk>", "other disks"),
        ("devices", "<interface type='user'/>", "other network devices"),
        ("devices", "<serial type='pty'/>", "other serial ports"),
        (".", "<q:commandline xmlns:q='http://libvirt.org/schemas/domain/qemu/1.0'/>", "has the element"),
        (".", "<memoryBacking><source type='file'/></memoryBacking>", "has the element memoryBacking"),
        (".", "<devices><hostdev mode='subsystem' type='pci'/></devices>", "devices more than once"),
        (".", "<os><kernel>/etc/shadow</kernel></os>", "os more than once"),
        ("devices", "<input type='evdev'><source dev='/dev/input/event0'/></input>", "kind input evdev"),
        ("devices", "<input type='passthrough' bus='virtio'/>", "kind input passthrough"),
        ("devices", "<audio id='1' type='file' path='/etc/cron.d/x'/>", "kind audio file"),
    ],
)
def test_a_saved_description_that_asks_for_more_is_refused(path: str, fragment: str, told: str) -> None:
    saved = add(described(), path, fragment)
    with pytest.raises(DescriptionUnfit, match=told):
        domain.fit(saved, APP_ID, Machine(), place())


def test_a_machine_that_fills_the_hosts_disk_when_it_crashes_is_refused() -> None:
    saved = text_of(described()).replace("preserve", "coredump-restart")
    with pytest.raises(DescriptionUnfit, match="when it crashes"):
        domain.fit(saved, APP_ID, Machine(), place())


def test_memory_of_another_application_is_refused() -> None:
    with pytest.raises(DescriptionUnfit, match="not of p2p-ffffffffffff"):
        domain.fit(text_of(described()), "f" * 32, Machine(), place())


@pytest.mark.parametrize("text", ["", "<domain", "<!DOCTYPE x><domain/>", "x" * (2 << 20)])
def test_what_is_no_description_is_refused(text: str) -> None:
    with pytest.raises(DescriptionUnfit):
        domain.fit(text, APP_ID, Machine(), place())


def test_only_what_was_marked_is_final() -> None:
    live = text_of(described())
    marked = description.mark_final(live)
    assert not description.is_final(live)
    assert description.is_final(marked)
    assert description.is_final(description.mark_final(marked))
    assert not description.is_final(domain.fit(marked, APP_ID, Machine(), place()))


# Adoption

ADOPTABLE = """<domain type='kvm'><name>x</name><memory unit='KiB'>1048576</memory><vcpu>2</vcpu>
<os><type arch='x86_64' machine='pc-q35-7.2'>hvm</type><kernel>/k</kernel><initrd>/i</initrd>
<cmdline>root=/dev/vda "x"</cmdline></os>
<devices><disk type='file' device='disk'><source file='/d.qcow2'/><target dev='sda' bus='sata'/></disk>
<disk type='file' device='cdrom'><target dev='sdb' bus='sata'/></disk>
<interface type='bridge'><mac address='52:54:00:00:00:01'/><source bridge='br0'/><model type='virtio'/></interface>
</devices></domain>"""


def test_an_existing_machine_becomes_a_table() -> None:
    found = examine(ADOPTABLE)
    assert (found.disk, found.kernel, found.initrd) == (Path("/d.qcow2"), Path("/k"), Path("/i"))
    assert read(found.config) == Machine(
        memory_mb=1024,
        vcpus=2,
        cmdline='root=/dev/vda "x"',
        machine="pc-q35-7.2",
        disk_bus="sata",
        bridge="br0",
        mac="52:54:00:00:00:01",
    )


@pytest.mark.parametrize(
    ("path", "fragment", "told"),
    [
        ("devices", "<disk type='file'><source file='/e'/><target dev='vdb' bus='virtio'/></disk>", "2 disks"),
        ("devices", "<hostdev/>", "a device of the host"),
        ("devices", "<filesystem/>", "a folder of the host"),
        ("devices", "<tpm/>", "a TPM"),
        ("devices", "<interface type='bridge'><source bridge='b'/></interface>", "2 network devices"),
        ("os", "<loader>/usr/share/OVMF.fd</loader>", "UEFI"),
    ],
)
def test_what_this_backend_cannot_give_is_refused(path: str, fragment: str, told: str) -> None:
    with pytest.raises(NotAdoptable, match=told):
        examine(add(ET.fromstring(ADOPTABLE), path, fragment))


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("type='file' device='disk'", "type='block' device='disk'", "of type block"),
        ("bus='sata'/></disk>\n<disk", "bus='usb'/></disk>\n<disk", "bus of kind usb"),
        ("<source file='/d.qcow2'/>", "<source file='/d'><encryption/></source>", "encrypted"),
        ("interface type='bridge'", "interface type='network'", "of type network"),
        ("<model type='virtio'/>", "<model type='e1000'/>", "is a e1000"),
        ("arch='x86_64'", "arch='aarch64'", "architecture aarch64"),
        ("type='kvm'", "type='xen'", "no virtual machine of QEMU"),
        ("KiB", "parsec", "no known size"),
    ],
)
def test_disks_and_networks_of_other_kinds_are_refused(old: str, new: str, told: str) -> None:
    assert old in ADOPTABLE
    with pytest.raises(NotAdoptable, match=told):
        examine(ADOPTABLE.replace(old, new))
