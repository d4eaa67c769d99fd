"""Images of LXD that would write to the host, or take files of it along, when they are taken apart."""

import io
import os
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from backends.base import EngineSettings
from backends.errors import BackendError
from backends.lxd import adopt
from backends.lxd.daemon import Daemon

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="needs root")]

FINGERPRINT = "ab" * 32


class ImageDaemon(Daemon):
    """One that has a single image, of one archive or of two."""

    def __init__(self, *parts: bytes) -> None:
        super().__init__(EngineSettings(lxd_socket=Path("/nowhere")))
        self.parts = parts

    def get(self, *path: str, params: Mapping[str, Any] | None = None) -> Any:
        return {"target": FINGERPRINT, "type": "container"}

    def read(self, *path: str, into: Path, timeout_s: float) -> str:
        if len(self.parts) == 1:
            into.write_bytes(self.parts[0])
            return "application/octet-stream"
        lines = [
            b'--cut\r\nContent-Disposition: form-data; name="%s"\r\n\r\n%s\r\n' % pair
            for pair in zip((b"metadata", b"rootfs"), self.parts, strict=True)
        ]
        into.write_bytes(b"".join(lines) + b"--cut--\r\n")
        return 'multipart/form-data; boundary="cut"'


def archive(**entries: str | None) -> bytes:
    """A tar of links to these targets, and of folders where there is none."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, target in entries.items():
            entry = tarfile.TarInfo(name)
            entry.type, entry.mode = (tarfile.DIRTYPE, 0o755) if target is None else (tarfile.SYMTYPE, 0o777)
            entry.linkname = target or ""
            tar.addfile(entry)
    return buffer.getvalue()


def test_a_link_in_the_place_of_the_file_system_is_refused(tmp_path: Path) -> None:
    (elsewhere := tmp_path / "elsewhere").mkdir()
    link = archive(rootfs=str(elsewhere))
    for number, parts in enumerate([(link, archive(evil=None)), (link,)]):
        with pytest.raises(BackendError, match="file system"):
            adopt.take_apart(ImageDaemon(*parts), "image:x", tmp_path / str(number), None)
    assert list(elsewhere.iterdir()) == []


def test_no_file_of_the_host_comes_along(tmp_path: Path) -> None:
    (secret := tmp_path / "secret").write_text("of the host")
    (base := tmp_path / "base").mkdir()
    (base / "rootfs").mkdir()
    image = archive(rootfs=None, **{"metadata.yaml": str(secret), "templates": str(tmp_path)})
    adopted = adopt.take_apart(ImageDaemon(image), "image:x", tmp_path / "into", base)
    assert [path.name for path in adopted.app.iterdir()] == ["rootfs"]
