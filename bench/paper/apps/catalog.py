"""The applications of the table: what they are called, what they need, what is installed for them."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

Platform = Literal["container", "vm"]

COMMAND = ("/usr/bin/python3", "-S", "-E", "-B", "/opt/p2p/main.py")
PROBE_PORT = 7000
GUEST_MB = 128
"""Memory of a virtual machine that does nothing."""


@dataclass(frozen=True, slots=True)
class Application:
    """One row of the table.

    Attributes:
        key: what it is called on command lines and in folder names.
        title: as in the table.
        memory_mb: of its virtual machine, in MiB; see `guest_mb`.
        command: of its container, the first process there; virtual machines run the same from the base's init.
        ports: TCP ports that it listens on, the probe's first (which is also one of UDP).
        packages: Debian packages of the application layer, which bring what they depend on.
        without: of what they depend on, what no program of the application loads.
        programs: command lines that the first process starts and watches.
        modules: files of `inside/` that the layer holds.
        memory: full of random pages, of a size that the caller chooses.
    """

    key: str
    title: str
    memory_mb: int = GUEST_MB
    command: tuple[str, ...] = COMMAND
    ports: tuple[int, ...] = (PROBE_PORT,)
    packages: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    programs: tuple[str, ...] = ()
    modules: tuple[str, ...] = ()
    memory: bool = False

    def guest_mb(self, ram_mb: int = 100) -> int:
        """MiB of memory that a virtual machine needs when the application fills `ram_mb` MB, if it is one that does."""
        return self.memory_mb + (-(-ram_mb // 32) * 32 if self.memory else 0)


GAME_PORT = 5154
HTTP_PORT = 8080
FACE_PORT = 7001

# Drivers of graphics cards and what these are made with: loaded by programs that draw on a screen.
_NO_SCREEN = (
    "libgl1-mesa-dri",
    "libllvm15",
    "libz3-4",
    "libgl1-amber-dri",
    "iso-codes",
    "xkb-data",
    "shared-mime-info",
)


def _table(*rows: Application) -> Mapping[str, Application]:
    return MappingProxyType({row.key: row for row in rows})


APPLICATIONS = _table(
    Application("none", "No Application"),
    Application("ram", "High RAM App", 96, modules=("memory.py",), memory=True),
    Application("ram-rewriting", "High RAM App, rewriting", 96, modules=("memory.py",), memory=True),
)
