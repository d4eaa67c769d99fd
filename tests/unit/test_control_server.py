"""Who may reach the control API: modes of the socket, addresses of the TCP listener."""

import os
import socket
from pathlib import Path

import pytest

from p2player import config
from p2player.control.server import bind_loopback, bind_unix, group_may_use
from p2player.errors import Refused, Usage


@pytest.mark.parametrize(
    ("folder", "mode"), [(0o700, 0o600), (0o755, 0o600), (0o740, 0o600), (0o701, 0o600), (0o710, 0o660), (0o750, 0o660)]
)
def test_the_mode_of_the_folder_says_whether_a_group_may_use_the_socket(tmp_path: Path, folder: int, mode: int) -> None:
    os.chmod(tmp_path, folder)
    umask = os.umask(0o022)
    try:
        with bind_unix(tmp_path / "control.sock"):
            assert os.stat(tmp_path / "control.sock").st_mode & 0o777 == mode
            assert os.umask(0o022) == 0o022
    finally:
        os.umask(umask)


def test_the_set_group_id_bit_changes_nothing() -> None:
    assert group_may_use(0o42750)
    assert not group_may_use(0o42700)


def test_a_stale_socket_is_replaced(tmp_path: Path) -> None:
    bind_unix(tmp_path / "control.sock").close()
    with bind_unix(tmp_path / "control.sock") as listener, socket.socket(socket.AF_UNIX) as client:
        client.connect(str(tmp_path / "control.sock"))
        listener.accept()[0].close()


def test_every_loopback_address_that_may_be_set_can_be_bound() -> None:
    address = config.parse('control_tcp = "127.0.0.2:0"').control_tcp
    assert address is not None
    with bind_loopback(*address) as listener:
        assert listener.getsockname()[0] == "127.0.0.2"


@pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.1", "::"])
def test_no_other_address_can_be_set_or_bound(host: str) -> None:
    with pytest.raises(Refused, match="loopback only"):
        bind_loopback(host, 0)
    with pytest.raises(Usage, match="not a loopback address"):
        config.parse(f'control_tcp = "{f"[{host}]" if ":" in host else host}:0"')
