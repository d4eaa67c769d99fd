"""The application's configuration file, its placeholders, and what a process is given."""

import contextlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends import config
from backends.base import AppConfig, AppLayout, Hooks
from backends.command import Folders, arguments, environment, expand
from backends.errors import ConfigError
from backends.registry import builtin

FULL = """
command = ["{app}/bin/server", "--data", "{state}", "--os={base}"]
addresses = ["10.0.0.7:8080", "app.example.org"]
stop_timeout_s = 2.5
[env]
LANG = "C.UTF-8"
LIB = "{base}/lib:{app}/lib"
[hooks]
before_suspend = ["drain"]
after_restore = ["announce", "{state}/zone"]
save = ["sh", "-c", "kill -USR1 $P2P_PID"]
timeout_s = 5
[runc]
anything = { deep = [1, 2] }
"""


def layout(text: str = FULL) -> AppLayout:
    return AppLayout("ab" * 16, "shop", Path("/n/apps/x"), config.parse(text), base=Path("/l/base"), app=Path("/l/app"))


def test_every_key_is_read() -> None:
    assert config.parse(FULL) == AppConfig(
        command=("{app}/bin/server", "--data", "{state}", "--os={base}"),
        env={"LANG": "C.UTF-8", "LIB": "{base}/lib:{app}/lib"},
        addresses=("10.0.0.7:8080", "app.example.org"),
        stop_timeout_s=2.5,
        hooks=Hooks(
            before_suspend=("drain",),
            after_restore=("announce", "{state}/zone"),
            save=("sh", "-c", "kill -USR1 $P2P_PID"),
            timeout_s=5.0,
        ),
        engines={"runc": {"anything": {"deep": [1, 2]}}},
    )


def test_nothing_is_required_of_every_backend() -> None:
    assert config.parse("") == AppConfig()
    assert config.parse("").stop_timeout_s == 10.0


@pytest.mark.parametrize(
    ("text", "where", "problem"),
    [
        ("comand = ['x']", "comand", "unknown key"),
        ("[hooks]\nafter = ['x']", "hooks.after", "unknown key"),
        ("[docker]\n", "docker", "unknown key"),
        ("command = 'x'", "command", "must be a list of strings"),
        ("command = []", "command", "must name a command"),
        ("command = ['']", "command", "must name a command"),
        ("command = ['x', 3]", "command[1]", "must be a string"),
        ("command = ['x', \"a\\u0000b\"]", "command[1]", "must not contain NUL"),
        ("command = ['x', '{data}']", "command[1]", "unknown placeholder {data}; known: {app} {base} {state}"),
        ("[hooks]\nsave = ['x', '{P2P_STATE}']", "hooks.save[1]", "unknown placeholder {P2P_STATE}"),
        ("[env]\nA = '{nope}'", "env.A", "unknown placeholder {nope}"),
        ("[env]\nA = 1", "env.A", "must be a string"),
        ("[env]\n'a b' = 'x'", "env.a b", "not a name"),
        ("[env]\nP2P_STATE = 'x'", "env.P2P_STATE", "set by p2player"),
        ("env = 'x'", "env", "must be a table"),
        ("runc = 1", "runc", "must be a table"),
        ("hooks = []", "hooks", "must be a table"),
        ("addresses = ['a b']", "addresses[0]", "not an address"),
        ("addresses = ['']", "addresses[0]", "not an address"),
        (f"addresses = ['{'é' * 128}']", "addresses[0]", "not an address"),
        (f"addresses = {['a'] * 33}", "addresses", "more than 32"),
        (f"command = {['a'] * 1025}", "command", "more than 1024"),
        ("stop_timeout_s = 0", "stop_timeout_s", "above 0"),
        ("stop_timeout_s = 601", "stop_timeout_s", "at most 600"),
        ("stop_timeout_s = true", "stop_timeout_s", "number of seconds"),
        ("stop_timeout_s = nan", "stop_timeout_s", "number of seconds"),
        ("stop_timeout_s = inf", "stop_timeout_s", "number of seconds"),
        ("stop_timeout_s = '1'", "stop_timeout_s", "number of seconds"),
        ("[hooks]\ntimeout_s = -1", "hooks.timeout_s", "above 0"),
        ("command = ", "", "not valid TOML"),
        ("a = " + "[" * 20_000, "", "not acceptable TOML"),
        ("a = " + "9" * 5000, "", "not acceptable TOML"),
        ("# \ud800", "", "not acceptable TOML"),
        ("#" * 70_000, "", "larger than 65536 bytes"),
    ],
)
def test_mistakes_are_named(text: str, where: str, problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config.parse(text)
    assert caught.value.where == where
    assert problem in str(caught.value)


@given(st.text(max_size=200))
def test_any_text_is_accepted_or_refused_with_our_own_error(text: str) -> None:
    with contextlib.suppress(ConfigError):
        assert config.parse(text).stop_timeout_s > 0


@pytest.mark.parametrize(
    ("word", "filled"),
    [
        ("{app}/x{state}{base}", "/l/app/x/n/apps/x/state/l/base"),
        ('{"a": {"b": 1}}', '{"a": {"b": 1}}'),
        ("{print $1}", "{print $1}"),
        ("${HOME} ${app}", "${HOME} ${app}"),
        ("{{app}} {{{app}}}", "{app} {{app}}"),
        ("{} {0} { } }{", "{} {0} { } }{"),
        ("{{ app }}", "{{ app }}"),
    ],
)
def test_braces(word: str, filled: str) -> None:
    assert expand(word, Folders.of(layout())) == filled


@given(st.text("{}$ab1 :\"'", max_size=30))
def test_words_without_names_of_folders_are_literal_or_refused(word: str) -> None:
    parsed = layout("")
    try:
        filled = expand(word, Folders.of(parsed))
    except ConfigError:
        return
    assert filled.replace("{", "").replace("}", "") == word.replace("{", "").replace("}", "")


def test_arguments_and_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LANG", "en")
    monkeypatch.setenv("SECRET", "x")
    monkeypatch.delenv("PATH")
    place = layout()
    assert arguments(place.config.command, Folders.of(place))[-1] == "--os=/l/base"
    env = environment(place, {"P2P_RUN": "1"})
    assert env["LIB"] == "/l/base/lib:/l/app/lib"
    assert env["LANG"] == "C.UTF-8"
    assert "SECRET" not in env
    assert env["PATH"].endswith("/bin")
    assert {name: value for name, value in env.items() if name.startswith("P2P_")} == {
        "P2P_ADDRESSES": "10.0.0.7:8080 app.example.org",
        "P2P_APP": "/l/app",
        "P2P_APP_ID": "ab" * 16,
        "P2P_BASE": "/l/base",
        "P2P_NAME": "shop",
        "P2P_RUN": "1",
        "P2P_STATE": "/n/apps/x/state",
    }


# Engines by name


def test_every_backend_has_a_row() -> None:
    assert list(builtin()) == ["process", "runc", "lxd", "libvirt"]
    assert builtin()["process"].probe().available


def test_a_machine_without_runc_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    backend = builtin()["runc"]
    monkeypatch.setenv("PATH", str(tmp_path))
    probe = backend.probe()
    assert (probe.name, probe.available, probe.version) == ("runc", False, None)
    assert probe.reason is not None
    assert "runc is not installed" in probe.reason
    assert "engine-packages.sh" in probe.reason


def test_an_engine_that_cannot_be_used_shows_its_version(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    runc = tmp_path / "runc"
    runc.write_text("#!/bin/sh\necho 'runc version 1.1.5+ds1-1'\necho 'spec: 1.0.2'\n")
    runc.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    probe = builtin()["runc"].probe()
    assert (probe.available, probe.version) == (False, "1.1.5+ds1-1")
    assert probe.reason == "ip is not installed; as root: sh scripts/engine-packages.sh"
