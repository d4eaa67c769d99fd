"""Control groups that LXC forgot, as folders: a real hierarchy has files that nobody need delete."""

from pathlib import Path

from backends.lxd.groups import remove_empty


def test_what_is_empty_goes_and_what_is_in_use_stays(tmp_path: Path) -> None:
    for controller in ("pids", "freezer"):
        (tmp_path / controller / "lxc.payload.p2p-1" / "inner").mkdir(parents=True)
    (tmp_path / "lxc.monitor.p2p-1").mkdir()
    (tmp_path / "pids" / "lxc.payload.p2p-2").mkdir()
    used = tmp_path / "freezer" / "lxc.payload.p2p-1" / "inner" / "cgroup.procs"
    used.write_text("17\n")
    remove_empty("p2p-1", tmp_path)
    assert not (tmp_path / "pids" / "lxc.payload.p2p-1").exists()
    assert not (tmp_path / "lxc.monitor.p2p-1").exists()
    assert used.exists(), "something runs in it"
    assert (tmp_path / "pids" / "lxc.payload.p2p-2").exists(), "another container's"
