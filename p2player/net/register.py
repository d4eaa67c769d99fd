"""What an authority has promised: which invites are open, who used them, and whose each name is.

Theory of operation
-------------------
The register is a plain function of the authority's journal: `apply` takes one record after the other. `judge` reads it
and changes nothing: it says whether a request may be granted. A grant is journalled, then applied, then signed:

    invite(id, hash of the secret, uses, expires)       made
    grant(invite, key, name, site, serial, validity)    a use of the invite by one key; the name is that node's
    renew(key, serial, validity)                        that node's next certificate, under the same name and site
    release(node)                                       the node left: its name is free

A use belongs to a key. Who repeats its request - the answer was lost, the authority crashed after the journal's fsync -
has the same key and is given the same certificate again, or what it was renewed to since: `Grant` holds all that
a certificate is made of. Each record names a kind, and the first one the version of the journal; a record that this
version does not know is refused.
"""

import hmac
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Final

from blake3 import blake3

from gossip.messages import NodeId, node_id
from p2player.errors import Refused
from p2player.net.certificates import Grant, Request

VERSION: Final = 1
Record = dict[str, Any]


@dataclass(slots=True)
class _Invite:
    secret_hash: bytes
    uses: int
    expires: float
    grants: dict[bytes, Grant] = field(default_factory=dict)


def hash_secret(secret: bytes) -> bytes:
    """What the journal keeps of a secret. Secrets are 32 random bytes: nothing slow is needed to guard the hash."""
    return blake3(secret, derive_key_context="p2player invite secret 1").digest()


class Register:
    """The state of one authority's journal."""

    def __init__(self) -> None:
        self._invites: dict[bytes, _Invite] = {}
        self._granted: dict[NodeId, Grant] = {}
        self._names: dict[str, NodeId] = {}

    def apply(self, record: Mapping[str, Any]) -> None:
        """Take in one record.

        Raises:
            ValueError, KeyError, TypeError: it is malformed, or of a kind that this version does not know.
        """
        match record["kind"]:
            case "begin":
                if record["version"] != VERSION:
                    raise ValueError(f"version {record['version']!r}")
            case "invite":
                self._invites[bytes.fromhex(record["id"])] = _Invite(
                    bytes.fromhex(record["secret_hash"]), int(record["uses"]), float(record["expires"])
                )
            case "grant":
                self._apply_grant(record)
            case "renew":
                self._apply_renewal(record)
            case "release":
                self._free_name(NodeId(record["node"]))
            case kind:
                raise ValueError(f"kind {kind!r}")

    def _apply_grant(self, record: Mapping[str, Any]) -> None:
        grant = Grant(
            public_key=bytes.fromhex(record["key"]),
            name=str(record["name"]),
            site=str(record["site"]),
            serial=int(record["serial"], 16),
            not_before=int(record["not_before"]),
            not_after=int(record["not_after"]),
        )
        if record["invite"] is not None:
            self._invites[bytes.fromhex(record["invite"])].grants[grant.public_key] = grant
        self._free_name(grant.node_id)
        self._granted[grant.node_id] = grant
        self._names[grant.name.casefold()] = grant.node_id

    def _apply_renewal(self, record: Mapping[str, Any]) -> None:
        node = node_id(bytes.fromhex(record["key"]))
        self._granted[node] = replace(
            self._granted[node],
            serial=int(record["serial"], 16),
            not_before=int(record["not_before"]),
            not_after=int(record["not_after"]),
        )

    def _free_name(self, node: NodeId) -> None:
        grant = self._granted.pop(node, None)
        if grant is not None:
            del self._names[grant.name.casefold()]

    def judge(self, request: Request, invite_id: bytes, secret: bytes, now: float) -> Grant | None:
        """Whether `request` may be granted at `now`: None if so; the earlier grant if this is a repetition.

        Raises:
            Refused: it may not; the text says why.
        """
        invite = self._invites.get(invite_id)
        # Nothing about an invite is told to one who does not hold its secret.
        if invite is None or not hmac.compare_digest(hash_secret(secret), invite.secret_hash):
            raise Refused("this authority has made no such invite: the token is wrong, or of another mesh")
        earlier = invite.grants.get(request.public_key)
        if earlier is not None:
            return self._repeat(request, earlier, now)
        if now >= invite.expires:
            when = datetime.fromtimestamp(invite.expires, UTC)
            raise Refused(f"the invite expired at {when:%Y-%m-%d %H:%M:%S} UTC: ask for a new one")
        if len(invite.grants) >= invite.uses:
            raise Refused("the invite was used already: ask for a new one")
        self.check_name(request)
        return None

    def _repeat(self, request: Request, earlier: Grant, now: float) -> Grant:
        held = self._granted.get(earlier.node_id)
        if held is None:
            raise Refused("the invite was used already, by this machine before it left: ask for a new one")
        if now >= held.not_after:
            raise Refused("the invite was used already, and the certificate made for it has expired: ask for a new one")
        if (request.name, request.site) != (held.name, held.site):
            site = f" at site {held.site}" if held.site else ""
            raise Refused(f"the invite was used already, by this machine as {held.name}{site}: join under that name")
        return held

    def judge_renewal(self, request: Request, asker: NodeId) -> Grant:
        """The grant that `asker` may have renewed; it asked over a session that proved who it is.

        Raises:
            Refused: the request is for another key, name or site than the asker's, or it is no node of this register.
        """
        if node_id(request.public_key) != asker:
            raise Refused("the certificate request is for another node's key than the one that sent it")
        held = self._granted.get(asker)
        if held is None:
            raise Refused("this authority knows no such node, or it has left: it has to join with a new invite")
        if (request.name, request.site) != (held.name, held.site):
            raise Refused(
                f"a certificate is renewed under the same name and site: {held.name}, {held.site or 'no site'}"
            )
        return held

    def check_name(self, request: Request) -> None:
        """Check that the name asked for is free, or this key's own.

        Raises:
            Refused: another node has it.
        """
        owner = self._granted.get(self._names.get(request.name.casefold(), NodeId("")))
        if owner is not None and owner.public_key != request.public_key:
            raise Refused(f"the name {request.name} is taken in this mesh: choose another with --name")

    def granted(self) -> Mapping[NodeId, Grant]:
        """The latest grant of each node that has not been released."""
        return dict(self._granted)


def begin_record(mesh_id: str, now: float) -> Record:
    """The first record of a journal."""
    return {"kind": "begin", "version": VERSION, "mesh": mesh_id, "at": now}


def invite_record(invite_id: bytes, secret: bytes, uses: int, expires: float, now: float) -> Record:
    """An invite was made."""
    secret_hash = hash_secret(secret).hex()
    return {
        "kind": "invite",
        "id": invite_id.hex(),
        "secret_hash": secret_hash,
        "uses": uses,
        "expires": expires,
        "at": now,
    }


def grant_record(invite_id: bytes | None, grant: Grant, address: str, now: float) -> Record:
    """A node is to be certified; `invite_id` is None for the mesh's first node."""
    return {
        "kind": "grant",
        "invite": invite_id.hex() if invite_id is not None else None,
        "key": grant.public_key.hex(),
        "name": grant.name,
        "site": grant.site,
        "serial": f"{grant.serial:x}",
        "not_before": grant.not_before,
        "not_after": grant.not_after,
        "address": address,
        "at": now,
    }


def renewal_record(grant: Grant, now: float) -> Record:
    """A node is to be certified anew, as `grant` says."""
    return {
        "kind": "renew",
        "key": grant.public_key.hex(),
        "serial": f"{grant.serial:x}",
        "not_before": grant.not_before,
        "not_after": grant.not_after,
        "at": now,
    }


def release_record(node: NodeId, now: float) -> Record:
    """A node's name is free again."""
    return {"kind": "release", "node": node, "at": now}
