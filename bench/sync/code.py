"""The state of the product's code that is being measured, as a short text: figures of two states are never mixed."""

import hashlib
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]
PRODUCT = ("p2player", "chunkstore", "gossip", "backends")
"""What a figure may depend on. Changes elsewhere (documentation, tests, the bench itself) leave old figures valid."""
UNKNOWN = "no-git"


def state(root: Path = ROOT) -> str:
    """The last commit that touched the product; `COMMIT+DIGEST` while there are changes that are not committed.

    The digest is that of the changes, so that a bench may be resumed as long as nothing changes again.
    """
    try:
        commit = _git(root, "log", "-1", "--format=%h", "--", *PRODUCT).strip()
        changes = _git(root, "diff", "HEAD", "--", *PRODUCT)
        new = _git(root, "ls-files", "--others", "--exclude-standard", "--", *PRODUCT).split()
    except (OSError, subprocess.CalledProcessError):
        return UNKNOWN
    if not changes and not new:
        return commit
    digest = hashlib.sha256(changes.encode(errors="surrogateescape"))
    for name in new:
        path = root / name
        digest.update(name.encode() + b"\0" + (path.read_bytes() if path.is_file() else b""))
    return f"{commit}+{digest.hexdigest()[:6]}"


def _git(root: Path, *arguments: str) -> str:
    command = ["git", "-C", str(root), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True, errors="surrogateescape").stdout
