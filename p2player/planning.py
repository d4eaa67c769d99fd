"""What a migration would move and cost, before anything moves; and what earlier ones teach about the next.

Theory of operation
-------------------
The destination says what it lacks of base and app, and how large an old image of the instance it has (preflight). The
rounds of pre-copy are played by the same policy that will run (`proto.rounds.forecast`), against an app that changes
as fast as it did the last time. The rest is addition:

    total = pull base and app + rounds of pre-copy + engine + final transfer + health
    freeze = pauses of pre-copy + engine + final transfer

Every finished migration leaves a `Lesson`: goodput and overhead between the two nodes, wire bytes for a byte that was
lacking, engine time and pauses of its backend, dirty rate of its app, and what a byte of the changed chunks costs as a
delta.
Lessons of the same peer, backend and app make up the `Experience` for the next plan; newer ones weigh more. What was
never seen is guessed, and marked as a guess: a bound on the freeze is not promised, nor refused, on a guess of the link
alone. Rounds of pre-copy measure it first.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from p2player.proto.delta_choice import FIRST_RATIO
from p2player.proto.handoff.fields import Malformed, Maybe, Real, Text
from p2player.proto.handoff.messages import Mode, Need
from p2player.proto.handoff.records import Prediction
from p2player.proto.rounds import Link, RoundConfig, RoundPolicy, forecast

GUESSED_ENGINE_S = 0.3
GUESSED_ENGINE_S_OF = {"runc": 0.8, "lxd": 2.0, "libvirt": 1.5}
GUESSED_PAUSE_S_OF = {"runc": 0.2, "lxd": 0.3, "libvirt": 0.1}
LEAST_TARGET_S, MOST_TARGET_S = 0.25, 0.5
"""What the final transfer may take, without a bound by the operator."""
GUESSED_HEALTH_S = 1.0
GUESSED_WIRE_RATIO = 1.02
GUESSED_IMAGE_BYTES_S = 400e6
ROUND_TRIPS = 6
"""A pull's overhead in round trips: ask for the image, for the manifest, for the rest, and the answers."""
FIXED_S = 0.03
"""And what it takes whatever the link: fsync and checkout."""
BASIS_KEPT = 0.98
"""Share of an old image that is taken to be unchanged."""

_NEWEST_WEIGHS = 0.5


@dataclass(frozen=True, slots=True)
class Lesson:
    """What one finished migration measured; None where it could not.

    Attributes:
        app_id, backend, peer: what moved, how, and the node at the other end.
        goodput_bytes_s, overhead_s: of the link, see `proto.rounds.Link`.
        wire_ratio: wire bytes for a byte that had to be fetched as it is.
        engine_s: of the freeze, what was neither the final transfer nor pauses of pre-copy.
        health_s: from the app's start at the destination until it counted as healthy.
        dirty_bytes_s: how fast the app's instance layer changed, in whole chunks.
        delta_goodput_bytes_s: how fast such chunks came as deltas.
        delta_ratio: wire bytes for a byte of them.
        pause_s: in which the app did not run, for one image of pre-copy.
    """

    app_id: str
    backend: str
    peer: str
    goodput_bytes_s: float | None = None
    overhead_s: float | None = None
    wire_ratio: float | None = None
    engine_s: float | None = None
    health_s: float | None = None
    dirty_bytes_s: float | None = None
    delta_goodput_bytes_s: float | None = None
    delta_ratio: float | None = None
    pause_s: float | None = None

    def document(self) -> dict[str, Any]:
        """As JSON-able values."""
        return {name: getattr(self, name) for name in (*_TEXTS, *_NUMBERS)}

    @classmethod
    def read(cls, document: object) -> "Lesson | None":
        """The inverse of `document`; None for anything else, since a lost lesson costs nothing."""
        if not isinstance(document, dict):
            return None
        try:
            texts = [Text().load(document.get(name)) for name in _TEXTS]
            numbers = [Maybe(Real(0.0, 1e15)).load(document.get(name)) for name in _NUMBERS]
        except Malformed:
            return None
        return cls(*texts, *numbers)  # type: ignore[arg-type]


_TEXTS = ("app_id", "backend", "peer")
_NUMBERS = (
    *("goodput_bytes_s", "overhead_s", "wire_ratio", "engine_s", "health_s", "dirty_bytes_s"),
    *("delta_goodput_bytes_s", "delta_ratio", "pause_s"),
)


@dataclass(frozen=True, slots=True)
class Experience:
    """What is expected of the next migration of one app to one peer."""

    link: Link = field(default_factory=Link)
    wire_ratio: float = GUESSED_WIRE_RATIO
    engine_s: float = GUESSED_ENGINE_S
    health_s: float = GUESSED_HEALTH_S
    dirty_bytes_s: float | None = None
    delta_goodput_bytes_s: float | None = None
    delta_ratio: float = FIRST_RATIO
    pause_s: float = 0.0

    def policy(self, max_freeze_s: float | None) -> RoundPolicy:
        """A fresh policy for the rounds of one migration.

        Each round costs a pause, and makes the whole longer: where the engine takes long itself, a final transfer that
        takes half as long is not worth another one.
        """
        target_s = min(max(LEAST_TARGET_S, self.engine_s / 2), MOST_TARGET_S)
        config = RoundConfig(max_freeze_s=max_freeze_s, target_s=target_s, pause_s=self.pause_s)
        return RoundPolicy(config, self.link, self.dirty_bytes_s, self.delta_goodput_bytes_s)


def learn(lessons: Sequence[Lesson], *, app_id: str, backend: str, peer: str, rtt_s: float | None = None) -> Experience:
    """Make the experience for the next migration.

    Args:
        lessons: oldest first.
        rtt_s: round trip to the peer, when gossip knows it.
    """
    with_peer = [lesson for lesson in lessons if lesson.peer == peer]
    goodput = _recent(lesson.goodput_bytes_s for lesson in with_peer)
    overhead = _recent(lesson.overhead_s for lesson in with_peer)
    guess = Link()
    if overhead is None:
        overhead = guess.overhead_s if rtt_s is None else FIXED_S + ROUND_TRIPS * rtt_s
    of_app = [lesson for lesson in lessons if lesson.app_id == app_id]
    of_backend = [lesson for lesson in lessons if lesson.backend == backend]
    engine_s = _recent(lesson.engine_s for lesson in of_backend)
    health_s = _recent(lesson.health_s for lesson in of_backend)
    pause_s = _recent(lesson.pause_s for lesson in of_backend)
    return Experience(
        Link(goodput or guess.goodput_bytes_s, overhead, measured=goodput is not None),
        _recent(lesson.wire_ratio for lesson in with_peer) or GUESSED_WIRE_RATIO,
        GUESSED_ENGINE_S_OF.get(backend, GUESSED_ENGINE_S) if engine_s is None else engine_s,
        GUESSED_HEALTH_S if health_s is None else health_s,
        _recent(lesson.dirty_bytes_s for lesson in of_app),
        _recent(lesson.delta_goodput_bytes_s for lesson in of_app if lesson.peer == peer),
        _recent(lesson.delta_ratio for lesson in of_app) or FIRST_RATIO,
        GUESSED_PAUSE_S_OF.get(backend, 0.0) if pause_s is None else pause_s,
    )


def _recent(values: Iterable[float | None]) -> float | None:
    """The mean, in which each value weighs as much as all before it together."""
    mean: float | None = None
    for value in values:
        if value is not None:
            mean = value if mean is None else mean + (value - mean) * _NEWEST_WEIGHS
    return mean


@dataclass(frozen=True, slots=True)
class Question:
    """What is to move. `basis_bytes`: of an old image of the instance at the destination; names are for people."""

    app: str
    source: str
    destination: str
    mode: Mode
    base: Need
    app_layer: Need
    instance_bytes: int
    basis_bytes: int = 0
    running: bool = True
    max_freeze_s: float | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """The answer. Bytes are on the wire where they are `transferred`, and content where they are `total`."""

    question: Question
    base_transferred: int
    app_transferred: int
    instance_transferred: int
    total_s: float
    freeze_s: float
    refusals: tuple[str, ...]

    @property
    def prediction(self) -> Prediction:
        """What is compared with the outcome."""
        transferred = self.base_transferred + self.app_transferred + self.instance_transferred
        return Prediction(self.total_s, self.freeze_s, transferred)

    def document(self) -> dict[str, Any]:
        """The answer of `POST /v1/plan`."""
        asked = self.question
        return {
            "app": asked.app,
            "from": asked.source,
            "to": asked.destination,
            "mode": asked.mode.value,
            "layers": {
                "base": {"total": asked.base.total, "transferred": self.base_transferred},
                "app": {"total": asked.app_layer.total, "transferred": self.app_transferred},
                "instance": {"total": asked.instance_bytes, "transferred": self.instance_transferred},
            },
            "total_s": round(self.total_s, 3),
            "freeze_s": round(self.freeze_s, 3),
            "refusals": list(self.refusals),
        }


def make_plan(question: Question, experience: Experience, refusals: Iterable[str] = ()) -> Plan:
    """Answer a question from experience.

    Args:
        refusals: what stands against it already; the plan adds a bound on the freeze that cannot be met.
    """
    link = experience.link
    pulled = question.base.missing + question.app_layer.missing
    sync_s = link.predict(pulled) if pulled else link.overhead_s
    size, known = question.instance_bytes, min(question.basis_bytes, question.instance_bytes)
    lacking = size - int(known * BASIS_KEPT)
    refused = list(refusals)
    if question.mode is Mode.COLD or not question.running:
        precopy_s, pauses_s, moved, final_s = 0.0, 0.0, float(lacking), link.predict(lacking)
        in_deltas = moved if known else 0.0
        over = question.running and question.max_freeze_s is not None and final_s > question.max_freeze_s
    else:
        image_s = size / GUESSED_IMAGE_BYTES_S + experience.pause_s
        seen = forecast(experience.policy(question.max_freeze_s), size, image_s, lacking if known else None)
        precopy_s, moved, final_s, in_deltas = seen.seconds, seen.moved_bytes, seen.final_s, seen.delta_bytes
        pauses_s = seen.rounds * experience.pause_s
        over = seen.refused and (link.measured or seen.rounds == 0)  # else rounds will tell
    if over:
        assert question.max_freeze_s is not None
        refused.append(
            f"the final transfer would take about {final_s:.3g} s, over the bound of {question.max_freeze_s:.3g} s"
        )
    freeze_s = pauses_s + experience.engine_s + final_s if question.running else 0.0
    ratio = experience.wire_ratio
    return Plan(
        question,
        base_transferred=round(question.base.missing * ratio),
        app_transferred=round(question.app_layer.missing * ratio),
        instance_transferred=round((moved - in_deltas) * ratio + in_deltas * experience.delta_ratio),
        total_s=sync_s + precopy_s + final_s + (experience.engine_s + experience.health_s if question.running else 0.0),
        freeze_s=freeze_s,
        refusals=tuple(refused),
    )


def errors_of(prediction: Prediction, *, total_s: float, freeze_s: float, transferred: int) -> Mapping[str, Any]:
    """What was predicted, and by how much the outcome was above it."""
    return {
        "total_s": round(prediction.total_s, 3),
        "freeze_s": round(prediction.freeze_s, 3),
        "transferred": prediction.transferred,
        "total_error_s": round(total_s - prediction.total_s, 3),
        "freeze_error_s": round(freeze_s - prediction.freeze_s, 3),
        "transferred_error": transferred - prediction.transferred,
    }
