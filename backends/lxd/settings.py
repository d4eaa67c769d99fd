"""The `[lxd]` table of an application's configuration, read strictly.

    [lxd]
    network = "bridge:br0"          # or "none"; a bridge that exists on every node
    mac = "02:00:00:00:00:05"       # they move with the application, and so do its open connections
    ipv4 = "10.88.0.5/24"
    gateway = "10.88.0.1"
    halt_signal = "SIGUSR2"         # what asks the container's own /sbin/init to end; a `command` gets SIGTERM
    config = { "limits.memory" = "256MiB" }     # further keys of LXD's, as in `lxc config set`

Containers are privileged, without AppArmor: CRIU restores no others reliably.
"""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from backends import appnet
from backends.base import AppConfig
from backends.errors import ConfigError

_SIGNAL = re.compile(r"SIG[A-Z0-9]{2,10}(\+[0-9]{1,2})?", re.ASCII)
_KEY = re.compile(r"(limits|linux\.sysctl|security\.syscalls|user)\.[A-Za-z0-9_.-]{1,60}", re.ASCII)
_MAX_KEYS = 64
_MAX_TEXT = 1024


@dataclass(frozen=True, slots=True)
class LxdSettings:
    """What an application asks of LXD.

    Attributes:
        bridge: name of the bridge that it is connected to; None: it has a loopback device only.
        mac: of its network device; always one, as LXD would give it another on every node.
        ipv4: address with prefix length, set inside; None: none.
        gateway: of the default route.
        halt_signal: None: what LXC takes for the container's init.
        config: further configuration keys.
    """

    bridge: str | None
    mac: str
    ipv4: str | None = None
    gateway: str | None = None
    halt_signal: str | None = None
    config: Mapping[str, str] = field(default_factory=dict)


def read(app: AppConfig, app_id: str) -> LxdSettings:
    """Check the table.

    Raises:
        ConfigError: an unknown key, or a value that makes no sense.
    """
    table = app.engines.get("lxd", {})
    for key in table:
        if key not in appnet.KEYS | {"halt_signal", "config"}:
            raise ConfigError(f"lxd.{key}", "unknown key")
    network = appnet.parse("lxd", table, "none")
    if network.host:
        raise ConfigError("lxd.network", "LXD cannot save a container that uses the network of its host")
    halt = _text(table, "halt_signal")
    if halt is not None and not _SIGNAL.fullmatch(halt):
        raise ConfigError("lxd.halt_signal", "must be the name of a signal")
    return LxdSettings(
        bridge=network.bridge,
        mac=(network.mac or default_mac(app_id)).lower(),
        ipv4=network.ipv4,
        gateway=network.gateway,
        halt_signal=halt,
        config=_config(table),
    )


def default_mac(app_id: str) -> str:
    """A locally administered address that is the application's own, the same on every node."""
    digest = hashlib.sha256(app_id.encode()).digest()
    return ":".join(f"{byte:02x}" for byte in (0x02, *digest[:5]))


def _config(table: Mapping[str, Any]) -> dict[str, str]:
    value = table.get("config", {})
    if not isinstance(value, dict) or len(value) > _MAX_KEYS:
        raise ConfigError("lxd.config", f"must be a table of at most {_MAX_KEYS} keys")
    for key in value:
        if not _KEY.fullmatch(key):
            raise ConfigError(f"lxd.config.{key}", "is none of limits.*, linux.sysctl.*, security.syscalls.*, user.*")
        _text(value, key, "lxd.config.")
    return dict(value)


def _text(table: Mapping[str, Any], key: str, prefix: str = "lxd.") -> str | None:
    value = table.get(key)
    if value is None:
        return None
    if not isinstance(value, str) or not value or not value.isprintable() or len(value) > _MAX_TEXT:
        raise ConfigError(f"{prefix}{key}", "must be a short text")
    return value
