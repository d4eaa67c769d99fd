"""A name is freed however often that fails first."""

import io

from trio.testing import MockClock

from gossip.messages import NodeId
from p2player.errors import Failed
from p2player.log import Log
from p2player.net.releasing import release

NODE = NodeId("ab" * 16)


class FullDisk:
    """An authority whose journal cannot be written for the first `failures` times."""

    def __init__(self, failures: int) -> None:
        self.failures = failures
        self.released: list[NodeId] = []

    def release(self, node: NodeId, _now: float) -> bool:
        if self.failures:
            self.failures -= 1
            raise Failed("journal: no space left on device")
        self.released.append(node)
        return True


async def test_a_journal_that_cannot_be_written_is_tried_again(autojump_clock: MockClock) -> None:
    said, authority = io.StringIO(), FullDisk(2)
    await release(authority, NODE, Log(stream=said))
    assert authority.released == [NODE]
    assert said.getvalue().count("no space left") == 2
