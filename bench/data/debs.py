"""Packages from Debian's archive: looked up, fetched and unpacked without touching the system's own apt."""

import os
import shutil
import subprocess
from collections.abc import Collection, Sequence
from functools import cmp_to_key
from pathlib import Path

from bench.data import contained
from bench.data.pair import Unavailable
from bench.data.workshop import Workshop

MIRROR = "http://deb.debian.org/debian"
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"


class Archive:
    """Some suites of the archive, with an apt configuration and an empty list of installed packages of their own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @classmethod
    def of(cls, workshop: Workshop, *suites: str) -> "Archive":
        """The archive with these suites; their package lists are fetched once a work folder."""
        contained.need("apt-get", "apt-cache", "dpkg-deb")
        if not Path(KEYRING).is_file():
            raise Unavailable(f"needs Debian's archive keyring ({KEYRING})")

        def build(folder: Path) -> None:
            for name in ("apt.conf.d", "preferences.d", "sources.list.d", "lists/partial", "archives/partial"):
                (folder / name).mkdir(parents=True)
            (folder / "status").touch()
            (folder / "sources.list").write_text(sources(mirror(), suites))
            cls(folder)._apt("apt-get", "update", "-qq")

        return cls(workshop.ingredient("archive-" + "-".join(suites), build))

    def versions(self, package: str) -> list[str]:
        """The versions of a package in these suites, the oldest first."""
        rows = self._apt("apt-cache", "madison", package).splitlines()
        found = {row.split("|")[1].strip() for row in rows if "|" in row and row.split("|")[0].strip() == package}
        return sorted(found, key=cmp_to_key(_compare))

    def first_dependency(self, package: str) -> str:
        """The first package that a package, a name for the current one of many, depends on."""
        for line in self._apt("apt-cache", "depends", package).splitlines():
            if line.strip().startswith("Depends:"):
                return line.split(":", 1)[1].strip()
        raise Unavailable(f"the archive's {package} depends on nothing")

    def unpack(self, package: str, version: str | None, target: Path) -> None:
        """Fetch one package and lay its files below `target`."""
        with_version = package if version is None else f"{package}={version}"
        got = self._folder / "got"
        shutil.rmtree(got, ignore_errors=True)
        got.mkdir()
        self._apt("apt-get", "-qq", "download", with_version, folder=got)
        (deb,) = got.iterdir()
        extract(deb, target)
        shutil.rmtree(got)

    def unpack_all(self, package: str, target: Path) -> int:
        """Fetch a package with everything it depends on, libc included, and lay their files below `target`.

        Returns:
            Number of packages.
        """
        self._apt("apt-get", "-y", "-qq", "--download-only", "--no-install-recommends", "install", package)
        debs = sorted((self._folder / "archives").glob("*.deb"))
        for deb in debs:
            extract(deb, target)
            deb.unlink()
        return len(debs)

    def fetch(
        self, packages: Sequence[str], installed: Path, target: Path, without: Collection[str] = ()
    ) -> list[Path]:
        """Fetch packages and what they depend on, but for what is installed already, into the folder `target`.

        Args:
            installed: dpkg's list of what is there, a `status` file.
            without: packages that are left out although others depend on them.

        Returns:
            The fetched packages, sorted by name.
        """
        status = ("-o", f"Dir::State::status={installed}")
        plan = self._apt("apt-get", *status, "-s", "--no-install-recommends", "install", *packages)
        names = [line.split()[1] for line in plan.splitlines() if line.startswith("Inst ")]
        wanted = [name for name in names if name not in without]
        if wanted:
            self._apt("apt-get", *status, "-qq", "download", *wanted, folder=target)
        return sorted(target.glob("*.deb"))

    def _apt(self, *command: str, folder: Path | None = None) -> str:
        settings = self._folder / "apt.conf"
        # Written anew for each use: a folder is moved into place when it is filled.
        settings.write_text(configuration(self._folder))
        done = subprocess.run(
            command,
            env={**os.environ, "APT_CONFIG": str(settings), "LC_ALL": "C"},
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise Unavailable(f"the package archive: {' '.join(command)}: {done.stderr.strip()[-300:]}")
        return done.stdout


def extract(deb: Path, target: Path) -> None:
    """Lay a package's files below `target`."""
    target.mkdir(parents=True, exist_ok=True)
    subprocess.run(["dpkg-deb", "-x", str(deb), str(target)], check=True)


def sources(base: str, suites: Sequence[str]) -> str:
    """The text of a sources list; a suite of security updates comes from the folder beside the mirror's."""
    lines = (
        f"deb [signed-by={KEYRING}] {base}{'-security' if suite.endswith('-security') else ''} {suite} main\n"
        for suite in suites
    )
    return "".join(lines)


def configuration(folder: Path) -> str:
    """The text of an apt configuration that knows only `folder`."""
    return (
        f'Dir::Etc "{folder}";\nDir::State "{folder}";\nDir::State::status "{folder}/status";\n'
        f'Dir::Cache "{folder}";\nAcquire::Languages "none";\nAPT::Sandbox::User "root";\n'
        # A mirror may be a frozen copy, whose lists are past their date.
        'Acquire::Check-Valid-Until "false";\n'
    ) + _proxies()


def mirror() -> str:
    """The mirror that this machine uses already, or the general one."""
    command = ["apt-get", "indextargets", "--format", "$(SITE) $(ORIGIN)", "Created-By: Packages"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    for line in done.stdout.splitlines():
        site, _, origin = line.partition(" ")
        if origin == "Debian" and not site.endswith("-security"):
            return site.rstrip("/")
    return MIRROR


def _proxies() -> str:
    command = ["apt-config", "dump", "--format", '%f "%v";%n', "Acquire::http::Proxy", "Acquire::https::Proxy"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout


def _compare(left: str, right: str) -> int:
    if left == right:
        return 0
    older = subprocess.run(["dpkg", "--compare-versions", left, "lt", right], check=False).returncode == 0
    return -1 if older else 1
