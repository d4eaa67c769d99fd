"""STATE: the folder in which a node keeps everything, and the two promises about it.

One process at a time works in it (`locked`), and its layout has a version in the file `format`: a layout that this
version does not know is refused, never guessed.

    format            "1\\n"
    config.toml       settings, written by the operator (see `p2player.config`)
    lock              flock of the one process; holds its pid
    control.sock      the control API
    control.token     bearer token of the opt-in TCP listener
    identity/         keys and certificates (see `p2player.net.identity`)
    identity.new/     one in the making, or on its way out; cleared away by the next enrolment
    joining.key       key of a join that has not come to its end
    store/            chunks and layers
    gossip/           what this node remembers of the mesh
    apps/ migrations/ checkouts/
    adopting/         what engines take apart, while they do (see `p2player.adoption`)

The folder is made with mode 0700. A mode that the operator changed afterwards stays as it is: that is how a group is
let at the control socket.
"""

import fcntl
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from p2player.errors import Refused

FORMAT: Final = "1"

_PRIVATE: Final = 0o700
_MAY_PRECEDE_FORMAT: Final = frozenset({"config.toml", "lock", "control.token"})
"""What may lie in a folder without a `format` file: an operator puts settings there before the node is enrolled."""


def default_root(environment: Mapping[str, str]) -> Path:
    """The platform's place for a user's state: `$XDG_STATE_HOME/p2player`, else `~/.local/state/p2player`.

    Args:
        environment: `os.environ`, or what stands in for it.
    """
    base = environment.get("XDG_STATE_HOME", "")
    return (Path(base) if base.startswith("/") else Path.home() / ".local" / "state") / "p2player"


@dataclass(frozen=True, slots=True)
class StateDir:
    """The paths inside one STATE folder; `open` makes and checks the folder, the constructor touches nothing."""

    root: Path

    @classmethod
    def open(cls, root: Path) -> "StateDir":
        """Make the folder if need be and check its format version.

        Raises:
            Refused: it has another format, or holds things that are not a node's, or cannot be made or read.
        """
        state = cls(Path(os.path.abspath(root)))
        try:
            state.root.mkdir(mode=_PRIVATE, parents=True, exist_ok=True)
            if not state.format.exists():
                strangers = sorted({entry.name for entry in state.root.iterdir()} - _MAY_PRECEDE_FORMAT)
                if strangers:
                    raise Refused(f"{state.root} is not a state folder: it has no format file but holds {strangers[0]}")
                write_atomic(state.format, f"{FORMAT}\n".encode(), 0o644)
            with state.format.open("rb") as file:
                found = file.read(64).decode("utf-8", "replace").strip()
        except OSError as error:
            raise Refused(f"cannot use {state.root} as state folder: {error.strerror}") from None
        if found != FORMAT:
            raise Refused(f"{state.root} has state format {found!r}; this version of p2player knows {FORMAT!r} only")
        return state

    @property
    def format(self) -> Path:
        """The version of this layout."""
        return self.root / "format"

    @property
    def lock(self) -> Path:
        """What `locked` locks."""
        return self.root / "lock"

    @property
    def config(self) -> Path:
        """The operator's settings."""
        return self.root / "config.toml"

    @property
    def control_socket(self) -> Path:
        """Where the control API listens."""
        return self.root / "control.sock"

    @property
    def control_token(self) -> Path:
        """The bearer token of the TCP control listener, where none is configured elsewhere."""
        return self.root / "control.token"

    @property
    def identity(self) -> Path:
        """Keys and certificates; exists once the node is enrolled."""
        return self.root / "identity"

    @property
    def pending_identity(self) -> Path:
        """An identity in the making; becomes `identity` by one rename."""
        return self.root / "identity.new"

    @property
    def joining_key(self) -> Path:
        """The key of a join that has not come to its end."""
        return self.root / "joining.key"

    @property
    def store(self) -> Path:
        """Chunks and layers."""
        return self.root / "store"

    @property
    def gossip(self) -> Path:
        """What is remembered of other nodes."""
        return self.root / "gossip"

    @property
    def apps(self) -> Path:
        """One folder an application."""
        return self.root / "apps"

    @property
    def adopting(self) -> Path:
        """One folder an instance that is being adopted."""
        return self.root / "adopting"

    @property
    def migrations(self) -> Path:
        """One folder a migration."""
        return self.root / "migrations"

    @property
    def checkouts(self) -> Path:
        """Read-only trees that applications share."""
        return self.root / "checkouts"


@contextmanager
def locked(state: StateDir) -> Iterator[None]:
    """Be the only process that works in `state`; the lock ends with the block, or with the process.

    Raises:
        Refused: another process has it.
    """
    fd = os.open(state.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.pread(fd, 32, 0).decode("ascii", "replace").strip()
            raise Refused(f"already running on {state.root}" + (f" (pid {owner})" if owner else "")) from None
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(fd)


def write_atomic(path: Path, data: bytes, mode: int = 0o600) -> None:
    """Replace `path` by `data`: afterwards, and after a crash at any point, it has its old or its new content.

    Args:
        mode: permissions of the new file, whatever the umask.

    Raises:
        OSError: the disk is full, say; the old content is still there.
    """
    fd, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(fd, "wb") as file:
            os.fchmod(fd, mode)
            file.write(data)
            file.flush()
            os.fsync(fd)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in `folder` durable: what was created, renamed or removed in it."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
