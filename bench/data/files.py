"""Single large files of real content: one cold, one with scattered edits, and a log that grows."""

import os
import random
import shutil
import subprocess
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from bench.data import contained
from bench.data.pair import MB, NEW_TIME_S, OLD_TIME_S, Facts, check
from bench.data.workshop import Workshop

TAR_MB = 256
FRESH_MB = 64
"""Content beyond the tar's end, that the edits are made of: as real as the rest, and not in it."""
EDIT_BYTES = 5120
EDITS_PER_MB = 500 / TAR_MB
INSERTED_BYTES = 777
SEED = 20240301


def cold(workshop: Workshop, folder: Path, size_mb: int) -> Facts:
    """The beginning of a tar of this machine's /usr."""
    (folder / "new").mkdir()
    target = folder / "new" / "usr.tar"
    _copy_part(_tar(workshop) / "usr.tar", target, 0, size_mb * MB)
    os.utime(target, (NEW_TIME_S, NEW_TIME_S))
    ratio = compressibility(target)
    check(0.05 <= ratio <= 0.95, f"cold-file: compresses to {ratio:.2f}")
    return {"compresses_to": round(ratio, 3)}


def compressibility(path: Path, samples: int = 64, sample_bytes: int = 32768) -> float:
    """Share of its size that a file compresses to, estimated by samples."""
    size = path.stat().st_size
    raw = packed = 0
    with path.open("rb") as file:
        for number in range(samples):
            file.seek(max(0, size - sample_bytes) * number // samples)
            data = file.read(sample_bytes)
            raw += len(data)
            packed += len(zlib.compress(data, 1))
    return packed / max(1, raw)


def edits(workshop: Workshop, folder: Path, size_mb: int) -> Facts:
    """The same file; one per cent of it overwritten in scattered places, and one insertion near the start."""
    tar = _tar(workshop) / "usr.tar"
    old, new = folder / "old" / "usr.tar", folder / "new" / "usr.tar"
    for path in (old, new):
        path.parent.mkdir()
    size = size_mb * MB
    _copy_part(tar, old, 0, size)
    rng = random.Random(SEED)
    plan = plan_edits(size, max(1, round(size_mb * EDITS_PER_MB)), rng)
    with old.open("rb") as source, new.open("wb") as target, tar.open("rb") as donor:
        target.write(source.read(plan.insert_at))
        target.write(_fresh(donor, INSERTED_BYTES, rng))
        shutil.copyfileobj(source, target, 1 << 20)
        for offset, length in plan.spans:
            target.seek(offset + INSERTED_BYTES)
            target.write(_fresh(donor, length, rng))
    made = _count_edits(old, new, plan)
    check(made >= 0.99 * len(plan.spans), f"edits: {made} of {len(plan.spans)} edits changed anything")
    os.utime(old, (OLD_TIME_S, OLD_TIME_S))
    os.utime(new, (NEW_TIME_S, NEW_TIME_S))
    return {"edits": made, "edited_bytes": sum(length for _, length in plan.spans), "inserted_bytes": INSERTED_BYTES}


@dataclass(frozen=True)
class Edits:
    """Where a file is changed: offsets in the old one, in order, none overlapping; all behind the insertion."""

    insert_at: int
    spans: list[tuple[int, int]]


def plan_edits(size: int, count: int, rng: random.Random) -> Edits:
    """Spread `count` edits of about 5 KB over a file of `size` bytes: one in each stretch of the file."""
    insert_at = min(size // 100, 100_000) + rng.randrange(1, 1000)
    stretch = (size - insert_at) // count
    longest = EDIT_BYTES + EDIT_BYTES // 4
    check(stretch > longest, f"a file of {size} bytes has no room for {count} edits")
    spans = []
    for number in range(count):
        length = rng.randrange(EDIT_BYTES - EDIT_BYTES // 4, longest)
        spans.append((insert_at + number * stretch + rng.randrange(stretch - length), length))
    return Edits(insert_at, spans)


def log(_workshop: Workshop, folder: Path, size_mb: int) -> Facts:
    """A web server's log, and the same with two per cent more lines at its end."""
    old, new = folder / "old" / "access.log", folder / "new" / "access.log"
    for path in (old, new):
        path.parent.mkdir()
    size = size_mb * MB
    lines = log_lines(random.Random(SEED))
    with new.open("wb") as out:
        _write_until(out.write, lines, size)
        kept = out.tell()
        _write_until(out.write, lines, size // 50)
    _copy_part(new, old, 0, kept)
    grown = new.stat().st_size - kept
    check(0.019 * size <= grown <= 0.021 * size, f"log: {grown} bytes were appended")
    os.utime(old, (OLD_TIME_S, OLD_TIME_S))
    os.utime(new, (NEW_TIME_S, NEW_TIME_S))
    return {"appended_bytes": grown}


_PAGES = (
    "index",
    "basket",
    "item",
    "search",
    "account",
    "static/app.js",
    "static/app.css",
    "img/photo",
    "api/v2/stock",
)
_AGENTS = (
    "Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0",
    "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/126.0.0.0 Safari/537.36",
    "Mozilla/5.0 (iPhone; CPU iPhone OS 17_5 like Mac OS X) AppleWebKit/605.1.15 Mobile/15E148 Safari/604.1",
    "curl/7.88.1",
    "Mozilla/5.0 (compatible; Googlebot/2.1; +http://www.google.com/bot.html)",
)


def log_lines(rng: random.Random) -> Iterator[str]:
    """Lines of a log in the combined format, without end: times rise, clients come back, sizes and ids are random."""
    clients = [
        f"{rng.randrange(1, 224)}.{rng.randrange(256)}.{rng.randrange(256)}.{rng.randrange(256)}" for _ in range(5000)
    ]
    agent_of = {client: rng.choice(_AGENTS) for client in clients}
    now = float(OLD_TIME_S)
    while True:
        second = -1
        stamp = ""
        # A few clients make most of the requests.
        for client in rng.choices(clients, weights=[1 / rank for rank in range(1, 5001)], k=10_000):
            now += rng.random() * 0.1
            if int(now) != second:
                second = int(now)
                stamp = time.strftime("%d/%b/%Y:%H:%M:%S +0000", time.gmtime(second))
            dice = rng.getrandbits(62)
            page = _PAGES[dice % len(_PAGES)]
            status = 404 if dice % 97 == 0 else 304 if dice % 7 == 0 else 200
            yield (
                f'{client} - - [{stamp}] "GET /{page}/{dice >> 44}?session={dice & 0xFFFFFFFFFF:010x} HTTP/1.1" '
                f'{status} {(dice >> 20) % 60_000} "https://shop.example.org/{_PAGES[(dice >> 8) % len(_PAGES)]}" '
                f'"{agent_of[client]}" {(dice >> 30) % 2_000_000}us\n'
            )


def _write_until(write: Callable[[bytes], int], lines: Iterator[str], size: int) -> None:
    written = 0
    while written < size:
        batch: list[str] = []
        room = size - written
        while room > 0 and len(batch) < 4096:
            line = next(lines)
            room -= len(line)
            batch.append(line)
        written += write("".join(batch).encode())


def _tar(workshop: Workshop) -> Path:
    """The beginning of a tar of /usr in the order of names, long enough for a file and for the content of its edits."""

    def build(folder: Path) -> None:
        contained.need("tar")
        command = ["tar", "--sort=name", "--numeric-owner", "-C", "/", "-cf", "-", "usr"]
        wanted = (TAR_MB + FRESH_MB) * MB
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
            try:
                assert process.stdout is not None
                with (folder / "usr.tar").open("wb") as out:
                    while wanted and (data := process.stdout.read(min(wanted, 1 << 20))):
                        wanted -= out.write(data)
            finally:
                process.kill()
        check(not wanted, "this machine's /usr is too small for a file of the wanted size")

    return workshop.ingredient("usr-tar", build)


def _fresh(donor: BinaryIO, length: int, rng: random.Random) -> bytes:
    donor.seek(TAR_MB * MB + rng.randrange(FRESH_MB * MB - length))
    return donor.read(length)


def _copy_part(source: Path, target: Path, offset: int, size: int) -> None:
    with source.open("rb") as left, target.open("wb") as right:
        left.seek(offset)
        while size and (data := left.read(min(size, 1 << 20))):
            size -= right.write(data)
    check(size == 0, f"{source.name} is too short")


def _count_edits(old: Path, new: Path, plan: Edits) -> int:
    """How many of the planned edits changed something; between them nothing may differ."""
    made = 0
    with old.open("rb") as left, new.open("rb") as right:
        check(left.read(plan.insert_at) == right.read(plan.insert_at), "edits: the beginning changed")
        right.seek(INSERTED_BYTES, os.SEEK_CUR)
        at = plan.insert_at
        for offset, length in plan.spans:
            check(left.read(offset - at) == right.read(offset - at), f"edits: bytes before {offset} changed")
            made += left.read(length) != right.read(length)
            at = offset + length
        while left_rest := left.read(1 << 20):
            check(left_rest == right.read(1 << 20), "edits: the end changed")
        check(not right.read(1), "edits: the file grew")
    return made
