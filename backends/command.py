"""From the words of a configuration to the argv and the environment of a process.

`{base}`, `{app}` and `{state}` stand for folders. Braces mean something only around a bare name, so that JSON, awk and
shell text can be written as it is: `{"a": 1}` and `{print $1}` are literal, `${name}` belongs to the shell, and
`{{name}}` is a literal `{name}`. Any other `{name}` is a mistake, and told.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from backends.base import AppLayout
from backends.errors import ConfigError

PLACEHOLDERS = ("app", "base", "state")
RUN_MARK = "P2P_RUN"


@dataclass(frozen=True, slots=True)
class Folders:
    """Where the two layers and the state folder are for the process that is told."""

    base: str
    app: str
    state: str

    @classmethod
    def of(cls, layout: AppLayout) -> "Folders":
        """As they are on this machine."""
        return cls(str(layout.base), str(layout.app), str(layout.state_dir))

    def named(self) -> dict[str, str]:
        return {"base": self.base, "app": self.app, "state": self.state}


IN_CONTAINER = Folders("/", "/", "/var/lib/p2player")
"""In a container the two layers are one file system, and what the application writes is kept wherever it writes it."""

_BRACES = re.compile(r"\{\{(?P<literal>[A-Za-z_]\w*)\}\}|(?<!\$)\{(?P<name>[A-Za-z_]\w*)\}", re.ASCII)

# All that an application sees of the node's own environment, which may hold secrets.
_INHERITED = ("HOME", "LANG", "LC_ALL", "LC_CTYPE", "LOGNAME", "PATH", "SHELL", "TMPDIR", "TZ", "USER")
_DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def check_placeholders(word: str, where: str) -> None:
    """Raise ConfigError when `word` has a placeholder that nobody fills."""
    for match in _BRACES.finditer(word):
        name = match["name"]
        if name is not None and name not in PLACEHOLDERS:
            known = " ".join(f"{{{known}}}" for known in PLACEHOLDERS)
            raise ConfigError(
                where, f"unknown placeholder {{{name}}}; known: {known}; a literal is written {{{{{name}}}}}"
            )


def expand(word: str, folders: Folders) -> str:
    """Fill the placeholders of one word."""
    named = folders.named()

    def fill(match: re.Match[str]) -> str:
        if match["literal"] is not None:
            return f"{{{match['literal']}}}"
        return named[match["name"]]

    check_placeholders(word, "command")
    return _BRACES.sub(fill, word)


def arguments(words: tuple[str, ...], folders: Folders) -> list[str]:
    """The argv that `words` stand for."""
    return [expand(word, folders) for word in words]


def environment(layout: AppLayout, extra: Mapping[str, str], folders: Folders | None = None) -> dict[str, str]:
    """The whole environment of a process of this application: little of ours, then the file's, then P2P_*.

    Args:
        folders: where the process finds its layers when it runs in a container; such a one gets nothing of ours.
    """
    if folders is None:
        env = {name: os.environ[name] for name in _INHERITED if name in os.environ}
        folders = Folders.of(layout)
    else:
        env = {"HOME": "/root"}
    env.setdefault("PATH", _DEFAULT_PATH)
    env.update({name: expand(value, folders) for name, value in layout.config.env.items()})
    env.update({f"P2P_{name.upper()}": path for name, path in folders.named().items()})
    env["P2P_APP_ID"] = layout.app_id
    env["P2P_NAME"] = layout.name
    env["P2P_ADDRESSES"] = " ".join(layout.config.addresses)
    env.update(extra)
    return env
