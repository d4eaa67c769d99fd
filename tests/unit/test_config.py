"""`config.toml`: every key, its defaults, and errors that name what is wrong."""

from dataclasses import fields
from pathlib import Path

import pytest

from backends.base import EngineSettings
from p2player import config
from p2player.addresses import Address
from p2player.config import Settings, load, parse
from p2player.errors import Refused, Usage

EVERYTHING = """
limit_in = "80Mbit/s"
limit_out = 1000000
gossip_preset = "wan"
store_high_watermark = 0.7
store_low_watermark = 0.5
warm_auto = true
warm_budget_bytes = "20GiB"
return_basis = "30m"
control_tcp = "127.0.0.1:7421"
control_token_file = "/etc/p2player/token"
log_format = "json"
log_level = "debug"

[labels]
rack = "r7"
metered = "yes"

[engines]
criu = "/opt/criu/sbin/criu"
lxd_socket = "/var/lib/lxd/unix.socket"
lxd_pool = "apps"
libvirt_uri = "qemu:///system"
"""


def test_every_key_is_read() -> None:
    assert parse(EVERYTHING) == Settings(
        limit_in=10_000_000,
        limit_out=1_000_000,
        gossip_preset="wan",
        labels={"rack": "r7", "metered": "yes"},
        store_high_watermark=0.7,
        store_low_watermark=0.5,
        warm_auto=True,
        warm_budget_bytes=20 << 30,
        return_basis_s=1800.0,
        control_tcp=Address("127.0.0.1", 7421),
        control_token_file=Path("/etc/p2player/token"),
        log_format="json",
        log_level="debug",
        engines=EngineSettings(
            criu=Path("/opt/criu/sbin/criu"),
            lxd_socket=Path("/var/lib/lxd/unix.socket"),
            lxd_pool="apps",
            libvirt_uri="qemu:///system",
        ),
    )


def test_the_table_of_keys_is_complete() -> None:
    assert config.__doc__ is not None
    keys = (*config.READERS, *config.ENGINE_READERS)
    for key in keys:
        assert key in config.__doc__
    assert all(f"{key} =" in EVERYTHING or f"[{key}]" in EVERYTHING for key in keys)
    assert {field.name for field in fields(EngineSettings)} == set(config.ENGINE_READERS)


def test_a_label_may_be_as_long_as_the_mesh_takes_it() -> None:
    assert parse(f"[labels]\nrack = '{'é' * 64}'").labels == {"rack": "é" * 64}


def test_defaults(tmp_path: Path) -> None:
    assert load(tmp_path / "config.toml") == parse("") == Settings()
    assert Settings().return_basis_s == 3600.0
    assert Settings().limit_in is None


def test_the_preset_follows_the_address() -> None:
    assert Settings().preset_for("0.0.0.0") == "lan"
    assert Settings().preset_for("127.0.0.1") == Settings().preset_for("::1") == "local"
    assert parse('gossip_preset = "wan"').preset_for("127.0.0.1") == "wan"


def test_no_return_basis() -> None:
    assert parse("return_basis = 0").return_basis_s == 0.0


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("warmauto = true", "unknown key 'warmauto'; known are control_tcp"),
        ("[store]\nlimit = 3", "unknown key 'store'"),
        ("warm_auto = 1", "key 'warm_auto': must be true or false"),
        ("limit_in = true", "key 'limit_in': must be a number or a text"),
        ('limit_in = "fast"', "key 'limit_in': 'fast' is not a rate"),
        ("limit_out = 0", "key 'limit_out'"),
        ("limit_out = -3", "key 'limit_out'"),
        ("limit_out = nan", "key 'limit_out'"),
        ("warm_budget_bytes = -1", "key 'warm_budget_bytes'"),
        ('return_basis = "31d"', "key 'return_basis': must be 30 days at most"),
        ('gossip_preset = "fast"', "key 'gossip_preset': must be one of lan, wan, local"),
        ("gossip_preset = ['lan']", "key 'gossip_preset': must be one of"),
        ("store_high_watermark = 1.5", "key 'store_high_watermark': must be a part"),
        ("store_low_watermark = 0.95", "key 'store_low_watermark': must be below"),
        ("store_low_watermark = nan", "key 'store_low_watermark'"),
        ("labels = 'rack'", "key 'labels': must be a table"),
        ("[labels]\nrack = 7", "label 'rack' must be a text"),
        ("[labels]\n'' = 'x'", "label '' is empty"),
        (f"[labels]\nrack = '{'x' * 129}'", "label 'rack' is empty, or it or its text is not printable"),
        (f"[labels]\n'{'é' * 65}' = ''", "key 'labels'"),
        ('[labels]\nrack = "a\\nb"', "label 'rack'"),
        ('[labels]\n"a\\u001b" = "x"', "key 'labels'"),
        ("\n".join(["[labels]", *(f"a{n} = 'x'" for n in range(33))]), "holds 33 labels"),
        ('control_tcp = "0.0.0.0:7421"', "never offered to a network"),
        ('control_tcp = "10.0.0.1:7421"', "never offered to a network"),
        ('control_tcp = "localhost:7421"', "not a name"),
        ("control_tcp = 7421", "key 'control_tcp': must be a text"),
        ('control_token_file = "token"', "must be an absolute path"),
        ('log_format = "xml"', "must be one of text, json"),
        ('log_level = "all"', "must be one of debug, info, warning, error"),
        ("engines = 'criu'", "key 'engines': must be a table"),
        ("[engines]\ncrui = '/x'", "key 'engines': unknown key 'crui'; known are criu, libvirt_uri"),
        ("[engines]\ncriu = 'sbin/criu'", "key 'engines': criu: must be an absolute path"),
        ("[engines]\ncriu = 3", "key 'engines': criu: must be a text"),
        ('[engines]\nlxd_pool = ""', "key 'engines': lxd_pool: must be a printable text"),
        ('[engines]\nlibvirt_uri = "a\\nb"', "key 'engines': libvirt_uri: must be a printable text"),
        (f"[engines]\nlxd_pool = '{'x' * 4097}'", "key 'engines': lxd_pool: must be a printable text"),
        ("limit_in = ", "not valid TOML"),
    ],
)
def test_errors_name_the_key(text: str, told: str) -> None:
    with pytest.raises(Usage) as caught:
        parse(text)
    assert told in caught.value.message


def test_errors_of_a_file_name_it(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    for content in (b"x = 1", b"\xff\xfe", b"#" * (config.MAX_CONFIG_BYTES + 1), b"a = " + b"[" * 5000):
        path.write_bytes(content)
        with pytest.raises(Usage, match=str(path)):
            load(path)
    path.unlink()
    path.mkdir()
    with pytest.raises(Refused, match=str(path)):
        load(path)
