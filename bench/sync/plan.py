"""Which runs there are: every case on its links with every contestant, in turn.

Theory of operation
-------------------
A *series* is one case on one link: one pair of trees of one size, with which all contestants are measured alternately:
first each of them once, then each of them again. So whatever slows the machine for a while slows all of them.

Sizes follow the link. A case says which share of its bytes the most talkative contestant puts on the wire; the pair is
made as large as that contestant can carry within `budget_s`, and never larger than the case is on an unshaped link.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from bench.data import CASES as DATA

OURS = "p2player"
OURS_DONOR = "p2player-donor"
SSH = ("rsync-ssh", "rsync-ssh-zlib", "rsync-ssh-zstd")
DAEMON = ("rsync-daemon", "rsync-daemon-zlib", "rsync-daemon-zstd")
BEST_ON_IMAGES = ("rsync-ssh-4k-zlib", "rsync-ssh-4k-zstd", "rsync-daemon-4k-zstd")
CASYNC = "casync"
TOOLS = (OURS, OURS_DONOR, *SSH, *DAEMON, *BEST_ON_IMAGES, CASYNC)
LEAST_MB = 4


@dataclass(frozen=True, slots=True)
class Link:
    """Between the two hosts: megabits a second each way, and milliseconds one way (a round trip takes twice that).

    Without a rate it is the bare pair of virtual interfaces.
    """

    name: str
    mbit: float | None = None
    delay_ms: float = 0.0


LOOPBACK = Link("loopback")
WAN = Link("20M/20ms", 20, 20)
MATRIX = tuple(Link(f"{mbit}M/{delay}ms", mbit, delay) for mbit in (1000, 100, 5) for delay in (1, 20))
LINKS = (LOOPBACK, WAN, *MATRIX)
ON_DISK = Link("loopback, disk")
"""Loopback, with everything on a disk: shown beside, for the first case only, and when asked for."""


@dataclass(frozen=True, slots=True)
class Case:
    """What is synchronised: a pair of trees of `bench.data`, by its name there.

    Attributes:
        title: for people.
        share: of its bytes, at most, on the wire with the most talkative contestant.
        old: whether the destination holds an older version.
        noop: whether nothing has changed; then adding the layer again is timed as well.
        matrix: whether it is measured on all links.
    """

    name: str
    title: str
    share: float
    old: bool = True
    noop: bool = False
    matrix: bool = False

    @property
    def size_mb(self) -> int:
        """On an unshaped link."""
        return DATA[self.name].size_mb

    @property
    def least_mb(self) -> int:
        """It is not made smaller."""
        return max(LEAST_MB, DATA[self.name].least_mb)

    @property
    def links(self) -> tuple[Link, ...]:
        """Where it is measured."""
        return LINKS if self.matrix else (LOOPBACK, WAN)

    @property
    def tools(self) -> tuple[str, ...]:
        """Who takes part."""
        donor = (OURS_DONOR,) if self.old and not self.noop else ()
        best = BEST_ON_IMAGES if DATA[self.name].image else ()
        return (OURS, *donor, *SSH, *best, *DAEMON, CASYNC)


CASES = (
    Case("cold-tree", "cold tree", 1.1, old=False, matrix=True),
    Case("cold-file", "cold file", 1.1, old=False),
    Case("edits", "1 % scattered edits, one insertion", 0.04),
    Case("renamed", "renamed and moved files", 0.35),
    Case("releases", "two releases of an application", 0.6),
    Case("log", "appended log", 0.03),
    Case("sqlite", "SQLite database, rewritten blocks", 0.4),
    Case("ext4", "ext4 image, rewritten blocks", 0.08),
    Case("vm-saves", "two saves of one VM", 0.03, matrix=True),
    Case("process-dumps", "two dumps of one process", 0.4),
    Case("noop", "nothing changed", 0.01, noop=True),
)


@dataclass(frozen=True, slots=True)
class Effort:
    """How much is measured.

    Attributes:
        loopback_runs, shaped_runs: of each contestant.
        budget_s: for the slowest contestant on a shaped link; sizes are cut to fit.
        largest_mb: no pair is larger.
        tools: who takes part at all.
        links: names of the links that are measured.
    """

    loopback_runs: int
    shaped_runs: int
    budget_s: float
    largest_mb: int
    tools: tuple[str, ...] = TOOLS
    links: tuple[str, ...] = tuple(link.name for link in LINKS)


FULL = Effort(loopback_runs=5, shaped_runs=3, budget_s=15, largest_mb=1024)
QUICK = Effort(
    loopback_runs=3,
    shaped_runs=1,
    budget_s=5,
    largest_mb=64,
    tools=(OURS, "rsync-ssh", "rsync-ssh-zstd", "rsync-daemon", "rsync-ssh-4k-zstd"),
    links=(LOOPBACK.name, WAN.name),
)


@dataclass(frozen=True, slots=True)
class Key:
    """What makes one run the same as another: it need not be done twice.

    Attributes:
        number: from 1.
        code: the state of the product's code, see `bench.sync.code`.
    """

    case: str
    link: str
    size_mb: int
    tool: str
    number: int
    code: str


@dataclass(frozen=True, slots=True)
class Series:
    """One case on one link, and the runs of it that are still to be done, in order."""

    case: Case
    link: Link
    size_mb: int
    runs: tuple[Key, ...]

    @property
    def tools(self) -> tuple[str, ...]:
        """Those that still have runs to do."""
        return tuple(dict.fromkeys(run.tool for run in self.runs))


def fitting_mb(case: Case, link: Link, effort: Effort) -> int:
    """The size at which the most talkative contestant needs `budget_s` on `link`, at most the case's own."""
    most = min(case.size_mb, effort.largest_mb)
    if link.mbit is None:
        return max(case.least_mb, most)
    carried_mb = link.mbit / 8 * effort.budget_s
    return max(case.least_mb, min(most, int(carried_mb / case.share)))


def series(
    effort: Effort,
    code: str,
    done: Collection[Key],
    *,
    cases: Sequence[str] = (),
    links: Sequence[str] = (),
    tools: Sequence[str] = (),
    runs: int | None = None,
    disk: bool = False,
) -> Iterator[Series]:
    """All that is still to be done.

    Args:
        done: runs that need not be repeated.
        cases, links, tools: names to keep; all when empty. Named tools and links count even if `effort` has them not.
        runs: of each contestant, instead of the effort's own.
        disk: also measure the first case on a disk.
    """
    for case in CASES:
        if cases and case.name not in cases:
            continue
        where = [link for link in (LINKS if links else case.links) if link.name in (links or effort.links)]
        if disk and case == CASES[0]:
            where.append(ON_DISK)
        for link in where:
            size_mb = fitting_mb(case, link, effort)
            count = runs or (effort.loopback_runs if link.mbit is None else effort.shaped_runs)
            wanted = [tool for tool in case.tools if tool in (tools or effort.tools)]
            keys = [
                Key(case.name, link.name, size_mb, tool, number, code)
                for number in range(1, count + 1)
                for tool in wanted
            ]
            left = tuple(key for key in keys if key not in done)
            if left:
                yield Series(case, link, size_mb, left)
