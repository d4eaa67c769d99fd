"""The demo's application: a small game whose world lives in memory and, across a move, in the state folder.

A world of tiles, and players who walk on it and paint what they step on. Players speak length-prefixed msgpack over
TCP. The application knows nothing of migration: on SIGTERM it writes its world and exits 0, on SIGUSR1 it writes it
and goes on, and at its start it reads it back.

    game_server.py STATE_FOLDER PORT
"""

import asyncio
import os
import random
import signal
import struct
import sys
from pathlib import Path
from typing import Any

import msgpack

SIDE = 1024
TILE_BYTES = 4
LENGTH = struct.Struct("!I")
MAX_MESSAGE_BYTES = 1 << 16


class World:
    """The state of the game: one number a tile, and for each player its place and how often it moved."""

    def __init__(self, name: str, tiles: bytearray, players: dict[str, dict[str, int]]) -> None:
        self.name = name
        self.tiles = tiles
        self.players = players

    @classmethod
    def load(cls, folder: Path) -> "World":
        """The world in `folder`, or a new one where there is none."""
        path = folder / "world.msgpack"
        if not path.exists():
            terrain = random.Random(7)
            row = bytes(terrain.randrange(256) for _ in range(SIDE * TILE_BYTES))
            tiles = bytearray(b"".join(row[i % 97 :] + row[: i % 97] for i in range(SIDE)))
            return cls(os.urandom(4).hex(), tiles, {})
        stored = msgpack.unpackb(path.read_bytes())
        return cls(stored["name"], bytearray((folder / "tiles.bin").read_bytes()), stored["players"])

    def save(self, folder: Path) -> None:
        """Write the world so that a kill at any time leaves the old or the new one."""
        document = msgpack.packb({"name": self.name, "players": self.players})
        for name, data in (("tiles.bin", bytes(self.tiles)), ("world.msgpack", document)):
            partial = folder / f".{name}.partial"
            partial.write_bytes(data)
            partial.replace(folder / name)

    def move(self, player: str, dx: int, dy: int) -> dict[str, Any]:
        """Let a player take a step and paint the tile it comes to."""
        place = self.players.setdefault(player, {"x": SIDE // 2, "y": SIDE // 2, "moves": 0})
        place["x"], place["y"] = (place["x"] + dx) % SIDE, (place["y"] + dy) % SIDE
        place["moves"] += 1
        offset = (place["y"] * SIDE + place["x"]) * TILE_BYTES
        self.tiles[offset : offset + TILE_BYTES] = struct.pack("!I", place["moves"])
        return dict(place)


async def read_message(reader: asyncio.StreamReader) -> Any:
    """One message of a player."""
    (length,) = LENGTH.unpack(await reader.readexactly(LENGTH.size))
    if length > MAX_MESSAGE_BYTES:
        raise ValueError(f"a message of {length} bytes")
    return msgpack.unpackb(await reader.readexactly(length))


async def serve(folder: Path, port: int) -> None:
    """Play until SIGTERM."""
    world = World.load(folder)
    end = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, end.set)
    loop.add_signal_handler(signal.SIGUSR1, world.save, folder)

    async def play(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while not end.is_set():
                move = await read_message(reader)
                if end.is_set():
                    break  # the world may be on disk already: what is not in it must not be acknowledged
                place = world.move(str(move["player"]), int(move["dx"]), int(move["dy"]))
                data = msgpack.packb({"world": world.name, "python": sys.prefix, **place})
                writer.write(LENGTH.pack(len(data)) + data)
                await writer.drain()
        except (OSError, EOFError, ValueError, KeyError, TypeError, msgpack.UnpackException):
            pass  # a player that left or talks nonsense: the others play on
        finally:
            writer.close()

    server = await asyncio.start_server(play, "127.0.0.1", port, reuse_address=True)
    (folder / "pid").write_text(str(os.getpid()))
    print(f"world {world.name}: {len(world.players)} players known", flush=True)
    await end.wait()
    server.close()
    world.save(folder)
    print(f"world {world.name}: saved", flush=True)


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1]), int(sys.argv[2])))
