"""Folders of layers, as p2player takes them; each made once in a work folder and kept.

                base                                     app
    container   rootfs/ metadata.yaml                    rootfs/: an overlay's upper folder over the base's
    vm          vmlinuz initrd disk.qcow2                disk.qcow2: over the base's

A layer is known by what it is made from: its folder's name carries a digest of the recipe and of the sources here, so a
work folder that older sources filled is no trap. The same sources and packages give the same content.
"""

import hashlib
import shutil
import time
from functools import cache
from pathlib import Path

from bench.data.workshop import Workshop
from bench.paper.apps import disks, guest, packages, roots
from bench.paper.apps.catalog import APPLICATIONS, Application, Platform

RAM_MB = 100
_METADATA = """architecture: x86_64
creation_date: 1700000000
properties:
  architecture: x86_64
  description: Debian with a small Python
  os: Debian
  release: bookworm
"""


def base_layer(workshop: Workshop, platform: Platform) -> Path:
    """The folder of the base layer, which all applications have in common.

    Raises:
        Unavailable: this machine lacks something that it is made with.
    """
    tree = workshop.ingredient(
        _name("base", "container", _sources("container")), lambda folder: _base_tree(workshop, folder)
    )
    if platform == "container":
        return tree

    def build(folder: Path) -> None:
        guest.build(workshop, folder)
        disks.base(workshop, tree / "rootfs", folder / disks.DISK)
        packages.date(folder, 0.0)

    return workshop.ingredient(_name("base", "vm", _sources("vm")), build)


def app_layer(
    workshop: Workshop, key: str, platform: Platform, *, ram_mb: int = RAM_MB, rewrite_bytes_s: int = 0
) -> Path:
    """The folder of an application's layer: what it has besides the base.

    Args:
        ram_mb, rewrite_bytes_s: for applications that fill memory: how many MB, and how much of it they write anew.

    Raises:
        Unavailable: this machine lacks something that it is made with.
    """
    application = APPLICATIONS[key]
    settings = settings_of(application, ram_mb, rewrite_bytes_s)
    modules = tuple(f"inside/{name}" for name in application.modules)
    recipe = f"{application.packages}\n{application.without}\n{application.prepare}\n{settings}"
    variant = f"{key}-{ram_mb}mb-{rewrite_bytes_s}" if application.memory else key
    base = base_layer(workshop, "container") / "rootfs"

    def build(folder: Path) -> None:
        began_s = time.time() - packages.CLOCK_S
        upper = folder / "rootfs"
        place = upper / roots.PLACE
        place.mkdir(parents=True)
        for module in application.modules:
            shutil.copyfile(roots.INSIDE / module, place / module)
        (place / "settings").write_text(settings)
        if application.packages:
            packages.install(workshop, base, application.packages, application.without, application.prepare, upper)
            for path in place.glob("make_*"):
                path.unlink()
        packages.date(upper, began_s)

    tree = workshop.ingredient(_name(variant, "container", _sources("container", *modules) + recipe), build)
    if platform == "container":
        return tree
    disk = base_layer(workshop, "vm") / disks.DISK

    def build_disk(folder: Path) -> None:
        disks.app(workshop, disk, base, tree / "rootfs", folder / disks.DISK)
        packages.date(folder, 0.0)

    return workshop.ingredient(_name(variant, "vm", _sources("vm", *modules) + recipe), build_disk)


def settings_of(application: Application, ram_mb: int, rewrite_bytes_s: int) -> str:
    """The text of the file that tells the first process what it runs."""
    lines = [f"key {application.key}", *(f"program {words}" for words in application.programs)]
    if application.memory:
        lines.append(f"memory {ram_mb} {rewrite_bytes_s}")
    return "".join(f"{line}\n" for line in lines)


def _base_tree(workshop: Workshop, folder: Path) -> None:
    began_s = time.time() - packages.CLOCK_S
    roots.build(workshop, folder / "rootfs")
    (folder / "metadata.yaml").write_text(_METADATA)
    packages.date(folder, began_s)


@cache
def _sources(platform: Platform, *more: str) -> str:
    """A digest of what layers are made from, but for the packages."""
    digest = hashlib.blake2b(digest_size=16)
    here = Path(__file__).parent
    names = ("roots.py", "packages.py", "inside/main.py", *more)
    for name in names if platform == "container" else (*names, "guest.py", "disks.py"):
        digest.update((here / name).read_bytes())
    return digest.hexdigest()


def _name(variant: str, platform: Platform, recipe: str) -> str:
    return f"paper-{variant}-{platform}-{hashlib.blake2b(recipe.encode(), digest_size=4).hexdigest()}"
