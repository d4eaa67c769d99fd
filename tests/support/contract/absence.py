"""Whether engines are tried at all in this run of tests."""

import os


def absent() -> str | None:
    """Why no engine but the embedded one is tried here; None when they are."""
    if os.environ.get("P2PLAYER_ENGINES") == "0":
        return "P2PLAYER_ENGINES=0"
    return None if os.geteuid() == 0 else "engines need root"
