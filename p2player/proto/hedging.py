"""Doubling a late ask: when a peer that has nothing else to do should fetch what another one is expected to bring last.

Theory of operation
-------------------
Near the end, a chunk that is asked of a slow peer is all that everybody waits for. A peer that would have it in half
that time, and `GAIN_S` sooner at least, is asked for it too; the first copy wins. What is doubled is taken from the
tail of the ask, since its head is on the way.

Both copies may come, so each double carries a *risk*: the bytes that the slow peer is expected to send before the fast
one is done. The risks of all doubles that are out, and the duplicates that there were, stay within `DUPLICATES` of the
transfer. Where an ask is `LATE_S` behind, past duplicates no longer count: otherwise one unlucky double in a small
transfer would make it wait for a dead peer.

An ask counts as late only on good evidence: its peer's rate has settled, or it has had time for two round trips. And
a peer that was asked and has shown nothing yet is not called to help.
"""

from dataclasses import dataclass
from typing import Final

from gossip.messages import NodeId
from p2player.proto.asks import AskBook, Asked
from p2player.proto.peerstats import PeerStats
from p2player.proto.wants import WantTable

DUPLICATES: Final = 0.008
MIN_RISK_BYTES: Final = 16 << 10
GAIN: Final = 2.0
GAIN_S: Final = 0.05
LATE_S: Final = 0.2
SETTLE_S: Final = 0.03


@dataclass(frozen=True, slots=True)
class Double:
    """Ask for the chunks at `positions` once more; `risk` bytes of them may come twice."""

    positions: list[int]
    risk: int


def find_double(
    peer: NodeId, stats: PeerStats, asks: AskBook, table: WantTable, duplicates: int, now: float
) -> Double | None:
    """What `peer`, which can take nothing that is idle, should double; None: nothing.

    Args:
        duplicates: bytes that came twice so far, in the table's lengths.
    """
    others = [asked for asked in asks if asked.peer != peer and _shows(asked, now)]
    unproven = stats.asked_bytes > 0 and not stats.measured
    if not others or unproven:
        return None
    end_s, asked = max(((_end_s(asked, asks, now), asked) for asked in others), key=lambda pair: pair[0])
    late = end_s >= LATE_S
    budget = max(int(DUPLICATES * table.total_bytes), MIN_RISK_BYTES)
    most = stats.ask_bytes if late else min(stats.ask_bytes, budget)
    positions, size = _tail(peer, asked, asks, table, most)
    mine_s = stats.finish_s(size, now)
    if not positions or GAIN * mine_s > end_s or end_s - mine_s < GAIN_S:
        return None
    risk = min(size, int(asked.stats.rate_at(now) * mine_s))
    spent = sum(other.risk for other in asks)
    if not late:
        risk = max(risk, min(table.total_bytes // len(table.ids), budget // 2))
        spent += duplicates
    return Double(sorted(positions), risk) if spent + risk <= budget else None


def _shows(asked: Asked, now: float) -> bool:
    """Whether what is known of the peer says something about this ask."""
    return asked.stats.settled or now - asked.mark.at > GAIN * asked.stats.rtt_s + SETTLE_S


def _end_s(asked: Asked, asks: AskBook, now: float) -> float:
    """Seconds until `asked` is expected to be complete: all that its peer was asked for before comes first."""
    ahead = sum(other.size for other in asks.of(asked.peer) if other.number <= asked.number)
    return ahead / asked.stats.rate_at(now)


def _tail(peer: NodeId, asked: Asked, asks: AskBook, table: WantTable, most: int) -> tuple[list[int], int]:
    """The last chunks of an ask that `peer` has too and that nobody else was asked for, and their bytes: at least one
    chunk if there is any, then while they fit into `most`."""
    positions, size = list[int](), 0
    for position, length in reversed(asked.left.items()):
        if positions and size + length > most:
            break
        if asks.count(position) == 1 and table.holds(peer, position):
            positions.append(position)
            size += length
    return positions, size
