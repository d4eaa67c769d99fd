"""Which applications start where, and from where to where they move: decaying counters, summed over the mesh.

Theory of operation
-------------------
Each node counts what *it* saw (an application that started on it, a layer that it pulled, a migration that it
finished) and publishes its counters as one record. Nobody counts for another node, and a newer record replaces the
older one of that node, so the sum over the records counts everything once, however often the records are merged.

A count loses half its weight every `half_life_s`. All counters of a record share one moment, `stamp_s`, at which
their values hold, and a reader carries them on to its own now by one factor: decay is the same for every counter
(forward decay: Cormode et al. 2009, "Forward decay: a practical time decay model for streaming systems"). Counters
below `LEAST` are dropped when a record is made.

Starts are counted by the application layer, and carry the base layer that it ran on: one is of no use without the
other. Times are wall-clock seconds, as they travel between machines; a clock that is behind or ahead by minutes does
not matter against days.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from heapq import nlargest
from typing import Final, TypeVar

from gossip import fields
from gossip.inventory import LAYER_ID_BYTES
from gossip.messages import NodeId
from gossip.signed import MAX_BODY_BYTES

HALF_LIFE_S: Final = 7 * 86400.0
LEAST: Final = 0.01
MAX_COUNTERS: Final = 512
MAX_COUNT: Final = 1e9
_LIST_HEADS_BYTES: Final = 6  # by which the heads of three long lists are longer than those of empty ones

Place = tuple[str, bytes]
"""A site and a layer."""

Route = tuple[str, str]
"""From which site to which."""

K = TypeVar("K", Place, Route)
T = TypeVar("T", str, bytes)


@dataclass(frozen=True, slots=True)
class Counters:
    """What one node counted; every value holds at `stamp_s`.

    Attributes:
        starts: of an application layer at a site.
        bases: the base layer that an application layer last ran on.
        pulls: of a layer to a site.
        moves: of running applications, from site to site.
    """

    node: NodeId
    version: int
    stamp_s: float
    starts: Mapping[Place, float] = field(default_factory=dict)
    bases: Mapping[bytes, bytes] = field(default_factory=dict)
    pulls: Mapping[Place, float] = field(default_factory=dict)
    moves: Mapping[Route, float] = field(default_factory=dict)

    def encode(self) -> bytes:
        """The body of the signed record."""
        document = {
            "stamp": self.stamp_s,
            "starts": [[*place, self.bases[place[1]], count] for place, count in sorted(self.starts.items())],
            "pulls": [[*place, count] for place, count in sorted(self.pulls.items())],
            "moves": [[*route, count] for route, count in sorted(self.moves.items())],
        }
        return fields.pack(document)


def decode(node: NodeId, version: int, body: bytes) -> Counters:
    """The inverse of `Counters.encode`.

    Raises:
        Malformed: the body has another form, or breaks a bound.
    """
    document = fields.table(fields.unpack(body, MAX_BODY_BYTES))
    starts = fields.rows(document.get("starts"), 4, MAX_COUNTERS)
    pulls = fields.rows(document.get("pulls"), 3, MAX_COUNTERS)
    moves = fields.rows(document.get("moves"), 3, MAX_COUNTERS)
    return Counters(
        node=node,
        version=version,
        stamp_s=fields.number(document.get("stamp"), fields.MAX_INTEGER),
        starts={(_site(row[0]), _layer(row[1])): fields.number(row[3], MAX_COUNT) for row in starts},
        bases={_layer(row[1]): _layer(row[2]) for row in starts},
        pulls={(_site(row[0]), _layer(row[1])): fields.number(row[2], MAX_COUNT) for row in pulls},
        moves={(_site(row[0]), _site(row[1])): fields.number(row[2], MAX_COUNT) for row in moves},
    )


def fitting(counters: Counters) -> Counters:
    """The same counters cut to what a record may carry: the strongest stay, of whatever sort they are."""
    left_bytes = MAX_BODY_BYTES - len(replace(counters, starts={}, pulls={}, moves={}).encode()) - _LIST_HEADS_BYTES
    ranked = sorted(
        [
            *((count, "starts", key, [*key, counters.bases[key[1]], count]) for key, count in counters.starts.items()),
            *((count, "pulls", key, [*key, count]) for key, count in counters.pulls.items()),
            *((count, "moves", key, [*key, count]) for key, count in counters.moves.items()),
        ],
        key=lambda item: (-item[0], item[1], item[2]),
    )
    kept: dict[str, set[object]] = {"starts": set(), "pulls": set(), "moves": set()}
    for _, sort, key, row in ranked:
        left_bytes -= len(fields.pack(row))
        if left_bytes < 0:
            break
        kept[sort].add(key)
    starts = {key: count for key, count in counters.starts.items() if key in kept["starts"]}
    return replace(
        counters,
        starts=starts,
        bases={app: counters.bases[app] for _, app in starts},
        pulls={key: count for key, count in counters.pulls.items() if key in kept["pulls"]},
        moves={key: count for key, count in counters.moves.items() if key in kept["moves"]},
    )


class Tally:
    """The counters of this node, while it counts; a site or a layer id out of form raises `Malformed`."""

    def __init__(self, half_life_s: float = HALF_LIFE_S) -> None:
        self.half_life_s = half_life_s
        self._stamp_s = 0.0
        self._starts: dict[Place, float] = {}
        self._bases: dict[bytes, bytes] = {}
        self._pulls: dict[Place, float] = {}
        self._moves: dict[Route, float] = {}
        self.dirty = False

    def start(self, site: str, app: bytes, base: bytes, now: float) -> None:
        """An application of layer `app` on layer `base` started at `site`."""
        self._carry(now)
        self._bases[_layer(app)] = _layer(base)
        self._count(self._starts, (_site(site), app))

    def pull(self, site: str, layer: bytes, now: float) -> None:
        """`layer` was fetched to `site`."""
        self._carry(now)
        self._count(self._pulls, (_site(site), _layer(layer)))

    def move(self, source: str, destination: str, now: float) -> None:
        """A running application moved between two sites; within one site nothing is counted."""
        self._carry(now)
        if source != destination:
            self._count(self._moves, (_site(source), _site(destination)))

    def adopt(self, counters: Counters) -> None:
        """Go on from what this node published before: of each counter the larger value stays."""
        self._carry(counters.stamp_s)
        factor = decay(self._stamp_s - counters.stamp_s, self.half_life_s)
        self._bases = {**counters.bases, **self._bases}
        _adopt(self._starts, counters.starts, factor)
        _adopt(self._pulls, counters.pulls, factor)
        _adopt(self._moves, counters.moves, factor)

    def counters(self, node: NodeId, version: int, now: float) -> Counters:
        """All of it as of `now`, the strongest `MAX_COUNTERS` of each sort."""
        self._carry(now)
        starts = _strongest(self._starts)
        return Counters(
            node=node,
            version=version,
            stamp_s=self._stamp_s,
            starts=starts,
            bases={app: self._bases[app] for _, app in starts},
            pulls=_strongest(self._pulls),
            moves=_strongest(self._moves),
        )

    def _carry(self, now: float) -> None:
        """Bring every value to `now`; a clock that went back changes nothing."""
        if now <= self._stamp_s:
            return
        factor = decay(now - self._stamp_s, self.half_life_s)
        self._stamp_s = now
        self._starts = _decayed(self._starts, factor)
        self._pulls = _decayed(self._pulls, factor)
        self._moves = _decayed(self._moves, factor)
        self._bases = {app: self._bases[app] for _, app in self._starts}

    def _count(self, counts: dict[K, float], key: K) -> None:
        counts[key] = min(MAX_COUNT, counts.get(key, 0.0) + 1.0)
        self.dirty = True


class Popularity:
    """The sum over all nodes' counters, as of one moment.

    Args:
        records: one from each node.
        now: wall-clock seconds; a record from the future counts as of now.
    """

    def __init__(self, records: Iterable[Counters], now: float, half_life_s: float = HALF_LIFE_S) -> None:
        self._starts: dict[str, dict[bytes, float]] = {}
        self._pulls: dict[str, dict[bytes, float]] = {}
        self._moves: dict[str, dict[str, float]] = {}
        self._bases: dict[bytes, tuple[float, bytes]] = {}
        for record in records:
            factor = decay(now - record.stamp_s, half_life_s)
            _add(self._starts, record.starts, factor)
            _add(self._pulls, record.pulls, factor)
            _add(self._moves, record.moves, factor)
            for app, base in record.bases.items():
                self._bases[app] = max(self._bases.get(app, (0.0, b"")), (record.stamp_s, base))

    def sites(self) -> list[str]:
        """Every site that something was counted for, sorted."""
        arrivals = {to for routes in self._moves.values() for to in routes}
        return sorted({*self._starts, *self._pulls, *self._moves, *arrivals})

    def starts(self, site: str) -> dict[bytes, float]:
        """Decayed number of starts at `site`, by application layer."""
        return dict(self._starts.get(site, {}))

    def pulls(self, site: str) -> dict[bytes, float]:
        """Decayed number of pulls to `site`, by layer."""
        return dict(self._pulls.get(site, {}))

    def moves(self, site: str) -> dict[str, float]:
        """Decayed number of moves of running applications from `site`, by destination site."""
        return dict(self._moves.get(site, {}))

    def bases(self) -> dict[bytes, bytes]:
        """The base layer that each application layer was last started on."""
        return {app: base for app, (_, base) in self._bases.items()}


def decay(age_s: float, half_life_s: float) -> float:
    """The share of a count that is left after `age_s` seconds; nothing grows when `age_s` is negative."""
    return float(0.5 ** (max(0.0, age_s) / half_life_s))


def _decayed(counts: dict[K, float], factor: float) -> dict[K, float]:
    return {key: count * factor for key, count in counts.items() if count * factor >= LEAST}


def _adopt(mine: dict[K, float], theirs: Mapping[K, float], factor: float) -> None:
    for key, count in theirs.items():
        mine[key] = max(mine.get(key, 0.0), count * factor)


def _strongest(counts: Mapping[K, float]) -> dict[K, float]:
    return dict(nlargest(MAX_COUNTERS, counts.items(), key=lambda item: (item[1], item[0])))


def _add(sums: dict[str, dict[T, float]], counts: Mapping[tuple[str, T], float], factor: float) -> None:
    for (site, other), count in counts.items():
        row = sums.setdefault(site, {})
        row[other] = row.get(other, 0.0) + count * factor


def _site(value: object) -> str:
    return fields.text(value, fields.MAX_SITE_BYTES, empty=True)


def _layer(value: object) -> bytes:
    return fields.raw(value, LAYER_ID_BYTES)
