"""Nodes for gossip tests, with pretended keys: cheap, and checked as real ones are."""

from blake3 import blake3

from gossip.records import LocalNode, Record
from gossip.simnet import pretend_sign


def local_node(name: str, *, boot: int = 1, host: str = "", port: int = 7420, site: str = "lab") -> LocalNode:
    """A node whose key follows from its name."""
    public_key = blake3(name.encode()).digest()
    boot_id = boot.to_bytes(8, "big")
    return LocalNode(name, site, host or f"{name}.test", port, "1.0", public_key, boot_id, pretend_sign(public_key))


def record(name: str, incarnation: int = 1, *, left: bool = False, boot: int = 1, host: str = "") -> Record:
    """What the node of that name says of itself."""
    return local_node(name, boot=boot, host=host).record(incarnation, left=left)
