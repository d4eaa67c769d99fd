"""Garbage collection, the decision: what to evict, which packs to delete and which to rewrite.

A chunk is *protected* by a held or pinned layer (its content and its manifest), by a lease, by being young (see
`leases`) or by being among the caller's extra roots. The rest is garbage.

`plan_gc` is pure. Its snapshot tells, for each pack, how many stored bytes are protected for good, how many are kept
alive only by which *evictable* layers, and (what is left of its size) how many by nothing. When what would stay exceeds
the high watermark, it evicts the least recently used evictable layers until the low one is reached, and it names the
packs that will have no live bytes, to be deleted, and those with so few that they are worth rewriting.

`sweep` executes a plan.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from chunkstore.digest import LayerId


@dataclass(frozen=True, slots=True)
class GcPolicy:
    """When to collect how much."""

    high_bytes: int | None = None
    """Evict layers when protected content exceeds this many bytes on disk; None: never evict."""
    low_bytes: int = 0
    """Evict until no more than this is left."""
    rewrite_below: float = 0.7
    """Rewrite a pack of which a smaller share than this is live."""


@dataclass(frozen=True, slots=True)
class Share:
    """Chunks of one pack that are kept by the same layers."""

    pack: int
    keepers: frozenset[LayerId]
    """Evictable layers that need these chunks."""
    protected: bool
    """Something that cannot be evicted needs them."""
    chunks: int
    stored_bytes: int


@dataclass(frozen=True, slots=True)
class GcSnapshot:
    """What `plan_gc` decides from."""

    packs: Mapping[int, int]
    """Pack number -> bytes on disk."""
    evictable: Mapping[LayerId, float]
    """Layers that are held, neither pinned nor bound -> when they were last used."""
    shares: tuple[Share, ...]


@dataclass(frozen=True, slots=True)
class GcPlan:
    """What to do."""

    evict: tuple[LayerId, ...]
    delete: tuple[int, ...]
    """Packs that will hold nothing live."""
    rewrite: tuple[int, ...]
    """Packs whose few live records are worth moving."""
    freed_bytes: int


@dataclass(frozen=True, slots=True)
class GcReport:
    """What was done."""

    freed_bytes: int
    chunks: int
    """Chunks that are no longer here."""
    packs: int
    """Packs deleted."""
    evicted: tuple[LayerId, ...]


def plan_gc(snapshot: GcSnapshot, policy: GcPolicy) -> GcPlan:
    """Decide what to evict, delete and rewrite. Pure."""
    evict = _choose(snapshot, policy)
    live = dict.fromkeys(snapshot.packs, 0)
    for share in snapshot.shares:
        if share.protected or share.keepers - evict:
            live[share.pack] = live.get(share.pack, 0) + share.stored_bytes
    delete = [pack for pack in snapshot.packs if not live[pack]]
    rewrite = [pack for pack, size in snapshot.packs.items() if 0 < live[pack] < size * policy.rewrite_below]
    freed = sum(snapshot.packs[pack] - live[pack] for pack in (*delete, *rewrite))
    ordered = sorted(evict, key=lambda layer: (snapshot.evictable[layer], layer))
    return GcPlan(tuple(ordered), tuple(delete), tuple(rewrite), freed)


def _choose(snapshot: GcSnapshot, policy: GcPolicy) -> frozenset[LayerId]:
    """The least recently used layers whose eviction brings live bytes down to the low watermark."""
    kept = [share for share in snapshot.shares if share.protected or share.keepers]
    live = sum(share.stored_bytes for share in kept)
    if policy.high_bytes is None or live <= policy.high_bytes:
        return frozenset()
    keepers_left = {id(share): len(share.keepers) for share in kept}
    shares_of: dict[LayerId, list[Share]] = {}
    for share in kept:
        for layer in () if share.protected else share.keepers:
            shares_of.setdefault(layer, []).append(share)
    evict: set[LayerId] = set()
    useful: set[LayerId] = set()
    for layer in sorted(snapshot.evictable, key=lambda layer: (snapshot.evictable[layer], layer)):
        if live <= policy.low_bytes:
            break
        evict.add(layer)
        for share in shares_of.get(layer, ()):
            keepers_left[id(share)] -= 1
            if not keepers_left[id(share)]:
                live -= share.stored_bytes
                useful |= share.keepers
    # A layer all of whose chunks others need as well frees nothing by going.
    return frozenset(evict & useful)
