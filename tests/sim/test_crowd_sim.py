"""Many nodes pull one layer at the same time: how long the last one takes, and how often the layer leaves the seed.

A single copy takes as long as the layer takes to pass one link. More than that is what the crowd costs.
"""

from random import Random

import pytest

from tests.support.crowdnet import Crowd, CrowdNet, Outcome
from tests.support.swarmnet import some_wants

LAYER_BYTES = 200_000_000
SINGLE_S = LAYER_BYTES / 12.5e6
LENGTHS = (128 << 10, 512 << 10)


def pull(crowd: Crowd, seed: int = 1) -> Outcome:
    return CrowdNet(crowd, some_wants(LAYER_BYTES, Random(seed), lengths=LENGTHS), seed).run()


@pytest.mark.parametrize("seed", range(1))
def test_eight_nodes_take_little_longer_from_one_seed_than_one_does(seed: int) -> None:
    outcome = pull(Crowd(meet_s=0.6, look_s=0.4, group=3), seed)
    assert outcome.last_s <= 1.25 * SINGLE_S
    assert outcome.copies <= 1.25
    assert outcome.duplicates <= 0.01


def test_who_comes_later_is_helped_by_who_is_there() -> None:
    outcome = pull(Crowd(eaters=4, meet_s=0.6, look_s=0.4, group=3, lag_s=2.0))
    assert max(outcome.seconds) <= 1.2 * SINGLE_S
    assert outcome.copies <= 2


def test_two_seeds_send_less_than_a_copy_each() -> None:
    outcome = pull(Crowd(seeds=2, eaters=4, meet_s=0.6, look_s=0.4, group=3))
    assert outcome.last_s <= 1.1 * SINGLE_S
    assert outcome.copies <= 2


def test_nodes_that_hear_of_each_other_late_still_gain() -> None:
    outcome = pull(Crowd(eaters=4, meet_s=8.0, look_s=1.0, group=3))
    assert outcome.last_s <= 2.0 * SINGLE_S, "without each other it would be four times as long"


def test_a_seed_replays_exactly() -> None:
    assert pull(Crowd(eaters=2)) == pull(Crowd(eaters=2))
