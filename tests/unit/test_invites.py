"""Tokens as text: they come back, and a damaged one is told from a refused one."""

from pathlib import Path

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gossip.messages import NodeId
from p2player.addresses import Address
from p2player.net.invites import Contact, Token, TokenError, read_token
from tests.support.meshes import Mesh


@pytest.fixture
def mesh(tmp_path: Path) -> Mesh:
    return Mesh(tmp_path, "coast")


def token(mesh: Mesh) -> Token:
    contacts = (
        Contact(NodeId("ab" * 16), Address("10.0.0.1", 7420)),
        Contact(NodeId("cd" * 16), Address("::1", 7421)),
    )
    return Token("coast", mesh.mesh_id, mesh.root, contacts, b"i" * 16, b"s" * 32, 1_800_003_600)


def test_tokens_come_back(mesh: Mesh) -> None:
    text = str(token(mesh))
    assert text.startswith("p2p1_")
    assert len(text) < 1000
    assert read_token(text) == token(mesh)
    assert read_token(f"  {text[:100]}\n{text[100:]}\n") == token(mesh)


def test_the_secret_is_not_shown_by_accident(mesh: Mesh) -> None:
    assert "ssss" not in repr(token(mesh))


def test_every_mistyped_character_is_noticed(mesh: Mesh) -> None:
    text = str(token(mesh))
    for at in range(5, len(text)):
        other = "A" if text[at] != "A" else "B"
        with pytest.raises(TokenError, match="damaged"):
            read_token(text[:at] + other + text[at + 1 :])


def test_every_missing_end_is_noticed(mesh: Mesh) -> None:
    text = str(token(mesh))
    for length in range(5, len(text)):
        with pytest.raises(TokenError, match="damaged"):
            read_token(text[:length])


@pytest.mark.parametrize("text", ["", "hello", "p2p2_AAAA", "p2p1", "P2P1_AAAA", "x" * 9000])
def test_what_is_no_token(text: str) -> None:
    with pytest.raises(TokenError, match="not a p2player token"):
        read_token(text)


@pytest.mark.parametrize("text", ["p2p1_", "p2p1_AAA=", "p2p1_äöü", "p2p1_A", "p2p1_AAAAAAAA"])
def test_what_is_a_damaged_token(text: str) -> None:
    with pytest.raises(TokenError, match="damaged"):
        read_token(text)


@pytest.mark.parametrize(
    "change",
    [
        {"root": b"no certificate"},
        {"root": "text"},
        {"at": []},
        {"at": [[b"\xab" * 16, "host", 7420]] * 9},
        {"at": [[b"\xab" * 15, "host", 7420]]},
        {"at": [[b"\xab" * 16, "a host", 7420]]},
        {"at": [[b"\xab" * 16, "host", 70000]]},
        {"at": [[b"\xab" * 16, "host"]]},
        {"invite": b"i" * 15},
        {"secret": b""},
        {"until": -1},
        {"until": True},
        {"until": 1.5},
    ],
)
def test_tokens_that_something_else_made_are_refused(
    mesh: Mesh, monkeypatch: pytest.MonkeyPatch, change: dict[str, object]
) -> None:
    pack = msgpack.packb
    monkeypatch.setattr(msgpack, "packb", lambda fields, **options: pack({**fields, **change}, **options))
    text = str(token(mesh))
    monkeypatch.undo()
    with pytest.raises(TokenError, match="malformed"):
        read_token(text)


@given(st.text(max_size=100))
def test_random_text_is_no_token(text: str) -> None:
    for candidate in (text, "p2p1_" + text):
        with pytest.raises(TokenError):
            read_token(candidate)
