"""A node as a process: its lock, its signals, its control API, and the line that says it is ready.

start    lock STATE, read settings and identity, bind the sockets, run the node, serve the control API
ready    exactly one line on stderr, and READY=1 to the service manager
SIGTERM  stop taking commands, give work under way `DRAIN_S` to end, stop; apps go on by themselves
leave    as SIGTERM, after a farewell to the mesh; the identity is removed, the store is not
"""

import gc
import shutil
import signal
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import trio

from p2player import config, faults, listening
from p2player.addresses import Address
from p2player.allocator import bound_heaps, find_mallopt
from p2player.control.application import build
from p2player.control.server import BearerOnly, bind_loopback, bind_unix, read_token, serve_on
from p2player.enrol import forget_identity
from p2player.errors import P2PlayerError
from p2player.log import Log
from p2player.migration.driver import OnRecord
from p2player.node import Node
from p2player.notify import notify
from p2player.statedir import StateDir, locked

DRAIN_S = 5.0


def run_node(
    state_dir: Path,
    *,
    limit_in: float | None = None,
    limit_out: float | None = None,
    log_format: str | None = None,
    on_record: OnRecord | None = None,
) -> int:
    """Run the node of `state_dir` until SIGTERM or SIGINT.

    Args:
        limit_in, limit_out: bytes a second; in place of the settings'.
        log_format: likewise.
        on_record: see `Node`.

    Returns:
        The exit code, 0.

    Raises:
        P2PlayerError: it cannot start, or had to stop.
    """
    state = StateDir.open(state_dir)
    with locked(state):
        settings = config.load(state.config)
        changes: dict[str, object] = {"limit_in": limit_in, "limit_out": limit_out, "log_format": log_format}
        settings = replace(settings, **{key: value for key, value in changes.items() if value is not None})  # type: ignore[arg-type]
        node = Node(state, settings, Log(settings.log_format, settings.log_level), on_record)
        ports = listening.bind(node.identity.listen)
        _calm_collector()
        bound_heaps(find_mallopt())
        try:
            trio.run(_serve, node, ports)
        except BaseExceptionGroup as group:
            told = _told(group)
            if not isinstance(told, P2PlayerError):
                node.log.failure("the node failed", group)
            raise told from group
        finally:
            ports.close()
            with suppress(FileNotFoundError):
                state.control_socket.unlink()
        if node.left:
            forget_identity(state)
            shutil.rmtree(state.gossip, ignore_errors=True)
    return 0


def _calm_collector() -> None:
    """Look for garbage cycles less often, and never among what was imported.

    A manifest is tens of thousands of small objects without cycles; at Python's defaults a pull and a checkout spend
    about 5 % of their time on looking through them.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


def _told(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """What to raise for a group of failures: what was asked for (Ctrl-C, exit) first, else the error to tell."""
    for leaf in _leaves(group):
        if not isinstance(leaf, Exception):
            return leaf
    expected = [leaf for leaf in _leaves(group) if isinstance(leaf, P2PlayerError)]
    return expected[0] if expected else faults.describe(group)


def _leaves(error: BaseException) -> list[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        return [leaf for inner in error.exceptions for leaf in _leaves(inner)]
    return [error]


async def _serve(node: Node, ports: listening.Ports) -> None:
    async with trio.open_nursery() as outer:
        await outer.start(_heed_signals, node)
        async with node.running(ports):
            # The servers end by themselves once the node is stopping, when they have answered what they were asked.
            async with trio.open_nursery() as servers:
                await _serve_control(node, servers)
                _say_ready(node)
                await node.stopping.wait()
                notify("STOPPING=1")
            with trio.move_on_after(DRAIN_S):
                await node.drain()
        outer.cancel_scope.cancel()


async def _heed_signals(node: Node, *, task_status: trio.TaskStatus[None]) -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        task_status.started()
        asked = 0
        async for _ in signals:
            asked += 1
            if asked > 1:
                raise KeyboardInterrupt  # somebody does not want to wait
            node.log.info("stopping")
            node.stop()


async def _serve_control(node: Node, servers: trio.Nursery) -> None:
    app = build(node)
    await servers.start(serve_on, bind_unix(node.state.control_socket), app, node.stopping.wait)
    if node.settings.control_tcp is not None:
        token = read_token(node.settings.control_token_file or node.state.control_token)
        listener = bind_loopback(*node.settings.control_tcp)
        await servers.start(serve_on, listener, BearerOnly(app, token), node.stopping.wait)


def _say_ready(node: Node) -> None:
    listen: Address = node.identity.listen
    line = f"p2player: ready node={node.identity.name} listen={listen} socket={node.state.control_socket}"
    with suppress(OSError):
        print(line, file=sys.stderr, flush=True)
    notify(f"READY=1\nSTATUS=node {node.identity.name} of mesh {node.identity.mesh_name}")
