"""What a method is given: the layers of an application, its configuration, and somebody who uses it meanwhile."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Layers:
    """Two folders, to be used as layers; nobody writes to them."""

    base: Path
    app: Path


@dataclass(frozen=True, slots=True)
class Workload:
    """One application, ready to be created.

    Attributes:
        name: of the application.
        backend: that runs it.
        config: text of its configuration file.
        rsync: options that `rsync` needs beside `-a` so that its layers and its instance arrive as they are.
    """

    name: str
    backend: str
    layers: Layers
    config: str
    rsync: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Seen:
    """What a client saw of a service.

    Attributes:
        gap_s: the longest time without an answer.
        kept: what was looked at of the application's state, and whether it was as before.
        figures: more, by name.
        notes: what was lost, in words.
    """

    gap_s: float
    kept: Mapping[str, bool]
    figures: Mapping[str, float] = field(default_factory=dict)
    notes: Mapping[str, str] = field(default_factory=dict)


class Watch(Protocol):
    """Somebody who uses a service all the time, from a host of their own."""

    def begin(self) -> None:
        """Return once the service answers and the application is ready to be moved; gaps count from here.

        It may be called again after `end`, for another migration.

        Raises:
            ClientFailed: not in time.
        """

    def end(self) -> Seen:
        """Look at the application's state, and tell what was seen since `begin`.

        Raises:
            ClientFailed: the service does not answer any more.
        """

    def close(self) -> None:
        """Use it no longer. Idempotent."""
