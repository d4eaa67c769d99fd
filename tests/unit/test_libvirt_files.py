"""What the libvirt backend reads and writes itself: images, saved memory, notes, consoles, libvirt's log, the probe."""

import os
import shutil
import struct
import subprocess
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest

from backends.base import AppConfig, AppLayout, Exit, Workspace
from backends.libvirt import console, disks, ending, kvm, notes, savefile
from backends.libvirt.image import ImageUnfit, inspect
from backends.libvirt.notes import Note, Phase
from backends.procfs import ProcessId

needs_qemu_img = pytest.mark.skipif(shutil.which("qemu-img") is None, reason="needs qemu-img")


def header(
    *, version: int = 3, size: int = 1 << 20, encryption: int = 0, features: int = 0, backing: bytes = b""
) -> bytes:
    head = struct.pack(">4sIQIIQI", b"QFI\xfb", version, 104 if backing else 0, len(backing), 16, size, encryption)
    return head.ljust(72, b"\0") + struct.pack(">Q", features).ljust(32, b"\0") + backing


def write(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def layout_in(folder: Path) -> AppLayout:
    return AppLayout("ab" * 16, "app", folder / "app", AppConfig(), base=folder / "base", app=folder / "layer")


# Images


def test_images_are_known_by_their_first_bytes(tmp_path: Path) -> None:
    raw = inspect(write(tmp_path / "raw.qcow2", bytes(5000)))
    assert (raw.format, raw.size_bytes, raw.backing) == ("raw", 5000, None)
    empty = inspect(write(tmp_path / "empty", b""))
    assert (empty.format, empty.size_bytes) == ("raw", 0)
    qcow2 = inspect(write(tmp_path / "disk", header(backing=b"below.qcow2")))
    assert (qcow2.format, qcow2.size_bytes, qcow2.backing) == ("qcow2", 1 << 20, "below.qcow2")
    old = inspect(write(tmp_path / "old", header(version=2)[:72]))
    assert (old.format, old.backing) == ("qcow2", None)


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (header(features=4), "keeps its data in another file"),
        (header(features=2), "marked as damaged"),
        (header(encryption=2), "encrypted"),
        (header(version=4), "version 4"),
        (header()[:75], "cut short"),
        (header()[:10], "cut short"),
        (header(backing=b"x" * 2000), "backing file of 2000 bytes"),
    ],
)
def test_images_that_are_not_to_be_opened(tmp_path: Path, data: bytes, told: str) -> None:
    with pytest.raises(ImageUnfit, match=told):
        inspect(write(tmp_path / "disk", data))


def test_links_and_folders_are_no_images(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/etc/passwd")
    (tmp_path / "folder").mkdir()
    for name in ("link", "folder", "absent"):
        with pytest.raises(ImageUnfit):
            inspect(tmp_path / name)


def test_the_chain_of_layers(tmp_path: Path) -> None:
    layout = layout_in(tmp_path)
    layout.app.mkdir()
    with pytest.raises(ImageUnfit, match="the base layer has no disk"):
        disks.layers_of(layout.base, layout.app)
    base = write(layout.base / "disk", bytes(1 << 20))
    assert [image.path for image in disks.layers_of(layout.base, layout.app)] == [base]
    app = write(layout.app / "disk.qcow2", header(backing=b"/etc/passwd"))
    assert [image.path for image in disks.layers_of(layout.base, layout.app)] == [app, base]
    write(app, header())
    assert [image.path for image in disks.layers_of(layout.base, layout.app)] == [app]


def test_a_base_that_is_an_overlay_itself_is_refused(tmp_path: Path) -> None:
    layout = layout_in(tmp_path)
    layout.app.mkdir()
    write(layout.base / "disk.qcow2", header(backing=b"golden.qcow2"))
    with pytest.raises(ImageUnfit, match="only what differs"):
        disks.layers_of(layout.base, layout.app)


@needs_qemu_img
def test_the_instance_is_an_empty_overlay_of_the_same_size(tmp_path: Path) -> None:
    layout = layout_in(tmp_path)
    layout.app.mkdir()
    layout.state_dir.mkdir(parents=True)
    write(layout.base / "disk", bytes(3 << 20))
    instance, base = disks.chain_of(layout)
    assert (instance.size_bytes, instance.format, instance.backing) == (3 << 20, "qcow2", "disk")
    assert base.format == "raw"
    made = instance.path.stat().st_ino
    assert disks.chain_of(layout)[0].path.stat().st_ino == made
    assert [path.name for path in layout.state_dir.iterdir()] == ["disk.qcow2"]


@needs_qemu_img
def test_qemu_img_tells_what_went_wrong(tmp_path: Path) -> None:
    with pytest.raises(disks.DiskFailed, match=r"qemu-img info: .*No such file"):
        disks.qemu_img("info", str(tmp_path / "absent"), timeout_s=10)


# Saved memory


def test_a_torn_save_is_not_complete(tmp_path: Path) -> None:
    assert not savefile.complete(tmp_path / "absent")
    assert not savefile.complete(write(tmp_path / "torn", b"LibvirtQemudPart" + bytes(100)))
    assert savefile.complete(write(tmp_path / "whole", b"LibvirtQemudSave" + bytes(100)))
    (tmp_path / "link").symlink_to("whole")
    assert not savefile.complete(tmp_path / "link")


def test_saved_memory_is_renamed_and_discarded(tmp_path: Path) -> None:
    workspace = Workspace("ab" * 16, "app", tmp_path, AppConfig())
    assert savefile.size_bytes(workspace) == 0
    write(savefile.new_path_of(workspace), b"memory")
    savefile.accept(workspace)
    assert savefile.size_bytes(workspace) == 6
    write(savefile.new_path_of(workspace), b"more")
    savefile.discard(workspace)
    savefile.discard(workspace)
    assert list(workspace.state_dir.iterdir()) == []


# Notes


def test_notes_are_read_as_written(tmp_path: Path) -> None:
    assert notes.read(tmp_path) is None
    note = Note.fresh(Phase.RUNNING)
    for each in (note, Note(Phase.ENDED, "boot", 1.5, 2.5, ProcessId(7, 8), Exit(None, 9, asked=True, forced=True))):
        notes.write(tmp_path, each)
        assert notes.read(tmp_path) == each
    assert note.this_boot
    assert note.now(Phase.SAVED).at == note.at
    notes.write(tmp_path, None)
    notes.write(tmp_path, None)
    assert notes.read(tmp_path) is None


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"phase": "dancing"}', '{"phase": "running", "boot": 1}'])
def test_a_torn_note_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "machine.json").write_text(text)
    assert notes.read(tmp_path) is None


# The console


def test_the_console_is_read_over_its_files_and_kept_small(tmp_path: Path) -> None:
    assert console.tail(tmp_path, 100) == b""
    assert console.size(tmp_path) == 0
    write(tmp_path / "console", b"cccc")
    write(tmp_path / "console.0", b"bbbb")
    write(tmp_path / "console.1", b"aaaa")
    assert console.tail(tmp_path, 10) == b"aabbbbcccc"
    assert console.since(tmp_path, 1, 100) == b"ccc"
    assert console.since(tmp_path, 1, 2) == b"cc"
    console.trim(tmp_path, limit_bytes=4)
    assert console.tail(tmp_path, 4) == b"cccc"
    with (tmp_path / "console").open("ab") as qemu:
        console.trim(tmp_path, limit_bytes=3)
        qemu.write(b"d")
    assert (tmp_path / "console").read_bytes() == b"d"
    assert console.tail(tmp_path, 5) == b"ccccd"
    assert console.since(tmp_path, 4, 5) == b"ccccd"


# How it ended


def logged(folder: Path, *lines: tuple[float, str]) -> Path:
    path = folder / "p2p-x.log"
    with path.open("w") as file:
        for wall_s, word in lines:
            when = datetime.fromtimestamp(wall_s, UTC).strftime("%Y-%m-%d %H:%M:%S.%f")[:-3]
            file.write(f"{when}+0000: starting up libvirt\n{when}+0000: shutting down, reason={word}\nchar device\n")
    return path


def test_the_last_end_since_the_start_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ending, "folders", lambda uri: [tmp_path / "absent", tmp_path])
    now = time.time()
    assert ending.reason(None, "p2p-x", now) is None
    logged(tmp_path, (now - 50, "crashed"), (now - 5, "shutdown"))
    assert ending.reason(None, "p2p-x", now - 10) == "shutdown"
    assert ending.reason(None, "p2p-x", now) is None


def test_where_the_log_is() -> None:
    assert ending.folders("qemu:///system?socket=/no/such")[-1] == Path("/var/log/libvirt/qemu")
    assert ending.folders("qemu:///session")[0].parts[-3:] == ("libvirt", "qemu", "log")


# The probe of KVM


@pytest.mark.skipif(shutil.which("as") is None or shutil.which("ld") is None, reason="needs binutils")
@pytest.mark.skipif(os.uname().machine != "x86_64", reason="needs an assembler for x86_64")
def test_the_probe_is_what_its_source_says(tmp_path: Path) -> None:
    source = Path(kvm.__file__).with_name("kvmprobe.S")
    made, linked = tmp_path / "probe.o", tmp_path / "probe.bin"
    subprocess.run(["as", source, "-o", made], check=True)
    subprocess.run(["ld", "-Ttext=0x100000", "--oformat=binary", "-o", linked, made], check=True)
    assert linked.read_bytes() == kvm.IMAGE
    assert kvm.SAYS in kvm.IMAGE
