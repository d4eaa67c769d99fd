"""The mesh as this node sees it: who is in it, under which name, and how to invite and leave.

A member's record says its name and site in its own words; its certificate says them in the authority's. So what a
certificate said in some session of this process counts, and a record that says something else does not.
"""

from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any

from gossip.messages import Member, MemberState, NodeId
from p2player import __version__, errors
from p2player.net.certificates import NodeCertificate
from p2player.net.identity import Identity

Invite = Callable[[float, int], Awaitable[str]]
Depart = Callable[[], Awaitable[None]]


def format_address(host: str, port: int) -> str:
    """`HOST:PORT`, with brackets around an IPv6 address."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


class Mesh:
    """Names, states and addresses of the mesh's nodes.

    Args:
        identity: this node's.
        address: where this node listens for its peers.
        members: every other node known, whatever its state.
        make_invite: makes a token; None where this node is no authority.
        depart: says farewell to the mesh and stops this node.
    """

    def __init__(
        self,
        identity: Identity,
        address: tuple[str, int],
        members: Callable[[], Sequence[Member]],
        make_invite: Invite | None,
        depart: Depart,
    ) -> None:
        self._identity = identity
        self._address = address
        self._members = members
        self._make_invite = make_invite
        self._depart = depart
        self._certified: dict[NodeId, tuple[str, str]] = {}

    def learn(self, certificate: NodeCertificate) -> Member | None:
        """Take the name and the site of a peer from the certificate that it showed.

        Returns:
            the peer's record, if it contradicts the certificate and this is news; None otherwise.
        """
        node, proved = certificate.node_id, (certificate.name, certificate.site)
        if self._certified.get(node) == proved:
            return None
        self._certified[node] = proved
        record = next((m for m in self._members() if m.id == node), None)
        return record if record is not None and (record.name, record.site) != proved else None

    def forget(self, node: NodeId) -> None:
        """Let go of what a certificate said of a node that is no member any more."""
        self._certified.pop(node, None)

    @property
    def me(self) -> NodeId:
        """This node's id."""
        return self._identity.node_id

    @property
    def my_site(self) -> str:
        """The site of this node; empty where none was given."""
        return self._identity.site

    def others(self) -> list[Member]:
        """Every other node, by name."""
        others = (self._as_certified(m) for m in self._members() if m.id != self.me)
        return sorted(others, key=lambda m: (m.name, m.id))

    def _as_certified(self, member: Member) -> Member:
        name, site = self._certified.get(member.id, (member.name, member.site))
        return member if (name, site) == (member.name, member.site) else replace(member, name=name, site=site)

    def alive(self) -> list[Member]:
        """The other nodes that may be asked now; a suspect one still may."""
        return [m for m in self.others() if m.state in (MemberState.ALIVE, MemberState.SUSPECT)]

    def member(self, node: NodeId) -> Member | None:
        """What is known of another node."""
        return next((self._as_certified(m) for m in self._members() if m.id == node), None)

    def name_of(self, node: NodeId) -> str:
        """The name of a node; the start of its id while no name is known."""
        if node == self.me:
            return self._identity.name
        member = self.member(node)
        return member.name if member is not None else node[:12]

    def site_of(self, node: NodeId) -> str:
        """The site of a node; empty while unknown."""
        if node == self.me:
            return self._identity.site
        member = self.member(node)
        return member.site if member is not None else ""

    def find(self, ref: str) -> NodeId:
        """The node of that name or id; of two with one name the living one, then the one whose certificate said it.

        Raises:
            NotFound: there is none.
        """
        if ref in (self._identity.name, self.me):
            return self.me

        def rank(member: Member) -> tuple[bool, bool]:
            return member.state not in (MemberState.ALIVE, MemberState.SUSPECT), member.id not in self._certified

        for member in sorted((m for m in self.others() if ref in (m.name, m.id)), key=rank):
            return member.id
        raise errors.NotFound(f"no node {ref} in mesh {self._identity.mesh_name}")

    def status(self) -> dict[str, Any]:
        """The document of `/v1/status`."""
        counts = Counter(member.state for member in self.others())
        return {
            "name": self._identity.name,
            "id": self.me,
            "mesh": self._identity.mesh_name,
            "site": self._identity.site,
            "address": format_address(*self._address),
            "version": __version__,
            "peers": {state.value: counts[state] for state in MemberState},
        }

    def peers(self) -> list[dict[str, Any]]:
        """The rows of `/v1/peers`."""
        return [
            {
                "name": member.name,
                "site": member.site,
                "address": format_address(member.host, member.port),
                "state": member.state.value,
                "rtt_ms": None if member.rtt_s is None else round(member.rtt_s * 1000, 3),
                "id": member.id,
            }
            for member in self.others()
        ]

    async def invite(self, *, ttl_s: float, uses: int) -> str:
        """A token that lets `uses` nodes join within `ttl_s` seconds.

        Raises:
            Refused: this node is no authority.
            Usage: a number is out of bounds.
        """
        if self._make_invite is None:
            raise errors.Refused(f"node {self._identity.name} is no authority of mesh {self._identity.mesh_name}")
        return await self._make_invite(ttl_s, uses)

    async def leave(self) -> None:
        """Leave the mesh for good."""
        await self._depart()
