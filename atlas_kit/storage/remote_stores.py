"""How ranges of bytes are had from where they lie: HTTP, S3, and whatever else fsspec knows.

Each store answers with the bytes and with the state that they belong to (an ETag, a time), so that nobody joins the
halves of two files. HTTP goes through fsspec's session, because its answer says all of that at once; so does S3's. Any
other store is asked for its state apart. What goes wrong for a moment is tried again, what goes wrong for good becomes
one sentence in which no secret is. Credentials are found by the stores' own libraries, in their usual places.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import importlib
import logging
import random
import re
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any, NoReturn, TypeVar

from atlas_kit.errors import (
    AtlasError,
    ConflictError,
    DataTooLargeError,
    FileAccessError,
    InvalidParamError,
    MissingExtraError,
    NoSuchFileError,
)
from atlas_kit.storage.urls import chain, shown

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator

_T = TypeVar("_T")


@dataclass
class Patience:
    """How long is waited, in seconds, and how often is tried before a store is given up."""

    connect: float = 10.0
    read: float = 30.0
    tries: int = 4
    first_wait: float = 0.25
    longest_wait: float = 10.0

    def wait(self, attempt: int, asked: float = 0.0) -> float:
        """Return how long to wait after the attempt of that number (from 0), and not less than the store asked."""
        backed_off: float = self.first_wait * 2**attempt * random.uniform(0.5, 1.5)
        return min(max(backed_off, asked), self.longest_wait)


PATIENCE = Patience()
#: The most that is fetched whole from a server that cannot send a part.
WHOLE_LIMIT = 1 << 30
_IN_MEMORY = 1 << 24
#: Bytes a second: a part that comes slower than this is asked for again, and given up in the end.
SLOWEST = 1 << 11
#: A part that was cut off behind so many bytes is gone on with; one with fewer is asked for again.
_WORTH_KEEPING = 1 << 14
#: Answers after which the same question may get another one.
_PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})
#: What to know when nobody is let in.
_WORTH_NAMING = {401: "it wants to know who asks", 403: "permission is denied"}
#: Schemes for which the extra has what is needed.
_EXTRA = frozenset({"http", "https", "s3", "s3a", "gs", "gcs", "hf"})
#: Libraries that log what they raise as well, addresses included.
_TALKATIVE = ("fsspec", "gcsfs", "s3fs", "aiobotocore", "botocore", "google", "huggingface_hub")
_NOWHERE = logging.NullHandler()
#: Kinds of addresses that nothing can be written to.
READ_ONLY = frozenset({"http", "https", "github", "data", "zip", "tar", "libarchive", "reference"})
CREDENTIALS = "Credentials are looked for where the store's own tools look for them."


@dataclass(frozen=True)
class Piece:
    """Bytes of a file, how many it has in all, which state of it they are of, and when that was made (0: unknown)."""

    data: bytes
    total: int
    state: str
    modified: int = 0


class _TryAgainError(Exception):
    """Something that may go well next time; ``asked`` is how long the store wants to be left alone."""

    def __init__(self, why: str, asked: float = 0.0) -> None:
        super().__init__(why)
        self.asked = asked


class Store(ABC):
    """One file in one store.

    Attributes
    ----------
    url
        Its address, secrets included; ``path`` is how it is shown.
    requests
        How often the store was asked.
    """

    def __init__(self, url: str, patience: Patience | None = None) -> None:
        self.url = url
        self.path = shown(url)
        self.patience = patience or PATIENCE
        self.requests = 0

    @abstractmethod
    def _ask(self, start: int, size: int, state: str | None) -> Piece:
        """Ask once for a range, of the file in that state if one is named."""

    @abstractmethod
    def _look(self) -> Piece:
        """Ask once for the file's size and state."""

    def fetch(self, start: int, size: int, state: str | None = None) -> Piece:
        """Return up to ``size`` bytes from ``start`` on: fewer at the end of the file.

        Raises
        ------
        NoSuchFileError, FileAccessError, ConflictError
            There is no such file, it cannot be read, or it is in another state now.
        """
        return self._patiently(lambda: self._ask(start, size, state))

    def look(self) -> Piece:
        """Return the file's present size and state, without bytes."""
        return self._patiently(self._look)

    def close(self) -> None:  # noqa: B027 (most hold nothing)
        """Let go of what is held for this file."""

    def _patiently(self, once: Callable[[], _T]) -> _T:
        for attempt in range(self.patience.tries):
            self.requests += 1
            try:
                return once()
            except _TryAgainError as trouble:
                why, asked = str(trouble), trouble.asked
            if attempt + 1 < self.patience.tries:
                time.sleep(self.patience.wait(attempt, asked))
        raise self.problem(f"{why}, {self.patience.tries} times in a row")

    def problem(self, why: str, hint: str | None = None) -> FileAccessError:
        """Return the error for something that makes the file unreadable."""
        return FileAccessError(f"cannot read: {why}", path=self.path, hint=hint)

    def _gone(self) -> NoSuchFileError:
        return NoSuchFileError("there is no such file", path=self.path, hint="Check the address.")

    def _other_now(self) -> ConflictError:
        return ConflictError("the file was changed while it was being read", path=self.path)


# --- HTTP ------------------------------------------------------------------------------------------------------

_RANGE = re.compile(r"bytes (?:(\d+)-(\d+)|\*)/(\d+|\*)")


class HTTPStore(Store):
    """A file on a web server: one request says what the bytes are, how many there are in all, and of which state."""

    def __init__(self, url: str, patience: Patience | None = None) -> None:
        super().__init__(url, patience)
        self._fs = _file_system("http", self.path, client_kwargs={"trust_env": True})
        self._direct = url  # where redirects led
        self._whole: IO[bytes] | None = None  # what a server sent that cannot send a part
        self._known: Piece | None = None

    def _ask(self, start: int, size: int, state: str | None) -> Piece:
        if self._whole is not None and self._known is not None:
            self.requests -= 1
            self._whole.seek(start)
            known = self._known
            return Piece(self._whole.read(size), known.total, known.state, known.modified)
        return self._run(self._get(start, size, state))

    def _look(self) -> Piece:
        if self._whole is not None:
            return self._run(self._head())
        now = self._run(self._get(0, 1, None))  # an address that is signed for GET is not good for HEAD
        return Piece(b"", now.total, now.state, now.modified)

    def close(self) -> None:
        """Remove what was fetched whole."""
        whole, self._whole = self._whole, None
        if whole is not None:
            whole.close()

    def _run(self, work: Coroutine[Any, Any, Piece]) -> Piece:
        import aiohttp
        from fsspec.asyn import sync

        try:
            found: Piece = sync(self._fs.loop, lambda: work)
        except AtlasError as error:
            raise error from None
        except (asyncio.TimeoutError, TimeoutError):
            raise _TryAgainError("the server does not answer in time") from None
        except aiohttp.TooManyRedirects:
            raise self.problem("the server sends from one address to the next without end") from None
        except (aiohttp.InvalidURL, aiohttp.NonHttpUrlClientError, UnicodeError):
            raise self.problem("the address, or one that it leads to, is not a valid one") from None
        except aiohttp.ClientConnectorCertificateError:
            raise self.problem("the server's certificate is not to be trusted") from None
        except aiohttp.ClientConnectorDNSError:
            raise _TryAgainError("the server's name is not known") from None
        except aiohttp.ClientConnectorError as error:
            refused = error.errno == errno.ECONNREFUSED
            why = "the server refuses the connection" if refused else "the server cannot be reached"
            raise _TryAgainError(why) from None
        except (aiohttp.ClientPayloadError, aiohttp.ServerDisconnectedError, ConnectionError):
            raise _TryAgainError("the connection was cut") from None
        except aiohttp.ClientError:
            raise _TryAgainError("the server's answer cannot be understood") from None
        except ValueError:
            raise self.problem("the address is not a valid one") from None
        return found

    def _options(self, **headers: str) -> dict[str, Any]:
        import aiohttp

        wait = self.patience
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=wait.connect, sock_read=wait.read)
        return {"headers": {"Accept-Encoding": "identity", **headers}, "timeout": timeout}

    async def _head(self) -> Piece:
        session = await self._fs.set_session()
        options = {**self._options(), "allow_redirects": True}
        async with session.head(self._address(), **options) as answer:
            if answer.status >= 400:
                self._refused(answer)
            return Piece(b"", _length(answer), *_state(answer))

    def _address(self) -> Any:
        return self._fs.encode_url(self._direct)

    async def _get(self, start: int, size: int, state: str | None) -> Piece:
        session = await self._fs.set_session()
        headers = {"Range": f"bytes={start}-{start + size - 1}"}
        if state and state.startswith(
            '"'
        ):  # a strong ETag: a careful server refuses what is in another state
            headers["If-Match"] = state
        async with session.get(self._address(), **self._options(**headers)) as answer:
            if answer.status in (401, 403, 404, 410) and self._direct != self.url:
                self._direct = self.url  # where it led to was for some minutes only
                raise _TryAgainError("the address that the server led to has expired")
            if answer.status == 416 and start == 0:
                return await self._empty(answer)
            if answer.status not in (200, 206):  # nor is a redirect to nowhere an empty file
                self._refused(answer)
            found = _state(answer)
            if answer.status == 206:
                piece = await self._part(answer, start, size, found)
            else:
                if state is not None and found[0] != state:
                    raise self._other_now()
                piece = await self._all(answer, start, size, found)
            if answer.history:
                self._direct = str(answer.url)
            return piece

    async def _empty(self, answer: Any) -> Piece:
        match = _RANGE.match(answer.headers.get("Content-Range", ""))
        if match and match[3] not in ("0", "*"):
            raise self.problem("the server refuses to send a part of it (416)")
        return Piece(b"", 0, *_state(answer))

    async def _part(self, answer: Any, start: int, size: int, found: tuple[str, int]) -> Piece:
        import aiohttp

        match = _RANGE.match(answer.headers.get("Content-Range", ""))
        if (
            match is None
            or match[1] is None
            or int(match[1]) != start
            or match[3] == "*"
            or int(match[2]) < start
        ):
            raise self.problem("the server's answer does not say which part of the file it is")
        total, promised = int(match[3]), min(size, int(match[2]) + 1 - start)
        if answer.headers.get("Content-Encoding", "identity") != "identity":
            raise self.problem("the server sends it coded, so that its parts cannot be told")
        data = bytearray()
        until = time.monotonic() + self.patience.read + promised / SLOWEST
        with contextlib.suppress(aiohttp.ClientPayloadError):  # cut off: what came before counts
            async for chunk in answer.content.iter_any():
                data += chunk
                if len(data) >= promised:
                    break
                if time.monotonic() > until:
                    raise _TryAgainError("the server sends it too slowly")
        if len(data) < min(promised, _WORTH_KEEPING):
            raise _TryAgainError("the connection was cut")
        return Piece(bytes(data[:promised]), total, *found)

    async def _all(self, answer: Any, start: int, size: int, found: tuple[str, int]) -> Piece:
        """Take what a server sends that does not send parts: all of it, once, up to a limit."""
        length = answer.headers.get("Content-Length")
        if length is not None and int(length) > WHOLE_LIMIT:
            raise self._too_large()
        file = tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY)  # noqa: SIM115 (it is read later)
        total = 0
        try:
            async for chunk in answer.content.iter_chunked(1 << 20):
                total += len(chunk)
                if total > WHOLE_LIMIT:
                    raise self._too_large()
                with room_for(self.path):
                    file.write(chunk)
            if length is not None and total < int(length) and "Content-Encoding" not in answer.headers:
                raise _TryAgainError("the connection was cut")
        except BaseException:
            file.close()
            raise
        file.seek(start)
        piece = Piece(file.read(size), total, *found)
        self._whole, self._known = file, piece
        return piece

    def _too_large(self) -> DataTooLargeError:
        return DataTooLargeError(
            "the server sends files only whole, and this one is larger than 1 GiB",
            path=self.path,
            hint="Download it, and work on the copy.",
        )

    def _refused(self, answer: Any) -> NoReturn:
        status, reason = answer.status, answer.reason
        if status in (404, 410):
            raise self._gone()
        if status == 412:
            raise self._other_now()
        if status in _PASSING:
            asked = answer.headers.get("Retry-After", "")
            raise _TryAgainError(
                f"the server answers {_named(status, reason)}", float(asked) if asked.isdigit() else 0.0
            )
        if status == 416:
            raise self._other_now()
        why = _WORTH_NAMING.get(status)
        said = f"the server answers {_named(status, reason)}" + (f", {why}" if why else "")
        raise self.problem(said, CREDENTIALS if why else None)


def _named(status: int, reason: str | None) -> str:
    from http import HTTPStatus

    with contextlib.suppress(ValueError):
        return f"{status} {HTTPStatus(status).phrase}"
    return str(status)


def _length(answer: Any) -> int:
    length = answer.headers.get("Content-Length", "")
    return int(length) if length.isdigit() else -1


def _state(answer: Any) -> tuple[str, int]:
    from email.utils import parsedate_to_datetime

    changed = answer.headers.get("Last-Modified", "")
    modified = 0
    with contextlib.suppress(ValueError, TypeError):
        modified = int(parsedate_to_datetime(changed).timestamp())
    return answer.headers.get("ETag") or changed, max(0, modified)


# --- S3, and everything else that fsspec knows ------------------------------------------------------------------


class FsspecStore(Store):
    """A file in any store that fsspec knows; its state is asked for apart from its bytes."""

    def __init__(self, url: str, patience: Patience | None = None) -> None:
        super().__init__(url, patience)
        self._fs, self._place = file_system_of(url, self.path)

    def _ask(self, start: int, size: int, state: str | None) -> Piece:
        def once() -> Piece:
            before = self._info() if state is None else None
            total = before.total if before else start + size
            data = self._fs.cat_file(self._place, start=start, end=min(start + size, total)) if total else b""
            now = before or self._info()
            return Piece(bytes(data), now.total, now.state, now.modified)

        return self._guarded(once)

    def _look(self) -> Piece:
        return self._guarded(self._info)

    def _info(self) -> Piece:
        with contextlib.suppress(Exception):  # what was listed before may be old
            self._fs.invalidate_cache(self._fs._parent(self._place))
        self.requests += 1
        info = self._fs.info(self._place)
        if info.get("type") == "directory":
            raise IsADirectoryError(errno.EISDIR, "it is a directory")
        state, modified = state_of(info)
        if info.get("size") is None:
            raise self.problem("the store does not say how large it is")
        return Piece(b"", int(info["size"]), state, modified)

    def _guarded(self, once: Callable[[], Piece]) -> Piece:
        try:
            return once()
        except AtlasError:
            raise
        except Exception as error:
            raise self._sentence(error) from None

    def _sentence(self, error: Exception) -> Exception:
        """Return what went wrong in our words: libraries put addresses and keys into theirs."""
        name = type(error).__name__
        if isinstance(error, FileNotFoundError) or name in ("EntryNotFoundError", "RepositoryNotFoundError"):
            return self._gone()
        if isinstance(error, PermissionError) or name == "GatedRepoError":
            return self.problem("permission is denied", CREDENTIALS)
        if name in (
            "NoCredentialsError",
            "PartialCredentialsError",
            "DefaultCredentialsError",
            "ProfileNotFound",
        ):
            return self.problem(
                "the store wants to know who asks, and no credentials were found", CREDENTIALS
            )
        if isinstance(error, IsADirectoryError):
            return self.problem("it is a directory")
        if isinstance(error, ImportError):
            return MissingExtraError(f"reading {self.path.split(':', 1)[0]}:// addresses", "cloud")
        said = str(error).lower()
        if name in ("FileExpired", "PreconditionFailed") or "pre-condition" in said or "precondition" in said:
            return self._other_now()
        if isinstance(error, (TimeoutError, asyncio.TimeoutError)) or "timeout" in name.lower():
            return self.problem(
                "the store does not answer in time"
            )  # its own library has tried again already
        passing = ("EndpointConnectionError", "ClientConnectorError", "ConnectError", "ConnectionClosedError")
        if isinstance(error, ConnectionError) or name in passing or name.startswith("Connect"):
            return self.problem("the store cannot be reached")
        if name in ("IncompleteReadError", "ResponseStreamingError", "ClientPayloadError", "HTTPClientError"):
            return _TryAgainError("the connection was cut")
        if isinstance(error, (ValueError, TypeError)):
            return self.problem("the address is not a valid one for its store")
        why = getattr(error, "strerror", None) if isinstance(error, OSError) else None
        known = {errno.EIO: "the store failed", errno.EBUSY: "the store asks to slow down"}
        number = error.errno if isinstance(error, OSError) else None
        return self.problem(
            known.get(number or 0) or (f"the store refuses ({name})" if not why else _plain(why))
        )


class S3Store(FsspecStore):
    """A file in a bucket: one request brings the bytes, the size, and the ETag that later ones insist on."""

    def __init__(self, url: str, patience: Patience | None = None) -> None:
        super().__init__(url, patience)
        self._bucket, self._key, self._version = self._fs.split_path(self._place)
        if not self._key:
            raise self.problem("this is a bucket and not a file in one")

    def _ask(self, start: int, size: int, state: str | None) -> Piece:
        from fsspec.asyn import sync

        async def get() -> Piece:
            wanted: dict[str, Any] = {"Range": f"bytes={start}-{start + size - 1}"}
            if state:
                wanted["IfMatch"] = state
            if self._version:
                wanted["VersionId"] = self._version
            answer = await self._fs._call_s3("get_object", Bucket=self._bucket, Key=self._key, **wanted)
            async with answer["Body"] as body:
                data = await body.read()
            match = _RANGE.match(answer.get("ContentRange") or "")
            total = int(match[3]) if match and match[3] != "*" else len(data)
            changed = answer.get("LastModified")
            return Piece(data, total, answer.get("ETag", ""), int(changed.timestamp()) if changed else 0)

        def once() -> Piece:
            try:
                found: Piece = sync(self._fs.loop, get)
            except OSError as error:
                if start == 0 and error.errno == errno.EINVAL and "range" in str(error).lower():
                    return self._info()  # an empty file has no range at all
                raise
            return found

        return self._guarded(once)


def state_of(info: dict[str, Any]) -> tuple[str, int]:
    """Return what tells one state of a file from another, and when it was made, of what fsspec says about it."""
    marks = ("ETag", "etag", "generation", "md5Hash", "content_md5", "blob_id", "oid", "sha", "ino")
    when = next((info[name] for name in ("LastModified", "last_modified", "mtime", "updated", "created", "modified")
                 if info.get(name)), None)  # fmt: skip
    state = next((str(info[name]) for name in marks if info.get(name)), "")
    if isinstance(when, str):
        from datetime import datetime

        with contextlib.suppress(ValueError):
            when = datetime.fromisoformat(when.replace("Z", "+00:00"))
    seconds: Any = getattr(when, "timestamp", lambda: when)()
    modified = max(0, int(seconds)) if isinstance(seconds, (int, float)) else 0
    return state if state and "ino" not in info else f"{state}/{when}", modified


def is_refused_condition(error: Exception) -> bool:
    """Tell whether a store says that what a write expected is not so, or that another write of it is under way."""
    if isinstance(error, FileExistsError) or str(getattr(error, "code", "")) == "412":
        return True
    said = str(error).lower()  # S3's names and sentences, and those of stores that speak it
    words = ("precondition", "pre-condition", "conditionalrequest", "conditional request")
    return "412" in said[:8] or any(word in said for word in words)


def _plain(why: str) -> str:
    """Return a library's reason if it is a short sentence without an address, or else that it failed."""
    said = " ".join(why.split())
    return (
        f"{said[:1].lower()}{said[1:].rstrip('.')}"
        if len(said) < 80 and "/" not in said
        else "the store failed"
    )


@contextlib.contextmanager
def room_for(path: str, to: str = "read") -> Iterator[None]:
    """Say which disk is full where a file at an address is kept here meanwhile."""
    try:
        yield
    except OSError as error:
        number = error.errno or getattr(error.__cause__, "errno", None)
        if number not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise FileAccessError(
            f"cannot {to}: the folder for temporary files is full", path=path,
            hint="TMPDIR names another one with more room.",
        ) from None  # fmt: skip


def store_of(url: str, patience: Patience | None = None) -> Store:
    """Return the store that an address is in."""
    scheme = url.split("://", 1)[0].lower()
    kinds: dict[str, type[Store]] = {"http": HTTPStore, "https": HTTPStore, "s3": S3Store, "s3a": S3Store}
    kind = kinds.get(scheme, FsspecStore) if len(chain(url)) == 1 else FsspecStore
    return kind(url, patience)


def _file_system(protocol: str, path: str, **options: Any) -> Any:
    with translated(path):
        fsspec: Any = importlib.import_module("fsspec")
        return fsspec.filesystem(protocol, **options)


def file_system_of(url: str, path: str) -> tuple[Any, str]:
    """Return fsspec's file system for an address, and what the file is called in it."""
    with translated(path):
        core: Any = importlib.import_module("fsspec.core")
        found: tuple[Any, str] = core.url_to_fs(url)
        return found


@contextlib.contextmanager
def translated(path: str) -> Any:
    """Turn what fsspec says of an address that it cannot handle into our errors."""
    for library in _TALKATIVE:  # without a handler, what they log would be on standard error
        logging.getLogger(library).addHandler(_NOWHERE)
    try:
        yield
    except AtlasError:
        raise
    except ImportError as error:
        scheme = re.split(r"://|::", path, maxsplit=1)[0]
        if "fsspec" in sys.modules and sys.modules["fsspec"] is not None and scheme.lower() not in _EXTRA:
            wanted = " ".join(str(error).split())  # fsspec's own sentence names the package
            raise FileAccessError(
                f"cannot read: {scheme}:// addresses need another package",
                path=path,
                hint=wanted if len(wanted) < 200 and "://" not in wanted else None,
            ) from None
        raise MissingExtraError(f"a file at {scheme}://", "cloud") from None
    except ValueError as error:
        if "not known" in str(error) or "Protocol" in str(error):
            scheme = re.split(r"://|::", path, maxsplit=1)[0]
            raise InvalidParamError(
                f"{scheme}:// is not a kind of address that can be read",
                path=path,
                hint="Known are s3://, gs://, hf://, https:// and what else fsspec knows.",
            ) from None
        raise FileAccessError(
            "cannot read: the address is not a valid one for its store", path=path
        ) from None
    except FileNotFoundError:
        raise NoSuchFileError("there is no such file", path=path, hint="Check the address.") from None
    except (ConnectionError, TimeoutError):
        raise FileAccessError("cannot read: the store cannot be reached", path=path) from None
    except Exception as error:
        raise FileAccessError(
            f"cannot read: the store could not be opened ({type(error).__name__})",
            path=path,
            hint=CREDENTIALS,
        ) from None
