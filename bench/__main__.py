"""`make bench`: pulling, checking out and importing a real tree, beside `rsync -a` over ssh.

Both sides run on tmpfs and on loopback, in turn; times are those of the whole commands. Each pull goes to a node that
has nothing yet. Import runs on a node that is bound to one processor core.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import click

from bench import figures, ssh, trees
from p2player.localmesh import LocalMesh, LocalNode

RESULTS = Path(__file__).parent / "results" / "first.jsonl"


@click.command()
@click.option("--size-mb", default=256, show_default=True, help="Size of the tree.")
@click.option("--runs", default=5, show_default=True, help="Runs of each side, in turn.")
@click.option(
    "--folder", default="/dev/shm", show_default=True, help="Where everything lives; tmpfs, to leave the disk out."
)
def main(size_mb: int, runs: int, folder: str) -> None:
    """Print one table and append it to bench/results."""
    root = Path(tempfile.mkdtemp(prefix="p2player-bench-", dir=folder))
    try:
        ssh.need("rsync", "sshd", "ssh", "ssh-keygen")
        _run(root, size_mb * 1_000_000, runs)
    except ssh.Missing as error:
        print(f"bench: {error}", file=sys.stderr)
        sys.exit(1)
    finally:
        shutil.rmtree(root, ignore_errors=True)


def _run(root: Path, size_bytes: int, runs: int) -> None:
    source = root / "tree"
    files, size = trees.build(source, size_bytes)
    notes = [f"tree: {files} real files, {size / 1e6:.0f} MB, from {', '.join(trees.SOURCES)}; medians of {runs} runs"]
    pull = figures.Case("pull", size, goal=1.5)
    both = figures.Case("pull + checkout", size, goal=1.0)
    rate = figures.Single("import, one core", "MB/s", 150, at_least=True)
    memory = figures.Single("import, peak memory", "MB", 200, at_least=False)
    (root / "ssh").mkdir()
    (root / "mesh").mkdir()
    with ssh.server(root / "ssh") as server, LocalMesh(root / "mesh", name="bench") as mesh:
        seed = mesh.add("seed")
        layer = seed.json("layer", "add", str(source), "--name", "tree")
        notes.append(f"layer: {layer['chunks']} chunks")
        for run in range(runs):
            _compare(root, mesh, server, source, run, pull, both)
            _measure_import(mesh, source, run, size, rate, memory)
    figures.show([pull, both], [rate, memory], notes)
    figures.save(RESULTS, [pull, both], [rate, memory], notes)


def _compare(
    root: Path,
    mesh: LocalMesh,
    server: ssh.SshServer,
    source: Path,
    run: int,
    pull: figures.Case,
    both: figures.Case,
) -> None:
    copy, tree = root / f"rsync-{run}", root / f"tree-{run}"
    command = ["rsync", "-a", "-e", server.shell, f"{server.source(source)}/", f"{copy}/"]
    rival = figures.seconds(lambda: subprocess.run(command, check=True))
    node = mesh.add(f"puller-{run}")
    pulled = figures.seconds(lambda: node.must("layer", "pull", "tree"))
    written = figures.seconds(lambda: node.must("layer", "checkout", "tree", str(tree)))
    check = ["rsync", "-aHAXnc", "--delete", "--itemize-changes", f"{copy}/", f"{tree}/"]
    difference = subprocess.run(check, check=True, capture_output=True, text=True).stdout
    if difference:
        raise SystemExit(f"bench: the checked-out tree differs from rsync's:\n{difference[:500]}")
    pull.ours_s.append(pulled)
    both.ours_s.append(pulled + written)
    pull.rival_s.append(rival)
    both.rival_s.append(rival)
    _drop(mesh, node)
    shutil.rmtree(copy)
    shutil.rmtree(tree)


def _measure_import(
    mesh: LocalMesh, source: Path, run: int, size: int, rate: figures.Single, memory: figures.Single
) -> None:
    node = mesh.add(f"importer-{run}", run=False)
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    try:
        node.start()
    finally:
        os.sched_setaffinity(0, cores)
    row = node.json("layer", "add", str(source), "--name", f"tree-{run}")
    assert node.process is not None
    status = Path(f"/proc/{node.process.pid}/status").read_text()
    peak_kib = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
    rate.values.append(size / row["seconds"] / 1e6)
    memory.values.append(peak_kib * 1024 / 1e6)
    _drop(mesh, node)


def _drop(mesh: LocalMesh, node: LocalNode) -> None:
    """Let a node that was needed for one run go, with its state."""
    node.must("leave")
    node.stop()
    del mesh.nodes[node.name]
    shutil.rmtree(node.state, ignore_errors=True)


if __name__ == "__main__":
    main()
