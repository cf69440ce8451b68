"""A running server as widgets ask it, and a memory there that can be compared like a file.

Knows the server by its API alone. What comes of a memory stays in this process and touches no disk; the key is sent,
and shown nowhere.
"""

from __future__ import annotations

import contextlib
import json
import urllib.error
import urllib.parse
import urllib.request
from http.client import HTTPException
from typing import Any

from atlas_kit.errors import InvalidParamError
from atlas_kit.storage.source import BytesSource

#: Seconds that an answer may take.
PATIENCE = 30.0
#: Bytes of the largest memory that is fetched.
MOST_BYTES = 1 << 30


def is_address(given: Any) -> bool:
    """Tell whether something is the address of a server.

    >>> is_address("http://127.0.0.1:8080"), is_address("memory.atlas")
    (True, False)
    """
    return isinstance(given, str) and given.startswith(("http://", "https://"))


class Remote:
    """A server, asked over HTTP.

    Raises
    ------
    InvalidParamError
        That is no address; a name and a key do not belong into one.
    """

    def __init__(self, url: str, key: str | None) -> None:
        parts = urllib.parse.urlsplit(url)
        if not parts.hostname or parts.username is not None:
            raise InvalidParamError(
                "this is no address of a server",
                key="model",
                hint='It is like "http://127.0.0.1:8080"; a key is given as key="...".',
            )
        self.url = urllib.parse.urlunsplit((parts.scheme, parts.netloc, parts.path.rstrip("/"), "", ""))
        self.host = parts.netloc
        self._headers = {} if key is None else {"authorization": f"Bearer {key}"}

    def open(self, path: str, headers: dict[str, str] | None = None) -> Any:
        """Begin to read an answer; that nothing has changed (304) is one, too.

        Raises
        ------
        InvalidParamError
            The server refuses, or there is none.
        """
        # http and https alone come here
        request = urllib.request.Request(self.url + path, headers={**self._headers, **(headers or {})})
        try:
            return urllib.request.urlopen(request, timeout=PATIENCE)
        except urllib.error.HTTPError as error:
            if error.code == 304:
                return error
            with error:
                said = _said(error.read(65536))
            if error.code == 401:
                raise InvalidParamError("the server wants another API key") from None
            raise InvalidParamError(said or f"the server answers with {error.code}") from None
        except (OSError, HTTPException) as error:
            raise InvalidParamError(f"no server answers at {self.url}", hint="Is it running?") from error

    def json(self, path: str) -> dict[str, Any]:
        """Return the JSON at a path."""
        with self.open(path) as answer:
            try:
                found = json.loads(answer.read())
            except (OSError, HTTPException, ValueError) as error:
                raise self.stranger() from error
        if not isinstance(found, dict):
            raise self.stranger()
        return found

    def stranger(self) -> InvalidParamError:
        """Return what is to be said of a server that is none of ours."""
        return InvalidParamError(f"what answers at {self.url} is no such server")

    def require_shared(self) -> None:
        """Make sure that there is a shared memory to look at."""
        self.open("/v1/atlas/trace").close()


class ServerMemory:
    """A memory of a running server, as it is whenever it is asked for.

    Parameters
    ----------
    url
        Of the server: ``"http://127.0.0.1:8080"``.
    session
        The name of a session; None: the memory that all requests without one share.
    key
        The API key, where the server wants one.

    Raises
    ------
    InvalidParamError
        That is no address. Whether there is a server, `fetch` finds out.
    """

    def __init__(self, url: str, session: str | None = None, *, key: str | None = None) -> None:
        self._remote, self._session = Remote(url, key), session
        self._kept: tuple[str, BytesSource] | None = None

    @property
    def label(self) -> str:
        """What to call it."""
        return f"{'shared memory' if self._session is None else self._session} at {self._remote.host}"

    def __repr__(self) -> str:
        return f"<ServerMemory {self.label}>"

    def fetch(self) -> BytesSource:
        """Return a ``.atlas`` file of the memory as it is now; it is sent again only if it has changed since.

        Raises
        ------
        InvalidParamError
            There is no server, it wants another key, or it has no such session.
        """
        query = "" if self._session is None else "?" + urllib.parse.urlencode({"session_id": self._session})
        headers = {} if self._kept is None else {"if-none-match": self._kept[0]}
        with self._remote.open(f"/v1/atlas/memory/file{query}", headers) as answer:
            if answer.status == 304 and self._kept is not None:
                return self._kept[1]
            if answer.headers.get_content_type() != "application/octet-stream":
                raise self._remote.stranger()
            try:
                data = answer.read(MOST_BYTES + 1)
            except (OSError, HTTPException) as error:
                raise InvalidParamError(
                    f"the server at {self._remote.url} went away while it sent the memory"
                ) from error
            tag = answer.headers.get("etag")
        if len(data) > MOST_BYTES:
            raise InvalidParamError(f"the memory takes more than {MOST_BYTES >> 20} MiB")
        source = BytesSource(data, self.label)
        self._kept = None if tag is None else (tag, source)
        return source


def _said(body: bytes) -> str:
    """Return what an error of the server says, as the beginning of a sentence of ours."""
    with contextlib.suppress(ValueError, KeyError, TypeError):
        said = str(json.loads(body)["error"]["message"]).rstrip(".")
        return said[:1].lower() + said[1:]
    return ""
