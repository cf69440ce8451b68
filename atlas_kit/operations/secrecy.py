"""The one rule of encryption for all that operations write.

Asked for encryption (there is a passphrase or a key), an output is encrypted or refused; and what was encrypted stays
so. Only who says that plain text is meant gets plain text. Knows no format but by the number of its version.
"""

from __future__ import annotations

from atlas_kit.errors import InvalidParamError, Remedy
from atlas_kit.storage.keys import Keys

#: The version of ``.atlas`` that is encrypted, and the one that is written in its place where plain text is meant.
ENCRYPTED, PLAIN = 3, 2


def output_version(
    wanted: int | None, usual: int, *, encrypted: bool, keys: Keys, decrypt: bool, path: str | None = None
) -> int:
    """Return the version of ``.atlas`` to write.

    Parameters
    ----------
    wanted
        The version that somebody chose, if anybody did.
    usual
        What is written where nobody chose and nothing is encrypted.
    encrypted
        Whether any input is encrypted.
    keys
        What was given to open inputs and to encrypt outputs.
    decrypt
        Whether plain text is meant.

    Raises
    ------
    InvalidParamError
        The version that was chosen is not encrypted and should be, or the other way round.
    """
    if decrypt:
        if wanted == ENCRYPTED:
            raise InvalidParamError("version 3 is encrypted, and plain text was asked for", path=path)
        return wanted or (PLAIN if usual == ENCRYPTED else usual)
    if encrypted or keys.given:
        if wanted not in (None, ENCRYPTED):
            raise refused(f"atlas-v{wanted}", encrypted=encrypted, path=path)
        return ENCRYPTED
    return wanted or usual


def require_plain(what: str, *, encrypted: bool, keys: Keys, decrypt: bool, path: str | None = None) -> None:
    """See that plain text is meant where the output's format (``what``) cannot be encrypted.

    Raises
    ------
    InvalidParamError
        An input is encrypted or a secret was given, and nobody said that plain text is meant.
    """
    if not decrypt and (encrypted or keys.given):
        raise refused(what, encrypted=encrypted, path=path)


def refused(what: str, *, encrypted: bool, path: str | None) -> InvalidParamError:
    """Return the error for an output that would be plain text."""
    why = "the file is encrypted" if encrypted else "a passphrase or key was given"
    return InvalidParamError(
        f"{why}, and {what} would hold plain text: nothing was written",
        path=path,
        remedy=Remedy("write-plain"),
    )


def require_no_secret(*keys: Keys | None, path: str | None = None) -> None:
    """See that nobody asked for a model to be encrypted; a secret for everything (in the environment) does not ask.

    Raises
    ------
    InvalidParamError
        A passphrase or a key was given for it.
    """
    if any(one is not None and one.given and not one.ambient for one in keys):
        raise InvalidParamError(
            "a passphrase or key was given, and models cannot be encrypted: nothing was written", path=path
        )
