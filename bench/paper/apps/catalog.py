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
        prepare: command line that is run once, when the layer is made: generates the application's data.
        programs: command lines that the first process starts and watches.
        modules: files of `inside/` that the layer holds.
            Names that begin with `make_` are there for `prepare` only.
        memory: full of random pages, of a size that the caller chooses.
    """

    key: str
    title: str
    memory_mb: int = GUEST_MB
    command: tuple[str, ...] = COMMAND
    ports: tuple[int, ...] = (PROBE_PORT,)
    packages: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    prepare: str = ""
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
    "fonts-dejavu-core",
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
    Application(
        "game",
        "Game Server",
        ports=(PROBE_PORT, GAME_PORT),
        packages=("bzflag-server",),
        programs=(f"/usr/games/bzfs -p {GAME_PORT} -ms 1 -mp 16 -sa -density 2",),
    ),
    Application("ram", "High RAM App", 96, modules=("memory.py",), memory=True),
    Application("ram-rewriting", "High RAM App, rewriting", 96, modules=("memory.py",), memory=True),
    Application(
        "video",
        "Video Streaming",
        160,
        ports=(PROBE_PORT, HTTP_PORT),
        packages=("ffmpeg", "nginx-light"),
        without=_NO_SCREEN,
        prepare="sh /opt/p2p/make_clip.sh /opt/p2p/clip.mp4",
        programs=("/bin/sh /opt/p2p/stream.sh", "/usr/sbin/nginx -c /opt/p2p/nginx.conf"),
        modules=("stream.sh", "nginx.conf", "make_clip.sh"),
    ),
    Application(
        "face",
        "Face Detection",
        256,
        ports=(PROBE_PORT, FACE_PORT),
        packages=("python3-opencv", "opencv-data"),
        without=(*_NO_SCREEN, "proj-data", "gdal-data", "gdal-plugins"),  # maps of the earth
        prepare="/usr/bin/python3 -B /opt/p2p/make_faces.py /opt/p2p/faces.avi",
        programs=("/usr/bin/python3 -B /opt/p2p/faces.py",),
        modules=("faces.py", "make_faces.py"),
    ),
)
