"""The pure parts of the side-by-side bench: which runs there are, what is kept of them, and how goals are judged."""

import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.figures import spell_bytes
from bench.sync import code, plan, results, targets
from bench.sync.plan import LOOPBACK, OURS, WAN, Key
from bench.sync.results import Results, Run
from bench.sync.rivals import needed_options

COLD = plan.CASES[0]
KEY = Key("cold-tree", "loopback", 64, OURS, 1, "abc")
RUN = Run(KEY, 2.0, 100, 10, 1000, 3, {"pull_s": 1.5}, None, "2026-01-01T00:00:00Z")


def all_keys(**options: object) -> list[Key]:
    made = plan.series(plan.FULL, "abc", options.pop("done", ()), **options)  # type: ignore[arg-type]
    return [key for series in made for key in series.runs]


# --- the plan


def test_contestants_take_turns() -> None:
    (series,) = plan.series(plan.FULL, "abc", (), cases=["cold-tree"], links=["loopback"])
    first = series.runs[: len(series.tools)]
    assert [key.number for key in first] == [1] * len(first)
    assert [key.tool for key in first] == list(COLD.tools)
    assert series.runs[len(first)].number == 2
    assert len(series.runs) == plan.FULL.loopback_runs * len(COLD.tools)


def test_every_case_is_measured_on_loopback_and_on_the_long_link() -> None:
    places = {(key.case, key.link) for key in all_keys()}
    assert places >= {(case.name, link.name) for case in plan.CASES for link in (LOOPBACK, WAN)}
    assert {link for case, link in places if case == "vm-saves"} == {link.name for link in plan.LINKS}


def test_what_is_done_is_not_planned_again() -> None:
    everything = all_keys(cases=["log"])
    left = all_keys(cases=["log"], done=set(everything[:7]))
    assert left == everything[7:]
    assert all_keys(cases=["log"], done=set(everything)) == []


def test_another_state_of_the_code_is_measured_anew() -> None:
    done = {replace(key, code="older") for key in all_keys(cases=["log"])}
    assert len(all_keys(cases=["log"], done=done)) == len(done)


def test_named_contestants_count_even_if_the_effort_has_them_not() -> None:
    made = list(plan.series(plan.QUICK, "abc", (), cases=["log"], tools=["casync"], links=["loopback"], runs=1))
    assert [key.tool for series in made for key in series.runs] == ["casync"]


def test_a_disk_is_for_the_first_case_only() -> None:
    assert {key.case for key in all_keys(disk=True) if key.link == plan.ON_DISK.name} == {COLD.name}


def test_only_images_are_compared_with_blocks_of_4_kib() -> None:
    by_name = {case.name: case for case in plan.CASES}
    assert set(plan.BEST_ON_IMAGES) <= set(by_name["vm-saves"].tools)
    assert not set(plan.BEST_ON_IMAGES) & set(by_name["releases"].tools)
    assert plan.OURS_DONOR not in COLD.tools


@given(st.sampled_from(plan.CASES), st.sampled_from(plan.LINKS), st.sampled_from([plan.FULL, plan.QUICK]))
def test_sizes_fit_the_link(case: plan.Case, link: plan.Link, effort: plan.Effort) -> None:
    size_mb = plan.fitting_mb(case, link, effort)
    assert size_mb <= max(case.size_mb, case.least_mb)
    if link.mbit is not None and size_mb > case.least_mb:
        assert size_mb * case.share * 8 / link.mbit <= effort.budget_s


# --- what is kept


def test_runs_are_read_back(tmp_path: Path) -> None:
    kept = Results(tmp_path / "new" / "runs.jsonl")
    kept.add(RUN)
    kept.note("abc", {"rsync": "3"})
    again = Results(kept.path)
    assert again.runs == {KEY: RUN}
    assert again.notes == {"abc": {"rsync": "3"}}
    assert again.done == {KEY}


def test_a_torn_last_line_is_done_again_and_harms_nothing(tmp_path: Path) -> None:
    kept = Results(tmp_path / "runs.jsonl")
    kept.add(RUN)
    with kept.path.open("a") as out:
        out.write('{"key": {"case": "cold')
    again = Results(kept.path)
    assert again.done == {KEY}
    other = replace(RUN, key=replace(KEY, number=2))
    again.add(other)
    assert Results(kept.path).done == {KEY, other.key}


def test_failed_runs_count_for_nothing(tmp_path: Path) -> None:
    kept = Results(tmp_path / "runs.jsonl")
    kept.add(replace(RUN, error="it broke"))
    assert kept.done == set()
    assert kept.medians("abc") == {}


def test_medians_are_those_of_one_state_of_the_code(tmp_path: Path) -> None:
    kept = Results(tmp_path / "runs.jsonl")
    for number, seconds in enumerate((3.0, 1.0, 2.0), start=1):
        kept.add(replace(RUN, key=replace(KEY, number=number), seconds=seconds))
    kept.add(replace(RUN, key=replace(KEY, code="later"), seconds=9.0, at="2026-01-02T00:00:00Z"))
    found = kept.medians("abc")[("cold-tree", "loopback", 64)][OURS]
    assert (found.runs, found.seconds, found.fastest_s, found.slowest_s) == (3, 2.0, 1.0, 3.0)
    assert found.wire_bytes == 110
    assert found.parts == {"pull_s": 1.5}
    assert kept.newest_code() == "later"


# --- goals


def figures_of(seconds: float, wire_bytes: int, **parts: float) -> results.Figures:
    return results.median([replace(RUN, seconds=seconds, bytes_in=wire_bytes, bytes_out=0, parts=parts)])


def judge(case: str, link: str, **tools: results.Figures) -> dict[tuple[str, str], targets.Verdict]:
    named = {name.replace("_", "-"): found for name, found in tools.items()}
    verdicts = targets.judge({(case, link, 64): named})
    return {(verdict.goal.what, verdict.rival): verdict for verdict in verdicts}


def test_a_goal_against_compression_takes_the_better_of_two() -> None:
    tools = {"rsync_ssh_zlib": figures_of(5, 100), "rsync_ssh_zstd": figures_of(2, 120), "p2player": figures_of(3, 105)}
    found = judge("cold-tree", "20M/20ms", **tools)
    assert found["bytes", "rsync-ssh-zlib"].ratio == pytest.approx(1.05)
    assert not found["bytes", "rsync-ssh-zlib"].met
    assert found["time", "rsync-ssh-zstd"].ratio == pytest.approx(1.5)


def test_a_goal_without_rivals_bounds_the_figure_itself() -> None:
    tools = {"p2player": figures_of(0.5, 5000, api_s=0.1), "rsync_ssh": figures_of(1, 1000)}
    found = judge("noop", "loopback", **tools)
    assert not found["bytes", "4 KB"].met
    assert found["time", "rsync-ssh"].met
    assert found["api", "rsync-ssh"].ratio == pytest.approx(0.1)


def test_memory_is_judged_by_the_peak() -> None:
    found = judge("small-files", "loopback", p2player=figures_of(9, 0, peak_bytes=251e6))
    assert not found["memory", "250 MB"].met


def test_of_several_sizes_the_largest_is_judged() -> None:
    small, large = ({"p2player": figures_of(1, 0, peak_bytes=peak)} for peak in (1e6, 2e6))
    found = targets.judge({("small-files", "loopback", 100): large, ("small-files", "loopback", 64): small})
    assert [(verdict.size_mb, verdict.ours) for verdict in found] == [(100, 2e6)]


def test_goals_without_figures_are_left_out() -> None:
    assert judge("cold-tree", "loopback", p2player=figures_of(1, 1)) == {}
    assert judge("cold-tree", "loopback", rsync_ssh=figures_of(1, 1)) == {}


def test_every_goal_is_about_runs_that_exist() -> None:
    planned = {(key.case, key.link, key.tool) for key in all_keys()}
    for goal in targets.GOALS:
        if goal.what != "memory":
            for tool in (goal.ours, *goal.rivals):
                assert any((goal.case, link, tool) in planned for link in goal.links), goal


# --- small things


def test_rsync_gets_the_least_options_that_suffice(tmp_path: Path) -> None:
    (tmp_path / "one").touch()
    assert needed_options(tmp_path) == ["-a"]
    (tmp_path / "two").hardlink_to(tmp_path / "one")
    assert needed_options(tmp_path) == ["-a", "-H"]


def test_the_state_of_the_code_changes_with_it(tmp_path: Path) -> None:
    def git(*arguments: str) -> None:
        identity = ("-c", "user.name=n", "-c", "user.email=e")
        subprocess.run(["git", "-C", str(tmp_path), *identity, *arguments], check=True, capture_output=True)

    assert code.state(tmp_path) == code.UNKNOWN
    git("init")
    (tmp_path / "p2player").mkdir()
    module = tmp_path / "p2player" / "node.py"
    module.write_text("1")
    git("add", ".")
    git("commit", "-m", "first")
    committed = code.state(tmp_path)
    (tmp_path / "README.md").write_text("what the figures do not depend on")
    assert code.state(tmp_path) == committed
    module.write_text("2")
    dirty = code.state(tmp_path)
    assert dirty.startswith(f"{committed}+")
    (tmp_path / "p2player" / "other.py").write_text("3")
    assert code.state(tmp_path) not in (dirty, committed)


@pytest.mark.parametrize(("count", "text"), [(17, "17 B"), (3200, "3.2 KB"), (104e6, "104 MB"), (2.5e9, "2.5 GB")])
def test_amounts(count: float, text: str) -> None:
    assert spell_bytes(count) == text
