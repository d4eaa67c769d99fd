"""Saved memory: records of pages as segments whatever windows they come in, and what breaks off the layout."""

import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from chunkstore.images.errors import ImageInvalid, ImageUnsupported
from chunkstore.images.layout import LEAST_BYTES, Key, Segment
from chunkstore.images.qemu import SavedMemory, is_stream
from chunkstore.images.recognise import open_layout
from tests.support.images import EOS, PAGE, ZERO_PAGE, footer, libvirt_save, page, record, stream, text, word

RAM = b"pc.ram"
BLOCKS = [(RAM, 64 << 20), (b"vga.vram", 1 << 20)]
RECORD = 8 + PAGE
NAMED = RECORD + 1 + len(RAM)


def run(first: int, count: int, block: bytes = RAM) -> list[tuple[bytes, int, bytes]]:
    """Pages that follow each other; `first` is the number of the first one."""
    return [(block, (first + number) * PAGE, page(first + number)) for number in range(count)]


def laid_out(data: bytes, window: int = 1 << 20) -> list[Segment]:
    """The segments of a file that comes in windows of this size; plain neighbours as one."""
    layout = SavedMemory()
    found: list[Segment] = []

    def take() -> Iterator[Segment]:
        at = found[-1].end if found else 0
        while (segment := layout.segment_at(at)) is not None:
            yield segment
            at = segment.end

    for at in range(0, len(data), window):
        layout.feed(data[at : at + window])
        for segment in take():
            if found and found[-1].key is segment.key is None:
                segment = Segment(found[-1].offset, found.pop().length + segment.length, None)
            found.append(segment)
    layout.finish()
    assert not list(take())
    return found


def test_pages_in_segments() -> None:
    data = stream(BLOCKS, [run(0, 130), run(130, 62)])
    plain, *pages, framing, rest, devices = laid_out(data)
    assert plain.key is None and plain.offset == 0
    assert [s.key for s in (*pages, rest)] == [Key("ram/pc.ram", at * PAGE) for at in (0, 64, 128, 130)]
    assert [s.length for s in (*pages, rest)] == [NAMED + 63 * RECORD, 64 * RECORD, 2 * RECORD, 62 * RECORD]
    assert (framing.key, framing.length) == (None, 8 + 5 + 5)
    assert devices.key is None and devices.end == len(data)


@pytest.mark.parametrize("window", [1, 7, 4095, 4104, 65_536])
def test_windows_do_not_matter(window: int) -> None:
    data = libvirt_save(stream(BLOCKS, [[*run(5, 3), (RAM, 9 * PAGE, ZERO_PAGE)], run(64, 2)]), b"<domain/>")
    assert laid_out(data, window) == laid_out(data)


def test_a_page_that_became_zero_moves_one_segment() -> None:
    pages = run(0, 640)
    before = stream(BLOCKS, [pages])
    pages[200] = (RAM, 200 * PAGE, ZERO_PAGE)
    after = stream(BLOCKS, [pages])
    known = {before[s.offset : s.end] for s in laid_out(before)}
    assert sum(after[s.offset : s.end] not in known for s in laid_out(after)) == 1


def test_zero_pages_do_not_make_a_segment_each_region() -> None:
    data = stream(BLOCKS, [[(RAM, number * PAGE, ZERO_PAGE) for number in range(64 * 128)]])  # 32 MiB
    keyed = [s for s in laid_out(data) if s.key is not None]
    assert [s.key and s.key.address for s in keyed if s.key and s.key.address % (16 << 20) == 0] == [0, 16 << 20]
    assert len(keyed) == 2 * 3
    assert all(s.length >= LEAST_BYTES for s in keyed[:2])


def test_each_block_has_segments_of_its_own() -> None:
    data = stream(BLOCKS, [run(0, 2) + run(0, 2, b"vga.vram") + run(2, 1)])
    keyed = [s.key for s in laid_out(data) if s.key is not None]
    assert keyed == [Key("ram/pc.ram", 0), Key("ram/vga.vram", 0), Key("ram/pc.ram", 2 * PAGE)]


def test_pages_that_are_sent_again_stay_small() -> None:
    again = run(8, 1) * 1000
    keyed = [s for s in laid_out(stream(BLOCKS, [again])) if s.key is not None]
    assert max(s.length for s in keyed) <= LEAST_BYTES + NAMED


@pytest.mark.parametrize("order", ["<", ">"])
def test_a_save_of_libvirt(order: str, tmp_path: Path) -> None:
    data = libvirt_save(stream(BLOCKS, [run(0, 100)]), order=order)
    assert is_stream(data)
    (tmp_path / "save").write_bytes(data)
    found = list(open_layout(tmp_path / "save"))
    assert [s.key for s in found] == [None, Key("ram/pc.ram", 0), Key("ram/pc.ram", 64 * PAGE), None]
    assert found[-1].end == len(data)


def test_a_header_of_zeros_may_be_a_hole() -> None:
    data = libvirt_save(stream(BLOCKS, [run(0, 100)]), b"<domain/>".ljust(300_000, b"\0"))
    layout = SavedMemory()
    layout.feed(data[:4096])
    layout.feed(4096 * 70)
    layout.feed(data[4096 * 71 :])
    layout.finish()
    segment = layout.segment_at(len(data) - 200_000)
    assert segment is not None and segment.key is not None


def configured(name: bytes, value: bytes) -> bytes:
    """A stream with a subsection of the configuration."""
    whole = stream(BLOCKS, [run(0, 20)])
    at = whole.index(b"\1\0\0\0\2\3ram")
    return whole[:at] + b"\5" + text(name) + struct.pack(">I", 1) + value + whole[at:]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        (b"configuration/target-page-bits", struct.pack(">I", 12)),
        (b"configuration/uuid", b"u" * 16),
        (b"configuration/capabilities", struct.pack(">I", 2) + text(b"x-ignore-shared") + text(b"other")),
    ],
)
def test_configurations(name: bytes, value: bytes) -> None:
    data = configured(name, value)
    assert [s.key for s in laid_out(data, 3)] == [None, Key("ram/pc.ram", 0), None]


HEAD_BYTES = len(b"QEVM\0\0\0\3\7\0\0\0\x0dpc-i440fx-7.2")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (libvirt_save(b"", compressed=2), "compressed"),
        (libvirt_save(b"LINE" + bytes(100)), "no migration stream"),
        (struct.pack("<16s5I56x", b"LibvirtQemudSave", 9, 0, 0, 0, 0), "version 9"),
        (b"QEVM\0\0\0\2" + bytes(100), "version 2"),
        (b"QEVM\0\0\0\3\7\xff\xff\xff\xff" + bytes(100), "name of a machine"),
        (configured(b"configuration/target-page-bits", struct.pack(">I", 16)), r"pages of 2\^16 bytes"),
        (configured(b"configuration/capabilities", struct.pack(">I", 1 << 31)), "too many capabilities"),
        (configured(b"configuration/new", bytes(9)), "not known: b'configuration/new'"),
        (stream(BLOCKS, [run(0, 2), run(2, 2)]).replace(b"\3\0\0\0\2", b"\3\0\0\0\x09"), "section 9 out of place"),
        (stream(BLOCKS, [run(0, 2)], devices=b"\x55" * 99), "unknown kind 85"),
        (stream(BLOCKS, [run(0, 2)], devices=b"\1\0\0\0\2\3ram" + bytes(8)), "a second section with memory"),
        (stream(BLOCKS, [[(RAM, 64 << 20, page(1))]]), "outside of its block"),
        (stream(BLOCKS, [run(0, 1, b"unknown")]), "unknown block"),
        (stream([(RAM, 1 << 20)], [run(0, 1)]).replace(word(1 << 20), word(2 << 20), 1), "do not add up"),
        (stream(BLOCKS, [run(0, 1)]).replace(word(EOS), word(0x40), 1), "flags 0x40"),
        (stream(BLOCKS, [run(0, 1)]).replace(word(EOS), record(0, page(1)) + word(EOS), 1), "outside of its block"),
    ],
    ids=lambda value: None if isinstance(value, int) else "" if not isinstance(value, str) else value,
)
@pytest.mark.parametrize("window", [50, 1 << 20])
def test_what_is_refused(data: bytes, reason: str, window: int) -> None:
    with pytest.raises(ImageInvalid, match=reason):
        laid_out(data, window)


def test_refusals_name_the_offset_and_the_sort() -> None:
    data = stream(BLOCKS, [run(0, 20)]).replace(word(20 * PAGE - PAGE | 0x28), word(0x100))
    with pytest.raises(ImageUnsupported) as caught:
        laid_out(data)
    assert caught.value.offset == data.index(word(0x100))
    assert str(caught.value) == f"at byte {caught.value.offset}: a record with flags 0x100"


def test_a_file_that_is_cut_off() -> None:
    data = stream(BLOCKS, [run(0, 3)], devices=b"\4\0\0\0\3\5timer" + bytes(8))
    for end in (0, 1, 8, HEAD_BYTES, len(data) // 2, len(data) - 20):
        with pytest.raises(ImageInvalid, match=f"at byte {end}: a saved memory that is cut off"):
            laid_out(data[:end], 100)
    assert footer() in data


def test_what_no_stream_is() -> None:
    assert not is_stream(b"QEVM\0\0\0\2")
    assert not is_stream(b"LibvirtQemudPart")
