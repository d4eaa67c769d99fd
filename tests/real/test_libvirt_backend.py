"""The libvirt backend with real virtual machines: two libvirtd, one small guest, emulated where KVM does not work.

The guest boots once: most tests begin with a copy of what that one was suspended as.
"""

import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from backends import config
from backends.base import AppLayout, EngineState
from backends.errors import AlreadyRunning
from backends.libvirt import disks, domain, savefile
from backends.libvirt.backend import LibvirtBackend
from backends.libvirt.connection import Connection
from backends.libvirt.machine import Seen, VirtualMachine
from bench.data.pair import Unavailable
from tests.support.apps import eventually
from tests.support.enginelab import guest
from tests.support.enginelab.libvirt import LibvirtNode

pytestmark = [
    pytest.mark.real,
    pytest.mark.root,
    pytest.mark.xdist_group("libvirt"),
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
]

APP_ID = "0123456789abcdef" * 2
ADDRESS = "10.88.0.5"
HEALTHY_AFTER_S = 0.05
BOOT_S = 60.0
TABLE = f"""
[libvirt]
memory_mb = {guest.LEAST_MEMORY_MB}
cmdline = "console=ttyS0 quiet panic=-1 WORDS"
kvm = false
network = "bridge:br0"
ipv4 = "{ADDRESS}/24"
"""


@dataclass(frozen=True)
class Site:
    """A node with its own copy of the layers."""

    node: LibvirtNode
    layers: guest.GuestLayers
    folder: Path

    @property
    def backend(self) -> LibvirtBackend:
        """A new one each time: it must not need what it knew."""
        return LibvirtBackend(self.node.settings, healthy_after_s=HEALTHY_AFTER_S)

    @property
    def machine(self) -> VirtualMachine:
        return VirtualMachine(Connection(self.node.settings.libvirt_uri), APP_ID)

    def layout(self, name: str, *, words: str = "", top: str = "", folder: Path | None = None) -> AppLayout:
        parsed = config.parse(top + TABLE.replace("WORDS", words))
        where = (folder or self.folder) / name
        return AppLayout(APP_ID, "machine", where, parsed, base=self.layers.base, app=self.layers.app)


@dataclass(frozen=True)
class Sites:
    """Two nodes at one bridge; `small` is a file system of few MB that both see."""

    a: Site
    b: Site
    small: Path


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sites]:
    root = tmp_path_factory.mktemp("libvirt")
    small = root / "small"
    small.mkdir()
    try:
        layers = guest.layers(guest.CACHE)
    except guest.GuestUnavailable as error:
        pytest.skip(str(error))
    network = f"p2p-test-{os.getpid()}"
    subprocess.run(["ip", "netns", "add", network], check=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "small", str(small)], check=True)
    try:
        path = f"/run/netns/{network}"
        with LibvirtNode(root, "a", netns=path) as a, LibvirtNode(root, "b", netns=path) as b:
            for command in (
                ["ip", "link", "add", "br0", "type", "bridge"],
                ["ip", "addr", "add", "10.88.0.1/24", "dev", "br0"],
                ["ip", "link", "set", "br0", "up"],
            ):
                subprocess.run(a.command(command), check=True)
            probe = a.backend.probe()
            if not probe.available:
                pytest.skip(str(probe.reason))
            copied = root / "layers of b"
            copied.mkdir()
            subprocess.run(["cp", "-r", "--sparse=always", layers.base, layers.app, copied], check=True)
            for name in ("apps of a", "apps of b"):
                (root / name).mkdir()
            yield Sites(
                Site(a, layers, root / "apps of a"),
                Site(b, guest.GuestLayers(copied / "base", copied / "app"), root / "apps of b"),
                small,
            )
    except Unavailable as error:
        pytest.skip(str(error))
    finally:
        subprocess.run(["umount", "-l", str(small)], check=False)
        subprocess.run(["ip", "netns", "delete", network], check=False)


@pytest.fixture(scope="module")
def suspended(sites: Sites) -> Path:
    """The state folder of a guest that counted some seconds and was then suspended on node a."""
    site = sites.a
    layout = site.layout("first")
    site.backend.create(layout)
    site.backend.start(layout)
    assert wait_for(site, layout, r"ready 1 boot=\w+ base=(\S+) app=(\S+)") == ("base-1", "app-1")
    wait_for(site, layout, "tick 12 ")
    site.backend.suspend(layout)
    assert sorted(path.name for path in layout.state_dir.iterdir()) == [disks.INSTANCE, savefile.NAME]
    return layout.state_dir


@pytest.fixture
def arrived(suspended: Path, sites: Sites) -> Iterator[Callable[..., AppLayout]]:
    """Makes layouts at a site whose state folder has come from elsewhere; destroys what runs there afterwards."""
    made: list[tuple[Site, AppLayout]] = []

    def build(site: Site, **options: object) -> AppLayout:
        layout = site.layout(f"app{len(made)}", **options)  # type: ignore[arg-type]
        made.append((site, layout))
        layout.folder.mkdir()
        shutil.copytree(suspended, layout.state_dir)
        return layout

    yield build
    for site, layout in made:
        site.backend.destroy(layout)
        assert list(layout.folder.iterdir()) == []
        layout.folder.rmdir()
        assert site.machine.look() is Seen.GONE
    assert sites.a.machine.process() is None


@pytest.fixture
def fresh(sites: Sites) -> Iterator[Callable[..., AppLayout]]:
    """Makes layouts at site a that never ran."""
    made: list[AppLayout] = []

    def build(**options: object) -> AppLayout:
        layout = sites.a.layout(f"new{len(made)}", **options)  # type: ignore[arg-type]
        made.append(layout)
        sites.a.backend.create(layout)
        return layout

    yield build
    for layout in made:
        sites.a.backend.destroy(layout)


def printed(site: Site, layout: AppLayout) -> str:
    return site.backend.logs(layout, 1 << 20).decode(errors="replace")


def wait_for(site: Site, layout: AppLayout, pattern: str) -> tuple[str, ...]:
    """The groups of the first match in what the guest printed."""
    eventually(lambda: re.search(pattern, printed(site, layout)) is not None, timeout_s=BOOT_S)
    found = re.search(pattern, printed(site, layout))
    assert found is not None
    return found.groups()


def ticks(site: Site, layout: AppLayout) -> list[tuple[int, str]]:
    """What the guest counted, with the name of its boot."""
    return [
        (int(n), boot) for n, boot in re.findall(r"tick (\d+) boot=(\w{8})\n", printed(site, layout).replace("\r", ""))
    ]


def ticks_on(site: Site, layout: AppLayout) -> bool:
    """Whether it goes on counting."""
    before = len(ticks(site, layout))
    eventually(lambda: len(ticks(site, layout)) > before + 1)
    return True


def first_tick(site: Site, layout: AppLayout) -> tuple[int, str]:
    eventually(lambda: bool(ticks(site, layout)), timeout_s=BOOT_S)
    return ticks(site, layout)[0]


@pytest.fixture
def last(sites: Sites, suspended: Path) -> tuple[int, str]:
    """The last tick before the suspend."""
    return ticks(sites.a, sites.a.layout("first"))[-1]


def written(state: Path, layers: guest.GuestLayers, scratch: Path) -> list[str]:
    """What the guest wrote to its disk."""
    raw, app, instance = scratch / "raw", scratch / "app.qcow2", scratch / "instance.qcow2"
    shutil.copy(layers.app / "disk.qcow2", app)
    shutil.copy(state / disks.INSTANCE, instance)
    for image, below, kind in ((app, layers.base / "disk", "raw"), (instance, app, "qcow2")):
        subprocess.run(["qemu-img", "rebase", "-u", "-f", "qcow2", "-b", below, "-F", kind, image], check=True)
    subprocess.run(["qemu-img", "convert", "-O", "raw", instance, raw], check=True)
    done = subprocess.run(["debugfs", "-R", "cat ticks", raw], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


Arrived = Callable[..., AppLayout]


def test_memory_and_disk_move_to_a_node_with_other_folders(
    sites: Sites, suspended: Path, arrived: Arrived, last: tuple[int, str], tmp_path: Path
) -> None:
    site = sites.b
    layout = arrived(site)
    started = site.backend.restore(layout)
    assert first_tick(site, layout) == (last[0] + 1, last[1])
    status = site.backend.status(layout)
    assert (status.state, status.pid, status.started) == (EngineState.RUNNING, started.pid, started.at)
    assert f"guest={domain.name_of(APP_ID)}" in Path(f"/proc/{started.pid}/cmdline").read_text()
    description = site.machine.description()
    assert str(sites.a.folder) not in description
    assert str(sites.a.layers.base) not in description
    assert not savefile.path_of(layout).exists()
    with pytest.raises(AlreadyRunning):
        site.backend.start(layout)
    with pytest.raises(AlreadyRunning):
        site.backend.restore(layout)
    assert site.backend.resume(layout) == started
    eventually(lambda: ticks(site, layout)[-1][0] > 30)
    site.backend.stop(layout)
    exit = site.backend.status(layout).exit
    assert exit is not None
    assert (exit.code, exit.asked, exit.forced) == (0, True, False)
    lines = written(layout.state_dir, site.layers, tmp_path)
    assert lines[:3] == [f"{n} {last[1]}" for n in (10, 20, 30)]
