"""A client's process: `python -m bench.paper.clients KEY --address IP (--log FILE | --snapshot)`."""

import json
import signal
import sys
import threading
from pathlib import Path

import click

from bench.paper.clients import probing
from bench.paper.clients.protocols import PROTOCOLS, Channel
from bench.paper.clients.record import Record


@click.command()
@click.argument("key")
@click.option("--address", required=True, help="Of the application.")
@click.option("--log", type=click.Path(path_type=Path), help="Write answers there until a signal comes.")
@click.option("--snapshot", is_flag=True, help="Print the application's state instead.")
def main(key: str, address: str, log: Path | None, snapshot: bool) -> None:
    """Use an application until a signal comes."""
    if snapshot:
        try:
            print(json.dumps(probing.snapshot(address)))
        except (OSError, ValueError) as error:
            print(f"no answer from {address}: {error}", file=sys.stderr)
            sys.exit(1)
        return
    if log is None:
        raise click.UsageError("give --log or --snapshot")
    ending = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ending.set())
    record = Record(log)
    channels: list[Channel] = [probing.probe, probing.hold]
    if key in PROTOCOLS:
        channels.append(PROTOCOLS[key])
    # They end with the process, which does not wait for answers that may never come.
    threads = [threading.Thread(target=run, args=(address, record, ending), daemon=True) for run in channels]
    for thread in threads:
        thread.start()
    while not ending.wait(1.0):
        if not all(thread.is_alive() for thread in threads):
            sys.exit(1)


if __name__ == "__main__":
    main()
