"""Which applications have a protocol of their own, and who speaks it."""

import threading
from collections.abc import Callable, Mapping

from bench.paper.clients import face, game, video
from bench.paper.clients.record import Record

Channel = Callable[[str, Record, threading.Event], None]
"""Uses the application at an address until told to end, and writes down what comes back."""

PROTOCOLS: Mapping[str, Channel] = {"game": game.use, "video": video.use, "face": face.use}
