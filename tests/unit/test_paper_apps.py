"""The applications of the published table and their clients: layers' texts, protocols, gaps; nothing is installed."""

import importlib.util
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.data.pair import OLD_TIME_S, Unavailable
from bench.data.workshop import Workshop
from bench.paper.apps import APPLICATIONS, disks, guest, layers, packages, roots
from bench.paper.clients import StateLost, face, game, probing, protocols, record, video
from bench.paper.clients.record import Record
from bench.paper.clients.watching import Client

NOW_S = OLD_TIME_S + 10_000
BEFORE = {"identity": "a1", "ticks": 10, "answered": 5, "programs": 1}


def inside(name: str) -> ModuleType:
    """A module that runs in the applications, which is no part of a package there."""
    spec = importlib.util.spec_from_file_location(f"inside_{name}", roots.INSIDE / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def put(tree: Path, name: str, text: str = "", *, age_s: int = 0) -> Path:
    """A file that was made `age_s` seconds before `NOW_S`."""
    path = tree / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    os.utime(path, (NOW_S - age_s, NOW_S - age_s))
    return path


# Gaps


def test_gaps_reach_to_the_edges_of_the_time_that_is_looked_at() -> None:
    found = record.gaps([5.0, 10.0, 10.25, 12.0], 9.0, 13.5)
    assert found == record.Gaps(longest_s=1.75, longest_at=10.25, total_s=1.0 + 0.25 + 1.75 + 1.5, answers=3)


def test_no_answer_at_all_is_one_gap() -> None:
    assert record.gaps([], 2.0, 5.0) == record.Gaps(3.0, 2.0, 3.0, 0)


@given(st.lists(st.floats(0, 100), max_size=30).map(sorted), st.floats(0, 50), st.floats(1, 50))
def test_no_gap_is_longer_than_the_time(times: list[float], begin_s: float, length_s: float) -> None:
    found = record.gaps(times, begin_s, begin_s + length_s)
    assert found.longest_s <= length_s + 1e-9
    assert found.total_s <= length_s + 1e-9
    assert found.longest_s * (found.answers + 1) >= length_s - 1e-6


def test_a_record_is_read_back_but_for_a_line_that_is_not_whole(tmp_path: Path) -> None:
    path = tmp_path / "log"
    log = Record(path)
    log.answered(record.PROBE)
    log.answered(record.HELD, ticks=3)
    log.broken(record.HELD, ConnectionError("closed"))
    with path.open("a") as file:
        file.write('{"at": 1.0, "wh')
    assert [row["what"] for row in record.read(path)] == ["probe", "held", "broken"]
    assert [row["why"] for row in record.read(path, record.BROKEN)] == ["closed"]
    assert len(record.answer_times(record.read(path), record.HELD)) == 1


def test_what_broke_before_a_time_does_not_count_after_it(tmp_path: Path) -> None:
    client = Client("none", "127.0.0.1", tmp_path / "log")
    log = Record(client.log)
    log.broken(record.HELD, "refused")
    log.lost(record.APP, "forgot")
    later = time.monotonic() + 1
    assert not client.kept(0.0)
    assert client.kept(later)
    assert client.troubles(0.0) == ["held: refused", "app: forgot"]
    with pytest.raises(StateLost, match="forgot"):
        client.verify(BEFORE, BEFORE, since_s=0.0)
    client.verify(BEFORE, BEFORE, since_s=later)


# State


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"identity": "b2", "ticks": 11}, "started anew"),
        ({"ticks": 9}, "ticks went back from 10 to 9"),
        ({"programs": 0}, "programs has ended"),
        ({"damaged": 2, "pages": 7}, "2 of 7 pages"),
    ],
)
def test_lost_state_is_found(changes: dict[str, Any], why: str) -> None:
    with pytest.raises(StateLost, match=why):
        probing.verify(BEFORE, {**BEFORE, **changes})


def test_memory_must_be_the_same_unless_it_is_rewritten() -> None:
    still = {**BEFORE, "memory": "ab", "pages": 2, "writes": 2, "damaged": 0, "rewrite_bytes_s": 0}
    probing.verify(still, still)
    with pytest.raises(StateLost, match="content"):
        probing.verify(still, {**still, "memory": "cd"})
    rewriting = {**still, "rewrite_bytes_s": 1}
    probing.verify(rewriting, {**rewriting, "memory": "cd", "writes": 3})
    with pytest.raises(StateLost, match="writes went back"):
        probing.verify(rewriting, {**rewriting, "writes": 1})


# What runs inside


@contextmanager
def application(monkeypatch: pytest.MonkeyPatch, settings: Path) -> Iterator[int]:
    """The first process's loop on ports of this machine, in a thread."""
    module = inside("main")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port: int = taken.getsockname()[1]
    monkeypatch.setattr(module, "PORT", port)
    # Signals are for a process's main thread.
    monkeypatch.setattr(module.signal, "set_wakeup_fd", lambda *_, **__: -1)
    monkeypatch.setattr(module.signal, "signal", lambda *_: None)
    monkeypatch.setattr(module.Main, "reap", lambda _: None)
    main = module.Main(module.Settings(str(settings)))
    thread = threading.Thread(target=main.run)
    thread.start()
    try:
        yield port
    finally:
        main.stop(15, None)
        thread.join()
        for end in (*(each.end for each in main.connections), main.datagrams, main.listener, main.woken, main.wakeup):
            end.close()
        main.selector.close()


def test_an_application_answers_probes_and_questions(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with application(monkeypatch, tmp_path / "absent") as port:
        monkeypatch.setattr(probing, "PORT", port)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as end:
            end.settimeout(5)
            end.connect(("127.0.0.1", port))
            end.send(b"17")
            assert end.recv(64).split()[0] == b"17"
        before = probing.snapshot("127.0.0.1", 5)
        with probing.Control("127.0.0.1", 5) as control:
            assert control.ask("nonsense") == {"error": "unknown question"}
            assert control.ask("state")["connections"] >= 1
        probing.verify(before, probing.snapshot("127.0.0.1", 5))
    assert before["key"] == "none"
    assert before["ready"] is True
    assert "p2p: none serves" in capfd.readouterr().out


def test_an_application_with_memory_has_it_checked(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "memory", inside("memory"))
    settings = put(tmp_path, "settings", "key ram\nmemory 1 0\n")
    with application(monkeypatch, settings) as port:
        monkeypatch.setattr(probing, "PORT", port)
        while not (state := probing.snapshot("127.0.0.1", 5))["ready"]:
            pass
        again = probing.snapshot("127.0.0.1", 5)
    assert state["key"] == "ram"
    assert again["memory"] == state["memory"]
    assert (again["pages"], again["damaged"]) == (244, 0)


def test_damage_to_memory_is_found() -> None:
    memory = inside("memory").Memory(1, 0)
    assert check(memory)["damaged"] == 0
    memory.block[5 * 4096 + 100] ^= 1
    memory.block[7 * 4096 : 8 * 4096] = bytes(memory.block[8 * 4096 : 9 * 4096])
    assert check(memory)["damaged"] == 2


def test_memory_is_rewritten_at_the_rate_that_was_asked_for() -> None:
    memory = inside("memory").Memory(1, 409_600)
    first = check(memory)["memory"]
    for _ in range(10):
        memory.work(0.1)
    assert memory.writes == memory.pages + 100
    found = check(memory)
    assert found["damaged"] == 0
    assert found["memory"] != first


def test_what_a_slow_processor_cannot_rewrite_keeps_nobody_waiting() -> None:
    module = inside("memory")
    memory = module.Memory(1, 4_096_000)
    check(memory)
    memory.work(60.0)
    assert memory.writes == memory.pages + module.STEP_PAGES
    assert memory.busy()
    while memory.busy():
        memory.work(0.0)
    assert memory.writes == memory.pages + 1000 * module.MOST_OWED_S


def check(memory: Any) -> dict[str, Any]:
    """Fill the memory and check it."""
    while not memory.ready():
        memory.work(0.0)
    memory.check()
    while memory.busy():
        memory.work(0.0)
    found: dict[str, Any] = memory.found()
    return found


def test_a_line_of_state_is_json() -> None:
    values = {"key": "none", "ready": True, "ticks": 3}
    assert json.loads(inside("main").json_line(values)) == values


# The applications' own protocols


def test_every_application_with_a_port_of_its_own_has_a_client() -> None:
    assert {key for key, app in APPLICATIONS.items() if len(app.ports) > 1} == set(protocols.PROTOCOLS)


def test_the_player_speaks_as_the_server_expects() -> None:
    assert game.message(game.ALIVE) == b"\0\0al"
    entering = game.enter(b"someone")
    assert entering[:4] == b"\0\xf6en"
    assert len(entering) == 4 + 2 + 2 + 32 + 128 + 22 + 60
    assert entering[8:16] == b"someone\0"
    assert game.own_death(3) == b"\0\x07kl\x03\0\x02\xff\xff\0\0"


def test_the_player_finds_its_losses_among_those_of_others() -> None:
    body = b"\x02" + b"\x01\0\0\0\x09\0\0" + b"\x04\0\x01\x01\x02\0\0"
    assert game.losses_of(4, body) == 258
    assert game.losses_of(1, body) == 9
    assert game.losses_of(7, body) is None
    assert game.losses_of(1, b"") is None


@contextmanager
def server(script: list[tuple[bytes, bytes]]) -> Iterator[int]:
    """A game server that answers each message of a player by what the script has for its code, once."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            end, _ = listener.accept()
            with end, end.makefile("rb") as stream:
                stream.read(10)
                end.sendall(game.VERSION + b"\x03")
                while script and (head := stream.read(4)):
                    stream.read(int.from_bytes(head[:2], "big"))
                    if script[0][0] == head[2:]:
                        end.sendall(script.pop(0)[1])

        thread = threading.Thread(target=serve)
        thread.start()
        yield listener.getsockname()[1]
        thread.join()


def play(script: list[tuple[bytes, bytes]], log: Path) -> list[dict[str, Any]]:
    """What a player writes down of a server that plays a script and closes."""
    notes = Record(log)
    with (
        server(script) as port,
        probing.connect("127.0.0.1", port, 5) as end,
        pytest.raises((OSError, game.Refused)),
    ):
        game.Player(end, notes).play(threading.Event())
    return list(record.read(log))


def test_a_player_whose_losses_are_forgotten_tells(tmp_path: Path) -> None:
    script = [
        (game.ENTER, game.message(game.ACCEPT)),
        (game.WORLD_DIGEST, game.message(game.WORLD_DIGEST, b"p1")),
        (game.ALIVE, game.message(game.ALIVE, b"\x03")),
        (game.KILLED, game.message(game.SCORE, b"\x01\x03\0\0\0\x01\0\0")),
        (game.WORLD_DIGEST, game.message(game.WORLD_DIGEST, b"p2")),
        (game.ALIVE, game.message(game.ALIVE, b"\x03")),
        (game.KILLED, game.message(game.SCORE, b"\x01\x03\0\0\0\x05\0\0") + game.message(game.QUERY_GAME)),
    ]
    rows = play(script, tmp_path / "log")
    lost = [row["why"] for row in rows if row["what"] == record.LOST]
    assert lost == ["the field is another one", "the server counts 5 losses of 2"]
    assert [row["losses"] for row in rows if row["what"] == record.APP] == [5]


def test_a_player_who_is_refused_says_why(tmp_path: Path) -> None:
    assert play([(game.ENTER, game.message(game.REJECT, b"full"))], tmp_path / "log") == []


PLAYLIST = """#EXTM3U
#EXT-X-VERSION:3
#EXT-X-TARGETDURATION:1
#EXT-X-MEDIA-SEQUENCE:41
#EXTINF:1.000000,
41.ts
#EXTINF:1.000000,
42.ts
"""


def test_a_playlist_is_read() -> None:
    playlist = video.parse(PLAYLIST)
    assert playlist == video.Playlist(41, ("41.ts", "42.ts"))
    assert playlist.since(42) == [(42, "42.ts")]
    assert playlist.since(43) == []


@pytest.mark.parametrize("text", ["", "<html>", "#EXTM3U\n#EXT-X-MEDIA-SEQUENCE:-4\n"])
def test_what_is_no_playlist_is_refused(text: str) -> None:
    with pytest.raises(video.BadStream):
        video.parse(text)


def test_segments_are_whole_packets() -> None:
    packet = bytes([video.SYNC_BYTE]) + bytes(187)
    video.check_segment(packet * 3)
    for bad in (b"", packet[:-1], packet + bytes(188)):
        with pytest.raises(video.BadStream):
            video.check_segment(bad)


def test_frames_are_counted_and_compared() -> None:
    frames = face.Frames()
    assert frames.take(b"frame 8 faces 2 drawn 2\n") == (8, 2, None)
    assert frames.take(b"frame 9 faces 1 drawn 2\n")[2] == "1 faces were found on frame 9, which has 2"
    assert frames.take(b"frame 3 faces 1 drawn 1\n")[2] == "frame 3 came after frame 9"
    with pytest.raises(ValueError, match="no line"):
        frames.take(b"frame x\n")


# Layers


def test_settings_tell_the_first_process_what_to_run(tmp_path: Path) -> None:
    text = layers.settings_of(APPLICATIONS["video"], 100, 0)
    found = inside("main").Settings(str(put(tmp_path, "settings", text)))
    assert found.key == "video"
    assert found.programs[1] == ["/usr/sbin/nginx", "-c", "/opt/p2p/nginx.conf"]
    assert layers.settings_of(APPLICATIONS["ram"], 64, 5) == "key ram\nmemory 64 5\n"


def test_all_files_of_applications_are_there() -> None:
    for app in APPLICATIONS.values():
        for name in app.modules:
            assert (roots.INSIDE / name).is_file()


def test_a_guest_has_room_for_the_memory_that_is_filled() -> None:
    assert APPLICATIONS["ram"].guest_mb(100) == 96 + 128
    assert APPLICATIONS["ram"].guest_mb(512) == 96 + 512
    assert APPLICATIONS["game"].guest_mb(512) == APPLICATIONS["game"].memory_mb


def test_small_layers_are_made_once_for_each_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layers, "base_layer", lambda *_: tmp_path / "base")
    (tmp_path / "base/rootfs").mkdir(parents=True)
    place = Workshop(tmp_path, {})
    one = layers.app_layer(place, "ram", "container", ram_mb=32)
    assert layers.app_layer(place, "ram", "container", ram_mb=32) == one
    assert layers.app_layer(place, "ram", "container", ram_mb=64) != one
    settings = one / "rootfs/opt/p2p/settings"
    assert settings.read_text() == "key ram\nmemory 32 0\n"
    assert settings.stat().st_mtime == OLD_TIME_S
    assert (one / "rootfs/opt/p2p/memory.py").is_file()


def test_a_settled_tree_has_nothing_that_differs_the_next_time(tmp_path: Path) -> None:
    base, tree = tmp_path / "base", tmp_path / "tree"
    put(base, "etc/same", "x", age_s=50)
    put(tree, "etc/same", "x")
    put(base, "etc/other", "x")
    put(tree, "etc/other", "y")
    put(tree, "usr/bin/packaged", age_s=5000)
    for passing in ("var/log/dpkg.log", "var/cache/apt/x", "usr/share/doc/p/copyright", "etc/passwd-"):
        put(tree, passing)
    packages.settle(tree, NOW_S - 100, base)
    files = {str(path.relative_to(tree)): path for path in tree.rglob("*") if path.is_file()}
    assert set(files) == {"etc/other", "usr/bin/packaged"}
    assert files["etc/other"].stat().st_mtime == OLD_TIME_S
    assert files["usr/bin/packaged"].stat().st_mtime == NOW_S - 5000
    assert (tree / "usr/bin").stat().st_mtime == OLD_TIME_S


def test_a_disk_gets_what_an_upper_folder_holds(tmp_path: Path) -> None:
    base, upper = tmp_path / "base", tmp_path / "upper"
    put(base, "etc/old", "1")
    put(base, "lib/sub/was", "1")
    (upper / "lib").mkdir(parents=True)
    put(upper, "etc/old", "2").chmod(0o600)
    put(upper, 'opt/it\'s a "name"', "3")
    (upper / "opt/link").symlink_to("target")
    put(upper, "lib/sub", "now a file")
    lines = list(disks.commands(upper, base))
    assert [line for line in lines if not line.startswith(("cd", "set_inode_field"))] == [
        'mkdir "opt"',
        'rm "/etc/old"',
        f'write "{upper}/etc/old" "old"',
        'rm "/lib/sub/was"',
        'rmdir "/lib/sub"',
        f'write "{upper}/lib/sub" "sub"',
        f'write "{upper}/opt/it\'s a ""name""" "it\'s a ""name"""',
        'symlink "link" "target"',
    ]
    assert 'set_inode_field "old" mode 0100600' in lines
    assert lines.index('cd "/etc"') < lines.index('set_inode_field "old" mode 0100600') < lines.index('cd "/lib"')


def test_a_file_with_two_names_is_one_on_a_disk_too(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    one = put(tmp_path / "upper", "bin/one", "1")
    (tmp_path / "upper/bin/two").hardlink_to(one)
    lines = list(disks.commands(tmp_path / "upper", tmp_path / "base"))
    assert [line for line in lines if '"two"' in line] == [
        'link "/bin/one" "two"',
        'set_inode_field "two" links_count 2',
    ]


def test_an_initramfs_is_known_by_its_content_only(tmp_path: Path) -> None:
    archives: list[bytes] = []
    for name in ("one", "two"):
        put(tmp_path / name, "bin/tool", "#!", age_s=len(archives)).chmod(0o755)
        archives.append(guest.archive_of(tmp_path / name))
    assert archives[0] == archives[1]
    assert archives[0].startswith(b"070701" + b"00000001" + b"%08X" % (tmp_path / "one").stat().st_mode)
    assert b"bin/tool\0" in archives[0]
    assert len(archives[0]) % 4 == 0


def test_a_disk_takes_no_pipes(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    (tmp_path / "upper").mkdir()
    os.mkfifo(tmp_path / "upper/pipe")
    with pytest.raises(Unavailable, match="pipe"):
        list(disks.commands(tmp_path / "upper", tmp_path / "base"))
