"""What a file is that is no memory and no model of a known format, by its first bytes, and what to do with it.

Most such files were meant to be models: the page of one that was saved instead of it, a pointer that git-lfs left,
the answer of a server that refused, an archive, a format of former years. Reads 64 KiB at most and imports nothing
heavy; knows no command.
"""

from __future__ import annotations

import base64
import json
import os
import re
import struct
from dataclasses import dataclass

from atlas_kit.errors import MagicMismatchError, Remedy, printable
from atlas_kit.storage.part_names import part_name
from atlas_kit.storage.source import Source

#: What an importance matrix in the ``.dat`` format may have at most: entries, and bytes of a name.
DAT_MOST_ENTRIES, DAT_LONGEST_NAME = 1 << 16, 256

#: How much of a file is looked at.
HEAD = 1 << 16
_BOM = b"\xef\xbb\xbf"
_AGAIN = "Download the file itself, not the page that shows it: its address has /resolve/ where the page's has /blob/."
_REFUSED = "The server refused or did not find the file: check the address and whether it asks for a login."


#: Keys of JSON that may be a memory, or a conversation, and is no server's answer.
_OURS = frozenset(
    ("entries", "format", "atlas", "version", "messages", "role", "content", "conversation", "text")
)


@dataclass(frozen=True)
class Foreign:
    """What a file is: a short ``name`` for programs, ``what`` it is in words, and what to do.

    ``lost`` means that nothing of a model or memory is in it.
    """

    name: str
    what: str
    hint: str
    remedy: Remedy | None = None
    lost: bool = True


def recognise(source: Source) -> Foreign | None:
    """Return what a file is that starts as no known format does, ``None`` where nothing tells."""
    head = source.read_upto(0, HEAD)
    if not head:
        return None
    for look in (_pointer, _by_magic, _old_ggml, _zip, _marked, _text, _as_text, _moved, _zeros, _imatrix):
        found = look(head, source)
        if found is not None:
            return found
    return _piece(source)


def foreign_error(source: Source) -> MagicMismatchError | None:
    """Return the error that says what a file is, ``None`` where nothing tells."""
    found = recognise(source)
    if found is None:
        return None
    return MagicMismatchError(
        f"this is {found.what}", path=source.path, offset=0, hint=found.hint or None, remedy=found.remedy
    )


# --- pointers and pages -------------------------------------------------------------------------------------------


def _pointer(head: bytes, source: Source) -> Foreign | None:
    text = head[:512].lstrip(_BOM)
    if text.startswith((b"version https://git-lfs.github.com/", b"version https://hawser.github.com/")):
        size = re.search(rb"^size (\d+)", text, re.M)
        digest = re.search(rb"^oid (sha256:[0-9a-f]{8})", text, re.M)
        of = f" of a file of {int(size[1])} bytes" if size else ""
        which = f" ({digest[1].decode()}...)" if digest else ""
        hint = "Fetch the file with git lfs pull in its repository, or download it itself."
        return Foreign("git-lfs", f"a git-lfs pointer{of}{which}, and not the file", hint)
    if text.startswith(b"# xet version"):
        return Foreign(
            "xet", "a pointer of git-xet, and not the file", "Fetch the file with git xet, or download it."
        )
    if head.startswith(b"HTTP/1."):
        line = printable(head.split(b"\n", 1)[0].strip().decode("latin-1"))
        return Foreign(
            "http", f"a web server's answer with its headers ({line})", "Download it without the headers."
        )
    return None


def _text(head: bytes, source: Source) -> Foreign | None:
    text = head.removeprefix(_BOM).lstrip()
    start = text[:256].lower()
    if start.startswith((b"<!doctype html", b"<html", b"<head", b"<body", b"<script")) or (
        start.startswith(b"<!--") and b"<html" in text[:4096].lower()
    ):
        title = re.search(rb"<title[^>]*>(.*?)</title>", text, re.I | re.S)
        return Foreign(
            "web-page", f"a web page{_quoted(title[1] if title else b'')}, and not a model", _AGAIN
        )
    if start.startswith((b"<?xml", b"<error", b"<rss", b"<svg")):
        code = re.search(rb"<(?:Code|Message|title)>(.*?)</", text, re.I | re.S)
        return Foreign(
            "xml", f"an XML document{_quoted(code[1] if code else b'')}, and not a model", _REFUSED
        )
    if start[:1] == b"{" and len(head) < HEAD:
        return _json_error(text)
    words = ("invalid username or password", "entry not found", "repository not found", "access to model",
             "access denied", "not found", "unauthorized", "forbidden", "404:", "too many requests",
             "internal server error", "bad gateway", "service unavailable")  # fmt: skip
    line = text[:200].split(b"\n", 1)[0].decode("latin-1")
    if len(head) < 2048 and line.isprintable() and any(line.lower().startswith(word) for word in words):
        return Foreign("error-text", f"an error message{_quoted(line.encode())}, and not a model", _REFUSED)
    return None


_BASE64 = re.compile(rb"[A-Za-z0-9+/\r\n]{64,}")
_HEX = re.compile(rb"(?:[0-9A-Fa-f]{6,8}:?\s+)?((?:[0-9A-Fa-f]{2}\s?){8})")
_INSIDE = {b"GGUF": "a GGUF model", b"ATLS": "a memory file", b"PK\3\4": "an archive"}


def _as_text(head: bytes, source: Source) -> Foreign | None:
    """Recognise a file that was written down in letters, as for a mail."""
    if _BASE64.match(head[:128]):
        what = _INSIDE.get(base64.b64decode(b"".join(head[:128].split())[:8])[:4])
        if what is not None:
            return Foreign("base64", f"{what} in base64, which is text", "Decode it: base64 -d.")
    digits = _HEX.match(head[:128])
    if digits is not None:
        what = _INSIDE.get(bytes.fromhex("".join(digits[1].decode().split()))[:4])
        if what is not None:
            how = "xxd -r" if b":" in head[:12] else "xxd -r -p"
            return Foreign("hex", f"{what} in hexadecimal digits, which is text", f"Turn it back: {how}.")
    return None


def _json_error(text: bytes) -> Foreign | None:
    try:
        value = json.loads(text.decode("utf-8"))
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, dict) or len(value) > 8 or value.keys() & _OURS:
        return None
    said = next(
        (value[key] for key in ("error", "errors", "message", "detail", "error_description") if key in value),
        None,
    )
    if said is None:
        return None
    if isinstance(said, dict):
        said = said.get("message", said)
    return Foreign("json-error", f"an error message{_quoted(str(said).encode())}, and not a model", _REFUSED)


def _quoted(text: bytes) -> str:
    words = " ".join(text.decode("utf-8", "replace").split())
    return f' ("{printable(words[:80])}{"..." if len(words) > 80 else ""}")' if words else ""


# --- formats of others ----------------------------------------------------------------------------------------------

_UNPACK = "Unpack it: {}."
_CONVERT = "llama.cpp's convert_hf_to_gguf.py makes GGUF of the model that it belongs to."
# fmt: off
#: What files start with: (offset, bytes, name, what it is, what to do).
_MAGICS: tuple[tuple[int, bytes, str, str, str], ...] = (
    (0, b"\x1f\x8b", "gzip", "a gzip archive", _UNPACK.format("gunzip, or tar xzf if it ends in .tar.gz or .tgz")),
    (0, b"\xfd7zXZ\0", "xz", "an xz archive", _UNPACK.format("unxz")),
    (0, b"BZh", "bzip2", "a bzip2 archive", _UNPACK.format("bunzip2")),
    (0, b"\x28\xb5\x2f\xfd", "zstd", "a zstd archive", _UNPACK.format("unzstd")),
    (0, b"\x04\x22\x4d\x18", "lz4", "an lz4 archive", _UNPACK.format("unlz4")),
    (0, b"7z\xbc\xaf\x27\x1c", "7z", "a 7z archive", _UNPACK.format("7z x")),
    (0, b"Rar!\x1a\x07", "rar", "a rar archive", _UNPACK.format("unrar x")),
    (257, b"ustar", "tar", "a tar archive", _UNPACK.format("tar xf")),
    (0, b"MZqFpD", "llamafile", "a llamafile, a program with a model inside", "Unpack it: unzip."),
    (0, b"\x7fELF", "program", "a program, and not a model", "Is it the right file?"),
    (0, b"\x89HDF\r\n\x1a\n", "hdf5", "an HDF5 file, as Keras writes them", _CONVERT),
    (0, b"\x93NUMPY", "npy", "a single NumPy array (.npy)", "Put it into an .npz file, which is known."),
    (0, b"PAR1", "parquet", "a Parquet table: data, and not a model", "Is it the right file?"),
    (4, b"TFL3", "tflite", "a TensorFlow Lite model", _CONVERT),
    (0, b"SQLite format 3\0", "sqlite", "an SQLite database", "Is it the right file?"),
    (0, b"%PDF", "pdf", "a PDF document", "Is it the right file?"),
    (0, b"\x89PNG\r\n\x1a\n", "png", "a picture (PNG)", "Is it the right file?"),
    (0, b"\xff\xd8\xff", "jpeg", "a picture (JPEG)", "Is it the right file?"),
    (0, b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.", "pytorch", "a PyTorch file (a pickle)", _CONVERT),
    *((0, b"\x80" + bytes([protocol]), "pickle", "a Python pickle, as PyTorch and others write them", _CONVERT)
      for protocol in range(2, 6)),
)
#: Names of llama.cpp's former formats by their first four bytes, and what each is.
_GGML: dict[bytes, tuple[str, str]] = {
    b"lmgg": ("GGML", "a model"), b"fmgg": ("GGMF", "a model"), b"tjgg": ("GGJT", "a model"),
    b"algg": ("GGLA", "a LoRA adapter"), b"nsgg": ("GGSN", "a saved session"), b"qsgg": ("GGSQ", "a saved sequence"),
}
# fmt: on


def _by_magic(head: bytes, source: Source) -> Foreign | None:
    for offset, magic, name, what, hint in _MAGICS:
        if head[offset : offset + len(magic)] == magic:
            return Foreign(name, what, hint)
    return None


def _old_ggml(head: bytes, source: Source) -> Foreign | None:
    known = _GGML.get(head[:4]) or _GGML.get(head[3::-1])
    if known is None:
        return None
    name, what = known
    version = int.from_bytes(head[4:8], "little")
    if name in ("GGSN", "GGSQ"):
        return Foreign("llama-session", f"{what} of llama.cpp ({name}, version {version})",
                       "llama.cpp loads it beside the model that it was saved with.")  # fmt: skip
    if name == "GGML":
        if version in (51864, 51865, 51866):
            return Foreign(
                "whisper", "a model of whisper.cpp (GGML)", "whisper.cpp reads it; llama.cpp does not."
            )
        version_words = "without a version"
    else:
        version_words = f"version {version}"
    hint = (
        "llama.cpp has not read it since August 2023. Get the model as GGUF; a few are converted by llama.cpp's "
        "convert_llama_ggml_to_gguf.py."
    )
    return Foreign(name.lower(), f"{what} in a former format of llama.cpp ({name}, {version_words})", hint)


def _zip(head: bytes, source: Source) -> Foreign | None:
    if head[:4] not in (b"PK\x03\x04", b"PK\x05\x06", b"PK\x07\x08"):
        return None
    if b"/data.pkl" in head or b"data.pkl" in head[:512]:
        return Foreign("pytorch", "a PyTorch file (.bin or .pt)", _CONVERT)
    first = head[30 : 30 + int.from_bytes(head[26:28], "little")]
    return Foreign("zip", f"a zip archive{_quoted(first)}", _UNPACK.format("unzip"))


# --- known formats with something before them -----------------------------------------------------------------------


def _marked(head: bytes, source: Source) -> Foreign | None:
    if head[:2] in (b"\xff\xfe", b"\xfe\xff") and head[2:10].replace(b"\0", b"")[:4] in (b"GGUF", b"ATLS"):
        return Foreign(
            "utf-16", "a file that was saved as text (UTF-16): its bytes are lost", "Get it again."
        )
    if head[:3] != _BOM or head[3:7] not in (b"GGUF", b"ATLS"):
        return None
    if b"\xef\xbf\xbd" in head[3:]:
        return Foreign(
            "saved-as-text", "a file that was saved as text: bytes that are no text are lost", "Get it again."
        )
    kind = "GGUF" if head[3:7] == b"GGUF" else ".atlas"
    return Foreign(
        "byte-order-mark", f"a {kind} file behind a byte order mark of 3 bytes, which an editor put there", "",
        Remedy("mend"), lost=False,
    )  # fmt: skip


def _moved(head: bytes, source: Source) -> Foreign | None:
    at = head[:4096].find(b"GGUF")
    if at <= 0 or head[at + 4 : at + 8] not in (b"\1\0\0\0", b"\2\0\0\0", b"\3\0\0\0"):
        return None
    return Foreign(
        "moved", f"a GGUF file that begins only at byte {at}: something was put before it", "", Remedy("mend"),
        lost=False,
    )  # fmt: skip


def _zeros(head: bytes, source: Source) -> Foreign | None:
    if any(head) or len(head) < 512:
        return None
    if len(head) < 4096:
        what = (
            f"a file of {source.size} zeros and nothing else: room that a download reserved and did not fill"
        )
        if source.name.lower().endswith(
            ".atlas"
        ):  # nobody downloads those: a disk was full, or a machine stopped
            return Foreign("zeros", f"a file of {source.size} zeros and nothing else", "", Remedy("recover"))
        return Foreign("zeros", what, "Get it again.")
    what = (
        f"a file that begins with {len(head)} zeros or more: room that a download reserved and did not fill"
    )
    return Foreign("zeros", what, "Get it again.", Remedy("repair-if-damaged"), lost=False)


def is_dat(source: Source) -> bool:
    """Tell whether a file starts as an importance matrix in the ``.dat`` format does."""
    head = source.read_upto(0, 8 + DAT_LONGEST_NAME)
    if len(head) < 20:
        return False
    count, length = struct.unpack("<ii", head[:8])
    name = head[8 : 8 + max(0, length)]
    return (
        0 < count <= DAT_MOST_ENTRIES
        and 0 < length <= DAT_LONGEST_NAME
        and len(name) == length
        and name.endswith((b".weight", b".bias"))
        and name.isascii()
        and name.decode().isprintable()
    )


def _imatrix(head: bytes, source: Source) -> Foreign | None:
    if not is_dat(source):
        return None
    return Foreign(
        "imatrix",
        "an importance matrix in the format from before GGUF, and neither a model nor a memory",
        "llama.cpp's quantiser reads it.",
        Remedy("inspect"),
    )


def _piece(source: Source) -> Foreign | None:
    """Recognise a later piece of a file that was cut up, by its name."""
    name = os.path.basename(source.name)
    piece = part_name(name)
    if piece is None or not re.search(r"gguf.+|part|split", name, re.I):
        return None
    return Foreign(
        "piece", "a piece of a file that was cut up, by its name", "", Remedy("join-shards"), lost=False
    )
