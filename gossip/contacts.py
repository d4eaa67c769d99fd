"""First contact: with seeds, with members of an earlier life, and with the dead, who may only have been cut off.

While this node is alone it tries seeds and everyone it ever knew, quickly at first. Later, one random dead member is
tried in each reconnect interval: in a mesh that fell into two halves each node of either half tries, so the halves find
each other at once however many there are, and the cost for a single node stays the same. A seed is tried until it has
answered once.
"""

import random
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from gossip.config import GossipConfig
from gossip.messages import NodeId
from gossip.probing import Address, PingMember
from gossip.table import MemberTable

FIRST_RETRY_S: Final = 0.25
MAX_SEEDS: Final = 64
AT_ONCE: Final = 4
"""Seeds, and dead members, that a lonely node tries in one go."""


@dataclass(frozen=True, slots=True)
class Hello:
    """Step: ping whoever is at this address."""

    addr: Address
    seq: int


@dataclass(frozen=True, slots=True)
class Exchange:
    """Step: exchange the whole membership with this member over TCP."""

    node: NodeId


ContactStep = Hello | PingMember | Exchange


@dataclass(frozen=True, slots=True)
class _Sent:
    at: float
    seed: Address | None
    node: NodeId | None


class Contacts:
    """Who is to be reached for the first time, or again.

    Args:
        config: the pace.
        table: who is live, and who is gone.
        rng: picks among them.
        now: the first attempts are due at once.
    """

    def __init__(self, config: GossipConfig, table: MemberTable, rng: random.Random, now: float) -> None:
        self._config = config
        self._table = table
        self._rng = rng
        self._seeds: list[Address] = []
        self._sent: dict[int, _Sent] = {}
        self._retry_s = FIRST_RETRY_S
        self.deadline = now

    def add_seeds(self, seeds: Iterable[Address], now: float) -> None:
        """Try these addresses, from now on until each has answered."""
        for seed in seeds:
            if seed not in self._seeds and len(self._seeds) < MAX_SEEDS:
                self._seeds.append(seed)
        self._retry_s = FIRST_RETRY_S
        self.deadline = now

    def tick(self, now: float) -> list[ContactStep]:
        """Try whoever is due."""
        self._sent = {
            seq: sent for seq, sent in self._sent.items() if now - sent.at < self._config.reconnect_interval_s
        }
        lonely = not self._table.live
        seeds = self._rng.sample(self._seeds, min(AT_ONCE if lonely else 1, len(self._seeds)))
        gone = self._table.gone.draw(self._rng, AT_ONCE if lonely else 1)
        steps: list[ContactStep] = [Hello(seed, self._note(_Sent(now, seed, None))) for seed in seeds]
        steps += [PingMember(node, self._note(_Sent(now, None, node))) for node in gone]
        if lonely:  # UDP may be what does not work
            steps += [Exchange(node) for node in gone]
            self._retry_s = min(2 * self._retry_s, self._config.reconnect_interval_s)
            self.deadline = now + self._retry_s
        else:
            self._retry_s = FIRST_RETRY_S
            # Not all at the same time, or both halves of a healed mesh try each other's dead in step.
            self.deadline = now + self._config.reconnect_interval_s * self._rng.uniform(0.5, 1.5)
        return steps

    def acked(self, seq: int, node: NodeId, now: float) -> float | None:
        """An ack arrived: the seconds since its ping, if it was one of ours."""
        sent = self._sent.get(seq)
        if sent is None or sent.node not in (None, node):
            return None
        del self._sent[seq]
        if sent.seed in self._seeds:
            self._seeds.remove(sent.seed)
        return now - sent.at

    def _note(self, sent: _Sent) -> int:
        seq = self._rng.getrandbits(32)
        self._sent[seq] = sent
        return seq
