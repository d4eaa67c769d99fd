"""The seam between the contract suite and an engine: how applications get onto it, and what may be expected of it.

A rig has two nodes, `HERE` and `THERE`: places that share nothing but the machine. Each rig declares by `Facets` what
the engine cannot promise, so that a test says in one word why it does not run somewhere.
"""

import os
import secrets
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from backends import config
from backends.base import AppLayout, Backend, EngineSettings
from backends.registry import builtin
from tests.support.apps import toml
from tests.support.contract import leftovers

HERE, THERE = 0, 1


class Unavailable(Exception):
    """The engine cannot be used on this machine; the text says why."""


@dataclass(frozen=True, slots=True)
class Facets:
    """What differs between engines.

    Attributes:
        memory: it moves with the application; else the application is asked to write it down.
        exit_known: how an application ended by itself is known, by its exit code.
        absent_command: a command that does not exist is noticed before anything was executed.
        log_moves: what was printed moves with the instance.
        prints_fast: megabytes of output take less than seconds.
        healthy_after_s: the shortest life that makes sense to ask for.
    """

    memory: bool
    exit_known: bool
    absent_command: bool
    prints_fast: bool
    log_moves: bool
    healthy_after_s: float


class Rig(ABC):
    """One engine with two nodes, while the block runs.

    Args:
        root: a folder for all that it makes.

    Attributes:
        instance: names in the instance folder of a checkpointed application.
        family: how many processes of the program of that name the host sees.
    """

    name: str
    facets: Facets
    instance: frozenset[str]
    family: int

    def __init__(self, root: Path) -> None:
        self.root = root

    @abstractmethod
    def __enter__(self) -> Self:
        """Start what the nodes need.

        Raises:
            Unavailable: it does not start, or the engine's probe says no.
        """

    @abstractmethod
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    @abstractmethod
    def layers(self, program: str, folder: Path) -> tuple[Path, Path]:
        """Make a base layer and an app layer that holds `program`, in `folder`."""

    def settings(self, node: int = HERE) -> EngineSettings:
        """Where a node finds its engines."""
        return EngineSettings()

    def command(self, words: Sequence[str], node: int = HERE) -> list[str]:
        """What runs `words` where a p2player node of this engine would run."""
        return list(words)

    def environment(self, node: int = HERE) -> Mapping[str, str]:
        """The environment of such a p2player node."""
        return os.environ

    def words(self) -> list[str]:
        """The command of a configuration that runs the program of the app layer; none where the guest knows it."""
        return ["/bin/sh", "{app}/main.sh"]

    def tables(self, line: str = "") -> str:
        """The engine's own table of a configuration, with one more line."""
        return f"[{self.name}]\n{line}\n" if line else ""

    def backend(self, node: int = HERE, *, healthy_after_s: float | None = None) -> Backend:
        """A fresh one, as a node that has just started has."""
        patience_s = self.facets.healthy_after_s if healthy_after_s is None else healthy_after_s
        return builtin(self.settings(node), healthy_after_s=patience_s)[self.name]

    def layout(
        self,
        program: str,
        node: int = HERE,
        *,
        app_id: str | None = None,
        stop_timeout_s: float = 5.0,
        hooks: Mapping[str, object] | None = None,
        command: list[str] | None = None,
    ) -> AppLayout:
        """An application that runs `program`, on `node`; the same `app_id` makes it the same one on both nodes."""
        app_id = app_id or secrets.token_hex(16)
        place = self.root / f"node{node}"
        base, app = self.layers(program, place / "layers" / app_id)
        folder = place / "apps" / app_id
        folder.mkdir(parents=True)
        words = command or self.words() or None
        text = toml(command=words, stop_timeout_s=stop_timeout_s, hooks=hooks) + self.tables()
        return AppLayout(app_id, app_id[:6], folder, config.parse(text), base=base, app=app)

    def of_another_cpu(self, facts: Mapping[str, str]) -> Mapping[str, str]:
        """Facts as of a machine whose processor knows something that this one does not."""
        raise NotImplementedError

    def damage(self, layout: AppLayout) -> None:
        """Cut the memory of a suspended application short."""
        raise NotImplementedError

    def listed(self, layout: AppLayout) -> list[str]:
        """What the engines of both nodes list of an application, and what is mounted of it."""
        return []

    def processes(self, layout: AppLayout) -> list[int]:
        """Host pids of what executes of an application."""
        return leftovers.processes_of(layout.app_id)


class ProcessRig(Rig):
    """The embedded backend: needs nothing."""

    name = "process"
    facets = Facets(
        memory=False, exit_known=True, absent_command=True, prints_fast=True, log_moves=False, healthy_after_s=0.05
    )
    instance = frozenset({"count"})
    family = 3

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def layers(self, program: str, folder: Path) -> tuple[Path, Path]:
        base, app = folder / "base", folder / "app"
        for path in (base, app):
            path.mkdir(parents=True)
        (app / "main.sh").write_text(program)
        return base, app
