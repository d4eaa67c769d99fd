"""The `[lxd]` table, and what becomes of it in LXD."""

import io
import json
import tarfile

import pytest

from backends import config
from backends.errors import ConfigError
from backends.lxd import bridge, inside, instance, settings
from backends.lxd.backup import backup
from backends.lxd.settings import LxdSettings

APP_ID = "0123456789abcdef" * 2
NETWORK = 'network = "bridge:br0"\n'


def read(table: str = "", *, top: str = "") -> LxdSettings:
    return settings.read(config.parse(f"{top}\n[lxd]\n{table}"), APP_ID)


def test_without_a_table_there_is_no_network() -> None:
    found = settings.read(config.parse(""), APP_ID)
    assert (found.bridge, found.ipv4, found.halt_signal, found.config) == (None, None, None, {})
    assert bridge.devices(found) == {}


def test_a_table_with_everything() -> None:
    found = read(
        NETWORK + 'mac = "02:00:00:00:00:05"\nipv4 = "10.88.0.5/24"\ngateway = "10.88.0.1"\n'
        'halt_signal = "SIGRTMIN+3"\nconfig = { "limits.memory" = "256MiB" }'
    )
    assert found == LxdSettings(
        "br0", "02:00:00:00:00:05", "10.88.0.5/24", "10.88.0.1", "SIGRTMIN+3", {"limits.memory": "256MiB"}
    )
    device = bridge.devices(found)["eth0"]
    assert device["hwaddr"] == "02:00:00:00:00:05"
    assert "parent" not in device  # else packets come in before there is anybody to take them
    raw = instance.configuration(config.parse(""), found, {})["raw.lxc"].splitlines()
    assert "lxc.net.0.ipv4.address = 10.88.0.5/24" in raw
    assert "lxc.net.0.ipv4.gateway = 10.88.0.1" in raw
    assert "lxc.signal.halt = SIGRTMIN+3" in raw


def test_the_address_of_the_device_is_the_same_on_every_node() -> None:
    assert read(NETWORK).mac == settings.default_mac(APP_ID)
    assert settings.default_mac(APP_ID) != settings.default_mac(APP_ID[::-1])
    assert settings.default_mac(APP_ID).startswith("02:")


@pytest.mark.parametrize(
    ("table", "where"),
    [
        ("colour = 1", "lxd.colour"),
        ('network = "host"', "lxd.network"),
        ('network = "br0"', "lxd.network"),
        ("network = 1", "lxd.network"),
        ('ipv4 = "10.0.0.1/24"', "lxd.ipv4"),
        (NETWORK + 'ipv4 = "10.0.0.1"', "lxd.ipv4"),
        (NETWORK + 'mac = "x"', "lxd.mac"),
        (NETWORK + 'ipv4 = "10.0.0.2/24"\ngateway = "10.0.1.1"', "lxd.gateway"),
        ('halt_signal = "TERM"', "lxd.halt_signal"),
        ('halt_signal = "SIGTERM\\nlxc.x = y"', "lxd.halt_signal"),
        ("config = 1", "lxd.config"),
        ('config = { "raw.lxc" = "x" }', "lxd.config.raw.lxc"),
        ('config = { "boot.autostart" = "true" }', "lxd.config.boot.autostart"),
        ('config = { "limits.memory" = 1 }', "lxd.config.limits.memory"),
    ],
)
def test_a_table_that_makes_no_sense_is_refused(table: str, where: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(table)
    assert caught.value.where == where


def test_a_command_runs_under_our_init() -> None:
    app = config.parse('command = ["{app}/main", "{state}"]\nenv = { A = "x\\ny" }')
    found = instance.configuration(app, settings.read(app, APP_ID), {"A": "x\ny"})
    assert f"lxc.init.cmd = {inside.INIT}" in found["raw.lxc"].splitlines()
    assert "lxc.signal.halt = SIGTERM" in found["raw.lxc"].splitlines()
    assert instance.words(app) == ["//main", "/var/lib/p2player"]
    assert not [key for key in found if key.startswith("environment.")]


def test_the_own_init_gets_its_environment_from_lxd() -> None:
    app = config.parse("")
    found = instance.configuration(app, settings.read(app, APP_ID), {"A": "blue sky"})
    assert found["environment.A"] == "blue sky"
    assert found["raw.lxc"] == "lxc.apparmor.profile =\n"
    with pytest.raises(ConfigError, match=r"env\.A"):
        instance.configuration(app, settings.read(app, APP_ID), {"A": "two\nlines"})


def test_no_container_starts_by_itself() -> None:
    """Where the machine comes back, the application may long be somewhere else."""
    app = config.parse("")
    assert instance.configuration(app, settings.read(app, APP_ID), {})["boot.autostart"] == "false"


def test_the_backup_that_makes_a_container_has_its_flag_and_no_files() -> None:
    data = backup("box", "pool", {"a": "b"}, {"root": {"type": "disk"}})
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        names = archive.getnames()
        index = archive.extractfile("backup/index.yaml")
        assert index is not None
        document = json.loads(index.read())
    assert names == [
        "backup/index.yaml",
        "backup/container",
        "backup/container/backup.yaml",
        "backup/container/rootfs",
    ]
    assert document["pool"] == "pool"
    assert document["config"]["container"]["stateful"] is True
    assert document["config"]["container"]["config"] == {"a": "b"}
