"""POSIX ACLs from the text that tar keeps to the bytes that the kernel keeps.

The text is the long or short form of acl(5), entries parted by commas or newlines. The bytes are those of the
extended attributes `system.posix_acl_access` and `system.posix_acl_default`: a version, then (tag,
permissions, id) for each entry, little-endian.
"""

import grp
import pwd
import re
import struct

_VERSION = struct.pack("<I", 2)
_ENTRY = struct.Struct("<HHI")
_NOBODY = 0xFFFFFFFF
_TAGS = {"u": (0x01, 0x02), "g": (0x04, 0x08), "m": (0x10, 0x10), "o": (0x20, 0x20)}
"""The tag without and with a qualifier."""
_NUMBER = re.compile(r"[0-9]{1,10}")
_BITS = {"r": 4, "w": 2, "x": 1, "-": 0}


class AclInvalid(Exception):
    """The text is no ACL, or names somebody who is unknown here; the text says which."""


def acl_to_bytes(text: str) -> bytes:
    """Encode an ACL.

    Names of users and groups are looked up on this machine unless a number stands for them or follows the
    permissions.

    Raises:
        AclInvalid: it cannot be encoded.
    """
    entries = [_entry(part) for part in text.replace("\n", ",").split(",") if part.partition("#")[0].strip()]
    return _VERSION + b"".join(_ENTRY.pack(*entry) for entry in sorted(entries, key=lambda e: (e[0], e[2])))


def _entry(part: str) -> tuple[int, int, int]:
    fields = [field.strip() for field in part.partition("#")[0].split(":")]
    if len(fields) < 3 or fields[0][:1] not in _TAGS:
        raise AclInvalid(f"no ACL entry: {part!r}")
    tag, qualifier, permissions = fields[:3]
    if not set(permissions) <= set(_BITS) or len(permissions) > 3:
        raise AclInvalid(f"no ACL entry: {part!r}")
    bits = sum(_BITS[letter] for letter in set(permissions))
    plain, named = _TAGS[tag[0]]
    if not qualifier or plain == named:
        return plain, bits, _NOBODY
    if len(fields) > 3 and _NUMBER.fullmatch(fields[3]):
        qualifier = fields[3]
    number = int(qualifier) if _NUMBER.fullmatch(qualifier) else _look_up(tag[0], qualifier)
    if number >= _NOBODY:
        raise AclInvalid(f"no ACL entry: {part!r}")
    return named, bits, number


def _look_up(kind: str, name: str) -> int:
    try:
        return pwd.getpwnam(name).pw_uid if kind == "u" else grp.getgrnam(name).gr_gid
    except KeyError:
        raise AclInvalid(f"an ACL names {name!r}, unknown here; make the archive with numeric owners") from None
