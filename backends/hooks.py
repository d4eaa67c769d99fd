"""Run a hook: a command of the operator, on the host, around a suspend or a restore.

A hook is a command and not a service: it has `timeout_s` seconds, and what it leaves in its process group is killed
when it ends. Its output goes to the application's log, headed by its name.
"""

import contextlib
import os
import select
import signal
import subprocess
import time
from typing import Literal

from backends.applog import BLOCK_BYTES, AppLog
from backends.base import AppLayout, Exit
from backends.command import Folders, arguments, environment
from backends.errors import HookFailed

HookName = Literal["before_suspend", "after_restore", "save"]

MAX_OUTPUT_BYTES = 1 << 20


def run_hook(hook: HookName, layout: AppLayout, *, pid: int | None = None) -> bool:
    """Run one hook and wait for it.

    Args:
        pid: the application's main process, exported as P2P_PID, for hooks that signal it.

    Returns:
        False when the configuration has no such hook.

    Raises:
        HookFailed: it could not be executed, took too long, or did not exit 0.
    """
    words: tuple[str, ...] = getattr(layout.config.hooks, hook)
    if not words:
        return False
    log = AppLog(str(layout.log_path))
    try:
        log.write(f"p2player: hook {hook}\n".encode())
        problem = _run(words, layout, {} if pid is None else {"P2P_PID": str(pid)}, log)
        if problem:
            log.write(f"p2player: hook {hook}: {problem}\n".encode())
            raise HookFailed(hook, problem)
    finally:
        log.close()
    return True


def _run(words: tuple[str, ...], layout: AppLayout, extra: dict[str, str], log: AppLog) -> str | None:
    """Returns what went wrong, or None."""
    try:
        process = subprocess.Popen(
            arguments(words, Folders.of(layout)),
            env=environment(layout, extra),
            cwd=layout.state_dir,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    except OSError as error:
        return f"{error.filename or words[0]}: {error.strerror}"
    assert process.stdout is not None
    with process.stdout:
        timeout_s = layout.config.hooks.timeout_s
        ended = _copy_until_end(process.pid, process.stdout.fileno(), time.monotonic() + timeout_s, log)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        code = process.wait()
    if not ended:
        return f"did not end within {timeout_s:g} s"
    if code:
        return str(Exit(code if code > 0 else None, -code if code < 0 else None))
    return None


def _copy_until_end(pid: int, output: int, deadline: float, log: AppLog) -> bool:
    """Copy output to the log until the process ends (True) or the deadline passes (False).

    The end of the process counts and not the end of its output, which a child in the background may hold open.
    """
    os.set_blocking(output, False)
    handle = os.pidfd_open(pid)
    room = MAX_OUTPUT_BYTES
    try:
        poll = select.poll()
        poll.register(handle, select.POLLIN)
        poll.register(output, select.POLLIN)
        while (left_s := deadline - time.monotonic()) > 0:
            ready = dict(poll.poll(left_s * 1000))
            if ready.get(output, 0) & select.POLLIN:
                data = os.read(output, BLOCK_BYTES)
                log.write(data[:room])
                room -= min(room, len(data))
            elif output in ready:
                poll.unregister(output)
            elif handle in ready:
                return True
        return False
    finally:
        os.close(handle)
