"""Which engines are tried, and how a test that needs one that is not here says so."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import pytest

from backends.registry import builtin
from tests.support.contract.rigs import ProcessRig, Rig, Unavailable, absent

RIGS: dict[str, type[Rig]] = {"process": ProcessRig}
PROGRAMS = {"runc": "runc", "lxd": "lxd", "libvirt": "libvirtd"}


def params(*names: str) -> list[object]:
    """Parameters of a fixture: engines by name. Each has its daemons in one worker of a parallel run."""
    return [
        name if name == "process" else pytest.param(name, marks=[pytest.mark.engine, pytest.mark.xdist_group(name)])
        for name in names
    ]


@contextlib.contextmanager
def opened(name: str, home: Path) -> Iterator[Rig]:
    """The rig of an engine while the block runs.

    Where there is none the test is skipped, with the reason; in continuous integration it fails, if the engine is
    installed and only does not run.
    """
    reason = None if name == "process" else absent()
    if reason:
        pytest.skip(f"{name}: {reason}")
    if name not in RIGS:
        pytest.skip(f"{name}: {builtin()[name].probe().reason}")
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
