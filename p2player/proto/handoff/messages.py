"""What the two ends of a migration say to each other.

Every message may be lost, repeated or overtaken: the machines live with all three. The source *requests* with a
growing `step` number and repeats the request until an answer bears that number; only one request is open at a time.
After the grant there are no steps: those messages mean the same however often they come.

    source -> destination   Offer Sync Round · Grant · Commit Abort Supersede · Alive
    destination -> source   Welcome Synced Rounded Ready · Progress · Restored Failed · Closed
"""

import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Annotated

from p2player.proto.handoff import fields
from p2player.proto.handoff.fields import Flag, Malformed, Maybe, Nested, OneOf, Raw, Real, Table, Text, Texts, Whole

MAX_NAME_CHARS = 255
MAX_REASON_CHARS = 1024
MAX_RECORD_BYTES = 512 << 10
MAX_ROW_CHARS = 32 << 10
MAX_SOURCES = 256
MAX_MANIFEST_CHUNKS = 16384
MAX_FRESH = 8192
MAX_OUTLINE_BYTES = 512 << 10
MAX_CHUNK_BYTES = 1 << 20
FACTS = Texts(64, Text(64), Text(4096), 64 << 10)
MEMORY_FACT = "memory_bytes"
MAX_MEMORY_BYTES = 1 << 50

_CHUNK = struct.Struct("!32sI")

AppId = Annotated[str, Text(32, hex_digits=32)]
Node = Annotated[str, Text(32, hex_digits=32)]
Digest = Annotated[bytes, Raw(32, 32)]
Bytes = Annotated[int, Whole()]
Seconds = Annotated[float, Real()]
Epoch = Annotated[int, Whole(0, 1 << 53)]
StepNumber = Annotated[int, Whole(1, 1 << 20)]
Reason = Annotated[str, Text(MAX_REASON_CHARS)]
Code = Annotated[str, Text(32)]


class Mode(StrEnum):
    """How the instance layer moves: while the app runs, with a short suspension; or all of it while it is stopped."""

    LIVE = "live"
    COLD = "cold"


@dataclass(frozen=True, slots=True)
class Pulled:
    """What one layer, or one image of it, cost the destination.

    Attributes:
        total: bytes that the destination needed.
        deduplicated: of these, bytes that it had already.
        transferred: bytes on the wire, both directions, for what it lacked.
        sources: bytes of content that each node (its id) delivered.
        seconds: from the request until all of it was there and verified.
    """

    total: Bytes = 0
    deduplicated: Bytes = 0
    transferred: Bytes = 0
    sources: Annotated[Mapping[str, int], Table(Text(32, hex_digits=32), Whole(), MAX_SOURCES)] = field(
        default_factory=dict
    )
    seconds: Seconds = 0.0

    @property
    def fetched(self) -> int:
        """Uncompressed bytes that had to come over the wire."""
        return max(self.total - self.deduplicated, 0)


@dataclass(frozen=True, slots=True)
class Need:
    """Of a layer of `total` bytes, the destination lacks `missing`."""

    total: Bytes = 0
    missing: Bytes = 0


@dataclass(frozen=True, slots=True)
class Chunk:
    """One chunk of an image: its keyed digest, and its length in bytes."""

    id: bytes
    length: int


@dataclass(frozen=True, slots=True)
class Packed:
    """At most `limit` chunks, as one row of bytes: 32 of the id and 4 of the length each."""

    limit: int

    def dump(self, value: Iterable[Chunk]) -> object:
        return b"".join(_CHUNK.pack(chunk.id, chunk.length) for chunk in value)

    def load(self, raw: object) -> tuple[Chunk, ...]:
        if not isinstance(raw, bytes) or len(raw) % _CHUNK.size or len(raw) > self.limit * _CHUNK.size:
            raise Malformed(f"not a row of at most {self.limit} chunks")
        chunks = tuple(Chunk(*pair) for pair in _CHUNK.iter_unpack(raw))
        if any(not 0 < chunk.length <= MAX_CHUNK_BYTES for chunk in chunks):
            raise Malformed("a chunk of impossible length")
        return chunks


@dataclass(frozen=True, slots=True)
class Outline:
    """An image's manifest as what it differs in from that of an image which the destination has.

    Attributes:
        basis: keyed digest of that one's manifest.
        frame: one zstd frame of the encoded manifest, which refers to the encoding of the other one.
    """

    basis: Digest
    frame: Annotated[bytes, Raw(1, MAX_OUTLINE_BYTES)]


@dataclass(frozen=True, slots=True)
class Image:
    """One image of the instance layer, as sealed in the source's vault.

    Attributes:
        layer: keyed digest of its manifest.
        size: bytes of file content.
        manifest: the chunks of the manifest itself, in order.
        fresh: all chunks of the first image, where they are few: saves the destination a round trip.
        outline: of a later image, where that is small: saves it another one, and most of the manifest.
    """

    layer: Digest
    size: Bytes
    manifest: Annotated[tuple[Chunk, ...], Packed(MAX_MANIFEST_CHUNKS)]
    fresh: Annotated[tuple[Chunk, ...], Packed(MAX_FRESH)] = ()
    outline: Annotated[Outline | None, Maybe(Nested(Outline))] = None


@dataclass(frozen=True, slots=True)
class Offer:
    """Source: will you take this app?

    Attributes:
        epoch: of the source's ownership, e. The grant will say e+1.
        record: the app's record as the apps service wrote it; opaque here.
        running: whether the app ran when the migration began; a stopped one stays stopped.
        base_bytes, app_bytes, instance_bytes: size of each layer; of the instance, at present and with the memory that
            moves with it.
        facts: what the destination's engine must match to restore the app's memory, in that engine's own words; empty
            where no memory moves. `memory_bytes` is how much of it there is.
        sent_at: what the source's clock said, seconds since the Unix epoch; 0 from earlier versions.
        network: names the source's network namespace; empty from earlier versions.
    """

    step: StepNumber
    app_id: AppId
    app_name: Annotated[str, Text(MAX_NAME_CHARS)]
    backend: Annotated[str, Text(MAX_NAME_CHARS)]
    epoch: Epoch
    source: Node
    destination: Node
    base: Digest
    app: Digest
    record: Annotated[bytes, Raw(0, MAX_RECORD_BYTES)]
    mode: Annotated[Mode, OneOf(Mode)] = Mode.LIVE
    running: Annotated[bool, Flag()] = True
    base_bytes: Bytes = 0
    app_bytes: Bytes = 0
    instance_bytes: Bytes = 0
    facts: Annotated[Mapping[str, str], FACTS] = field(default_factory=dict)
    sent_at: Annotated[float, Real(0.0, 1e11)] = 0.0
    network: Annotated[str, Text(128)] = ""

    @property
    def moves_memory(self) -> bool:
        """Whether the app goes on at the destination from where it was; else it is started there, or nothing is."""
        return self.running and self.mode is Mode.LIVE


@dataclass(frozen=True, slots=True)
class Welcome:
    """Destination: preflight found nothing against it; this is what I lack."""

    step: StepNumber
    base: Annotated[Need, Nested(Need)]
    app: Annotated[Need, Nested(Need)]
    basis_bytes: Bytes = 0


@dataclass(frozen=True, slots=True)
class Sync:
    """Source: pull base and app; `key` is what this migration's instance content is sealed and named with."""

    step: StepNumber
    key: Digest


@dataclass(frozen=True, slots=True)
class Synced:
    """Destination: base and app are here and checked out."""

    step: StepNumber
    base: Annotated[Pulled, Nested(Pulled)]
    app: Annotated[Pulled, Nested(Pulled)]


@dataclass(frozen=True, slots=True)
class Round:
    """Source: pull this image; the final one was taken while the app was suspended."""

    step: StepNumber
    number: Annotated[int, Whole(1, 1024)]
    image: Annotated[Image, Nested(Image)]
    final: Annotated[bool, Flag()] = False


@dataclass(frozen=True, slots=True)
class Rounded:
    """Destination: that image is here."""

    step: StepNumber
    pulled: Annotated[Pulled, Nested(Pulled)]


@dataclass(frozen=True, slots=True)
class Ready:
    """Destination: the final image is here, verified, in place and durable."""

    step: StepNumber
    pulled: Annotated[Pulled, Nested(Pulled)]


@dataclass(frozen=True, slots=True)
class Progress:
    """Destination: still here. `working` on the request, or waiting for the next one; `accepted`: past the grant."""

    step: Annotated[int, Whole(0, 1 << 20)]
    done: Bytes = 0
    total: Bytes = 0
    working: Annotated[bool, Flag()] = True
    accepted: Annotated[bool, Flag()] = False


@dataclass(frozen=True, slots=True)
class Alive:
    """Source: still here, no need to give up."""


@dataclass(frozen=True, slots=True)
class Grant:
    """Source: from now on the app is yours, at this epoch. Repeated until answered: it is also the question."""

    app_id: AppId
    epoch: Epoch
    source: Node
    destination: Node


@dataclass(frozen=True, slots=True)
class Restored:
    """Destination: I own the app at this epoch.

    Attributes:
        since_start_s: seconds from its start here to this message; None when that was before a restart of the node.
        healthy: False when it was executed here and then failed: it cannot go back, and waits here to be started.
        app_id: which app, for a source that forgot the migration; empty from earlier versions.
    """

    epoch: Epoch
    since_start_s: Annotated[float | None, Maybe(Real())] = None
    healthy: Annotated[bool, Flag()] = True
    error: Reason = ""
    app_id: Annotated[str, Text(32)] = ""


@dataclass(frozen=True, slots=True)
class Failed:
    """Destination: I do not have the app, never executed it, and will not accept a grant any more."""

    code: Code
    reason: Reason


@dataclass(frozen=True, slots=True)
class Commit:
    """Source: it is yours for good, and my copy is gone. `row` is the migration's row, as JSON."""

    row: Annotated[str, Text(MAX_ROW_CHARS)] = ""


@dataclass(frozen=True, slots=True)
class Abort:
    """Source: there was no grant, or you refused it: throw away what you have."""

    code: Code
    reason: Reason
    row: Annotated[str, Text(MAX_ROW_CHARS)] = ""


@dataclass(frozen=True, slots=True)
class Supersede:
    """Source: the operator took the app back by force, at this epoch: stop any copy."""

    epoch: Epoch


@dataclass(frozen=True, slots=True)
class Closed:
    """Destination: I have noted the end of it and need no further word. `warning`: of the after_restore hook."""

    warning: Reason = ""


def largest_sources(sources: Mapping[str, int]) -> dict[str, int]:
    """As many of them as a `Pulled` may name: those that delivered most."""
    if len(sources) <= MAX_SOURCES:
        return dict(sources)
    return dict(sorted(sources.items(), key=lambda source: -source[1])[:MAX_SOURCES])


def memory_bytes(facts: Mapping[str, str]) -> int:
    """How much memory moves, as `facts` have it; 0 where they do not say, or say nonsense."""
    text = facts.get(MEMORY_FACT, "")
    if not (text.isascii() and text.isdigit() and len(text) <= 16):
        return 0
    return min(int(text), MAX_MEMORY_BYTES)


def for_journal(offer: Offer) -> Offer:
    """The offer as journals keep it: what the app is lies in its own record by then, and preflight is over."""
    return replace(offer, record=b"", facts={})


FromSource = Offer | Sync | Round | Grant | Commit | Abort | Supersede | Alive
FromDestination = Welcome | Synced | Rounded | Ready | Progress | Restored | Failed | Closed
Message = FromSource | FromDestination

FROM_SOURCE: Mapping[str, type[FromSource]] = {
    cls.__name__: cls for cls in (Offer, Sync, Round, Grant, Commit, Abort, Supersede, Alive)
}
FROM_DESTINATION: Mapping[str, type[FromDestination]] = {
    cls.__name__: cls for cls in (Welcome, Synced, Rounded, Ready, Progress, Restored, Failed, Closed)
}


def encode(message: Message) -> bytes:
    """One message as bytes, at most `fields.MAX_BYTES`."""
    return fields.encode(message)


def decode(data: bytes | bytearray | memoryview) -> Message:
    """The inverse of `encode`.

    Raises:
        Malformed: a peer sent something that is no message.
    """
    return fields.decode(data, {**FROM_SOURCE, **FROM_DESTINATION})
