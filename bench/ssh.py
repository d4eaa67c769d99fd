"""An OpenSSH server with keys of its own, on loopback or in a host of a lab, for `rsync` over ssh."""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

START_S = 10.0


class Missing(Exception):
    """A program that the comparison needs is not installed; the text says how to get it."""


@dataclass(frozen=True, slots=True)
class SshServer:
    """How to reach the server."""

    address: str
    port: int
    key: Path
    user: str

    @property
    def shell(self) -> str:
        """The value of rsync's `-e`: ssh's defaults, whatever the user's own settings are, without multiplexing."""
        return (
            f"ssh -F none -p {self.port} -i {self.key} -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null "
            "-o LogLevel=ERROR -o BatchMode=yes -o ControlMaster=no -o ControlPath=none"
        )

    def source(self, path: Path) -> str:
        """`path` on the server, as rsync wants it."""
        return f"{self.user}@{self.address}:{path}"


def need(*programs: str) -> None:
    """Make sure that programs are there: as root on Debian they are installed.

    Raises:
        Missing: they are not and cannot be.
    """
    packages = {
        "rsync": "rsync",
        "sshd": "openssh-server",
        "ssh": "openssh-client",
        "ssh-keygen": "openssh-client",
        "casync": "casync",
    }
    absent = sorted({packages[name] for name in programs if _find(name) is None})
    if not absent:
        return
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        raise Missing(f"needs {', '.join(absent)}: apt-get install {' '.join(absent)}")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    # The server is started by us on a port of its own; the package must not start one.
    subprocess.run(["apt-get", "update", "-qq"], check=True, env=environment, stdout=subprocess.DEVNULL)
    command = ["apt-get", "install", "-y", "-qq", "--no-install-recommends", *absent]
    subprocess.run(command, check=True, env={**environment, "RUNLEVEL": "1"}, stdout=subprocess.DEVNULL)


def _find(name: str) -> str | None:
    return shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin")


@contextmanager
def server(
    folder: Path, *, address: str = "127.0.0.1", inside: Callable[[Sequence[str]], list[str]] = list
) -> Iterator[SshServer]:
    """Run a server whose files are in `folder`, an existing empty one, while the block runs.

    Args:
        address: where it listens.
        inside: makes of a command the one that runs it in the host which has that address.
    """
    need("sshd", "ssh", "ssh-keygen")
    for name in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)], check=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    config = folder / "sshd_config"
    config.write_text(
        f"ListenAddress {address}:{port}\nHostKey {folder / 'host'}\nAuthorizedKeysFile {folder / 'user.pub'}\n"
        f"PidFile none\nStrictModes no\nUsePAM no\nPermitRootLogin yes\nPasswordAuthentication no\n"
    )
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)
    sshd = _find("sshd")
    assert sshd is not None
    log = folder / "sshd.log"
    with log.open("wb") as out:
        command = inside([sshd, "-D", "-e", "-f", str(config)])
        process = subprocess.Popen(command, stderr=out, stdin=subprocess.DEVNULL)
    try:
        _wait_for(f"Server listening on {address} port {port}.", log, process)
        user = "root" if os.geteuid() == 0 else os.environ.get("USER", "")
        yield SshServer(address, port, folder / "user", user)
    finally:
        process.terminate()
        process.wait()


def _wait_for(sentence: str, log: Path, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and process.poll() is None:
        if sentence in log.read_text(errors="replace"):
            return
        time.sleep(0.02)
    raise Missing(f"the ssh server did not start: {log.read_text(errors='replace').strip()[-300:]}")
