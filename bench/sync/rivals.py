"""rsync and casync, each with the least that makes its result equal the source.

rsync gets `-a`, and `-H`, `-A`, `-X` only if the tree has hard links or attributes: each costs it time. Where there is
an older version it gets `--delete`. ssh is OpenSSH with its default cipher, without multiplexing and compression of
its own.

casync makes its chunk store at the source beforehand (as p2player adds its layer), and is given the older version,
in place, as its seed. Store and index are read over ssh. It does not know hard links: of a file with several names it
makes several files, and that is let pass.
"""

import os
import re
import shutil
import stat
from collections.abc import Mapping
from pathlib import Path

from bench.netlab import Host
from bench.sync.measured import command
from bench.sync.stage import Ground, Stage


class _InPlace:
    """What the two have in common: the destination's tree is a copy of `old` that they bring up to date."""

    keeps_hard_links = True

    def __init__(self, ground: Ground) -> None:
        self.ground = ground

    def prepare(self, stage: Stage) -> None:
        """Nothing."""

    def open(self, stage: Stage) -> None:
        self.stage = stage

    def reset(self) -> None:
        self.ground.reset_result()

    def finish(self) -> None:
        """It is there."""

    def clear(self) -> None:
        self.ground.clear_result()

    @property
    def destination(self) -> Host:
        return self.stage.rivals.destination


class Rsync(_InPlace):
    """rsync from the daemon or over ssh.

    Args:
        compress: the value of `--compress-choice`; None: no `-z`.
        block_4k: `-B 4096`, which is its best form for images of memory and disks.
    """

    def __init__(self, ground: Ground, *, daemon: bool, compress: str | None, block_4k: bool) -> None:
        super().__init__(ground)
        self.daemon = daemon
        self.options = [
            *needed_options(ground.new),
            *(("--delete",) if ground.old is not None else ()),
            *(("-z", f"--compress-choice={compress}") if compress else ()),
            *(("-B", "4096") if block_4k else ()),
        ]

    def open(self, stage: Stage) -> None:
        super().open(stage)
        if self.daemon:
            self.origin = [f"{stage.daemon}/"]
        else:
            self.origin = ["-e", stage.ssh.shell, f"{stage.ssh.source(self.ground.new)}/"]

    def run(self) -> Mapping[str, float]:
        result = f"{self.ground.result}/"
        command(self.stage.rivals.destination.command(["rsync", *self.options, *self.origin, result]))
        return {}


class Casync(_InPlace):
    """casync extract from a chunk store over ssh."""

    keeps_hard_links = False

    def prepare(self, stage: Stage) -> None:
        room = self.ground.room("casync")
        make = ["casync", "make", f"--store={room / 'store.castr'}", str(room / "tree.caidx"), str(self.ground.new)]
        command(make)

    def open(self, stage: Stage) -> None:
        super().open(stage)
        self.wrapper = self.ground.room("casync") / "ssh"
        self.wrapper.write_text(f'#!/bin/sh\nexec {stage.ssh.shell} "$@"\n')
        self.wrapper.chmod(0o755)

    def run(self) -> Mapping[str, float]:
        room = self.ground.room("casync")
        store, index = (self.stage.ssh.source(room / name) for name in ("store.castr", "tree.caidx"))
        extract = ["casync", "extract", f"--store={store}", index, str(self.ground.result)]
        command(self.stage.rivals.destination.command(extract), environment={"CASYNC_SSH_PATH": str(self.wrapper)})
        return {}


def needed_options(tree: Path) -> list[str]:
    """The least options with which `rsync` copies `tree` as it is."""
    options = ["-a"]
    linked = attributed = False
    for folder, _, names in os.walk(tree):
        for path in (Path(folder), *(Path(folder, name) for name in names)):
            found = path.lstat()
            linked = linked or (found.st_nlink > 1 and not stat.S_ISDIR(found.st_mode))
            attributed = attributed or bool(os.listxattr(path, follow_symlinks=False))
    return options + ["-H"] * linked + ["-A", "-X"] * attributed


def versions(stage: Stage) -> dict[str, str]:
    """What the rivals are, and the cipher that ssh agrees on."""
    shell = stage.ssh.shell.split()
    talk = stage.rivals.destination.run(
        [shell[0], "-v", *shell[1:], "-o", "LogLevel=DEBUG", f"{stage.ssh.user}@{stage.ssh.address}", "true"],
        capture_output=True,
        text=True,
        check=False,
    ).stderr
    cipher = re.search(r"kex: server->client cipher: (\S+)", talk)
    notes = {
        "rsync": command(["rsync", "--version"]).split()[2],
        "ssh": f"{talk.partition(',')[0].strip()}, {cipher[1] if cipher else 'cipher not told'}",
    }
    if shutil.which("casync"):
        notes["casync"] = command(["casync", "--version"]).split()[-1]
    return notes
