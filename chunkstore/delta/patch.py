"""Write new bytes down as what they differ from old ones in, and read that back.

Theory of operation
-------------------
A *unit* is some chunks that one end wants (the targets) and some old chunks that resemble them (the relative), at most
4 and 8 MiB. `matching` finds what occurs in both, `resemblance` what changed in little; the rest is literal. Ops say so
(see `ops`), and follow the wire in two zstd frames:

    way      one byte: 0 PLAIN, 1 SPARSE, 2 DENSE
    size     varint, bytes of the next frame; SPARSE and DENSE only
    frame    ops, then the differences of all CHANGE ops; SPARSE and DENSE only
    frame    all literals; absent if there are none. PLAIN: the whole target

Differences and literals are kept apart because they have nothing in common: one is mostly zeros. Where the sender has
the relative too and the link is not too fast for it (see `levels`), literals are compressed with a dictionary of those
bytes of the relative that no op reads: the old versions of just these literals, in all likelihood. Differences are
taken byte by byte, modulo 256, and not bit by bit, since what changes in memory and in programs are mostly numbers, and
many by the same amount (Percival, "Naive Differences of Executable Code", 2003).

A unit stands by itself: one that is lost or refused spoils no other. Units that shared their history would be 1 %
smaller.

Nothing here is believed by the receiver: what comes out is verified by the digests of its chunks. The decoder's memory
is bounded by the target's size and the relative's, whatever the patch says, because frames declare their size and ops
are limited to a 64th of the target. The encoder compresses the target plainly where that takes fewer bytes; it tries if
the target is small, if ops explain little each, or if a sample of what they explain shrinks to next to nothing.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from enum import IntEnum
from functools import partial
from typing import Final

from chunkstore import codec
from chunkstore.delta.bytewise import add, subtract
from chunkstore.delta.errors import BadPatch
from chunkstore.delta.finecuts import all_pages, fine_cuts
from chunkstore.delta.levels import way_for
from chunkstore.delta.matching import HeldRelative, Match, cuts_for_signature, matches_by_signature
from chunkstore.delta.ops import Kind, Op, decode_ops, encode_ops, put_varint, take_varint
from chunkstore.delta.resemblance import Gaps
from chunkstore.delta.signature import Signature
from chunkstore.digest import Buffer
from chunkstore.errors import BadGroup

_SMALL_BYTES: Final = 64 << 10
_SAMPLE_BYTES: Final = 32 << 10
_SAMPLES: Final = 4
_EXPLAINS: Final = 128  # bytes that a byte of ops should explain: fewer, and it may be cheaper to repeat them
_DICTIONARY_LEAST: Final = 64
_DICTIONARY_MOST: Final = 16  # times the literals: to index more takes longer than it saves
_UNRELATED: Final = 0.3  # dense literals that shrink less than this may do better alone

_GapOps = Callable[[int, int, Match | None, Match | None], Iterable[Op]]


class _Form(IntEnum):
    """The first byte of a patch."""

    PLAIN = 0
    SPARSE = 1
    DENSE = 2


class PatchEncoder:
    """Makes patches for one link; to be used by one thread at a time.

    Args:
        rate: bytes a second that the link takes; None if unknown.
    """

    def __init__(self, rate: float | None) -> None:
        self._way = way_for(rate)

    def encode(
        self, targets: Sequence[Buffer], relative: Sequence[Buffer] | Signature, cuts: Sequence[int] = ()
    ) -> bytes:
        """A patch that makes the targets out of the relative.

        Args:
            targets: chunks.
            relative: old chunks, if they are here; else what the other end told of them.
            cuts: the lengths of the pieces of the old chunks, all together, that the targets are known to have.

        Returns:
            At most a few bytes more than one zstd frame of the targets.
        """
        data = b"".join(targets)
        if isinstance(relative, Signature):
            matches = matches_by_signature(data, cuts_for_signature(targets, relative), relative)
            ops, held = list(_fill(matches, len(data), _literal)), b""
        else:
            held, ops = _compare(targets, data, relative, cuts, by_page=self._way.by_page)
        return self._pack(data, ops, held)

    def _plain(self, data: bytes) -> bytes:
        frame = codec.compress(data, self._way.literals) if data else b""
        return bytes((_Form.PLAIN,)) + frame

    def _pack(self, data: bytes, ops: Sequence[Op], held: bytes) -> bytes:
        script = encode_ops(ops)
        if len(script) > _most_script(len(data)):
            return self._plain(data)
        form, frame = self._literals(b"".join(_literal_bytes(data, ops)), b"".join(_unread(ops, held)), len(data))
        if form is _Form.SPARSE and all(op.kind is Kind.LITERAL for op in ops):
            return bytes((_Form.PLAIN,)) + frame
        changes = codec.compress(script + _differences(data, ops, held), self._way.changes)
        patch = bytearray((form,))
        put_varint(len(changes), patch)
        patch += changes
        patch += frame
        if _plain_may_win(data, ops, len(script), len(changes)):
            return min(self._plain(data), bytes(patch), key=len)
        return bytes(patch)

    def _literals(self, literals: bytes, dictionary: bytes, raw_bytes: int) -> tuple[_Form, bytes]:
        if not literals:
            return _Form.SPARSE, b""
        frame: bytes | None = None
        level = self._way.dictionary if len(literals) <= self._way.up_to * raw_bytes else None
        if level is not None and _DICTIONARY_LEAST <= len(dictionary) <= _DICTIONARY_MOST * len(literals):
            frame = codec.compress_against(literals, dictionary, level)
            if len(frame) <= _UNRELATED * len(literals):
                return _Form.DENSE, frame
        plain = codec.compress(literals, self._way.literals)
        return (_Form.SPARSE, plain) if frame is None or len(plain) <= len(frame) else (_Form.DENSE, frame)


class PatchDecoder:
    """Applies patches; to be used by one thread at a time."""

    def decode(self, patch: Buffer, raw_bytes: int, relative: Sequence[Buffer]) -> bytes:
        """The targets, in one piece.

        Args:
            patch: from a peer.
            raw_bytes: length of all targets together.
            relative: old chunks, in the order in which the encoder or the signature had them.

        Returns:
            Exactly `raw_bytes`, which are not verified.

        Raises:
            BadPatch: the patch is malformed, or not for this.
        """
        try:
            return _apply(memoryview(patch), raw_bytes, relative)
        except BadGroup as error:
            raise BadPatch(f"patch with a bad frame: {error}") from error


def _compare(
    targets: Sequence[Buffer], data: bytes, relative: Sequence[Buffer], cuts: Sequence[int], *, by_page: bool
) -> tuple[bytes, list[Op]]:
    """The relative in one piece, and ops that make `data` of it."""
    held = None
    if by_page and targets and not cuts and all_pages(targets) and all_pages(relative):
        held = HeldRelative(relative, pages=True)
    pages = held is not None and held.knows(targets[0])  # else it only has that length
    if held is None or not pages:
        held = HeldRelative(relative, cuts=cuts)
    pieces = [length for chunk in targets for length in fine_cuts(chunk, pages=pages)]
    gaps = Gaps(data, held.data, pieces, [len(chunk) for chunk in targets], [len(chunk) for chunk in relative])
    return held.data, list(_fill(held.matches(data, pieces), len(data), gaps.ops))


def _literal(at: int, end: int, before: Match | None, behind: Match | None) -> Iterator[Op]:
    yield Op(Kind.LITERAL, end - at)


def _fill(matches: Iterable[Match], size: int, gap_ops: _GapOps) -> Iterator[Op]:
    """Ops for the whole target: copies for the matches, and what `gap_ops` gives for what lies between them."""
    before: Match | None = None
    at = 0
    for match in matches:
        if match.at > at:
            yield from gap_ops(at, match.at, before, match)
        yield Op(Kind.COPY, match.length, match.offset)
        before, at = match, match.end
    if at < size:
        yield from gap_ops(at, size, before, None)


def _most_script(raw_bytes: int) -> int:
    """Bytes that ops may take."""
    return raw_bytes // 64 + 64


def _differences(data: bytes, ops: Iterable[Op], held: bytes) -> bytes:
    """What CHANGE ops add, one after the other."""
    new, old = list[bytes](), list[bytes]()
    at = 0
    for op in ops:
        if op.kind is Kind.CHANGE:
            new.append(data[at : at + op.length])
            old.append(held[op.offset : op.offset + op.length])
        at += op.length
    return subtract(b"".join(new), b"".join(old))


def _literal_bytes(data: bytes, ops: Iterable[Op]) -> Iterator[bytes]:
    at = 0
    for op in ops:
        if op.kind is Kind.LITERAL:
            yield data[at : at + op.length]
        at += op.length


def _unread(ops: Iterable[Op], held: bytes) -> Iterator[bytes]:
    """The parts of the relative that no op reads, in order."""
    at = 0
    for offset, end in sorted((op.offset, op.offset + op.length) for op in ops if op.kind is not Kind.LITERAL):
        if offset > at:
            yield held[at:offset]
        at = max(at, end)
    yield held[at:]


def _plain_may_win(data: bytes, ops: Sequence[Op], script_bytes: int, cost: int) -> bool:
    """Whether what ops explain might take fewer than `cost` bytes if it were compressed like everything else."""
    if len(data) <= _SMALL_BYTES:
        return True
    explained = list[tuple[int, int]]()
    at = total = 0
    for op in ops:
        if op.kind is not Kind.LITERAL:
            explained.append((at, op.length))
            total += op.length
        at += op.length
    if script_bytes * _EXPLAINS > total:
        return True
    some = explained[:: len(explained) // _SAMPLES or 1]
    sample = b"".join(data[at : at + min(length, _SAMPLE_BYTES)] for at, length in some)
    return len(codec.compress(sample, 1)) * total < 2 * cost * len(sample)


def _apply(patch: memoryview, raw_bytes: int, relative: Sequence[Buffer]) -> bytes:
    if not patch or patch[0] not in tuple(_Form):
        raise BadPatch("not a patch")
    form = _Form(patch[0])
    if form is _Form.PLAIN:
        return _expand(patch[1:], raw_bytes)
    size, at = take_varint(patch, 1)
    if size > len(patch) - at:
        raise BadPatch(f"frame of {size} bytes in a patch of {len(patch)}")
    script = codec.decompress(patch[at : at + size], raw_bytes + _most_script(raw_bytes))
    held = b"".join(relative)
    ops, end = decode_ops(script, raw_bytes, len(held), _most_script(raw_bytes))
    due = sum(op.length for op in ops if op.kind is Kind.LITERAL)
    dictionary = b"".join(_unread(ops, held)) if form is _Form.DENSE else b""
    literals = _expand(patch[at + size :], due, dictionary)
    old = b"".join(held[op.offset : op.offset + op.length] for op in ops if op.kind is Kind.CHANGE)
    if len(script) != end + len(old):
        raise BadPatch(f"{len(script) - end} bytes of differences where {len(old)} are due")
    return b"".join(_made(ops, held, memoryview(add(old, memoryview(script)[end:])), memoryview(literals)))


def _expand(frame: Buffer, raw_bytes: int, dictionary: bytes = b"") -> bytes:
    """The content of a frame, which is exactly `raw_bytes`; no frame is the content of none."""
    if not raw_bytes and not frame:
        return b""
    decompress = partial(codec.decompress_against, relative=dictionary) if dictionary else codec.decompress
    raw = decompress(frame, max_bytes=raw_bytes)
    if len(raw) != raw_bytes:
        raise BadPatch(f"frame of {len(raw)} bytes where {raw_bytes} are due")
    return raw


def _made(ops: Iterable[Op], held: bytes, changed: memoryview, literals: memoryview) -> Iterator[Buffer]:
    """What each op makes, in order."""
    view = memoryview(held)
    for op in ops:
        if op.kind is Kind.COPY:
            yield view[op.offset : op.offset + op.length]
        elif op.kind is Kind.CHANGE:
            yield changed[: op.length]
            changed = changed[op.length :]
        else:
            yield literals[: op.length]
            literals = literals[op.length :]
