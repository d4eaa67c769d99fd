"""`STATE/config.toml`: what an operator may set, read strictly.

All keys are optional; an unknown key, or a value of the wrong type, is an error that names the key.

    ===================== ============ ========== ======================================================================
    key                   written as   default    meaning
    ===================== ============ ========== ======================================================================
    limit_in, limit_out   "80Mbit/s"   no cap     caps on what this node receives and sends, all sessions together
    gossip_preset         "lan"        see right  timing of the gossip: "lan", "wan" or "local"; by default "local" for
                                                  a node that listens on loopback only, else "lan"
    labels                table        none       what this node tells others about itself: up to 32 printable
                                                  texts of 128 bytes at most, such as `{ rack = "r7", metered = "yes" }`
    store_high_watermark  0.90         0.90       collecting starts when so much of the file system is used ...
    store_low_watermark   0.80         0.80       ... and evicts unused layers until no more than this is
    warm_auto             true         false      place popular layers ahead of need without being asked
    warm_budget_bytes     "20GiB"      "10GiB"    how much of the store automatic warming may fill on this node
    return_basis          "1h"         "1h"       how long the sealed final image of a migration is kept, so that the
                                                  way back is a small delta; 0: not at all
    control_tcp           "HOST:PORT"  off        also serve the control API on this loopback address
    control_token_file    "/path"      STATE/     file with the bearer token that the TCP listener asks for; made with a
                                       control.   random token if it is not there
                                       token
    log_format            "json"       "text"     one line an event, for people or for machines
    log_level             "debug"      "info"     what is logged: "debug" (with traces of failures), "info", "warning"
                                                  or "error", and what is graver
    engines               table        none       where the engines of applications are; see below
    ===================== ============ ========== ======================================================================

The table `[engines]`; what is not said is looked for where the engine's own tools look:

    ===================== =========================== ==================================================================
    criu                  "/path"                     the `criu` program that saves and restores containers of `runc`
    lxd_socket            "/path"                     LXD's unix socket
    lxd_pool              "NAME"                      LXD's storage pool, of driver `dir`, on which instances are made
    libvirt_uri           "qemu:///system"            the libvirt to speak to, as in `virsh -c`
    ===================== =========================== ==================================================================

Sizes, rates and durations are texts as in `p2player.quantities`, or plain numbers of bytes and seconds.
"""

import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Literal

from backends.base import EngineSettings
from gossip.errors import Malformed
from gossip.inventory import MAX_LABEL_BYTES, MAX_LABELS, check_label
from p2player.addresses import Address, is_loopback, parse_address
from p2player.errors import Refused, Usage
from p2player.quantities import parse_duration, parse_rate, parse_size

GossipPreset = Literal["lan", "wan", "local"]
LogFormat = Literal["text", "json"]
LogLevel = Literal["debug", "info", "warning", "error"]

MAX_CONFIG_BYTES: Final = 64 << 10
MAX_RETURN_BASIS_S: Final = 30 * 86400.0
MAX_ENGINE_TEXT_BYTES: Final = 4096

_NO_LABELS: Final[Mapping[str, str]] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Settings:
    """The settings of one node, checked; the module's table says what each means.

    Rates are bytes a second, None for no cap; watermarks are parts of the file system between 0 and 1.
    """

    limit_in: int | None = None
    limit_out: int | None = None
    gossip_preset: GossipPreset | None = None
    labels: Mapping[str, str] = field(default_factory=lambda: _NO_LABELS)
    store_high_watermark: float = 0.90
    store_low_watermark: float = 0.80
    warm_auto: bool = False
    warm_budget_bytes: int = 10 << 30
    return_basis_s: float = 3600.0
    control_tcp: Address | None = None
    control_token_file: Path | None = None
    log_format: LogFormat = "text"
    log_level: LogLevel = "info"
    engines: EngineSettings = field(default_factory=EngineSettings)

    def preset_for(self, listen_host: str) -> GossipPreset:
        """The gossip preset of a node that listens on `listen_host`."""
        return self.gossip_preset or ("local" if is_loopback(listen_host) else "lan")


def load(path: Path) -> Settings:
    """Read the settings; a file that is not there gives the defaults.

    Raises:
        Usage: a key is unknown, a value has the wrong type or is out of range, or it is not TOML.
        Refused: the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_CONFIG_BYTES + 1)
    except FileNotFoundError:
        return Settings()
    except OSError as error:
        raise Refused(f"{path}: {error.strerror}") from None
    if len(data) > MAX_CONFIG_BYTES:
        raise Usage(f"{path}: larger than {MAX_CONFIG_BYTES} bytes")
    try:
        return parse(data.decode())
    except UnicodeDecodeError:
        raise Usage(f"{path}: not UTF-8") from None
    except Usage as error:
        raise Usage(f"{path}: {error}") from None


def parse(text: str) -> Settings:
    """Read settings from TOML text.

    Raises:
        Usage: as `load`.
    """
    try:
        document = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise Usage(f"not valid TOML: {error}") from None
    values: dict[str, Any] = {}
    for key, value in document.items():
        reader = READERS.get(key)
        if reader is None:
            raise Usage(f"unknown key {key!r}; known are {', '.join(sorted(READERS))}")
        try:
            values["return_basis_s" if key == "return_basis" else key] = reader(value)
        except Usage as error:
            raise Usage(f"key {key!r}: {error}") from None
    settings = Settings(**values)
    if not settings.store_low_watermark < settings.store_high_watermark:
        raise Usage("key 'store_low_watermark': must be below store_high_watermark")
    return settings


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise Usage(f"must be a text in quotes, not {_kind(value)}")
    return value


def _flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise Usage(f"must be true or false, not {_kind(value)}")
    return value


def _quantity(value: object, parse_text: Callable[[str], float]) -> float:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise Usage(f"must be a number or a text, not {_kind(value)}")
    # A plain number goes the way of its text, so that both are held to the same bounds.
    return parse_text(value if isinstance(value, str) else format(value, "f" if isinstance(value, float) else "d"))


def _rate(value: object) -> int:
    return int(_quantity(value, parse_rate))


def _size(value: object) -> int:
    return int(_quantity(value, parse_size))


def _basis(value: object) -> float:
    seconds = _quantity(value, parse_duration)
    if seconds > MAX_RETURN_BASIS_S:
        raise Usage("must be 30 days at most")
    return seconds


def _fraction(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise Usage(f"must be a number, not {_kind(value)}")
    if not 0 < value <= 1:
        raise Usage(f"must be a part of the file system, above 0 and up to 1, not {value}")
    return float(value)


def _one_of(*choices: str) -> Callable[[object], str]:
    def read(value: object) -> str:
        if not isinstance(value, str) or value not in choices:
            raise Usage(f"must be one of {', '.join(choices)}, not {value!r}")
        return value

    return read


def _labels(value: object) -> Mapping[str, str]:
    if not isinstance(value, dict):
        raise Usage(f"must be a table, not {_kind(value)}")
    if len(value) > MAX_LABELS:
        raise Usage(f"holds {len(value)} labels; {MAX_LABELS} are allowed")
    for key, text in value.items():
        if not isinstance(text, str):
            raise Usage(f"label {key!r} must be a text in quotes, not {_kind(text)}")
        try:
            check_label(key, text)
        except Malformed:
            raise Usage(
                f"label {key!r} is empty, or it or its text is not printable or longer than {MAX_LABEL_BYTES} bytes"
            ) from None
    return MappingProxyType(dict(value))


def _loopback(value: object) -> Address:
    address = parse_address(_text(value))
    try:
        ip_address(address.host)
    except ValueError:
        raise Usage("must be an address, 127.0.0.1:7421 or [::1]:7421, not a name") from None
    if not is_loopback(address.host):
        raise Usage(f"{address.host} is not a loopback address: the control API is never offered to a network")
    return address


def _absolute(value: object) -> Path:
    path = Path(_text(value))
    if not path.is_absolute():
        raise Usage("must be an absolute path")
    return path


def _word(value: object) -> str:
    text = _text(value)
    if not text or not text.isprintable() or len(text.encode()) > MAX_ENGINE_TEXT_BYTES:
        raise Usage(f"must be a printable text of 1 to {MAX_ENGINE_TEXT_BYTES} bytes")
    return text


def _engines(value: object) -> EngineSettings:
    if not isinstance(value, dict):
        raise Usage(f"must be a table, not {_kind(value)}")
    values: dict[str, Any] = {}
    for key, setting in value.items():
        reader = ENGINE_READERS.get(key)
        if reader is None:
            raise Usage(f"unknown key {key!r}; known are {', '.join(sorted(ENGINE_READERS))}")
        try:
            values[key] = reader(setting)
        except Usage as error:
            raise Usage(f"{key}: {error}") from None
    return EngineSettings(**values)


def _kind(value: object) -> str:
    return {dict: "a table", list: "a list", str: "a text", bool: "a flag"}.get(type(value), f"{value}")


READERS: Final[Mapping[str, Callable[[object], Any]]] = {
    "limit_in": _rate,
    "limit_out": _rate,
    "gossip_preset": _one_of("lan", "wan", "local"),
    "labels": _labels,
    "store_high_watermark": _fraction,
    "store_low_watermark": _fraction,
    "warm_auto": _flag,
    "warm_budget_bytes": _size,
    "return_basis": _basis,
    "control_tcp": _loopback,
    "control_token_file": _absolute,
    "log_format": _one_of("text", "json"),
    "log_level": _one_of("debug", "info", "warning", "error"),
    "engines": _engines,
}
ENGINE_READERS: Final[Mapping[str, Callable[[object], Any]]] = {
    "criu": _absolute,
    "lxd_socket": _absolute,
    "lxd_pool": _word,
    "libvirt_uri": _word,
}
