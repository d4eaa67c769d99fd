"""From the errors of the lower packages to the ones that users and peers are told.

`chunkstore`, `gossip` and `backends` know nothing of exit codes; `describe` gives each of their errors its place in
`p2player.errors`. Kept apart from that module so that the command line need not import the store.
"""

import errno

import trio

from backends.errors import AlreadyRunning, BackendError, BackendUnavailable, ConfigError, NotRunning
from chunkstore.errors import ChunkMissing, CorruptChunk, DiskFull, LayerUnknown, StoreBusy, StoreError
from chunkstore.tree_errors import CheckoutRefused, SourceUnsupported
from gossip.catalog import BadName, NameTaken
from gossip.errors import GossipError
from p2player import errors


def describe(error: BaseException) -> errors.P2PlayerError:
    """The error to tell for `error`; an unforeseen one becomes a plain failure that names its class."""
    match error:
        case errors.P2PlayerError():
            return error
        case BaseExceptionGroup(exceptions=(first, *_)):
            return describe(first)
        case DiskFull():
            return errors.Refused(str(error))
        case CorruptChunk() | ChunkMissing():
            return errors.Integrity(str(error))
        case BackendUnavailable() | AlreadyRunning() | NotRunning():
            return errors.Refused(str(error))
        case SourceUnsupported() | CheckoutRefused() | NameTaken() | StoreBusy():
            return errors.Refused(str(error))
        case ConfigError() | BadName():
            return errors.Usage(str(error))
        case LayerUnknown():
            return errors.NotFound(str(error))
        case StoreError() | BackendError() | GossipError():
            return errors.Failed(str(error))
        case OSError(errno=errno.ENOSPC):
            return errors.Refused(f"disk full: {error}")
        case OSError(filename=str() as name, strerror=str() as text):
            return errors.Failed(f"{name}: {text}")
        case trio.TooSlowError():
            return errors.Unreachable("it took too long")
        case _:
            return errors.Failed(f"internal error: {type(error).__name__}: {error}")
