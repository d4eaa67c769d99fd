"""What is migrated and who uses it, by cell: applications with their layers and configuration files, and clients."""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from bench.data import workshop
from bench.netlab import Host
from bench.paper import apps, trial
from bench.paper.clients import Client, State, StateLost
from bench.paper.plan import LIBVIRT, PROCESS, Cell
from bench.paper.stage import APP_ADDRESS, APP_MAC, BRIDGE, CLIENT_ADDRESS, PREFIX_BITS
from bench.paper.workloads import Layers, Seen, Watch, Workload

FILES: Final = ("-H", "-X", "--numeric-ids")
"""What rsync needs for file systems of containers: hard links, overlays' marks, owners by number."""
DISKS: Final = ("-S",)
"""For disks of virtual machines: holes."""


class Scenes:
    """Applications and clients.

    Args:
        work: a folder that keeps layers from one bench to the next.
        scratch: one that does not.
    """

    def __init__(self, work: Path, scratch: Path) -> None:
        self._work = work
        self._scratch = scratch
        self._made: dict[tuple[str, str, int, int], Layers] = {}

    def workload(self, cell: Cell) -> Workload:
        """The application of a cell; its layers are made when it is first asked for, which may take minutes.

        Raises:
            Unavailable: this machine lacks something that they are made with.
        """
        if cell.platform == PROCESS:
            return trial.workload(self._scratch / "counter", cell)
        layers = self._layers("vm" if cell.platform == LIBVIRT else "container", cell)
        return Workload(cell.app, cell.platform, layers, config(cell), DISKS if cell.platform == LIBVIRT else FILES)

    def watch(self, cell: Cell, client: Host, log: Path) -> Watch:
        """A client of it, to be run on a host; `log` is a file for what it has to say."""
        user = Client(cell.app, APP_ADDRESS, log, enter=client.command(()))
        return User(user, keeps_connections=cell.platform != PROCESS)

    def _layers(self, platform: apps.Platform, cell: Cell) -> Layers:
        rewrite_bytes_s = int(cell.rewrite_mb_s * 1e6)
        key = (platform, cell.app, cell.ram_mb, rewrite_bytes_s)
        if key not in self._made:
            with workshop.opened(self._work, {}) as place:
                base = apps.base_layer(place, platform)
                size = {"ram_mb": cell.ram_mb, "rewrite_bytes_s": rewrite_bytes_s} if cell.ram_mb else {}
                self._made[key] = Layers(base, apps.app_layer(place, cell.app, platform, **size))
        return self._made[key]


def config(cell: Cell) -> str:
    """The configuration file of a cell's application."""
    application = apps.APPLICATIONS[cell.app]
    network = {
        "network": f"bridge:{BRIDGE}",
        "mac": APP_MAC,
        "ipv4": f"{APP_ADDRESS}/{PREFIX_BITS}",
        "gateway": CLIENT_ADDRESS,
    }
    if cell.platform == LIBVIRT:
        memory = {"memory_mb": application.guest_mb(cell.ram_mb), "cmdline": apps.COMMAND_LINE}
        return _toml({}, LIBVIRT, {**memory, **network})
    return _toml({"command": application.command}, cell.platform, network)


def _toml(top: Mapping[str, object], table: str, values: Mapping[str, object]) -> str:
    """JSON's strings, numbers and lists are TOML's."""
    lines = [f"{key} = {json.dumps(value)}" for key, value in top.items()]
    return "\n".join([*lines, f"[{table}]", *(f"{key} = {json.dumps(value)}" for key, value in values.items())]) + "\n"


class User:
    """One who uses an application all the time; see `bench.paper.workloads.Watch`.

    Args:
        keeps_connections: whether an open connection is to survive a migration.
    """

    def __init__(self, client: Client, *, keeps_connections: bool = True) -> None:
        self._client = client
        self._keeps_connections = keeps_connections
        self._before: State | None = None
        self._begin_s = 0.0

    def begin(self) -> None:
        self._before = self._client.start() if self._before is None else self._client.snapshot()
        self._begin_s = time.monotonic()

    def end(self) -> Seen:
        self._client.wait_for_answers(time.monotonic())
        gaps = self._client.gaps(self._begin_s, time.monotonic())
        assert self._before is not None
        notes = {}
        try:
            after = self._client.snapshot()
            self._client.verify(self._before, after, since_s=self._begin_s)
        except StateLost as error:
            notes["lost"] = str(error)
        kept = {"state": not notes}
        if "memory" in self._before:
            kept["memory"] = not notes
        if self._keeps_connections:
            kept["connection"] = self._client.kept(self._begin_s)
            if not kept["connection"]:
                notes["broken"] = "; ".join(self._client.troubles(self._begin_s))[:300]
        return Seen(gaps.longest_s, kept, {"gaps_s": gaps.total_s}, notes)

    def close(self) -> None:
        self._client.stop()
