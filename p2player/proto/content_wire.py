"""How content is asked for and sent: the bodies of three methods, and their bounds.

    method          asked with          answered with
    layer.manifest  {layer, start}      {total, ids, lengths}: the chunks of the manifest, in order, from the one with
                                        number `start`; `PAGE_CHUNKS` of them, or those that are left
    layer.have      {layer}             {total, bitmap}: bit i, least significant first: the i-th distinct content chunk
                                        in manifest order is here
    chunks.want     {scope, ids,        a part {ids, lengths, codec} + payload for each group; then {missing}: how many
                     bundles}           of the ids are not here

Ids are 32 bytes each, joined; lengths are 32-bit big-endian, joined. `scope` names the content: "" is what every node
of the mesh may read, else an instance's. A part holds only chunks that were asked for, each once. If `bundles` is true,
a part may hold 4 MiB of chunks, compressed together, where a stored group has 1 MiB at most.

Everything read here comes from a peer, and breaking a bound is a `RemoteProtocolError`.
"""

import struct
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from chunkstore.chunker import MANIFEST
from chunkstore.codec import MAX_BUNDLE_BYTES, MAX_CHUNK_BYTES, Codec, Group, check_table
from chunkstore.digest import ID_BYTES, Buffer, ChunkId, LayerId
from chunkstore.errors import BadGroup
from chunkstore.manifest_codec import MAX_MANIFEST_BYTES
from p2player.proto.frames import RemoteProtocolError

LAYER_MANIFEST: Final = "layer.manifest"
LAYER_HAVE: Final = "layer.have"
CHUNKS_WANT: Final = "chunks.want"

SHARED: Final = ""
MAX_SCOPE_CHARS: Final = 128
MAX_WANT_IDS: Final = 4096
PAGE_CHUNKS: Final = 24_000
MAX_MANIFEST_CHUNKS: Final = MAX_MANIFEST_BYTES // MANIFEST.minimum + 1
"""All but the last chunk of a manifest have the minimum length at least: what can be imported can be listed."""
MAX_BITMAP_BYTES: Final = 1_000_000
"""For 8,000,000 chunks: an extent takes 40 bytes of a manifest, so that no layer has more than 6,710,886."""

Listed = list[tuple[ChunkId, int]]


def layer_body(layer: LayerId) -> dict[str, Any]:
    """The body of `layer.have`."""
    return {"layer": layer}


def read_layer(body: Mapping[str, Any]) -> LayerId:
    """The inverse of `layer_body`."""
    return LayerId(_raw(body, "layer", ID_BYTES, ID_BYTES))


def want_body(scope: str, ids: Iterable[ChunkId], *, bundles: bool = True) -> dict[str, Any]:
    """The body of `chunks.want`."""
    return {"scope": scope, "ids": b"".join(ids), "bundles": bundles}


def takes_bundles(body: Mapping[str, Any]) -> bool:
    """Whether the asker takes parts of more than one group's bytes."""
    return body.get("bundles") is True


def read_want(body: Mapping[str, Any]) -> tuple[str, list[ChunkId]]:
    """The inverse of `want_body`; `takes_bundles` reads the rest."""
    scope = body.get("scope")
    if not isinstance(scope, str) or len(scope) > MAX_SCOPE_CHARS:
        raise RemoteProtocolError("field 'scope' is not a short text")
    return scope, _ids(body, MAX_WANT_IDS)


def group_header(group: Group) -> dict[str, Any]:
    """The header of the part that carries `group`; its payload is the group's."""
    return {"ids": b"".join(group.ids), "lengths": _pack_lengths(group.lengths), "codec": int(group.codec)}


def read_group(header: Mapping[str, Any], payload: Buffer) -> Group:
    """The group that a part carries; within bounds, but no digest is checked yet."""
    ids = _ids(header, MAX_WANT_IDS)
    lengths = _lengths(header, len(ids))
    try:
        codec = Codec(header["codec"])
        check_table(ids, lengths, len(payload), MAX_BUNDLE_BYTES)
    except (KeyError, ValueError, BadGroup) as error:
        raise RemoteProtocolError(f"not a group of chunks: {error}") from None
    return Group(tuple(ids), lengths, codec, bytes(payload))


def manifest_ask(layer: LayerId, start: int) -> dict[str, Any]:
    """The body of `layer.manifest`: list the manifest's chunks from number `start` on."""
    return {"layer": layer, "start": start}


def read_manifest_ask(body: Mapping[str, Any]) -> tuple[LayerId, int]:
    """The inverse of `manifest_ask`."""
    return read_layer(body), _count(body, "start", 0, MAX_MANIFEST_CHUNKS - 1)


def manifest_body(total: int, ids: Sequence[ChunkId], lengths: Sequence[int]) -> dict[str, Any]:
    """The answer of `layer.manifest`: one page of `total` chunks."""
    return {"total": total, "ids": b"".join(ids), "lengths": _pack_lengths(lengths)}


def read_manifest(body: Mapping[str, Any], before: Listed) -> tuple[Listed, bool]:
    """Go on with the list of a manifest's chunks, each with its length; all together within what a manifest may be.

    Args:
        before: what the pages before said.

    Returns:
        The longer list, and whether that is all. Pages are full, so the end comes after so many as `total` asks for.
    """
    total = _count(body, "total", len(before) + 1, MAX_MANIFEST_CHUNKS)
    ids = _ids(body, PAGE_CHUNKS)
    if len(ids) != min(PAGE_CHUNKS, total - len(before)):
        raise RemoteProtocolError("a page of manifest chunks that is not full")
    lengths = _lengths(body, len(ids))
    listed = [*before, *zip(ids, lengths, strict=True)]
    if min(lengths) < 1 or max(lengths) > MAX_CHUNK_BYTES or sum(size for _, size in listed) > MAX_MANIFEST_BYTES:
        raise RemoteProtocolError("manifest chunks of impossible lengths")
    return listed, len(listed) == total


def have_body(total: int, bitmap: bytes) -> dict[str, Any]:
    """The answer of `layer.have`."""
    return {"total": total, "bitmap": bitmap}


def read_have(body: Mapping[str, Any], total: int) -> bytes:
    """The bitmap of a layer that we know to have `total` distinct content chunks."""
    if body.get("total") != total:
        raise RemoteProtocolError("a holder counts the chunks of the layer differently")
    size = (total + 7) // 8
    return _raw(body, "bitmap", size, size)


def _raw(body: Mapping[str, Any], key: str, least: int, most: int) -> bytes:
    value = body.get(key)
    if not isinstance(value, bytes) or not least <= len(value) <= most:
        raise RemoteProtocolError(f"field {key!r} is not {least} to {most} bytes")
    return value


def _count(body: Mapping[str, Any], key: str, least: int, most: int) -> int:
    value = body.get(key)
    if type(value) is not int or not least <= value <= most:
        raise RemoteProtocolError(f"field {key!r} is not {least} to {most}")
    return value


def _ids(body: Mapping[str, Any], limit: int) -> list[ChunkId]:
    joined = _raw(body, "ids", ID_BYTES, limit * ID_BYTES)
    if len(joined) % ID_BYTES:
        raise RemoteProtocolError("field 'ids' is not made of whole ids")
    return [ChunkId(joined[at : at + ID_BYTES]) for at in range(0, len(joined), ID_BYTES)]


def _pack_lengths(lengths: Sequence[int]) -> bytes:
    return struct.pack(f"!{len(lengths)}I", *lengths)


def _lengths(body: Mapping[str, Any], count: int) -> tuple[int, ...]:
    return struct.unpack(f"!{count}I", _raw(body, "lengths", 4 * count, 4 * count))
