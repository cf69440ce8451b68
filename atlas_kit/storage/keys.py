"""What opens encrypted files: a passphrase or a key, given, read from a file, or asked for when a file needs it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from atlas_kit.errors import InvalidParamError, KeyRequiredError, Remedy
from atlas_kit.storage.given import STDIN, StrPath, open_source

_MAX_KEY_FILE = 4096


class Keys:
    """What opens encrypted files, and encrypts what is written.

    ``ask(question, confirm)`` is called only when a file needs it. ``ambient``: the secret was given by the
    environment, for all work, and not for this. ``others``: what else may open a file, tried in this order; what is
    written is encrypted with the first.
    """

    def __init__(
        self,
        passphrase: bytes | None = None,
        key: bytes | None = None,
        ask: Callable[[str, bool], bytes] | None = None,
        *,
        ambient: bool = False,
        others: Sequence[Keys] = (),
    ) -> None:
        self.passphrase = passphrase
        self.key = key
        self.ask = ask
        self.ambient = ambient
        self.others = list(others)
        self._asked = False

    @property
    def given(self) -> bool:
        """Whether there is a passphrase or a key by now."""
        return self.passphrase is not None or self.key is not None

    def options(self) -> dict[str, Any]:
        """Return the keyword arguments that the library's functions take."""
        return {"passphrase": self.passphrase, "key": self.key} if self.given else {}

    def for_writing(self) -> dict[str, Any]:
        """Return the same for a new encrypted file, asking for a passphrase (twice) if there is none."""
        if not self.given:
            if self.ask is None:
                raise KeyRequiredError(
                    "an encrypted file needs a passphrase or a key",
                    remedy=Remedy("give-secret"),
                )
            self.passphrase = self.ask("New passphrase", True)
        return self.options()

    def ask_for(self, name: str) -> bool:
        """Ask for the passphrase of ``name``; tell whether somebody was asked, so that it is worth another try."""
        if self.given or self.ask is None:
            return False
        self.passphrase = self.ask(f"Passphrase for {name}", False)
        self._asked = True
        return True

    def ask_for_another(self, name: str) -> bool:
        """Ask for the passphrase of another file than the one it was asked for; tell whether somebody was asked."""
        if not self._asked or self.ask is None:
            return False
        self.others.append(Keys(self.ask(f"Passphrase for {name}", False)))
        return True


def passphrase_bytes(passphrase: str | bytes) -> bytes:
    """Return a passphrase as UTF-8; what stands for a byte that is no text (PEP 383) becomes that byte.

    Raises
    ------
    InvalidParamError
        It is neither text nor bytes, or holds half a character (a lone surrogate).
    """
    if isinstance(passphrase, (bytes, bytearray)):
        return bytes(passphrase)
    if not isinstance(passphrase, str):
        raise InvalidParamError(
            f"a passphrase is text or bytes, and this one is of type {type(passphrase).__name__}",
            key="passphrase",
        )
    try:
        return passphrase.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError as error:  # the error itself would tell the passphrase
        raise InvalidParamError(
            f"character {error.start + 1} of the passphrase is only half of one (a lone surrogate)",
            key="passphrase",
        ) from None


def passphrase_from_file(path: StrPath) -> bytes:
    """Return the first line of a file, without its end."""
    line = _read_small(path, "passphrase").split(b"\n", 1)[0].rstrip(b"\r")
    if not line:
        raise InvalidParamError("the passphrase file is empty", path=path)
    return line


def key_from_file(path: StrPath) -> bytes:
    """Return the 32 bytes of a key file."""
    data = _read_small(path, "key")
    if len(data) != 32:
        raise InvalidParamError(
            f"a key file holds exactly 32 bytes, and this one has {len(data)}",
            path=path,
            remedy=Remedy("make-key"),
        )
    return data


def _read_small(path: StrPath, what: str) -> bytes:

    with open_source("/dev/stdin" if path == STDIN else path) as source:
        if source.size > _MAX_KEY_FILE:
            raise InvalidParamError(f"the file is too long for a {what}", path=path)
        return source.read(0, source.size)
