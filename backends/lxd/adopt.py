"""Images and instances of LXD taken apart into layers.

    image:ALIAS, image:FINGERPRINT    base: the image; app: empty
    INSTANCE                          base: the image that it was made from; app: how its files differ from that

With a base layer given, no base is made, and the app layer is the difference to that one. Both layers have the form
that LXD gives to images: `rootfs/`, beside it `metadata.yaml` and `templates/`.

All is read through LXD's API, or, where the instance is on a pool of driver `dir`, from its folder. Where LXD has
moved the owners of an unprivileged instance's files away from those of the host, they are moved back.
"""

import json
import mmap
import os
import re
import shutil
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from backends import overlay
from backends.base import Adopted
from backends.errors import BackendError
from backends.folders import remove_tree
from backends.lxd import unpack
from backends.lxd.daemon import Daemon, LxdError

IMAGE = "image:"

_STOPPED = 102
_NOT_FOUND = 404
_EXPORT_TIMEOUT_S = 1800.0
_BACKUP = "p2player-adopt"
_CONTENT = ("metadata.yaml", "templates")


def take_apart(daemon: Daemon, source: str, into: Path, base: Path | None) -> Adopted:
    """See `backends.base.Adopter.adopt`."""
    into.mkdir(parents=True, exist_ok=True)
    if source.startswith(IMAGE):
        return _image(daemon, source.removeprefix(IMAGE), into, base)
    return _instance(daemon, source, into, base)


def _image(daemon: Daemon, name: str, into: Path, base: Path | None) -> Adopted:
    fingerprint = _fingerprint(daemon, name)
    text = f"# Made from LXD's image {name}, {fingerprint[:12]}. Without a command its own /sbin/init runs.\n"
    whole = into / ("base" if base is None else "whole")
    _export_image(daemon, fingerprint, whole)
    app = into / "app"
    app.mkdir()
    if base is None:
        (app / "rootfs").mkdir()
        shutil.copystat(whole / "rootfs", app / "rootfs")
        return Adopted(whole, app, text)
    overlay.difference(overlay.lower_of(base), whole / "rootfs", app / "rootfs")
    _keep_content(whole, app)
    remove_tree(whole)
    return Adopted(None, app, text)


def _instance(daemon: Daemon, name: str, into: Path, base: Path | None) -> Adopted:
    try:
        found = daemon.get("instances", name)
    except LxdError as error:
        raise BackendError(f"LXD has no instance {name}") if error.status == _NOT_FOUND else error from error
    if found["type"] != "container":
        raise BackendError(f"{name} is a {found['type']} of LXD: only containers can be taken apart")
    if found["status_code"] != _STOPPED:
        raise BackendError(f"{name} is not stopped: lxc stop {name}")
    made: Path | None = None
    if base is None:
        fingerprint = str(found["expanded_config"].get("volatile.base_image", ""))
        if not fingerprint:
            raise BackendError(f"LXD does not know of which image {name} was made: give a base layer")
        try:
            daemon.get("images", fingerprint)
        except LxdError as error:
            raise BackendError(
                f"the image {fingerprint[:12]} of which {name} was made is not here any more: give a base layer"
            ) from error
        made = into / "base"
        _export_image(daemon, fingerprint, made)
    app = into / "app"
    app.mkdir()
    with _files(daemon, found, into) as whole:
        overlay.difference(overlay.lower_of(base or into / "base"), whole / "rootfs", app / "rootfs")
        _keep_content(whole, app)
    return Adopted(made, app, _config(found))


def _fingerprint(daemon: Daemon, name: str) -> str:
    for path in (("images", "aliases", name), ("images", name)):
        try:
            found = daemon.get(*path)
        except LxdError as error:
            if error.status == _NOT_FOUND:
                continue
            raise
        fingerprint = str(found.get("target") or found["fingerprint"])
        if found.get("type") == "virtual-machine":
            raise BackendError(f"the image {name} is one of a virtual machine: only containers can be taken apart")
        return fingerprint
    raise BackendError(f"LXD has no image {name}")


def _export_image(daemon: Daemon, fingerprint: str, into: Path) -> None:
    """The image as a folder. Comes as one archive, or as a message of two: the description, and the file system."""
    into.mkdir()
    raw = into.parent / "image"
    try:
        kind = daemon.read("images", fingerprint, "export", into=raw, timeout_s=_EXPORT_TIMEOUT_S)
        match = re.match(r'multipart/form-data; *boundary="?([^";]+)', kind)
        if match is None:
            unpack.archive(raw, into)
        else:
            parts = _parts(raw, match[1].encode())
            unpack.archive(parts["metadata"], into)
            if (into / "rootfs").is_symlink():  # the file system would be unpacked where that leads
                raise BackendError(f"LXD's image {fingerprint[:12]} has a link in the place of its file system")
            (into / "rootfs").mkdir(exist_ok=True)
            file = parts.get("rootfs") or parts["rootfs.img"]
            unpack.archive(file, into / "rootfs")
            for path in parts.values():
                path.unlink()
    except KeyError as error:
        raise BackendError(f"LXD's image {fingerprint[:12]} is of a kind that cannot be taken apart") from error
    finally:
        raw.unlink(missing_ok=True)
    if (into / "rootfs").is_symlink() or not (into / "rootfs").is_dir():
        raise BackendError(f"LXD's image {fingerprint[:12]} has no file system of a container")


def _parts(raw: Path, boundary: bytes) -> dict[str, Path]:
    """Cut a multipart message into files, named by their fields."""
    found: dict[str, Path] = {}
    with open(raw, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        mark = b"--" + boundary
        at = data.find(mark)
        while at >= 0:
            head_end = data.find(b"\r\n\r\n", at)
            following = data.find(b"\r\n" + mark, at)
            if head_end < 0 or following < 0:
                break
            name = re.search(rb'[; ]name="?([a-z.]+)', data[at:head_end])
            if name is not None:
                path = found[name[1].decode()] = raw.with_name(f"image.{len(found)}")
                with path.open("wb") as part:
                    for start in range(head_end + 4, following, 1 << 20):
                        part.write(data[start : min(start + (1 << 20), following)])
            at = following + 2
    return found


@contextmanager
def _files(daemon: Daemon, found: Mapping[str, Any], into: Path) -> Iterator[Path]:
    """A folder with the instance's files, for reading, while the block runs."""
    pool = str(found["expanded_devices"]["root"]["pool"])
    moved = json.loads(found["expanded_config"].get("volatile.last_state.idmap") or "[]")
    process = daemon.process()
    place = process.outside(process.folder / "storage-pools" / pool / "containers" / found["name"])
    if daemon.get("storage-pools", pool)["driver"] == "dir" and not moved:
        yield place
        return
    whole = into / "whole"
    whole.mkdir()
    try:
        _export_instance(daemon, str(found["name"]), whole)
        if moved:
            _move_owners(whole / "rootfs", moved)
        yield whole
    finally:
        remove_tree(whole)


def _export_instance(daemon: Daemon, name: str, into: Path) -> None:
    raw = into / "backup.tar"
    body = {"name": _BACKUP, "instance_only": True, "compression_algorithm": "none"}
    daemon.wait(daemon.post("instances", name, "backups", json=body), _EXPORT_TIMEOUT_S)
    try:
        daemon.read("instances", name, "backups", _BACKUP, "export", into=raw, timeout_s=_EXPORT_TIMEOUT_S)
    finally:
        daemon.wait(daemon.delete("instances", name, "backups", _BACKUP), _EXPORT_TIMEOUT_S)
    unpack.archive(raw, into, strip=2, below="backup/container")
    raw.unlink()


def _move_owners(root: Path, maps: list[Mapping[str, Any]]) -> None:
    """Give files the owners that they have inside."""

    def inside(number: int, kind: str) -> int:
        for row in maps:
            if row[kind] and row["Hostid"] <= number < row["Hostid"] + row["Maprange"]:
                return int(row["Nsid"] + number - row["Hostid"])
        return number

    for place, folders, files in os.walk(root):
        for name in (".", *folders, *files):
            path = os.path.join(place, name)
            found = os.lstat(path)
            os.chown(path, inside(found.st_uid, "Isuid"), inside(found.st_gid, "Isgid"), follow_symlinks=False)
            if not stat.S_ISLNK(found.st_mode):
                os.chmod(path, stat.S_IMODE(found.st_mode))  # chown takes set-user-ID away


def _keep_content(whole: Path, app: Path) -> None:
    """LXD's description and templates; a link in their place would bring files of the host into the layer."""
    for name in _CONTENT:
        path = whole / name
        if path.is_symlink():
            continue
        if path.is_dir():
            shutil.copytree(path, app / name, symlinks=True)
        elif path.is_file():
            shutil.copy2(path, app / name)


def _config(found: Mapping[str, Any]) -> str:
    """A configuration that runs it as LXD did, as far as this backend can."""
    config: Mapping[str, str] = found["expanded_config"]
    lines = [f"# Made from LXD's instance {json.dumps(found['name'])}. Without a command its own /sbin/init runs."]
    env = {key.removeprefix("environment."): value for key, value in config.items() if key.startswith("environment.")}
    if env:
        lines.append(f"env = {_table({name: value for name, value in env.items() if not name.startswith('P2P_')})}")
    rows: list[str] = []
    for name, device in sorted(found["expanded_devices"].items()):
        bridge = device.get("parent") or device.get("network")
        if device["type"] == "nic" and device.get("nictype", "bridged") == "bridged" and bridge:
            mac = device.get("hwaddr") or config.get(f"volatile.{name}.hwaddr")
            rows += [f"network = {json.dumps(f'bridge:{bridge}')}", *([f"mac = {json.dumps(mac)}"] if mac else [])]
            break
    limits = {key: value for key, value in config.items() if key.startswith("limits.")}
    if limits:
        rows.append(f"config = {_table(limits)}")
    if rows:
        lines += ["", "[lxd]", *rows]
    return "\n".join([*lines, ""])


def _table(values: Mapping[str, str]) -> str:
    """JSON's strings are TOML's."""
    rows = [f"{json.dumps(key)} = {json.dumps(value)}" for key, value in sorted(values.items())]
    return f"{{ {', '.join(rows)} }}"
