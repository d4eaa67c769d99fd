"""How much memory nodes take for very large layers: a sparse file of 10 GB, and 200,000 small files.

Two nodes in two hosts; the source adds the tree, the destination pulls it and checks it out. What counts is the most
that either of them ever had resident (VmHWM), over all of that.
"""

import os
import random
import time
from collections.abc import Callable, Collection
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from bench import figures
from bench.sync.measured import RunFailed, peak_bytes
from bench.sync.ours import LAYER, Node
from bench.sync.plan import LOOPBACK, OURS, Case, Key
from bench.sync.results import Results, Run
from bench.sync.runner import placed
from bench.sync.stage import Ground, Stage
from bench.sync.targets import PEAK_PART
from p2player.errors import P2PlayerError

SPARSE_BYTES = 10_000_000_000
EXTENTS = 200
EXTENT_BYTES = 1_000_000
SMALL_FILES = 200_000
FOLDERS = 400


@dataclass(frozen=True, slots=True)
class Large:
    """A tree that is made on the spot."""

    case: Case
    size_mb: int
    make: Callable[[Path], None]


def sparse(folder: Path) -> None:
    """One file of 10 GB with 200 MB of data spread over it."""
    rng = random.Random(1)
    with (folder / "disk").open("wb") as out:
        for number in range(EXTENTS):
            out.seek(number * (SPARSE_BYTES // EXTENTS))
            out.write(rng.randbytes(EXTENT_BYTES))
        out.truncate(SPARSE_BYTES)


def small_files(folder: Path) -> None:
    """200,000 files of some hundred bytes in 400 folders."""
    rng = random.Random(2)
    for number in range(FOLDERS):
        place = folder / f"{number:03}"
        place.mkdir()
        for name in range(SMALL_FILES // FOLDERS):
            (place / f"{name:03}.json").write_bytes(rng.randbytes(rng.randrange(100, 900)))


LARGE = (
    Large(Case("sparse-layer", "memory: sparse file of 10 GB", 1.0, old=False), SPARSE_BYTES // 1_000_000, sparse),
    Large(Case("small-files", "memory: 200,000 small files", 1.0, old=False), 100, small_files),
)


def pending(code: str, done: Collection[Key], cases: Collection[str]) -> list[tuple[Large, Key]]:
    """Those that are wanted and not done; `cases` as in `plan.series`."""
    keys = [(large, Key(large.case.name, LOOPBACK.name, large.size_mb, OURS, 1, code)) for large in LARGE]
    return [(large, key) for large, key in keys if key not in done and (not cases or key.case in cases)]


def run(large: Large, key: Key, folder: Path, results: Results, say: Callable[[str], None]) -> bool:
    """Measure one; whether it went well."""
    say(f"{large.case.title}: making it")
    with placed(folder) as made:
        new = made / "new"
        new.mkdir()
        large.make(new)
        found = [path.lstat().st_size for top, _, names in os.walk(new) for path in (Path(top, name) for name in names)]
        ground = Ground(large.case, made, None, new, sum(found), len(found))
        at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        try:
            with Stage(ground, LOOPBACK) as stage:
                seconds, parts = _measure(stage, ground)
            ground.verify()
        except (RunFailed, P2PlayerError, OSError) as error:
            say(f"  failed: {error}")
            results.add(Run(key, 0, 0, 0, ground.size_bytes, ground.files, {}, str(error), at))
            return False
    results.add(Run(key, seconds, 0, 0, ground.size_bytes, ground.files, parts, None, at))
    peaks = ", ".join(figures.spell_bytes(parts[name]) for name in ("source_peak_bytes", "destination_peak_bytes"))
    say(f"  {key.case}: {figures.spell_s(seconds)}, source and destination took at most {peaks}")
    return True


def _measure(stage: Stage, ground: Ground) -> tuple[float, dict[str, float]]:
    hosts, room = stage.ours[OURS], ground.room("nodes")
    source, node = Node(room, "source", hosts.source), Node(room, "destination", hosts.destination)
    with ExitStack() as stack:
        for one in (source, node):
            stack.callback(one.local.stop)
        source.join(None)
        source.local.start()
        node.join(source.local.must("invite"))
        node.local.start()
        started = time.perf_counter()
        layer = source.json("layer", "add", str(ground.new), "--name", LAYER)["id"]
        added_s = time.perf_counter() - started
        node.wait_for(layer, source)
        started = time.perf_counter()
        node.json("layer", "pull", LAYER)
        node.json("layer", "checkout", LAYER, str(ground.result))
        seconds = time.perf_counter() - started
        peaks = peak_bytes(source.pid), peak_bytes(node.pid)
    names = ("source_peak_bytes", "destination_peak_bytes")
    return seconds, {"add_s": added_s, PEAK_PART: max(peaks), **dict(zip(names, map(float, peaks), strict=True))}
