"""The asks that are out: which chunks each peer was asked for and has not sent yet.

An ask shrinks as its chunks arrive, from its own peer or, where two were asked for the same chunk, from the other one.
It ends when nothing of it is left, when the peer has answered in full, or with the peer's session. What is in flight
with a peer is accounted here and in its `PeerStats`, and nowhere else.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from gossip.messages import NodeId
from p2player.proto.peerstats import Mark, PeerStats


@dataclass(slots=True, eq=False)
class Asked:
    """One ask.

    Attributes:
        left: positions that have not come, in the order asked; their lengths in bytes.
        size: bytes that have not come.
        risk: bytes that this ask, a double of another, may deliver in vain.
    """

    number: int
    peer: NodeId
    stats: PeerStats
    mark: Mark
    left: dict[int, int]
    size: int
    risk: int = 0


class AskBook:
    """All asks of one transfer."""

    def __init__(self) -> None:
        self._asks: dict[int, Asked] = {}
        self._by_peer: dict[NodeId, dict[int, Asked]] = {}
        self._by_position: dict[int, list[Asked]] = {}
        self._next = 1

    def __len__(self) -> int:
        return len(self._asks)

    def __iter__(self) -> Iterator[Asked]:
        return iter(self._asks.values())

    def get(self, number: int, peer: NodeId) -> Asked | None:
        """The ask of that number, if it is out and was made to `peer`."""
        asked = self._asks.get(number)
        return asked if asked is not None and asked.peer == peer else None

    def of(self, peer: NodeId) -> Collection[Asked]:
        """The asks made to `peer`, oldest first."""
        return self._by_peer.get(peer, {}).values()

    def count(self, position: int) -> int:
        """How many peers are asked for the chunk at `position`."""
        return len(self._by_position.get(position, ()))

    def open(self, peer: NodeId, stats: PeerStats, left: dict[int, int], now: float, risk: int = 0) -> Asked:
        """Note that `peer` is asked for the positions of `left` (each with its length) now."""
        size = sum(left.values())
        asked = Asked(self._next, peer, stats, stats.asked(size, now), left, size, risk)
        self._next += 1
        self._asks[asked.number] = asked
        self._by_peer.setdefault(peer, {})[asked.number] = asked
        for position in left:
            self._by_position.setdefault(position, []).append(asked)
        return asked

    def deliver(self, asked: Asked, positions: Sequence[int], now: float) -> None:
        """The peer of `asked` sent the chunks at `positions`: take samples of what it can do."""
        due = 0
        for position in positions:
            length = asked.left.pop(position, None)
            if length is not None:
                due += length
                self._unlink(position, asked)
        asked.size -= due
        asked.stats.received(due, asked.mark, now)
        if not asked.left:
            asked.stats.completed(asked.mark, now)
            self._forget(asked)

    def settle(self, position: int) -> list[Asked]:
        """The chunk at `position` is here: nobody need send it. Returns the asks that are empty now, and ended."""
        emptied = []
        for asked in self._by_position.pop(position, ()):
            length = asked.left.pop(position)
            asked.size -= length
            asked.stats.forgo(length)
            if not asked.left:
                self._forget(asked)
                emptied.append(asked)
        return emptied

    def close(self, asked: Asked) -> list[int]:
        """End an ask whose rest will not come. Returns the positions of it that nobody else is asked for."""
        asked.stats.forgo(asked.size)
        self._forget(asked)
        return [position for position in asked.left if self._unlink(position, asked)]

    def _unlink(self, position: int, asked: Asked) -> bool:
        """Whether nobody is asked for `position` any more."""
        others = self._by_position[position]
        others.remove(asked)
        if not others:
            del self._by_position[position]
        return not others

    def _forget(self, asked: Asked) -> None:
        del self._asks[asked.number]
        del self._by_peer[asked.peer][asked.number]
