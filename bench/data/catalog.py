"""The cases by name, and the way to their data."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from bench.data import database, disks, files, machines, processes, releases, trees, workshop
from bench.data.pair import Maker, Pair

DEFAULT_WORK = Path("/var/tmp/p2player-bench")

_CASES = {
    "cold-tree": Maker(trees.cold, trees.FULL_MB),
    "cold-file": Maker(files.cold, files.TAR_MB),
    "edits": Maker(files.edits, files.TAR_MB),
    "renamed": Maker(trees.renamed, trees.FULL_MB),
    "releases": Maker(releases.build, releases.FULL_MB),
    "log": Maker(files.log, 200),
    "sqlite": Maker(database.build, 200, image=True),
    "ext4": Maker(disks.build, 256, image=True, least_mb=disks.LEAST_MB),
    "vm-saves": Maker(machines.build, machines.GUEST_MB, image=True, least_mb=machines.LEAST_MB),
    "process-dumps": Maker(processes.build, 200, image=True, least_mb=16),
    "noop": Maker(None, trees.FULL_MB, same="cold-tree"),
}
CASES: Mapping[str, Maker] = MappingProxyType(_CASES)


def make(name: str, work: Path = DEFAULT_WORK, size_mb: int | None = None) -> Pair:
    """The data of the case `name`, made in the folder `work` the first time, which may take a minute.

    Args:
        name: one of `CASES`.
        work: kept between calls; the caller's to remove.
        size_mb: a variant of about this size, for slow links, but never smaller than the case's least; None for the
            full size. For `vm-saves` it is the guest's memory.

    Raises:
        Unavailable: the machine lacks something.
        Spoiled: what was made did not pass its check; nothing is kept.
        KeyError: there is no such case.

    An interrupt ends what was started and leaves no pair.
    """
    found = workshop.finished(work, name, CASES[name].variant(size_mb))
    if found is not None:
        return found
    with workshop.opened(work, _CASES) as shop:
        return shop.pair(name, size_mb)
