"""The configuration of an OCI container, made from the application's own.

What is in it must stand a checkpoint and be the same at the next node: no terminal, no resource limits of processes,
no cgroup file system, and nothing of the host but its kernel. See the OCI runtime specification, 1.0.2, `config.md`.
"""

import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from backends import appnet
from backends.base import AppConfig, AppLayout
from backends.command import IN_CONTAINER, arguments, environment
from backends.errors import ConfigError

_USER = re.compile(r"(\d{1,9})(?::(\d{1,9}))?", re.ASCII)
_SIZE = re.compile(r"(\d{1,15})\s*([KMGT]?)(?:i?B)?", re.ASCII | re.IGNORECASE)
_LEAST_MEMORY = 4 << 20
_MAX_DEVICES = 32

# What Docker and containerd give the root of a container.
_CAPABILITIES = [
    f"CAP_{name}"
    for name in [
        "AUDIT_WRITE",
        "CHOWN",
        "DAC_OVERRIDE",
        "FOWNER",
        "FSETID",
        "KILL",
        "MKNOD",
        "NET_BIND_SERVICE",
        "NET_RAW",
        "SETFCAP",
        "SETGID",
        "SETPCAP",
        "SETUID",
        "SYS_CHROOT",
    ]
]

_QUIET = ["nosuid", "noexec", "nodev"]
_MOUNTS = [
    ("/proc", "proc", _QUIET),
    ("/dev", "tmpfs", ["nosuid", "strictatime", "mode=755", "size=65536k"]),
    ("/dev/pts", "devpts", ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]),
    ("/dev/shm", "tmpfs", ["nosuid", "noexec", "nodev", "mode=1777"]),
    ("/dev/mqueue", "mqueue", _QUIET),
    ("/sys", "sysfs", [*_QUIET, "ro"]),
]
_MASKED = [
    *(
        f"/proc/{name}"
        for name in [
            "acpi",
            "asound",
            "kcore",
            "keys",
            "latency_stats",
            "sched_debug",
            "scsi",
            "timer_list",
            "timer_stats",
        ]
    ),
    "/sys/firmware",
]
_READ_ONLY = [f"/proc/{name}" for name in ["bus", "fs", "irq", "sys", "sysrq-trigger"]]


@dataclass(frozen=True, slots=True)
class Options:
    """The table `[runc]` of an application's configuration.

    Attributes:
        tcp_established: open TCP connections are saved and restored; else they keep it from being suspended.
        memory_max: bytes that it may use; None for no limit.
        devices: of the host, to be there too; an application that holds one open cannot be suspended.
    """

    network: appnet.Network
    tcp_established: bool = True
    memory_max: int | None = None
    cwd: str = IN_CONTAINER.state
    uid: int = 0
    gid: int = 0
    devices: tuple[str, ...] = ()


def parse(config: AppConfig) -> Options:
    """Read `[runc]`, strictly.

    Raises:
        ConfigError: an unknown key, or a value that makes no sense.
    """
    table = config.engines.get("runc", {})
    known = appnet.KEYS | {"tcp_established", "memory_max", "cwd", "user", "devices"}
    for key in sorted(table.keys() - known):
        raise ConfigError(f"runc.{key}", "unknown key")
    tcp_established = table.get("tcp_established", True)
    if not isinstance(tcp_established, bool):
        raise ConfigError("runc.tcp_established", "must be true or false")
    cwd = table.get("cwd", IN_CONTAINER.state)
    if not isinstance(cwd, str) or not cwd.startswith("/") or "\0" in cwd:
        raise ConfigError("runc.cwd", "must be an absolute path in the container")
    user = table.get("user", "0:0")
    match = _USER.fullmatch(user) if isinstance(user, str) else None
    if match is None:
        raise ConfigError("runc.user", "must be numbers, as in 1000 or 1000:1000")
    devices = table.get("devices", [])
    if not isinstance(devices, list) or len(devices) > _MAX_DEVICES or not all(map(_is_device_path, devices)):
        raise ConfigError("runc.devices", 'must be a list of paths, as in ["/dev/fuse"]')
    return Options(
        network=appnet.parse("runc", table, default="host"),
        tcp_established=tcp_established,
        memory_max=_memory(table),
        cwd=cwd,
        uid=int(match[1]),
        gid=int(match[2] or 0),
        devices=tuple(devices),
    )


def _is_device_path(value: object) -> bool:
    return isinstance(value, str) and value.startswith("/dev/") and "\0" not in value and ".." not in value


def _device(path: str) -> dict[str, Any]:
    """One device of the host, for `linux.devices`."""
    try:
        found = os.stat(path)
    except OSError as error:
        raise ConfigError("runc.devices", f"{path}: {error.strerror}") from error
    if not stat.S_ISCHR(found.st_mode) and not stat.S_ISBLK(found.st_mode):
        raise ConfigError("runc.devices", f"{path} is no device")
    return {
        "path": path,
        "type": "c" if stat.S_ISCHR(found.st_mode) else "b",
        "major": os.major(found.st_rdev),
        "minor": os.minor(found.st_rdev),
        "fileMode": stat.S_IMODE(found.st_mode),
        "uid": found.st_uid,
        "gid": found.st_gid,
    }


def _memory(table: Mapping[str, Any]) -> int | None:
    if "memory_max" not in table:
        return None
    value = table["memory_max"]
    if isinstance(value, str) and (match := _SIZE.fullmatch(value)):
        value = int(match[1]) << (10 * " KMGT".index(match[2].upper() or " "))
    if isinstance(value, bool) or not isinstance(value, int) or not _LEAST_MEMORY <= value < 1 << 62:
        raise ConfigError("runc.memory_max", "must be a number of bytes, or as in 512MiB, and 4 MiB or more")
    return value


def spec(
    layout: AppLayout,
    options: Options,
    *,
    extra: Mapping[str, str],
    cgroup: str,
    netns: Path | None,
    criu_config: Path,
) -> dict[str, Any]:
    """The content of `config.json`; the root file system is the folder `rootfs` beside it.

    Args:
        extra: variables of the environment.
        cgroup: path below the root of every cgroup hierarchy.
        netns: a network namespace to join; None for that of the node.
        criu_config: file of further options of CRIU, which runc tells it of.
    """
    namespaces: list[dict[str, str]] = [{"type": name} for name in ("pid", "ipc", "uts", "mount")]
    if netns is not None:
        namespaces.append({"type": "network", "path": str(netns)})
    devices = [_device(path) for path in options.devices]
    allowed = [
        {"allow": True, "access": "rw"} | {key: one[key] for key in ("type", "major", "minor")} for one in devices
    ]
    resources: dict[str, Any] = {"devices": [{"allow": False, "access": "rwm"}, *allowed]}
    if options.memory_max is not None:
        resources["memory"] = {"limit": options.memory_max}
    env = environment(layout, extra, IN_CONTAINER)
    return {
        "ociVersion": "1.0.2",
        "process": {
            "terminal": False,
            "user": {"uid": options.uid, "gid": options.gid},
            "args": arguments(layout.config.command, IN_CONTAINER),
            "env": [f"{name}={value}" for name, value in env.items()],
            "cwd": options.cwd,
            "capabilities": dict.fromkeys(("bounding", "effective", "permitted"), _CAPABILITIES),
            "noNewPrivileges": False,
        },
        "root": {"path": "rootfs", "readonly": False},
        "hostname": hostname(layout.name),
        "annotations": {"org.criu.config": str(criu_config)},
        "mounts": [
            {"destination": place, "type": kind, "source": kind, "options": how} for place, kind, how in _MOUNTS
        ],
        "linux": {
            "namespaces": namespaces,
            "cgroupsPath": cgroup,
            "resources": resources,
            "devices": devices,
            "maskedPaths": _MASKED,
            "readonlyPaths": _READ_ONLY,
        },
    }


def hostname(name: str) -> str:
    """An application's name as a label of the domain name system."""
    return re.sub(r"[^a-z0-9-]+", "-", name.lower()).strip("-")[:63] or "app"
