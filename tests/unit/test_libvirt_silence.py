"""A libvirtd that does not answer in time, and does what it was asked for later: what starts and saves make of it."""

import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar

import pytest

from backends.base import AppConfig, EngineState, Workspace
from backends.errors import StartFailed, SuspendFailed
from backends.libvirt import savefile, saving, starting
from backends.libvirt.connection import SHORT_S, Connection, LibvirtSilent
from backends.libvirt.instance import Instance
from backends.libvirt.machine import Seen
from backends.libvirt.notes import Note, Phase
from tests.support.apps import eventually

T = TypeVar("T")

APP_ID = "ab" * 16
PATIENCE_S = 0.1
NO_DOMAIN, INVALID = 42, 55
FINAL = '<domain><metadata><p:memory xmlns:p="urn:p2player:libvirt:1" is="final"/></metadata></domain>'
RUNNING, PAUSED, SHUTOFF, CRASHED = 1, 3, 5, 6


class LibvirtError(Exception):
    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code

    def get_error_message(self) -> str:
        return str(self)

    def get_error_code(self) -> int:
        return self.code


class Daemon:
    """A libvirtd with room for one machine. A call that is named in `held_up` waits for its event, before it is done
    or (`answers`) before it is answered."""

    def __init__(self) -> None:
        self.state: int | None = None
        self.held_up: dict[str, threading.Event] = {}
        self.answers: dict[str, threading.Event] = {}
        self.executed = 0

    def hold_up(self, call: str) -> threading.Event:
        return self.held_up.setdefault(call, threading.Event())

    def hold_back(self, call: str) -> threading.Event:
        return self.answers.setdefault(call, threading.Event())

    def outcome(self) -> tuple[int | None, int]:
        """Its machine's state, and how often one was executed."""
        return self.state, self.executed

    def getLibVersion(self) -> int:  # noqa: N802
        return 9000000

    def createXML(self, description: str, flags: int) -> None:  # noqa: N802
        self._do("create", self._make)

    def saveImageGetXMLDesc(self, path: str, flags: int) -> str:  # noqa: N802
        return FINAL

    def lookupByUUIDString(self, uuid: str) -> "Daemon":  # noqa: N802
        self._do("look", lambda: None)
        if self.state is None:
            raise LibvirtError("no such machine", NO_DOMAIN)
        return self

    def XMLDesc(self, flags: int) -> str:  # noqa: N802
        return "<domain/>"

    def abortJob(self) -> None:  # noqa: N802
        pass

    def saveFlags(self, path: str, description: str, flags: int) -> None:  # noqa: N802
        def save() -> None:
            Path(path).write_bytes(b"LibvirtQemudSave")
            self.state = None

        self._do("save", save)

    def state_of(self) -> list[int]:
        assert self.state is not None
        return [self.state]

    def resume(self) -> None:
        self._do("resume", self._execute)

    def destroy(self) -> None:
        self._do("destroy", self._end)

    def _make(self) -> None:
        if self.state is not None:
            raise LibvirtError("there is one", INVALID)
        self.state = PAUSED

    def _execute(self) -> None:
        if self.state is None:
            raise LibvirtError("no such machine", NO_DOMAIN)
        self.executed += 1
        self.state = RUNNING

    def _end(self) -> None:
        self.state = None

    def _do(self, call: str, effect: Callable[[], None]) -> None:
        if call in self.held_up:
            self.held_up[call].wait(10)
        effect()
        if call in self.answers:
            self.answers[call].wait(10)


class Domain:
    """The handle of `Daemon`'s machine: there `state` is an attribute."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon

    def state(self) -> list[int]:
        return self._daemon.state_of()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._daemon, name)


class Hypervisor(Domain):
    def lookupByUUIDString(self, uuid: str) -> Domain:  # noqa: N802
        return Domain(self._daemon.lookupByUUIDString(uuid))


class Impatient(Connection):
    def run(self, work: Callable[[Any], T], timeout_s: float = SHORT_S, **told: Any) -> T:
        return super().run(work, PATIENCE_S, **told)


@pytest.fixture
def daemon(monkeypatch: pytest.MonkeyPatch) -> Iterator[Daemon]:
    made = Daemon()
    states = {"RUNNING": RUNNING, "PAUSED": PAUSED, "SHUTOFF": SHUTOFF, "CRASHED": CRASHED}
    library = SimpleNamespace(
        open=lambda uri: Hypervisor(made),
        libvirtError=LibvirtError,
        registerErrorHandler=lambda handler, context: None,
        VIR_ERR_NO_DOMAIN=NO_DOMAIN,
        VIR_ERR_OPERATION_INVALID=INVALID,
        VIR_DOMAIN_START_PAUSED=1,
        VIR_DOMAIN_XML_SECURE=1,
        VIR_DOMAIN_XML_MIGRATABLE=8,
        VIR_DOMAIN_SAVE_IMAGE_XML_SECURE=1,
        **{f"VIR_DOMAIN_{name}": number for name, number in states.items()},
    )
    monkeypatch.setitem(sys.modules, "libvirt", library)
    yield made
    for event in (*made.held_up.values(), *made.answers.values()):
        event.set()


@pytest.fixture
def instance(daemon: Daemon, tmp_path: Path) -> Instance:
    workspace = Workspace(APP_ID, "app", tmp_path, AppConfig())
    starting.make_folders(workspace)
    return Instance(Impatient(None), workspace)


def bring_up(instance: Instance) -> None:
    starting.bring_up(instance, lambda: instance.machine.create("<domain/>"), 0.0)


def answered(instance: Instance) -> None:
    eventually(lambda: not instance.machine.unanswered())


def test_a_load_that_is_completed_after_all_is_taken_back(daemon: Daemon, instance: Instance) -> None:
    late = daemon.hold_up("create")
    with pytest.raises(StartFailed, match="did not answer") as caught:
        bring_up(instance)
    assert not caught.value.executed
    assert instance.status().state is EngineState.ABSENT
    late.set()
    answered(instance)
    assert daemon.outcome() == (None, 0)
    bring_up(instance)
    assert daemon.outcome() == (RUNNING, 1)


def test_nothing_is_loaded_while_an_earlier_load_may_still_happen(daemon: Daemon, instance: Instance) -> None:
    late = daemon.hold_up("create")
    with pytest.raises(StartFailed):
        bring_up(instance)
    del daemon.held_up["create"]
    with pytest.raises(StartFailed, match="has not answered an earlier call that concerns p2p-abababababab") as caught:
        bring_up(instance)
    assert not caught.value.executed
    assert daemon.state is None
    late.set()
    answered(instance)
    bring_up(instance)


def test_a_load_that_only_was_not_answered_is_taken_back(daemon: Daemon, instance: Instance) -> None:
    answer = daemon.hold_back("create")
    with pytest.raises(StartFailed) as caught:
        bring_up(instance)
    assert (caught.value.executed, daemon.outcome()) == (False, (None, 0))
    answer.set()


def test_a_daemon_that_stays_silent_never_executes_it(daemon: Daemon, instance: Instance) -> None:
    """What is left is not known, but that it did not execute is: a migration can be called off."""
    late = [daemon.hold_up(call) for call in ("create", "look")]
    with pytest.raises(StartFailed) as caught:
        bring_up(instance)
    assert not caught.value.executed
    with pytest.raises(LibvirtSilent):
        instance.status()
    for event in late:
        event.set()
    answered(instance)
    assert daemon.outcome() == (None, 0)


@pytest.mark.parametrize("before", [None, Phase.ENDED, Phase.SAVED])
def test_one_that_was_loaded_late_for_a_node_that_was_killed_is_ended(
    daemon: Daemon, instance: Instance, before: Phase | None
) -> None:
    instance.remember(None if before is None else Note.fresh(before))
    daemon.state = PAUSED
    assert not instance.status().executing
    assert daemon.outcome() == (None, 0)


@pytest.mark.parametrize("phase", [Phase.RUNNING, Phase.SAVING, Phase.STOPPING, Phase.LOADING])
def test_one_that_is_held_otherwise_is_kept(daemon: Daemon, instance: Instance, phase: Phase) -> None:
    instance.remember(Note.fresh(phase))
    daemon.state = PAUSED
    assert instance.status().executing is (phase is not Phase.LOADING)
    assert instance.look() is Seen.HELD


def test_one_that_was_let_go_without_an_answer_is_kept(daemon: Daemon, instance: Instance) -> None:
    answer = daemon.hold_back("resume")
    bring_up(instance)
    assert (instance.status().state, daemon.executed) == (EngineState.RUNNING, 1)
    answer.set()


def test_whether_one_was_let_go_can_be_unknown(daemon: Daemon, instance: Instance) -> None:
    late = daemon.hold_up("resume")
    with pytest.raises(StartFailed, match="it is unknown whether app runs") as caught:
        bring_up(instance)
    assert caught.value.executed
    assert instance.look() is Seen.HELD  # its memory is nowhere else
    with pytest.raises(StartFailed, match="has not answered an earlier call"):
        starting.let_go(instance, 0.0)
    late.set()
    answered(instance)
    assert instance.status().state is EngineState.RUNNING


def test_a_save_that_cannot_be_called_off_is_not_undone(
    daemon: Daemon, instance: Instance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(saving, "_CALL_OFF_S", PATIENCE_S)
    bring_up(instance)
    late = daemon.hold_up("save")
    with pytest.raises(LibvirtSilent, match="it is unknown whether app was saved"):
        saving.save(instance)
    late.set()
    answered(instance)
    assert instance.status().state is EngineState.SUSPENDED
    assert savefile.complete(savefile.path_of(instance.workspace))


def test_a_save_that_ends_late_is_a_save(daemon: Daemon, instance: Instance) -> None:
    bring_up(instance)
    answer = daemon.hold_back("save")
    timer = threading.Timer(3 * PATIENCE_S, answer.set)
    timer.start()
    saving.save(instance)
    timer.join()
    assert instance.status().state is EngineState.SUSPENDED


def test_a_save_that_is_called_off_leaves_it_running(
    daemon: Daemon, instance: Instance, monkeypatch: pytest.MonkeyPatch
) -> None:
    bring_up(instance)
    over = threading.Event()

    def refuse(*words: object) -> None:
        over.wait(10)
        raise LibvirtError("called off", INVALID)

    monkeypatch.setattr(daemon, "saveFlags", refuse)
    monkeypatch.setattr(daemon, "abortJob", over.set)
    with pytest.raises(SuspendFailed) as caught:
        saving.save(instance)
    assert caught.value.running
    assert instance.status().state is EngineState.RUNNING
