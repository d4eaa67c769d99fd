"""Rigs of the two engines of containers: the layers are a busybox and a script, and memory is saved by CRIU."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

from backends.base import AppLayout, EngineSettings
from tests.support.contract.labs import Lab, make_lab
from tests.support.contract.rigs import Facets, Rig, Unavailable
from tests.support.contract.tampered_node import of_another_cpu
from tests.support.rootfs import busybox_rootfs

_APPLETS = (
    "cat",
    "echo",
    "head",
    "ip",
    "kill",
    "mv",
    "nc",
    "rm",
    "setsid",
    "sh",
    "sleep",
    "sync",
    "touch",
    "true",
    "yes",
)


def write_app(folder: Path, program: str) -> None:
    """What an app layer has beside the base: one script."""
    (folder / "rootfs").mkdir(parents=True)
    (folder / "rootfs" / "main.sh").write_text(program)


class LabRig(Rig):
    """A rig of which each node is a `Lab`."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self._stack = ExitStack()
        self.labs: list[Lab] = []

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            for name in ("here", "there"):
                folder = self.root / name
                folder.mkdir()
                try:
                    self.labs.append(stack.enter_context(make_lab(self.name, folder, name)))
                except Exception as error:  # whatever kept its daemon from coming up is the reason of the skip
                    raise Unavailable(f"its node does not start: {error}") from error
            probe = self.backend().probe()
            if not probe.available:
                raise Unavailable(probe.reason)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def settings(self, node: int = 0) -> EngineSettings:
        return self.labs[node].settings

    def command(self, words: Sequence[str], node: int = 0) -> list[str]:
        return self.labs[node].command(words)

    def environment(self, node: int = 0) -> Mapping[str, str]:
        return {**super().environment(node), **self.labs[node].environment}

    def of_another_cpu(self, facts: Mapping[str, str]) -> Mapping[str, str]:
        return of_another_cpu(self.name, facts)


class ContainerRig(LabRig):
    """What runc and LXD have in common."""

    family = 3

    def layers(self, program: str, folder: Path) -> tuple[Path, Path]:
        base, app = folder / "base", folder / "app"
        busybox_rootfs(base / "rootfs")
        write_app(app, program)
        return base, app

    def damage(self, layout: AppLayout) -> None:
        images = [path for path in layout.state_dir.rglob("*.img") if path.name.startswith(("pages-", "core-"))]
        assert images
        for path in images:
            with path.open("r+b") as file:
                file.truncate(path.stat().st_size // 2)

    def listed(self, layout: AppLayout) -> list[str]:
        mounts = Path("/proc/self/mountinfo").read_text().splitlines()
        return [line for line in mounts if layout.app_id in line]


class RuncRig(ContainerRig):
    """runc with CRIU; a node is a folder."""

    name = "runc"
    facets = Facets(
        memory=True, exit_known=True, absent_command=True, prints_fast=True, log_moves=False, healthy_after_s=0.2
    )
    instance = frozenset({"upper", "images"})


class LxdRig(ContainerRig):
    """A daemon a node."""

    name = "lxd"
    facets = Facets(
        memory=True, exit_known=True, absent_command=True, prints_fast=True, log_moves=False, healthy_after_s=0.5
    )
    instance = frozenset({"upper"})
