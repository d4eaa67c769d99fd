"""One container as the daemon knows it: what it is made of, and its states."""

import secrets
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from backends import appnet
from backends.base import AppConfig
from backends.command import IN_CONTAINER, expand
from backends.errors import BackendError, ConfigError
from backends.lxd import inside
from backends.lxd.backup import backup
from backends.lxd.daemon import Daemon, LxdError, StillAtWork
from backends.lxd.settings import LxdSettings

OP_TIMEOUT_S = 30.0
MEMORY_FLOOR_S = 120.0
MEMORY_BYTES_PER_S = 4 << 20  # of a very slow disk

_STOPPED = 102
_NOT_FOUND = 404
_POLL_S = 0.02
_BUSY = "Instance is busy running"


def name_of(app_id: str) -> str:
    """What the container of an application is called."""
    return f"p2p-{app_id[:12]}"


def memory_timeout_s(size: int) -> float:
    """How long LXD may take to save or restore so many bytes of memory."""
    return MEMORY_FLOOR_S + size / MEMORY_BYTES_PER_S


@dataclass(frozen=True, slots=True)
class Row:
    """What LXD says of a container.

    Attributes:
        stopped: it does not run; frozen ones do.
        stateful: its memory is saved in its volume.
        used_at: when it was started last, in LXD's own words.
        outer: name of the outer end of its network device, while it runs.
    """

    stopped: bool
    stateful: bool
    used_at: str
    outer: str = ""


class Instance:
    """The container of one application.

    Args:
        name: see `name_of`.
    """

    def __init__(self, daemon: Daemon, name: str) -> None:
        self.name = name
        self._daemon = daemon

    def row(self) -> Row | None:
        """What LXD says of it now; None when it knows no such container."""
        try:
            found = self._daemon.get("instances", self.name)
        except LxdError as error:
            if error.status == _NOT_FOUND:
                return None
            raise
        return Row(
            stopped=int(found["status_code"]) == _STOPPED,
            stateful=bool(found["stateful"]),
            used_at=str(found["last_used_at"]),
            outer=str(found["config"].get(f"volatile.{appnet.INSIDE}.host_name", "")),
        )

    def pid(self) -> int | None:
        """Its first process; None when it does not run."""
        found = self._daemon.get("instances", self.name, "state")
        return int(found["pid"]) or None

    def make(self, pool: str, config: Mapping[str, str], devices: Mapping[str, Mapping[str, str]]) -> None:
        """Make it anew, with the flag that its memory is saved (`backup`); its volume must not be mounted.

        Raises:
            LxdError: LXD refused.
        """
        self.remove()
        passing = f"{self.name}-{secrets.token_hex(4)}"
        document = backup(passing, pool, config, {"root": _root(pool), **devices})
        headers = {"Content-Type": "application/octet-stream", "X-LXD-pool": pool, "X-LXD-name": passing}
        self._daemon.wait(self._daemon.post("instances", data=document, headers=headers), OP_TIMEOUT_S)
        try:
            self._daemon.wait(self._daemon.post("instances", passing, json={"name": self.name}), OP_TIMEOUT_S)
        except BackendError:
            Instance(self._daemon, passing).remove()
            raise

    def remove(self) -> None:
        """Delete it; its volume must not be mounted, for LXD deletes what it finds there. Idempotent."""
        try:
            self._patiently(lambda: self._daemon.wait(self._daemon.delete("instances", self.name), OP_TIMEOUT_S))
        except LxdError as error:
            if error.status != _NOT_FOUND:
                raise

    def start(self) -> None:
        """Start it afresh; saved memory is deleted.

        Raises:
            StillAtWork: it takes too long.
            LxdError: LXD refused or failed.
        """
        self._patiently(lambda: self._daemon.wait(self._begin("start", stateful=False), OP_TIMEOUT_S))

    def restore(self, watch: Callable[[], None], give_up: Callable[[], None], timeout_s: float) -> None:
        """Start it from its saved memory.

        Args:
            watch: called about once a second meanwhile.
            give_up: called when it takes longer than `timeout_s`; it should make LXD come to an end.

        Raises:
            StillAtWork, LxdError: as for `start`.
        """
        operation = self._begin("start", stateful=True)
        deadline = time.monotonic() + timeout_s
        given_up = False
        while True:
            try:
                self._daemon.wait(operation, 1)
                return
            except StillAtWork:
                watch()
                if time.monotonic() > deadline:
                    if given_up:
                        raise
                    given_up, deadline = True, time.monotonic() + OP_TIMEOUT_S
                    give_up()

    def await_idle(self, watch: Callable[[], None], timeout_s: float) -> None:
        """Wait until LXD has done what it was asked to do with this container, be it by a node that was killed since.

        Args:
            watch: called about once a second meanwhile.

        Raises:
            StillAtWork: it takes too long.
        """
        deadline = time.monotonic() + timeout_s
        for operation in self._operations():
            while True:
                try:
                    self._daemon.wait(operation, 1)
                except StillAtWork:
                    watch()
                    if time.monotonic() > deadline:
                        raise
                    continue
                except LxdError:  # it failed, or is forgotten: it is over
                    pass
                break

    def busy(self) -> bool:
        """Whether LXD is doing something with this container."""
        return bool(self._operations())

    def _operations(self) -> list[str]:
        """What LXD does with this container now."""
        found = self._daemon.get("operations", params={"recursion": 1}) or {}
        return [
            str(operation["id"])
            for state in ("pending", "running")
            for operation in found.get(state) or ()
            if any(self.name in _last_parts(urls) for urls in (operation.get("resources") or {}).values())
        ]

    def save(self, timeout_s: float) -> None:
        """Write its memory into its volume, and end it. When that fails it runs on.

        Raises:
            StillAtWork: it takes longer than `timeout_s`. It may end either way yet: to end CRIU in the middle of it
                would ruin the application.
            LxdError: as for `start`.
        """
        self._daemon.wait(self._begin("stop", stateful=True), timeout_s)

    def stop(self, timeout_s: float) -> bool:
        """Ask it to end, and kill it when it does not.

        Returns:
            Whether it had to be killed.

        Raises:
            LxdError: it cannot be killed.
        """
        seconds = max(1, round(timeout_s + 0.49))
        for force in (False, True):
            try:
                operation = self._begin("stop", stateful=False, force=force, timeout=seconds)
                self._daemon.wait(operation, seconds + OP_TIMEOUT_S)
            except LxdError:
                if force and not self._stops():
                    raise
            if self._stops(0 if not force else OP_TIMEOUT_S):
                return force
        return True

    def _patiently(self, act: Callable[[], object]) -> None:
        """Do it when LXD has come to the end of what it does with this container: it says `stopped` before that."""
        deadline = time.monotonic() + OP_TIMEOUT_S
        while True:
            try:
                act()
                return
            except LxdError as error:
                if _BUSY not in str(error) or time.monotonic() > deadline:
                    raise
            time.sleep(_POLL_S)

    def _begin(self, action: str, *, stateful: bool, force: bool = False, timeout: int = -1) -> str:
        body = {"action": action, "stateful": stateful, "force": force, "timeout": timeout}
        return self._daemon.put("instances", self.name, "state", body=body)

    def _stops(self, timeout_s: float = 0) -> bool:
        deadline = time.monotonic() + timeout_s
        while True:
            row = self.row()
            if row is None or row.stopped:
                return True
            if time.monotonic() >= deadline:
                return False
            time.sleep(_POLL_S)


def configuration(app: AppConfig, settings: LxdSettings, variables: Mapping[str, str]) -> dict[str, str]:
    """LXD's keys for a container that runs this application.

    Args:
        variables: the environment of the container's own init, when there is no command.

    Raises:
        ConfigError: a variable that LXD cannot take.
    """
    lines = ["lxc.apparmor.profile ="]
    halt = settings.halt_signal
    if app.command:
        lines.append(f"lxc.init.cmd = {inside.INIT}")
        halt = "SIGTERM"
    if halt is not None:
        lines.append(f"lxc.signal.halt = {halt}")
    if settings.ipv4 is not None:
        lines.append(f"lxc.net.0.ipv4.address = {settings.ipv4}")
    if settings.gateway is not None:
        lines.append(f"lxc.net.0.ipv4.gateway = {settings.gateway}")
    config = {
        **settings.config,
        "boot.autostart": "false",  # else LXD starts what ran when the machine went down, wherever its owner is now
        "security.privileged": "true",
        "raw.lxc": "\n".join([*lines, ""]),
    }
    if not app.command:
        for name, value in variables.items():
            if not value.isprintable():
                raise ConfigError(f"env.{name}", "LXD takes printable text only, unless there is a command")
            config[f"environment.{name}"] = value
    return config


def words(app: AppConfig) -> list[str]:
    """The command as it reads inside."""
    return [expand(word, IN_CONTAINER) for word in app.command]


def _last_parts(urls: Iterable[str] | None) -> set[str]:
    """What addresses of LXD's API name."""
    return {url.partition("?")[0].rpartition("/")[2] for url in urls or ()}


def _root(pool: str) -> dict[str, str]:
    return {"type": "disk", "path": "/", "pool": pool}
