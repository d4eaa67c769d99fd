"""The engines' own live migrations, measured beside: LXD's between two servers, and libvirt's `migrate3`.

They know nothing of layers. LXD moves the whole file system and the memory that CRIU dumps; libvirt is given storage
that both hosts share, which is in its favour, and moves memory while the guest runs. The application is started through
the same backend as for the other methods.

A guest that QEMU emulates is paused first: moved while it ran, it started anew or stood still at the destination
(QEMU 7.2, two times of two).
"""

import os
import secrets
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import quote

from backends.base import AppLayout
from backends.folders import remove_tree
from bench.paper.engines import Engine
from bench.paper.ground import Ground
from bench.paper.plan import LIBVIRT, LXD
from bench.paper.published import Moved
from bench.paper.workloads import Watch, Workload
from bench.sync.measured import RunFailed

LXD_PORT: Final = 8443
QEMU_PORT: Final = 49170
LIMIT_S: Final = 600

Told = Mapping[str, float]
"""Figures that an engine gives of its migration."""


def run(ground: Ground, platform: str, workload: Workload, watch: Watch) -> Moved:
    """Migrate with the engine's own means.

    Raises:
        RunFailed: it did not work.
    """
    move, remove = {LXD: (_move_lxd, _remove_lxd), LIBVIRT: (_move_libvirt, _remove_libvirt)}[platform]
    backend = ground.source.backend
    with _laid_out(ground, workload) as layout:
        name = f"p2p-{layout.app_id[:12]}"
        try:
            backend.create(layout)
            backend.start(layout)
            watch.begin()
            os.sync()
            before, started = ground.counted(), time.perf_counter()
            told = move(ground, name)
            seconds = time.perf_counter() - started
            moved = ground.counted() - before
            seen = watch.end()
            return Moved(seconds, told.get("freeze_s", seen.gap_s), moved, seen, told)
        finally:
            watch.close()
            remove(ground, name)
            backend.destroy(layout)


@contextmanager
def _laid_out(ground: Ground, workload: Workload) -> Iterator[AppLayout]:
    place = ground.places[0]
    layout = place.layout(workload, secrets.token_hex(16), workload.layers.app)
    try:
        yield layout
    finally:
        remove_tree(layout.folder)


# -- LXD


def _move_lxd(ground: Ground, name: str) -> Told:
    """Have the destination pull the running container from the source."""
    here, there = _lxd(ground.source), _lxd(ground.destination)
    address = f"{ground.stage.a.address}:{LXD_PORT}"
    here.api.patch(json={"config": {"core.https_address": address}})
    certificate = here.api.get().json()["metadata"]["environment"]["certificate"]
    instance = here.api.instances[name]
    row = instance.get().json()["metadata"]
    offered = instance.post(json={"migration": True, "live": True, "name": name}).json()["metadata"]
    source = {
        "type": "migration",
        "mode": "pull",
        "live": True,
        "operation": f"https://{address}/1.0/operations/{offered['id']}",
        "certificate": certificate,
        "secrets": offered["metadata"],
    }
    kept = ("architecture", "config", "devices", "ephemeral", "profiles", "type")
    made = there.api.instances.post(json={**{key: row[key] for key in kept}, "name": name, "source": source}).json()
    for client, operation in ((there, made["metadata"]["id"]), (here, offered["id"])):
        ended = client.api.operations[operation].wait.get(params={"timeout": LIMIT_S}).json()["metadata"]
        if ended["status_code"] != HTTPStatus.OK:
            raise RunFailed(f"LXD: {ended['err'] or ended['status']}")
    return {}


def _remove_lxd(ground: Ground, name: str) -> None:
    from pylxd.exceptions import LXDAPIException

    client = _lxd(ground.destination)
    with suppress(LXDAPIException):  # it may not be there, or not run
        stopped = client.api.instances[name].state.put(json={"action": "stop", "force": True, "timeout": 10})
        client.operations.wait_for_operation(stopped.json()["operation"])
    with suppress(LXDAPIException):
        client.operations.wait_for_operation(client.api.instances[name].delete().json()["operation"])


def _lxd(engine: Engine) -> Any:
    import pylxd

    return pylxd.Client(endpoint=f"http+unix://{quote(str(engine.settings.lxd_socket), safe='')}")


# -- libvirt


def _move_libvirt(ground: Ground, name: str) -> Told:
    """Have QEMU move its memory to the other host, and libvirt everything else."""
    import libvirt

    uris = [engine.settings.libvirt_uri for engine in (ground.source, ground.destination)]
    here, there = (libvirt.open(uri) for uri in uris)
    try:
        domain = here.lookupByName(name)
        address = {libvirt.VIR_MIGRATE_PARAM_URI: f"tcp://{ground.stage.b.address}:{QEMU_PORT}"}
        live = 'type="kvm"' in domain.XMLDesc().replace("'", '"')
        domain.migrate3(there, address, libvirt.VIR_MIGRATE_UNSAFE | (libvirt.VIR_MIGRATE_LIVE if live else 0))
        stats = there.lookupByName(name).jobStats(libvirt.VIR_DOMAIN_JOB_STATS_COMPLETED)
        return {"paused_first": float(not live), "freeze_s": stats["downtime"] / 1000 if "downtime" in stats else 0.0}
    except libvirt.libvirtError as error:
        raise RunFailed(f"libvirt: {error}") from None
    finally:
        for connection in (here, there):
            connection.close()


def _remove_libvirt(ground: Ground, name: str) -> None:
    import libvirt

    there = libvirt.open(ground.destination.settings.libvirt_uri)
    try:
        with suppress(libvirt.libvirtError):
            there.lookupByName(name).destroy()
    finally:
        there.close()
