"""The npz format: a ZIP archive of ``.npy`` arrays; read without pickle, written in bounded memory.

Follows NumPy's ``numpy.lib.format``. An array whose dtype this project has no name for comes back as its
``.npy`` bytes. Knows nothing of memory files.
"""

from __future__ import annotations

import struct
import zipfile
import zlib
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any

from atlas_kit.errors import AtlasError, DataTooLargeError, FileCorruptError, InvalidParamError
from atlas_kit.formats.findings import Finding
from atlas_kit.storage.given import Given, open_source
from atlas_kit.storage.source import CHUNK, Source, access_error

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    import numpy as np

#: Deflate reaches 1,032 to 1; what claims more, or is large at a suspicious ratio, is refused.
MAX_RATIO = 1_032
SUSPICIOUS_SIZE = 1 << 28
MAX_HEADER = 10_000
#: Every member gets this date, so that the same arrays give the same file.
_DATE = (1980, 1, 1, 0, 0, 0)
#: What zipfile lets out over damaged bytes.
_DAMAGE = (
    zipfile.BadZipFile,
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    RuntimeError,
    struct.error,
)


@dataclass(frozen=True)
class Member:
    """One array of the archive, as its header describes it."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    fortran_order: bool
    size: int
    header_size: int


class NpzFile:
    """An opened archive; ``members`` are in the order of its directory."""

    def __init__(self, archive: zipfile.ZipFile, source: Source, *, owns_source: bool = True) -> None:
        self._archive = archive
        self._source = source
        self._owns_source = owns_source
        self.path = source.path
        self.members: dict[str, Member] = {}

    @classmethod
    def open(cls, given: Given) -> NpzFile:
        """Read the directory and every array's header; a source that is open already stays so.

        Raises
        ------
        FileCorruptError
            The archive or an array's header is damaged, or holds Python objects (which need pickle).
        """
        source = open_source(given)
        try:
            file = cls(_open_archive(source), source, owns_source=source is not given)
            file._read_members()
        except BaseException:
            if source is not given:
                source.close()
            raise
        return file

    def _read_members(self) -> None:
        for info in self._archive.infolist():
            if info.filename.endswith("/"):
                continue
            name = info.filename.removesuffix(".npy")
            if name in self.members:
                raise FileCorruptError("the archive holds this name twice", path=self.path, key=name)
            self._require_plausible(info, name)
            with self._reading(name), self._archive.open(info) as stream:
                self.members[name] = _read_header(name, stream, info.file_size)

    @classmethod
    def remains(cls, source: Source, *, read: bool) -> tuple[NpzFile, int]:
        """Return what is intact of a damaged archive, and how many arrays there were, as far as that can be told.

        ``read``: only arrays whose bytes were read and fit their CRC-32 count as intact.

        Raises
        ------
        FileCorruptError
            Nothing of an archive can be found.
        """
        try:
            archive = _open_archive(source)
        except FileCorruptError:
            archive = _ScannedArchive(source.stream())
        file = cls(archive, source, owns_source=False)
        infos = [info for info in archive.infolist() if not info.filename.endswith("/")]
        for info in infos:
            name = info.filename.removesuffix(".npy")
            if name in file.members:
                continue
            try:
                file._require_plausible(info, name)
                with file._reading(name), archive.open(info) as stream:
                    file.members[name] = _read_header(name, stream, info.file_size)
                for _ in file.chunks(name) if read else ():
                    pass
            except (FileCorruptError, DataTooLargeError):
                file.members.pop(name, None)
        return file, len(infos)

    def _require_plausible(self, info: zipfile.ZipInfo, name: str) -> None:
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise FileCorruptError("the archive uses another method than deflate", path=self.path, key=name)
        if info.flag_bits & 1:
            raise FileCorruptError(
                "the archive is encrypted, which npz does not allow", path=self.path, key=name
            )
        if info.file_size > (info.compress_size + 64) * MAX_RATIO:
            raise DataTooLargeError(
                f"{info.compress_size} bytes cannot unpack to {info.file_size}", path=self.path, key=name
            )

    def array(self, name: str) -> np.ndarray[Any, Any]:
        """Return one array, read whole."""
        import numpy as np

        member = self.members[name]
        with self._reading(name):
            data = b"".join(self.chunks(name))
            flat = np.frombuffer(data, member.dtype)
            return flat.reshape(member.shape, order="F" if member.fortran_order else "C")

    def chunks(self, name: str) -> Iterator[bytes]:
        """Yield the bytes of an array's elements in pieces of bounded size."""
        member = self.members[name]
        with self._reading(name), self._archive.open(self._member_name(name)) as stream:
            stream.read(member.header_size)  # checked when the archive was opened
            left = member.size
            while left:
                piece = stream.read(min(CHUNK, left))
                if not piece:
                    raise FileCorruptError(f"the array ends {left} bytes early", path=self.path, key=name)
                left -= len(piece)
                yield piece
            if stream.read(1):  # reading to the end also makes zipfile check the CRC-32
                raise FileCorruptError("bytes follow the array", path=self.path, key=name)

    def raw(self, name: str) -> bytes:
        """Return the whole ``.npy`` file of one array."""
        with self._reading(name):
            return self._archive.read(self._member_name(name))

    def _member_name(self, name: str) -> str:
        return f"{name}.npy" if f"{name}.npy" in self._archive.NameToInfo else name

    def _reading(self, name: str) -> _Reading:
        return _Reading(self.path, name)

    def close(self) -> None:
        """Release the file."""
        self._archive.close()
        if self._owns_source:
            self._source.close()

    def __enter__(self) -> NpzFile:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _open_archive(source: Source) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(source.stream())
    except AtlasError:
        raise
    except OSError as error:
        raise access_error(error, source.name) from error
    except (*_DAMAGE, EOFError) as error:
        raise FileCorruptError(f"the archive is damaged: {error}", path=source.path) from error


class _ScannedArchive(zipfile.ZipFile):
    """An archive without its directory, which stands at its end: its members are found one behind the other."""

    def _RealGetContents(self) -> None:  # noqa: N802 (zipfile's own name; it reads the directory)
        file: Any = self.fp
        at = 0
        while True:
            file.seek(at)
            fixed = file.read(30)
            if len(fixed) < 30 or fixed[:4] != b"PK\3\4":
                break
            flags, method, _, _, crc, packed, size, name_size, more = struct.unpack("<HHHHIIIHH", fixed[6:])
            raw, extra = file.read(name_size), file.read(more)
            if packed == size == 0xFFFFFFFF or (flags & 8 and not packed):
                size, packed = _large_sizes(extra)
            info = zipfile.ZipInfo(raw.decode("utf-8" if flags & 0x800 else "cp437", "replace"))
            info.flag_bits, info.compress_type, info.CRC = flags, method, crc
            info.compress_size, info.file_size, info.header_offset = packed, size, at
            self.filelist.append(info)
            self.NameToInfo.setdefault(info.filename, info)
            at += 30 + name_size + more + packed
            if not packed:
                break  # its size stands behind it


def _large_sizes(extra: bytes) -> tuple[int, int]:
    """Return the sizes, unpacked and packed, that the extra field of a large member gives; zeros without one."""
    at = 0
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<HH", extra, at)
        if kind == 1 and length >= 16 and at + 20 <= len(extra):
            size, packed = struct.unpack_from("<QQ", extra, at + 4)
            return size, packed
        at += 4 + length
    return 0, 0


class _Reading:
    """Turns what zipfile and NumPy raise over damaged bytes into our error."""

    def __init__(self, path: str | None, name: str) -> None:
        self._path = path
        self._name = name

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, AtlasError):
            error.path = error.path or self._path
            return
        if not isinstance(error, Exception) or isinstance(error, MemoryError):
            return
        from tokenize import TokenError  # NumPy lets it out for a header of unbalanced brackets

        if isinstance(error, (*_DAMAGE, TokenError, EOFError, OSError, SyntaxError, zlib.error)):
            if "malformed node" in str(error):  # it would show an object's address
                error = ValueError("its header cannot be read")
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise FileCorruptError(
                f"the array cannot be read: {reason}", path=self._path, key=self._name
            ) from error


def _read_header(name: str, stream: IO[bytes], file_size: int) -> Member:
    """Read an array's header with NumPy's own parser and check it against the member's size."""
    import math
    import warnings

    from numpy.lib import format as npy

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # headers written by Python 2 are still read
        version = npy.read_magic(stream)
        if version == (1, 0):
            shape, fortran_order, dtype = npy.read_array_header_1_0(stream, max_header_size=MAX_HEADER)
        elif version in ((2, 0), (3, 0)):  # version 3 differs by UTF-8 field names only
            shape, fortran_order, dtype = npy.read_array_header_2_0(stream, max_header_size=MAX_HEADER)
        else:
            raise FileCorruptError(f"the array has the unknown version {version[0]}.{version[1]}", key=name)
    if dtype.hasobject:
        raise FileCorruptError(
            "the array holds Python objects, and reading those could run code",
            key=name,
            hint="Save it as numbers or text instead.",
        )
    if any(type(dim) is not int or dim < 0 for dim in shape):
        raise FileCorruptError("the shape is not a list of sizes", key=name)
    size = math.prod(shape) * dtype.itemsize
    if stream.tell() + size != file_size:
        raise FileCorruptError(
            f"the array needs {size} bytes, and the archive holds {file_size - stream.tell()}", key=name
        )
    return Member(name, dtype, tuple(shape), fortran_order, size, stream.tell())


# --- writing -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class NewArray:
    """An array to write; ``chunks`` yields its bytes, in the order that is said, when the time comes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    chunks: Callable[[], Iterable[bytes]]
    fortran_order: bool = False


@dataclass(frozen=True)
class NewMember:
    """An array to write whose ``.npy`` file is at hand."""

    name: str
    chunks: Callable[[], Iterable[bytes]]


def is_npy(start: bytes, size: int) -> bool:
    """Tell whether a ``.npy`` file of ``size`` bytes starts so, with an array that is all of it."""
    import io

    try:
        with _Reading(None, ""):
            _read_header("", io.BytesIO(start), size)
    except AtlasError:
        return False
    return True


def write_npz(file: IO[bytes], arrays: Iterable[NewArray | NewMember]) -> None:
    """Write an uncompressed archive in bounded memory; the same arrays give the same bytes."""
    import numpy as np
    from numpy.lib import format as npy

    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        for new in arrays:
            info = zipfile.ZipInfo(f"{new.name}.npy", _DATE)
            info.external_attr = 0o644 << 16
            if isinstance(new, NewMember):
                with archive.open(info, "w", force_zip64=True) as stream:
                    stream.writelines(new.chunks())
                continue
            dtype = np.dtype(new.dtype)
            with archive.open(info, "w", force_zip64=True) as stream:
                header = {
                    "descr": npy.dtype_to_descr(dtype),
                    "fortran_order": new.fortran_order,
                    "shape": new.shape,
                }
                npy.write_array_header_1_0(stream, header)
                written = sum(stream.write(piece) for piece in new.chunks())
            if written != int(np.prod(new.shape, dtype=object)) * dtype.itemsize:
                raise InvalidParamError(f"{written} bytes came, which is not the array's size", key=new.name)


# --- checking ------------------------------------------------------------------------------------------


def check_npz(given: Given, *, deep: bool = True) -> list[Finding]:
    """Return what is wrong with an archive: structure, array headers, and (``deep``) every CRC-32."""
    try:
        file = NpzFile.open(given)
    except (FileCorruptError, DataTooLargeError) as error:
        return [_finding(error)]
    findings = []
    with file:
        for name in file.members if deep else ():
            try:
                for _ in file.chunks(name):
                    pass
            except FileCorruptError as error:
                findings.append(_finding(error))
    return findings


def _finding(error: AtlasError) -> Finding:
    return Finding(
        "npz-damaged", "error", error.message, error.hint or "", error.offset, error.key, error.remedy
    )
