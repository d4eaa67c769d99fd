"""All that the methods of one stage need, made when it is first asked for: hosts, engines, nodes."""

from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Self

from bench.paper.engines import Engine, open_engine
from bench.paper.ours import P2player
from bench.paper.plan import Cell
from bench.paper.published import Place, Rsync
from bench.paper.stage import Stage


class Ground:
    """Two hosts with their engines, from entering the block to leaving it; what is made here ends with it.

    Args:
        cell: any one of those that are to be measured here.
        folder: an existing, empty one.

    Attributes:
        stage: hosts and links.
        source, destination: the engines in `a` and `b`.
        notes: versions of the engine, and what it says of itself.
    """

    def __init__(self, cell: Cell, folder: Path) -> None:
        self.folder = folder
        self._cell = cell
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        cell = self._cell
        with ExitStack() as stack:
            self.stage = stack.enter_context(Stage(self.folder, cell.mbit, cell.delay_ms, cell.holders))
            engines: list[Engine] = []
            for host in (self.stage.a, self.stage.b):
                room = self.folder / f"e{host.name}"
                room.mkdir()
                engines.append(stack.enter_context(open_engine(cell.platform, room, host.name, host)))
            self.source, self.destination = engines
            probe = self.source.backend.probe()
            if not probe.available:
                raise EngineAbsent(f"{cell.platform} cannot be used here: {probe.reason}")
            self.notes = {cell.platform: probe.version or "unknown"}
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def counted(self) -> int:
        """Bytes on the link so far, both directions, by the destination's interface."""
        return self.stage.moved().total

    def rsync(self, *, compress: bool) -> Rsync:
        """The published method."""
        return Rsync(*self.places, self.stage.ssh, self.counted, compress=compress)

    @cached_property
    def p2player(self) -> P2player:
        """The source's node; it ends with the ground, before the engines do."""
        folder = self.folder / "m"
        folder.mkdir()
        stage = self.stage
        ends = (stage.a, self.source), (stage.b, self.destination)
        made = P2player(folder, *ends, stage.others, self.counted)
        self._stack.callback(made.close)
        return made

    @cached_property
    def places(self) -> tuple[Place, Place]:
        places = []
        for host, engine in ((self.stage.a, self.source), (self.stage.b, self.destination)):
            folder = self.folder / f"r{host.name}"
            folder.mkdir()
            places.append(Place(host, engine, folder))
        return places[0], places[1]


class EngineAbsent(Exception):
    """The engine of a platform cannot be used on this machine; the text says why."""
