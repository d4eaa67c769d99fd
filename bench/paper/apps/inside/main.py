"""The first process of every application: it is probed from outside, and runs and reaps the application's programs.

It is the same in containers and in virtual machines, and the whole of the application that does nothing. What the
application's layer adds stands in `settings` beside this file, in lines of `key NAME`, `program WORDS` and
`memory MB BYTES_S`.

How it works
------------
One loop over a selector, woken ten times a second at least. On port 7000:

- UDP: a datagram comes back as it was, followed by the counter. Gaps of the service are measured with it: there is no
  connection, and nothing is sent again.
- TCP: connections stay open, and each line is a question. `state` is answered at once, with JSON: an identity that was
  drawn at start, a counter that grows, both kept in memory only, and what the programs report of themselves. `memory`
  is answered after all of a memory application's pages were checked, while others are served.

Only modules of Debian's python3-minimal are imported, and few of them: the memory of this process is part of what is
moved. Nothing relies on the clock's going forward: after a restore on another machine it is another clock.
"""

import os
import selectors
import signal
import socket
import sys
import time
from collections.abc import Mapping
from functools import partial

PORT = 7000
TICK_S = 0.1
LONGEST_LINE = 200
MOST_CONNECTIONS = 64
BACKLOG = 32
STOP_S = 3.0
REPORTS = 3
"""Descriptor that programs report to."""

Value = int | str


class Connection:
    """One open TCP connection and the part of a line that came."""

    def __init__(self, end: socket.socket) -> None:
        self.end = end
        self.partial = b""


class Program:
    """One program of the application; lines `NAME NUMBER ...` that it writes to descriptor 3 get into the state."""

    def __init__(self, words: list[str]) -> None:
        self.name = words[0]
        self.partial = b""
        self.output, write = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                signal.set_wakeup_fd(-1)
                for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD, signal.SIGPIPE):
                    signal.signal(number, signal.SIG_DFL)
                os.dup2(write, REPORTS)
                os.execvp(words[0], words)
            finally:
                os._exit(127)
        os.close(write)


class Settings:
    """What the application's layer says; without it, the application that does nothing."""

    def __init__(self, path: str) -> None:
        self.key = "none"
        self.programs: list[list[str]] = []
        self.memory = None
        try:
            with open(path) as lines:
                rows = [line.split() for line in lines]
        except FileNotFoundError:
            rows = []
        for name, *words in rows:
            if name == "key":
                self.key = words[0]
            elif name == "program":
                self.programs.append(words)
            elif name == "memory":
                # A module of that one application's layer, which takes no memory in the others.
                from memory import Memory  # type: ignore[import-not-found]

                self.memory = Memory(int(words[0]), int(words[1]))


class Main:
    """The loop."""

    def __init__(self, settings: Settings) -> None:
        self.identity = os.urandom(8).hex()
        self.key = settings.key
        self.memory = settings.memory
        self.ticks = 0
        self.answered = 0
        self.reports: dict[str, Value] = {}
        self.connections: list[Connection] = []
        self.asked: list[Connection] = []
        self.ending = False
        self.selector = selectors.DefaultSelector()
        self.datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.datagrams.bind(("0.0.0.0", PORT))
        self.listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        self.listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.listener.bind(("0.0.0.0", PORT))
        self.listener.listen(BACKLOG)
        self.woken, self.wakeup = socket.socketpair()
        for end in (self.datagrams, self.listener, self.woken, self.wakeup):
            end.setblocking(False)
        signal.set_wakeup_fd(self.wakeup.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        signal.signal(signal.SIGTERM, self.stop)
        signal.signal(signal.SIGINT, self.stop)
        self.selector.register(self.datagrams, selectors.EVENT_READ, self.answer_datagram)
        self.selector.register(self.listener, selectors.EVENT_READ, self.accept)
        self.selector.register(self.woken, selectors.EVENT_READ, lambda: self.woken.recv(4096))
        self.programs = [Program(words) for words in settings.programs]
        for program in self.programs:
            self.selector.register(program.output, selectors.EVENT_READ, partial(self.take_report, program))

    def run(self) -> int:
        """Serve until a signal ends it or a program has ended; returns the exit code."""
        say(f"p2p: {self.key} serves")
        last = time.monotonic()
        while not self.ending:
            busy = self.memory is not None and self.memory.busy()
            for key, _ in self.selector.select(0 if busy else TICK_S):
                key.data()
            gone = self.reap()
            if gone is not None and not self.ending:
                say(f"p2p: {gone} ended")
                self.end_programs()
                return 1
            # Another machine's clock may be behind this one's.
            passed = abs(time.monotonic() - last)
            if passed >= TICK_S:
                last = time.monotonic()
                self.ticks += 1
            if self.memory is not None:
                self.memory.work(passed if passed >= TICK_S else 0.0)
                self.answer_memory()
        self.end_programs()
        return 0

    def stop(self, number: int, frame: object) -> None:
        """A signal asks to end."""
        self.ending = True

    def answer_datagram(self) -> None:
        """Answer one datagram; an answer that cannot be sent is one that gets lost."""
        try:
            data, sender = self.datagrams.recvfrom(64)
            self.answered += 1
            self.datagrams.sendto(b"%b %d" % (data, self.ticks), sender)
        except OSError:
            return

    def accept(self) -> None:
        """Take one more connection; the oldest goes when there are too many."""
        try:
            end, _ = self.listener.accept()
        except OSError:
            return
        end.setblocking(False)
        connection = Connection(end)
        self.connections.append(connection)
        self.selector.register(end, selectors.EVENT_READ, partial(self.read, connection))
        if len(self.connections) > MOST_CONNECTIONS:
            self.close(self.connections[0])

    def read(self, connection: Connection) -> None:
        """Answer the whole lines that came."""
        if connection not in self.connections:
            return
        try:
            data = connection.end.recv(4096)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        *lines, connection.partial = (connection.partial + data).split(b"\n")
        if not data or len(connection.partial) > LONGEST_LINE:
            self.close(connection)
            return
        for line in lines:
            if line == b"state":
                self.send(connection, self.state())
            elif line == b"memory" and self.memory is not None:
                self.asked.append(connection)
                self.memory.check()
            else:
                self.send(connection, {"error": "unknown question"})

    def send(self, connection: Connection, values: Mapping[str, Value]) -> None:
        """Send one line; who does not read what it asked for is dropped."""
        try:
            connection.end.send(json_line(values))
        except OSError:
            self.close(connection)

    def close(self, connection: Connection) -> None:
        """Forget a connection."""
        if connection in self.connections:
            self.connections.remove(connection)
            self.selector.unregister(connection.end)
            connection.end.close()
        if connection in self.asked:
            self.asked.remove(connection)

    def state(self) -> dict[str, Value]:
        """What `state` is answered with."""
        values: dict[str, Value] = {
            "key": self.key,
            "identity": self.identity,
            "ticks": self.ticks,
            "answered": self.answered,
            "connections": len(self.connections),
            "programs": len(self.programs),
            "ready": self.memory is None or self.memory.ready(),
        }
        if self.memory is not None:
            values.update(self.memory.state())
        values.update(self.reports)
        return values

    def answer_memory(self) -> None:
        """Tell those who asked for the memory what was found, once a check is over."""
        found = self.memory.found() if self.memory is not None else None
        if found is not None:
            asked, self.asked = self.asked, []
            for connection in asked:
                self.send(connection, found)

    def take_report(self, program: Program) -> None:
        """Take a program's reports into the state."""
        data = os.read(program.output, 4096)
        if not data:
            self.selector.unregister(program.output)
            os.close(program.output)
        *lines, program.partial = (program.partial + data).split(b"\n")
        for line in lines:
            words = line.decode("ascii", "replace").split()
            for name, value in zip(words[::2], words[1::2], strict=False):
                if value.isdigit():
                    self.reports[name] = int(value)

    def reap(self) -> str | None:
        """Collect ended processes; returns the name of one of the application's programs if it was among them."""
        name = None
        while True:
            try:
                pid, _ = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return name
            if pid == 0:
                return name
            for program in self.programs:
                if program.pid == pid:
                    self.programs.remove(program)
                    name = program.name
                    break

    def end_programs(self) -> None:
        """Ask the programs to end, and make them. None was reaped since, so that the pids are theirs."""
        for number, wait_s in ((signal.SIGTERM, STOP_S), (signal.SIGKILL, 1.0)):
            for program in self.programs:
                os.kill(program.pid, number)
            for _ in range(int(wait_s / 0.05)):
                self.reap()
                if not self.programs:
                    return
                time.sleep(0.05)


def json_line(values: Mapping[str, Value]) -> bytes:
    """A line of JSON from a flat table of numbers, truth values and plain words; the minimal library has no `json`."""
    parts = []
    for name, value in values.items():
        text = str(value).lower() if isinstance(value, int) else f'"{value}"'
        parts.append(f'"{name}": {text}')
    return ("{" + ", ".join(parts) + "}\n").encode()


def say(text: str) -> None:
    """Print a line at once."""
    os.write(1, text.encode() + b"\n")


if __name__ == "__main__":
    sys.exit(Main(Settings(os.path.join(os.path.dirname(__file__), "settings"))).run())
