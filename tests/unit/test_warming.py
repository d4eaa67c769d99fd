"""What is placed where: on demand, and unasked."""

from collections.abc import Mapping

import pytest

from chunkstore.digest import LayerId
from gossip.inventory import Holding, Inventory
from gossip.messages import NodeId
from gossip.popularity import HALF_LIFE_S, Popularity, Tally
from p2player.proto.warming import (
    LEAST_DEMAND,
    RESERVE_BYTES,
    Candidate,
    Copy,
    CopyPlan,
    CopyRequest,
    demand,
    plan_auto,
    plan_copies,
)
from tests.support.ledgers import START_S as NOW
from tests.support.ledgers import layer

MIB = 1 << 20
GIB = 1 << 30
BASE, APP, OTHER_BASE, OTHER_APP = (LayerId(layer(n)) for n in range(4))
LAYERS = {BASE: 600 * MIB, APP: 100 * MIB}


def node(number: int) -> NodeId:
    return NodeId(f"{number:032x}")


def member(number: int, site: str = "north", free_bytes: int = 8 * GIB, load: float = 0.0) -> Candidate:
    return Candidate(node(number), site, free_bytes, load)


def plan(
    members: list[Candidate], request: CopyRequest, whole: tuple[int, ...] = (), base: tuple[int, ...] = ()
) -> CopyPlan:
    """A plan for base and app; nodes `whole` hold both, nodes `base` the base."""
    everything = frozenset(map(node, whole))
    return plan_copies(LAYERS, {APP: everything, BASE: everything | set(map(node, base))}, members, request)


def both(number: int) -> tuple[Copy, Copy]:
    return Copy(node(number), BASE, LAYERS[BASE]), Copy(node(number), APP, LAYERS[APP])


def test_a_node_gets_what_it_lacks() -> None:
    members = [member(1), member(2), member(3)]
    assert plan(members, CopyRequest(to=node(2)), whole=(1,)) == CopyPlan(both(2), (node(2),))
    assert plan(members, CopyRequest(to=node(2)), whole=(1,), base=(2,)) == CopyPlan(both(2)[1:], (node(2),))


def test_a_node_that_holds_everything_gets_nothing() -> None:
    assert plan([member(1), member(2)], CopyRequest(to=node(1)), whole=(1,)) == CopyPlan((), (node(1),))


def test_a_site_is_all_of_its_nodes_or_as_many_as_are_said() -> None:
    members = [member(1), member(2), member(3, "south")]
    assert {copy.node for copy in plan(members, CopyRequest(site="north")).copies} == {node(1), node(2)}
    assert plan(members, CopyRequest(site="north", copies=1)).nodes == (node(1),)
    assert plan(members, CopyRequest(site="north", copies=1), whole=(2,)) == CopyPlan((), (node(2),))
    assert plan(members, CopyRequest(site="north", copies=1), whole=(3,)).nodes == (node(1),)


def test_copies_are_spread_over_sites_and_count_what_is_there() -> None:
    members = [member(1), member(2), member(3, "south"), member(4, "south"), member(5, "west")]
    assert plan(members, CopyRequest(copies=1), whole=(1,)) == CopyPlan((), (node(1),))
    assert plan(members, CopyRequest(copies=3), whole=(1,)).nodes == (node(1), node(3), node(5))
    assert plan(members, CopyRequest(copies=5), whole=(1,)).nodes == (node(1), node(3), node(5), node(2), node(4))


def test_most_free_disk_goes_before_least_load_before_least_missing() -> None:
    request = CopyRequest(copies=1)
    assert plan([member(1), member(2, free_bytes=20 * GIB)], request).nodes == (node(2),)
    assert plan([member(1, load=1.0), member(2, load=0.5), member(3, load=2.0)], request).nodes == (node(2),)
    assert plan([member(1, load=0.1), member(2, load=0.2)], request, base=(2,)).nodes == (node(2),)
    hardly_more = member(2, free_bytes=8 * GIB - 5 * MIB, load=0.0)
    assert plan([member(1, load=3.0), hardly_more], request).nodes == (node(2),)


def test_a_node_without_room_is_passed_over_and_missed() -> None:
    full = member(1, free_bytes=700 * MIB + RESERVE_BYTES - 1)
    just = member(2, free_bytes=700 * MIB + RESERVE_BYTES)
    assert plan([full, just], CopyRequest(copies=1)).nodes == (node(2),)
    missed = plan([full], CopyRequest(to=node(1)))
    assert missed.copies == ()
    assert missed.refusals == ("1 of 1 copies find no node with enough free disk",)
    part = plan([full, just], CopyRequest(site="north"))
    assert (part.copies, part.refusals) == (both(2), ("1 of 2 copies find no node with enough free disk",))


@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        (CopyRequest(to=node(9)), f"node {node(9)} is not reachable"),
        (CopyRequest(site="east"), "no reachable node at site east"),
        (CopyRequest(copies=3), "3 copies are wanted, but only 2 nodes can be reached"),
    ],
)
def test_what_cannot_be_met_is_refused_with_the_reason(request_: CopyRequest, reason: str) -> None:
    assert plan([member(1), member(2)], request_).refusals == (reason,)


def test_an_impossible_number_of_copies_still_gets_what_there_is() -> None:
    assert plan([member(1), member(2)], CopyRequest(copies=3), whole=(1,)).copies == both(2)


def inventories(sizes: Mapping[LayerId, int], *, have: int = 4) -> list[Inventory]:
    return [Inventory(node(1), 1, {layer_: Holding(have, 4, size) for layer_, size in sizes.items()})]


SIZES = {**LAYERS, OTHER_BASE: 300 * MIB, OTHER_APP: 50 * MIB}


def popular(tally: Tally, now: float = NOW) -> Popularity:
    return Popularity([tally.counters(node(1), 1, now)], now)


def started(*counts: tuple[str, LayerId, LayerId, int]) -> Tally:
    tally = Tally()
    for site, app, base, times in counts:
        for _ in range(times):
            tally.start(site, app, base, NOW)
    return tally


TWO = started(("north", APP, BASE, 2), ("north", OTHER_APP, OTHER_BASE, 5))


def test_the_most_started_come_first_each_with_its_base() -> None:
    wanted = plan_auto(popular(TWO), inventories(SIZES), "north", 10 * GIB)
    assert wanted == [OTHER_BASE, OTHER_APP, BASE, APP]


def test_what_exceeds_the_budget_is_left_out_and_the_next_may_fit() -> None:
    assert plan_auto(popular(TWO), inventories(SIZES), "north", 1050 * MIB) == [OTHER_BASE, OTHER_APP, BASE, APP]
    assert plan_auto(popular(TWO), inventories(SIZES), "north", 1049 * MIB) == [OTHER_BASE, OTHER_APP]
    big = {**SIZES, OTHER_APP: 2000 * MIB}
    assert plan_auto(popular(TWO), inventories(big), "north", 1050 * MIB) == [BASE, APP]
    assert plan_auto(popular(TWO), inventories(SIZES), "north", 0) == []


def test_a_base_is_paid_for_once() -> None:
    tally = started(("north", APP, BASE, 2), ("north", OTHER_APP, BASE, 5))
    assert plan_auto(popular(tally), inventories(SIZES), "north", 750 * MIB) == [BASE, OTHER_APP, APP]


def test_only_what_somebody_holds_is_planned() -> None:
    without = {id_: size for id_, size in SIZES.items() if id_ != OTHER_BASE}
    assert plan_auto(popular(TWO), inventories(without), "north", 10 * GIB) == [BASE, APP]
    assert plan_auto(popular(TWO), inventories(SIZES, have=3), "north", 10 * GIB) == []


def test_other_sites_are_of_no_concern_unless_applications_move_from_there() -> None:
    assert plan_auto(popular(TWO), inventories(SIZES), "south", 10 * GIB) == []
    tally = started(("north", APP, BASE, 8))
    tally.move("north", "south", NOW)
    tally.move("north", "south", NOW)
    tally.move("north", "west", NOW)
    assert demand(popular(tally), "south") == pytest.approx({APP: 2.0})
    assert demand(popular(tally), "west") == pytest.approx({APP: 1.0})
    assert plan_auto(popular(tally), inventories(SIZES), "south", 10 * GIB) == [BASE, APP]


def test_what_moves_more_often_than_it_starts_is_wanted_in_full_and_not_more() -> None:
    tally = started(("north", APP, BASE, 3))
    for _ in range(30):
        tally.move("north", "south", NOW)
    assert demand(popular(tally), "south") == pytest.approx({APP: 3.0})


def test_what_has_faded_is_not_planned() -> None:
    tally = started(("north", APP, BASE, 1))
    assert LEAST_DEMAND == 0.5
    assert plan_auto(popular(tally, NOW + 0.9 * HALF_LIFE_S), inventories(SIZES), "north", 10 * GIB)
    assert not plan_auto(popular(tally, NOW + 1.1 * HALF_LIFE_S), inventories(SIZES), "north", 10 * GIB)


def test_pulls_break_ties() -> None:
    tally = started(("north", APP, BASE, 1), ("north", OTHER_APP, OTHER_BASE, 1))
    for favourite in (APP, OTHER_APP):
        again = started(("north", APP, BASE, 1), ("north", OTHER_APP, OTHER_BASE, 1))
        again.pull("north", favourite, NOW)
        assert favourite in plan_auto(popular(again), inventories(SIZES), "north", 10 * GIB)[:2]
    assert len(plan_auto(popular(tally), inventories(SIZES), "north", 10 * GIB)) == 4


def test_a_newer_version_inherits_the_demand() -> None:
    tally = started(("north", APP, BASE, 3), ("north", OTHER_APP, OTHER_BASE, 2))
    newest: dict[bytes, bytes] = {APP: OTHER_APP, BASE: OTHER_BASE}
    assert plan_auto(popular(tally), inventories(SIZES), "north", 10 * GIB, newest=newest) == [OTHER_BASE, OTHER_APP]
