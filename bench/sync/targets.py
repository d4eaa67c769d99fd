"""The goals, as data: a figure of ours, at most so many times a rival's.

Where a goal says "rsync -z", the rival is whichever of zlib and zstd is better at that figure: rsync 3.2's plain `-z`
agrees on zstd, older ones use zlib.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from bench.sync.plan import DAEMON, LOOPBACK, MATRIX, OURS, WAN
from bench.sync.results import Figures, SeriesKey

What = Literal["bytes", "time", "api", "memory"]

API_PART = "api_s"
PEAK_PART = "peak_bytes"
PARTS: Mapping[What, str] = {"api": API_PART, "memory": PEAK_PART}
"""Which of `Figures.parts` a goal is about."""

DEFAULTS = ("rsync-ssh",)
Z = ("rsync-ssh-zlib", "rsync-ssh-zstd")
ZSTD = ("rsync-ssh-zstd",)
BEST = ("rsync-ssh-4k-zlib", "rsync-ssh-4k-zstd")
PLAIN_DAEMON = DAEMON[:1]
SLOW = tuple(link.name for link in (WAN, *MATRIX) if link.mbit is not None and link.mbit <= 20)
ANY_LINK = (LOOPBACK.name, WAN.name)
ON_LOOPBACK = (LOOPBACK.name,)
ON_WAN = (WAN.name,)
OTHERS = ("cold-tree", "cold-file", "edits", "log", "sqlite", "ext4")


@dataclass(frozen=True, slots=True)
class Goal:
    """`what` of p2player is to be at most `factor` times that of the best of `rivals`; of no rival: at most `factor`.

    Attributes:
        what: bytes on the wire; time of the whole commands; seconds as told by the API (rivals: whole commands);
            the most memory that a node has taken, in bytes.
        text: how the goal names the rival.
    """

    case: str
    links: tuple[str, ...]
    what: What
    factor: float
    rivals: tuple[str, ...]
    text: str
    ours: str = OURS


GOALS = (
    Goal("cold-tree", ON_LOOPBACK, "bytes", 1.1, Z, "rsync -z"),
    Goal("cold-tree", ON_LOOPBACK, "time", 0.6, DEFAULTS, "rsync over ssh"),
    Goal("cold-tree", ON_LOOPBACK, "time", 1.5, PLAIN_DAEMON, "the rsync daemon"),
    Goal("edits", ON_LOOPBACK, "bytes", 0.8, ZSTD, "rsync -z with zstd"),
    Goal("edits", ON_LOOPBACK, "time", 0.6, DEFAULTS, "rsync over ssh"),
    Goal("releases", ON_WAN, "bytes", 0.6, Z, "rsync -z"),
    Goal("releases", ON_WAN, "time", 0.7, Z, "rsync -z"),
    Goal("renamed", ON_WAN, "bytes", 1 / 20, DEFAULTS, "rsync"),
    Goal("renamed", ON_WAN, "time", 1 / 10, DEFAULTS, "rsync"),
    Goal("vm-saves", ANY_LINK, "bytes", 1 / 20, DEFAULTS, "rsync's defaults"),
    Goal("vm-saves", ANY_LINK, "bytes", 1 / 4, BEST, "rsync's best"),
    Goal("vm-saves", ON_LOOPBACK, "time", 1.0, DEFAULTS, "rsync's defaults"),
    Goal("vm-saves", ON_WAN, "time", 1 / 2, DEFAULTS, "rsync's defaults"),
    Goal("process-dumps", ANY_LINK, "bytes", 1 / 4, DEFAULTS, "rsync's defaults"),
    Goal("process-dumps", ANY_LINK, "bytes", 0.6, BEST, "rsync's best"),
    Goal("process-dumps", ON_LOOPBACK, "time", 1.0, DEFAULTS, "rsync's defaults"),
    Goal("process-dumps", ON_WAN, "time", 0.6, DEFAULTS, "rsync's defaults"),
    Goal("noop", ANY_LINK, "bytes", 4096, (), "4 KB"),
    Goal("noop", ANY_LINK, "time", 0.8, DEFAULTS, "rsync over ssh"),
    Goal("noop", ANY_LINK, "api", 1 / 5, DEFAULTS, "rsync over ssh"),
    *(Goal(case, ON_LOOPBACK, "memory", 250e6, (), "250 MB") for case in ("sparse-layer", "small-files")),
    *(Goal(case, SLOW, "bytes", 1.02, Z, "rsync -z over ssh") for case in OTHERS),
    *(Goal(case, SLOW, "time", 1.02, Z, "rsync -z over ssh") for case in OTHERS),
    Goal("vm-saves", tuple(name for name in SLOW if name not in ON_WAN), "bytes", 1.02, Z, "rsync -z over ssh"),
    Goal("vm-saves", tuple(name for name in SLOW if name not in ON_WAN), "time", 1.02, Z, "rsync -z over ssh"),
)


@dataclass(frozen=True, slots=True)
class Verdict:
    """A goal on one link, with the figures that decide it: seconds or bytes, medians both.

    `ratio` is ours over the rival's; of a goal without rivals, ours over the goal.
    """

    goal: Goal
    link: str
    size_mb: int
    ours: float
    rival: str
    theirs: float

    @property
    def ratio(self) -> float:
        """Ours over theirs."""
        return self.ours / self.theirs if self.theirs else 0.0

    @property
    def bound(self) -> float:
        """What the ratio may be."""
        return self.goal.factor if self.goal.rivals else 1.0

    @property
    def met(self) -> bool:
        """Whether it is."""
        return self.ratio <= self.bound


def figure(figures: Figures, what: What, *, ours: bool = False) -> float:
    """The one that a goal is about."""
    if what == "bytes":
        return figures.wire_bytes
    if what in PARTS and ours:
        return figures.parts[PARTS[what]]
    return figures.seconds


def judge(medians: Mapping[SeriesKey, Mapping[str, Figures]], goals: tuple[Goal, ...] = GOALS) -> list[Verdict]:
    """Every goal that there are figures for, in the goals' order; of several sizes on one link, the largest counts."""
    largest = {(case, link): size_mb for case, link, size_mb in sorted(medians)}
    verdicts = []
    for goal in goals:
        for (case, link, size_mb), tools in medians.items():
            if size_mb != largest[case, link]:
                continue
            if case != goal.case or link not in goal.links or goal.ours not in tools:
                continue
            mine = tools[goal.ours]
            if goal.what in PARTS and PARTS[goal.what] not in mine.parts:
                continue
            ours = figure(mine, goal.what, ours=True)
            if not goal.rivals:
                verdicts.append(Verdict(goal, link, size_mb, ours, goal.text, goal.factor))
                continue
            present = [name for name in goal.rivals if name in tools]
            if present:
                best = min(present, key=lambda name: figure(tools[name], goal.what))
                verdicts.append(Verdict(goal, link, size_mb, ours, best, figure(tools[best], goal.what)))
    return verdicts
