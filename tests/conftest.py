"""What concerns a whole run of tests: engines that were not tried are named in its last lines, and nothing stays."""

import os
from collections.abc import Generator

import pytest

from bench.netlab import leftovers as netlab
from tests.support.contract import leftovers
from tests.support.contract.absence import absent

ENGINE = "engine"
_MOST_NAMED = 8


def pytest_configure(config: pytest.Config) -> None:
    """See that groups are kept together, and make the mark known that tests of real engines carry."""
    # pytest-xdist keeps groups together by writing to what newer ones have no more: then it does nothing, silently.
    renames = any("_nodeid" in getattr(kind, "__slots__", ()) for kind in pytest.Item.__mro__)
    if config.getoption("dist", "no") == "loadgroup" and not renames:
        raise pytest.UsageError("pytest-xdist keeps no groups of tests under this pytest: run `make setup`")
    config.addinivalue_line(
        "markers", f"{ENGINE}: runs applications on a real engine; skipped, with the reason, without"
    )


def pytest_sessionstart(session: pytest.Session) -> None:
    """Sweep up after runs that were killed with all that would have."""
    if not _is_worker(session.config):
        sweep()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Before any daemon is started for it."""
    reason = absent()
    if reason and item.get_closest_marker(ENGINE):
        pytest.skip(reason)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> Generator[None, None, None]:
    """After everything else: workers have ended by then, and the summary is written."""
    yield
    if _is_worker(session.config):
        return
    sweep()
    terminal = session.config.pluginmanager.get_plugin("terminalreporter")
    if terminal is None:
        return
    for line in not_run(terminal.stats.get("skipped", [])):
        terminal.write_line(line)


def sweep() -> None:
    """End what belongs to test processes that are no more."""
    if os.geteuid() == 0:
        leftovers.sweep_dead()
        netlab.sweep()


def not_run(skipped: list[pytest.TestReport]) -> list[str]:
    """Which tests of engines, and others that need root, were not run and why, for people."""
    reasons: dict[str, list[str]] = {}
    for report in skipped:
        if not {ENGINE, "root"}.isdisjoint(report.keywords) and isinstance(report.longrepr, tuple):
            test = report.nodeid.partition("@")[0]
            reasons.setdefault(report.longrepr[2].removeprefix("Skipped: "), []).append(test)
    lines = []
    for reason, tests in sorted(reasons.items()):
        lines.append(f"not run: {len(tests)} {'test' if len(tests) == 1 else 'tests'}: {reason}")
        lines += [f"    {test}" for test in tests if len(tests) <= _MOST_NAMED]
    return lines


def _is_worker(config: pytest.Config) -> bool:
    return hasattr(config, "workerinput")
