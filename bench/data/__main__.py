"""`python -m bench.data`: make the data of all cases, or of some, and print what there is.

With `--rsync` also what rsync would send for each pair on one machine, a check of the data against known figures.
"""

import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType

import click

from bench.data import CASES, DEFAULT_WORK, Pair, Spoiled, Unavailable, make, workshop

_ZSTD = ("-z", "--compress-choice=zstd")


@click.command()
@click.argument("names", nargs=-1)
@click.option("--work", default=str(DEFAULT_WORK), show_default=True, help="Folder where the data is kept.")
@click.option("--size-mb", type=int, help="Make variants of this size.")
@click.option("--rsync", is_flag=True, help="Print the bytes that rsync sends for each pair.")
def main(names: tuple[str, ...], work: str, size_mb: int | None, rsync: bool) -> None:
    """Make the benchmark's data."""
    signal.signal(signal.SIGTERM, _end)
    failed = False
    for name in names or CASES:
        if name not in CASES:
            raise click.UsageError(f"no case {name}; there are {', '.join(CASES)}")
        begin = time.monotonic()
        try:
            pair = make(name, Path(work), size_mb)
        except (Unavailable, Spoiled) as error:
            print(f"{name}: {error}", file=sys.stderr)
            failed = True
            continue
        took = time.monotonic() - begin
        print(f"{name:14} {pair.files:6} files {pair.size / 1e6:8.1f} MB  made in {took:.1f} s", flush=True)
        known = workshop.noted(Path(work), name, CASES[name].variant(size_mb))
        print(f"{'':14} {', '.join(f'{key} {value}' for key, value in known.items()) or 'no facts'}", flush=True)
        if rsync:
            for options in ((), _ZSTD, *(((("-B", "4096"), ("-B", "4096", *_ZSTD))) if pair.image else ())):
                text = " ".join(options) or "defaults"
                print(f"{'':14} rsync {text}: {sent(pair, Path(work), options):,} bytes", flush=True)
    sys.exit(failed)


def sent(pair: Pair, work: Path, options: tuple[str, ...]) -> int:
    """Bytes in both directions of a local `rsync -a` that updates a copy of the old side to the new one."""
    copy = work / ".rsync-copy"
    shutil.rmtree(copy, ignore_errors=True)
    try:
        if pair.old is not None:
            subprocess.run(["cp", "-a", str(pair.old), str(copy)], check=True)
        command = ["rsync", "-a", "--delete", "--no-whole-file", "--stats", *options, f"{pair.new}/", f"{copy}/"]
        text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    finally:
        shutil.rmtree(copy, ignore_errors=True)
    totals = [line.split(":")[1] for line in text.splitlines() if line.startswith("Total bytes ")]
    return sum(int(total.replace(",", "").replace(".", "")) for total in totals)


def _end(_number: int, _frame: FrameType | None) -> None:
    sys.exit(143)


if __name__ == "__main__":
    main()
