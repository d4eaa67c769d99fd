"""Names are BLAKE3, the same on every machine."""

import pytest

from chunkstore.digest import ID_BYTES, Buffer, chunk_id, layer_id


def test_names_are_plain_blake3() -> None:
    # First test vector of the BLAKE3 reference: the empty input.
    assert chunk_id(b"").hex() == "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262"
    assert chunk_id(b"abc").hex() == "6437b3ac38465133ffb63b75273a8db548c558465d79db03fd359c6cd5bd9d85"
    assert len(chunk_id(b"x")) == ID_BYTES


def test_a_layer_is_named_like_a_chunk() -> None:
    assert bytes(layer_id(b"manifest")) == chunk_id(b"manifest")


@pytest.mark.parametrize("data", [b"some bytes", bytearray(b"some bytes"), memoryview(b"some bytes")])
def test_any_buffer_gives_the_same_name(data: Buffer) -> None:
    assert chunk_id(data) == chunk_id(b"some bytes")


def test_a_key_makes_other_names() -> None:
    one, other = bytes(32), bytes([1]) * 32
    names = {chunk_id(b"x"), chunk_id(b"x", one), chunk_id(b"x", other)}
    assert len(names) == 3
    assert bytes(layer_id(b"x", one)) == chunk_id(b"x", one)


def test_a_key_of_the_wrong_size_is_refused() -> None:
    with pytest.raises(ValueError, match="key"):
        chunk_id(b"x", b"short")
