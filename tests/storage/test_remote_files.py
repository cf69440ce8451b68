"""A file at an address: how often a server is asked and for how much, and what is said when that goes wrong."""

from __future__ import annotations

import base64
import errno
import itertools
import json
import os
import struct
import subprocess
import sys
import time
import types
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("aiohttp", reason="needs the cloud extra")
pytest.importorskip("fsspec", reason="needs the cloud extra")

from atlas_kit import MemoryFile
from atlas_kit.errors import (
    AtlasError,
    ConflictError,
    DataTooLargeError,
    FileAccessError,
    InvalidParamError,
    MissingExtraError,
    NoSuchFileError,
    TruncatedError,
)
from atlas_kit.formats.gguf import GGUFFile
from atlas_kit.formats.gguf.scan import scan_header
from atlas_kit.operations.get import get_value
from atlas_kit.operations.inspect import Wanted, inspect_file
from atlas_kit.operations.validate import validate_file
from atlas_kit.storage import remote, remote_stores
from atlas_kit.storage.given import name_of, open_source, sha256_of
from atlas_kit.storage.remote import RemoteSource
from atlas_kit.storage.remote_writing import published
from atlas_kit.storage.urls import is_url, local_path, shown, without_secrets
from tests.storage.web_server import Page, WebServer, serving

SAMPLES = Path(__file__).parents[2] / "sample_data"
TOKENS = 262_144


@pytest.fixture
def web() -> Iterator[WebServer]:
    with serving({}) as server:
        yield server


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let nobody wait long for a second try."""
    monkeypatch.setattr(remote_stores, "PATIENCE", remote_stores.Patience(first_wait=0.01, longest_wait=0.02))


def _text(raw: bytes) -> bytes:
    return struct.pack("<Q", len(raw)) + raw


def _entry(url: str, key: str) -> bytes:
    with get_value(url, key) as value:
        return b"".join(value.chunks())


def _header(*, merges: bool, template: int = 0) -> bytes:
    """Return the header of a model with a vocabulary of 262,144 tokens."""
    tokens = [b"t%d" % (n * 7919 % 10**9) for n in range(TOKENS)]
    strings = lambda texts: struct.pack("<iiQ", 9, 8, len(texts)) + b"".join(map(_text, texts))  # noqa: E731
    numbers = lambda kind: struct.pack("<iiQ", 9, kind, TOKENS) + bytes(4 * TOKENS)  # noqa: E731
    pairs = [(b"general.architecture", struct.pack("<i", 8) + _text(b"llama"))]
    if template:
        pairs.append((b"tokenizer.chat_template", struct.pack("<i", 8) + _text(b"x" * template)))
    pairs.append((b"tokenizer.ggml.tokens", strings(tokens)))
    if merges:
        pairs.append((b"tokenizer.ggml.token_type", numbers(5)))
        pairs.append((b"tokenizer.ggml.merges", strings([token + b" ab" for token in tokens] * 2)))
    else:
        pairs += [(b"tokenizer.ggml.scores", numbers(6)), (b"tokenizer.ggml.token_type", numbers(5))]
    pairs += [(b"tokenizer.ggml.id_%d" % n, struct.pack("<iI", 4, n)) for n in range(6)]
    head = b"GGUF" + struct.pack("<IQQ", 3, 500, len(pairs)) + b"".join(_text(k) + v for k, v in pairs)
    for n in range(500):
        head += _text(b"blk.%d.attn_q.weight" % n) + struct.pack("<IQQiQ", 2, 32, 32, 0, n * 4096)
    return head


@pytest.mark.slow
@pytest.mark.parametrize(("merges", "template"), [(False, 0), (True, 0), (True, 90_000)])
def test_header_of_262144_tokens_in_four_requests(web: WebServer, merges: bool, template: int) -> None:
    head = _header(merges=merges, template=template)
    web.pages["/m.gguf"] = Page(head + bytes(-len(head) % 32) + os.urandom(4096) * 500 + bytes(1 << 23))
    with GGUFFile.open(web.url("/m.gguf")) as model:
        assert len(model.tensor_infos) == 500
        tokens = model.get("tokenizer.ggml.tokens")
        assert len(tokens) == TOKENS
        assert tokens[TOKENS - 1].startswith("t")
    assert len(web.asked) <= 4
    assert web.sent <= 1.2 * len(head)
    web.forget()
    inspect_file(web.url("/m.gguf"), Wanted())
    assert len(web.asked) <= 4
    assert web.sent <= 1.2 * len(head)


class _InHand(remote_stores.Store):
    """A store without a network, for headers of which many are tried."""

    def __init__(self, data: bytes) -> None:
        super().__init__("https://example.org/m.gguf")
        self.data = data

    def _ask(self, start: int, size: int, state: str | None) -> remote_stores.Piece:
        return remote_stores.Piece(self.data[start : start + size], len(self.data), "one")

    def _look(self) -> remote_stores.Piece:
        return remote_stores.Piece(b"", len(self.data), "one")


_SHAPES = {
    "shrinking": lambda n: 9 - 6 * n // TOKENS,
    "shrinking much": lambda n: 20 - 17 * n // TOKENS,
    "growing": lambda n: 3 + 6 * n // TOKENS,
    "long ones first": lambda n: 30 if n < 6000 else 4,
    "a long third": lambda n: 20 if n < TOKENS // 3 else 4,
    "long ones near the front": lambda n: 20 if 20_000 < n < 60_000 else 4,
    "empty ones": lambda n: 0 if n % 3 else 12,
}


@pytest.mark.slow
@pytest.mark.parametrize("merges", [False, True])
@pytest.mark.parametrize("shape", list(_SHAPES))
def test_whatever_the_lengths_of_tokens_little_is_read_in_vain(shape: str, merges: bool) -> None:
    lengths = list(map(_SHAPES[shape], range(TOKENS)))
    strings = lambda texts: struct.pack("<iiQ", 9, 8, len(texts)) + b"".join(map(_text, texts))  # noqa: E731
    kinds = struct.pack("<iiQ", 9, 5, TOKENS) + bytes(4 * TOKENS)
    pairs = [(b"tokenizer.ggml.tokens", strings([b"t" * n for n in lengths]))]
    if not merges:
        pairs.append((b"tokenizer.ggml.scores", struct.pack("<iiQ", 9, 6, TOKENS) + bytes(4 * TOKENS)))
    pairs.append((b"tokenizer.ggml.token_type", kinds))
    if merges:
        pairs.append((b"tokenizer.ggml.merges", strings([b"t" * (n + 1) for n in lengths])))
    pairs += [(b"tokenizer.ggml.id_%d" % n, struct.pack("<iI", 4, n)) for n in range(8)]
    head = b"GGUF" + struct.pack("<IQQ", 3, 0, len(pairs)) + b"".join(_text(k) + v for k, v in pairs)
    source = RemoteSource("https://example.org/m.gguf", _InHand(head + bytes(3 * len(head))))
    assert scan_header(source).stage == "done"
    assert source.requests <= 4
    assert source.received <= 1.2 * len(head)


def test_one_entry_reads_header_index_and_that_entry(web: WebServer, tmp_path: Path) -> None:
    file = tmp_path / "m.atlas"
    with MemoryFile.edit(file, create=True) as memory:
        for n in range(40):
            memory.set(f"entry-{n}", os.urandom(100_000), codec="none")
        memory.set("wanted", b"found")
    web.pages["/m.atlas"] = Page(file.read_bytes())
    assert _entry(web.url("/m.atlas"), "wanted") == b"found"
    assert len(web.asked) <= 3
    assert web.sent < 50_000
    web.forget()
    assert len(_entry(web.url("/m.atlas"), "entry-20")) == 100_000
    assert len(web.asked) <= 4
    assert web.sent < 150_000


def test_a_whole_file_is_read_in_large_pieces(web: WebServer) -> None:
    data = os.urandom(20_000_000)
    web.pages["/data"] = Page(data)
    with open_source(web.url("/data")) as source:
        assert b"".join(source.chunks(0, source.size)) == data
        assert bytes(source.view(5, 1000)) == data[5:1005]
        assert source.read(19_999_990, 10) == data[-10:]
        with pytest.raises(TruncatedError):
            source.read(19_999_990, 11)
    assert len(web.asked) <= 5
    assert web.sent <= 1.1 * len(data)


def test_what_is_read_again_is_not_asked_for_again(web: WebServer) -> None:
    web.pages["/data"] = Page(bytes(range(256)) * 1000)
    with open_source(web.url("/data")) as source:
        for at in (0, 100_000, 200_000, 100_100, 5, 200_050):
            assert source.read(at, 10) == web.pages["/data"].data[at : at + 10]
    assert len(web.asked) == 3


def test_large_views_lie_in_a_file(web: WebServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "LARGE_VIEW", 1000)
    data = os.urandom(300_000)
    web.pages["/data"] = Page(data)
    with open_source(web.url("/data")) as source:
        view = source.view(1000, 250_000)
    assert bytes(view) == data[1000:251_000]


@pytest.mark.parametrize("name", ["atlas/all-types.atlas", "gguf/tiny.gguf", "broken/truncated.atlas"])
def test_the_same_as_of_a_file_here(web: WebServer, name: str) -> None:
    path = SAMPLES / name
    web.pages[f"/{name}"] = Page(path.read_bytes())
    here = json.loads(json.dumps(inspect_file(path, Wanted(entries=True)).to_json(), default=str))
    there = json.loads(
        json.dumps(inspect_file(web.url(f"/{name}"), Wanted(entries=True)).to_json(), default=str)
    )
    assert {k: v for k, v in there.items() if k != "path"} == {k: v for k, v in here.items() if k != "path"}
    assert sha256_of(web.url(f"/{name}")) == sha256_of(path)
    codes = [one.code for one in validate_file(path).findings]
    assert [one.code for one in validate_file(web.url(f"/{name}")).findings] == codes


def test_an_empty_file(web: WebServer) -> None:
    web.pages["/empty.atlas"] = Page(b"")
    assert [one.code for one in validate_file(web.url("/empty.atlas")).findings] == ["empty-file"]


# --- what goes wrong -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "kind", "words"),
    [
        (404, NoSuchFileError, "there is no such file"),
        (410, NoSuchFileError, "there is no such file"),
        (401, FileAccessError, "401 Unauthorized, it wants to know who asks"),
        (403, FileAccessError, "403 Forbidden, permission is denied"),
        (418, FileAccessError, "418"),
        (204, FileAccessError, "the server answers 204 No Content"),
        (302, FileAccessError, "the server answers 302 Found"),  # and does not say where to
        (304, FileAccessError, "the server answers 304 Not Modified"),
    ],
)
def test_refusals_are_one_sentence_and_not_tried_again(
    web: WebServer, status: int, kind: type[AtlasError], words: str
) -> None:
    web.pages["/data"] = Page(b"x", fails=[status] * 9)
    with pytest.raises(kind, match=words) as caught:
        open_source(web.url("/data"))
    assert len(web.asked) == 1
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_what_passes_is_tried_again(web: WebServer, status: int) -> None:
    web.pages["/data"] = Page(b"content", fails=[status, status], headers={"Retry-After": "1"})
    with open_source(web.url("/data")) as source:
        assert source.read(0, 7) == b"content"
    assert len(web.asked) == 3
    web.pages["/data"].fails = [status] * 9
    with pytest.raises(FileAccessError, match=f"the server answers {status} .*, 4 times in a row"):
        open_source(web.url("/data"))


def test_a_cut_connection_is_taken_up_again(web: WebServer) -> None:
    data = os.urandom(200_000)
    web.pages["/data"] = Page(data, cuts=[100, 50_000])
    with open_source(web.url("/data")) as source:
        assert source.read(0, len(data)) == data
    web.pages["/data"].cuts = [10] * 9
    with pytest.raises(FileAccessError, match="the connection was cut, 4 times in a row"):
        open_source(web.url("/data"))


def test_connections_that_are_always_cut_after_a_while(web: WebServer) -> None:
    data = os.urandom(200_000)
    web.pages["/data"] = Page(data, cuts=[20_000] * 99)
    with open_source(web.url("/data")) as source:
        assert source.read(0, len(data)) == data
        assert source.requests == 10


def test_a_server_that_sends_drop_by_drop(web: WebServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_stores, "PATIENCE", remote_stores.Patience(tries=2, first_wait=0.01))
    monkeypatch.setattr(remote_stores, "SLOWEST", 1 << 30)
    seconds = itertools.count(step=20)  # each look at the clock is so much later
    clock = types.SimpleNamespace(monotonic=lambda: next(seconds), sleep=time.sleep)
    monkeypatch.setattr(remote_stores, "time", clock)
    web.pages["/data"] = Page(bytes(1000), drips=0.05)
    with pytest.raises(FileAccessError, match="the server sends it too slowly, 2 times in a row"):
        open_source(web.url("/data"))


@pytest.mark.parametrize(
    "said", ["bytes 5-2/10", "bytes 1-9/10", "bytes */10", "bytes 0-9/*", "nonsense", ""]
)
def test_a_part_that_is_another_one(web: WebServer, said: str) -> None:
    web.pages["/data"] = Page(bytes(10), headers={"Content-Range": said})
    with pytest.raises(FileAccessError, match="does not say which part of the file it is"):
        open_source(web.url("/data"))


def test_a_server_that_does_not_answer(web: WebServer, monkeypatch: pytest.MonkeyPatch) -> None:
    patient = remote_stores.Patience(read=0.3, tries=99, first_wait=0.01, longest_wait=0.01)
    monkeypatch.setattr(remote_stores, "PATIENCE", patient)  # a busy machine may not answer in time, too
    web.pages["/data"] = Page(b"late", hangs=1)
    with open_source(web.url("/data")) as source:
        assert source.read(0, 4) == b"late"
        assert source.requests > 1
    monkeypatch.setattr(remote_stores, "PATIENCE", remote_stores.Patience(read=0.3, tries=2, first_wait=0.01))
    web.pages["/data"].hangs = 2
    with pytest.raises(FileAccessError, match="does not answer in time, 2 times in a row"):
        open_source(web.url("/data"))


@pytest.mark.parametrize("careful", [True, False])
@pytest.mark.parametrize("etag", ['"one"', 'W/"one"', None])
def test_a_file_that_is_changed_while_it_is_read(web: WebServer, careful: bool, etag: str | None) -> None:
    page = web.pages["/data"] = Page(bytes(300_000), etag=etag, careful=careful)
    with open_source(web.url("/data")) as source:
        source.read(0, 10)
        assert not source.changed()
        page.data, page.etag = os.urandom(300_000), '"two"' if etag else None
        if etag is None:
            page.headers["Last-Modified"] = "Mon, 30 Nov 2026 10:00:00 GMT"
        assert source.changed()
        with pytest.raises(ConflictError, match="changed while it was being read"):
            source.read(200_000, 10)


def test_a_server_without_ranges_is_asked_once(web: WebServer, monkeypatch: pytest.MonkeyPatch) -> None:
    data = os.urandom(500_000)
    web.pages["/data"] = Page(data, ranges=False)
    with open_source(web.url("/data")) as source:
        assert source.read(400_000, 1000) == data[400_000:401_000]
        assert sha256_of(source) == sha256_of(data)
    assert len(web.asked) == 1
    monkeypatch.setattr(remote_stores, "WHOLE_LIMIT", 1000)
    with pytest.raises(DataTooLargeError, match="sends files only whole"):
        open_source(web.url("/data"))


def test_a_disk_that_is_full_is_named(web: WebServer, monkeypatch: pytest.MonkeyPatch) -> None:
    from atlas_kit.storage.source import access_error

    full = OSError(errno.ENOSPC, "No space left on device")

    class Full:
        def __enter__(self) -> Full:
            return self

        def __exit__(self, *_: object) -> None: ...

        def write(self, _: bytes) -> None:
            raise full

        def close(self) -> None: ...

    monkeypatch.setattr("tempfile.SpooledTemporaryFile", lambda **_: Full())
    monkeypatch.setattr("tempfile.TemporaryFile", Full)
    monkeypatch.setattr(remote, "LARGE_VIEW", 100)
    web.pages["/whole"] = Page(bytes(1000), ranges=False)
    web.pages["/data"] = Page(bytes(1000))
    with pytest.raises(FileAccessError, match="cannot read: the folder for temporary files is full"):
        open_source(web.url("/whole"))
    with (
        open_source(web.url("/data")) as source,
        pytest.raises(FileAccessError, match="cannot read: the folder"),
    ):
        source.view(0, 1000)
    for told in (full, access_error(full, "here", "write")):
        told.__cause__ = None if told is full else full
        with pytest.raises(FileAccessError) as caught, published("memory://x/a.json"):
            raise told
        assert str(caught.value).startswith(
            "memory://x/a.json: cannot write: the folder for temporary files is full"
        )


def test_redirects_are_followed_once(web: WebServer) -> None:
    web.pages["/here"] = Page(to="/there?X-Amz-Signature=geheim")
    web.pages["/there"] = Page(bytes(300_000))
    with open_source(web.url("/here")) as source:
        source.read(100_000, 10)
        source.read(200_000, 10)
        web.pages["/there"].fails = [403]  # the address has expired
        source.read(250_000, 10)
    assert [path.partition("?")[0] for _, path, _ in web.asked] == [
        "/here", "/there", "/there", "/there", "/there", "/here", "/there",
    ]  # fmt: skip
    web.pages["/loop"] = Page(to="/loop")
    with pytest.raises(FileAccessError, match="without end"):
        open_source(web.url("/loop"))
    web.pages["/odd"] = Page(to="ftp://elsewhere/x")
    with pytest.raises(FileAccessError, match="not a valid one"):
        open_source(web.url("/odd"))


def test_a_server_that_answers_nothing_but_get(web: WebServer) -> None:
    """As stores do for addresses that are signed for one method."""
    web.pages["/cut.gguf"] = Page((SAMPLES / "gguf" / "tiny.gguf").read_bytes()[:500], gets_only=True)
    with open_source(web.url("/cut.gguf")) as source:
        assert not source.changed()
    with pytest.raises(TruncatedError):
        GGUFFile.open(web.url("/cut.gguf"))


def test_nobody_there() -> None:
    with serving({}) as server:
        url = server.url("/data")
    with pytest.raises(FileAccessError, match="refuses the connection, 4 times in a row"):
        open_source(url)


# --- secrets ---------------------------------------------------------------------------------------------------


def test_secrets_are_used_and_never_shown(web: WebServer) -> None:
    data = (SAMPLES / "broken" / "truncated.atlas").read_bytes()
    web.pages["/m.atlas"] = Page(data, password=base64.b64encode(b"anna:geheim").decode())
    url = web.url("/m.atlas?X-Amz-Signature=signed").replace("://", "://anna:geheim@")
    report = validate_file(url)
    assert report.findings[0].code != "cannot-read"
    wrong = url.replace("geheim", "falsch")
    texts = [json.dumps(report.to_json()), json.dumps(inspect_file(url, Wanted()).to_json(), default=str)]
    texts += [json.dumps(validate_file(wrong).to_json()), name_of(url)]
    for text in texts:
        assert "m.atlas" in text
        for secret in ("geheim", "falsch", "anna", "signed"):
            assert secret not in text


@pytest.mark.parametrize(
    ("url", "seen"),
    [
        ("https://u:p@host/a.gguf?sig=1#x", "https://host/a.gguf"),
        ("http://u:p@[::1]:80/a", "http://[::1]:80/a"),
        ("s3://bucket/a?b/*.gguf", "s3://bucket/a?b/*.gguf"),
        ("s3://bucket/a?versionId=4", "s3://bucket/a"),
        ("s3://key:secret@bucket/a#1", "s3://bucket/a#1"),
        ("zip://in.gguf::https://u:p@host/a.zip?t=1", "zip://in.gguf::https://host/a.zip"),
        ("http://user:password/x", "http://user/x"),
        ("https://[bad/x?s=1", "https://..."),
        ("plain/path?x=1", "plain/path?x=1"),
    ],
)
def test_how_addresses_are_shown(url: str, seen: str) -> None:
    assert shown(url) == seen


@pytest.mark.parametrize(
    "command",
    [
        ["validate"], ["validate", "none"], ["inspect"], ["inspect", "--table", "{table}"], ["hash"], ["ls"],
        ["get", "{url}"], ["rekey", "{url}", "{url}"], ["perplexity", "{url}"], ["compress", "-o", "{url}"],
        ["validate", "--scheduler", "{url}"],
    ],
)  # fmt: skip
@pytest.mark.parametrize("status", [200, 403, 404])
def test_no_command_shows_a_secret(
    web: WebServer, capsys: pytest.CaptureFixture[str], tmp_path: Path, command: list[str], status: int
) -> None:
    from atlas_kit.cli.main import run

    fails = [] if status == 200 else [status] * 9
    web.pages["/m.atlas"] = Page((SAMPLES / "atlas" / "all-types.atlas").read_bytes(), fails=fails)
    url = web.url("/m.atlas").replace("//", "//user:geheim@") + "?X-Amz-Signature=geheim&x=*[1]"
    table = tmp_path / "t.jsonl"
    code = run([command[0], url, *(one.format(url=url, table=table) for one in command[1:])])
    said = "".join(capsys.readouterr()) + (table.read_text() if table.exists() else "")
    assert "geheim" not in said
    assert "pattern" not in said
    assert (code == 0) == (status == 200 and command[0] in ("validate", "inspect", "hash", "ls") and not {
        "none", "--scheduler"} & set(command)), said  # fmt: skip


@pytest.mark.parametrize(
    "address", ["hf://x", "https://", "s3://bucket", "s3://bucket/key", "https://h:8080/x"]
)
def test_what_is_said_of_an_address_stays_apart_from_it(address):
    assert without_secrets(f"{address}: cannot read: it is away") == f"{address}: cannot read: it is away"


def test_addresses_in_a_text() -> None:
    said = without_secrets('no "s3://a:b@c/d?e=f" (https://u:p@h/x?s=1 y) and http:// http://[ it is')
    assert said == 'no "s3://c/d" (https://h/x y) and http:// http://... it is'


def test_what_an_address_is() -> None:
    assert all(map(is_url, ("s3://b/k", "hf://a/b/c", "https://h", "memory://x", "simplecache::s3://b/k")))
    assert not any(map(is_url, ("c:/x", "a.gguf", "./s3://", "-", b"s3://b", Path("s3://b"), "")))
    assert local_path("file:///a%20b") == "/a b"
    assert local_path("s3://x") is None
    assert sha256_of(f"file://{SAMPLES}/gguf/tiny.gguf") == sha256_of(SAMPLES / "gguf" / "tiny.gguf")


# --- other stores ----------------------------------------------------------------------------------------------


def test_any_store_that_fsspec_knows() -> None:
    import fsspec

    fs = fsspec.filesystem("memory")
    fs.pipe("/f/all.atlas", (SAMPLES / "atlas" / "all-types.atlas").read_bytes())
    assert validate_file("memory://f/all.atlas").ok
    with pytest.raises(NoSuchFileError):
        open_source("memory://f/none.atlas")
    fs.pipe("/f/large", bytes(300_000))
    with open_source("memory://f/large") as source:
        fs.pipe("/f/large", bytes(200_000) + b"x" * 100_000)
        with pytest.raises(ConflictError):
            source.read(200_000, 10)


def test_stores_that_cannot_be_opened() -> None:
    with pytest.raises(FileAccessError, match="cannot read: the store cannot be reached"):
        open_source("ftp://user:geheim@127.0.0.1:1/a.gguf")
    with pytest.raises(NoSuchFileError, match="there is no such file"):
        open_source("zip://a.gguf::file:///none/at/all.zip")
    script = (
        "import logging, sys\nfrom atlas_kit.storage.remote_stores import file_system_of\n"
        "file_system_of('memory://x', 'memory://x')\n"
        "for name in ('gcsfs', 's3fs', 'fsspec.asyn'): logging.getLogger(name).error('https://geheim')\n"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert ended.stderr == ""


def test_unknown_schemes_and_files_that_are_not_here() -> None:
    with pytest.raises(InvalidParamError, match="s4:// is not a kind of address"):
        open_source("s4://bucket/key")
    from atlas_kit.operations.set import SetOptions, set_value

    with pytest.raises(InvalidParamError, match="only a file on this machine can be changed"):
        set_value("https://u:p@127.0.0.1:1/a.atlas", "key", b"1", SetOptions())


def test_without_the_packages_their_name_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("fsspec", "fsspec.core"):  # the second is found without the first, if a test has imported it
        monkeypatch.setitem(sys.modules, name, None)
    for url in ("https://127.0.0.1:1/a", "s3://b/k"):
        with pytest.raises(MissingExtraError, match=r'pip install "atlas-kit\[cloud\]"'):
            open_source(url)


def test_files_here_import_none_of_it() -> None:
    code = (
        "import sys; from atlas_kit.cli.main import run; run(['validate', sys.argv[1]]);"
        "print([m for m in ('fsspec', 'aiohttp', 's3fs') if m in sys.modules])"
    )
    file = str(SAMPLES / "gguf" / "tiny.gguf")
    done = subprocess.run([sys.executable, "-c", code, file], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


# --- commands --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run", "URL/m.gguf", "-p", "x"], "llama.cpp runs models from files on this machine only"),
        (["serve", "-m", "URL/m.gguf"], "llama.cpp runs models from files on this machine only"),
        (["set", "URL/a.atlas", "k", "v"], "only a file on this machine can be changed in place"),
        (["rm", "URL/m.gguf", "general.name"], "only a file on this machine can be changed in place"),
        (["encrypt", "URL/a.atlas"], "only a file on this machine can be changed in place"),
        (["recover", "URL/a.atlas"], "backups are beside files on this machine only"),
        (["inspect", "URL/none.gguf"], "there is no such file"),
        (["inspect", "ssh://x/y"], "ssh:// addresses need another package"),
        (["inspect", "hf://x"], "not a valid one for its store"),
    ],
)
def test_what_an_address_cannot_be(
    web: WebServer,
    arguments: list[str],
    said: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from atlas_kit.cli.main import run

    if arguments[-1].startswith("ssh"):
        monkeypatch.setitem(sys.modules, "paramiko", None)
    if arguments[0] in ("run", "serve"):
        pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    web.pages["/m.gguf"] = Page((SAMPLES / "gguf" / "tiny.gguf").read_bytes())
    web.pages["/a.atlas"] = Page((SAMPLES / "atlas" / "all-types.atlas").read_bytes())
    base = web.url("").replace("://", "://anna:geheim@")
    assert run([word.replace("URL", base) for word in arguments]) == 2
    heard = capsys.readouterr().err
    assert said in heard
    assert len(heard.splitlines()) == 1
    assert "geheim" not in heard


def test_a_model_is_written_anew_in_few_requests(web: WebServer, tmp_path: Path) -> None:
    from atlas_kit.operations.convert import ConvertOptions, convert_file

    web.pages["/m.gguf"] = Page((SAMPLES / "gguf" / "tiny.gguf").read_bytes())
    convert_file(web.url("/m.gguf"), str(tmp_path / "m.gguf"), ConvertOptions(byte_order=">"))
    assert len(web.asked) <= 3


@pytest.mark.parametrize(
    "to", ["file:///etc/passwd", "data:,GGUF", "ftp://127.0.0.1:1/x", "s3://bucket/x", "gopher://x"]
)
def test_a_web_server_leads_to_no_other_kind_of_place(web: WebServer, to: str) -> None:
    web.pages["/m.gguf"] = Page(to=to)
    with pytest.raises(FileAccessError, match="the address, or one that it leads to, is not a valid one"):
        open_source(web.url("/m.gguf"))


@pytest.mark.parametrize("more", [-100, 100])
def test_a_server_that_is_wrong_about_how_much_there_is(web: WebServer, more: int) -> None:
    data = (SAMPLES / "gguf" / "tiny.gguf").read_bytes()
    web.pages["/m.gguf"] = Page(data, ranges=False, headers={"Content-Length": str(len(data) + more)})
    if more > 0:
        with pytest.raises(FileAccessError, match=r"the connection was cut|cannot be understood"):
            sha256_of(web.url("/m.gguf"))
    else:
        assert not validate_file(web.url("/m.gguf")).ok


def test_what_comes_packed_is_unpacked_whole(web: WebServer) -> None:
    import gzip

    data = (SAMPLES / "gguf" / "tiny.gguf").read_bytes()
    web.pages["/m.gguf"] = Page(gzip.compress(data), ranges=False, headers={"Content-Encoding": "gzip"})
    with open_source(web.url("/m.gguf")) as source:
        assert source.read(0, source.size) == data
    web.pages["/m.gguf"] = Page(gzip.compress(data), headers={"Content-Encoding": "gzip"})
    with pytest.raises(FileAccessError, match="coded"):
        sha256_of(web.url("/m.gguf"))
