"""CRIU, which saves and restores the memory of containers: where it is, whether it works, what it cannot save.

Nothing here touches the application. `obstacles` reads /proc as any observer does, and so may overlook what only CRIU
itself finds out; `facts` and `mismatches` compare processors, since restored code goes on using the instructions that
it found when it started.
"""

import ctypes
import math
import os
import platform
import re
import shutil
import stat
import subprocess
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from backends.base import EngineSettings

PREFIX = Path("/usr/local/lib/p2player/criu/sbin/criu")
"""Where `scripts/engine-packages.sh` puts one when that of the system does not work."""

HOW_TO_GET = "as root: sh scripts/engine-packages.sh"

_CHECK_TIMEOUT_S = 5.0
_FAILED_FOR_S = 60.0
_VERSION = re.compile(r"\d+(\.\d+){1,3}", re.ASCII)
_LOG_TAIL_BYTES = 256 << 10
_MAX_WHY = 400
_MAX_STATS = 4096

# Instruction sets and register state that programs choose their code by; the rest of the flags is the kernel's affair.
_FLAG = re.compile(
    r"3dnow\w*|abm|adx|aes|amx_\w+|avx\w*|bmi[12]|cldemote|clflushopt|clwb|clzero|cmov|cx16|cx8|erms|f16c|fma4?|fpu"
    r"|fsgsbase|fsrm|fxsr|gfni|lahf_lm|mmx|mmxext|movbe|movdir\w+|mpx|ospke|pclmulqdq|pku|popcnt|rdpid|rdrand|rdseed"
    r"|rdtscp|rtm|serialize|sha_ni|sha512|sm[34]|sse\w*|ssse3|tbm|tsc|user_shstk|vaes|vpclmulqdq|waitpkg|xop|xsave\w*"
    r"|asimd\w*|atomics|crc32|fp|fphp|paca|pacg|pmull|sha[1235]\w*|sve\w*|bti",
    re.ASCII,
)
_MAX_FACT = 2048
_MAX_NAMED = 12
_AT_MINSIGSTKSZ = 51

_SAVED_DEVICES = {(1, minor) for minor in (3, 5, 7, 8, 9)} | {(5, minor) for minor in (0, 1, 2)} | {(10, 200)}
_PTS_MAJORS = range(136, 144)
_SAVED_INODES = {"eventfd", "eventpoll", "signalfd", "timerfd", "inotify", "pidfd"}
_SAVED_SOCKETS = {"TCP", "TCPv6", "UDP", "UDPv6", "UDP-Lite", "UDPLITEv6", "UNIX", "UNIX-STREAM", "NETLINK"}
_MAX_OBSTACLES = 20
_TCP_ESTABLISHED = "01"


@dataclass(frozen=True, slots=True)
class Checked:
    """What one `criu` program can do here; `problem` is None when it works."""

    version: str | None
    problem: str | None


_checked: dict[tuple[str, int], tuple[float, Checked]] = {}
_checking = threading.Lock()


def find(settings: EngineSettings) -> Path | None:
    """The program to use: that of the settings, else the first of PATH and our prefix that works, else any."""
    if settings.criu is not None:
        return settings.criu
    found = shutil.which("criu")
    candidates = [path for path in (Path(found) if found else None, PREFIX) if path is not None and path.exists()]
    return next((path for path in candidates if check(path).problem is None), next(iter(candidates), None))


def check(path: Path) -> Checked:
    """Ask a `criu` for its version and whether this kernel does for it.

    The answer is remembered while the program is the same; one that did not work is asked again after a minute.
    """
    try:
        key = str(path), path.stat().st_mtime_ns
    except OSError as error:
        return Checked(None, f"{path}: {error.strerror}; {HOW_TO_GET}")
    with _checking:
        at, answer = _checked.get(key, (-math.inf, Checked(None, "")))
        if answer.problem is None or time.monotonic() - at < _FAILED_FOR_S:
            return answer
        answer = _check(path)
        _checked[key] = time.monotonic(), answer
        return answer


def _check(path: Path) -> Checked:
    version: str | None = None
    for arguments in (["--version"], ["check"]):
        try:
            done = subprocess.run(
                [path, *arguments],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=_CHECK_TIMEOUT_S,
                check=False,
                cwd="/",
            )
        except OSError as error:
            return Checked(version, f"{path} cannot be run: {error.strerror}; {HOW_TO_GET}")
        except subprocess.TimeoutExpired:
            return Checked(version, f"{path} {arguments[0]} does not end; {HOW_TO_GET}")
        text = (done.stdout + done.stderr).decode(errors="replace")
        if done.returncode != 0:
            name = f"CRIU {version}" if version else str(path)
            return Checked(version, f"{name} does not work on this kernel: {_reasons(text)}; {HOW_TO_GET}")
        if version is None and (match := _VERSION.search(text)):
            version = match.group()
    return Checked(version, None)


def why(log_path: Path) -> str:
    """What a log of CRIU gives as the reason of a failure, in one line for people."""
    try:
        with open(log_path, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - _LOG_TAIL_BYTES))
            text = file.read(_LOG_TAIL_BYTES).decode(errors="replace")
    except OSError:
        return "CRIU left no log"
    return _reasons(text)


def _reasons(text: str) -> str:
    """The distinct errors in order, without clock, source file and what follows from the others."""
    reasons: list[str] = []
    for line in text.splitlines():
        _, mark, error = line.partition("Error (")
        if not mark:
            continue
        reason = error.partition("): ")[2].strip()
        # CRIU says so of every rlimit that it may not raise, and goes on; its own end is no cause either.
        boring = re.search(r"(Dumping|Restoring) FAILED|Can't setup RLIMIT|cgroupd: recv|^$", reason)
        if not boring and reason not in reasons:
            reasons.append(reason)
    if not reasons:
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        reasons = lines[-1:] or ["no reason given"]
    return (
        "".join(letter if letter.isprintable() else " " for letter in "; ".join(reasons[:3]))[:_MAX_WHY].strip()
        or "no reason given"
    )


def paused_s(stats_path: Path) -> float | None:
    """How long a dump kept the processes stopped, by CRIU's `stats-dump`; None when that cannot be read.

    The file is two magic numbers, a length, and the protobuf message of CRIU's `stats.proto`: in field 1 the dump's
    own message, with the microseconds of freezing and of being frozen in its fields 1 and 2.
    """
    try:
        data = stats_path.read_bytes()[:_MAX_STATS]
        outer = dict(_fields(data[12 : 12 + int.from_bytes(data[8:12], "little")]))
        inner = dict(_fields(outer[1])) if isinstance(outer[1], bytes) else {}
        return (int(inner[1]) + int(inner[2])) / 1e6
    except (OSError, IndexError, KeyError, ValueError):
        return None


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """The fields of a protobuf message that has only integers and messages."""
    place = 0

    def varint() -> int:
        nonlocal place
        value = shift = 0
        while True:
            byte = message[place]
            place += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value
            if shift > 63:
                raise ValueError("a number is too long")

    while place < len(message):
        key = varint()
        value: int | bytes = varint()
        if key & 7 == 2:
            value, place = message[place : place + int(value)], place + int(value)
        elif key & 7 != 0:
            raise ValueError("a field of an unknown kind")
        yield key >> 3, value


def facts(path: Path | None) -> dict[str, str]:
    """What a machine must match to restore memory that was saved here."""
    vendor, flags = _processor()
    found = {"kernel": platform.release(), "cpu_vendor": vendor, "cpu_flags": " ".join(sorted(flags))}
    if (size := _register_bytes()) is not None:
        found["cpu_state_bytes"] = str(size)
    if path is not None and (version := check(path).version):
        found["criu"] = version
    return found


def mismatches(path: Path | None, facts: Mapping[str, str]) -> list[str]:
    """Why memory of a machine of those facts cannot be restored here, one sentence each; hostile facts do no harm."""
    reasons: list[str] = []
    vendor, flags = _processor()
    theirs = _fact(facts, "cpu_vendor")
    if theirs and theirs != vendor:
        reasons.append(f"the processor here is of {vendor}, that of the source of {_shown(theirs)}")
    # Only flags that we know count: a peer cannot make us print or compare anything else.
    missing = sorted({flag for flag in _fact(facts, "cpu_flags").split() if _FLAG.fullmatch(flag)} - flags)
    if missing:
        more = f" and {len(missing) - _MAX_NAMED} more" if len(missing) > _MAX_NAMED else ""
        reasons.append(f"the processor here lacks {' '.join(missing[:_MAX_NAMED])}{more}, which the source's has")
    size, here = _fact(facts, "cpu_state_bytes"), _register_bytes()
    if not missing and size.isascii() and size.isdigit() and here is not None and size != str(here):
        reasons.append(f"processes here save {here} bytes of processor state, those of the source {_shown(size)}")
    if path is None:
        return [*reasons, f"criu is not installed; {HOW_TO_GET}"]
    checked = check(path)
    if checked.problem is not None:
        return [*reasons, checked.problem]
    wanted = _fact(facts, "criu")
    if checked.version and _VERSION.fullmatch(wanted) and _ordered(checked.version) < _ordered(wanted):
        reasons.append(f"CRIU {checked.version} is older than the {wanted[:20]} that saves the memory; {HOW_TO_GET}")
    return reasons


def _fact(facts: Mapping[str, str], name: str) -> str:
    value: object = facts.get(name, "")
    return value[:_MAX_FACT] if isinstance(value, str) else ""


def _shown(text: str) -> str:
    return "".join(letter if letter.isprintable() else "?" for letter in text[:40])


def _ordered(version: str) -> tuple[int, ...]:
    return tuple(int(part[:9]) for part in version.split("."))


def _processor() -> tuple[str, set[str]]:
    """Vendor and flags that count, of the first processor."""
    vendor, flags = platform.machine(), set[str]()
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            text = file.read()
    except OSError:
        return vendor, flags
    for line in text.split("\n\n")[0].splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("vendor_id", "CPU implementer"):
            vendor = value.strip()
        elif key.strip() in ("flags", "Features"):
            flags = {flag for flag in value.split() if _FLAG.fullmatch(flag)}
    return vendor, flags


def _register_bytes() -> int | None:
    """The size of a signal frame, which grows with the registers that the kernel saves for each process."""
    libc = ctypes.CDLL(None)
    libc.getauxval.restype = ctypes.c_ulong
    return int(libc.getauxval(ctypes.c_ulong(_AT_MINSIGSTKSZ))) or None


def obstacles(pids: Iterable[int], *, tcp_established: bool = True) -> list[str]:
    """What of these processes CRIU cannot save, one sentence each.

    Args:
        tcp_established: whether open TCP connections are to be saved; else they are obstacles.
    """
    found: list[str] = []
    for pid in pids:
        try:
            reasons = _obstacles_of(pid, tcp_established)
        except (FileNotFoundError, ProcessLookupError):  # it ended meanwhile
            continue
        except OSError as error:
            reasons = [f"cannot be looked into: {error.strerror}"]
        name = _name_of(pid)
        for reason in dict.fromkeys(reasons):
            found.append(f"process {pid} ({name}) {reason}")
    return found[:_MAX_OBSTACLES]


def _name_of(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as file:
            return _shown(file.read().strip())
    except OSError:
        return "?"


def _obstacles_of(pid: int, tcp_established: bool) -> list[str]:
    reasons: list[str] = []
    with open(f"/proc/{pid}/status", encoding="utf-8", errors="replace") as file:
        tracer = next((line.split()[1] for line in file if line.startswith("TracerPid:")), "0")
    if tracer != "0":
        reasons.append(f"is traced by process {tracer}: CRIU cannot save what is being debugged")
    connected = set() if tcp_established else _connections(pid)
    for fd in os.listdir(f"/proc/{pid}/fd"):
        path = f"/proc/{pid}/fd/{fd}"
        try:
            reason = _obstacle_of(path, connected)
        except FileNotFoundError:  # closed meanwhile
            continue
        if reason:
            reasons.append(reason)
    with open(f"/proc/{pid}/maps", encoding="utf-8", errors="replace") as file:
        for line in file:
            place = line.rstrip("\n").split(None, 5)[5:]
            if place and place[0].startswith("/dev/") and not _is_saved_mapping(place[0]):
                reasons.append(f"has {_shown(place[0])} mapped: CRIU cannot save the memory of a device")
    return reasons


def _is_saved_mapping(path: str) -> bool:
    return path.startswith(("/dev/zero", "/dev/null", "/dev/shm/"))


def _obstacle_of(path: str, connected: set[int]) -> str | None:
    """Why the open file at /proc/PID/fd/N cannot be saved."""
    target = os.readlink(path)
    if target.startswith("anon_inode:"):
        kind = target.removeprefix("anon_inode:").strip("[]")
        return (
            None if kind in _SAVED_INODES else f"has a descriptor of the kind {_shown(kind)} open: CRIU cannot save it"
        )
    found = os.stat(path)
    if stat.S_ISSOCK(found.st_mode):
        kind = os.getxattr(path, "system.sockprotoname").rstrip(b"\0").decode(errors="replace")
        if kind not in _SAVED_SOCKETS:
            return f"has a socket of the kind {_shown(kind)} open: CRIU cannot save it"
        if found.st_ino in connected:
            return "has a TCP connection open, and `tcp_established` is off"
        return None
    if stat.S_ISBLK(found.st_mode):
        return f"has {_shown(target)} open: CRIU cannot save an open disk"
    if stat.S_ISCHR(found.st_mode):
        device = os.major(found.st_rdev), os.minor(found.st_rdev)
        if device not in _SAVED_DEVICES and device[0] not in _PTS_MAJORS:
            return f"has {_shown(target)} open: CRIU cannot save an open device"
    return None


def _connections(pid: int) -> set[int]:
    """Inodes of the established TCP connections in the process's network."""
    inodes: set[int] = set()
    for name in ("tcp", "tcp6"):
        try:
            with open(f"/proc/{pid}/net/{name}", encoding="ascii", errors="replace") as file:
                rows = [line.split() for line in file.read().splitlines()[1:]]
        except OSError:
            continue
        inodes.update(int(row[9]) for row in rows if len(row) > 9 and row[3] == _TCP_ESTABLISHED)
    return inodes
