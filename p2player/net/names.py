"""What may be the name of a node, a site or a mesh: words that need no quoting in a shell, a path or a URL."""

import re
from typing import Final

from p2player.errors import Usage

MAX_NAME_CHARS: Final = 63
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


def is_name(text: str) -> bool:
    """Whether `text` may name a node or a mesh."""
    return _NAME.fullmatch(text) is not None


def is_site(text: str) -> bool:
    """Whether `text` may name a site; empty means that none was given."""
    return not text or is_name(text)


def check_name(what: str, text: str) -> str:
    """Return `text` if it is a name.

    Args:
        what: the thing to be named, for the error.

    Raises:
        Usage: it is none.
    """
    if not is_name(text):
        allowed = f"1 to {MAX_NAME_CHARS} letters, digits, '.', '_' or '-', and begin with a letter or digit"
        raise Usage(f"{what} {text!r} must be {allowed}")
    return text
