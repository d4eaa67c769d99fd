"""When pre-copy stops.

Theory of operation
-------------------
While the app runs, image after image of its instance layer is taken and the destination pulls what changed. Image n
is taken at time t(n), its delta against image n-1 is d(n) bytes, so the app dirties r = d(n) / (t(n) - t(n-1)) bytes
a second. Suspending now would leave a final delta of about r * (now - t(n)), and its transfer would take

    predict(bytes) = overhead + bytes / goodput

Both terms start from what is known of the link and are corrected by every round: large rounds measure the goodput,
small ones the overhead (round trips, checkout, fsync). No kernel dirty tracking is needed.

d(n) counts whole chunks in which something changed, and those travel as deltas of the image before: one byte of it may
cost the wire a hundredth of a byte of the first image, or as much. So there are two goodputs in such bytes, one of
content that travels as it is and one of content that travels as a delta. Before the first delta was seen, it is taken
to be no faster.

Once one was seen, bytes are not needed any more. A few pages that change here and there touch every chunk within a
second, and touch them no more in the next ten, while the delta keeps growing. So a delta that took s(n) seconds to move
is divided by the time in which it came to be, and the final one is predicted from that:

    s(n) = overhead + lag * (t(n) - t(n-1))

The rule, after each round:

1. the predicted final transfer fits the budget (`max_freeze_s`, or `target_s` where nothing was asked for): suspend;
2. the deltas stopped shrinking, or `max_rounds` were done: more rounds only cost time. Suspend; with a `max_freeze_s`,
   which the final transfer would break, refuse instead, before anything was suspended. Not after the first image,
   while nobody knows what a delta costs;
3. else: one more round.

Pre-copy is skipped where the whole image fits the budget, and where it exceeds that by no more than the pause that a
round costs: it could only lengthen the migration. After a first round
the dirty rate is not known yet, unless an earlier migration of the app measured it, so a second round follows.

The convergence argument is that of Clark et al., "Live Migration of Virtual Machines" (NSDI 2005), section 3.2.
"""

from dataclasses import dataclass, replace
from enum import StrEnum
from math import ceil


class Verdict(StrEnum):
    """What to do next."""

    ROUND = "round"
    SUSPEND = "suspend"
    REFUSE = "refuse"


@dataclass(frozen=True, slots=True)
class RoundConfig:
    """How the end of pre-copy is decided.

    Attributes:
        max_freeze_s: the operator's bound on the final transfer; None: no bound.
        target_s: the final transfer that is good enough without a bound.
        pause_s: for which the app stops in a round.
        max_rounds: never more than this.
        shrink: a delta larger than this share of the one before does not shrink.
        margin: share of a bound that a prediction may use up.
    """

    max_freeze_s: float | None = None
    target_s: float = 0.25
    pause_s: float = 0.0
    max_rounds: int = 8
    shrink: float = 0.8
    margin: float = 0.85

    @property
    def budget_s(self) -> float:
        """What the predicted final transfer must fit into."""
        return self.target_s if self.max_freeze_s is None else self.max_freeze_s * self.margin


@dataclass(frozen=True, slots=True)
class Link:
    """What a transfer between the two ends costs: `overhead_s` whatever its size, and its bytes over `goodput_bytes_s`.

    Bytes count uncompressed, as deltas do. `measured` tells a guess from an observation.
    """

    goodput_bytes_s: float = 10e6
    overhead_s: float = 0.05
    measured: bool = False

    def predict(self, delta_bytes: float) -> float:
        """Seconds for a transfer of so many bytes."""
        return self.overhead_s + delta_bytes / self.goodput_bytes_s


_LARGE_BYTES = 1 << 20
_TELLING_BYTES = 64 << 10
_MIN_S = 1e-3


def observe(link: Link, fetched_bytes: int, seconds: float, telling_bytes: int = _TELLING_BYTES) -> Link:
    """`link`, corrected by a transfer that was seen.

    Args:
        telling_bytes: so many tell the goodput where that was not measured before.
    """
    if fetched_bytes >= (_LARGE_BYTES if link.measured else telling_bytes):
        sample = fetched_bytes / max(seconds - link.overhead_s, seconds / 2, _MIN_S)
        goodput = sample if not link.measured else (link.goodput_bytes_s + sample) / 2
        return replace(link, goodput_bytes_s=goodput, measured=True)
    fixed = max(seconds - fetched_bytes / link.goodput_bytes_s, 0.0)
    return replace(link, overhead_s=(link.overhead_s + fixed) / 2)


class RoundPolicy:
    """Decides, round by round, for one migration.

    Args:
        config: budget and limits.
        link: what is known of the link before the first byte.
        dirty_bytes_s: how fast earlier migrations saw this app change; None when none was seen.
        delta_goodput_bytes_s: how fast they saw such changes move as deltas; likewise.

    Attributes:
        link: of content that moves as it is.
    """

    def __init__(
        self,
        config: RoundConfig,
        link: Link,
        dirty_bytes_s: float | None = None,
        delta_goodput_bytes_s: float | None = None,
    ) -> None:
        self.config = config
        self.link = link
        self.dirty_bytes_s = dirty_bytes_s
        self.rounds = 0
        self._delta_goodput_bytes_s = delta_goodput_bytes_s
        self._image_bytes: int | None = None
        self._taken_at: float | None = None
        self._interval_s = 0.0
        self._whole = False
        self._deltas: list[int] = []
        self._as_delta = False
        self._lag: float | None = None

    @property
    def delta_link(self) -> Link:
        """The link for content that moves as a delta."""
        goodput = self._delta_goodput_bytes_s
        if goodput is None:
            return replace(self.link, measured=False)
        return Link(goodput, self.link.overhead_s, measured=True)

    def begin(self, image_bytes: int) -> Verdict:
        """Before anything of the instance layer moved; `image_bytes` is its size."""
        self._image_bytes = image_bytes
        if self.config.max_freeze_s is not None and self.link.overhead_s > self.config.max_freeze_s:
            return Verdict.REFUSE
        bound = self.config.max_freeze_s
        certain = self.link.measured or bound is None
        enough_s = self.config.budget_s + (self.config.pause_s if bound is None else 0.0)
        return Verdict.SUSPEND if certain and self.link.predict(image_bytes) <= enough_s else Verdict.ROUND

    def imaged(self, delta_bytes: int, taken_at: float, as_delta: bool = False) -> None:
        """An image was taken, beginning at `taken_at`; it differs in `delta_bytes` from the one before.

        Args:
            as_delta: whether these move as a delta.
        """
        if self._taken_at is not None and taken_at > self._taken_at:
            self._interval_s = taken_at - self._taken_at
            seen = delta_bytes / self._interval_s
            self._whole = self._image_bytes is not None and delta_bytes >= self._image_bytes
            # What changed as a whole may have done so twice over.
            self.dirty_bytes_s = max(seen, self.dirty_bytes_s or 0.0) if self._whole else seen
        self._taken_at = taken_at
        self._deltas.append(delta_bytes)
        self._as_delta = as_delta

    def moved(self, fetched_bytes: int, seconds: float, now: float, image_s: float | None = None) -> Verdict:
        """The destination pulled the newest image: `fetched_bytes` of it came over the wire in `seconds`.

        Args:
            image_s: seconds that another image would take; None: as long as this one lay there before it was sent.
        """
        self.rounds += 1
        self._observe(fetched_bytes, seconds)
        expected_s = self._expected_s(now)
        if self._fits_whole() or (expected_s is not None and expected_s <= self.config.budget_s):
            return Verdict.SUSPEND
        useful = expected_s is None or self._teaches() or self._shrinks(expected_s, seconds, now, image_s)
        return Verdict.ROUND if useful and self.rounds < self.config.max_rounds else self.stuck()

    def _fits_whole(self) -> bool:
        """Whether it could all be dirtied once more, and would still move in time."""
        size = self._image_bytes
        return size is not None and self.link.measured and self.link.predict(size) <= self.config.budget_s

    def synced(self, fetched_bytes: int, seconds: float) -> None:
        """A shared layer came from the source, before anything of the instance: that measures an unknown link."""
        if not self.link.measured and fetched_bytes >= _LARGE_BYTES:
            self.link = observe(self.link, fetched_bytes, seconds)

    def expects_round(self, moved_at: float) -> bool:
        """Whether another round will follow when the newest image has moved, which is expected at `moved_at`."""
        if self.rounds + 2 > self.config.max_rounds or self._fits_whole():
            return False
        expected_s = self._expected_s(moved_at)
        return expected_s is None or expected_s > self.config.budget_s

    def stuck(self) -> Verdict:
        """No further round helps, or none is possible."""
        return Verdict.SUSPEND if self.config.max_freeze_s is None else Verdict.REFUSE

    def expected_delta(self, now: float) -> float | None:
        """Bytes that a final image taken now would add; None while the dirty rate is unknown."""
        if self.dirty_bytes_s is None or self._taken_at is None:
            return None
        expected = self.dirty_bytes_s * max(now - self._taken_at, 0.0)
        return expected if self._image_bytes is None else min(expected, max(self._image_bytes, *self._deltas))

    def final_s(self, now: float) -> float:
        """Seconds that the transfer of a final image taken now would take, as far as is known."""
        expected_s = self._expected_s(now)
        return self.delta_link.predict(0.0) if expected_s is None else expected_s

    def _expected_s(self, now: float) -> float | None:
        expected = self.expected_delta(now)
        by_bytes_s = None if expected is None else self.delta_link.predict(expected)
        if self._lag is None or self._taken_at is None:
            return by_bytes_s
        by_lag_s = self.link.overhead_s + self._lag * max(now - self._taken_at, 0.0)
        if self._image_bytes is not None and self.link.measured:
            by_lag_s = min(by_lag_s, self.link.predict(self._image_bytes))
        return max(by_lag_s, by_bytes_s or 0.0) if self._whole else by_lag_s

    def _observe(self, fetched_bytes: int, seconds: float) -> None:
        if not self._as_delta:
            self.link = observe(self.link, fetched_bytes, seconds)
            return
        # A small one is mostly overhead, and says little of how large ones would fare.
        seen = observe(self.delta_link, fetched_bytes, seconds, _LARGE_BYTES)
        self.link = replace(self.link, overhead_s=seen.overhead_s)
        if self._interval_s > 0:
            lag = max(seconds - self.link.overhead_s, 0.0) / self._interval_s
            self._lag = lag if self._lag is None else (self._lag + lag) / 2
        if seen.measured:
            self._delta_goodput_bytes_s = seen.goodput_bytes_s

    def _teaches(self) -> bool:
        """Whether the next round is the first to show what a delta costs."""
        return self.rounds == 1 and not self._as_delta and not self.delta_link.measured

    def _shrinks(self, expected_s: float, seconds: float, now: float, image_s: float | None) -> bool:
        """Whether the next delta is smaller than the last one, or takes so little time that the one after it will be.

        Args:
            expected_s: seconds for the next delta.
            seconds: that the last transfer took.
            image_s: that another image takes.
        """
        if self._lag is None and (self.expected_delta(now) or 0.0) <= self._deltas[-1] * self.config.shrink:
            return True
        assert self._taken_at is not None
        interval_s = now - self._taken_at
        before_s = max(interval_s - seconds, 0.0) if image_s is None else image_s
        return before_s + expected_s <= interval_s * self.config.shrink


@dataclass(frozen=True, slots=True)
class Forecast:
    """What the policy would do.

    Attributes:
        rounds: pre-copy rounds.
        seconds: that they take, until the app would be suspended.
        moved_bytes: uncompressed bytes over all images, the final one included.
        final_s: the final transfer.
        refused: whether the bound cannot be met.
        delta_bytes: of `moved_bytes`, those that move as deltas.
    """

    rounds: int
    seconds: float
    moved_bytes: float
    final_s: float
    refused: bool
    delta_bytes: float


def forecast(policy: RoundPolicy, image_bytes: int, image_s: float = 0.0, first_bytes: int | None = None) -> Forecast:
    """Play the policy against an app of constant dirty rate (unknown counts as none); `policy` is used up by it.

    Args:
        image_bytes: size of the instance layer.
        image_s: seconds to take one image.
        first_bytes: of the first image, what the destination lacks of it, which has an earlier one; None when it has
            none, and lacks all of it.
    """
    dirty_bytes_s = policy.dirty_bytes_s or 0.0
    verdict = policy.begin(image_bytes)
    as_delta = first_bytes is not None
    lacking = float(image_bytes if first_bytes is None else first_bytes)
    now = moved = in_deltas = 0.0
    while verdict is Verdict.ROUND:
        taken_at, now = now, now + image_s
        policy.imaged(ceil(lacking), taken_at, as_delta)
        seconds = _predict(policy, lacking, as_delta, image_bytes)
        now += seconds
        moved += lacking
        in_deltas += lacking * as_delta
        verdict = policy.moved(ceil(lacking), seconds, now)
        lacking = min(dirty_bytes_s * (now - taken_at), image_bytes)
        as_delta = True
    final_s = _predict(policy, lacking, as_delta, image_bytes)
    refused = verdict is Verdict.REFUSE
    return Forecast(policy.rounds, now, moved + lacking, final_s, refused, in_deltas + lacking * as_delta)


def _predict(policy: RoundPolicy, lacking: float, as_delta: bool, image_bytes: int) -> float:
    """Seconds for one transfer; a delta is never worse than the whole image as it is."""
    plain_s = policy.link.predict(image_bytes if as_delta else lacking)
    return min(plain_s, policy.delta_link.predict(lacking)) if as_delta else plain_s
