"""Which engines are tried, and how a test that needs one that is not here says so."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import pytest

from backends import criu
from backends.base import EngineSettings
from tests.support.contract.containers import LxdRig, RuncRig
from tests.support.contract.ground import Ground
from tests.support.contract.machines import LibvirtRig
from tests.support.contract.rigs import ProcessRig, Rig, Unavailable

RIGS: dict[str, type[Rig]] = {rig.name: rig for rig in (ProcessRig, RuncRig, LxdRig, LibvirtRig)}
PROGRAMS = {"runc": "runc", "lxd": "lxd", "libvirt": "libvirtd"}
FIRST_WITH_TCP = (4, 2)
"""The first CRIU that can save TCP sockets on kernels from 6.13 on."""


def params(*names: str, suffix: str = "") -> list[object]:
    """Parameters of a module's fixture: engines by name.

    What an engine's daemons serve runs in one worker of a parallel run; `suffix` sets a module's own daemons apart.
    """
    return [
        name
        if name == "process"
        else pytest.param(name, marks=[pytest.mark.engine, pytest.mark.xdist_group(f"{name}{suffix}")])
        for name in names
    ]


@contextlib.contextmanager
def opened(name: str, home: Path) -> Iterator[Rig]:
    """The rig of an engine while the block runs.

    Where there is none the test is skipped, with the reason; in continuous integration it fails, if the engine is
    installed and only does not run.
    """
    folder = home / name
    folder.mkdir()
    rig = RIGS[name](folder)
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(rig)
        except Unavailable as error:
            refuse(name, str(error))
        yield rig


def refuse(name: str, reason: str) -> NoReturn:
    """Skip what needs this engine, or fail; see `opened`."""
    program = shutil.which(PROGRAMS[name], path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if os.environ.get("CI") == "true" and program is not None:
        pytest.fail(f"{program} is installed, but {name} does not run: {reason}")
    pytest.skip(f"{name}: {reason}")


@contextlib.contextmanager
def ground(name: str, home: Path) -> Iterator[Ground]:
    """Nodes on an engine while the block runs; skips and fails as `opened` does."""
    folder = home / f"{name}-ground"
    folder.mkdir()
    made = Ground(name, folder)
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(made)
        except Unavailable as error:
            refuse(name, str(error))
        yield made


def criu_without_tcp() -> str | None:
    """Why the CRIU of this machine cannot save open connections; None if it can."""
    path = criu.find(EngineSettings())
    version = None if path is None else criu.check(path).version
    if version is None:
        return "no CRIU works here"
    if tuple(int(part) for part in version.split(".")[:2]) < FIRST_WITH_TCP:
        return f"CRIU {version} cannot save TCP sockets on this kernel"
    return None
