"""The configuration of a container: the table [runc], and the config.json that is made of it."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from backends import config, oci
from backends.appnet import Network
from backends.base import AppLayout
from backends.errors import ConfigError

FULL = """
command = ["{app}bin/server", "--data={state}", "{base}etc"]
addresses = ["10.88.0.5:80"]
[env]
HOME = "{state}"
COLOUR = "blue"
[runc]
network = "bridge:lan0"
mac = "02:00:00:88:00:05"
ipv4 = "10.88.0.5/24"
gateway = "10.88.0.1"
tcp_established = false
memory_max = "1.5GiB"
cwd = "/srv"
user = "1000:50"
devices = ["/dev/null"]
"""


def layout(text: str, name: str = "My Shop!") -> AppLayout:
    parsed = config.parse(text)
    return AppLayout("ab" * 16, name, Path("/n/x"), parsed, base=Path("/l/base"), app=Path("/l/app"))


def spec(text: str, **changes: Any) -> dict[str, Any]:
    place = layout(text)
    arguments: dict[str, Any] = {"extra": {"P2P_RUN": "7"}, "cgroup": "/p2player/x", "netns": None}
    arguments |= {"criu_config": Path("/n/criu.conf")} | changes
    return oci.spec(place, oci.parse(place.config), **arguments)


def test_all_options() -> None:
    text = FULL.replace("1.5GiB", "1536 MiB")
    assert oci.parse(layout(text).config) == oci.Options(
        network=Network(False, "lan0", "02:00:00:88:00:05", "10.88.0.5/24", "10.88.0.1"),
        tcp_established=False,
        memory_max=1536 << 20,
        cwd="/srv",
        uid=1000,
        gid=50,
        devices=("/dev/null",),
    )


def test_an_empty_table_is_fine() -> None:
    options = oci.parse(layout('command = ["x"]').config)
    assert options.network == Network(host=True)
    assert (options.tcp_established, options.memory_max, options.cwd) == (True, None, "/var/lib/p2player")


@pytest.mark.parametrize(
    ("line", "where"),
    [
        ("colour = 1", "runc.colour: unknown key"),
        ("network = 1", "runc.network: must be a string"),
        ('network = "lan0"', "runc.network: must be"),
        ('network = "bridge:"', "runc.network: must be"),
        ('network = "bridge:../../x"', "runc.network: must be"),
        ('network = "bridge:a-name-too-long-for-it"', "runc.network: must be"),
        ('mac = "02:00:00:00:00:01"', "runc.mac: needs network"),
        ('network = "bridge:b"\nmac = "01:00:00:00:00:01"', "runc.mac: must be the MAC"),
        ('network = "bridge:b"\nmac = "02:0"', "runc.mac: must be the MAC"),
        ('network = "bridge:b"\nipv4 = "10.0.0.1"', "runc.ipv4: must be an address with"),
        ('network = "bridge:b"\nipv4 = "10.0.0.1/33"', "runc.ipv4: must be an address with"),
        ('network = "bridge:b"\nipv4 = "10.0.0.1/24 dev lo"', "runc.ipv4: must be an address with"),
        ('network = "bridge:b"\ngateway = "10.0.0.1"', "runc.gateway: must be"),
        ('network = "bridge:b"\nipv4 = "10.0.0.2/24"\ngateway = "10.0.1.1"', "runc.gateway: must be"),
        ("tcp_established = 1", "runc.tcp_established: must be true or false"),
        ("memory_max = 100", "runc.memory_max: must be"),
        ("memory_max = true", "runc.memory_max: must be"),
        ('memory_max = "99999999999999T"', "runc.memory_max: must be"),
        ('cwd = "srv"', "runc.cwd: must be an absolute path"),
        ('user = "root"', "runc.user: must be numbers"),
        ("user = 0", "runc.user: must be numbers"),
        ('devices = "/dev/null"', "runc.devices: must be a list"),
        ('devices = ["/etc/passwd"]', "runc.devices: must be a list"),
        ("devices = [1]", "runc.devices: must be a list"),
    ],
)
def test_nonsense_is_refused_with_its_key(line: str, where: str) -> None:
    with pytest.raises(ConfigError, match=where):
        oci.parse(layout(f'command = ["x"]\n[runc]\n{line}').config)


def test_the_document() -> None:
    document = spec(FULL.replace("1.5GiB", "64M"), netns=Path("/n/netns"))
    json.dumps(document)
    process = document["process"]
    assert process["args"] == ["/bin/server", "--data=/var/lib/p2player", "/etc"]
    env = dict(line.split("=", 1) for line in process["env"])
    assert env["HOME"] == "/var/lib/p2player"
    assert env["COLOUR"] == "blue"
    assert (env["P2P_APP"], env["P2P_BASE"], env["P2P_STATE"]) == ("/", "/", "/var/lib/p2player")
    assert env["P2P_RUN"] == "7"
    assert process["user"] == {"uid": 1000, "gid": 50}
    assert not process["terminal"]
    assert "rlimits" not in process  # which a restore could not set again
    assert "CAP_SYS_ADMIN" not in process["capabilities"]["bounding"]
    assert document["hostname"] == "my-shop"
    assert {"type": "network", "path": "/n/netns"} in document["linux"]["namespaces"]
    assert document["linux"]["resources"]["memory"] == {"limit": 64 << 20}
    null = {"type": "c", "major": 1, "minor": 3}
    assert {"allow": True, "access": "rw"} | null in document["linux"]["resources"]["devices"]


def test_nothing_of_this_machine_is_in_its_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LANG", "of-this-machine")
    assert "of-this-machine" not in json.dumps(spec('command = ["x"]'))
    assert all(one["type"] != "network" for one in spec('command = ["x"]')["linux"]["namespaces"])


def test_a_device_that_is_not_here_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="/dev/no-such-thing: No such file"):
        spec('command = ["x"]\n[runc]\ndevices = ["/dev/no-such-thing"]')
    if os.path.isdir("/dev/pts"):
        with pytest.raises(ConfigError, match="is no device"):
            spec('command = ["x"]\n[runc]\ndevices = ["/dev/pts"]')


@pytest.mark.parametrize(("name", "label"), [("shop", "shop"), ("A b_c", "a-b-c"), ("!!", "app"), ("x" * 99, "x" * 63)])
def test_names_of_hosts(name: str, label: str) -> None:
    assert oci.hostname(name) == label
