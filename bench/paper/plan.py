"""Which cells there are: what is migrated, over which link, by which methods; pure.

Theory of operation
-------------------
A *cell* is one figure's place in a table or a plot: a platform, an application, a link, whether the application layer
is at the destination already, and how many nodes hold it. All methods of a cell are run one after the other on the same
stage, so that what slows the machine for a while slows all of them.

The published tables have two parts, and there is a third:

    table    five applications on each platform, the application layer absent and present. The high-RAM application is
             there twice: left alone, and rewriting its memory at 40 % of the link's rate.
    sweep    the high-RAM application with more or less memory on slower and faster links. A cell that would take longer
             than `LONGEST_S` is made with less memory; which ones is told beside the figures.
    holders  how long it takes when one, two or four nodes hold the application layer, each behind a link of its own.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

Series = Literal["table", "sweep", "holders"]
SERIES: tuple[Series, ...] = ("table", "sweep", "holders")

RSYNC = "rsync"
RSYNC_Z = "rsync-z"
OURS = "p2player"
OWN = "own"
METHODS = (RSYNC, RSYNC_Z, OURS, OWN)
"""The published method; the same with `rsync -z`; p2player; the engine's own live migration."""

LXD = "lxd"
LIBVIRT = "libvirt"
RUNC = "runc"
PROCESS = "process"
PUBLISHED = (LXD, LIBVIRT)
"""The platforms of the published table: LXC and KVM."""
FURTHER = (RUNC,)
HIDDEN = (PROCESS,)
"""Of the embedded backend, for trying the bench itself out: a counter, and no other application."""

HIGH_RAM = "ram"
REWRITING = "ram-rewriting"
COUNTER = "counter"
APPS = ("none", "game", HIGH_RAM, REWRITING, "video", "face")
TITLES = {
    "none": "No Application",
    "game": "Game Server",
    HIGH_RAM: "High RAM App",
    REWRITING: "High RAM App, rewriting",
    "video": "Video Streaming",
    "face": "Face Detection",
    COUNTER: "Counter",
}
FRESH_RANDOM = (HIGH_RAM, REWRITING)
"""Applications whose instance is random data that nobody has seen before: it cannot be compressed or known."""

MBIT = 50.0
RAM_MB = 100
REWRITING_SHARE = 0.4
SWEEP_RAM_MB = (32, 64, 128, 256, 512)
SWEEP_MBIT = (5.0, 10.0, 50.0, 100.0, 1000.0)
HOLDERS = (1, 2, 4)
HOLDERS_APP = "face"
QUICK_APP = "game"

LONGEST_S = 120.0
GOODPUT = 0.9
"""Share of a link's rate that is payload, with some room: 95 % are possible."""
BESIDE_MB = {LIBVIRT: 80.0}
"""What an instance has beside the memory of the application, in MB: a guest's own system. 4 for containers."""
ENGINE_S = {LIBVIRT: 15.0}
"""Seconds for suspending and restoring, with room. 8 for containers."""
ROUNDING_MB = 4


@dataclass(frozen=True, slots=True)
class Cell:
    """One place in a table.

    Attributes:
        ram_mb: memory of the high-RAM application, in 10^6 bytes; 0 for others.
        mbit, delay_ms: of the link, each way.
        present: whether the application layer is at the destination.
        holders: how many nodes hold the application layer, the source among them.
    """

    series: Series
    platform: str
    app: str
    ram_mb: int
    mbit: float
    delay_ms: float
    present: bool
    holders: int = 1

    @property
    def rewrite_mb_s(self) -> float:
        """MB that the application rewrites in a second."""
        return REWRITING_SHARE * self.mbit / 8 if self.app == REWRITING else 0.0

    @property
    def stage(self) -> tuple[str, float, float, int]:
        """Cells of the same stage follow each other on the same nodes."""
        return self.platform, self.mbit, self.delay_ms, self.holders

    def __str__(self) -> str:
        what = f"{self.app} {self.ram_mb} MB" if self.ram_mb else self.app
        holders = f", {self.holders} holders" if self.series == "holders" else ""
        there = "present" if self.present else "absent"
        return f"{self.platform}: {what}, app layer {there}, {spell_link(self.mbit, self.delay_ms)}{holders}"


@dataclass(frozen=True, slots=True)
class Key:
    """What makes one run the same as another: it need not be done twice. `code`: see `bench.sync.code`."""

    cell: Cell
    method: str
    code: str


@dataclass(frozen=True, slots=True)
class Point:
    """A cell of the sweep as it was asked for, and the one that is measured for it."""

    asked_mb: int
    cell: Cell

    @property
    def capped(self) -> bool:
        """Whether it is measured with less memory."""
        return self.cell.ram_mb < self.asked_mb


@dataclass(frozen=True, slots=True)
class Wish:
    """What of it all is wanted; `None` stands for all of the effort's."""

    platforms: Sequence[str] = PUBLISHED
    series: Collection[Series] = SERIES
    apps: Collection[str] | None = None
    methods: Collection[str] | None = None
    mbit: float = MBIT
    delay_ms: float = 0.0
    quick: bool = False


def longest_ram_mb(platform: str, mbit: float) -> int:
    """The most memory with which a migration over a link of that rate takes no longer than `LONGEST_S`."""
    seconds = LONGEST_S - ENGINE_S.get(platform, 8.0)
    carried_mb = seconds * mbit / 8 * GOODPUT
    fitting = carried_mb - BESIDE_MB.get(platform, 4.0)
    return max(ROUNDING_MB, int(fitting // ROUNDING_MB) * ROUNDING_MB)


def sweep(platform: str, delay_ms: float = 0.0) -> list[Point]:
    """Figure 3, as far as one platform goes, slow links first; capped points may share a cell."""
    return [
        Point(ram_mb, Cell("sweep", platform, HIGH_RAM, min(ram_mb, most), mbit, delay_ms, present=True))
        for mbit in SWEEP_MBIT
        for most in (longest_ram_mb(platform, mbit),)
        for ram_mb in SWEEP_RAM_MB
    ]


def methods(cell: Cell) -> tuple[str, ...]:
    """The methods that a cell is measured with, in the order in which they are run."""
    if cell.series == "sweep":
        return (RSYNC, OURS)
    if cell.series == "holders":
        return (RSYNC, OURS) if cell.holders == 1 else (OURS,)
    own = (OWN,) if cell.present and cell.platform in PUBLISHED else ()
    return (RSYNC, RSYNC_Z, OURS, *own)


def cells(wish: Wish) -> Iterator[Cell]:
    """All cells of a wish: the platforms of the published table one after the other, each with all of its own."""
    for platform in wish.platforms:
        if platform in HIDDEN:
            for present in (False, True):
                yield Cell("table", platform, COUNTER, 0, wish.mbit, wish.delay_ms, present)
            continue
        if "table" in wish.series:
            for app in APPS:
                if app in (wish.apps or ((QUICK_APP,) if wish.quick else APPS)):
                    ram_mb = RAM_MB if app in FRESH_RANDOM else 0
                    for present in (False, True):
                        yield Cell("table", platform, app, ram_mb, wish.mbit, wish.delay_ms, present)
        if "holders" in wish.series and not wish.quick and (wish.apps is None or HOLDERS_APP in wish.apps):
            for holders in HOLDERS:
                yield Cell("holders", platform, HOLDERS_APP, 0, wish.mbit, wish.delay_ms, False, holders)
        if "sweep" in wish.series and not wish.quick and (wish.apps is None or HIGH_RAM in wish.apps):
            yield from dict.fromkeys(point.cell for point in sweep(platform, wish.delay_ms))


def pending(wish: Wish, done: Collection[tuple[Cell, str]]) -> list[tuple[Cell, tuple[str, ...]]]:
    """The cells that have something left to do, and the methods that are left; an order in which stages are kept.

    Args:
        done: cells and methods that need not be measured again.
    """
    left = []
    for cell in cells(wish):
        wanted = [method for method in methods(cell) if wish.methods is None or method in wish.methods]
        if wish.quick and wish.methods is None:
            wanted = [method for method in wanted if method in (RSYNC, OURS)]
        missing = tuple(method for method in wanted if (cell, method) not in done)
        if missing:
            left.append((cell, missing))
    return left


def expected_s(cell: Cell, method: str) -> float:
    """About how long a run takes, with all around it, for telling what is left."""
    carried = {"face": 120, "video": 60}.get(cell.app, 5) * (not cell.present) / cell.holders
    carried += cell.ram_mb + BESIDE_MB.get(cell.platform, 4.0)
    if method == OURS:
        carried *= 0.8 + 0.2 * (cell.ram_mb > 0)
    return 15.0 + 2 * ENGINE_S.get(cell.platform, 8.0) / 3 + carried * 8 / cell.mbit / GOODPUT


def spell_link(mbit: float, delay_ms: float) -> str:
    """A link for people."""
    return f"{mbit:g} Mbit/s" + (f", {delay_ms:g} ms" if delay_ms else "")
