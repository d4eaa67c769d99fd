"""p2player as a method: two real nodes, driven through the command line.

The source's node runs as long as the stage does and gets the layers of each application when that comes up, as a
publisher's would. The destination's is a new one for each migration: it joins, and has the base layer, and the
application layer where that is to be present, added from folders of its own machine, so that nothing is known or kept
from the migration before. What is present is present as on a node that has run such an application: stored, and
checked out.

Timed is the whole command `p2player migrate`. Then the user returns: the application migrates back.
"""

import contextlib
import itertools
import json
import math
import os
import stat
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from bench.netlab import Host
from bench.paper.engines import Engine
from bench.paper.published import Moved
from bench.paper.workloads import Layers, Watch, Workload
from bench.sync.measured import RunFailed, cpu_s
from p2player.localmesh import LocalMesh, LocalNode

SITE: Final = "paper"
MIGRATE_LIMIT_S: Final = 900.0
SEEN_S: Final = 60.0
IDLE_FOR_S: Final = 0.3
IDLE_WITHIN_S: Final = 10.0


class P2player:
    """The source's node, and what is needed for destinations.

    Args:
        folder: an existing, empty one.
        counted: bytes on the link so far, both directions.
        holders: hosts of further nodes that are to hold the application layer.
    """

    def __init__(
        self,
        folder: Path,
        a: tuple[Host, Engine],
        b: tuple[Host, Engine],
        holders: Sequence[Host],
        counted: Callable[[], int],
    ) -> None:
        self._folder = folder
        self._a = a
        self._b = b
        self._counted = counted
        self._numbers = itertools.count(1)
        self._apps = itertools.count(1)
        self._mesh = LocalMesh(folder, name="paper")
        self._added: dict[tuple[str, Path], str] = {}
        self._source = self._join("a", *a)
        self._holders = [self._join(host.name, host, None) for host in holders]

    def close(self) -> None:
        """End all nodes and what runs on them."""
        self._mesh.close()

    def run(
        self,
        workload: Workload,
        watch: Watch,
        *,
        present: bool,
        back: bool = True,
        dirty_mb_s: float = 0.0,
        memory_mb: int = 0,
    ) -> Moved:
        """Start the application at the source, migrate it, look at it, migrate it back, end it.

        Args:
            present: have the application layer at the destination beforehand.
            back: whether the user returns.
            dirty_mb_s, memory_mb: MB a second that the application is known to rewrite, anywhere in so much memory.
        """
        layers = workload.layers
        node = self._join(f"b{next(self._numbers)}", *self._b)
        name = f"{workload.name}-{next(self._apps)}"
        try:
            base, app = (self._add(self._source, layer, kind) for layer, kind in _kinds(layers))
            self._hold(node, layers.base, "base")
            if present:
                self._hold(node, layers.app, "app")
            for holder in self._holders:
                self._add(holder, layers.app, "app")
            config = self._folder / f"{name}.toml"
            config.write_text(workload.config)
            layer_names = ("--base", base, "--app", app)
            self._source.must(
                "app", "create", name, "--backend", workload.backend, *layer_names, "--config", str(config)
            )
            self._source.must("app", "start", name)
            watch.begin()
            self._settle(node, app)
            os.sync()  # what was prepared is not to be written out while it is measured
            return self._there_and_back(name, node, watch, back=back, dirty_mb_s=dirty_mb_s, memory_mb=memory_mb)
        finally:
            watch.close()
            self._remove(name, node)

    def _there_and_back(
        self, name: str, node: LocalNode, watch: Watch, *, back: bool, dirty_mb_s: float, memory_mb: int
    ) -> Moved:
        row, seconds, moved = self._migrate(self._source, name, node)
        arrived, arrived_at = time.monotonic(), time.time()
        seen = watch.end()
        figures = _figures(row)
        if back:
            watch.begin()
            away_s = time.monotonic() - arrived
            returned, back_s, back_bytes = self._migrate(node, name, self._source)
            written = written_since(self._source.state / "apps", arrived_at)
            home = watch.end()
            figures |= {
                "back_total_s": back_s,
                "back_link_bytes": back_bytes,
                "back_instance_bytes": returned["layers"]["instance"]["transferred"],
                "back_freeze_s": returned["freeze_s"],
                "back_gap_s": home.gap_s,
                "dirtied_bytes": dirtied(dirty_mb_s * 1e6, away_s, back_s, memory_mb * 1e6) + written,
            }
            seen = replace(
                seen,
                kept={**seen.kept, **{f"{what}, back": kept for what, kept in home.kept.items()}},
                notes={**seen.notes, **{f"{what}, back": text for what, text in home.notes.items()}},
            )
        sources = {f"from_{source}_bytes": float(count) for source, count in row["sources"].items()}
        notes = {"warning": row["warning"]} if row["warning"] else {}
        return Moved(seconds, row["freeze_s"], moved, seen, {**figures, **sources}, notes)

    def _migrate(self, at: LocalNode, name: str, to: LocalNode) -> tuple[Any, float, int]:
        before, started = self._counted(), time.perf_counter()
        row = at.json("migrate", name, "--to", to.name, timeout_s=MIGRATE_LIMIT_S)
        seconds = time.perf_counter() - started
        moved = self._counted() - before
        if row["state"] != "done":
            raise RunFailed(f"the migration ended {row['state']}: {row['error']}")
        return row, seconds, moved

    # -- nodes and what they hold

    def _join(self, name: str, host: Host, engine: Engine | None) -> LocalNode:
        node = self._mesh.add(name, SITE, run=False, wrap=_wrap(host, engine), address=host.address)
        if engine is not None:
            (node.state / "config.toml").write_text(_settings(engine))
        node.start()
        return node

    def _add(self, node: LocalNode, layer: Path, kind: str) -> str:
        """Have a publisher hold a layer; its id."""
        if (node.name, layer) not in self._added:
            name = f"{kind}-{len(self._added)}-{node.name}"
            row = node.json("layer", "add", str(layer), "--name", name, "--kind", kind, timeout_s=300)
            self._added[node.name, layer] = row["id"]
        return self._added[node.name, layer]

    def _hold(self, node: LocalNode, layer: Path, kind: str) -> None:
        """Have a destination hold a layer, checked out where the node itself would put it."""
        row = node.json("layer", "add", str(layer), "--name", f"{kind}-{node.name}", "--kind", kind, timeout_s=300)
        node.must("layer", "checkout", row["id"], str(node.state / "checkouts" / row["id"]), timeout_s=300)

    def _settle(self, node: LocalNode, app: str) -> None:
        """Return once a destination knows who holds the application layer, the source knows it, and all are idle."""
        holders = {self._source.name, *(holder.name for holder in self._holders)}
        deadline = time.monotonic() + SEEN_S
        while not (
            _alive(self._source, node.name)
            and all(_alive(node, name) for name in holders)
            and holders <= _holders(node, app)
        ):
            if time.monotonic() > deadline:
                raise RunFailed(f"{node.name} and the others did not hear of each other within {SEEN_S:g} s")
            time.sleep(0.1)
        pids = [one.process.pid for one in (self._source, node, *self._holders) if one.process is not None]
        deadline = time.monotonic() + IDLE_WITHIN_S
        while time.monotonic() < deadline:
            before = [cpu_s(pid) for pid in pids]
            time.sleep(IDLE_FOR_S)
            if all(cpu_s(pid) - was < 0.02 for pid, was in zip(pids, before, strict=True)):
                return

    def _remove(self, name: str, node: LocalNode) -> None:
        """End the application wherever it is, and the destination's node for good."""
        for one in (self._source, node):
            listed = one.cli("apps", "--json", timeout_s=30)
            rows = json.loads(listed.stdout) if listed.returncode == 0 else []
            if any(row["name"] == name and row["node"] == one.name for row in rows):
                one.cli("app", "stop", name)
                one.cli("app", "rm", name)
        node.cli("leave", timeout_s=30)
        node.stop()
        self._mesh.nodes.pop(node.name)


def dirtied(bytes_s: float, away_s: float, back_s: float, memory_bytes: float) -> float:
    """How much an application dirtied that writes to its memory all the time, a page at a time, anywhere.

    What it wrote several times before it was called back counts once; what it writes on its way back moves, and is
    dirtied anew.
    """
    if not memory_bytes:
        return 0.0
    return memory_bytes * (1 - math.exp(-bytes_s * away_s / memory_bytes)) + bytes_s * back_s


def written_since(apps: Path, moment: float) -> int:
    """Bytes of the files that containers of a node wrote since then; a disk of a virtual machine tells nothing."""
    total = 0
    for upper in apps.glob("*/state/upper"):
        for folder, _, names in os.walk(upper / "rootfs" if (upper / "rootfs").is_dir() else upper):
            for name in names:
                with contextlib.suppress(OSError):
                    found = os.lstat(os.path.join(folder, name))
                    total += found.st_size if stat.S_ISREG(found.st_mode) and found.st_mtime > moment else 0
    return total


def _kinds(layers: Layers) -> tuple[tuple[Path, str], tuple[Path, str]]:
    return (layers.base, "base"), (layers.app, "app")


def _alive(node: LocalNode, other: str) -> bool:
    return any(row["name"] == other and row["state"] == "alive" for row in node.json("peers"))


def _holders(node: LocalNode, layer: str) -> set[str]:
    return {name for row in node.json("layers") if row["id"] == layer for name in row["holders"]}


def _figures(row: Mapping[str, Any]) -> dict[str, float]:
    """What the product itself says of a migration."""
    told = {name: float(row[name]) for name in ("freeze_s", "longest_freeze_s", "rounds")}
    told |= {f"{layer}_bytes": float(counts["transferred"]) for layer, counts in row["layers"].items()}
    told |= {"told_total_s": float(row["total_s"]), "told_bytes": float(row["bytes"]["transferred"])}
    told |= {"instance_size_bytes": float(row["layers"]["instance"]["total"])}
    prediction = row["prediction"] or {}
    return told | {f"predicted_{name}": float(prediction[name]) for name in _PREDICTED if name in prediction}


_PREDICTED: Final = ("total_s", "freeze_s", "transferred")


def _wrap(host: Host, engine: Engine | None) -> Callable[[Sequence[str]], list[str]]:
    if engine is None:
        return host.command
    own = [f"{name}={value}" for name, value in engine.environment.items() if os.environ.get(name) != value]
    return lambda words: engine.command(["env", *own, *words])


def _settings(engine: Engine) -> str:
    """The node's configuration file."""
    settings = engine.settings
    values = {
        "criu": settings.criu,
        "lxd_socket": settings.lxd_socket,
        "lxd_pool": settings.lxd_pool,
        "libvirt_uri": settings.libvirt_uri,
    }
    lines = [f"{name} = {json.dumps(str(value))}\n" for name, value in values.items() if value is not None]
    return "[engines]\n" + "".join(lines) if lines else ""
