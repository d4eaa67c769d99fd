"""Who may knock, and how often."""

from collections import OrderedDict


class Gate:
    """How often each key may pass: a rate with bursts, in one number a key.

    The generic cell rate algorithm (ITU-T I.371): a key's number is the time at which its bucket will be full again.
    Refused attempts cost nothing, so that who keeps knocking still gets in at the rate.

    Args:
        rate: passes a second, sustained.
        burst: passes at once after a pause.
        capacity: how many keys are remembered; the one that passed longest ago is forgotten first.
    """

    def __init__(self, rate: float, burst: int, capacity: int = 1024) -> None:
        self._interval_s = 1.0 / rate
        self._slack_s = (burst - 1) / rate
        self._capacity = capacity
        self._full_at: OrderedDict[str, float] = OrderedDict()

    def admit(self, key: str, now: float) -> float:
        """0.0 if `key` may pass at time `now`, which is then counted; else the seconds until it may."""
        full_at = max(self._full_at.get(key, now), now)
        wait_s = full_at - now - self._slack_s
        if wait_s > 1e-9:
            return wait_s
        self._full_at[key] = full_at + self._interval_s
        self._full_at.move_to_end(key)
        while len(self._full_at) > self._capacity:
            self._full_at.popitem(last=False)
        return 0.0
