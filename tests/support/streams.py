"""Byte streams in memory, counted as TLS streams are."""

from collections.abc import Iterable

from trio.testing import MemoryReceiveStream, MemorySendStream, memory_stream_pair

from p2player.net.link import UNKNOWN, LinkEstimate


class CountedStream:
    """One end of an in-memory connection with the surface of a `TlsStream`."""

    def __init__(self, send: MemorySendStream, receive: MemoryReceiveStream) -> None:
        self._send = send
        self._receive = receive
        self.bytes_in = 0
        self.bytes_out = 0

    async def receive_some(self, max_bytes: int = 1 << 20, *, lacking: int = 0) -> bytes:
        data = bytes(await self._receive.receive_some(max_bytes))
        self.bytes_in += len(data)
        return data

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self._send.send_all(data)
        self.bytes_out += len(data)

    async def send_buffers(self, buffers: Iterable[bytes | bytearray | memoryview]) -> None:
        for buffer in buffers:
            await self.send_all(buffer)

    def link(self) -> LinkEstimate:
        return UNKNOWN

    async def aclose(self) -> None:
        await self._send.aclose()
        await self._receive.aclose()


def counted_pair() -> tuple[CountedStream, CountedStream]:
    """Two joined ends."""
    left, right = memory_stream_pair()
    return (
        CountedStream(left.send_stream, left.receive_stream),
        CountedStream(right.send_stream, right.receive_stream),
    )
