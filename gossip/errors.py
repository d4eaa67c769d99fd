"""What can be wrong with something that came from another node.

Every class here means *drop it and count it*: nothing that a peer sends may stop the loop that reads it.
`reason` is a short stable word, the name of the counter that a dropped message is added to.
"""

from typing import ClassVar


class GossipError(Exception):
    """Base of every error of this package."""

    reason: ClassVar[str] = "invalid"


class Malformed(GossipError):
    """The bytes, or a message body, do not decode, or break one of the limits on size, count or range."""

    reason = "malformed"


class Forged(GossipError):
    """A signature, or a node id, does not belong to the public key that comes with it.

    Attributes:
        node: the node id that the message claims to be about.
    """

    reason = "forged"

    def __init__(self, node: str, detail: str) -> None:
        super().__init__(f"{node}: {detail}")
        self.node = node


class Unsealable(GossipError):
    """A packet that does not open: no key of the ring has that id, or its seal is broken."""

    reason = "unsealable"


class Replayed(GossipError):
    """A packet whose counter was seen before, or is too old to tell."""

    reason = "replayed"


class Early(GossipError):
    """A version that nobody can have come to by now; the same is taken once its time has come."""

    reason = "early"


class Full(GossipError):
    """The table has as many entries as it may ever have; a new one is not taken."""

    reason = "full"
