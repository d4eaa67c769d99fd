"""The libvirt backend with real virtual machines: two libvirtd, one small guest, emulated where KVM does not work.

The guest boots once: most tests begin with a copy of what that one was suspended as.
"""

import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from backends import config
from backends.base import AppLayout, EngineState
from backends.errors import AlreadyRunning, BackendError, NotRunning, StartFailed, SuspendFailed
from backends.libvirt import disks, domain, notes, savefile, starting
from backends.libvirt.backend import LibvirtBackend
from backends.libvirt.connection import Connection
from backends.libvirt.instance import Instance
from backends.libvirt.machine import Seen, VirtualMachine
from backends.libvirt.notes import Note, Phase
from bench.data.pair import Unavailable
from bench.enginelab.libvirt import LibvirtNode
from bench.netlab import leftovers as netlab
from tests.support import guest
from tests.support.apps import eventually

pytestmark = [
    pytest.mark.real,
    pytest.mark.root,
    pytest.mark.engine,
    pytest.mark.xdist_group("libvirt"),
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
]

APP_ID = secrets.token_hex(16)
"""Another one each time: machines of another run of the test must not be taken for this one's."""
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
        return VirtualMachine(Connection(self.node.settings.libvirt_uri), APP_ID, Path("/"))

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
def sites(engine_home: Path) -> Iterator[Sites]:
    root = engine_home / "libvirt-backend"
    root.mkdir()
    small = root / "small"
    small.mkdir()
    try:
        layers = guest.layers(guest.CACHE)
    except guest.GuestUnavailable as error:
        pytest.skip(str(error))
    network = f"{netlab.prefix()}libvirt"
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


def has_memory_of_before(pid: int) -> bool:
    """Whether that QEMU was started to continue a machine, and not to boot one."""
    return b"-incoming" in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")


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
    assert has_memory_of_before(started.pid)
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


def test_pre_copy_rounds_leave_it_running_and_are_never_continued(
    sites: Sites, arrived: Arrived, last: tuple[int, str]
) -> None:
    site = sites.b
    layout = arrived(site)
    site.backend.restore(layout)
    for _ in range(2):
        checkpoint = site.backend.checkpoint(layout, leave_running=True)
        assert 0 < checkpoint.paused_s < 5
        assert savefile.complete(savefile.path_of(layout))
        assert ticks_on(site, layout)
    assert {boot for _, boot in ticks(site, layout)} == {last[1]}
    assert disks.chain_of(layout)[0].path == layout.state_dir / disks.INSTANCE
    assert sorted(path.name for path in layout.state_dir.iterdir()) == [disks.INSTANCE, savefile.NAME]

    # The memory of a round and the disk of a later time: a node that finds these starts the machine afresh.
    site.machine.destroy()
    notes.write(layout.run_dir, None)
    assert not has_memory_of_before(site.backend.restore(layout).pid)
    assert not savefile.path_of(layout).exists()
    site.machine.destroy()  # it would not notice its power button yet


def test_suspend_and_resume_here(sites: Sites, arrived: Arrived, last: tuple[int, str]) -> None:
    site = sites.b
    layout = arrived(site)
    site.backend.restore(layout)
    before = first_tick(site, layout)
    checkpoint = site.backend.suspend(layout)
    assert 0 < checkpoint.paused_s < 10
    status = site.backend.status(layout)
    assert (status.state, status.executing) == (EngineState.SUSPENDED, False)
    with pytest.raises(NotRunning):
        site.backend.checkpoint(layout, leave_running=True)
    with pytest.raises(SuspendFailed) as caught:
        site.backend.suspend(layout)
    assert not caught.value.running
    facts = site.backend.facts(layout)
    assert facts["kind"] == "qemu"
    assert sites.a.backend.mismatches(facts) == []
    site.backend.resume(layout)
    assert ticks_on(site, layout)
    counted = [n for n, _ in ticks(site, layout)]
    assert counted == list(range(before[0], before[0] + len(counted)))


def test_an_open_connection_moves_with_it(sites: Sites, arrived: Arrived, suspended: Path) -> None:
    source, destination = sites.a, sites.b
    layout = arrived(source)
    source.backend.restore(layout)
    command = source.node.command(["busybox", "nc", ADDRESS, str(guest.PORT)])
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1) as client:
        assert client.stdin is not None
        assert client.stdout is not None
        try:
            client.stdin.write("here\n")
            number, before, word = client.stdout.readline().split()
            assert (number, word) == ("1", "here")
            source.backend.suspend(layout)
            moved = destination.layout("moved")
            moved.folder.mkdir()
            layout.state_dir.rename(moved.state_dir)
            destination.backend.restore(moved)
            client.stdin.write("there\n")
            number, after, word = client.stdout.readline().split()
            assert (number, word) == ("2", "there")
            assert int(after) >= int(before)
        finally:
            client.kill()
            destination.backend.destroy(destination.layout("moved"))


def test_suspend_without_memory_presses_the_power_button(sites: Sites, arrived: Arrived) -> None:
    site = sites.b
    layout = arrived(site)
    site.backend.restore(layout)
    site.backend.suspend(layout, memory=False)
    status = site.backend.status(layout)
    assert status.state is EngineState.SUSPENDED
    assert status.exit is not None
    assert (status.exit.code, status.exit.forced) == (0, False)
    assert [path.name for path in layout.state_dir.iterdir()] == [disks.INSTANCE]
    assert not has_memory_of_before(site.backend.resume(layout).pid)
    assert site.backend.status(layout).state is EngineState.RUNNING
    site.machine.destroy()


def test_a_save_that_fails_leaves_it_running(sites: Sites, suspended: Path) -> None:
    site = sites.b
    layout = site.layout("app", folder=sites.small)
    layout.folder.mkdir()
    layout.state_dir.mkdir()
    shutil.copy(suspended / disks.INSTANCE, layout.state_dir)
    try:
        started = site.backend.start(layout)
        wait_for(site, layout, "ready 1 ")  # before, it has hardly any memory
        with pytest.raises(SuspendFailed, match=r"could not be saved: .*[Nn]o space") as caught:
            site.backend.suspend(layout)
        assert caught.value.running
        with pytest.raises(BackendError):
            site.backend.checkpoint(layout, leave_running=True)
        status = site.backend.status(layout)
        assert (status.state, status.pid) == (EngineState.RUNNING, started.pid)
        assert [path.name for path in layout.state_dir.iterdir()] == [disks.INSTANCE]
        assert ticks_on(site, layout)
    finally:
        site.backend.destroy(layout)


def test_a_failing_hook_keeps_it_running(sites: Sites, arrived: Arrived) -> None:
    site = sites.b
    top = '[hooks]\nbefore_suspend = ["sh", "-c", "echo no entry; exit 9"]\n'
    layout = arrived(site, top=top)
    pid = site.backend.restore(layout).pid
    with pytest.raises(SuspendFailed, match="hook before_suspend: exit code 9") as caught:
        site.backend.suspend(layout)
    assert caught.value.running
    assert site.backend.status(layout).pid == pid
    assert "no entry" in printed(site, layout)


def test_one_that_is_killed_did_not_end_by_itself(sites: Sites, arrived: Arrived) -> None:
    site = sites.b
    layout = arrived(site)
    os.kill(site.backend.restore(layout).pid, signal.SIGKILL)
    eventually(lambda: site.backend.status(layout).state is not EngineState.RUNNING)
    status = site.backend.status(layout)
    assert status.state is EngineState.EXITED
    assert status.exit is not None
    assert (status.exit.code, status.exit.signal, status.exit.asked) == (None, signal.SIGABRT, False)


def test_a_restarted_libvirtd_knows_its_machines(sites: Sites, arrived: Arrived) -> None:
    site = sites.b
    layout = arrived(site)
    backend = site.backend
    started = backend.restore(layout)
    site.node.restart_daemon()
    status = backend.status(layout)
    assert (status.state, status.pid) == (EngineState.RUNNING, started.pid)
    backend.stop(layout)
    status = backend.status(layout)
    assert status.exit is not None
    assert (status.state, status.exit.code) == (EngineState.EXITED, 0)


def test_a_start_that_libvirtd_did_not_answer_leaves_nothing(
    sites: Sites, arrived: Arrived, last: tuple[int, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is stopped in the middle, and does what it was asked for when it goes on."""
    site = sites.b
    layout = arrived(site)
    backend = site.backend
    daemon = server_of(site)
    restore = VirtualMachine.restore
    monkeypatch.setattr("backends.libvirt.machine.LOAD_S", 1.0)
    monkeypatch.setattr("backends.libvirt.machine._DESTROY_S", 1.0)

    def restore_without_an_answer(machine: VirtualMachine, *words: Any) -> None:
        os.kill(daemon, signal.SIGSTOP)
        restore(machine, *words)

    try:
        with monkeypatch.context() as patch:
            patch.setattr(VirtualMachine, "restore", restore_without_an_answer)
            with pytest.raises(StartFailed, match="did not answer") as caught:
                backend.restore(layout)
        assert not caught.value.executed
        with pytest.raises(StartFailed, match="has not answered an earlier call"):
            starting.let_go(Instance(backend._connection, layout), 0.0)
    finally:
        os.kill(daemon, signal.SIGCONT)
    eventually(lambda: not backend._connection.unanswered(APP_ID), timeout_s=30)
    assert site.machine.look() is Seen.GONE
    assert backend.status(layout).state is EngineState.ABSENT
    assert site.machine.process() is None
    monkeypatch.undo()
    assert has_memory_of_before(backend.restore(layout).pid)
    assert first_tick(site, layout) == (last[0] + 1, last[1])
    site.machine.destroy()


def server_of(site: Site) -> int:
    """The process of that node's libvirtd."""
    with socket.socket(socket.AF_UNIX) as client:
        client.connect((site.node.settings.libvirt_uri or "").partition("socket=")[2])
        return int.from_bytes(client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 4), sys.byteorder)


def test_a_machine_that_was_loaded_by_a_node_that_was_killed_then_is_let_go(
    sites: Sites, arrived: Arrived, last: tuple[int, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    site = sites.b
    layout = arrived(site)
    with monkeypatch.context() as patch:
        patch.setattr(VirtualMachine, "let_go", _die)
        with pytest.raises(KeyboardInterrupt):
            site.backend.restore(layout)
    status = site.backend.status(layout)
    assert (status.state, status.executing) == (EngineState.SUSPENDED, False)
    site.backend.restore(layout)
    assert first_tick(site, layout) == (last[0] + 1, last[1])


def _die(machine: VirtualMachine) -> None:
    raise KeyboardInterrupt


def test_memory_that_does_not_fit_is_refused_and_kept(sites: Sites, arrived: Arrived) -> None:
    site = sites.b
    layout = arrived(site)
    path = savefile.path_of(layout)
    size = path.stat().st_size
    os.truncate(path, size // 2)
    notes.write(_made(layout.run_dir), Note.fresh(Phase.SAVED))
    with pytest.raises(StartFailed) as caught:
        site.backend.restore(layout)
    assert not caught.value.executed
    assert path.stat().st_size == size // 2
    assert site.backend.status(layout).state is EngineState.SUSPENDED


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


Fresh = Callable[..., AppLayout]


def test_ends_of_its_own_are_told_apart(sites: Sites, fresh: Fresh) -> None:
    site = sites.a
    layout = fresh(words="life=0.1")
    with pytest.raises(StartFailed, match=r"exit code 0; last output: .*ready 1") as caught:
        LibvirtBackend(site.node.settings, healthy_after_s=BOOT_S).start(layout)
    assert caught.value.executed
    status = site.backend.status(layout)
    assert status.exit is not None
    assert (status.state, status.exit.code, status.exit.asked) == (EngineState.EXITED, 0, False)

    layout = site.layout("new0", words="panic_after=0.1")
    site.backend.start(layout)
    eventually(lambda: site.backend.status(layout).state is not EngineState.RUNNING, timeout_s=BOOT_S)
    status = site.backend.status(layout)
    assert status.exit is not None
    assert (status.state, status.exit.code, status.exit.asked) == (EngineState.EXITED, None, False)
    assert site.machine.look() is Seen.GONE


def test_one_that_is_deaf_is_killed(sites: Sites, fresh: Fresh) -> None:
    site = sites.a
    layout = fresh(words="deaf", top="stop_timeout_s = 0.3\n")
    site.backend.start(layout)
    site.backend.stop(layout)
    status = site.backend.status(layout)
    assert status.exit is not None
    assert (status.exit.signal, status.exit.asked, status.exit.forced) == (signal.SIGKILL, True, True)
    assert not site.backend.status(layout).executing


def test_a_plugged_in_disk_is_an_obstacle(sites: Sites, arrived: Arrived, tmp_path: Path) -> None:
    site = sites.b
    layout = arrived(site)
    site.backend.restore(layout)
    assert site.backend.obstacles(layout) == []
    extra = tmp_path / "extra"
    extra.write_bytes(bytes(1 << 20))
    device = f"<disk type='file'><source file='{extra}'/><target dev='vdb' bus='virtio'/></disk>"
    Connection(site.node.settings.libvirt_uri).run(
        lambda hypervisor: hypervisor.lookupByUUIDString(APP_ID).attachDevice(device)
    )
    assert site.backend.obstacles(layout) == ["it has other disks than the one of its instance"]


def test_kvm_is_only_believed_when_it_runs_a_program(sites: Sites) -> None:
    verdict = sites.a.backend.kvm()
    assert verdict.works or verdict.reason
    there = {"kind": "kvm", "machine": "pc-i440fx-99.9", "qemu": "99.1.0", "cpu": "Skylake-Server +no-such-feature"}
    found = sites.a.backend.mismatches(there)
    assert any("pc-i440fx-99.9" in sentence for sentence in found)
    assert any("99.1.0" in sentence for sentence in found)
    assert any("KVM" in sentence for sentence in found) is not verdict.works


# Adoption


@dataclass(frozen=True)
class Existing:
    """A machine that libvirt knew before, with two images, and the files that are its own."""

    name: str
    top: Path
    bottom: Path
    folder: Path


@pytest.fixture
def existing(sites: Sites, tmp_path: Path) -> Iterator[Existing]:
    folder = tmp_path / "images"
    folder.mkdir()
    bottom, top = folder / "bottom.qcow2", folder / "top.qcow2"
    made = sites.a.layers
    subprocess.run(["qemu-img", "convert", "-O", "qcow2", "-c", made.base / "disk", bottom], check=True)
    shutil.copy(made.app / "disk.qcow2", top)
    subprocess.run(["qemu-img", "rebase", "-u", "-b", bottom.name, "-F", "qcow2", top], check=True)
    description = f"""<domain type='qemu'><name>veteran</name><memory unit='MiB'>{guest.LEAST_MEMORY_MB}</memory>
        <os><type arch='x86_64' machine='pc'>hvm</type><kernel>{made.base}/vmlinuz</kernel>
        <initrd>{made.base}/initrd</initrd><cmdline>console=ttyS0 quiet</cmdline></os>
        <features><acpi/></features><devices><disk type='file' device='disk'><driver name='qemu' type='qcow2'/>
        <source file='{top}'/><target dev='vda' bus='virtio'/></disk></devices></domain>"""
    connection = Connection(sites.a.node.settings.libvirt_uri)
    connection.run(lambda hypervisor: hypervisor.defineXML(description) and None)
    before = {path: path.read_bytes() for path in folder.iterdir()}
    yield Existing("veteran", top, bottom, folder)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
    connection.run(lambda hypervisor: hypervisor.lookupByName("veteran").undefine() and None)


def shown(image: Path, below: Path | None, kind: str, scratch: Path) -> bytes:
    """What a machine would see of an image."""
    copy, raw = scratch / "copy", scratch / "shown"
    shutil.copy(image, copy)
    if below is not None:
        subprocess.run(["qemu-img", "rebase", "-u", "-f", "qcow2", "-b", below, "-F", "raw", copy], check=True)
    subprocess.run(["qemu-img", "convert", "-f", kind, "-O", "raw", copy, raw], check=True)
    return raw.read_bytes()


def test_an_existing_machine_is_taken_apart_and_runs(sites: Sites, existing: Existing, tmp_path: Path) -> None:
    site, into = sites.a, tmp_path / "into"
    into.mkdir()
    adopted = site.backend.adopt(existing.name, into, None)
    assert adopted.base is not None
    assert sorted(path.name for path in adopted.base.iterdir()) == ["disk", "initrd", "vmlinuz"]
    assert (adopted.base / "disk").read_bytes() == (site.layers.base / "disk").read_bytes()
    assert [path.name for path in adopted.app.iterdir()] == ["disk.qcow2"]
    whole = shown(site.layers.app / "disk.qcow2", site.layers.base / "disk", "qcow2", tmp_path)
    assert shown(adopted.app / "disk.qcow2", adopted.base / "disk", "qcow2", tmp_path) == whole
    assert (adopted.app / "disk.qcow2").stat().st_size < 2 << 20

    layout = AppLayout(
        APP_ID, "veteran", tmp_path / "app", config.parse(adopted.config), base=adopted.base, app=adopted.app
    )
    site.backend.create(layout)
    try:
        site.backend.start(layout)
        assert wait_for(site, layout, r"ready 1 boot=\w+ base=(\S+) app=(\S+)") == ("base-1", "app-1")
        with pytest.raises(BackendError, match="no machine"):
            site.backend.adopt("nobody", into, None)
        with pytest.raises(BackendError, match="is running"):
            site.backend.adopt(domain.name_of(APP_ID), into, None)
    finally:
        site.backend.destroy(layout)


def test_without_a_chain_the_disk_is_the_base(sites: Sites, existing: Existing, tmp_path: Path) -> None:
    into = tmp_path / "into"
    into.mkdir()
    connection = Connection(sites.a.node.settings.libvirt_uri)
    description = connection.run(lambda hypervisor: str(hypervisor.lookupByName(existing.name).XMLDesc()))
    lone = description.replace(str(existing.top), str(existing.bottom))
    connection.run(lambda hypervisor: hypervisor.defineXML(lone) and None)
    adopted = sites.a.backend.adopt(existing.name, into, None)
    assert adopted.base is not None
    whole = (adopted.base / "disk").read_bytes()
    assert whole == (sites.a.layers.base / "disk").read_bytes()
    assert shown(adopted.app / "disk.qcow2", adopted.base / "disk", "qcow2", tmp_path) == whole
    assert (adopted.app / "disk.qcow2").stat().st_size < 1 << 20


def test_with_a_base_given_the_app_is_the_difference(sites: Sites, existing: Existing, tmp_path: Path) -> None:
    into = tmp_path / "into"
    into.mkdir()
    base = sites.b.layers.base
    adopted = sites.a.backend.adopt(existing.name, into, base)
    assert adopted.base is None
    assert sorted(path.name for path in adopted.app.iterdir()) == ["disk.qcow2", "initrd", "vmlinuz"]
    whole = shown(sites.a.layers.app / "disk.qcow2", base / "disk", "qcow2", tmp_path)
    assert shown(adopted.app / "disk.qcow2", base / "disk", "qcow2", tmp_path) == whole
    assert (adopted.app / "disk.qcow2").stat().st_size < 2 << 20
