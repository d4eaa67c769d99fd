"""One virtual machine as libvirt has it: look, load, let go, save, end. Remembers nothing.

A machine is always loaded without being executed and then let go, so that until then everything can be taken back. One
that libvirtd loads only after the call was given up is ended by that call.
"""

import contextlib
import os
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import Any, TypeVar

from backends import procfs
from backends.libvirt.connection import SHORT_S, Connection, library
from backends.libvirt.domain import name_of
from backends.procfs import ProcessId

T = TypeVar("T")

CREATE_S = 120.0
LOAD_S = SAVE_S = 600.0  # gigabytes of memory, from and to a slow disk

_POLL_S = 0.02
_PRESS_AGAIN_S = 2.0
_DESTROY_S = 30.0


class Seen(Enum):
    """GONE: libvirt has no such machine. HELD: it is there and does not execute. CRASHED: its kernel panicked."""

    GONE = "gone"
    EXECUTING = "executing"
    HELD = "held"
    CRASHED = "crashed"


class VirtualMachine:
    """The machine of one application. All methods raise what `Connection.run` does.

    Args:
        app_id: 32 hexadecimal digits, which are its UUID.
        disk: the image that it writes.
    """

    def __init__(self, connection: Connection, app_id: str, disk: Path) -> None:
        self._connection = connection
        self._app_id = app_id
        self._disk = disk

    def look(self) -> Seen:
        """Cheap."""
        libvirt = library()

        def ask(hypervisor: Any) -> Seen:
            state = _state(hypervisor, self._app_id)
            if state is None or state == libvirt.VIR_DOMAIN_SHUTOFF:
                return Seen.GONE
            if state == libvirt.VIR_DOMAIN_PAUSED:
                return Seen.HELD
            return Seen.CRASHED if state == libvirt.VIR_DOMAIN_CRASHED else Seen.EXECUTING

        return self._connection.run(ask)

    def unanswered(self) -> bool:
        """Whether libvirtd may do something to it yet that was asked for, and given up."""
        return self._connection.unanswered(self._app_id)

    def process(self) -> ProcessId | None:
        """QEMU's process; None when it cannot be seen from here."""
        mark = f"guest={name_of(self._app_id)}".encode()
        machines: dict[ProcessId, bytes] = {}
        for found in procfs.everyone():
            with contextlib.suppress(OSError):
                line = Path(f"/proc/{found.process.pid}/cmdline").read_bytes()
                words = line.split(b"\0")
                if b"-name" in words[:-1] and words[words.index(b"-name") + 1].split(b",")[0] == mark:
                    machines[found.process] = line
        if len(machines) > 1:  # another libvirtd on this host has a machine of that name, too
            machines = {process: line for process, line in machines.items() if os.fsencode(self._disk) in line}
        return next(iter(machines), None)

    def create(self, description: str) -> None:
        """Make it, without executing it."""
        flags = library().VIR_DOMAIN_START_PAUSED
        self._change(lambda hypervisor: _none(hypervisor.createXML(description, flags)), CREATE_S, late=self._end)

    def restore(self, path: Path, description: str) -> None:
        """Make it with saved memory, without executing it."""
        flags = library().VIR_DOMAIN_SAVE_PAUSED

        def work(hypervisor: Any) -> None:
            hypervisor.restoreFlags(str(path), description, flags)

        self._change(work, LOAD_S, late=self._end)

    def let_go(self) -> None:
        """Execute it, from where it was held."""
        self._with(lambda machine: machine.resume())

    def description(self, *, portable: bool = False) -> str:
        """libvirt's XML; `portable`: fit to be given back to `save`."""
        libvirt = library()
        flags = libvirt.VIR_DOMAIN_XML_SECURE | (libvirt.VIR_DOMAIN_XML_MIGRATABLE if portable else 0)
        return self._with(lambda machine: str(machine.XMLDesc(flags)))

    def save(self, path: Path, description: str) -> None:
        """Write its memory to a file and end it; when that fails, it executes on."""
        self._with(lambda machine: machine.saveFlags(str(path), description, 0), SAVE_S)

    def snapshot(self, path: Path, disk: str) -> float:
        """Write its memory to a file while it executes; its disk stays as it is.

        Returns:
            For how long it did not execute, in seconds; rather too much.
        """
        libvirt = library()
        flags = (
            libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_LIVE
            | libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_ATOMIC
            | libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_NO_METADATA
        )
        root = ET.Element("domainsnapshot")
        ET.SubElement(root, "memory", snapshot="external", file=str(path))
        ET.SubElement(ET.SubElement(root, "disks"), "disk", name=disk, snapshot="no")
        text = ET.tostring(root, encoding="unicode")

        def work(machine: Any) -> float:
            began = time.monotonic()
            machine.snapshotCreateXML(text, flags)
            took_s = time.monotonic() - began
            with contextlib.suppress(libvirt.libvirtError):
                job = machine.jobStats(libvirt.VIR_DOMAIN_JOB_STATS_COMPLETED)
                # It is stopped when QEMU has nothing left to copy, and goes on when libvirt has closed the file.
                copying_s = (job.get("time_elapsed", 0) - job.get("downtime", 0)) / 1000
                return float(max(0.0, took_s - copying_s))
            return took_s

        return self._with(work, SAVE_S)

    def abort(self) -> None:
        """Call off a save or a snapshot that takes too long."""
        self._with(lambda machine: machine.abortJob())

    def memory_bytes(self) -> int:
        """How large a file of its memory will be at most: pages that it never touched are not written."""

        def work(machine: Any) -> int:
            found = machine.memoryStats()
            sizes = [found[key] for key in ("actual", "rss") if key in found]
            return 1024 * min(sizes, default=0)

        return self._with(work)

    def block_job(self, disk: str) -> bool:
        """Whether libvirt copies or joins images of that disk just now."""
        return self._with(lambda machine: bool(machine.blockJobInfo(disk)))

    def shut_down(self, timeout_s: float) -> bool:
        """Press its power button, more than once, and wait. True when it ended."""
        libvirt = library()

        def work(hypervisor: Any) -> bool:
            deadline = time.monotonic() + timeout_s
            press = 0.0
            while _state(hypervisor, self._app_id) is not None:
                now = time.monotonic()
                if now >= deadline:
                    return False
                if now >= press:
                    press = now + _PRESS_AGAIN_S
                    with contextlib.suppress(libvirt.libvirtError):  # it may be going already
                        machine = hypervisor.lookupByUUIDString(self._app_id)
                        machine.shutdownFlags(libvirt.VIR_DOMAIN_SHUTDOWN_ACPI_POWER_BTN)
                time.sleep(min(_POLL_S, max(0.0, deadline - now)))
            return True

        return self._change(work, timeout_s + SHORT_S)

    def destroy(self) -> None:
        """End it at once. Fine when it is gone."""
        self._change(self._end, _DESTROY_S)

    def _end(self, hypervisor: Any) -> None:
        libvirt = library()
        try:
            hypervisor.lookupByUUIDString(self._app_id).destroy()
        except libvirt.libvirtError as error:
            if error.get_error_code() not in (libvirt.VIR_ERR_NO_DOMAIN, libvirt.VIR_ERR_OPERATION_INVALID):
                raise

    def _with(self, work: Callable[[Any], T], timeout_s: float = SHORT_S) -> T:
        return self._change(lambda hypervisor: work(hypervisor.lookupByUUIDString(self._app_id)), timeout_s)

    def _change(self, work: Callable[[Any], T], timeout_s: float, *, late: Callable[[Any], None] | None = None) -> T:
        """All calls but `look`: one that is given up counts as unanswered until it ends."""
        return self._connection.run(work, timeout_s, about=self._app_id, late=late)


def _state(hypervisor: Any, app_id: str) -> int | None:
    libvirt = library()
    try:
        return int(hypervisor.lookupByUUIDString(app_id).state()[0])
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
            return None
        raise


def _none(made: object) -> None:
    """Drop a handle in the thread that got it."""
