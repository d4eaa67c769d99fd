"""Bandwidth caps as something to wait on: token buckets with a clock."""

import trio

from p2player.proto.rate import TokenBucket


class Shaper:
    """Lets bytes pass at a rate; shared by all sessions that it caps."""

    def __init__(self, bytes_per_s: float) -> None:
        self._bucket = TokenBucket(bytes_per_s)

    async def spend(self, count: int) -> None:
        """Wait until `count` bytes may pass."""
        delay_s = self._bucket.spend(count, trio.current_time())
        if delay_s > 0:
            await trio.sleep(delay_s)
