"""What goes into one packet: the messages that it is sent for, what its receiver must hear first, and news.

Each packet to a member that is suspected or given up, or known only from an earlier boot, tells it so (Lifeguard's
buddy system, section IV-C): it can refute with its very next packet. What room is left carries news.
"""

from gossip.broadcast import BroadcastQueue, retransmit_limit
from gossip.config import GossipConfig
from gossip.distances import Distances
from gossip.events import PacketReceived, SendPacket
from gossip.membership import Membership
from gossip.messages import Ack, Dead, Introduce, MemberState, NodeId, Suspect
from gossip.records import Record
from gossip.table import MemberTable
from gossip.wire import MAX_PAYLOAD_BYTES, Message, encode


class Composer:
    """Writes this node's packets.

    Args:
        config: how often news is repeated.
        members: speaks for this node.
        table: addresses, and who is accused.
        distances: the coordinate that acks carry.
        queue: the news.
    """

    def __init__(
        self,
        config: GossipConfig,
        members: Membership,
        table: MemberTable,
        distances: Distances,
        queue: BroadcastQueue,
    ) -> None:
        self._config = config
        self._members = members
        self._table = table
        self._distances = distances
        self._queue = queue

    def packet(self, addr: tuple[str, int], *messages: Message) -> SendPacket:
        """A packet to an address, whoever is there."""
        return self._filled(addr, [encode(message) for message in messages])

    def packet_to(self, node: NodeId, *messages: Message) -> list[SendPacket]:
        """A packet to a member, at its advertised address; none to someone unknown."""
        row = self._table.get(node)
        if row is None:
            return []
        encoded = [encode(message) for message in messages] + self._accusation(row.record, row.state)
        return [self._filled((row.record.host, row.record.port), encoded)]

    def answer(self, seq: int, ping: PacketReceived, *, introduce: bool) -> SendPacket:
        """The ack of a ping, to where it came from.

        Args:
            seq: of the ping.
            ping: the packet that it came in.
            introduce: also say who we are.
        """
        messages = [encode(Ack(seq, self._members.id, self._distances.mine))]
        if introduce:
            messages.append(encode(self._members.record))
        row = self._table.get(ping.sender)
        if row is None:
            messages.append(encode(Introduce()))
        elif row.record.boot_id != ping.boot_id:
            # Its new boot does not know how far the old one got: show it what it has to go beyond.
            messages += [encode(Introduce()), encode(row.record)]
        else:
            messages += self._accusation(row.record, row.state)
        return self._filled(ping.addr, messages)

    def _accusation(self, record: Record, state: MemberState) -> list[bytes]:
        """What a member must hear first: what is believed of it, if that is bad."""
        match state:
            case MemberState.SUSPECT:
                return [encode(Suspect(record.node, record.incarnation, self._members.id))]
            case MemberState.DEAD:
                return [encode(Dead(record.node, record.incarnation, self._members.id))]
            case MemberState.LEFT:
                return [encode(record)]
            case MemberState.ALIVE:
                return []

    def _filled(self, addr: tuple[str, int], messages: list[bytes]) -> SendPacket:
        if len(self._queue):
            room = MAX_PAYLOAD_BYTES - sum(map(len, messages))
            limit = retransmit_limit(self._config.retransmit_multiplier, len(self._table.live) + 1)
            messages = messages + self._queue.take(room, limit)
        return SendPacket(addr, b"".join(messages))
