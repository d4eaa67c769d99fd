"""The contestants by name, and what is asked of each."""

from collections.abc import Mapping
from typing import Protocol

from bench.netlab import Host
from bench.sync import plan
from bench.sync.ours import P2player
from bench.sync.rivals import Casync, Rsync
from bench.sync.stage import Ground, Stage


class Tool(Protocol):
    """One contestant in one series. Only `run` is timed.

    Attributes:
        keeps_hard_links: whether its result is compared in that, too.
    """

    keeps_hard_links: bool

    def prepare(self, stage: Stage) -> None:
        """Once, between unshaped hosts: the source gets ready to hand out `new`, the destination to hold `old`."""

    def open(self, stage: Stage) -> None:
        """Once, on the link that is measured: start what has to run before the first run, until the stage ends."""

    def reset(self) -> None:
        """Before every run: make the destination as it was before the first one."""

    def run(self) -> Mapping[str, float]:
        """Bring `new` to the destination, as a user would; figures by name, to be kept beside the time.

        Raises:
            RunFailed: it did not work.
        """

    def finish(self) -> None:
        """After every run: see that the tree is at `Ground.result`."""

    def clear(self) -> None:
        """At last, also when the run failed: stop what `reset` started."""

    @property
    def destination(self) -> Host:
        """The host whose interface is read."""


def make(name: str, ground: Ground) -> Tool:
    """The contestant called `name`."""
    if name in (plan.OURS, plan.OURS_DONOR):
        return P2player(ground, name)
    if name == plan.CASYNC:
        return Casync(ground)
    _, way, *how = name.split("-")
    return Rsync(ground, daemon=way == "daemon", compress=how[-1] if how else None, block_4k="4k" in how)
