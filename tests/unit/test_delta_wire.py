"""The bodies of requests for deltas: what goes in comes out, and nothing else is taken."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chunkstore.delta.kinship import Unit
from chunkstore.digest import LayerId
from p2player.proto import delta_wire as wire
from p2player.proto.content_wire import MAX_WANT_IDS
from p2player.proto.delta_wire import DeltaAsk, pack_units, read_units
from p2player.proto.frames import RemoteProtocolError

NEW, OLD = LayerId(b"n" * 32), LayerId(b"o" * 32)


def disjoint(several: list[Unit]) -> list[Unit]:
    """The same units, without what an earlier one wants already."""
    taken: set[int] = set()
    kept: list[Unit] = []
    for unit in several:
        wants = tuple(at for at in unit.wants if at not in taken)
        taken.update(wants)
        kept += [Unit(wants, unit.relative)] if wants else []
    return kept


positions = st.lists(st.integers(0, 1 << 20), unique=True, max_size=40).map(tuple)
units = st.builds(Unit, positions.filter(bool), positions)


@given(st.lists(units, min_size=1, max_size=20).map(disjoint))
def test_units_come_back_as_they_were(several: list[Unit]) -> None:
    assert read_units(pack_units(several)) == several


def test_neighbours_cost_little() -> None:
    unit = Unit(tuple(range(1000, 2000)), tuple(range(500, 1700)))
    assert len(pack_units([unit])) <= 16


@given(st.binary(max_size=60))
def test_any_bytes_are_units_or_are_refused(data: bytes) -> None:
    try:
        several = read_units(data)
    except RemoteProtocolError:
        return
    assert all(unit.wants for unit in several)
    assert sum(len(unit.wants) for unit in several) <= MAX_WANT_IDS


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x00\x00",  # wants nothing
        b"\x01\x00\x01",  # no relative's list
        b"\x01\x01\x01\x00",  # before the first
        b"\x02\x00\x03\x00",  # a run longer than the list
        b"\x02\x00\x00\x00",  # an empty run
        b"\xff",
        b"\xff" * 9 + b"\x01",
        b"\x81\x20\x00\x81\x20\x00",  # more than a unit may want
        pack_units([Unit((1, 1), ())]),
        pack_units([Unit((1,), (2, 3, 2))]),
        pack_units([Unit((1,), ()), Unit((2, 1), ())]),
    ],
)
def test_bad_units(data: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        read_units(data)


def test_too_many_units() -> None:
    with pytest.raises(RemoteProtocolError):
        read_units(pack_units([Unit((1,), ())]) * (wire.MAX_UNITS + 1))


def test_few_bytes_do_not_become_millions_of_positions() -> None:
    run = tuple(range(wire.MAX_UNIT_CHUNKS))
    fit = wire.MAX_RELATIVES // len(run)
    several = [Unit((number,), run) for number in range(fit + 1)]
    assert len(pack_units(several)) < 200
    assert read_units(pack_units(several[:fit])) == several[:fit]
    assert wire.may_be_asked(several[:fit])
    with pytest.raises(RemoteProtocolError, match="too many"):
        read_units(pack_units(several))
    assert not wire.may_be_asked(several)


def some_ask() -> DeltaAsk:
    return DeltaAsk("", NEW, OLD, [Unit((3, 4), (1, 2)), Unit((9,), ())], [b"signature", b""])


def test_an_ask_comes_back() -> None:
    ask = some_ask()
    assert DeltaAsk.read(ask.body(), ask.payload) == ask


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("scope", 3),
        ("scope", "x" * 129),
        ("layer", b"short"),
        ("basis", None),
        ("units", b""),
        ("units", 4),
        ("signed", b""),
        ("signed", b"\0\0\0\1\0\0\0\1"),
    ],
)
def test_bad_asks(key: str, value: object) -> None:
    ask = some_ask()
    with pytest.raises(RemoteProtocolError):
        DeltaAsk.read({**ask.body(), key: value}, ask.payload)


def test_a_patch_is_of_a_unit_that_was_asked_for() -> None:
    assert wire.read_patch_header(wire.patch_header(1), 2) == 1
    assert wire.read_patch_header({"ids": b"", "lengths": b"", "codec": 0}, 2) is None
    for unit in (-1, 2, "1", 1.0, True):
        with pytest.raises(RemoteProtocolError):
            wire.read_patch_header({"unit": unit}, 2)


def test_manifests() -> None:
    assert wire.read_manifest_ask(wire.manifest_ask("", NEW, [OLD])) == ("", NEW, [OLD])
    assert wire.read_manifest_reply(wire.manifest_reply(OLD), [OLD]) == OLD
    assert wire.read_manifest_reply(wire.manifest_reply(None), [OLD]) is None
    with pytest.raises(RemoteProtocolError):
        wire.read_manifest_reply(wire.manifest_reply(NEW), [OLD])
    with pytest.raises(RemoteProtocolError):
        wire.read_manifest_ask({"scope": "", "layer": NEW, "bases": b"x" * 33})
    with pytest.raises(RemoteProtocolError):
        wire.read_manifest_ask({"scope": "", "layer": NEW, "bases": OLD * 5})
