"""The program that is dumped: keeps a dictionary of records, and at SIGUSR1 updates one per cent of them.

Usage: records.py STATUS BYTES. STATUS is a file where it tells what it has done; BYTES is the memory to fill. It has no
open files, pipes or sockets, and imports nothing but the standard library.
"""

import os
import random
import signal
import sys

SYLLABLES = ["ka", "lo", "mi", "ter", "an", "vel", "dor", "is", "qua", "ren", "tu", "shi", "bo", "gal", "en", "pra"]


def fresh(number: int, rng: random.Random) -> dict[str, object]:
    """One record: what a shop knows of a customer."""
    name = "".join(rng.choices(SYLLABLES, k=4))
    return {
        "id": number,
        "name": name,
        "mail": f"{name}{number}@example.org",
        "balance": rng.random() * 1000,
        "visits": rng.randrange(1, 5000),
        "note": " ".join(rng.choices(SYLLABLES, k=30)),
    }


def update(records: dict[int, dict[str, object]], rng: random.Random) -> int:
    """Change the balance, the visits and the note of one per cent of the records; returns how many."""
    chosen = rng.sample(range(len(records)), max(1, len(records) // 100))
    for number in chosen:
        record = records[number]
        record["balance"] = rng.random() * 1000
        record["visits"] = rng.randrange(5000, 10_000)
        record["note"] = " ".join(rng.choices(SYLLABLES, k=30))
    return len(chosen)


def anonymous_bytes() -> int:
    """Memory of this process that is in use and no part of a file: what a dump holds."""
    with open("/proc/self/status") as status:
        (line,) = (line for line in status if line.startswith("RssAnon:"))
    return int(line.split()[1]) * 1024


def tell(status: str, text: str) -> None:
    """Replace the status file's text at once."""
    with open(status + ".part", "w") as out:
        out.write(text)
    os.replace(status + ".part", status)


def main() -> None:
    """Fill, tell, and wait for signals for ever."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    status, wanted = sys.argv[1], int(sys.argv[2])
    rng = random.Random(20240304)
    records: dict[int, dict[str, object]] = {}
    while anonymous_bytes() < wanted:
        for _ in range(200):
            records[len(records)] = fresh(len(records), rng)
    tell(status, f"ready {len(records)}")
    while True:
        signal.sigwait({signal.SIGUSR1})
        tell(status, f"updated {update(records, rng)}")


if __name__ == "__main__":
    main()
