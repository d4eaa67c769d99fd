"""What can be wrong with a delta from another machine."""

from chunkstore.errors import StoreError


class BadPatch(StoreError):
    """A patch or a signature that contradicts itself, does not fit what it is for, or exceeds a limit."""
