"""Applications that an engine had before p2player knew of them: taken apart into layers, and made apps of this node.

The engine writes what it finds into a folder of STATE that lasts as long as that; from there it goes into the store as
every layer does. The instance itself is only read, and stays. What was named before something failed stays named: the
next try finds it in the store.
"""

import os
import secrets
import stat
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import trio

from backends import config as app_config
from backends.base import Adopted
from backends.errors import BackendError
from chunkstore.digest import LayerId
from p2player import faults
from p2player.apprecord import check_name
from p2player.apps import Apps
from p2player.directory import Directory
from p2player.errors import Failed, Refused
from p2player.layers import Layers
from p2player.log import Log
from p2player.operations import Operation
from p2player.trees import erase

CLEANUP_S = 60.0


class Adoption:
    """See the module.

    Args:
        folder: STATE/adopting, which nobody else writes to; what a killed node left there is removed by `tidy`.
    """

    def __init__(self, apps: Apps, layers: Layers, directory: Directory, folder: Path, log: Log) -> None:
        self._apps = apps
        self._layers = layers
        self._directory = directory
        self._folder = folder
        self._log = log
        self._in_use: dict[str, LayerId] = {}

    def layers_in_use(self) -> set[LayerId]:
        """Base layers that instances are being compared with."""
        return set(self._in_use.values())

    async def check(self, name: str, backend: str, layer_names: list[str], config: str | None) -> None:
        """Refuse before anything is read.

        Raises:
            Usage: bad name, unknown backend, bad configuration.
            Refused: a name is taken, or the backend cannot be used here, or has no instances to adopt.
        """
        self._directory.check_name(check_name(name))
        for layer_name in layer_names:
            self._layers.check_owner(layer_name)
        if config is not None:
            with _told():
                app_config.parse(config)
        adopter = self._apps.engines.adopter(backend)
        probe = await self._apps.probe(adopter.name)
        if probe is None or not probe.available:
            raise Refused(f"backend {backend} cannot be used here: {probe.reason if probe else 'it is not known'}")

    async def adopt(
        self,
        name: str,
        *,
        backend: str,
        instance: str,
        base: str | None,
        layer_name: str | None,
        config: str | None,
        operation: Operation,
    ) -> dict[str, Any]:
        """Make an app of an instance of an engine; the app's row.

        Args:
            instance: what the engine calls it.
            base: a layer that it was made from; None makes one, called `NAME-base`.
            layer_name: of the layer with what the instance has beside its base; `name` if None.
            config: text of the app's configuration; None takes what the engine finds.

        Raises:
            NotFound: no such base layer.
            Refused, Usage: as `check`; there is no room.
            Failed: the engine has no such instance, it runs, or cannot be taken apart.
        """
        app_layer, base_layer = layer_name or name, f"{name}-base"
        await self.check(name, backend, [app_layer] if base else [app_layer, base_layer], config)
        base_id = None if base is None else await self._layers.resolve(base)
        async with self._place(base_id) as into:
            operation.progress(0, 0, f"taking {instance} apart")
            operation.tell()
            tree = None if base_id is None else await self._layers.tree(base_id)
            with _told():
                adopter = self._apps.engines.adopter(backend)
                adopted: Adopted = await trio.to_thread.run_sync(adopter.adopt, instance, into, tree)
            if base_id is None:
                if adopted.base is None:
                    raise Failed(f"backend {backend} found no base layer in {instance}: give one with --base")
                base = (await self._layers.add(adopted.base, base_layer, "base", operation=operation))["id"]
            made = await self._layers.add(adopted.app, app_layer, "app", operation=operation)
        text = adopted.config if config is None else config
        return await self._directory.create(name, backend=backend, base=str(base), app=made["id"], config=text)

    async def tidy(self) -> None:
        """Remove what an earlier run of the node left; call it once, before anything is adopted."""
        for place in await trio.to_thread.run_sync(_entries, self._folder):
            await self._remove(place)

    @asynccontextmanager
    async def _place(self, base: LayerId | None) -> AsyncIterator[Path]:
        """An empty folder, for as long as the block runs; the tree of `base` stays as long."""
        name = secrets.token_hex(8)
        place = self._folder / name
        if base is not None:
            self._in_use[name] = base
        try:
            with _told():
                await trio.to_thread.run_sync(lambda: place.mkdir(mode=stat.S_IRWXU, parents=True))
            yield place
        finally:
            with trio.move_on_after(CLEANUP_S, shield=True):
                await self._remove(place)
            self._in_use.pop(name, None)

    async def _remove(self, place: Path) -> None:
        try:
            await trio.to_thread.run_sync(_clear, place)
        except OSError as error:
            self._log.error("what was made for an adoption could not be removed", folder=str(place), reason=str(error))


@contextmanager
def _told() -> Iterator[None]:
    """An engine's or the system's error as users are told."""
    try:
        yield
    except (BackendError, OSError) as error:
        raise faults.describe(error) from error


def _entries(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []


def _clear(place: Path) -> None:
    """Delete a folder, but never through a mount that an engine left in it.

    Raises:
        OSError: something is mounted there, or cannot be removed.
    """
    if not place.is_dir():
        return
    beginning = os.fspath(place.resolve()).encode() + b"/"
    for line in Path("/proc/self/mountinfo").read_bytes().splitlines():
        target = line.split(b" ")[4].decode("unicode_escape").encode("latin-1")  # octal escapes, of bytes
        if target.startswith(beginning):
            raise OSError(f"{os.fsdecode(target)} is still mounted")
    erase(place)
