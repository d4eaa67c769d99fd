"""All backends by name."""

from collections.abc import Mapping

from backends.base import Backend, EngineSettings
from backends.libvirt.backend import LibvirtBackend
from backends.lxd.backend import LxdBackend
from backends.process import ProcessBackend
from backends.runc import RuncBackend


def builtin(settings: EngineSettings | None = None, *, healthy_after_s: float = 1.0) -> Mapping[str, Backend]:
    """A fresh set of every backend that p2player knows, in the order in which they are listed.

    Args:
        settings: where the engines are.
        healthy_after_s: an application that lives shorter counts as failed.
    """
    backends: tuple[Backend, ...] = (
        ProcessBackend(healthy_after_s=healthy_after_s),
        RuncBackend(settings, healthy_after_s=healthy_after_s),
        LxdBackend(settings, healthy_after_s=healthy_after_s),
        LibvirtBackend(settings, healthy_after_s=healthy_after_s),
    )
    return {backend.name: backend for backend in backends}
