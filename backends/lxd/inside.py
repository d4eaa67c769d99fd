"""Files of p2player's own inside of a container, all in one folder: they move with it.

    init     runs the command of the configuration as the container's first process (`script`)
    output   a pipe from the command to whoever keeps the log
    log      what the command printed last, `log.1` what it printed before: bounded, as any log; when it is suspended,
             the node takes both into its own (`take_log`)
    pid      the command's process, as the container counts
    exit     how the command ended: a number as a shell has it, or `absent` when there is no such command

The application may be hostile: it can replace each of these by a link to a file of the host. So every step on the way
is opened without following links, and what is read is bounded.
"""

import contextlib
import os
import shlex
import stat
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from backends import procfs
from backends.applog import LIMIT_BYTES
from backends.base import Exit

FOLDER = ".p2player"
INIT = f"/{FOLDER}/init"

ABSENT = "absent"
"""Read for an exit: nothing was executed."""

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_WRITE = os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_MAX_NOTE = 64
_MAX_CHILDREN = 1 << 16

_SCRIPT = """#!/bin/sh
# Made by p2player: runs one command, keeps what it prints, and tells how it ended.
PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
umask 022
cd /{folder} || exit 120
keep() {{
  trap '' TERM
  while :; do
    before=$(wc -c <log)
    dd bs=4096 count=1024 >>log 2>/dev/null || break
    after=$(wc -c <log)
    if [ "$after" -eq "$before" ]; then
      [ -e exit ] && return
      sleep 1
    fi
    [ "$after" -gt {limit} ] && mv -f log log.1 && : >log
  done
  cat >/dev/null
}}
rm -f output pid exit exit.new
: >>log
mkfifo -m 600 output || exit 121
keep <output >/dev/null 2>&1 &
mkdir -p {state} /dev/shm
chmod 1777 /dev/shm
{exports}
if ! command -v {program} >/dev/null 2>&1; then
  echo {missing} >output
  echo absent >exit
  wait
  exit 127
fi
cd {state}
trap 'asked=1; kill -TERM "$app"' TERM
# LXC and the shell have it ignore these; a shell alone cannot undo that, and not every env can.
env --default-signal=INT,QUIT,PIPE true 2>/dev/null && set -- env --default-signal=INT,QUIT,PIPE || set --
"$@" {command} </dev/null >/{folder}/output 2>&1 &
app=$!
echo "$app" >/{folder}/pid
code=
while :; do
  asked=
  wait "$app"
  got=$?
  [ "$got" -eq 127 ] && [ -n "$code" ] || code=$got
  [ -n "$asked" ] || break
done
cd /{folder}
echo "$code" >exit.new && mv -f exit.new exit
trap '' TERM
kill -TERM -1 2>/dev/null
rounds=0
while [ "$rounds" -lt 20 ]; do
  set -- /proc/[0-9]*
  [ "$#" -gt 1 ] || break
  sleep 0.05 || sleep 1
  rounds=$((rounds + 1))
done
exit "$code"
"""


def script(command: Sequence[str], env: Mapping[str, str], state: str) -> str:
    """The container's first process for a command.

    When the command ends, what it left behind gets SIGTERM and a second; the kernel kills the rest with the first
    process of their namespace. Whoever keeps the log is started before the application's variables are set.
    """
    quoted = [shlex.quote(word) for word in command]
    return _SCRIPT.format(
        folder=FOLDER,
        limit=LIMIT_BYTES,
        state=shlex.quote(state),
        exports="\n".join(f"export {name}={shlex.quote(value)}" for name, value in env.items()),
        program=quoted[0],
        missing=shlex.quote(f"{command[0]}: No such file or directory"),
        command=" ".join(quoted),
    )


def write_script(root: Path, text: str) -> None:
    """Put the init script into the root file system `root`, and forget the last run's exit.

    Raises:
        OSError: it cannot be written.
    """
    with _opened(os.open(root, _DIRECTORY)) as top:
        try:
            found = os.stat(FOLDER, dir_fd=top, follow_symlinks=False)
            if not stat.S_ISDIR(found.st_mode):
                os.unlink(FOLDER, dir_fd=top)
                raise FileNotFoundError
        except FileNotFoundError:
            os.mkdir(FOLDER, 0o755, dir_fd=top)
        with _opened(os.open(FOLDER, _DIRECTORY, dir_fd=top)) as folder:
            for name in ("init", "pid", "exit"):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(name, dir_fd=folder)
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            with open(os.open("init", flags, 0o755, dir_fd=folder), "w") as file:
                os.fchmod(file.fileno(), 0o755)
                file.write(text)


def tail(root: Path, max_bytes: int) -> bytes:
    """The last of what the command printed, over both files."""
    data = b""
    for name in ("log", "log.1"):
        if len(data) < max_bytes:
            data = _read(root, name, max_bytes - len(data)) + data
    return data


def take_log(root: Path, max_bytes: int) -> bytes:
    """What `tail` gives; the log is empty then. What is printed in this very moment may be lost."""
    data = tail(root, max_bytes)
    with (
        contextlib.suppress(OSError),
        _opened(os.open(root, _DIRECTORY)) as top,
        _opened(os.open(FOLDER, _DIRECTORY, dir_fd=top)) as folder,
    ):
        with contextlib.suppress(FileNotFoundError):
            os.unlink("log.1", dir_fd=folder)
        with _opened(os.open("log", _WRITE, dir_fd=folder)) as log:
            if stat.S_ISREG(os.fstat(log).st_mode):
                os.ftruncate(log, 0)
    return data


def ended(root: Path) -> Exit | None:
    """How the command ended; None when nobody has said so, or it was never executed (see `absent`)."""
    text = _read(root, "exit", _MAX_NOTE).decode(errors="replace").strip()
    if not (text.isascii() and text.isdigit()):
        return None
    code = int(text)
    # As shells have it: 128 and the number of the signal.
    return Exit(None, code - 128) if 128 < code <= 128 + 64 else Exit(code & 255, None)


def absent(root: Path) -> bool:
    """Whether the command was not executed, as there is none of that name."""
    return _read(root, "exit", _MAX_NOTE).strip() == ABSENT.encode()


def main_process(root: Path, init: int) -> int | None:
    """The command's process, as the host counts; None before it was started.

    Args:
        init: the container's first process.
    """
    wanted = _read(root, "pid", _MAX_NOTE).decode(errors="replace").strip()
    if not wanted:
        return None
    try:
        with open(f"/proc/{init}/task/{init}/children", encoding="ascii") as file:
            children = file.read(_MAX_CHILDREN).split()
    except OSError:
        return None
    for child in children:
        with contextlib.suppress(OSError), open(f"/proc/{child}/status", encoding="utf-8", errors="replace") as file:
            row = next((line for line in file if line.startswith("NSpid:")), "")
            if row.split()[-1:] == [wanted]:
                return int(child)
    return None


def processes(init: int) -> list[int]:
    """All processes of the container, in whatever way they came into it."""
    result = []
    with contextlib.suppress(OSError):
        namespace = os.readlink(f"/proc/{init}/ns/pid")
        for found in procfs.everyone():
            with contextlib.suppress(OSError):
                if os.readlink(f"/proc/{found.process.pid}/ns/pid") == namespace and found.state not in "ZX":
                    result.append(found.process.pid)
    return result


def _read(root: Path, name: str, max_bytes: int) -> bytes:
    """The end of a regular file of ours; empty when there is none."""
    with (
        contextlib.suppress(OSError),
        _opened(os.open(root, _DIRECTORY)) as top,
        _opened(os.open(FOLDER, _DIRECTORY, dir_fd=top)) as folder,
        open(os.open(name, _FILE, dir_fd=folder), "rb") as file,
    ):
        found = os.fstat(file.fileno())
        if stat.S_ISREG(found.st_mode):
            file.seek(max(0, found.st_size - max_bytes))
            return file.read(max_bytes)
    return b""


@contextlib.contextmanager
def _opened(fd: int) -> Iterator[int]:
    try:
        yield fd
    finally:
        os.close(fd)
