"""The application's configuration file: TOML, read strictly.

    command = ["{app}/bin/server", "--data", "{state}"]
    env = { LANG = "C.UTF-8" }
    addresses = ["10.0.0.7:8080"]
    stop_timeout_s = 10

    [hooks]                       # argv lists; their output goes to the application's log
    before_suspend = ["..."]
    after_restore = ["..."]
    save = ["sh", "-c", "kill -USR1 $P2P_PID"]
    timeout_s = 30

    [runc]                        # one table a backend, passed on unread to that backend

An unknown key is an error, and so is an unknown placeholder: a typing mistake must show when the application is
created, not in the middle of a migration. The text may come from a peer: all of it is bounded.
"""

import math
import re
import tomllib
from collections.abc import Mapping
from typing import Any

from backends.base import AppConfig, Hooks
from backends.command import check_placeholders
from backends.errors import ConfigError

MAX_TEXT_BYTES = 64 * 1024
MAX_WORDS = 1024
MAX_VARIABLES = 256
MAX_ADDRESSES = 32  # records and inventories take these two bounds as they are here
MAX_ADDRESS_BYTES = 255
MAX_SECONDS = 600.0

ENGINES = frozenset({"runc", "lxd", "libvirt"})
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def parse(text: str) -> AppConfig:
    """Read a configuration file.

    Raises:
        ConfigError: it is no TOML, has unknown keys, wrong types or unknown placeholders, or is too large.
    """
    try:
        if len(text.encode()) > MAX_TEXT_BYTES:
            raise ConfigError("", f"larger than {MAX_TEXT_BYTES} bytes")
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError("", f"not valid TOML: {error}") from None
    except (RecursionError, ValueError) as error:  # nested too deep; a number that Python refuses; no Unicode
        raise ConfigError("", f"not acceptable TOML: {type(error).__name__}") from None

    table = _Table("", document)
    config = AppConfig(
        command=table.words("command"),
        env=table.variables("env"),
        addresses=table.addresses("addresses"),
        stop_timeout_s=table.seconds("stop_timeout_s", AppConfig().stop_timeout_s),
        hooks=_hooks(table.table("hooks")),
        engines={name: table.table(name).document for name in sorted(ENGINES & document.keys())},
    )
    table.refuse_others({"command", "env", "addresses", "stop_timeout_s", "hooks"} | ENGINES)
    return config


def _hooks(table: "_Table") -> Hooks:
    hooks = Hooks(
        before_suspend=table.words("before_suspend"),
        after_restore=table.words("after_restore"),
        save=table.words("save"),
        timeout_s=table.seconds("timeout_s", Hooks().timeout_s),
    )
    table.refuse_others({"before_suspend", "after_restore", "save", "timeout_s"})
    return hooks


class _Table:
    """One table of the document; reads typed values and names the full key in every error."""

    def __init__(self, prefix: str, document: Mapping[str, Any]) -> None:
        self.document = document
        self._prefix = prefix

    def _key(self, key: str) -> str:
        return f"{self._prefix}{key}"

    def table(self, key: str) -> "_Table":
        value = self.document.get(key, {})
        if not isinstance(value, dict):
            raise ConfigError(self._key(key), "must be a table")
        return _Table(f"{self._key(key)}.", value)

    def words(self, key: str) -> tuple[str, ...]:
        """A command: a non-empty list of strings with known placeholders."""
        if key not in self.document:
            return ()
        words = self._strings(key, MAX_WORDS)
        if not words or not words[0]:
            raise ConfigError(self._key(key), "must name a command")
        for position, word in enumerate(words):
            check_placeholders(word, f"{self._key(key)}[{position}]")
        return words

    def variables(self, key: str) -> dict[str, str]:
        table = self.table(key)
        if len(table.document) > MAX_VARIABLES:
            raise ConfigError(self._key(key), f"more than {MAX_VARIABLES} variables")
        for name, value in table.document.items():
            if not _VARIABLE.fullmatch(name):
                raise ConfigError(table._key(name), "not a name of an environment variable")
            if name.startswith("P2P_"):
                raise ConfigError(table._key(name), "variables that begin with P2P_ are set by p2player")
            _check_text(value, table._key(name))
            check_placeholders(value, table._key(name))
        return dict(table.document)

    def addresses(self, key: str) -> tuple[str, ...]:
        addresses = self._strings(key, MAX_ADDRESSES) if key in self.document else ()
        for position, address in enumerate(addresses):
            if not is_address(address):
                raise ConfigError(f"{self._key(key)}[{position}]", "not an address")
        return addresses

    def seconds(self, key: str, default: float) -> float:
        value = self.document.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise ConfigError(self._key(key), "must be a number of seconds")
        if not 0 < value <= MAX_SECONDS:
            raise ConfigError(self._key(key), f"must be above 0 and at most {MAX_SECONDS:.0f}")
        return float(value)

    def refuse_others(self, known: set[str] | frozenset[str]) -> None:
        unknown = sorted(self.document.keys() - known)
        if unknown:
            raise ConfigError(self._key(unknown[0]), "unknown key")

    def _strings(self, key: str, most: int) -> tuple[str, ...]:
        value = self.document[key]
        if not isinstance(value, list):
            raise ConfigError(self._key(key), "must be a list of strings")
        if len(value) > most:
            raise ConfigError(self._key(key), f"more than {most} entries")
        for position, word in enumerate(value):
            _check_text(word, f"{self._key(key)}[{position}]")
        return tuple(value)


def is_address(text: str) -> bool:
    """Whether `text` may stand among an application's addresses: printable, without spaces, of bounded length."""
    # Printable text has an encoding: it holds no lone surrogates.
    return bool(text) and text.isprintable() and " " not in text and len(text.encode()) <= MAX_ADDRESS_BYTES


def _check_text(value: object, where: str) -> None:
    if not isinstance(value, str):
        raise ConfigError(where, "must be a string")
    if "\0" in value:
        raise ConfigError(where, "must not contain NUL")
