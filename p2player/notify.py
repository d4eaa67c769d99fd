"""Tell the service manager how the node is doing: the `sd_notify` protocol, one datagram a message."""

import os
import socket
from contextlib import suppress


def notify(message: str) -> None:
    """Send e.g. `READY=1` to the manager that started this process; nothing happens where there is none."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    # A manager that went away is no reason to stop.
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
        sender.sendto(message.encode(), address)
