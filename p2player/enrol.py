"""Making a mesh, joining one, and making tokens while no node runs: the commands that need no running node.

Each works under STATE's lock, so that it never meets a running node. An identity is built in `identity.new` and becomes
`identity` by one rename after everything has succeeded. What a failed join leaves behind is only `joining.key`: a
repetition uses it again, so that an authority which granted the first request, but could not say so, recognises the
machine and gives the same answer although the token is used up.

A node whose certificate has expired joins once more in the same way, with the key, name and site that it has. Its files
are then replaced where they lie, each atomically and the certificate last.
"""

import os
import shutil
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding

from p2player.addresses import Address, free_port, is_wildcard, parse_address
from p2player.errors import Failed, Refused, Usage
from p2player.net import issuing, keyring
from p2player.net.authority import Authority
from p2player.net.certificates import CertificateError, Request, read_key
from p2player.net.identity import Identity, write_identity
from p2player.net.invites import Contact, read_token
from p2player.net.names import check_name
from p2player.statedir import StateDir, locked, sync_folder, write_atomic

DEFAULT_LISTEN: Final = "0.0.0.0:7420"

Clock = Callable[[], float]


def init_mesh(
    state_dir: Path,
    *,
    mesh: str,
    name: str | None = None,
    site: str | None = None,
    listen: str | None = None,
    advertise: str | None = None,
    clock: Clock = time.time,
) -> Identity:
    """Make a mesh and its first node, which is its authority.

    Args:
        name: of the node; default: the host's name.
        site: default: none.
        listen: `HOST:PORT`; default `0.0.0.0:7420`; port 0: one that is free for TCP and UDP is chosen and kept.
        advertise: where others reach the node, if not where it listens.

    Raises:
        Refused: there is an identity already, or a node runs in this STATE.
        Usage: a name or an address is malformed.
    """
    check_name("the mesh name", mesh)
    name, site = _node_name(name), _site(site)
    state = StateDir.open(state_dir)
    with locked(state):
        _check_new(state)
        place, reached = _listen(listen), _advertise(advertise)
        _clear_pending(state)
        now, root_key, key = clock(), Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
        root = issuing.make_root(root_key, mesh, now).public_bytes(Encoding.DER)
        authority = Authority.create(state.pending_identity / "authority", root_key, root, now)
        try:
            own = Request(key.public_key().public_bytes_raw(), name, site)
            chain = authority.found(own, reached or place, now)
        finally:
            authority.close()
        write_identity(
            state.pending_identity,
            key=key,
            chain=chain,
            roots=[root],
            ring=keyring.new_keyring(),
            listen=place,
            advertise=reached,
            members=[],
            authorities=[],
        )
        _establish(state)
        return Identity.load(state)


def join_mesh(
    state_dir: Path,
    token: str,
    *,
    name: str | None = None,
    site: str | None = None,
    listen: str | None = None,
    advertise: str | None = None,
    clock: Clock = time.time,
) -> Identity:
    """Join the mesh that `token` invites to; blocks until the authority has answered. Arguments as `init_mesh`.

    With an identity whose certificate has expired, this enrols the same node again: what is not given stays as it was.

    Raises:
        Refused: the token is damaged, used, expired or unknown, the name is taken, or there is an identity already that
            has not expired, or is another mesh's or an authority's, or has another name or site than what is given.
        Unreachable: no authority answers.
        Usage: a name or an address is malformed.
    """
    import trio

    from p2player.net.joining import Application, request_join

    place, reached = parse_address(listen) if listen else None, _advertise(advertise)
    name, site = check_name("the node name", name) if name else None, _site(site)
    invitation = read_token(token)
    state = StateDir.open(state_dir)
    with locked(state):
        before = _expired(state, invitation.mesh_id, clock())
        if before is None:
            name, place = _node_name(name), _with_port(place or parse_address(DEFAULT_LISTEN))
            application = Application(_joining_key(state), name, site, place, reached)
        else:
            _check_same(before, name, site)
            place, reached = _with_port(place or before.listen), reached or before.advertise
            application = Application(before.key, before.name, before.site, place, reached)
        joined = trio.run(request_join, invitation, application, clock)
        contacts = [
            {"id": each.node, "host": each.address.host, "port": each.address.port} for each in invitation.contacts
        ]
        told = {row.get("id") for row in joined.members}
        if before is None:
            _clear_pending(state)
        write_identity(
            state.pending_identity if before is None else state.identity,
            key=application.key,
            chain=joined.chain,
            roots=[invitation.root],
            ring=joined.keyring,
            listen=place,
            advertise=reached,
            members=[*joined.members, *(row for row in contacts if row["id"] not in told)],
            authorities=[each.node for each in invitation.contacts],
        )
        if before is None:
            _establish(state)
        return Identity.load(state)


def make_token(state_dir: Path, ttl_s: float = 3600.0, uses: int = 1, *, clock: Clock = time.time) -> str:
    """A token for `uses` machines, valid for `ttl_s` seconds, made while no node runs; a running one makes them itself.

    Raises:
        Refused: a node runs in this STATE, or there is no identity, or it is no authority's.
        Usage: a number is out of bounds.
    """
    state = StateDir.open(state_dir)
    with locked(state):
        identity = Identity.load(state)
        authority = identity.open_authority()
        try:
            contact = Contact(identity.node_id, identity.reached_at())
            return str(authority.invite(contact, ttl_s=ttl_s, uses=uses, now=clock()))
        finally:
            authority.close()


def forget_identity(state: StateDir) -> None:
    """Remove the identity of a node that has left its mesh; STATE's lock must be held. Layers and apps stay."""
    if state.identity.exists():
        # One rename ends the identity; a crash after it leaves what the next init or join clears away.
        shutil.rmtree(state.pending_identity, ignore_errors=True)
        os.rename(state.identity, state.pending_identity)
        sync_folder(state.root)
    shutil.rmtree(state.pending_identity, ignore_errors=True)
    state.joining_key.unlink(missing_ok=True)


def _check_new(state: StateDir) -> None:
    if state.identity.exists():
        identity = Identity.load(state)
        raise Refused(f"{state.root} is already node {identity.name} of mesh {identity.mesh_name}")


def _expired(state: StateDir, mesh_id: str, now: float) -> Identity | None:
    """The identity of a node that may join that mesh once more, since its certificate has expired; None: it has none.

    Raises:
        Refused: it has one with which it may not.
    """
    if not state.identity.exists():
        return None
    identity = Identity.load(state)
    if identity.mesh_id != mesh_id or not identity.is_expired(now):
        raise Refused(f"{state.root} is already node {identity.name} of mesh {identity.mesh_name}")
    if identity.is_authority:
        raise Refused(f"node {identity.name} is an authority: it renews its own certificate when it is started")
    return identity


def _check_same(identity: Identity, name: str | None, site: str) -> None:
    if name not in (None, identity.name) or site not in ("", identity.site):
        site = f" at site {identity.site}" if identity.site else ""
        raise Refused(f"this node is {identity.name}{site}, and is enrolled again as that only: give no other")


def _establish(state: StateDir) -> None:
    """Make the finished identity this node's."""
    try:
        os.rename(state.pending_identity, state.identity)
    except OSError as error:
        raise Failed(f"{state.identity}: {error.strerror}") from None
    state.joining_key.unlink(missing_ok=True)
    sync_folder(state.root)


def _clear_pending(state: StateDir) -> None:
    """An empty folder for a new identity, whatever an earlier attempt left there."""
    if state.pending_identity.exists():
        shutil.rmtree(state.pending_identity)
    state.pending_identity.mkdir(mode=0o700)


def _joining_key(state: StateDir) -> Ed25519PrivateKey:
    """The key of a join that did not come to its end, or a new one; on disk before it is shown to anybody."""
    with suppress(OSError, CertificateError):
        return read_key(state.joining_key.read_bytes())
    key = Ed25519PrivateKey.generate()
    write_atomic(state.joining_key, issuing.key_pem(key))
    return key


def _node_name(name: str | None) -> str:
    if name is not None:
        return check_name("the node name", name)
    host = socket.gethostname().split(".")[0]
    try:
        return check_name("the node name", host)
    except Usage as error:
        raise Usage(f"{error}; give one with --name") from None


def _site(site: str | None) -> str:
    return check_name("the site", site) if site else ""


def _listen(text: str | None) -> Address:
    return _with_port(parse_address(text or DEFAULT_LISTEN))


def _with_port(address: Address) -> Address:
    return address if address.port else Address(address.host, free_port(address.host))


def _advertise(text: str | None) -> Address | None:
    if text is None:
        return None
    address = parse_address(text)
    if not address.port or is_wildcard(address.host):
        raise Usage(f"{text!r} cannot be advertised: others need an address and a port to dial")
    return address
