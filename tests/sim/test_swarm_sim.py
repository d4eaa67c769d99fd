"""Whole transfers in a simulated network: how long they take, who carries them, what is wasted, what survives.

Times are simulated seconds. A solo run, the same transfer from one holder alone, is the measure of "never slower than
the best single source"; it includes the handshake and the start.
"""

from random import Random

import pytest

from p2player.proto.swarm import MAX_IN_FLIGHT_BYTES
from tests.support.swarmnet import MBIT, MIB, Holder, Outcome, SwarmNet, node, some_wants

LOOPBACK = 300e6
SEEDS = range(3)


def pull(total: int, *holders: Holder, seed: int = 1, downlink: float = 1e9) -> Outcome:
    """Pull `total` bytes from these holders, nodes 0, 1, ..."""
    wants = some_wants(total, Random(seed))
    return SwarmNet(
        wants, {node(number): holder for number, holder in enumerate(holders)}, seed, downlink=downlink
    ).run()


def share(outcome: Outcome, number: int) -> float:
    return outcome.shares.get(node(number), 0.0)


def loopback(factor: float = 1.0, joins_s: float | None = None) -> Holder:
    return Holder(LOOPBACK * factor, 0.0005, told_rtt_s=0.0005, joins_s=joins_s)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("total", [16 * MIB, 64 * MIB, 256 * MIB])
@pytest.mark.parametrize(
    ("other", "downlink"),
    [
        (loopback(), 1e9),
        (loopback(0.5), 1e9),
        (loopback(joins_s=0.02), 1e9),
        (loopback(joins_s=0.04), 1e9),
        (loopback(), LOOPBACK / 2),
    ],
    ids=["equal", "half as fast", "later", "much later", "puller is the limit"],
)
def test_two_idle_holders_carry_a_fifth_each_at_least(seed: int, total: int, other: Holder, downlink: float) -> None:
    fresh = Holder(other.rate, other.rtt_s, told_rtt_s=other.told_rtt_s, joins_s=other.joins_s)
    outcome = pull(total, loopback(), fresh, seed=seed, downlink=downlink)
    assert outcome.done
    assert share(outcome, 0) >= 0.2
    assert share(outcome, 1) >= 0.2
    assert outcome.duplicates <= 0.01 * total


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("total", [4 * MIB, 16 * MIB, 64 * MIB])
@pytest.mark.parametrize("slow_mbit", [0.1, 1, 5])
def test_a_slow_holder_beside_a_fast_one_does_not_delay_the_end(seed: int, total: int, slow_mbit: float) -> None:
    solo = pull(total, Holder(100 * MBIT, 0.01, told_rtt_s=0.01), seed=seed)
    both = pull(
        total,
        Holder(100 * MBIT, 0.01, told_rtt_s=0.01),
        Holder(slow_mbit * MBIT, 0.02, told_rtt_s=0.02),
        seed=seed,
    )
    assert both.done
    assert both.seconds <= 1.1 * solo.seconds
    assert both.duplicates <= 0.01 * total


@pytest.mark.parametrize("seed", SEEDS)
def test_unequal_holders_come_close_to_the_sum_of_their_links(seed: int) -> None:
    holders = [Holder(20 * MBIT * (number + 1), 0.005 * (number + 1)) for number in range(8)]
    outcome = pull(256 * MIB, *holders, seed=seed)
    ideal_s = 256 * MIB / sum(20 * MBIT * (number + 1) for number in range(8))
    assert outcome.done
    assert outcome.seconds <= 1.1 * ideal_s
    assert outcome.duplicates <= 0.01 * outcome.total


def test_a_long_fat_path_is_filled() -> None:
    outcome = pull(256 * MIB, Holder(200 * MBIT, 0.2, told_rtt_s=0.2))
    assert outcome.seconds <= 1.1 * 256 * MIB / (200 * MBIT) + 1.5


def test_what_is_asked_never_exceeds_the_cap_on_memory() -> None:
    holders = {node(number): loopback(5) for number in range(8)}
    net = SwarmNet(some_wants(512 * MIB, Random(1)), holders, 1, downlink=5e9)
    assert net.run().done
    assert net.peak_in_flight <= MAX_IN_FLIGHT_BYTES + 4 * MIB


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("notice_s", [None, 0.05], ids=["silently", "noticed"])
def test_a_peer_that_dies_costs_its_help_and_no_restart(seed: int, notice_s: float | None) -> None:
    total = 64 * MIB
    outcome = pull(
        total,
        Holder(100 * MBIT, 0.01, told_rtt_s=0.01),
        Holder(100 * MBIT, 0.01, told_rtt_s=0.01, dies_s=1.0, notice_s=notice_s),
        seed=seed,
    )
    solo_s = total / (100 * MBIT)
    assert outcome.done
    assert outcome.seconds <= 1.05 * (solo_s - share(outcome, 1) * solo_s) + 0.3
    assert share(outcome, 1) >= 0.1, "what it had delivered counts"
    assert outcome.duplicates <= 0.01 * total


def test_the_only_holder_dying_costs_one_timeout_until_the_next_joins() -> None:
    outcome = pull(
        16 * MIB,
        Holder(100 * MBIT, 0.01, told_rtt_s=0.01, dies_s=0.5),
        Holder(100 * MBIT, 0.01, told_rtt_s=0.01, joins_s=2.0),
    )
    assert outcome.done
    assert share(outcome, 0) > 0.2
    assert outcome.seconds <= 2.0 + 16 * MIB / (100 * MBIT)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_stalled_peer_is_worked_around(seed: int) -> None:
    total = 64 * MIB
    outcome = pull(
        total,
        Holder(100 * MBIT, 0.01, told_rtt_s=0.01),
        Holder(100 * MBIT, 0.01, told_rtt_s=0.01, stalls=(1.0, 60.0)),
        seed=seed,
    )
    assert outcome.done
    assert outcome.seconds <= 5.0
    assert outcome.duplicates <= 0.01 * total


@pytest.mark.parametrize("seed", SEEDS)
def test_a_liar_is_barred_and_the_rest_comes_from_others(seed: int) -> None:
    total = 32 * MIB
    outcome = pull(
        total,
        Holder(100 * MBIT, 0.01, told_rtt_s=0.01),
        Holder(100 * MBIT, 0.01, told_rtt_s=0.01, lies=0.2),
        seed=seed,
    )
    assert outcome.done
    assert outcome.drops == {node(1): "sent corrupt data"}
    assert outcome.seconds <= 1.1 * total / (100 * MBIT) + 0.1


@pytest.mark.parametrize("seed", SEEDS)
def test_partial_holders_together_are_a_whole_one(seed: int) -> None:
    rng = Random(seed)
    wants = some_wants(32 * MIB, rng)
    owners = {chunk: rng.sample(range(5), rng.randint(1, 3)) for chunk in wants}
    holders = {
        node(number): Holder(50 * MBIT, 0.01, have={chunk for chunk, mine in owners.items() if number in mine})
        for number in range(5)
    }
    outcome = SwarmNet(wants, holders, seed).run()
    assert outcome.done
    assert outcome.duplicates <= 0.01 * outcome.total
    assert outcome.seconds <= 2 * 32 * MIB / (5 * 50 * MBIT) + 0.3


@pytest.mark.parametrize("seed", SEEDS)
def test_claims_that_do_not_hold_are_settled_by_asking(seed: int) -> None:
    rng = Random(seed)
    wants = some_wants(8 * MIB, rng)
    some = {chunk for chunk in wants if rng.random() < 0.8}
    holders = {
        node(0): Holder(50 * MBIT, 0.01, have=some, claims=set(wants)),
        node(1): Holder(50 * MBIT, 0.01, have=set(wants) - some, claims=set(wants)),
    }
    outcome = SwarmNet(wants, holders, seed).run()
    assert outcome.done
    assert outcome.drops == {}


def test_what_nobody_has_ends_in_stuck_with_everything_else_here() -> None:
    wants = some_wants(8 * MIB, Random(1))
    lost = set(list(wants)[10:20])
    holders = {node(number): Holder(50 * MBIT, 0.01, have=set(wants) - lost) for number in range(2)}
    net = SwarmNet(wants, holders, 1)
    outcome = net.run()
    assert not outcome.done
    assert net.stuck
    assert set(net.swarm.missing()) == lost
    assert outcome.left == sum(wants[chunk] for chunk in lost)


def test_a_very_slow_link_is_used_to_its_end() -> None:
    outcome = pull(MIB, Holder(8_000, 0.3))
    assert outcome.done
    assert outcome.drops == {}
    assert outcome.seconds <= 1.15 * MIB / 8_000


def random_net(seed: int) -> tuple[int, list[Holder], float]:
    """Up to eight holders of 0.8 Mbit/s to 2.5 Gbit/s and 0.3 to 160 ms, and 4 to 128 MiB to fetch."""
    rng = Random(seed)
    count = rng.randint(1, 8)
    total = int(2 ** rng.uniform(22, 27))
    holders = []
    for _ in range(count):
        rate, rtt_s = 10 ** rng.uniform(5, 8.5), 10 ** rng.uniform(-3.5, -0.8)
        holders.append(Holder(rate, rtt_s, told_rtt_s=rng.choice([None, rtt_s])))
    return total, holders, 10 ** rng.uniform(6.5, 9)


@pytest.mark.parametrize("seed", range(30))
def test_in_any_network_the_swarm_is_about_as_quick_as_its_best_holder_or_quicker(seed: int) -> None:
    total, holders, downlink = random_net(seed)
    outcome = pull(total, *holders, seed=seed, downlink=downlink)
    solos = [
        pull(total, Holder(old.rate, old.rtt_s, told_rtt_s=old.told_rtt_s), seed=seed, downlink=downlink).seconds
        for old in holders
    ]
    assert outcome.done
    assert outcome.seconds <= 1.1 * min(solos) + 0.3
    assert outcome.duplicates <= max(0.01 * total, 256 << 10)


def test_a_seed_replays_exactly() -> None:
    def run() -> Outcome:
        total, holders, downlink = random_net(7)
        return pull(total, *holders, seed=7, downlink=downlink)

    assert run() == run()
