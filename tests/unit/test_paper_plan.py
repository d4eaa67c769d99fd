"""The bench of the published table: which cells there are, what is kept of runs, and which goals are met."""

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.paper import plan
from bench.paper.plan import HOLDERS, LIBVIRT, LXD, OURS, OWN, REWRITING, RSYNC, RSYNC_Z, RUNC, Cell, Key, Wish
from bench.paper.results import Results, Run

CELL = Cell("table", LXD, "game", 0, 50.0, 0.0, present=False)
RUN = Run(
    Key(CELL, RSYNC, "abc"), 10.0, 2_000_000, 3.0, 2.5, {"app_s": 4.0}, {"counter": True}, {"rsync": "3"}, None, "t"
)


# --- the plan


def test_the_table_has_all_rows_of_both_platforms_and_both_states_of_the_app_layer() -> None:
    cells = [cell for cell in plan.cells(Wish()) if cell.series == "table"]
    places = [(cell.platform, cell.app, cell.present) for cell in cells]
    assert places == [(p, app, there) for p in (LXD, LIBVIRT) for app in plan.APPS for there in (False, True)]
    assert {cell.mbit for cell in cells} == {50.0}


def test_only_the_high_ram_application_has_memory_to_fill_and_one_rewrites_it() -> None:
    for cell in plan.cells(Wish(series=["table"])):
        assert (cell.ram_mb > 0) == (cell.app in plan.FRESH_RANDOM)
        assert cell.rewrite_mb_s == (pytest.approx(2.5) if cell.app == REWRITING else 0)


def test_a_cell_is_measured_with_all_methods_and_the_engines_own_once_a_row() -> None:
    assert plan.methods(CELL) == (RSYNC, RSYNC_Z, OURS)
    assert plan.methods(replace(CELL, present=True)) == (RSYNC, RSYNC_Z, OURS, OWN)
    assert OWN not in plan.methods(replace(CELL, present=True, platform=RUNC))
    assert plan.methods(plan.sweep(LXD)[0].cell) == (RSYNC, OURS)


def test_rsync_has_one_holder() -> None:
    cells = [cell for cell in plan.cells(Wish(series=["holders"])) if cell.platform == LXD]
    assert [cell.holders for cell in cells] == list(HOLDERS)
    assert [RSYNC in plan.methods(cell) for cell in cells] == [True, False, False]
    assert not any(cell.present for cell in cells)


def test_what_is_done_is_not_planned_again() -> None:
    everything = plan.pending(Wish(), ())
    assert plan.pending(Wish(), {(cell, method) for cell, methods in everything for method in methods}) == []
    (first, methods), *rest = everything
    assert plan.pending(Wish(), {(first, RSYNC)}) == [(first, methods[1:]), *rest]


def test_cells_of_one_stage_follow_each_other() -> None:
    stages = [cell.stage for cell, _ in plan.pending(Wish(series=("table", "sweep")), ())]
    changes = [stage for number, stage in enumerate(stages) if number == 0 or stages[number - 1] != stage]
    assert len(changes) <= len(set(stages)) + len(plan.PUBLISHED)  # the table's rate is one of the sweep's


def test_quick_is_one_row_of_each_platform() -> None:
    left = plan.pending(Wish(quick=True), ())
    rows = {(cell.platform, cell.app) for cell, _ in left}
    assert rows == {(LXD, plan.QUICK_APP), (LIBVIRT, plan.QUICK_APP)}
    assert {method for _, methods in left for method in methods} == {RSYNC, OURS}
    assert sum(plan.expected_s(cell, method) for cell, methods in left for method in methods) < 300


def test_wishes_are_followed() -> None:
    left = plan.pending(Wish(platforms=(RUNC,), series=["table"], apps=("face",), methods=(OURS,)), ())
    assert [(cell.platform, cell.app, methods) for cell, methods in left] == [(RUNC, "face", (OURS,))] * 2
    assert not list(plan.cells(Wish(apps=("none",), series=("sweep", "holders"))))


def test_the_hidden_platform_has_a_counter_only() -> None:
    assert [cell.app for cell in plan.cells(Wish(platforms=(plan.PROCESS,)))] == [plan.COUNTER] * 2


@given(st.sampled_from([LXD, LIBVIRT, RUNC]), st.sampled_from(plan.SWEEP_MBIT))
def test_no_cell_of_the_sweep_takes_longer_than_it_may(platform: str, mbit: float) -> None:
    for point in plan.sweep(platform):
        if point.cell.mbit != mbit:
            continue
        assert 0 < point.cell.ram_mb <= point.asked_mb
        assert point.capped == (point.cell.ram_mb < point.asked_mb)
        if point.cell.ram_mb > plan.ROUNDING_MB:
            beside = plan.BESIDE_MB.get(platform, 4.0)
            assert (point.cell.ram_mb + beside) * 8 / mbit / plan.GOODPUT <= plan.LONGEST_S


def test_capped_points_share_a_cell() -> None:
    points = [point for point in plan.sweep(LXD) if point.cell.mbit == 5]
    assert [point.asked_mb for point in points] == list(plan.SWEEP_RAM_MB)
    assert [point.capped for point in points] == [False, True, True, True, True]
    assert len({point.cell for point in points}) == 2
    assert not any(point.capped for point in plan.sweep(LXD) if point.cell.mbit >= 50)


def test_a_cell_is_spelled_for_people() -> None:
    assert str(CELL) == "lxd: game, app layer absent, 50 Mbit/s"
    cell = Cell("holders", LXD, "face", 0, 20.0, 5.0, present=False, holders=4)
    assert str(cell) == "lxd: face, app layer absent, 20 Mbit/s, 5 ms, 4 holders"


# --- the runs


def test_runs_are_read_back(tmp_path: Path) -> None:
    results = Results(tmp_path / "new" / "paper.jsonl")
    results.add(RUN)
    assert Results(results.path).of("abc") == {CELL: {RSYNC: RUN}}
    assert Results(results.path).done("abc") == {(CELL, RSYNC)}
    assert Results(results.path).newest_code() == "abc"


def test_a_torn_line_is_ignored_and_written_after(tmp_path: Path) -> None:
    results = Results(tmp_path / "paper.jsonl")
    results.add(RUN)
    with results.path.open("a") as out:
        out.write('{"key": {"cell"')
    again = Results(results.path)
    assert again.done("abc") == {(CELL, RSYNC)}
    other = replace(RUN, key=replace(RUN.key, method=OURS))
    again.add(other)
    assert Results(results.path).done("abc") == {(CELL, RSYNC), (CELL, OURS)}


@pytest.mark.parametrize("line", ["[]", "3", "{}", '{"key": {}}', '{"key": {"cell": {"series": "table"}}}', "null"])
def test_lines_of_others_are_ignored(tmp_path: Path, line: str) -> None:
    (tmp_path / "paper.jsonl").write_text(line + "\n")
    assert Results(tmp_path / "paper.jsonl").runs == {}


def test_the_last_run_counts_and_failed_ones_are_done_again(tmp_path: Path) -> None:
    results = Results(tmp_path / "paper.jsonl")
    failed = replace(RUN, error="no engine")
    results.add(failed)
    assert results.done("abc") == set()
    assert results.failed("abc") == [failed]
    results.add(replace(RUN, total_s=7.0))
    assert Results(results.path).of("abc")[CELL][RSYNC].total_s == 7.0
    assert results.failed("abc") == []


def test_states_of_the_code_are_kept_apart_unless_all_are_asked_for(tmp_path: Path) -> None:
    results = Results(tmp_path / "paper.jsonl")
    results.add(RUN)
    results.add(replace(RUN, key=Key(CELL, RSYNC, "def"), total_s=8.0))
    results.add(replace(RUN, key=Key(CELL, OURS, "def"), error="no"))
    assert results.of("abc")[CELL][RSYNC].total_s == 10.0
    assert results.of(None) == {CELL: {RSYNC: results.runs[Key(CELL, RSYNC, "def")]}}
    assert results.newest_code() == "def"
    assert [run.key.method for run in results.failed(None)] == [OURS]


def test_the_time_without_service_is_the_clients_if_there_is_one() -> None:
    assert RUN.down_s == 3.0
    assert replace(RUN, gap_s=None).down_s == 2.5
    assert RUN.whole
    assert not replace(RUN, kept={"counter": False}).whole
