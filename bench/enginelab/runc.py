"""A node's runc for tests and benchmarks: there is no daemon, so a folder and perhaps a network namespace are all."""

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from backends import criu
from backends.base import EngineSettings
from backends.runc import RuncBackend


class RuncNode:
    """One node; `backend` is for use from this process, `command` for a node process of its own.

    Args:
        root: a folder for whatever the test makes of this node.
        netns: path of a network namespace; bridges that the applications name are in it.
    """

    def __init__(self, root: Path, name: str, *, netns: str | None = None) -> None:
        self.root = root
        self.name = name
        self._netns = netns
        self.environment: dict[str, str] = {}
        self.settings = EngineSettings(criu=criu.find(EngineSettings()))

    @property
    def backend(self) -> RuncBackend:
        """Sees the bridges of the node's network."""
        return RuncBackend(self.settings, healthy_after_s=0.2, netns=Path(self._netns) if self._netns else None)

    def __enter__(self) -> Self:
        self.root.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing of its own runs: applications are for their owner to destroy."""

    def command(self, argv: Sequence[str]) -> list[str]:
        """`argv`, in the node's network. Not by `ip netns exec`, whose new mounts CRIU cannot tell apart."""
        return [*(["nsenter", f"--net={self._netns}"] if self._netns else []), *argv]
