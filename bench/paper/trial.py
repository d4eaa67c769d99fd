"""The bench tried out without any engine: a counter under the embedded backend, hidden platform `process`.

The counter has the applications' address and answers as their first process does (see `bench.paper.apps.inside.main`):
datagrams with the count, and the question `state` with its identity and the count. It writes both down when it is told
to end, and goes on from there. A piece of random data makes its instance worth moving.
"""

import json
import sys
from pathlib import Path

from bench.paper.plan import PROCESS, Cell
from bench.paper.stage import APP_ADDRESS, BRIDGE, PREFIX_BITS
from bench.paper.workloads import Layers, Workload

LAYER_BYTES = 2_000_000
STATE_BYTES = 1_000_000

COUNTER = f"""
import json, os, selectors, signal, socket, subprocess, sys, time
ADDRESS = ["{APP_ADDRESS}/{PREFIX_BITS}", "dev", "{BRIDGE}"]
path = os.path.join(os.environ["P2P_STATE"], "counter")
state = {{"key": "counter", "identity": os.urandom(8).hex(), "ticks": 0, "programs": 0, "ready": True}}
if os.path.exists(path):
    with open(path) as file: state = json.load(file)
else:
    with open(path + ".data", "wb") as file: file.write(os.urandom({STATE_BYTES}))
def save(*_):
    with open(path + ".new", "w") as file: json.dump(state, file)
    os.replace(path + ".new", path)
def end(*_):
    save()
    subprocess.run(["ip", "address", "del", *ADDRESS])
    sys.exit(0)
signal.signal(signal.SIGTERM, end)
signal.signal(signal.SIGUSR1, save)
subprocess.run(["ip", "address", "add", *ADDRESS], check=True)
with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as wire:  # tell others where the address is now
    wire.bind(("{BRIDGE}", 0))
    mac, address = wire.getsockname()[4], socket.inet_aton("{APP_ADDRESS}")
    head = b"\\xff" * 6 + mac + bytes.fromhex("08060001080006040001")
    wire.send(head + mac + address + b"\\xff" * 6 + address)
datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
listener = socket.socket()
listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
for end_ in (datagrams, listener):
    end_.bind(("0.0.0.0", 7000))
listener.listen()
selector = selectors.DefaultSelector()
def accept():
    connection, _ = listener.accept()
    selector.register(connection, selectors.EVENT_READ, lambda: answer(connection))
def answer(connection):
    if connection.recv(4096):
        connection.send(json.dumps(state).encode() + b"\\n")
    else:
        selector.unregister(connection)
        connection.close()
def datagram():
    data, sender = datagrams.recvfrom(64)
    datagrams.sendto(b"%b %d" % (data, state["ticks"]), sender)
selector.register(datagrams, selectors.EVENT_READ, datagram)
selector.register(listener, selectors.EVENT_READ, accept)
next_tick = time.monotonic()
while True:
    for key, _ in selector.select(max(next_tick - time.monotonic(), 0)):
        key.data()
    if time.monotonic() >= next_tick:
        next_tick += 0.1
        state["ticks"] += 1
"""


def workload(folder: Path, cell: Cell) -> Workload:
    """The counter; its layers are made in `folder` the first time."""
    assert cell.platform == PROCESS
    base, app = folder / "base", folder / "app"
    if not app.exists():
        base.mkdir(parents=True)
        (base / "release").write_text("1\n")
        app.mkdir()
        (app / "main.py").write_text(COUNTER)
        with open("/dev/urandom", "rb") as random:
            (app / "data").write_bytes(random.read(LAYER_BYTES))
    save = ["sh", "-c", "kill -USR1 $P2P_PID; sleep 0.1"]
    config = f"command = {json.dumps([sys.executable, '-I', '{app}/main.py'])}\n[hooks]\nsave = {json.dumps(save)}\n"
    return Workload("counter", PROCESS, Layers(base, app), config, ())
