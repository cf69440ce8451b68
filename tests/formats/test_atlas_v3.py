"""Version 3: secrets, and every way to tamper with what they protect."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("cryptography")

from strategies import Item, contents

from atlas_kit.errors import (
    AtlasError,
    AuthenticationError,
    ChecksumMismatchError,
    FileCorruptError,
    InvalidParamError,
    KeyRequiredError,
    MagicMismatchError,
    MissingExtraError,
    TruncatedError,
    VersionMismatchError,
    WrongKeyError,
)
from atlas_kit.formats.atlas import MemoryFile, checksums, crypto, layout, tables, v2

KEY = bytes(range(32))
WORDS = "correct horse"
SECRETS = ("diary/2026", "Nobody else should read this.", "settings/private")


@pytest.fixture(autouse=True)
def quick_scrypt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "SCRYPT_LOG2_N", 4)


def write(path: Path, **secret: Any) -> bytes:
    memory = MemoryFile(version=3, **secret)
    memory[SECRETS[0]] = SECRETS[1]
    memory.set(SECRETS[2], {"colour": "heliotrope"}, codec="lz4")
    memory["state/keys"] = np.arange(50, dtype=np.float32)
    memory.save(path)
    return path.read_bytes()


def load(raw: bytes | Path, **secret: Any) -> list[tuple[str, int, int, bytes]]:
    memory = MemoryFile.load(raw, **(secret or {"key": KEY}))
    for e in memory.values():
        assert memory[e.key] == e
    return [(e.key, e.type, e.timestamp, e.data) for e in memory.values()]


@pytest.fixture
def raw(tmp_path: Path) -> bytes:
    return write(tmp_path / "f.atlas", key=KEY)


# --- with the right secret -------------------------------------------------------------------------------


@given(
    what=contents(), secret=st.sampled_from([{"key": KEY}, {"passphrase": WORDS}, {"passphrase": b"\xff"}])
)
def test_round_trip(
    tmp_path_factory: pytest.TempPathFactory, what: dict[str, Item], secret: dict[str, Any]
) -> None:
    path = tmp_path_factory.getbasetemp() / "v3.atlas"
    memory = MemoryFile(version=3, **secret)
    for key, item in what.items():
        item.put(memory, key)
    memory.save(path)
    again = MemoryFile.load(path, **secret)
    assert list(again) == list(what)
    for key, item in what.items():
        e = again[key]
        assert (e.data, e.type, e.flags, e.timestamp) == (item.data, item.type, item.flags, item.timestamp)
        if isinstance(item.value, np.ndarray):
            assert e.array().tobytes() == item.data
            assert not e.array().flags.writeable


def test_nothing_shows(tmp_path: Path) -> None:
    """Keys, payloads and types are nowhere in the file; two equal saves share no sealed bytes."""
    one = write(tmp_path / "1", passphrase=WORDS)
    for secret in (*SECRETS, "heliotrope", "colour", WORDS, "diary", "state/keys"):
        assert secret.encode() not in one
    assert np.arange(50, dtype=np.float32).tobytes()[:64] not in one
    memory = MemoryFile.open(tmp_path / "1", passphrase=WORDS)
    memory["new secret key"] = "new secret value"
    del memory[SECRETS[0]]
    memory.commit()
    raw = (tmp_path / "1").read_bytes()
    for secret in (*SECRETS, "new secret"):
        assert secret.encode() not in raw
    two = write(tmp_path / "2", passphrase=WORDS)
    sealed = [
        raw[at + 121 + layout.SEAL.size : at + size - 7]
        for raw in (one, two)
        for at, size in records(raw, passphrase=WORDS)
    ]
    pieces = [part[i : i + 8] for part in sealed for i in range(0, len(part) - 7)]
    assert len(set(pieces)) == len(pieces)


def test_nonces_never_repeat(tmp_path: Path) -> None:
    path = tmp_path / "f"
    write(path, key=KEY)
    seen: list[bytes] = []
    for n in range(5):
        memory = MemoryFile.open(path, key=KEY)
        for e in memory.store.entries():  # type: ignore[union-attr]
            at = e.offset + struct.unpack_from("<I", path.read_bytes(), e.offset + 84)[0]  # type: ignore[operator]
            seen += layout.SEAL.unpack_from(path.read_bytes(), at)[6:]
        memory["k"] = str(n)
        memory.save()
    assert len(set(seen)) == len(seen) > 20


def test_the_key_derivation_is_the_specifications(tmp_path: Path) -> None:
    """scrypt and HKDF again, by hand."""
    import hmac

    raw = write(tmp_path / "f", passphrase=WORDS)
    kdf, log2_n, r, p, cipher, salt, check = struct.unpack_from("<4BI16s16s", raw, 152)
    assert (kdf, r, p, cipher) == (1, 8, 1, 1)
    master = hashlib.scrypt(WORDS.encode(), salt=salt, n=1 << log2_n, r=r, p=p, dklen=32)

    def derived(info: bytes) -> bytes:
        return hmac.digest(hmac.digest(salt, master, "sha256"), info + b"\1", "sha256")

    assert derived(b"atlas3 check")[:16] == check
    assert hmac.digest(derived(b"atlas3 header"), raw[:216], "sha256") == raw[216:248]


def test_one_can_get_in_with_either_spelling(tmp_path: Path) -> None:
    write(tmp_path / "f", passphrase="pässwörd")
    assert load(tmp_path / "f", passphrase="pässwörd".encode())


def test_the_writers_cost_is_not_a_toy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    assert (tables.SCRYPT_LOG2_N, tables.SCRYPT_R, tables.SCRYPT_P) == (15, 8, 1)


def test_lists_without_decrypting_payloads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "f", key=KEY)
    opened: list[int] = []
    open_ = crypto.Cipher.open

    def counted(self: crypto.Cipher, nonce: bytes, sealed: bytes, aad: bytes) -> bytes:
        opened.append(len(sealed))
        return open_(self, nonce, sealed, aad)

    monkeypatch.setattr(crypto.Cipher, "open", counted)
    memory = MemoryFile.open(tmp_path / "f", key=KEY)
    assert [(e.key, e.size) for e in memory.values()][2] == ("state/keys", 200)
    assert len(opened) == 3


# --- with the wrong one ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("made_with", "opened_with", "kind", "words"),
    [
        ({"key": KEY}, {}, KeyRequiredError, "encrypted with a key file"),
        ({"passphrase": WORDS}, {}, KeyRequiredError, "encrypted with a passphrase"),
        ({"key": KEY}, {"key": bytes(32)}, WrongKeyError, "the key is not the one"),
        ({"passphrase": WORDS}, {"passphrase": "other"}, WrongKeyError, "the passphrase is not the one"),
        ({"key": KEY}, {"passphrase": WORDS}, WrongKeyError, "with a key file, and a passphrase was given"),
        ({"passphrase": WORDS}, {"key": KEY}, WrongKeyError, "with a passphrase, and a key file was given"),
        ({"key": KEY}, {"key": b"short"}, InvalidParamError, "32 bytes"),
        ({"key": KEY}, {"key": KEY, "passphrase": WORDS}, InvalidParamError, "both"),
        ({"key": KEY}, {"passphrase": ""}, InvalidParamError, "empty"),
    ],
)
def test_wrong_secrets(
    tmp_path: Path, made_with: dict[str, Any], opened_with: dict[str, Any], kind: type[AtlasError], words: str
) -> None:
    write(tmp_path / "f", **made_with)
    with pytest.raises(kind, match=words) as caught:
        MemoryFile.open(tmp_path / "f", **opened_with)
    assert type(caught.value) is kind
    assert kind is InvalidParamError or caught.value.path == str(tmp_path / "f")


def test_writing_without_a_secret(tmp_path: Path) -> None:
    for memory in (MemoryFile(version=3), MemoryFile()):
        with pytest.raises(KeyRequiredError):
            memory.save(tmp_path / "f", version=3)
    assert list(tmp_path.iterdir()) == []


def test_without_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    raw = write(tmp_path / "f", key=KEY)
    for name in [name for name in sys.modules if name.split(".")[0] == "cryptography"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "cryptography", None)
    with pytest.raises(MissingExtraError, match=r"atlas-kit\[encryption\]"):
        MemoryFile.open(raw, key=KEY)
    with pytest.raises(MissingExtraError):
        MemoryFile(version=3, key=KEY).save(tmp_path / "g")
    assert not (tmp_path / "g").exists()


# --- tampering -------------------------------------------------------------------------------------------


def sealed_again(raw: bytes, **changes: Any) -> bytes:
    """What an attacker without the key can do to the header: change it and fix the plain checksums."""
    header = v2.parse_header(raw)._replace(**changes)
    body = layout.HEADER_V3.pack(*header[:16], *header.crypto, 0)
    body = body[:8] + struct.pack("<I", checksums.fnv1a(body[12:104])) + body[12:]
    return body[:-8] + struct.pack("<Q", checksums.xxh3(body[:-8])) + raw[256:]


@pytest.mark.parametrize(
    "changes",
    [
        {"created_time": 0},
        {"modified_time": 1},
        {"entry_total": 2},
        {"total_size": 0},
        {"model_hash": b"x" * 32},
        {"reserved": b"x" * 32},
        {"generation": 9},
        {"file_flags": 1},
        {"file_id": 5},
        {"index_offset": 256},
        {"committed_size": 600},
        {"entry_count": 77},
    ],
    ids=lambda c: next(iter(c)),
)
def test_every_header_field_is_authenticated(raw: bytes, changes: dict[str, Any]) -> None:
    assert load(sealed_again(raw)) == load(raw)
    with pytest.raises(AuthenticationError, match="header was altered"):
        load(sealed_again(raw, **changes))


@pytest.mark.parametrize("field", range(7))
def test_every_crypto_field_is_authenticated(raw: bytes, field: int) -> None:
    crypto_fields = list(v2.parse_header(raw).crypto)
    value = crypto_fields[field]
    crypto_fields[field] = value + 1 if isinstance(value, int) else bytes(len(value))
    with pytest.raises((AuthenticationError, WrongKeyError, VersionMismatchError)):
        load(sealed_again(raw, crypto=tuple(crypto_fields)))


@pytest.mark.parametrize(
    ("log2_n", "r", "p"),
    [(63, 8, 1), (31, 1, 1), (30, 255, 255), (20, 16, 1), (15, 255, 255), (0, 8, 1), (15, 0, 1)],
)
def test_scrypt_bombs_are_refused(
    tmp_path: Path, log2_n: int, r: int, p: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = write(tmp_path / "f", passphrase=WORDS)
    fields = v2.parse_header(raw).crypto
    bomb = sealed_again(raw, crypto=(1, log2_n, r, p, *fields[4:]))
    monkeypatch.setattr(hashlib, "scrypt", lambda *_, **__: pytest.fail("it was tried"))
    with pytest.raises(FileCorruptError, match="out of bounds") as caught:
        load(bomb, passphrase=WORDS)
    assert "wrong" not in str(caught.value)


def test_unknown_kdf_and_cipher(tmp_path: Path, raw: bytes) -> None:
    fields = v2.parse_header(raw).crypto
    with pytest.raises(VersionMismatchError, match="key derivation"):
        load(sealed_again(raw, crypto=(7, *fields[1:])))


def records(raw: bytes, **secret: Any) -> list[tuple[int, int]]:
    """(offset, size) of each record, in file order."""
    memory = MemoryFile.open(raw, **(secret or {"key": KEY}))
    return sorted((row.offset, row.size) for row in memory.store.rows())  # type: ignore[union-attr]


def test_swapped_entries(tmp_path: Path) -> None:
    memory = MemoryFile(version=3, key=KEY)
    for key in "abc":
        memory[key] = key * 10
    memory.save(tmp_path / "f")
    raw = (tmp_path / "f").read_bytes()
    (a, size), (b, _), _ = records(raw)
    swapped = raw[:a] + raw[b : b + size] + raw[a : a + size] + raw[b + size :]
    with pytest.raises(AuthenticationError, match="swapped"):
        load(swapped)


def test_a_replayed_older_record(tmp_path: Path) -> None:
    path = tmp_path / "f"
    memory = MemoryFile(version=3, key=KEY)
    memory["k"] = "old"
    memory.save(path)
    ((at, size),) = records(path.read_bytes())
    memory["k"] = "new"
    memory.commit()
    raw = path.read_bytes()
    ((new, new_size),) = records(raw)
    assert (new_size, load(raw)[0][3]) == (size, b"new")
    replayed = raw[:new] + raw[at : at + size] + raw[new + size :]
    with pytest.raises(AuthenticationError):
        load(replayed)


def test_a_record_of_another_file_with_the_same_key(tmp_path: Path) -> None:
    for name in ("1", "2"):
        memory = MemoryFile(version=3, key=KEY, created=5)
        memory.set("k", f"of file {name}", timestamp=5)
        memory.save(tmp_path / name)
    one, two = ((tmp_path / name).read_bytes() for name in ("1", "2"))
    ((at, size),) = records(one)
    with pytest.raises((AuthenticationError, ChecksumMismatchError)):
        load(one[:at] + two[at : at + size] + one[at + size :])


def test_an_older_index(tmp_path: Path) -> None:
    path = tmp_path / "f"
    write(path, key=KEY)
    before = path.read_bytes()
    memory = MemoryFile.open(path, key=KEY)
    memory[SECRETS[0]] = "changed"
    memory.commit()
    raw = path.read_bytes()
    old = v2.parse_header(before).index_offset
    with pytest.raises(AuthenticationError):
        load(sealed_again(raw, index_offset=old))


def test_a_plain_entry_smuggled_in(tmp_path: Path, raw: bytes) -> None:
    """A record without the attribute "encrypted", checksums right, in the place of a sealed one."""
    at, _ = records(raw)[0]
    head = bytearray(raw[at : at + 128])
    head[88:92] = bytes(4)
    payload_offset = struct.unpack_from("<I", head, 84)[0]
    head[8:16] = struct.pack("<Q", checksums.xxh3(bytes(head[16:payload_offset])))
    with pytest.raises(AuthenticationError):
        load(raw[:at] + bytes(head) + raw[at + 128 :])


def test_every_cut_is_noticed(raw: bytes) -> None:
    for size in range(0, len(raw)):
        with pytest.raises((TruncatedError, MagicMismatchError)):
            load(raw[:size])


@pytest.mark.slow
def test_every_flipped_bit_is_noticed(tmp_path: Path) -> None:
    raw = write(tmp_path / "f", key=KEY)
    want = load(raw)
    padding = 0
    for place in range(len(raw)):
        for bit in (0, 5):
            flipped = bytearray(raw)
            flipped[place] ^= 1 << bit
            try:
                got = load(bytes(flipped))
            except AtlasError:
                continue
            assert got == want
            padding += 1
    assert padding <= 2 * 8 * 4  # only the zeros between records


def fix_checksums(raw: bytearray) -> bytes:
    """Make all plain checksums fit again, as an attacker would."""
    header = v2.parse_header(sealed_again(bytes(raw)))
    for start in (i for i in range(256, len(raw) - 120, 8) if raw[i : i + 8] == tables.ENTRY_SYNC):
        fields = v2.Fields._make(layout.ENTRY.unpack_from(raw, start))
        end = start + fields.payload_offset
        if fields.payload_offset < 1000 and end + fields.stored_size <= len(raw):
            raw[start + 16 : start + 24] = struct.pack(
                "<Q", checksums.xxh3(bytes(raw[end : end + fields.stored_size]))
            )
            raw[start + 8 : start + 16] = struct.pack("<Q", checksums.xxh3(bytes(raw[start + 16 : end])))
    at = header.index_offset
    if at + 72 < len(raw):
        size = struct.unpack_from("<Q", raw, at + 16)[0]
        raw[at + 8 : at + 16] = struct.pack("<Q", checksums.xxh3(bytes(raw[at + 16 : at + size])))
    return sealed_again(bytes(raw))


def test_flips_with_all_checksums_made_right(tmp_path: Path) -> None:
    raw = write(tmp_path / "f", key=KEY)
    want = load(raw)
    assert load(fix_checksums(bytearray(raw))) == want
    kinds = set()
    for place in range(12, len(raw)):
        flipped = bytearray(raw)
        flipped[place] ^= 1 << place % 8
        try:
            got = load(fix_checksums(flipped))
        except AtlasError as error:
            kinds.add(type(error))
            continue
        assert got == want
    assert AuthenticationError in kinds


@pytest.mark.parametrize("change", [lambda m: m.set("k", b"v"), lambda m: m.remove(SECRETS[0])])
def test_a_commit_keeps_the_key(tmp_path: Path, change: Callable[[MemoryFile], Any]) -> None:
    path = tmp_path / "f"
    write(path, passphrase=WORDS)
    memory = MemoryFile.open(path, passphrase=WORDS)
    change(memory)
    memory.commit()
    assert MemoryFile.load(path, passphrase=WORDS).keys() == memory.keys()
    with pytest.raises(WrongKeyError):
        MemoryFile.open(path, passphrase="x")


def test_decrypting_and_encrypting(tmp_path: Path) -> None:
    write(tmp_path / "3", key=KEY)
    memory = MemoryFile.open(tmp_path / "3", key=KEY)
    memory.save(tmp_path / "2", version=2)
    assert MemoryFile.load(tmp_path / "2")["state/keys"].array().tolist() == list(range(50))
    assert SECRETS[0].encode() in (tmp_path / "2").read_bytes()
    memory = MemoryFile.open(tmp_path / "2", passphrase=WORDS)
    memory.save(tmp_path / "4", version=3)
    assert load(tmp_path / "4", passphrase=WORDS) == load(tmp_path / "3", key=KEY)


# --- what an outside review found -------------------------------------------------------------------------


def test_another_secret(tmp_path: Path) -> None:
    """Also by a commit, which must not append to records of the old one."""
    path = tmp_path / "m.atlas"
    write(path, passphrase=WORDS)
    before = load(path, passphrase=WORDS)
    for save in (MemoryFile.save, MemoryFile.commit):
        with MemoryFile.open(path, passphrase=WORDS) as memory:
            memory.encrypt_with(key=KEY)
            save(memory)
            memory["more"] = "of the new key"
            memory.commit()
        assert load(path, key=KEY)[:-1] == before
        with pytest.raises(WrongKeyError):
            MemoryFile.open(path, passphrase=WORDS)
        with MemoryFile.open(path, key=KEY) as memory:
            del memory["more"]
            memory.encrypt_with(passphrase=WORDS)
            memory.commit()
        assert load(path, passphrase=WORDS) == before


@pytest.mark.parametrize("version", [1, 2])
def test_a_plain_file_is_encrypted_with_the_next_save(tmp_path: Path, version: int) -> None:
    path = tmp_path / "m.atlas"
    plain = MemoryFile(version=version)
    plain[SECRETS[0]] = SECRETS[1]
    plain.save(path)
    with MemoryFile.open(path) as memory:
        memory.encrypt_with(key=KEY)
        assert memory.version == 3
        memory.commit()
    assert not any(text.encode() in path.read_bytes() for text in SECRETS)
    assert [key for key, *_ in load(path)] == [SECRETS[0]]
    with MemoryFile.open(path, key=KEY) as memory, pytest.raises(KeyRequiredError):
        memory.encrypt_with()


def test_an_unknown_cipher_is_refused(tmp_path: Path) -> None:
    memory = MemoryFile(version=3, key=KEY)
    memory["a"] = "1"
    path = tmp_path / "f"
    memory.save(path)
    store = memory.store
    raw = bytearray(path.read_bytes())
    raw[156:160] = (2).to_bytes(4, "little")
    raw[216:248] = store.cipher.header_tag(bytes(raw[:216]))  # type: ignore[union-attr]
    raw[248:256] = checksums.xxh3(bytes(raw[:248])).to_bytes(8, "little")
    with pytest.raises(VersionMismatchError, match="cipher 2"):
        MemoryFile.open(bytes(raw), key=KEY)


def test_the_outer_checksum_ties_the_payload_to_the_index(tmp_path: Path) -> None:
    """It is all by which the index knows which state of an entry is the present one."""
    memory = MemoryFile(version=3, key=KEY)
    memory["a"] = "1"
    path = tmp_path / "f"
    memory.save(path)
    raw = bytearray(path.read_bytes())
    at = memory["a"].offset
    assert at is not None
    raw[at + 16] ^= 1
    with pytest.raises(AtlasError):
        MemoryFile.open(bytes(raw), key=KEY)["a"].data  # noqa: B018


def test_a_passphrase_is_the_same_however_it_is_typed(tmp_path: Path) -> None:
    memory = MemoryFile(version=3, passphrase="caf\u00e9")
    memory["a"] = "1"
    memory.save(tmp_path / "f")
    for typed in ("cafe\u0301", "cafe\u0301".encode()):
        assert MemoryFile.open(tmp_path / "f", passphrase=typed)["a"].text == "1"


def test_commits_do_not_pile_up_old_indexes(tmp_path: Path) -> None:
    path = tmp_path / "f"
    memory = MemoryFile(version=3, key=KEY)
    for n in range(500):
        memory[f"key{n}"] = "x"
    memory.save(path)
    for n in range(100):
        memory["key1"] = str(n)
        memory.commit()
    assert memory.file_size < 5 * memory.store.live_size + (1 << 17)  # type: ignore[union-attr]
    assert MemoryFile.load(path, key=KEY)["key1"].text == "99"


def test_payloads_beyond_the_one_shot_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From 2 GiB on the cipher works as a stream; both ways give and take the same bytes."""
    cipher = crypto.Cipher.fresh(crypto.Secret(key=KEY))
    nonce, data = bytes(12), b"payload" * 100
    sealed = cipher.seal(nonce, data, b"aad")
    monkeypatch.setattr(crypto, "ONE_SHOT", 16)
    assert cipher.seal(nonce, data, b"aad") == sealed
    assert cipher.open(nonce, sealed, b"aad") == data
    with pytest.raises(AuthenticationError):
        cipher.open(nonce, sealed[:-1] + bytes([sealed[-1] ^ 1]), b"aad")
    memory = MemoryFile(version=3, key=KEY)
    memory["a"] = "text" * 100
    memory.save(tmp_path / "f")
    assert MemoryFile.load(tmp_path / "f", key=KEY)["a"].text == "text" * 100
