"""The vault of one migration: unreadable without its key, whole or absent after a crash, gone after a wipe."""

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from chunkstore.codec import pack
from chunkstore.digest import ChunkId, chunk_id
from chunkstore.errors import StoreBusy, StoreClosed, StoreDamaged
from chunkstore.vault import Vault
from tests.support.content import (
    Chunk,
    add_each,
    crash_copy,
    flip,
    ids_of,
    make_chunks,
    noise_chunks,
    read_all,
    serve_all,
)

KEY = bytes(range(32))
CHUNKS = make_chunks(1, 12, 300, key=KEY)


@pytest.fixture
def vault(tmp_path: Path) -> Iterator[Vault]:
    with Vault.create(tmp_path / "vault", KEY, reserve_bytes=0) as made:
        yield made


def reopened(folder: Path) -> Vault:
    return Vault.open(folder, reserve_bytes=0)


def contents(folder: Path) -> dict[ChunkId, bytes]:
    """What can be read in a vault, each chunk checked."""
    with reopened(folder) as vault:
        found = read_all(vault, ids_of(CHUNKS))
        assert serve_all(vault, ids_of(CHUNKS)) == found
        assert vault.missing(ids_of(CHUNKS)) == set(ids_of(CHUNKS)) - found.keys()
    assert all(chunk_id(data, KEY) == name for name, data in found.items())
    return found


def test_a_key_is_made_or_given(tmp_path: Path) -> None:
    with Vault.create(tmp_path / "a", reserve_bytes=0) as one, Vault.create(tmp_path / "b", reserve_bytes=0) as other:
        assert len(one.key) == 32
        assert one.key != other.key
        key = one.key
    with Vault.create(tmp_path / "c", key, reserve_bytes=0) as third:
        assert third.key == key
    with pytest.raises(ValueError, match="32"):
        Vault.create(tmp_path / "d", b"short")


def test_files_are_private_and_the_key_is_in_its_own(vault: Vault, tmp_path: Path) -> None:
    vault.add([pack(CHUNKS)])
    vault.commit()
    folder = tmp_path / "vault"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {
        "key": 0o600,
        "sealed": 0o600,
    }
    assert (folder / "key").read_bytes() == KEY
    assert KEY not in (folder / "sealed").read_bytes()


def test_the_file_tells_nothing(vault: Vault, tmp_path: Path) -> None:
    secret = b"the user's password is swordfish"
    name = chunk_id(secret, KEY)
    vault.add([pack([(name, secret), *noise_chunks(1, 1, 40, key=KEY)])])
    sealed = (tmp_path / "vault" / "sealed").read_bytes()
    assert secret not in sealed
    assert bytes(name) not in sealed
    assert bytes(chunk_id(secret)) not in sealed
    assert read_all(vault, [name]) == {name: secret}


def test_two_ends_with_one_key_never_seal_alike(tmp_path: Path) -> None:
    files = []
    for end in ("source", "destination"):
        with Vault.create(tmp_path / end, KEY, reserve_bytes=0) as vault:
            vault.add([pack(CHUNKS)])
        files.append((tmp_path / end / "sealed").read_bytes())
    windows = [{data[at : at + 16] for at in range(len(data) - 16)} for data in files]
    assert not windows[0] & windows[1]


def test_another_key_opens_nothing(vault: Vault, tmp_path: Path) -> None:
    vault.add([pack(CHUNKS)])
    vault.close()
    (tmp_path / "vault" / "key").write_bytes(bytes(32))
    copy = crash_copy(tmp_path / "vault", tmp_path / "copy")
    with reopened(copy) as other:
        assert other.missing(ids_of(CHUNKS)) == set(ids_of(CHUNKS))


def test_a_tail_torn_anywhere_is_ignored(vault: Vault, tmp_path: Path) -> None:
    add_each(vault, CHUNKS[:8], 4)
    vault.commit()
    committed = vault.stored_bytes
    vault.add([pack(CHUNKS[8:])])
    whole = vault.stored_bytes
    for size in [*range(committed, whole, 37), whole - 1]:
        copy = crash_copy(tmp_path / "vault", tmp_path / f"torn{size}")
        os.truncate(copy / "sealed", size)
        assert contents(copy) == dict(CHUNKS[:8])
        assert (copy / "sealed").stat().st_size == committed
        with reopened(copy) as again:
            again.add([pack(CHUNKS)])
        assert contents(copy) == dict(CHUNKS)


def test_a_flip_anywhere_never_gives_wrong_bytes(vault: Vault, tmp_path: Path) -> None:
    add_each(vault, CHUNKS, 4)
    vault.commit()
    sealed = tmp_path / "vault" / "sealed"
    groups = [dict(CHUNKS[first : first + 4]) for first in range(0, 12, 4)]
    for offset in range(16, sealed.stat().st_size, 23):
        flip(sealed, offset)
        copy = crash_copy(tmp_path / "vault", tmp_path / f"flip{offset}")
        found = contents(copy)
        flip(sealed, offset)
        lost = [group for group in groups if not group.keys() <= found.keys()]
        assert len(lost) <= 1, "damage costs one group and nothing after it"
        assert all(not group.keys() & found.keys() for group in lost)


def test_records_cannot_be_moved(vault: Vault, tmp_path: Path) -> None:
    vault.add([pack(CHUNKS[:6])])
    first = vault.stored_bytes
    vault.add([pack(CHUNKS[6:])])
    vault.close()
    sealed = tmp_path / "vault" / "sealed"
    data = sealed.read_bytes()
    sealed.write_bytes(data[:16] + data[first:] + data[16:first])
    assert contents(tmp_path / "vault") == {}


def test_unmarked_payloads_are_verified_when_opened(vault: Vault, tmp_path: Path) -> None:
    vault.add([pack(CHUNKS[:4])])
    vault.commit()
    vault.add([pack(CHUNKS[4:8])])
    end = vault.stored_bytes
    vault.add([pack(CHUNKS[8:])])
    copy = crash_copy(tmp_path / "vault", tmp_path / "cut")
    with (copy / "sealed").open("r+b") as file:  # a power cut kept the table but not all of the payload
        file.seek(end - 100)
        file.write(bytes(100))
    with reopened(copy) as again:
        assert again.missing(ids_of(CHUNKS)) == set(ids_of(CHUNKS[4:8])), "it is known before anybody reads"
    assert contents(copy) == dict(CHUNKS[:4] + CHUNKS[8:])


def test_what_a_read_found_damaged_is_replaced(vault: Vault, tmp_path: Path) -> None:
    add_each(vault, CHUNKS, 6)
    flip(tmp_path / "vault" / "sealed", vault.stored_bytes - 5)
    assert vault.missing(ids_of(CHUNKS)) == set()
    assert read_all(vault, ids_of(CHUNKS)) == dict(CHUNKS[:6])
    assert vault.missing(ids_of(CHUNKS)) == set(ids_of(CHUNKS[6:]))
    assert vault.add([pack(CHUNKS[6:])]) == 6 * 300
    assert read_all(vault, ids_of(CHUNKS)) == dict(CHUNKS)
    vault.close()
    assert contents(tmp_path / "vault") == dict(CHUNKS)


def test_commits_mark_once(vault: Vault) -> None:
    vault.commit()
    empty = vault.stored_bytes
    vault.add([pack(CHUNKS)])
    vault.commit()
    marked = vault.stored_bytes
    vault.commit()
    assert vault.stored_bytes == marked > empty == 16


def test_after_a_failed_sync_nothing_is_added(vault: Vault, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(fd: int) -> None:
        raise OSError(errno.EIO, "input/output error")

    vault.add([pack(CHUNKS[:4])])
    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", fail)
        with pytest.raises(OSError, match="input/output"):
            vault.commit()
    with pytest.raises(StoreDamaged):
        vault.add([pack(CHUNKS[4:])])


def test_a_full_disk_leaves_no_trace(vault: Vault, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def half(fd: int, buffers: list[bytes], offset: int) -> int:
        os.pwrite(fd, buffers[0], offset)
        raise OSError(errno.ENOSPC, "no space")

    vault.add([pack(CHUNKS[:4])])
    size = vault.stored_bytes
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwritev", half)
        with pytest.raises(Exception, match="no room"):
            vault.add([pack(CHUNKS[4:])])
    assert (tmp_path / "vault" / "sealed").stat().st_size == vault.stored_bytes == size
    vault.add([pack(CHUNKS[4:])])
    assert read_all(vault, ids_of(CHUNKS)) == dict(CHUNKS)


# -- creating and wiping


def test_a_vault_is_made_once(vault: Vault, tmp_path: Path) -> None:
    with pytest.raises(StoreBusy):
        Vault.create(tmp_path / "vault")
    vault.add([pack(CHUNKS)])
    vault.close()
    assert contents(tmp_path / "vault") == dict(CHUNKS)


def test_there_is_no_vault_without_its_key(vault: Vault, tmp_path: Path) -> None:
    with pytest.raises(StoreDamaged):
        Vault.open(tmp_path / "nothing")
    vault.close()
    (tmp_path / "vault" / "key").write_bytes(b"short")
    with pytest.raises(StoreDamaged):
        Vault.open(tmp_path / "vault")
    (tmp_path / "vault" / "key").unlink()
    with pytest.raises(StoreDamaged):
        Vault.open(tmp_path / "vault")
    Vault.create(tmp_path / "vault", reserve_bytes=0).close()  # what was never finished is made anew


def test_a_file_without_salt_is_damaged(vault: Vault, tmp_path: Path) -> None:
    vault.close()
    os.truncate(tmp_path / "vault" / "sealed", 15)
    with pytest.raises(StoreDamaged):
        Vault.open(tmp_path / "vault")


def test_a_wiped_vault_is_gone(vault: Vault, tmp_path: Path) -> None:
    vault.add([pack(CHUNKS)])
    vault.wipe()
    assert not (tmp_path / "vault").exists()
    for use in (
        lambda: vault.key,
        lambda: vault.missing(ids_of(CHUNKS)),
        lambda: vault.add([pack(CHUNKS)]),
        lambda: list(vault.read(ids_of(CHUNKS))),
        lambda: list(vault.groups(ids_of(CHUNKS))),
        vault.commit,
    ):
        with pytest.raises(StoreClosed):
            use()
    vault.wipe()
    Vault.destroy(tmp_path / "vault")


def test_the_key_goes_first(vault: Vault, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vault.add([pack(CHUNKS)])
    vault.commit()
    vault.close()
    steps: list[tuple[bytes | None, bool]] = []
    fsync = os.fsync

    def watched(fd: int) -> None:
        fsync(fd)
        key = tmp_path / "vault" / "key"
        steps.append((key.read_bytes() if key.exists() else None, (tmp_path / "vault" / "sealed").exists()))

    monkeypatch.setattr(os, "fsync", watched)
    Vault.destroy(tmp_path / "vault")
    overwritten, removed = steps
    assert overwritten[0] is not None
    assert overwritten[0] != KEY
    assert overwritten[1]
    assert removed == (None, True), "content is touched only once the key is durably gone"


def test_wiping_spares_what_is_not_the_vaults(vault: Vault, tmp_path: Path) -> None:
    (tmp_path / "vault" / "journal").write_text("x")
    vault.wipe()
    assert [path.name for path in (tmp_path / "vault").iterdir()] == ["journal"]


def test_many_groups_of_pages(vault: Vault) -> None:
    pages: list[Chunk] = noise_chunks(5, 12, 256 << 10, key=KEY)
    add_each(vault, pages, 4)
    for page in pages:
        assert read_all(vault, [page[0]]) == dict([page])
