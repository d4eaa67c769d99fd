"""Which chunks are still wanted, who holds them, and which of them nobody was asked for yet.

Theory of operation
-------------------
A want is known by its *position* in the order of the manifest, so that neighbours in the layer are neighbours here and
usually lie in the same stored group of a holder. Each position is IDLE, ASKED or DONE.

Every holder has one bit; the set of holders of a position is then an integer, its *mask*. Idle positions are kept as
runs `(start, stop)` in order under their mask: with full holders that is a single run, however large the layer is, and
a holder that joins or leaves costs one pass over the runs and not over the chunks. `rarest` gives the masks that a
holder can serve, fewest holders first; `take` cuts neighbours out of a mask's runs.

Runs may hold positions that are no longer idle (a peer sent more than it was asked for): `take` skips those.

Many nodes may pull one layer at the same time. What only the whole copies have, each should take another part of, so
that every chunk leaves those once and the rest goes from puller to puller. Who knows nobody begins at a random place.
Who knows the others begins with its *part*, one of as many equal ones as there are pullers (`divide`). When that is
done it helps with a part of the others, towards the end of some long run: its owner works from the front.
"""

from array import array
from bisect import bisect_left
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from random import Random
from typing import Final

from chunkstore.digest import ChunkId
from gossip.messages import NodeId

IDLE: Final = 0
ASKED: Final = 1
DONE: Final = 2

Run = tuple[int, int]


@dataclass(slots=True)
class _Holding:
    """What one holder is believed to have: all (`have` is None) or the marked positions, less what it denied."""

    bit: int
    have: bytes | None
    lacks: set[int] = field(default_factory=set)

    def holds(self, position: int) -> bool:
        return (self.have is None or bool(self.have[position])) and position not in self.lacks


class WantTable:
    """The wanted chunks of one transfer.

    Args:
        wants: chunk id -> length in bytes, in the order of the manifest.
        rng: decides where to begin, until `divide` does, and whose part to help with.
        starts: one byte a want, 1 where a stored group probably begins; None when unknown.
        costs: bytes that each want is expected to need on the wire, where that is not its length.

    Attributes:
        ids, lengths: of each position; the length is what all sums of bytes here are made of: its cost if there is one.
    """

    def __init__(
        self,
        wants: Mapping[ChunkId, int],
        rng: Random,
        starts: bytes | None = None,
        costs: Sequence[int] | None = None,
    ) -> None:
        self._starts = starts
        self.ids: list[ChunkId] = list(wants)
        self.lengths: array[int] = array("L", wants.values() if costs is None else costs)
        self._before = array("Q", accumulate(self.lengths, initial=0))
        self.total_bytes = self._before[-1]
        self.idle_bytes = self.total_bytes
        self.left = len(self.ids)
        self._position = {chunk: position for position, chunk in enumerate(self.ids)}
        self._state = bytearray(len(self.ids))
        self._rng = rng
        self._holdings: dict[NodeId, _Holding] = {}
        self._runs: dict[int, list[Run]] = {}
        self._idle: dict[int, int] = {}
        self._part = (0, 0)
        if self.ids:
            start = self._group_of(rng.randrange(len(self.ids)))
            self._part = (start, start)
            self._runs[0] = [(0, len(self.ids))]
            self._idle[0] = self.total_bytes

    def position(self, chunk: ChunkId) -> int | None:
        """Where `chunk` stands; None when it was never wanted."""
        return self._position.get(chunk)

    def state(self, position: int) -> int:
        """IDLE, ASKED or DONE."""
        return self._state[position]

    def missing(self) -> Iterator[ChunkId]:
        """What is not DONE, in order."""
        return (chunk for chunk, state in zip(self.ids, self._state, strict=True) if state != DONE)

    def marks(self, chunks: Collection[ChunkId]) -> bytes:
        """What `add_holder` takes for a holder of just these: one byte a position, 1 where held and else 0."""
        return bytes(chunk in chunks for chunk in self.ids)

    def add_holder(self, peer: NodeId, have: bytes | None) -> None:
        """`peer` claims the marked positions (see `marks`), or everything when None.

        A second claim of the same peer replaces the first, denials included.

        Raises:
            ValueError: the marks are not one byte a position.
        """
        if have is not None and len(have) != len(self.ids):
            raise ValueError(f"{len(have)} marks for {len(self.ids)} wants")
        self.remove_holder(peer)
        used = {holding.bit for holding in self._holdings.values()}
        bit = next(1 << index for index in range(len(used) + 1) if 1 << index not in used)
        self._holdings[peer] = _Holding(bit, have)
        if have is None:
            self._runs = {mask | bit: runs for mask, runs in self._runs.items()}
            self._idle = {mask | bit: idle for mask, idle in self._idle.items()}
            return
        old, self._runs, self._idle = self._runs, {}, {}
        for mask, runs in old.items():
            for start, stop in runs:
                for begin, end, held in _stretches(start, stop, have):
                    self._append(mask | bit if held else mask, begin, end)

    def remove_holder(self, peer: NodeId) -> None:
        """Forget what `peer` claimed; unknown peers are ignored."""
        holding = self._holdings.pop(peer, None)
        if holding is None:
            return
        for mask in [mask for mask in self._runs if mask & holding.bit]:
            runs, idle, rest = self._runs.pop(mask), self._idle.pop(mask), mask & ~holding.bit
            self._runs[rest] = sorted(self._runs[rest] + runs) if rest in self._runs else runs
            self._idle[rest] = self._idle.get(rest, 0) + idle

    def deny(self, peer: NodeId, positions: Iterable[int]) -> None:
        """`peer` answered that it lacks these. They must not be idle at the moment: put them back afterwards."""
        holding = self._holdings.get(peer)
        if holding is not None:
            holding.lacks.update(positions)

    def holds(self, peer: NodeId, position: int) -> bool:
        """Whether `peer` claims the chunk at `position`."""
        holding = self._holdings.get(peer)
        return holding is not None and holding.holds(position)

    def rarest(self, peer: NodeId) -> list[int]:
        """Masks of idle chunks that `peer` holds: fewest holders first, then as they came."""
        holding = self._holdings.get(peer)
        if holding is None:
            return []
        masks = [mask for mask, idle in self._idle.items() if mask & holding.bit and idle]
        return sorted(masks, key=int.bit_count)

    def idle(self, mask: int) -> int:
        """Bytes of idle chunks of `mask`."""
        return self._idle.get(mask, 0)

    def sharers(self, mask: int) -> list[NodeId]:
        """The holders that `mask` stands for."""
        return [peer for peer, holding in self._holdings.items() if mask & holding.bit]

    @property
    def orphaned(self) -> bool:
        """Whether no idle chunk is held by anybody."""
        return not any(idle for mask, idle in self._idle.items() if mask)

    def take(self, mask: int, max_bytes: int, max_chunks: int) -> list[int]:
        """Mark neighbouring idle chunks of `mask` as ASKED: at least one, then while they fit into both limits.

        They are the first ones of this node's part (`divide`), or those that follow it in a circle.

        What would end within a stored group ends before it instead, if that leaves half.
        """
        runs, taken, size = self._runs[mask], list[int](), 0
        whole, whole_bytes = 0, 0
        at = self._first(mask, runs) if runs else 0
        while runs:
            at %= len(runs)
            start, stop = runs[at]
            position = start
            while position < stop:
                length = self.lengths[position]
                if self._state[position] == IDLE:
                    if self._starts is not None and self._starts[position]:
                        whole, whole_bytes = len(taken), size
                    if taken and (size + length > max_bytes or len(taken) >= max_chunks):
                        break
                    self._state[position] = ASKED
                    taken.append(position)
                    size += length
                position += 1
            if position < stop:
                runs[at] = (position, stop)
                break
            del runs[at]
        self.idle_bytes -= size
        self._idle[mask] -= size
        if runs and whole < len(taken) and 2 * whole_bytes >= size:
            self.put_back(taken[whole:])
            del taken[whole:]
        return taken

    def divide(self, number: int, of: int) -> None:
        """Take what only whole copies have from part `number`, from 0, of `of` equal parts first."""
        begin, end = (len(self.ids) * at // of for at in (number, number + 1))
        self._part = (self._group_of(begin), self._group_of(end) if number + 1 < of else end)

    def _first(self, mask: int, runs: list[Run]) -> int:
        """The index of the run to begin with, which is cut in two where the beginning is within it."""
        begin, end = self._part
        at = self._cut(runs, begin)
        partial = (holding.bit for holding in self._holdings.values() if holding.have is not None)
        if begin == end or mask & sum(partial) or (at < len(runs) and runs[at][0] < end):
            return at
        start, stop = max(self._rng.sample(runs, min(2, len(runs))), key=lambda run: run[1] - run[0])
        return self._cut(runs, max(self._group_of(self._rng.randrange((start + stop) // 2, stop)), start))

    def _cut(self, runs: list[Run], position: int) -> int:
        """The index of the first run that begins at `position` or later."""
        at = bisect_left(runs, (position, 0))
        if at and runs[at - 1][1] > position:
            start, stop = runs[at - 1]
            runs[at - 1 : at] = [(start, position), (position, stop)]
        return at

    def _group_of(self, position: int) -> int:
        """Where the stored group of `position` begins."""
        return position if self._starts is None else max(self._starts.rfind(1, 0, position + 1), 0)

    def put_back(self, positions: Iterable[int]) -> None:
        """Make ASKED positions idle again. DONE ones stay done, idle ones idle."""
        back = sorted((position for position in positions if self._state[position] == ASKED), reverse=True)
        for position in back:
            self._state[position] = IDLE
            mask = self._mask(position)
            runs = self._runs.setdefault(mask, [])
            at = bisect_left(runs, (position, 0))
            if at < len(runs) and runs[at][0] == position + 1:
                runs[at] = (position, runs[at][1])
            else:
                runs.insert(at, (position, position + 1))
            self.idle_bytes += self.lengths[position]
            self._idle[mask] = self._idle.get(mask, 0) + self.lengths[position]

    def finish(self, position: int) -> bool:
        """Mark a position DONE; False when it was already."""
        state = self._state[position]
        if state == DONE:
            return False
        if state == IDLE:
            self.idle_bytes -= self.lengths[position]
            self._idle[self._mask(position)] -= self.lengths[position]
        self._state[position] = DONE
        self.left -= 1
        return True

    def _mask(self, position: int) -> int:
        return sum(holding.bit for holding in self._holdings.values() if holding.holds(position))

    def _append(self, mask: int, start: int, stop: int) -> None:
        runs = self._runs.setdefault(mask, [])
        if runs and runs[-1][1] == start:
            runs[-1] = (runs[-1][0], stop)
        else:
            runs.append((start, stop))
        self._idle[mask] = self._idle.get(mask, 0) + self._idle_between(start, stop)

    def _idle_between(self, start: int, stop: int) -> int:
        if self._state.count(IDLE, start, stop) == stop - start:
            return self._before[stop] - self._before[start]
        return sum(self.lengths[at] for at in range(start, stop) if self._state[at] == IDLE)


def _stretches(start: int, stop: int, marks: bytes) -> Iterator[tuple[int, int, bool]]:
    """Cut a run where `marks` changes: (begin, end, whether it is marked)."""
    begin = start
    while begin < stop:
        held = bool(marks[begin])
        end = marks.find(0 if held else 1, begin, stop)
        end = stop if end < 0 else end
        yield begin, end, held
        begin = end
