"""A real base layer out of what the machine has: the running Python, its standard library, the installed packages.

The copy is laid out as an installation of its own, `bin/python3` and `lib/pythonX.Y`, so that an application run with
`{base}/bin/python3` and `PYTHONHOME={base}` uses the checked-out files and nothing else. The packages lie in `packages`
and are named by PYTHONPATH, since distributions disagree about where a Python looks for them by itself.
"""

import shutil
import site
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

VERSION = f"python{sys.version_info.major}.{sys.version_info.minor}"
_NOT_WANTED = shutil.ignore_patterns(
    "site-packages", "dist-packages", "test", "tests", "idlelib", "turtledemo", "config-*"
)
_NO_CACHES = shutil.ignore_patterns("__pycache__", "*.pth", "__editable__*")


def build(target: Path) -> Path:
    """Lay out the base below `target`, an absent folder, and return it.

    Raises:
        OSError: a file could not be read, or the disk is full.
    """
    library = target / "lib" / VERSION
    shutil.copytree(sysconfig.get_path("stdlib"), library, ignore=_NOT_WANTED, symlinks=False, dirs_exist_ok=True)
    platform_library = Path(sysconfig.get_path("platstdlib"))
    if platform_library != Path(sysconfig.get_path("stdlib")) and platform_library.is_dir():
        shutil.copytree(platform_library, library, ignore=_NOT_WANTED, dirs_exist_ok=True)
    for packages in site.getsitepackages():
        if Path(packages).is_dir():
            shutil.copytree(packages, target / "packages", ignore=_NO_CACHES, dirs_exist_ok=True)
    (target / "bin").mkdir()
    shutil.copy2(Path(sys.executable).resolve(), target / "bin" / "python3")
    for shared in _shared_libraries():
        shutil.copy2(shared, target / "lib" / shared.name)
    return target


def _shared_libraries() -> Iterator[Path]:
    """The interpreter's own library, where it is built as a shared one."""
    folder = sysconfig.get_config_var("LIBDIR")
    name = sysconfig.get_config_var("INSTSONAME")
    if folder and name and sysconfig.get_config_var("Py_ENABLE_SHARED"):
        candidate = Path(folder) / name
        if candidate.is_file():
            yield candidate
