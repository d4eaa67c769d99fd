"""A set of nodes from which random ones are drawn in constant time, and reproducibly.

Python's sets cannot be sampled without copying them, and their order depends on the process; a list with the position
of each element does both, however many nodes there are.
"""

import random
from collections.abc import Iterator

from gossip.messages import NodeId


class Roster:
    """An ordered set with random sampling."""

    __slots__ = ("_nodes", "_position")

    def __init__(self) -> None:
        self._nodes: list[NodeId] = []
        self._position: dict[NodeId, int] = {}

    def __len__(self) -> int:
        return len(self._nodes)

    def __contains__(self, node: object) -> bool:
        return node in self._position

    def __iter__(self) -> Iterator[NodeId]:
        return iter(self._nodes)

    def add(self, node: NodeId) -> None:
        """Add a node, if it is not in already."""
        if node not in self._position:
            self._position[node] = len(self._nodes)
            self._nodes.append(node)

    def discard(self, node: NodeId) -> None:
        """Remove a node, if it is in."""
        position = self._position.pop(node, None)
        if position is None:
            return
        last = self._nodes.pop()
        if last != node:
            self._nodes[position] = last
            self._position[last] = position

    def draw(self, rng: random.Random, count: int, *, but: NodeId | None = None) -> list[NodeId]:
        """Up to `count` different random nodes, without `but`."""
        wanted = min(count + 1, len(self._nodes))
        return [node for node in rng.sample(self._nodes, wanted) if node != but][:count]
