"""The gossip keys on disk: one JSON file, rewritten as a whole when the ring turns.

    {"version": 1, "keys": [{"id": "9f2c01aa", "key": "<64 hex digits>"}, ...]}

The first key seals. The ids, which packets carry, are derived from the keys and stand here for people and as a check.
"""

import json
import secrets
from pathlib import Path
from typing import Any, Final

from gossip.errors import Malformed
from gossip.sealing import MESH_KEY_BYTES, Keyring, key_id
from p2player.errors import Failed, Integrity
from p2player.statedir import write_atomic

VERSION: Final = 1
MAX_BYTES: Final = 16 << 10


def new_keyring() -> Keyring:
    """A ring with one random key."""
    return Keyring((secrets.token_bytes(MESH_KEY_BYTES),))


def write_keyring(path: Path, ring: Keyring) -> None:
    """Replace the file."""
    rows = [{"id": key_id(key).hex(), "key": key.hex()} for key in ring.keys]
    write_atomic(path, json.dumps({"version": VERSION, "keys": rows}, indent=1).encode() + b"\n")


def read_keyring(path: Path) -> Keyring:
    """Read the file.

    Raises:
        Integrity: it is damaged, or of another version.
        Failed: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            document: Any = json.loads(file.read(MAX_BYTES))
        if document["version"] != VERSION:
            raise Integrity(f"{path}: version {document['version']!r} is not known")
        keys = tuple(bytes.fromhex(row["key"]) for row in document["keys"])
        if [key_id(key).hex() for key in keys] != [row["id"] for row in document["keys"]]:
            raise Integrity(f"{path}: a key does not fit its id")
        return Keyring(keys)
    except OSError as error:
        raise Failed(f"{path}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, RecursionError, Malformed) as error:
        raise Integrity(f"{path} is damaged: {error}") from None
