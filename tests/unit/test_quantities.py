"""Sizes, rates and durations as people write them."""

import pytest

from p2player.errors import Usage
from p2player.quantities import parse_duration, parse_rate, parse_size


@pytest.mark.parametrize(
    ("text", "size"),
    [("0", 0), ("4096", 4096), ("4096B", 4096), ("500MB", 500_000_000), ("20 GiB", 20 << 30), ("1.5k", 1500)],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    ("text", "rate"),
    [
        ("1000", 1000),
        ("10M", 10_000_000),
        ("10MB/s", 10_000_000),
        ("1.5MiB/s", 3 << 19),
        ("80Mbit/s", 10_000_000),
        ("80 Mbit", 10_000_000),
        ("80Mbps", 10_000_000),
        ("1Kibit/s", 128),
    ],
)
def test_rates(text: str, rate: int) -> None:
    assert parse_rate(text) == rate


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 90.0), ("0", 0.0), ("0.5", 0.5), ("300ms", 0.3), ("1h", 3600.0), ("1h30m", 5400.0), ("10d", 864_000.0)],
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "-1", "1e3", "many", "5 XB", "5ib", "9" * 16, "1T1", "٣", "nan", "1Mb"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(Usage):
        parse_size(text)


@pytest.mark.parametrize("text", ["", "0", "0.5", "7bit/s", "80Mb/s", "-5M", "fast", "10MB/h", "1bps/s"])
def test_what_is_no_rate(text: str) -> None:
    with pytest.raises(Usage):
        parse_rate(text)


@pytest.mark.parametrize("text", ["", " ", "-1s", "1y", "h", "1h30", "1 hour", "1e9", "inf"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(Usage):
        parse_duration(text)
