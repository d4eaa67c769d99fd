"""Two CRIU dumps of one running process: a Python program with a dictionary of records, 1 % updated between them."""

import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from bench.data import contained
from bench.data.debs import Archive
from bench.data.pair import MB, NEW_TIME_S, OLD_TIME_S, PAGE_BYTES, Facts, Unavailable, check
from bench.data.workshop import Workshop

SUITE = "sid"
"""The first suite whose CRIU runs on current kernels; it is unpacked with its own libc, nothing is installed."""
READY_S = 120.0
PROGRAM = Path(__file__).with_name("records.py")


def build(workshop: Workshop, folder: Path, size_mb: int) -> Facts:
    """Start the program, dump it, have it update records, dump it again; end it."""
    contained.need_root("CRIU reads another process's memory")
    criu = _criu(workshop.ingredient("criu", lambda place: _unpack(workshop, place)))
    status = folder / "status"
    command = [os.path.realpath(sys.executable), "-I", "-S", str(PROGRAM), str(status), str(size_mb * MB)]
    with contained.child(command) as process:
        first = _wait(process, status, "ready")
        _dump(criu, process.pid, folder / "old", folder / "dump.log")
        os.kill(process.pid, signal.SIGUSR1)
        second = _wait(process, status, "updated")
        _dump(criu, process.pid, folder / "new", folder / "dump.log")
    for name, time_s in (("old", OLD_TIME_S), ("new", NEW_TIME_S)):
        for image in (folder / name).iterdir():
            os.utime(image, (time_s, time_s))  # rsync takes files of one size and one second for the same
    for leftover in (status, folder / "dump.log"):
        leftover.unlink(missing_ok=True)
    fresh, pages = fresh_pages(folder / "old", folder / "new")
    check(pages * PAGE_BYTES >= 0.8 * size_mb * MB, f"process-dumps: {pages} pages only")
    check(0.005 <= fresh / pages <= 0.5, f"process-dumps: {fresh} of {pages} pages changed")
    return {"records": first, "updated_records": second, "pages": pages, "fresh_pages": fresh}


def fresh_pages(old: Path, new: Path) -> tuple[int, int]:
    """Number of pages in `new`'s page files whose content is nowhere in those of `old`, and of all of them."""
    known = set(_digests(old))
    digests = _digests(new)
    return sum(digest not in known for digest in digests), len(digests)


def _digests(images: Path) -> list[bytes]:
    found = []
    for path in sorted(images.glob("pages-*.img")):
        with path.open("rb") as pages:
            while page := pages.read(PAGE_BYTES):
                found.append(hashlib.blake2b(page, digest_size=12).digest())
    return found


def _dump(criu: Sequence[str], pid: int, images: Path, log: Path) -> None:
    images.mkdir()
    command = [*criu, "dump", "-t", str(pid), "-D", str(images), "-o", str(log), "-v2", "--leave-running"]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise Unavailable(f"CRIU cannot dump here: {done.stderr.strip()[-200:]} {contained.tail(log)}")


def _wait(process: "subprocess.Popen[bytes]", status: Path, word: str) -> int:
    """The number that the program tells with `word`."""
    deadline = time.monotonic() + READY_S
    while time.monotonic() < deadline:
        text = status.read_text().split() if status.exists() else []
        if text and text[0] == word:
            return int(text[1])
        if process.poll() is not None:
            raise Unavailable(f"the program ended with {process.returncode}")
        time.sleep(0.02)
    raise Unavailable(f"the program was not {word} after {READY_S:.0f} s")


def _unpack(workshop: Workshop, place: Path) -> None:
    Archive.of(workshop, SUITE).unpack_all("criu", place / "root")
    done = subprocess.run([*_criu(place), "--version"], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise Unavailable(f"the archive's CRIU does not run: {done.stderr.strip()[-200:]}")


def _criu(place: Path) -> list[str]:
    """How CRIU is called: by the dynamic linker that came with it."""
    libraries = place / "root/usr/lib/x86_64-linux-gnu"
    linker = str(libraries / "ld-linux-x86-64.so.2")
    return [linker, "--library-path", str(libraries), "--argv0", "criu", str(place / "root/usr/sbin/criu")]
