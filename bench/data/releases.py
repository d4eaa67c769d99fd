"""Two releases of one application tree: Debian packages before and after a security update, with rebuilt binaries.

Debian's suite and its security updates hold two versions of the same upstream release of many packages; the tree is put
together from such packages, the older versions in `old` and the younger ones in `new`.
"""

import subprocess
from collections.abc import Mapping
from pathlib import Path

from bench.data.debs import Archive
from bench.data.pair import MB, Facts, check, measure
from bench.data.workshop import Workshop

SUITES = ("bookworm", "bookworm-updates", "bookworm-security")
FULL_MB = 120
PACKAGES = (
    "libpython3.11-minimal",
    "python3.11-minimal",
    "libssl3",
    "perl-base",
    "apache2-bin",
    "libpython3.11-stdlib",
    "openssl",
    "postgresql-client-15",
    "libpq5",
    "systemd",
    "libsystemd-shared",
    "udev",
    "php8.2-cli",
    "php8.2-common",
    "libmagickcore-6.q16-6",
    "libc6",
    "bind9-libs",
    "libglib2.0-0",
    "postgresql-15",
    "git",
    "libperl5.36",
    "libruby3.1",
)
"""In the order in which they are taken until the wanted size is reached."""


def build(workshop: Workshop, folder: Path, size_mb: int) -> Facts:
    """Lay pairs of versions below `old` and `new` until the new tree has nearly `size_mb`."""
    unpacked = workshop.ingredient("packages", lambda place: _unpack(workshop, place))
    sizes = {package: measure(unpacked / package / "new")[1] for package in PACKAGES if (unpacked / package).is_dir()}
    chosen = choose(sizes, size_mb * MB)
    check(bool(chosen), "releases: no package of this size has two versions in the archive")
    for side in ("old", "new"):
        (folder / side).mkdir()
        for package in chosen:
            subprocess.run(["cp", "-a", f"{unpacked / package / side}/.", str(folder / side)], check=True)
    changed = changed_files(folder / "old", folder / "new")
    total = sum(sizes[package] for package in chosen)
    full = size_mb >= FULL_MB
    check(changed >= (1000 if full else 1), f"releases: {changed} changed files only")
    check(not full or total >= 0.75 * FULL_MB * MB, f"releases: {total} bytes only")
    return {"packages": len(chosen), "changed_files": changed, "files_before": measure(folder / "old")[0]}


def choose(sizes: Mapping[str, int], limit_bytes: int) -> list[str]:
    """The packages in their order, each that still fits."""
    chosen, total = [], 0
    for package, size in sizes.items():
        if total + size <= limit_bytes:
            chosen.append(package)
            total += size
    return chosen


def _unpack(workshop: Workshop, place: Path) -> None:
    """Unpack the two youngest versions of each package that has two."""
    archive = Archive.of(workshop, *SUITES)
    for package in PACKAGES:
        versions = archive.versions(package)
        if len(versions) >= 2:
            archive.unpack(package, versions[-2], place / package / "old")
            archive.unpack(package, versions[-1], place / package / "new")


def changed_files(old: Path, new: Path) -> int:
    """Number of regular files that have the same path in both trees and another content."""
    count = 0
    for path in new.rglob("*"):
        before = old / path.relative_to(new)
        if path.is_symlink() or before.is_symlink() or not path.is_file() or not before.is_file():
            continue
        count += path.stat().st_size != before.stat().st_size or path.read_bytes() != before.read_bytes()
    return count
