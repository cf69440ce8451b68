"""Version 3's keys and seals: scrypt or a key file, HKDF-SHA256, AES-256-GCM, HMAC-SHA256.

Follows "Version 3" of ``formats/atlas.md``. Knows nothing of files or entries.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import unicodedata
from dataclasses import dataclass
from typing import Any

from atlas_kit.errors import (
    AuthenticationError,
    FileCorruptError,
    InvalidParamError,
    KeyRequiredError,
    MissingExtraError,
    Remedy,
    VersionMismatchError,
    WrongKeyError,
)
from atlas_kit.formats.atlas import tables as t
from atlas_kit.storage.keys import passphrase_bytes

#: Above this, `AESGCM` (whose limit is 2^31 - 1) gives way to the streaming interface.
ONE_SHOT = (1 << 31) - 1024


@dataclass(frozen=True)
class Secret:
    """What the user has: a passphrase, or the 32 bytes of a key file."""

    passphrase: bytes | None = None
    key: bytes | None = None

    @classmethod
    def of(cls, passphrase: str | bytes | None = None, key: bytes | None = None) -> Secret | None:
        """Make a secret of what the caller gave; ``None`` when that was nothing."""
        if passphrase is None and key is None:
            return None
        if passphrase is not None and key is not None:
            raise InvalidParamError("both a passphrase and a key were given", hint="Give one of them.")
        if key is not None and not isinstance(key, (bytes, bytearray)):
            raise InvalidParamError(
                f"a key is bytes, and this one is of type {type(key).__name__}", remedy=Remedy("make-key")
            )
        if key is not None and len(key) != 32:
            raise InvalidParamError(
                f"a key has 32 bytes, and this one has {len(key)}",
                remedy=Remedy("make-key"),
            )
        if passphrase is not None:
            passphrase = _normalised(passphrase)
        if passphrase == b"":
            raise InvalidParamError("the passphrase is empty")
        return cls(passphrase, key)


def _normalised(passphrase: str | bytes) -> bytes:
    """Return the passphrase's bytes: the same for "é" typed as one character or as two."""
    text = passphrase_bytes(passphrase).decode("utf-8", "surrogateescape")
    return unicodedata.normalize("NFC", text).encode("utf-8", "surrogateescape")


@dataclass(frozen=True)
class KdfParams:
    """How the master secret comes from what the user has; stored in the header and in each entry."""

    kdf: int
    log2_n: int
    r: int
    p: int
    salt: bytes

    @classmethod
    def fresh(cls, secret: Secret) -> KdfParams:
        """Return parameters with a new salt for a new file."""
        if secret.key is not None:
            return cls(t.KDF_RAW, 0, 0, 0, os.urandom(16))
        return cls(t.KDF_SCRYPT, t.SCRYPT_LOG2_N, t.SCRYPT_R, t.SCRYPT_P, os.urandom(16))


class Cipher:
    """The four keys of one file, and what is done with them."""

    def __init__(self, secret: Secret, params: KdfParams) -> None:
        self.secret = secret
        self.params = params
        master = _master(secret, params)
        self._entry = _aesgcm()(_hkdf(master, params.salt, b"atlas3 entry"))
        self._entry_key = _hkdf(master, params.salt, b"atlas3 entry")
        self._index = _aesgcm()(_hkdf(master, params.salt, b"atlas3 index"))
        self._header_key = _hkdf(master, params.salt, b"atlas3 header")
        self.check = _hkdf(master, params.salt, b"atlas3 check")[:16]

    @classmethod
    def fresh(cls, secret: Secret) -> Cipher:
        """Make the keys of a new file."""
        return cls(secret, KdfParams.fresh(secret))

    def header_tag(self, data: bytes) -> bytes:
        """Return HMAC-SHA256 over the header's first 216 bytes."""
        return hmac.digest(self._header_key, data, "sha256")

    def seal_index(self, data: bytes, aad: bytes) -> bytes:
        """Return nonce, ciphertext and tag of the index records."""
        nonce = os.urandom(t.NONCE_SIZE)
        return nonce + bytes(self._index.encrypt(nonce, data, aad))

    def open_index(self, sealed: bytes, aad: bytes) -> bytes:
        """Undo ``seal_index``."""
        return self._open(self._index, sealed[: t.NONCE_SIZE], sealed[t.NONCE_SIZE :], aad, "index")

    def seal(self, nonce: bytes, data: bytes, aad: bytes) -> bytes:
        """Return ciphertext and tag of an entry's head or payload."""
        if len(data) <= ONE_SHOT:
            return bytes(self._entry.encrypt(nonce, data, aad))
        encryptor = _gcm(self._entry_key, nonce).encryptor()
        encryptor.authenticate_additional_data(aad)
        return b"".join((encryptor.update(data), encryptor.finalize(), encryptor.tag))

    def open(self, nonce: bytes, sealed: bytes, aad: bytes) -> bytes:
        """Undo ``seal``.

        Raises
        ------
        AuthenticationError
            The bytes, or what they are bound to, are not what was sealed.
        """
        if len(sealed) <= ONE_SHOT:
            return self._open(self._entry, nonce, sealed, aad, "entry")
        from cryptography.exceptions import InvalidTag

        decryptor = _gcm(self._entry_key, nonce, sealed[-t.TAG_SIZE :]).decryptor()
        decryptor.authenticate_additional_data(aad)
        try:
            return bytes(decryptor.update(memoryview(sealed)[: -t.TAG_SIZE]) + decryptor.finalize())
        except InvalidTag as error:
            raise AuthenticationError(_ALTERED.format("entry")) from error

    @staticmethod
    def _open(aead: Any, nonce: bytes, sealed: bytes, aad: bytes, what: str) -> bytes:
        from cryptography.exceptions import InvalidTag

        try:
            return bytes(aead.decrypt(nonce, sealed, aad))
        except (InvalidTag, ValueError) as error:
            raise AuthenticationError(_ALTERED.format(what)) from error


_ALTERED = "the sealed {} was altered, or belongs to another place or an older state of the file"


def unlock(params: KdfParams, check: bytes | None, secret: Secret | None) -> Cipher:
    """Derive a file's keys and see that they are the right ones.

    Raises
    ------
    KeyRequiredError
        Nothing was given.
    WrongKeyError
        The passphrase or key is not this file's (or the header's key parameters are damaged).
    """
    if params.kdf not in (t.KDF_RAW, t.KDF_SCRYPT):
        raise VersionMismatchError(f"this version does not know the key derivation {params.kdf}")
    needs = "a key file" if params.kdf == t.KDF_RAW else "a passphrase"
    if secret is None:
        raise KeyRequiredError(f"the file is encrypted with {needs}", remedy=_HOW[params.kdf])
    if (secret.key is None) == (params.kdf == t.KDF_RAW):
        given = "a key file" if secret.key is not None else "a passphrase"
        raise WrongKeyError(
            f"the file is encrypted with {needs}, and {given} was given", remedy=_HOW[params.kdf]
        )
    cipher = Cipher(secret, params)
    if check is not None and not hmac.compare_digest(cipher.check, check):
        what = "key" if params.kdf == t.KDF_RAW else "passphrase"
        raise WrongKeyError(f"the {what} is not the one that the file was written with")
    return cipher


_HOW = {
    t.KDF_RAW: Remedy("give-key"),
    t.KDF_SCRYPT: Remedy("give-passphrase"),
}


def _master(secret: Secret, params: KdfParams) -> bytes:
    if secret.key is not None:
        return secret.key
    memory = 128 * params.r * params.p << min(params.log2_n, 64)
    if not 1 <= params.log2_n <= 30 or not params.r or not params.p or memory > t.SCRYPT_MAX_MEMORY:
        raise FileCorruptError(
            f"the file asks for a key derivation of cost 2^{params.log2_n}, r {params.r}, p {params.p}, "
            "which is out of bounds"
        )
    return hashlib.scrypt(
        secret.passphrase or b"",
        salt=params.salt,
        n=1 << params.log2_n,
        r=params.r,
        p=params.p,
        maxmem=(1 << 31) - 2,  # what OpenSSL allows
        dklen=32,
    )


def _hkdf(master: bytes, salt: bytes, info: bytes) -> bytes:
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    return bytes(HKDF(SHA256(), 32, salt, info).derive(master))


def _aesgcm() -> Any:
    try:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM
    except ImportError as error:
        raise MissingExtraError("an encrypted file", "encryption") from error
    return AESGCM


def _gcm(key: bytes, nonce: bytes, tag: bytes | None = None) -> Any:
    from cryptography.hazmat.primitives.ciphers import Cipher as BlockCipher
    from cryptography.hazmat.primitives.ciphers import algorithms, modes

    return BlockCipher(algorithms.AES(key), modes.GCM(nonce, tag))
