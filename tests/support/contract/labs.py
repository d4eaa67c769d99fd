"""A node's engine for tests, of whichever kind: its daemon or its folders, in a network of its own where asked."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from backends.base import EngineSettings


class Lab(Protocol):
    """What `bench.enginelab` has of each engine: one node's, while the block runs."""

    @property
    def settings(self) -> EngineSettings: ...

    @property
    def environment(self) -> Mapping[str, str]: ...

    def __enter__(self) -> Any: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def command(self, argv: Sequence[str]) -> list[str]:
        """What runs `argv` in the node's namespaces."""
        ...


def make_lab(engine: str, root: Path, name: str, netns: str | None = None) -> Lab:
    """The node of an engine, not entered yet.

    Args:
        root: an existing folder for its files.
        netns: path of a network namespace that exists.
    """
    # Each is imported only for its own engine: what it needs may not be there.
    if engine == "runc":
        from bench.enginelab.runc import RuncNode

        return RuncNode(root, name, netns=netns)
    if engine == "lxd":
        from bench.enginelab.lxd import LxdNode

        return LxdNode(root, name, netns=netns)
    from bench.enginelab.libvirt import LibvirtNode

    return LibvirtNode(root, name, netns=netns)
