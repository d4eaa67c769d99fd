"""Two releases of one application tree: Debian packages before and after a security update, with rebuilt binaries.

Debian's suite and its security updates hold two versions of the same upstream release of many packages; the tree is put
together from such packages, the older versions in `old` and the younger ones in `new`.
"""

import shutil
from pathlib import Path

from bench.data.debs import Archive
from bench.data.pair import MB, Facts, check, measure
from bench.data.workshop import Workshop

SUITES = ("bookworm", "bookworm-updates", "bookworm-security")
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
    """Unpack pairs of versions below `old` and `new` until the new tree has nearly `size_mb`."""
    archive = Archive.of(workshop, *SUITES)
    old, new, trial = folder / "old", folder / "new", folder / "trial"
    old.mkdir()
    new.mkdir()
    total = used = 0
    for package in PACKAGES:
        versions = archive.versions(package)
        if len(versions) < 2:
            continue
        archive.unpack(package, versions[-1], trial)
        size = measure(trial)[1]
        shutil.rmtree(trial)
        if total + size > size_mb * MB:
            continue
        archive.unpack(package, versions[-2], old)
        archive.unpack(package, versions[-1], new)
        total, used = total + size, used + 1
    check(used > 0, "releases: no package of this size has two versions in the archive")
    changed = changed_files(old, new)
    full = size_mb >= 120
    check(changed >= (1000 if full else 1), f"releases: {changed} changed files only")
    check(not full or total >= 90 * MB, f"releases: {total} bytes only")
    return {"packages": used, "changed_files": changed, "files_before": measure(old)[0]}


def changed_files(old: Path, new: Path) -> int:
    """Number of regular files that have the same path in both trees and another content."""
    count = 0
    for path in new.rglob("*"):
        before = old / path.relative_to(new)
        if path.is_symlink() or before.is_symlink() or not path.is_file() or not before.is_file():
            continue
        count += path.stat().st_size != before.stat().st_size or path.read_bytes() != before.read_bytes()
    return count
