"""Writes to a store that only happen if nobody else wrote meanwhile: a new file, or one in a state that is known.

S3 compares ETags (``If-None-Match``, ``If-Match``), Google's store generations, fsspec's store in main memory what it
holds; other kinds of store have no such writes, which ``has_conditions`` tells before anybody relies on them. A write
whose answer was lost is asked for again by the stores' own libraries and then finds itself: that is no conflict.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import threading
from abc import ABC, abstractmethod
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from atlas_kit.errors import AtlasError, ConflictError, FileAccessError, InvalidParamError, MissingExtraError
from atlas_kit.storage.remote_stores import CREDENTIALS, file_system_of
from atlas_kit.storage.urls import chain, shown

if TYPE_CHECKING:
    from collections.abc import Callable

_T = TypeVar("_T")

#: Parts of a large file, and how many of them go at once: so much of it is in main memory.
PART, AT_ONCE = 1 << 24, 2


@dataclass(frozen=True)
class Stored:
    """A file in a store: its bytes, and what its state is called, which every write of other bytes changes.

    In some stores equal bytes are one state: who must tell two writes apart puts something into each that no other has.
    """

    data: bytes
    state: str


class _UnmetError(Exception):
    """The file is not in the state that a write was meant for."""


class _UnknownError(Exception):
    """The store does not know conditions."""


def has_conditions(url: str) -> bool:
    """Tell whether the kind of store that an address is in has conditional writes."""
    return len(chain(url)) == 1 and url.split("://", 1)[0].lower() in _KINDS


def keeps_conditions(folder: str) -> bool:
    """Try at an address of a folder whether its store does what it is told: some that are like S3 do not look at it.

    Raises
    ------
    FileAccessError
        The store cannot be asked, or nothing can be written there.
    """
    if not has_conditions(folder):
        return False
    url = f"{folder.rstrip('/')}/.trial-{os.urandom(8).hex()}"
    try:
        made = create(url, b"1")
    except InvalidParamError:
        return False
    try:
        create(url, b"2")
    except ConflictError:
        with contextlib.suppress(ConflictError):
            replace(url, b"2", f"{made[:-1]}x{made[-1:]}" if made.startswith('"') else "1")
            return False
        return True
    finally:
        with contextlib.suppress(AtlasError):
            remove(url, state(url) or made)
    return False


def read(url: str) -> Stored | None:
    """Return a small file with its state, as the store has it now; None if there is none.

    Raises
    ------
    FileAccessError, InvalidParamError
        The store cannot be asked, or has no conditional writes.
    """
    return _told(url, lambda: _place_of(url).read())


def state(url: str) -> str | None:
    """Return the state of a file as ``replace`` wants it, None if there is none; raises what ``read`` raises."""
    return _told(url, lambda: _place_of(url).state())


def create(url: str, data: bytes | str) -> str:
    """Put a file where none is, and return its state.

    Parameters
    ----------
    data
        Its bytes, or the path of a file of this machine.

    Raises
    ------
    ConflictError
        A file is there; it stays as it is.
    FileAccessError, InvalidParamError
        The store did not take it, or has no conditional writes.
    """
    return _put(url, data, None)


def replace(url: str, data: bytes | str, state: str) -> str:
    """Put a file in the place of one that is in a certain state, and return the new state.

    Raises
    ------
    ConflictError
        The file is in another state by now, or gone; it stays as it is.
    FileAccessError, InvalidParamError
        The store did not take it, or has no conditional writes.
    """
    return _put(url, data, state)


def remove(url: str, state: str) -> None:
    """Remove a file that is in a certain state; one that is gone already is no error.

    Raises
    ------
    ConflictError, FileAccessError, InvalidParamError
        As ``replace``.
    """

    def once() -> None:
        place = _place_of(url)
        try:
            place.remove(state)
        except FileNotFoundError:
            return
        except _UnmetError:
            if place.state() is not None:
                raise

    _told(url, once)


def _put(url: str, data: bytes | str, wanted: str | None) -> str:
    def once() -> str:
        place = _place_of(url)
        try:
            return place.put(data, wanted)
        except (_UnmetError, FileNotFoundError):
            now = place.state()
            if now is None and wanted is None:
                raise  # there is no bucket
            if now is None or now == wanted or not place.holds(data):
                raise _UnmetError from None
            return now  # it is our own write, of which the answer was lost

    return _told(url, once)


def _told(url: str, work: Callable[[], _T]) -> _T:
    """Do something with a store, and turn what it says against it into one sentence without addresses and keys."""
    try:
        return work()
    except AtlasError:
        raise
    except _UnmetError:
        raise ConflictError("the file was written by somebody else meanwhile", path=shown(url)) from None
    except _UnknownError:
        raise _without(url) from None
    except ImportError:
        raise MissingExtraError("writing to an address", "cloud") from None
    except Exception as error:
        name, hint = type(error).__name__, None
        if isinstance(error, PermissionError) or "Credentials" in name:
            why, hint = "permission is denied", CREDENTIALS
        elif isinstance(error, FileNotFoundError):
            why = "there is no such bucket or folder"
        elif isinstance(error, (ConnectionError, TimeoutError)) or "Connect" in name:
            why = "the store cannot be reached"
        else:
            why = f"the store refuses it ({name})"
        raise FileAccessError(f"cannot write: {why}", path=shown(url), hint=hint) from None


def _without(url: str) -> InvalidParamError:
    return InvalidParamError(
        "this store cannot tell whether somebody else has written to it meanwhile",
        path=shown(url),
        hint="S3 and Google's store can, and most that are like S3.",
    )


# --- the kinds of store ------------------------------------------------------------------------------------------


class _Place(ABC):
    """A file's place in a store that knows conditions."""

    def __init__(self, fs: Any, place: str) -> None:
        self.fs, self.place = fs, place

    @abstractmethod
    def read(self) -> Stored | None:
        """Return what is there."""

    @abstractmethod
    def state(self) -> str | None:
        """Return the state of what is there."""

    @abstractmethod
    def put(self, data: bytes | str, wanted: str | None) -> str:
        """Put it there if the file is in this state (None: if there is none)."""

    @abstractmethod
    def remove(self, wanted: str) -> None:
        """Remove it if it is in this state."""

    def holds(self, data: bytes | str) -> bool:
        """Tell whether just these bytes are there."""
        if isinstance(data, bytes):
            now = self.read()
            return now is not None and now.data == data
        ours, theirs = hashlib.sha256(), hashlib.sha256()
        self.fs.invalidate_cache()
        if int(self.fs.info(self.place)["size"]) != os.path.getsize(data):
            return False
        with self.fs.open(self.place, "rb", block_size=PART) as there, open(data, "rb") as here:
            for file, digest in ((there, theirs), (here, ours)):
                while piece := file.read(PART):
                    digest.update(piece)
        return ours.digest() == theirs.digest()


class _InS3(_Place):
    def __init__(self, fs: Any, place: str) -> None:
        super().__init__(fs, place)
        self.bucket, self.key, _ = fs.split_path(place)

    def _call(self, name: str, **options: Any) -> Any:
        from fsspec.asyn import sync

        async def call() -> Any:
            answer = await self.fs._call_s3(name, Bucket=self.bucket, Key=self.key, **options)
            if "Body" in answer:
                async with answer["Body"] as body:
                    answer = {**answer, "Body": await body.read()}
            return answer

        try:
            return sync(self.fs.loop, call)
        except Exception as error:
            response = getattr(error.__cause__, "response", None) or {}
            code = str(response.get("Error", {}).get("Code", ""))
            # 409 is what AWS says to the slower of two writes that run at the same time
            if code in ("PreconditionFailed", "412", "ConditionalRequestConflict", "409") or isinstance(
                error, FileExistsError
            ):
                raise _UnmetError from None
            if code in ("NotImplemented", "501") or (
                isinstance(error, OSError) and error.errno == errno.ENOSYS
            ):
                raise _UnknownError from None
            raise

    def read(self) -> Stored | None:
        try:
            answer = self._call("get_object")
        except FileNotFoundError:
            self._require_bucket()
            return None
        return Stored(answer["Body"], answer["ETag"])

    def state(self) -> str | None:
        try:
            return str(self._call("head_object")["ETag"])
        except FileNotFoundError:
            self._require_bucket()
            return None

    def _require_bucket(self) -> None:
        """See that it is only the file which is not there."""
        self.fs.call_s3("list_objects_v2", Bucket=self.bucket, Prefix=self.key, MaxKeys=1)

    def put(self, data: bytes | str, wanted: str | None) -> str:
        condition = {"IfNoneMatch": "*"} if wanted is None else {"IfMatch": wanted}
        try:
            if isinstance(data, bytes):
                return str(self._call("put_object", Body=data, **condition)["ETag"])
            if os.path.getsize(data) <= PART:
                with open(data, "rb") as file:
                    return str(self._call("put_object", Body=file.read(), **condition)["ETag"])
            return self._in_parts(data, condition)
        finally:
            self.fs.invalidate_cache(self.place)

    def _in_parts(self, path: str, condition: dict[str, str]) -> str:
        size = max(PART, -(-os.path.getsize(path) // 10_000))  # a store takes 10,000 parts
        upload = self._call("create_multipart_upload")["UploadId"]
        try:
            parts: list[dict[str, Any]] = []

            def send(numbered: tuple[int, bytes]) -> dict[str, Any]:
                number, piece = numbered
                sent = self._call("upload_part", UploadId=upload, PartNumber=number, Body=piece)
                return {"PartNumber": number, "ETag": sent["ETag"]}

            with open(path, "rb") as file, ThreadPoolExecutor(AT_ONCE) as pool:
                while pieces := [piece for _ in range(AT_ONCE) if (piece := file.read(size))]:
                    parts += pool.map(send, enumerate(pieces, len(parts) + 1))
            done = self._call(
                "complete_multipart_upload", UploadId=upload, MultipartUpload={"Parts": parts}, **condition
            )
            return str(done["ETag"])
        except BaseException:
            self._abort(upload)
            raise

    def _abort(self, upload: str) -> None:
        with contextlib.suppress(Exception):  # what was sent and never joined is a store's to clean up
            self._call("abort_multipart_upload", UploadId=upload)

    def remove(self, wanted: str) -> None:
        self._call("delete_object", IfMatch=wanted)
        self.fs.invalidate_cache(self.place)


class _InGoogles(_Place):
    def _named(self) -> tuple[str, str]:
        from urllib.parse import quote

        bucket, key, *_ = self.fs.split_path(self.place)
        return f"b/{quote(bucket, safe='')}/o/{quote(key, safe='')}", bucket

    def _call(self, *args: Any, **options: Any) -> Any:
        from fsspec.asyn import sync

        try:
            return sync(self.fs.loop, self.fs._call, *args, **options)
        except Exception as error:
            if str(getattr(error, "code", "")) == "412" or isinstance(error, FileExistsError):
                raise _UnmetError from None
            raise

    def read(self) -> Stored | None:
        for _ in range(4):  # its state and its bytes are two requests
            now = self.state()
            if now is None:
                return None
            try:
                _, data = self._call(
                    "GET", self._named()[0], alt="media", ifGenerationMatch=now, json_out=False
                )
            except (_UnmetError, FileNotFoundError):
                continue
            return Stored(bytes(data), now)
        raise _UnmetError

    def state(self) -> str | None:
        try:
            return str(self._call("GET", self._named()[0], json_out=True)["generation"])
        except FileNotFoundError:
            return None

    def put(self, data: bytes | str, wanted: str | None) -> str:
        import json
        from urllib.parse import quote

        bucket, key, *_ = self.fs.split_path(self.place)
        where = f"{self.fs._location}/upload/storage/v1/b/{quote(bucket, safe='')}/o"
        condition = {"ifGenerationMatch": wanted or "0"}
        size = len(data) if isinstance(data, bytes) else os.path.getsize(data)
        try:
            if isinstance(data, str) and size > PART:
                return self._in_parts(data, size, where, key, condition)
            if isinstance(data, str):
                with open(data, "rb") as file:
                    data = file.read()
            mark = os.urandom(16).hex()
            head = f"--{mark}\r\nContent-Type: application/json; charset=UTF-8\r\n\r\n{json.dumps({'name': key})}\r\n"
            body = (
                f"{head}--{mark}\r\nContent-Type: application/octet-stream\r\n\r\n".encode()
                + data
                + f"\r\n--{mark}--".encode()
            )
            made = self._call(
                "POST",
                where,
                uploadType="multipart",
                headers={"Content-Type": f'multipart/related; boundary="{mark}"'},
                data=body,
                json_out=True,
                **condition,
            )
            return str(made["generation"])
        finally:
            self.fs.invalidate_cache(self.place)

    def _in_parts(self, path: str, size: int, where: str, key: str, condition: dict[str, str]) -> str:
        import json

        headers, _ = self._call("POST", where, uploadType="resumable", json={"name": key}, **condition)
        answer: Any = None
        with open(path, "rb") as file:
            start = 0
            while piece := file.read(PART):
                part = {"Content-Range": f"bytes {start}-{start + len(piece) - 1}/{size}"}
                _, answer = self._call("POST", headers["Location"], headers=part, data=piece)
                start += len(piece)
        return str(json.loads(answer)["generation"])

    def remove(self, wanted: str) -> None:
        self._call("DELETE", self._named()[0], ifGenerationMatch=wanted)
        self.fs.invalidate_cache(self.place)


class _InMemory(_Place):
    """fsspec's ``memory://``, which lives in this process: for trials and tests."""

    lock = threading.Lock()

    def read(self) -> Stored | None:
        try:
            data = bytes(self.fs.cat_file(self.place))
        except FileNotFoundError:
            return None
        made = self.fs.info(self.place)["created"]
        return Stored(data, hashlib.sha256(f"{made}".encode() + data).hexdigest())

    def state(self) -> str | None:
        now = self.read()
        return None if now is None else now.state

    def put(self, data: bytes | str, wanted: str | None) -> str:
        if isinstance(data, str):
            with open(data, "rb") as file:
                data = file.read()
        with self.lock:
            if self.state() != wanted:
                raise _UnmetError
            self.fs.pipe_file(self.place, data)
            return str(self.state())

    def remove(self, wanted: str) -> None:
        with self.lock:
            if self.state() != wanted:
                raise _UnmetError
            self.fs.rm_file(self.place)


_KINDS: dict[str, type[_Place]] = {
    "s3": _InS3,
    "s3a": _InS3,
    "gs": _InGoogles,
    "gcs": _InGoogles,
    "memory": _InMemory,
}


def _place_of(url: str) -> _Place:
    if not has_conditions(url):
        raise _without(url)
    return _KINDS[url.split("://", 1)[0].lower()](*file_system_of(url, shown(url)))
