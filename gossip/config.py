"""The timing of gossip, as three presets in place of forty knobs.

`LOCAL` is for nodes on one machine or one rack, `LAN` for one site, `WAN` for sites far apart. All nodes of a mesh
should run the same preset: they stay compatible otherwise, but the slower ones look suspect to the faster.
"""

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class GossipConfig:
    """Durations in seconds; multipliers without unit.

    Attributes:
        probe_interval_s: one member is probed in each.
        probe_timeout_s: without an ack by then, others are asked to probe it.
        relays: how many others.
        suspicion_multiplier: shortest suspicion, in probe intervals (times log10 of the members).
        suspicion_max_multiplier: longest suspicion, in shortest ones.
        confirmations: independent accusers that bring a suspicion to its shortest.
        worst_health: upper end of the local health score.
        gossip_interval_s, gossip_fanout: news goes to so many random members in each interval.
        retransmit_multiplier: see `gossip.broadcast.retransmit_limit`.
        push_pull_interval_s: between exchanges of the whole membership with a random member (longer above 32 members).
        reconnect_interval_s: between attempts to reach one of the dead again, and seeds never reached yet.
        remember_dead_s: how long a dead member is kept and retried.
        remember_left_s: how long it is remembered that a member left, so that old news cannot bring it back.
        max_members: no more are ever kept; bounds memory against a member that invents others.
    """

    probe_interval_s: float
    probe_timeout_s: float
    relays: int
    suspicion_multiplier: float
    suspicion_max_multiplier: float
    confirmations: int
    gossip_interval_s: float
    gossip_fanout: int
    retransmit_multiplier: float
    push_pull_interval_s: float
    reconnect_interval_s: float
    worst_health: int = 8
    remember_dead_s: float = 7 * 86400.0
    remember_left_s: float = 86400.0
    max_members: int = 4096


LAN: Final = GossipConfig(
    probe_interval_s=1.0,
    probe_timeout_s=0.4,
    relays=3,
    suspicion_multiplier=2.5,
    suspicion_max_multiplier=6.0,
    confirmations=2,
    gossip_interval_s=0.2,
    gossip_fanout=3,
    retransmit_multiplier=4.0,
    push_pull_interval_s=30.0,
    reconnect_interval_s=10.0,
)
"""One site: a dead node is noticed in about 5 s."""

WAN: Final = GossipConfig(
    probe_interval_s=3.0,
    probe_timeout_s=1.5,
    relays=3,
    suspicion_multiplier=4.0,
    suspicion_max_multiplier=6.0,
    confirmations=2,
    gossip_interval_s=0.5,
    gossip_fanout=4,
    retransmit_multiplier=4.0,
    push_pull_interval_s=60.0,
    reconnect_interval_s=20.0,
)
"""Sites far apart, lossy links: a dead node is noticed in about 20 s."""

LOCAL: Final = GossipConfig(
    probe_interval_s=0.4,
    probe_timeout_s=0.2,
    relays=2,
    suspicion_multiplier=2.5,
    suspicion_max_multiplier=6.0,
    confirmations=1,
    gossip_interval_s=0.1,
    gossip_fanout=3,
    retransmit_multiplier=3.0,
    push_pull_interval_s=10.0,
    reconnect_interval_s=2.0,
)
"""One machine or rack, up to a few dozen nodes: a dead node is noticed in 2-3 s."""

PRESETS: Final = {"lan": LAN, "wan": WAN, "local": LOCAL}
