"""Ledgers with cheap keys, for tests: a keyed hash in the place of Ed25519."""

from blake3 import blake3

from gossip.ledger import Ledger

DAY_S = 86400.0
START_S = 1_700_000_000.0


def sign_as(public_key: bytes, message: bytes) -> bytes:
    """What `public_key` puts below `message`: 64 bytes that `verify` accepts."""
    return blake3(message, key=public_key).digest(length=64)


def verify(public_key: bytes, signature: bytes, message: bytes) -> bool:
    """Whether `sign_as` made it."""
    return sign_as(public_key, message) == signature


def key(number: int) -> bytes:
    """The public key of test node `number`."""
    return blake3(f"node {number}".encode()).digest()


def layer(number: int) -> bytes:
    """The id of test layer `number`."""
    return blake3(f"layer {number}".encode()).digest()


def ledger(number: int, **options: object) -> Ledger:
    """The ledger of test node `number`."""
    public_key = key(number)
    return Ledger(public_key, lambda message: sign_as(public_key, message), verify, **options)  # type: ignore[arg-type]


def exchange(one: Ledger, other: Ledger, now: float = START_S, *, rounds: int = 16) -> int:
    """Run one anti-entropy exchange to its end; the number of documents that were sent."""
    sent = 0
    body = one.offer()
    for _ in range(rounds):
        reply, _changes = other.answer(body, now=now)
        sent += 2
        following, _changes = one.follow(reply, now=now)
        if following is None:
            return sent
        body = following
    raise AssertionError("the exchange does not end")
