"""The benchmark's inputs: real data in pairs of an old and a new folder, made once and kept.

Theory of operation
-------------------
`make(name, work, size_mb)` looks for a finished pair in the caller's work folder and returns it at once; else the
case's maker builds it in a folder beside and the finished one is moved into place, so that an interrupted run leaves
nothing that looks finished. One maker works at a time in a work folder. What several cases share (a package archive, an
unpacked CRIU, a tar of the machine's own files) is kept as an *ingredient*, in the same way.

Every maker checks what it made and raises `Spoiled` when it is not what the case is about. A machine that lacks
something (root, a package, the archive) is told by `Unavailable`. Processes, mounts and daemons that a maker needs live
in namespaces of their own (`contained`), which end with it.

- `pair`, `workshop`: the values and the cache
- `contained`, `debs`: processes in namespaces; packages from Debian's archive without touching the system
- `trees`, `files`, `releases`, `database`, `disks`, `machines`, `processes`: the makers
"""

from bench.data.catalog import CASES, DEFAULT_WORK, make
from bench.data.pair import Maker, Pair, Spoiled, Unavailable

__all__ = ["CASES", "DEFAULT_WORK", "Maker", "Pair", "Spoiled", "Unavailable", "make"]
