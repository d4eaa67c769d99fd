"""Calls of libvirt: limits, errors and reconnecting, with a library that is made up; and what two nodes compare."""

import sys
import threading
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from backends.base import EngineSettings
from backends.errors import BackendUnavailable
from backends.libvirt import facts
from backends.libvirt.backend import LibvirtBackend
from backends.libvirt.connection import MAX_LEFT, Connection, LibvirtFailed, LibvirtSilent
from backends.libvirt.description import parse
from backends.libvirt.facts import Host

HOST = Host((7, 2, 22), "/usr/bin/qemu", frozenset({"pc", "pc-i440fx-7.2"}), "pc-i440fx-7.2", True)


class LibvirtError(Exception):
    def __init__(self, message: str, code: int | None = 1) -> None:
        super().__init__(message)
        self.code = code

    def get_error_message(self) -> str:
        return str(self)

    def get_error_code(self) -> int | None:
        return self.code


class Daemon:
    """What `open` gives; `alive` until the daemon is restarted. `compared` is what it thinks of a processor."""

    def __init__(self) -> None:
        self.alive = True
        self.compared: int | Exception = 1

    def getLibVersion(self) -> int:  # noqa: N802
        if not self.alive:
            raise LibvirtError("client socket is closed")
        return 9000000

    def compareHypervisorCPU(self, *words: object) -> int:  # noqa: N802
        if isinstance(self.compared, Exception):
            raise self.compared
        return self.compared


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[Daemon]:
    """The connections that were opened, in a library that is made up."""
    made: list[Daemon] = []

    def connect(uri: str | None) -> Daemon:
        if uri == "absent":
            raise LibvirtError("no such socket")
        made.append(Daemon())
        return made[-1]

    library = SimpleNamespace(
        open=connect,
        libvirtError=LibvirtError,
        registerErrorHandler=lambda handler, context: None,
        VIR_CPU_COMPARE_INCOMPATIBLE=0,
    )
    monkeypatch.setitem(sys.modules, "libvirt", library)
    return made


def test_one_connection_serves_until_the_daemon_is_restarted(opened: list[Daemon]) -> None:
    connection = Connection(None)
    for _ in range(3):
        assert connection.run(lambda daemon: daemon.alive)
    assert len(opened) == 1
    opened[0].alive = False
    assert connection.run(lambda daemon: daemon) is opened[1]


def test_errors_of_libvirt_are_told(opened: list[Daemon]) -> None:
    def fail(daemon: Any) -> None:
        raise LibvirtError("domain not found", 42)

    with pytest.raises(LibvirtFailed, match="domain not found") as caught:
        Connection(None).run(fail)
    assert caught.value.code == 42


def test_what_qemu_printed_becomes_one_line(opened: list[Daemon]) -> None:
    def fail(daemon: Any) -> None:
        raise LibvirtError("it failed: a\x1b\nb\n" + "x" * 2000 + "end\n")

    with pytest.raises(LibvirtFailed) as caught:
        Connection(None).run(fail)
    text = str(caught.value)
    assert text.isprintable()
    assert len(text) < 700
    assert text.endswith("end")


def test_other_errors_come_as_they_are(opened: list[Daemon]) -> None:
    with pytest.raises(ZeroDivisionError):
        Connection(None).run(lambda daemon: 1 / 0)


def test_without_a_daemon_the_engine_is_unavailable(opened: list[Daemon]) -> None:
    with pytest.raises(BackendUnavailable, match="no libvirtd at absent: no such socket"):
        Connection("absent").run(lambda daemon: None)
    probe = LibvirtBackend(EngineSettings(libvirt_uri="absent")).probe()
    assert (probe.available, probe.version) == (False, None)


def test_a_daemon_that_hangs_is_left_alone(opened: list[Daemon]) -> None:
    connection, over = Connection(None), threading.Event()
    with pytest.raises(LibvirtSilent):
        connection.run(lambda daemon: over.wait(10), timeout_s=0.01)
    over.set()
    assert connection.run(lambda daemon: daemon) is opened[1]


def test_what_was_given_up_before_it_began_is_not_begun(opened: list[Daemon], monkeypatch: pytest.MonkeyPatch) -> None:
    connection, over, done = Connection(None), threading.Event(), threading.Event()
    connect = sys.modules["libvirt"].open
    monkeypatch.setattr(sys.modules["libvirt"], "open", lambda uri: (over.wait(10), connect(uri))[1])
    with pytest.raises(LibvirtSilent):
        connection.run(lambda daemon: done.set(), timeout_s=0.01, about="it")
    assert connection.unanswered("it")
    assert not connection.unanswered("something else")
    over.set()
    while connection.unanswered("it"):
        time.sleep(0.001)
    assert not done.is_set()


def test_a_daemon_that_hangs_for_long_holds_few_threads(opened: list[Daemon]) -> None:
    connection, over = Connection(None), threading.Event()
    before = threading.active_count()
    for _ in range(2 * MAX_LEFT):
        with pytest.raises(LibvirtSilent):
            connection.run(lambda daemon: over.wait(10), timeout_s=0.001)
    assert threading.active_count() <= before + MAX_LEFT
    over.set()
    while threading.active_count() > before:
        time.sleep(0.001)
    assert isinstance(connection.run(lambda daemon: daemon), Daemon)


def test_without_the_library_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "libvirt", None)
    probe = LibvirtBackend().probe()
    assert not probe.available
    assert probe.reason is not None
    assert "pip install 'p2player[libvirt]'" in probe.reason


# What two nodes compare


@pytest.fixture
def compare(opened: list[Daemon]) -> Callable[..., list[str]]:
    """Compares facts with `HOST`; `says` is what libvirt thinks of the processor."""
    connection = Connection(None)
    connection.run(lambda daemon: None)

    def run(given: dict[str, str], says: int | Exception = 1) -> list[str]:
        opened[0].compared = says
        return facts.differences(given, HOST, connection)

    return run


def test_facts_of_a_machine() -> None:
    live = parse(
        "<domain type='kvm'><os><type machine='pc-i440fx-7.2'>hvm</type></os><cpu mode='custom'><model>Skylake</model>"
        "<feature policy='require' name='ss'/><feature policy='disable' name='mpx'/></cpu></domain>"
    )
    kind = {"kind": "kvm", "machine": "pc-i440fx-7.2", "qemu": "7.2.22"}
    assert facts.of_machine(live, HOST) == {**kind, "cpu": "Skylake +ss -mpx"}
    live.set("type", "qemu")
    assert facts.of_machine(live, HOST) == {**kind, "kind": "qemu"}


def test_equal_nodes_have_no_differences(compare: Callable[..., list[str]]) -> None:
    assert compare({"kind": "kvm", "machine": "pc-i440fx-7.2", "qemu": "7.2.1", "cpu": "Skylake +ss"}) == []
    assert compare({"kind": "qemu", "machine": "pc-i440fx-7.2", "qemu": "6.1.0"}) == []


def test_each_difference_is_told(compare: Callable[..., list[str]]) -> None:
    given = {"kind": "kvm", "machine": "pc-i440fx-8.0", "qemu": "8.0.0", "cpu": "Skylake +ss"}
    assert compare(given, says=0) == [
        "QEMU 7.2.22 has no machine type pc-i440fx-8.0",
        "QEMU 7.2.22 is older than 8.0.0, which runs the application",
        "the processor here lacks features of Skylake, which the application uses",
    ]
    assert compare({"kind": "kvm", "cpu": "Odd"}, LibvirtError("unknown CPU")) == [
        "the processor here cannot be compared with Odd: unknown CPU"
    ]


def test_a_strange_machine_type_is_not_repeated(compare: Callable[..., list[str]]) -> None:
    assert compare({"machine": "\x1b[31m"}) == ["QEMU 7.2.22 has no machine type of that name"]


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"kind": "x" * 5000, "qemu": "9" * 5000, "cpu": "<model>"},
        {"kind": "\0", "qemu": "\0", "cpu": "\0"},
        {"kind": "kvm", "qemu": "..", "cpu": ""},
        {"kind": "kvm", "cpu": "a " * 5000},
        {"kind": "kvm", "cpu": "a <b> +c"},
    ],
)
def test_strange_facts_do_no_harm(given: dict[str, str], compare: Callable[..., list[str]]) -> None:
    assert compare(given, says=0) == []
