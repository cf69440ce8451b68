"""A folder of objects at an address: read, listed, and replaced whole, where the store can only if nobody else has.

A *version* stands for one state of one object. Whoever gives the version that is expected has a write that is carried
out if the object is in that state and refused with ``ConflictError`` if not: S3 does that with ``If-Match`` and
``If-None-Match``, Google's store with generations, ``memory://`` with a lock of this process. Stores that cannot are
written to nonetheless, and ``conditional`` says so: whoever relies on the condition asks that first. Some that speak S3
take the headers and ignore them, so ``probe`` tries it out.

What goes wrong with the store itself is ``FileAccessError`` within seconds: whoever calls this has another try later.
Knows nothing of what the objects hold.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, ClassVar, NamedTuple, cast
from urllib.parse import quote

from atlas_kit.errors import AtlasError, ConflictError, FileAccessError, InvalidParamError, MissingExtraError
from atlas_kit.storage.remote_stores import (
    CREDENTIALS,
    READ_ONLY,
    file_system_of,
    is_refused_condition,
    state_of,
    translated,
)
from atlas_kit.storage.urls import chain, shown

log = logging.getLogger("atlas_kit.storage")
#: What is said where trying again would help nobody.
_NO_BUCKET, _DENIED = "there is no such bucket", "the store denies permission"
REFUSALS = frozenset({_NO_BUCKET, _DENIED})
#: The version of an object that there is not.
ABSENT = ""
#: Seconds until a store that does not take a connection, or does not go on, is given up; and how often it is tried.
CONNECT, READ, TRIES = 3, 20, 2
#: Bytes a second that a store must take at least: what waits to be told to send on has no time of its own.
_SLOWEST = 1 << 18
#: Bytes above which a file goes in parts, and the size of these.
_WHOLE, _PART = 1 << 26, 1 << 24


class Found(NamedTuple):
    """The bytes of an object, and the version that they are of."""

    data: bytes
    version: str


class Objects(ABC):
    """The objects below an address, each by its name from there.

    Parameters
    ----------
    url
        Where they are.

    Attributes
    ----------
    path
        The address as it may be shown.
    conditional
        Whether a write that expects a version is refused where the object is in another one.

    Raises
    ------
    InvalidParamError, MissingExtraError
        Nothing can be written to such an address, or what speaks to its store is not installed.
    """

    conditional = True

    def __init__(self, url: str, fs: Any, root: str) -> None:
        self.url, self.path = url.rstrip("/"), shown(url).rstrip("/")
        self._fs, self._root = fs, root.rstrip("/")

    def place(self, name: str) -> str:
        """Return what an object is called in its store."""
        return f"{self._root}/{name}"

    @abstractmethod
    def read(self, name: str) -> Found | None:
        """Return a small object, None where there is none."""

    @abstractmethod
    def put(self, name: str, data: bytes, expect: str | None = None) -> str:
        """Put a small object; return its version. ``expect``: only over that version (``ABSENT``: over none).

        Raises
        ------
        ConflictError
            The object is in another version; nothing was written.
        FileAccessError
            The store did not take it, as far as is known here.
        """

    def put_file(self, name: str, path: str, expect: str | None = None) -> str:
        """Put a file of this machine, whole; as ``put``."""
        with open(path, "rb") as file:
            return self.put(name, file.read(), expect)

    def fetch(self, name: str, path: str) -> str | None:
        """Write an object into a file of this machine, whole; return its version, None where there is none."""
        found = self.read(name)
        if found is None:
            return None
        with _in_its_place(path) as temporary, open(temporary, "wb") as file:
            file.write(found.data)
        return found.version

    def delete(self, name: str) -> None:
        """Remove an object, where there is one."""
        with self._told(), contextlib.suppress(FileNotFoundError):
            self._fs.rm_file(self.place(name))

    def listed(self, folder: str) -> dict[str, str]:
        """Return the versions of all objects below a folder, by their names from the address on."""
        with self._told():
            with contextlib.suppress(Exception):  # what was listed before may be old
                self._fs.invalidate_cache()
            try:
                found = self._fs.find(self.place(folder), detail=True)
            except FileNotFoundError:
                return {}
            start = len(self._fs._strip_protocol(self._root)) + 1
            return {name[start:]: self._version(info) for name, info in found.items()}

    def probe(self, name: str) -> bool:
        """Find out whether the store really refuses what it should; what it needs for that is called ``name``."""
        if self.conditional:
            self.put(name, b"1")
            for expected in (ABSENT, '"00000000000000000000000000000000"'):
                with contextlib.suppress(ConflictError):
                    self.put(name, b"2", expected)
                    self.conditional = False
            self.delete(name)
        return self.conditional

    def _version(self, info: dict[str, Any]) -> str:
        return state_of(info)[0]

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """Turn what a store says against something into one sentence without addresses and keys."""
        try:
            yield
        except (AtlasError, FileNotFoundError):
            raise
        except ImportError:
            raise MissingExtraError("a memory at an address", "cloud") from None
        except Exception as error:
            raise self._sentence(error) from None

    def _sentence(self, error: Exception) -> AtlasError:
        name, said = type(error).__name__, str(error).lower()
        number = getattr(error, "errno", None)
        if is_refused_condition(error):
            return _changed(self.path)
        if number in (errno.ENOSPC, errno.EDQUOT):
            return FileAccessError("cannot write: the disk is full", path=self.path)
        if isinstance(error, PermissionError) or "Credentials" in name or said.startswith("forbidden"):
            return FileAccessError(_DENIED, path=self.path, hint=CREDENTIALS)
        if "timeout" in name.lower() or isinstance(error, TimeoutError):
            return FileAccessError("the store does not answer in time", path=self.path)
        if isinstance(error, ConnectionError) or "Connect" in name or "connect" in said:
            return FileAccessError("the store cannot be reached", path=self.path)
        return FileAccessError(f"the store failed ({name})", path=self.path)


class S3Objects(Objects):
    """Objects in a bucket of S3, or of whatever speaks it."""

    def __init__(self, url: str, fs: Any, root: str) -> None:
        super().__init__(url, fs, root)
        self._bucket, _, self._prefix = self._root.partition("/")

    def _key(self, name: str) -> str:
        return f"{self._prefix}/{name}" if self._prefix else name

    def _call(self, method: str, name: str, **more: Any) -> Any:
        async def ask() -> Any:
            answer = await self._fs._call_s3(method, Bucket=self._bucket, Key=self._key(name), **more)
            if "Body" not in answer:
                return answer
            async with answer["Body"] as body:
                return {**answer, "Body": await body.read()}

        return _within(self._fs, ask, READ + len(more.get("Body", b"")) / _SLOWEST)

    def delete(self, name: str) -> None:
        """Remove an object, where there is one."""
        with self._told(), contextlib.suppress(FileNotFoundError):
            self._call("delete_object", name)

    def read(self, name: str) -> Found | None:
        """Return a small object, None where there is none."""
        with self._told():
            try:
                answer = self._call("get_object", name)
            except FileNotFoundError as error:
                self._require_bucket(error)
                return None
            return Found(answer["Body"], answer["ETag"])

    def put(self, name: str, data: bytes, expect: str | None = None) -> str:
        """Put a small object."""
        with self._conditionally(name, expect) as condition:
            return str(self._call("put_object", name, Body=data, **condition)["ETag"])

    def put_file(self, name: str, path: str, expect: str | None = None) -> str:
        """Put a file, in parts where it is large: it is there when the last one is."""
        if os.path.getsize(path) <= _WHOLE:
            return super().put_file(name, path, expect)
        with self._conditionally(name, expect) as condition:
            upload = self._call("create_multipart_upload", name)["UploadId"]
            try:
                parts: list[dict[str, Any]] = []
                with open(path, "rb") as file:
                    while piece := file.read(_PART):
                        sent = self._call(
                            "upload_part", name, UploadId=upload, PartNumber=len(parts) + 1, Body=piece
                        )
                        parts.append({"PartNumber": len(parts) + 1, "ETag": sent["ETag"]})
                whole = {"MultipartUpload": {"Parts": parts}}
                return str(
                    self._call("complete_multipart_upload", name, UploadId=upload, **whole, **condition)[
                        "ETag"
                    ]
                )
            except BaseException:
                with contextlib.suppress(Exception):
                    self._call("abort_multipart_upload", name, UploadId=upload)
                raise

    def fetch(self, name: str, path: str) -> str | None:
        """Write an object into a file of this machine, whole."""
        with self._told():
            try:
                version = str(self._call("head_object", name)["ETag"])
            except FileNotFoundError as error:
                self._require_bucket(error)
                return None
            with _in_its_place(path) as temporary:
                self._fs.get_file(self.place(name), temporary)
            return version

    @contextlib.contextmanager
    def _conditionally(self, name: str, expect: str | None) -> Iterator[dict[str, str]]:
        condition = {} if expect is None else {"IfNoneMatch": "*"} if not expect else {"IfMatch": expect}
        with self._told():
            try:
                yield condition
            except FileNotFoundError as error:
                self._require_bucket(error)
                raise _changed(self.path) from None  # what was expected is not there any more

    def _require_bucket(self, error: Exception) -> None:
        if "bucket" in str(error).lower():
            raise FileAccessError(_NO_BUCKET, path=self.path) from None

    def _version(self, info: dict[str, Any]) -> str:
        return str(info.get("ETag", ""))


class GoogleObjects(Objects):
    """Objects in a bucket of Google's store, whose versions are generations."""

    def read(self, name: str) -> Found | None:
        """Return a small object, None where there is none."""
        with self._told():
            try:
                version = self._generation(name)
                while True:  # what was read must be of the version that is told
                    data = bytes(self._fs.cat_file(self.place(name)))
                    before, version = version, self._generation(name)
                    if version == before:
                        return Found(data, version)
            except FileNotFoundError:
                return None

    def _generation(self, name: str) -> str:
        self._fs.invalidate_cache()
        return str(self._fs.info(self.place(name))["generation"])

    def put(self, name: str, data: bytes, expect: str | None = None) -> str:
        """Put a small object."""
        bucket, _, key = self.place(name).partition("/")
        condition = {} if expect is None else {"ifGenerationMatch": _generation_of(expect)}

        async def ask() -> Any:
            place = f"{self._fs._location}/upload/storage/v1/b/{quote(bucket)}/o"
            return await self._fs._call(
                "POST", place, uploadType="media", name=key, data=data, json_out=True,
                headers={"Content-Type": "application/octet-stream"}, **condition,
            )  # fmt: skip

        with self._told():
            return str(_within(self._fs, ask, READ + len(data) / _SLOWEST)["generation"])

    def _version(self, info: dict[str, Any]) -> str:
        return str(info.get("generation", ""))


class OtherObjects(Objects):
    """Objects in any other store: without conditions, but for one in this process's own memory."""

    _turns: ClassVar[dict[str, threading.RLock]] = {}
    _making = threading.Lock()

    def __init__(self, url: str, fs: Any, root: str) -> None:
        super().__init__(url, fs, root)
        self.conditional = url.lower().startswith("memory://")
        with self._making:
            self._turn = self._turns.setdefault(self.path, threading.RLock())

    def read(self, name: str) -> Found | None:
        """Return a small object, None where there is none."""
        with self._told(), self._turn:
            try:
                self._fs.invalidate_cache()
                version = self._version(self._fs.info(self.place(name)))
                return Found(bytes(self._fs.cat_file(self.place(name))), version)
            except FileNotFoundError:
                return None

    def put(self, name: str, data: bytes, expect: str | None = None) -> str:
        """Put a small object: under another name first, where the store shows a file before all of it is there."""
        place = self.place(name)
        with self._told(), self._turn:
            if expect is not None:
                before = self.read(name)
                if (ABSENT if before is None else before.version) != expect:
                    raise _changed(self.path)
            folder = place.rpartition("/")[0]
            with contextlib.suppress(NotImplementedError, FileExistsError):
                self._fs.makedirs(folder, exist_ok=True)
            if self.conditional:
                self._fs.pipe_file(place, data)
            else:
                temporary = f"{folder}/.{os.urandom(6).hex()}.tmp"
                self._fs.pipe_file(temporary, data)
                self._fs.mv(temporary, place)
            self._fs.invalidate_cache()
            return self._version(self._fs.info(place))

    def _version(self, info: dict[str, Any]) -> str:
        state, when = state_of(info)[0], cast(Any, info.get("created"))
        if state.startswith("/") and hasattr(
            when, "timestamp"
        ):  # listings have it as a number, as others have theirs
            return f"/{when.timestamp()}"
        return state


def objects_at(url: str) -> Objects:
    """Return the objects below an address.

    Raises
    ------
    InvalidParamError, MissingExtraError
        Nothing can be written there, or what speaks to the store is not installed.
    """
    scheme = url.split(":", 1)[0].lower()
    if scheme in READ_ONLY or len(chain(url)) > 1:
        raise InvalidParamError(
            f"nothing can be written to an address of the kind {scheme}://", path=shown(url)
        )
    if scheme in ("s3", "s3a"):
        with translated(shown(url)):
            import s3fs
        # connections and tries of its own: the server must know within seconds that the store is away
        patience = {"connect_timeout": CONNECT, "read_timeout": READ, "retries": {"max_attempts": TRIES - 1}}
        fs = s3fs.S3FileSystem(config_kwargs=patience, use_listings_cache=False, skip_instance_cache=True)
        fs.retries = TRIES
        root = fs._strip_protocol(url)
        if not root.strip("/"):
            raise InvalidParamError("no bucket is named", path=shown(url))
        return S3Objects(url, fs, root)
    fs, root = file_system_of(url, shown(url))
    return (GoogleObjects if scheme in ("gs", "gcs") else OtherObjects)(url, fs, root)


def _within(fs: Any, ask: Callable[[], Awaitable[Any]], seconds: float) -> Any:
    """Return what a store answers; who waits longer gets ``TimeoutError``, and what was asked is given up."""
    from fsspec.asyn import sync

    async def asked() -> Any:
        return await asyncio.wait_for(ask(), seconds)

    return sync(fs.loop, asked)


def _generation_of(expected: str) -> str:
    return "0" if not expected else expected if expected.isdigit() else "1"


def _changed(path: str) -> ConflictError:
    return ConflictError("somebody else has written this meanwhile", path=path)


@contextlib.contextmanager
def _in_its_place(path: str) -> Iterator[str]:
    """Yield the name of a temporary file that takes a path's place when it is written."""
    temporary = f"{path}.{os.urandom(4).hex()}.tmp"
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
