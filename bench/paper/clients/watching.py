"""A client seen from the bench: a process in some network namespace that uses an application and writes it down."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from bench.data import contained
from bench.paper.clients import record
from bench.paper.clients.probing import State, StateLost, verify
from bench.paper.clients.protocols import PROTOCOLS
from bench.paper.clients.record import Gaps

ROOT = Path(__file__).parents[3]
ASK_S = 0.25
STOP_S = 5.0


class ClientFailed(Exception):
    """The client's process ended, or the application did not answer in time."""


class Client:
    """Somebody who uses an application from outside, from `start` to `stop`.

    Args:
        key: the application's.
        address: its address.
        log: file that answers are written to.
        enter: words before a command that bring it into the client's network, such as `nsenter --net=PATH`.
    """

    def __init__(self, key: str, address: str, log: Path, *, enter: Sequence[str] = ()) -> None:
        self.key = key
        self.address = address
        self.log = log
        self._enter = tuple(enter)
        self._process: subprocess.Popen[bytes] | None = None
        self._began_s = 0.0

    def start(self, timeout_s: float = 120.0) -> State:
        """Start to use the application; returns its state once it answers in all ways and is ready to be moved.

        Raises:
            ClientFailed: not in time.
        """
        contained.need("setpriv")
        self.log.unlink(missing_ok=True)
        self.log.touch()
        with self._errors.open("wb") as errors:
            self._process = subprocess.Popen(
                self._command("--log", str(self.log)),
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=errors,
            )
        deadline = time.monotonic() + timeout_s
        while not self._channels <= {row["what"] for row in record.read(self.log)}:
            if self._process.poll() is not None:
                raise ClientFailed(f"the client ended: {contained.tail(self._errors)}")
            if time.monotonic() > deadline:
                raise ClientFailed(f"{self.key} did not answer in {timeout_s:.0f} s")
            time.sleep(ASK_S)
        while True:
            state = self.snapshot()
            if state["ready"]:
                self._began_s = time.monotonic()
                return state
            if time.monotonic() > deadline:
                raise ClientFailed(f"{self.key} was not ready in {timeout_s:.0f} s")
            time.sleep(ASK_S)

    def snapshot(self) -> State:
        """The application's state now; all of its memory is checked, which takes a virtual machine some seconds.

        Raises:
            ClientFailed: it does not answer.
        """
        done = subprocess.run(
            self._command("--snapshot"), env=self._environment, capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            raise ClientFailed(f"{self.key} does not tell its state: {done.stderr.strip()[-300:]}")
        state: State = json.loads(done.stdout)
        return state

    def gaps(self, begin_s: float, end_s: float, what: str = record.PROBE) -> Gaps:
        """Times without an answer between two times on the clock `time.monotonic`."""
        return record.gaps(record.answer_times(record.read(self.log), what), begin_s, end_s)

    def wait_for_answers(self, since_s: float, timeout_s: float = 60.0) -> None:
        """Return once there was an answer of each kind after a time; `held` tells whether it was the old connection.

        Raises:
            ClientFailed: not in time.
        """
        deadline = time.monotonic() + timeout_s
        while not self._channels <= {row["what"] for row in record.read(self.log) if row["at"] > since_s}:
            if time.monotonic() > deadline:
                raise ClientFailed(f"{self.key} did not answer again in {timeout_s:.0f} s")
            time.sleep(ASK_S)

    def troubles(self, since_s: float | None = None) -> list[str]:
        """What broke or was forgotten after a time, or since `start` returned."""
        since_s = self._began_s if since_s is None else since_s
        rows = (row for row in record.read(self.log) if row["what"] in {record.BROKEN, record.LOST})
        return [f"{row['channel']}: {row['why']}" for row in rows if row["at"] > since_s]

    def kept(self, since_s: float | None = None) -> bool:
        """Every connection that was open at a time, or when `start` returned, still is."""
        since_s = self._began_s if since_s is None else since_s
        return not any(row["at"] > since_s for row in record.read(self.log, record.BROKEN))

    def verify(self, before: State, after: State, *, since_s: float | None = None) -> None:
        """Make sure that the application's state has survived, as it says itself and as its client saw it.

        Raises:
            StateLost: it has not.
        """
        since_s = self._began_s if since_s is None else since_s
        verify(before, after)
        for row in record.read(self.log, record.LOST):
            if row["at"] > since_s:
                raise StateLost(f"{row['channel']}: {row['why']}")

    def stop(self) -> None:
        """End the client's process. Idempotent."""
        process, self._process = self._process, None
        if process is None:
            return
        process.terminate()
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def _errors(self) -> Path:
        return self.log.with_name(self.log.name + ".err")

    @property
    def _environment(self) -> dict[str, str]:
        return {**os.environ, "PYTHONPATH": str(ROOT)}

    def _command(self, *options: str) -> list[str]:
        client = [sys.executable, "-m", "bench.paper.clients", self.key, "--address", self.address, *options]
        return ["setpriv", "--pdeathsig", "KILL", *self._enter, *client]

    @property
    def _channels(self) -> set[str]:
        return {record.PROBE, record.HELD} | ({record.APP} if self.key in PROTOCOLS else set())
