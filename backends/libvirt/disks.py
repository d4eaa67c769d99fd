"""The chain of images below a machine's disk: base <- app <- instance.

Each layer's folder holds `disk.qcow2` or `disk`; what it is, its first bytes say. A qcow2 file in the app layer is an
overlay of the base's disk; an app layer without a disk has nothing of its own. The chain is given to QEMU in full, so
the names in the headers of overlays do not matter, and none that a peer wrote is followed.
"""

import os
import shutil
import subprocess
from pathlib import Path

from backends.base import AppLayout
from backends.errors import BackendError, BackendUnavailable
from backends.libvirt.image import Image, ImageUnfit, inspect

QCOW2, RAW = "disk.qcow2", "disk"
INSTANCE = QCOW2

_CREATE_S = 30.0


class DiskFailed(BackendError):
    """qemu-img could not do what was asked of it."""


def layers_of(base: Path, app: Path) -> list[Image]:
    """The read-only images, topmost first.

    Raises:
        ImageUnfit: a layer has none, or one that cannot be used.
    """
    images = []
    top = disk_of(app)
    if top is not None:
        images.append(inspect(top))
        if images[0].format == "raw" or images[0].backing is None:
            return images  # a whole disk of its own
    bottom = disk_of(base)
    if bottom is None:
        raise ImageUnfit(f"the base layer has no disk: there is neither {QCOW2} nor {RAW} in {base}")
    images.append(inspect(bottom))
    if images[-1].backing is not None:
        raise ImageUnfit(f"{bottom} is only what differs from another image: qemu-img convert makes a whole one of it")
    return images


def chain_of(layout: AppLayout) -> list[Image]:
    """All images, the instance's first; that one is made if it is not there.

    Raises:
        ImageUnfit, DiskFailed, BackendUnavailable: it cannot be had.
    """
    below = layers_of(layout.base, layout.app)
    path = layout.state_dir / INSTANCE
    if not os.path.lexists(path):
        overlay(path, below[0])
    instance = inspect(path)
    if instance.format != "qcow2":
        raise ImageUnfit(f"{path} is not a qcow2 file")
    return [instance, *below]


def overlay(path: Path, below: Image) -> None:
    """Make an empty image at `path` upon another one. Its header names that by its last part only."""
    new = path.with_name(path.name + ".new")
    backing = ("-u", "-b", below.path.name, "-F", below.format)
    qemu_img("create", "-q", "-f", "qcow2", *backing, str(new), str(below.size_bytes), timeout_s=_CREATE_S)
    new.rename(path)


def qemu_img(*arguments: str, timeout_s: float, folder: Path | None = None) -> str:
    """Run qemu-img; gives what it printed.

    Raises:
        BackendUnavailable: it is not installed.
        DiskFailed: it failed or took too long.
    """
    program = shutil.which("qemu-img")
    if program is None:
        raise BackendUnavailable("needs qemu-img, of the package qemu-utils")
    try:
        done = subprocess.run(
            [program, *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=timeout_s,
            cwd=folder,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise DiskFailed(f"qemu-img {arguments[0]} did not end within {timeout_s:g} s") from None
    if done.returncode != 0:
        lines = done.stderr.decode(errors="replace").strip().splitlines() or [f"exit code {done.returncode}"]
        raise DiskFailed(f"qemu-img {arguments[0]}: {lines[-1]}")
    return done.stdout.decode(errors="replace")


def disk_of(layer: Path) -> Path | None:
    """The file that is a layer's disk; None if it has none."""
    for name in (QCOW2, RAW):
        path = layer / name
        if os.path.lexists(path):
            return path
    return None
