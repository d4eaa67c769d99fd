"""The layer service of one node with a real store and a real ledger, and nobody to pull from."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from chunkstore.digest import LayerId
from chunkstore.store import ChunkStore
from gossip.ledger import Ledger
from gossip.messages import NodeId
from p2player import errors
from p2player.events import EventBus
from p2player.layers import Layers
from p2player.log import Log
from p2player.transfer import PullReport, Relative
from p2player.upkeep import Disk, Upkeep
from tests.support.content import Clock
from tests.support.ledgers import ledger

DISK_BYTES = 1_000_000


class OffThread:
    """A store that may be asked in worker threads only; `asked` has the names of the methods."""

    key = None

    def __init__(self, store: ChunkStore) -> None:
        self._store = store
        self._home = threading.get_ident()
        self.asked: list[str] = []

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def ask(*args: Any, **kwargs: Any) -> Any:
            assert threading.get_ident() != self._home, f"{name} was called in the trio thread"
            self.asked.append(name)
            return getattr(self._store, name)(*args, **kwargs)

        return ask


class Nobody:
    """In the place of the mesh, the pool, the transfers and the presence: this node is alone, and has all it needs."""

    def __init__(self, me: NodeId) -> None:
        self.me = me
        self.on_the_way: set[LayerId] = set()
        self.published = 0
        self.news = 0
        self.arriving = 0
        self.old_layers: list[LayerId] = []

    async def relatives(self, layer: LayerId) -> list[Relative]:
        """What `old_layers` says."""
        return [Relative(old, lambda node: False) for old in self.old_layers]

    def alive(self) -> list[Any]:
        """No other nodes."""
        return []

    def name_of(self, node: NodeId) -> str:
        """The id stands for the name."""
        return node

    async def publish(self) -> None:
        """Tell nobody."""
        self.published += 1

    def changed(self) -> None:
        """Note that there is something to tell."""
        self.news += 1

    async def pull_layer(
        self, layer: LayerId, holders: object, *, progress: Callable[[int, int], None], **options: object
    ) -> PullReport:
        """All is here but what `arriving` brings, byte by byte."""
        for done in range(self.arriving):
            progress(done + 1, self.arriving)
        return PullReport(total=self.arriving, duplicates=self.arriving // 2)

    def pulling(self) -> set[LayerId]:
        """What a test says is on its way."""
        return self.on_the_way

    async def call(self, *args: object, **kwargs: object) -> dict[str, Any]:
        """Nobody answers."""
        raise errors.Unreachable("nobody is there")


class Room:
    """A node's layers and their upkeep.

    Attributes:
        in_use: what the apps of this node need.
        others_bytes: what others have on the disk, which holds a million bytes.
    """

    def __init__(self, store: ChunkStore, folder: Path, clock: Clock) -> None:
        self.store = store
        self.asked = OffThread(store)
        self.ledger: Ledger = ledger(1)
        self.nobody = Nobody(self.ledger.node)
        self.in_use: set[LayerId] = set()
        self.others_bytes = 0
        self.trees = folder / "checkouts"
        alone = cast(Any, self.nobody)
        log = Log(level="error")
        self.layers = Layers(
            cast(ChunkStore, self.asked),
            self.ledger,
            alone,
            alone,
            alone,
            alone,
            EventBus(),
            log,
            trees=self.trees,
            in_use=self._used,
        )
        self.upkeep = Upkeep(
            cast(ChunkStore, self.asked),
            self.ledger,
            self.layers,
            alone,
            log,
            me=self.ledger.node,
            root=folder,
            high=0.9,
            low=0.8,
            in_use=self._used,
            disk=self._disk,
            wall=clock,
        )

    def waiting(self) -> bool:
        """Whether the upkeep has done its work and waits for the next pull."""
        return self.layers._fetched.statistics().tasks_waiting > 0

    def _used(self) -> set[LayerId]:
        return self.in_use

    def _disk(self, _path: Path) -> Disk:
        return Disk(DISK_BYTES, DISK_BYTES - self.others_bytes - self.store.stats().stored_bytes)


@contextmanager
def room(folder: Path, clock: Clock) -> Iterator[Room]:
    """A room whose store is in `folder`."""
    with ChunkStore.open(folder / "store", clock=clock) as store:
        yield Room(store, folder, clock)
