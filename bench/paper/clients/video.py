"""A viewer of a live stream (HTTP Live Streaming, RFC 8216): reads the playlist, and each segment as it appears.

One connection is kept, as players do. The stream's numbers only grow, as do those of an ffmpeg that goes on; one that
was started anew counts from one again. A segment must be whole packets of an MPEG transport stream.
"""

import http.client
import threading
from dataclasses import dataclass

from bench.paper.clients.probing import PATIENCE_S, connect
from bench.paper.clients.record import APP, Record

PORT = 8080
PLAYLIST = "/live.m3u8"
ASK_S = 0.25
PACKET_BYTES = 188
SYNC_BYTE = 0x47
MOST_BYTES = 8 << 20


class BadStream(Exception):
    """What came is no stream: the text says why."""


@dataclass(frozen=True, slots=True)
class Playlist:
    """What is to be had of a live stream now.

    Attributes:
        first: number of its first segment.
        names: of its segments, the oldest first.
    """

    first: int
    names: tuple[str, ...]

    def since(self, number: int) -> list[tuple[int, str]]:
        """Numbers and names of the segments from `number` on."""
        return [(at, name) for at, name in enumerate(self.names, self.first) if at >= number]


def parse(text: str) -> Playlist:
    """Read a playlist.

    Raises:
        BadStream: it is none.
    """
    lines = text.splitlines()
    if not lines or lines[0] != "#EXTM3U":
        raise BadStream("the playlist does not begin as one")
    first = 0
    for line in lines:
        name, _, value = line.partition(":")
        if name == "#EXT-X-MEDIA-SEQUENCE":
            if not value.isdigit():
                raise BadStream(f"the playlist begins at {value!r}")
            first = int(value)
    return Playlist(first, tuple(line for line in lines if line and not line.startswith("#")))


def check_segment(data: bytes) -> None:
    """Make sure that a segment is whole packets.

    Raises:
        BadStream: it is not.
    """
    if not data or len(data) % PACKET_BYTES:
        raise BadStream(f"a segment of {len(data)} bytes")
    if any(data[at] != SYNC_BYTE for at in range(0, len(data), PACKET_BYTES)):
        raise BadStream("a segment with broken packets")


class Viewer:
    """Somebody who watches from now on, on one connection."""

    def __init__(self, address: str, record: Record) -> None:
        self._connection = http.client.HTTPConnection(address, PORT)
        # Connected by ourselves, for the options of the socket.
        self._connection.sock = connect(address, PORT, PATIENCE_S)
        self._connection.auto_open = False
        self._record = record
        self._next = 0

    def __enter__(self) -> "Viewer":
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def watch(self, ending: threading.Event) -> None:
        """Watch until told to end.

        Raises:
            OSError, http.client.HTTPException: the connection broke.
            BadStream: there is no stream (yet).
        """
        while not ending.wait(ASK_S):
            playlist = parse(self._get(PLAYLIST).decode("ascii", "replace"))
            self._record.answered(APP, first=playlist.first)
            if self._next and playlist.first + len(playlist.names) < self._next:
                self._record.lost(APP, f"the stream went back from {self._next} to {playlist.first}")
                self._next = 0
            for number, name in playlist.since(self._next or playlist.first + len(playlist.names) - 1):
                data = self._get(f"/{name}")
                check_segment(data)
                self._record.answered(APP, segment=number, size=len(data))
                self._next = number + 1

    def _get(self, path: str) -> bytes:
        self._connection.request("GET", path)
        with self._connection.getresponse() as response:
            data = response.read(MOST_BYTES)
            if response.status != http.client.OK:
                raise BadStream(f"{path}: status {response.status}")
        return data


def use(address: str, record: Record, ending: threading.Event) -> None:
    """Watch, and connect again when the connection breaks; that there is no stream yet is no break."""
    while not ending.is_set():
        try:
            with Viewer(address, record) as viewer:
                viewer.watch(ending)
        except (OSError, http.client.HTTPException) as error:
            record.broken(APP, error)
        except BadStream as error:
            record.lost(APP, str(error))
        ending.wait(ASK_S)
