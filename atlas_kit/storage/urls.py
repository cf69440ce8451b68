"""Addresses: which names are not paths of this machine, and how they are shown without what is secret in them.

Nothing here opens anything; ``remote`` does.
"""

from __future__ import annotations

import os
import re
from urllib.parse import unquote, urlsplit

from atlas_kit.errors import InvalidParamError

#: A scheme has two characters or more, so that no drive of Windows is one; ``::`` joins file systems in one another.
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]+(?:://|::)")
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]+://[^\s\"'<>]+")
_LOCAL = ("file://", "local://")
_CHAIN = re.compile(r"::(?![0-9A-Fa-f:.]*\])")  # not the colons of an address in brackets


def is_url(name: object) -> bool:
    """Tell whether a name is an address (``s3://``, ``https://``, ...) and not a path."""
    return isinstance(name, str) and _SCHEME.match(name) is not None


def local_path(name: str) -> str | None:
    """Return the path that ``file://`` stands for, None for any other address."""
    if not name.lower().startswith(_LOCAL) or len(chain(name)) > 1:
        return None
    path = name.split("://", 1)[1]
    path = path.removeprefix("localhost") if path.startswith("localhost/") else path
    return unquote(path) if name[:4].lower() == "file" else path


def shown(name: str) -> str:
    """Return an address as it may be shown: without user, password, query (it may be signed) and fragment."""
    if not is_url(name):
        return name
    return "::".join(map(_shown, chain(name))) if name.count("[") == name.count("]") else _shown(name)


def without_secrets(text: str) -> str:
    """Return a text with each address in it as it may be shown."""

    def hidden(found: re.Match[str]) -> str:
        address = found[0].rstrip(":")  # "hf://x: there is ..."
        return shown(address) + found[0][len(address) :]

    return _ADDRESS.sub(hidden, text)


def chain(name: str) -> list[str]:
    """Return the file systems that an address joins in one another: one, unless it has ``::`` in it."""
    return _CHAIN.split(name)


def _shown(part: str) -> str:
    if "://" not in part:
        return part
    try:
        scheme, place, path, query, _ = urlsplit(part, allow_fragments=part[:4].lower() == "http")
    except ValueError:  # brackets that hold no address
        return f"{part.partition('://')[0]}://..."
    place = place.rpartition("@")[2]
    host, mark, port = place.rpartition(":")
    if (
        mark and not port.isdigit() and not port.endswith("]")
    ):  # a password behind which the host was forgotten?
        place = host.partition(":")[0]
    if not scheme.lower().startswith("http") and "=" not in query:
        path, query = (
            (f"{path}?{query}" if query else path),
            "",
        )  # a question mark may be in a key, or in a pattern
    return f"{scheme}://{place}{path}"


def require_here(name: object, why: str, hint: str = "Download it, and work on the copy.") -> None:
    """Refuse an address where only a file on this machine will do.

    Raises
    ------
    InvalidParamError
        It is one.
    """
    if isinstance(name, str) and is_url(name):
        raise InvalidParamError(why, path=shown(name), hint=hint)


def last_part(name: str) -> str:
    """Return what a path's or an address's last part is called."""
    return os.path.basename(chain(shown(name))[0]) if is_url(name) else os.path.basename(name)
