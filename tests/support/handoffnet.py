"""A small deterministic world for the hand-off: two nodes, a network with faults, engines, and a judge.

Everything that the machines of `p2player.proto.handoff` ask of a shell is done here in virtual time: journals are
lists that survive a kill, messages may be lost, repeated or late, nodes are killed and come back. The *judge* watches
the one application: it must never run on two nodes at once, and whoever starts it must have its newest state.
"""

import heapq
import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Literal

from p2player.proto.handoff import events, memory, messages, records
from p2player.proto.handoff.destination import DestinationMachine
from p2player.proto.handoff.events import Timer
from p2player.proto.handoff.machine import HandoffConfig
from p2player.proto.handoff.memory import Epitaph
from p2player.proto.handoff.messages import Message, Offer
from p2player.proto.handoff.source import SourceMachine
from p2player.proto.handoff.table import End, KillPoint
from p2player.proto.rounds import Link, RoundConfig, RoundPolicy

A, B = "a" * 32, "b" * 32
APP = "c" * 32
EPOCH = 7
CONFIG = HandoffConfig(patience_s=60.0, ready_patience_s=200.0)

Machine = SourceMachine | DestinationMachine


LAWS: dict[type[object], tuple[type[records.Record], ...]] = {
    messages.Offer: (records.Begun,),
    messages.Welcome: (records.Offered,),
    messages.Ready: (records.Ready,),
    messages.Grant: (records.Granted,),
    messages.Restored: (records.Restored,),
    messages.Commit: (records.Committed,),
    messages.Supersede: (records.Forced,),
    messages.Closed: (records.Closed,),
    events.Suspend: (records.Suspending,),
    events.Restore: (records.Accepted,),
    events.Destroy: (records.Committed,),
    events.Discard: (records.Refused, records.Superseded),
}
"""What must be durable at its own end before a message goes out or an action begins."""


class Wrong(AssertionError):
    """An invariant of the hand-off is broken."""


@dataclass(frozen=True)
class Fault:
    """What happens to the `nth` message of class `kind` (from 0)."""

    kind: type[Message]
    what: Literal["lose", "repeat", "repeat late", "delay"]
    nth: int = 0


@dataclass(frozen=True)
class Kill:
    """Kill the node at `victim` when `at` is reached; it comes back after `down_s`."""

    at: KillPoint
    victim: End
    down_s: float = 5.0
    host: bool = False
    """The whole machine goes down: a running application with it."""


@dataclass
class Scenario:
    """What the world does to a migration.

    Attributes:
        breaks: actions that fail, by class: the attempts that do, and whether the app may have executed.
        unwritable: records whose first write fails.
        half_written: records whose first write is reported as failed, and is durable all the same.
        eager: an action that a kill interrupts has had its effect already.
        at: things to do at a time.
    """

    faults: tuple[Fault, ...] = ()
    kills: tuple[Kill, ...] = ()
    breaks: dict[type[events.Action], tuple[range, bool]] = field(default_factory=dict)
    unwritable: tuple[type[records.Record], ...] = ()
    half_written: tuple[type[records.Record], ...] = ()
    refusals: tuple[str, ...] = ()
    plan_refusals: tuple[str, ...] = ()
    eager: bool = False
    at: tuple[tuple[float, Callable[["World"], None]], ...] = ()
    image_bytes: int = 50_000_000
    max_freeze_s: float | None = None
    mode: messages.Mode = messages.Mode.LIVE
    latency: Callable[[], float] = lambda: 0.01
    lossy: Callable[[], bool] = lambda: False
    slow: dict[type[events.Action], float] = field(default_factory=dict)


@dataclass
class Engine:
    """One node's copy of the application, and what the app's record says. Survives a kill of the node."""

    present: bool = False
    owned: bool = False
    running: bool = False
    wants_run: bool = False
    epoch: int = 0
    state: int = 0
    mark: events.AppState | None = None


class Node:
    """One node: machines in memory, everything else durable."""

    def __init__(self, world: "World", id_: str) -> None:
        self.world = world
        self.id = id_
        self.alive = True
        self.boot = 0
        self.engine = Engine()
        self.journals: dict[str, list[dict[str, object]]] = {}
        self.closed: dict[str, Epitaph] = {}
        self.machines: dict[str, Machine] = {}
        self.timers: dict[tuple[str, Timer], int] = {}
        self.acts: dict[tuple[str, int], int] = {}
        self.finished: list[str] = []

    # -- life and death

    def kill(self, down_s: float, host: bool) -> None:
        if not self.alive:
            return
        self.world.note(f"{self.name} killed{' with its machine' if host else ''}")
        self.alive = False
        self.boot += 1
        self.machines.clear()
        self.timers.clear()
        self.acts.clear()
        if host:
            self.engine.running = False
        self.world.after(down_s, self.restart)

    def restart(self) -> None:
        self.world.note(f"{self.name} restarted")
        self.alive = True
        for migration, maps in list(self.journals.items()):
            if not maps:
                continue  # killed before the first record was durable: there is nothing to resume
            entries = records.load(maps)
            machine: Machine
            if isinstance(entries[0], records.Begun):
                machine = SourceMachine.replay(entries, CONFIG, self.world.policy())
            else:
                machine = DestinationMachine.replay(entries, CONFIG)
            self.machines[migration] = machine
            self.carry_out(migration, machine.restart(self.world.now))
        engine = self.engine
        held = any(machine.holds for machine in self.machines.values())
        if engine.owned and engine.wants_run and not engine.running and not held:
            self.start_copy()  # what the apps service does for the apps of its node

    @property
    def name(self) -> str:
        return "A" if self.id == A else "B"

    # -- events

    def feed(self, migration: str, event: events.Event) -> None:
        machine = self.machines.get(migration)
        if machine is not None:
            self.carry_out(migration, machine.handle(event, self.world.now))

    def receive(self, migration: str, message: Message, sender: str) -> None:
        if not self.alive:
            return
        machine = self.machines.get(migration)
        if machine is not None:
            ours = messages.FROM_DESTINATION if machine.end is End.SOURCE else messages.FROM_SOURCE
            if type(message).__name__ in ours:
                self.feed(migration, events.Received(message))
            return
        if migration in self.closed:
            answer = memory.answer(self.closed[migration], message)
        elif isinstance(message, messages.Offer):
            fresh = self.machines[migration] = DestinationMachine.offered(message, CONFIG)
            self.carry_out(migration, fresh.begin(self.world.now))
            return
        elif isinstance(message, messages.Grant):
            fresh = self.machines[migration] = DestinationMachine.asked(message, CONFIG)
            self.carry_out(migration, fresh.begin(self.world.now))
            return
        else:
            owned_epoch = self.engine.epoch if self.engine.owned else 0
            answer = memory.answer_unknown(message, owned_epoch)
        if answer is not None:
            self.world.send(migration, self.id, sender, answer)

    # -- outputs

    def carry_out(self, migration: str, outputs: Iterable[events.Output]) -> None:
        boot = self.boot
        outputs = list(outputs)
        for number, output in enumerate(outputs):
            if self.boot != boot:
                return
            match output:
                case events.Journal(record):
                    if not self.write(migration, record):
                        self.feed(migration, events.Unwritten(tuple(outputs[number:])))
                        return
                case events.Send(message):
                    self.world.send(migration, self.id, self.world.other(self.id), message)
                case events.Act(token, action):
                    self.act(migration, token, action)
                case events.StopAct(token):
                    self.acts.pop((migration, token), None)
                case events.SetTimer(timer, at):
                    self.set_timer(migration, timer, at)
                case events.ClearTimer(timer):
                    self.timers.pop((migration, timer), None)
                case events.Mark(state):
                    self.engine.mark = state
                case events.Finished():
                    self.finished.append(migration)
                case events.Forget():
                    self.forget(migration)

    def write(self, migration: str, record: records.Record) -> bool:
        """Append and "fsync"; False when the disk refuses."""
        world = self.world
        end = self.machines[migration].end
        world.seen.append((end, type(record)))
        boot = self.boot
        world.maybe_kill(end, record, "before")
        if self.boot != boot:
            return True
        if type(record) in world.unwritable:
            world.unwritable.remove(type(record))
            world.note(f"{self.name} cannot write {type(record).__name__}")
            return False
        world.note(f"{self.name} writes {type(record).__name__}")
        self.journals.setdefault(migration, []).append(records.dump(record))
        if type(record) in world.half_written:
            world.half_written.remove(type(record))
            world.note(f"{self.name} believes that it did not")
            return False
        world.maybe_kill(end, record, "after")
        return True

    def set_timer(self, migration: str, timer: Timer, at: float) -> None:
        generation = next(self.world.numbers)
        self.timers[migration, timer] = generation
        boot = self.boot

        def fire() -> None:
            if self.boot == boot and self.timers.get((migration, timer)) == generation:
                del self.timers[migration, timer]
                self.feed(migration, events.Fired(timer))

        self.world.after(at - self.world.now, fire)

    def forget(self, migration: str) -> None:
        machine = self.machines.pop(migration)
        if self.journals.pop(migration, None) or machine.end is End.SOURCE:
            self.closed[migration] = machine.epitaph

    # -- the engine

    def act(self, migration: str, token: int, action: events.Action) -> None:
        world = self.world
        world.check_lawful(self, migration, action)
        boot = self.boot
        generation = next(world.numbers)
        self.acts[migration, token] = generation
        count = world.attempts.get(type(action), 0)
        world.attempts[type(action)] = count + 1
        broken = world.scenario.breaks.get(type(action))
        failing = broken is not None and count in broken[0]
        eager = world.scenario.eager and not failing
        result = self.effect(action) if eager else None

        def finish() -> None:
            # A stopped pull or import ends quietly; a killed node's actions end with it.
            if self.boot != boot or self.acts.pop((migration, token), None) != generation:
                return
            if failing:
                assert broken is not None
                world.note(f"{self.name} fails at {type(action).__name__}")
                if isinstance(action, events.Restore):
                    self.engine.owned, self.engine.epoch, self.engine.mark = True, action.epoch, None
                reason = "told to fail"
                self.feed(migration, events.Broke(token, "failed", reason, executed=broken[1]))
                return
            self.feed(migration, events.Done(token, result if eager else self.effect(action)))

        world.after(world.scenario.slow.get(type(action), 0.2), finish)

    def effect(self, action: events.Action) -> events.Result:
        engine, world = self.engine, self.world
        world.note(f"{self.name} does {type(action).__name__}")
        match action:
            case events.MakePlan():
                return events.Planned(records.Prediction(1.0, 0.1, 1000), world.scenario.plan_refusals)
            case events.TakeImage(number, final):
                if not final and engine.running:
                    engine.state += 1  # the app goes on while it is imaged
                    world.truth = engine.state
                image = messages.Image(engine.state.to_bytes(32), 1000, ())
                return events.Imaged(image, world.scenario.image_bytes // 4 ** (number - 1), 0.0 if final else 0.05)
            case events.Suspend():
                engine.running = False
                return None
            case events.EnsureSuspended():
                engine.running = False
                return None
            case events.Resume(epoch):
                engine.epoch, engine.mark, engine.wants_run = epoch, None, True
                self.start_copy()
                return events.Resumed(0.1)
            case events.Release():
                engine.mark = None
                self.start_copy()
                return None
            case events.Destroy(epoch):
                if engine.epoch <= epoch:
                    self.remove_copy()
                return None
            case events.Preflight():
                return events.Checked(world.scenario.refusals)
            case events.PullLayers(offer):
                engine.epoch = offer.epoch
                return events.LayersPulled(messages.Pulled(), messages.Pulled(100, 50, 60, {A: 60}, 0.1))
            case events.PullImage(_, image):
                engine.present = True
                engine.state = int.from_bytes(image.layer)
                return messages.Pulled(1000, 500, 600, {A: 600}, 0.1)
            case events.FindCopy(_, epoch):
                return events.Found(engine.owned and engine.epoch >= epoch, engine.running)
            case events.Restore(epoch, running):
                engine.epoch, engine.owned, engine.mark, engine.wants_run = epoch, True, None, running
                self.start_copy()
                return events.Resumed(0.1)
            case events.RunHook():
                return ""
            case events.Discard(epoch):
                if not engine.owned or engine.epoch <= epoch:
                    self.remove_copy()
                return None

    def start_copy(self) -> None:
        engine, world = self.engine, self.world
        if engine.running:
            return
        if not engine.present:
            raise Wrong(f"{self.name} starts an app that it does not have")
        if any(node.engine.running for node in world.nodes.values()) and not world.forced:
            raise Wrong(f"{self.name} starts a second copy")
        if engine.state != world.truth and not world.forced:
            raise Wrong(f"{self.name} starts the app with old state")
        engine.running = True
        engine.state += 1
        world.truth = engine.state
        world.note(f"{self.name} runs the app")

    def remove_copy(self) -> None:
        if self.engine.running and not self.world.forced:
            raise Wrong(f"{self.name} destroys a running copy")
        self.engine = Engine()


class World:
    """Two nodes, one application on A, one migration of it to B."""

    MIGRATION = "d" * 32
    HORIZON_S = 20_000.0
    MAX_EVENTS = 20_000

    def __init__(self, scenario: Scenario) -> None:
        self.scenario = scenario
        self.now = 1000.0
        self.numbers = itertools.count()
        self.queue: list[tuple[float, int, Callable[[], None]]] = []
        self.nodes = {A: Node(self, A), B: Node(self, B)}
        self.truth = 100
        self.forced = False
        self.counts: dict[type[Message], int] = {}
        self.attempts: dict[type[events.Action], int] = {}
        self.unwritable = list(scenario.unwritable)
        self.half_written = list(scenario.half_written)
        self.kills = list(scenario.kills)
        self.seen: list[tuple[End, type[records.Record]]] = []
        self.log: list[str] = []
        self.nodes[A].engine = Engine(True, True, True, True, EPOCH, self.truth)
        for delay_s, do in scenario.at:
            self.after(delay_s, lambda do=do: do(self))  # type: ignore[misc]

    # -- time

    def note(self, what: str) -> None:
        self.log.append(f"{self.now - 1000:9.3f} {what}")

    def after(self, delay_s: float, do: Callable[[], None]) -> None:
        heapq.heappush(self.queue, (self.now + max(delay_s, 0.0), next(self.numbers), do))

    def run(self) -> None:
        """Until nothing is left to happen."""
        for _ in range(self.MAX_EVENTS):
            if not self.queue:
                return
            self.now, _, do = heapq.heappop(self.queue)
            if self.now > self.HORIZON_S:
                raise Wrong("it does not come to rest")
            do()
        raise Wrong("it does not come to rest")

    # -- parts

    def policy(self) -> RoundPolicy:
        return RoundPolicy(RoundConfig(max_freeze_s=self.scenario.max_freeze_s), Link(measured=True))

    def offer(self) -> Offer:
        return Offer(
            step=1,
            app_id=APP,
            app_name="counter",
            backend="process",
            epoch=EPOCH,
            source=A,
            destination=B,
            base=b"\1" * 32,
            app=b"\2" * 32,
            record=b"{}",
            mode=self.scenario.mode,
            instance_bytes=self.scenario.image_bytes,
        )

    def begin(self) -> None:
        """Start the migration at A."""
        machine = SourceMachine(self.offer(), b"k" * 32, CONFIG, self.policy())
        self.nodes[A].machines[self.MIGRATION] = machine
        self.nodes[A].carry_out(self.MIGRATION, machine.begin(self.now))

    @property
    def source(self) -> SourceMachine | None:
        """A's machine of the migration, while it has one."""
        machine = self.nodes[A].machines.get(self.MIGRATION)
        assert machine is None or isinstance(machine, SourceMachine)
        return machine

    def other(self, node: str) -> str:
        return B if node == A else A

    def maybe_kill(self, end: End, record: records.Record, when: Literal["before", "after"]) -> None:
        point = KillPoint(end, type(record), when)
        for kill in self.kills:
            if kill.at == point:
                self.kills.remove(kill)
                self.nodes[A if kill.victim is End.SOURCE else B].kill(kill.down_s, kill.host)
                return

    def check_lawful(self, node: "Node", migration: str, what: object) -> None:
        """Nothing that follows from a record is said or done before the record is durable."""
        if migration not in node.machines:
            return  # closed: it is remembered elsewhere
        written = {raw["t"] for raw in node.journals.get(migration, [])}
        due = LAWS.get(type(what)) if written or not isinstance(what, messages.Closed) else None
        if due is not None and not any(kind.__name__ in written for kind in due):
            raise Wrong(f"{node.name}: {type(what).__name__} before any of {[kind.__name__ for kind in due]}")

    def send(self, migration: str, sender: str, receiver: str, message: Message) -> None:
        kind = type(message)
        self.check_lawful(self.nodes[sender], migration, message)
        nth = self.counts.get(kind, 0)
        self.counts[kind] = nth + 1
        delays = [self.scenario.latency()]
        for fault in self.scenario.faults:
            if fault.kind is kind and fault.nth == nth:
                match fault.what:
                    case "lose":
                        delays = []
                    case "repeat":
                        delays.append(0.05)
                    case "repeat late":
                        delays.append(30.0)
                    case "delay":
                        delays = [3.0]
        if self.scenario.lossy():
            delays = []
        data = messages.encode(message)
        self.note(f"{'A' if sender == A else 'B'} sends {kind.__name__}{'' if delays else ' (lost)'}")
        for delay_s in delays:
            self.after(delay_s, lambda: self.nodes[receiver].receive(migration, messages.decode(data), sender))

    # -- the verdict

    def judge(self, *, moved: bool | None = None, running: bool | None = True) -> None:
        """At rest: one copy, on one node, with the newest state; both ends know the ending, and agree.

        Args:
            moved: whether it must be at B; None: either.
            running: whether it must run; None: either.
        """
        owners = [node for node in self.nodes.values() if node.engine.owned]
        if len(owners) != 1:
            raise Wrong(f"{len(owners)} nodes own the app")
        owner, other = owners[0], self.nodes[self.other(owners[0].id)]
        if other.engine.present or other.engine.running:
            raise Wrong(f"a copy is left at {other.name}")
        if not owner.engine.present or owner.engine.state != self.truth:
            raise Wrong(f"the state at {owner.name} is not the newest")
        if running is not None and owner.engine.running != running:
            raise Wrong(f"the app {'does not run' if running else 'runs'} at {owner.name}")
        if owner.engine.mark is not None:
            raise Wrong(f"the app at {owner.name} is still marked {owner.engine.mark}")
        for node in self.nodes.values():
            if node.machines or any(node.journals.values()):
                raise Wrong(f"{node.name} has not closed the migration")
        if moved is not None and (owner.id == B) != moved:
            raise Wrong(f"the app is at {owner.name}")
        expected = EPOCH + 1 if owner.id == B else owner.engine.epoch
        if owner.engine.epoch != expected or owner.engine.epoch not in (EPOCH, EPOCH + 1, EPOCH + 2):
            raise Wrong(f"epoch {owner.engine.epoch} at {owner.name}")


def play(scenario: Scenario) -> World:
    """Run one migration under a scenario until all is quiet; the log is in the error when a rule is broken."""
    world = World(scenario)
    try:
        world.begin()
        world.run()
    except Wrong as error:
        raise Wrong("\n".join([str(error), *world.log])) from None
    return world


def verdict(world: World, *, moved: bool | None = None, running: bool | None = True) -> None:
    """Judge, and show the log when it is bad."""
    try:
        world.judge(moved=moved, running=running)
    except Wrong as error:
        raise Wrong("\n".join([str(error), *world.log])) from None


def varied(scenario: Scenario, **changes: object) -> Scenario:
    """The scenario with some fields changed."""
    return replace(scenario, **changes)  # type: ignore[arg-type]
