"""A subscriber of the face detection: gets a line for each frame, and knows how many faces were drawn on it."""

import re
import threading

from bench.paper.clients.probing import PATIENCE_S, connect
from bench.paper.clients.record import APP, Record

PORT = 7001
LINE_BYTES = 100

_LINE = re.compile(rb"frame (\d+) faces (\d+) drawn (\d+)\n")


class Frames:
    """What the lines say, one after the other."""

    def __init__(self) -> None:
        self._last = 0

    def take(self, line: bytes) -> tuple[int, int, str | None]:
        """Read one line.

        Returns:
            The frame's number, how many faces were found, and what is wrong with that.

        Raises:
            ValueError: it is none.
        """
        match = _LINE.fullmatch(line)
        if match is None:
            raise ValueError(f"no line of a frame: {line!r}")
        number, found, drawn = (int(group) for group in match.groups())
        last, self._last = self._last, number
        if last and number != last + 1:
            return number, found, f"frame {number} came after frame {last}"
        if found != drawn:
            return number, found, f"{found} faces were found on frame {number}, which has {drawn}"
        return number, found, None


def use(address: str, record: Record, ending: threading.Event) -> None:
    """Read lines; connect again when the connection breaks."""
    while not ending.is_set():
        try:
            with connect(address, PORT, PATIENCE_S) as end, end.makefile("rb") as lines:
                frames = Frames()
                while not ending.is_set():
                    line = lines.readline(LINE_BYTES)
                    if not line:
                        raise ConnectionError("the detection has closed the connection")
                    number, found, wrong = frames.take(line)
                    record.answered(APP, frame=number, faces=found)
                    if wrong is not None:
                        record.lost(APP, wrong)
        except (OSError, ValueError) as error:
            record.broken(APP, error)
            ending.wait(1.0)
