"""Decide which layers are placed where, ahead of need. Pure functions of what the mesh tells; nothing moves here.

Theory of operation
-------------------
`plan_copies` serves a wish: these layers on that node, on a site, or on so many nodes of the mesh. Nodes that hold
all of it already count; the others are taken one by one, each time the best of those that are left: from the site
that has the fewest copies so far, then with the most free disk (by powers of two: a hundred bytes more are no
reason), then the least loaded, then the one that lacks the least.

`plan_auto` says what a site should hold without being asked. The demand for an application at a site is how often it
was started there, plus what is likely to arrive: its starts at every other site, times the share of what starts there
that moves on to this site. Applications are taken in the order of demand, each with the base layer that it runs on,
as long as the site's budget holds both; where the catalog has a newer version of a layer, its demand is inherited by
that one.

Every node computes the same from the same ledger, so the nodes of a site need no talk about who fetches what.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from chunkstore.digest import LayerId
from gossip.inventory import Inventory
from gossip.messages import NodeId
from gossip.popularity import Popularity

RESERVE_BYTES: Final = 256 << 20
"""Free disk that warming leaves on every node, for what is not planned."""

LEAST_DEMAND: Final = 0.5
"""Applications below this many decayed starts are not worth a copy."""

_PULL_WEIGHT = 1e-3
_LOAD_STEP = 0.25


@dataclass(frozen=True, slots=True)
class Candidate:
    """A living node, as a place for copies.

    Attributes:
        free_bytes: disk that its store may take.
        load: runnable processes per core.
    """

    node: NodeId
    site: str
    free_bytes: int
    load: float


@dataclass(frozen=True, slots=True)
class CopyRequest:
    """What is wished for; at least one field is set.

    Attributes:
        to: this node.
        site: nodes of this site: all of them, or `copies` of them.
        copies: so many nodes in all hold everything afterwards.
    """

    to: NodeId | None = None
    site: str | None = None
    copies: int | None = None


@dataclass(frozen=True, slots=True)
class Copy:
    """Fetch `layer` to `node`; `size` is the layer's, of which the node may have parts."""

    node: NodeId
    layer: LayerId
    size: int


@dataclass(frozen=True, slots=True)
class CopyPlan:
    """What is to be done for a request.

    Attributes:
        copies: to be fetched, grouped by node.
        nodes: that hold everything afterwards, for the request's sake or before.
        refusals: why the request cannot be met in full; empty when it can.
    """

    copies: tuple[Copy, ...]
    nodes: tuple[NodeId, ...]
    refusals: tuple[str, ...] = ()


def plan_copies(
    layers: Mapping[LayerId, int],
    holders: Mapping[LayerId, frozenset[NodeId]],
    members: Sequence[Candidate],
    request: CopyRequest,
) -> CopyPlan:
    """Choose the nodes that shall hold some layers, all of them on each node.

    Args:
        layers: what shall be held, with the size of each in bytes.
        holders: the nodes that hold each layer whole.
        members: the nodes that are alive, this one included.
        request: see there.

    Returns:
        The plan; with `refusals` it is as near to the request as the mesh allows.
    """
    wanted = [member for member in members if _asked(member, request)]
    if not wanted:
        return CopyPlan((), (), (_nobody(request),))
    lacking = {
        member.node: [layer for layer in layers if member.node not in holders.get(layer, frozenset())]
        for member in wanted
    }
    need = {node: sum(layers[layer] for layer in missing) for node, missing in lacking.items()}
    chosen = [member for member in wanted if not lacking[member.node]]
    number = len(wanted) if request.copies is None else request.copies
    roomy = [
        member for member in wanted if lacking[member.node] and member.free_bytes - need[member.node] >= RESERVE_BYTES
    ]
    copies: list[Copy] = []
    per_site: dict[str, int] = defaultdict(int)
    for member in chosen:
        per_site[member.site] += 1
    while roomy and len(chosen) < number:
        best = min(roomy, key=lambda member: _order(member, per_site[member.site], need[member.node]))
        roomy.remove(best)
        chosen.append(best)
        per_site[best.site] += 1
        copies.extend(Copy(best.node, layer, layers[layer]) for layer in lacking[best.node])
    refusals = () if len(chosen) >= number else (_shortage(number, len(wanted), len(chosen)),)
    return CopyPlan(tuple(copies), tuple(member.node for member in chosen), refusals)


def plan_auto(
    popularity: Popularity,
    inventories: Iterable[Inventory],
    site: str,
    budget_bytes: int,
    *,
    newest: Mapping[bytes, bytes] | None = None,
) -> list[LayerId]:
    """Choose what a site should hold.

    Args:
        popularity: decayed counts, as of now. inventories: of the nodes that are alive: they tell the layers' sizes,
        and a layer that nobody holds is not planned. site: whose turn it is. budget_bytes: that the chosen layers may
        take together, on each node that holds a copy. newest: earlier versions of layers and their present ones, see
        `gossip.catalog.Catalog.successors`.

    Returns:
        The layers that should be at the site, the most wanted first, each base before its application; what is there
        already is among them. Hand them to `plan_copies` with the site and the number of copies a site.
    """
    newest = newest or {}
    sizes = _sizes(inventories)
    chosen: dict[bytes, None] = {}
    left = budget_bytes
    for app, base in _most_wanted(popularity, site, newest):
        added = [layer for layer in dict.fromkeys((base, app)) if layer not in chosen]
        if not all(layer in sizes for layer in (base, app)):
            continue
        cost = sum(sizes[layer] for layer in added)
        if cost <= left:
            left -= cost
            chosen.update(dict.fromkeys(added))
    return [LayerId(layer) for layer in chosen]


def demand(popularity: Popularity, site: str) -> dict[bytes, float]:
    """How often each application layer is likely to be wanted at `site`, in decayed starts."""
    wanted: dict[bytes, float] = defaultdict(float)
    for app, count in popularity.starts(site).items():
        wanted[app] += count
    for origin in popularity.sites():
        moves = popularity.moves(origin)
        if origin == site or not moves.get(site):
            continue
        starts = popularity.starts(origin)
        share = moves[site] / max(sum(starts.values()), sum(moves.values()))
        for app, count in starts.items():
            wanted[app] += count * share
    return dict(wanted)


def _most_wanted(popularity: Popularity, site: str, newest: Mapping[bytes, bytes]) -> list[tuple[bytes, bytes]]:
    """(application layer, base layer), the most wanted first; pulls break ties."""
    score: dict[bytes, float] = defaultdict(float)
    base_of: dict[bytes, tuple[float, bytes]] = {}
    bases, pulls = popularity.bases(), popularity.pulls(site)
    for app, count in demand(popularity, site).items():
        current = newest.get(app, app)
        score[current] += count
        base = newest.get(bases[app], bases[app])
        base_of[current] = max(base_of.get(current, (0.0, b"")), (count, base))
    ranked = sorted(
        (app for app, count in score.items() if count >= LEAST_DEMAND),
        key=lambda app: (-score[app] - _PULL_WEIGHT * pulls.get(app, 0.0), app),
    )
    return [(app, base_of[app][1]) for app in ranked]


def _sizes(inventories: Iterable[Inventory]) -> dict[bytes, int]:
    """Of the layers that somebody holds whole."""
    return {layer: held.size for inventory in inventories for layer, held in inventory.layers.items() if held.whole}


def _asked(member: Candidate, request: CopyRequest) -> bool:
    return request.to in (None, member.node) and request.site in (None, member.site)


def _order(member: Candidate, copies_at_site: int, need_bytes: int) -> tuple[int, int, int, int, str]:
    left = member.free_bytes - need_bytes
    return copies_at_site, -left.bit_length(), int(member.load / _LOAD_STEP), need_bytes, member.node


def _nobody(request: CopyRequest) -> str:
    if request.to is not None:
        return f"node {request.to} is not reachable"
    return f"no reachable node at site {request.site}" if request.site is not None else "no reachable node"


def _shortage(number: int, candidates: int, chosen: int) -> str:
    if candidates < number:
        return f"{number} copies are wanted, but only {candidates} nodes can be reached"
    return f"{number - chosen} of {number} copies find no node with enough free disk"
