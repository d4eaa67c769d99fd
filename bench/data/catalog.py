"""The cases by name, and the way to their data."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from bench.data import database, disks, files, machines, processes, releases, trees, workshop
from bench.data.pair import Maker, Pair

DEFAULT_WORK = Path("/var/tmp/p2player-bench")

_CASES = {
    "cold-tree": Maker(trees.cold, 300),
    "cold-file": Maker(files.cold, 256),
    "edits": Maker(files.edits, 256),
    "renamed": Maker(trees.renamed, 300),
    "releases": Maker(releases.build, 120),
    "log": Maker(files.log, 200),
    "sqlite": Maker(database.build, 200, image=True),
    "ext4": Maker(disks.build, 256, image=True),
    "vm-saves": Maker(machines.build, 160, image=True),
    "process-dumps": Maker(processes.build, 200, image=True),
    "noop": Maker(None, 300, same="cold-tree"),
}
CASES: Mapping[str, Maker] = MappingProxyType(_CASES)


def make(name: str, work: Path = DEFAULT_WORK, size_mb: int | None = None) -> Pair:
    """The data of the case `name`, made in the folder `work` the first time, which may take a minute.

    Args:
        name: one of `CASES`.
        work: kept between calls; the caller's to remove.
        size_mb: a smaller variant, for slow links; None for the full size. The trees and images come out at most this
            large (up to one file or package). A guest needs 96 MB of memory, so `vm-saves` does not get smaller.

    Raises:
        Unavailable: the machine lacks something.
        Spoiled: what was made did not pass its check; nothing is kept.
        KeyError: there is no such case.

    An interrupt ends what was started and leaves no pair.
    """
    maker = CASES[name]
    wanted = None if size_mb is None or size_mb >= maker.size_mb else size_mb
    found = workshop.finished(work, name, wanted)
    if found is not None:
        return found
    with workshop.opened(work, _CASES) as shop:
        return shop.pair(name, wanted)
