"""Writes that only happen if nobody else wrote meanwhile: one of two wins, and none is lost without a word."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

pytest.importorskip("s3fs", reason="needs the cloud extra")
pytest.importorskip("moto", reason="needs the cloud extra, and moto")
pytest.importorskip("flask_cors", reason="needs the cloud extra, and flask-cors")

from atlas_kit.errors import ConflictError, FileAccessError, InvalidParamError
from atlas_kit.storage import remote_conditional as conditional
from tests.storage.s3_server import S3Server, s3_serving


@pytest.fixture(scope="module")
def running() -> Iterator[S3Server]:
    with s3_serving() as server:
        yield server


@pytest.fixture
def s3(running: S3Server, monkeypatch: pytest.MonkeyPatch) -> S3Server:
    import s3fs

    for name, value in running.environment.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    return running


@pytest.fixture(params=["s3://bucket/c", "memory://c"])
def folder(request: pytest.FixtureRequest, s3: S3Server) -> str:
    return f"{request.param}/{os.urandom(4).hex()}"


@pytest.mark.parametrize("name", ["a.json", "with space and ü", "sharp#and%25", "question?mark=1"])
def test_create_replace_remove(folder: str, name: str) -> None:
    url = f"{folder}/{name}"
    assert conditional.read(url) is None
    assert conditional.state(url) is None
    first = conditional.create(url, b"one")
    assert conditional.read(url) == conditional.Stored(b"one", first)
    with pytest.raises(ConflictError, match="written by somebody else"):
        conditional.create(url, b"two")
    second = conditional.replace(url, b"two", first)
    assert second != first
    with pytest.raises(ConflictError):
        conditional.replace(url, b"three", first)
    with pytest.raises(ConflictError):
        conditional.remove(url, first)
    found = conditional.read(url)
    assert found is not None
    assert found.data == b"two"
    conditional.remove(url, second)
    conditional.remove(url, second)
    assert conditional.read(url) is None
    with pytest.raises(ConflictError):
        conditional.replace(url, b"four", second)
    assert conditional.read(url) is None


def test_of_many_one_wins(folder: str) -> None:
    url = f"{folder}/lease"

    def take(number: int) -> str | None:
        try:
            return conditional.create(url, f"mine: {number}".encode())
        except ConflictError:
            return None

    with ThreadPoolExecutor(8) as pool:
        won = [state for state in pool.map(take, range(16)) if state is not None]
    assert len(won) == 1
    assert conditional.state(url) == won[0]


def test_a_write_whose_answer_was_lost_is_no_conflict(folder: str, tmp_path: Path) -> None:
    url = f"{folder}/x"
    first = conditional.create(url, b"mine")
    assert conditional.create(url, b"mine") == first
    second = conditional.replace(url, b"next", first)
    assert conditional.replace(url, b"next", first) == second


@pytest.mark.slow
def test_a_large_file_goes_in_parts_and_under_the_same_conditions(s3: S3Server, tmp_path: Path) -> None:
    url, file = "s3://bucket/large", tmp_path / "large"
    file.write_bytes(os.urandom(conditional.PART + 1000))
    first = conditional.create(url, str(file))
    assert conditional.create(url, str(file)) == first
    file.write_bytes(os.urandom(conditional.PART + 1000))
    with pytest.raises(ConflictError):
        conditional.create(url, str(file))
    second = conditional.replace(url, str(file), first)
    assert s3.file_system().cat("bucket/large") == file.read_bytes()
    with pytest.raises(ConflictError):
        conditional.replace(url, b"x", first)
    assert conditional.state(url) == second
    uploads = s3.file_system().call_s3("list_multipart_uploads", Bucket="bucket")
    assert not uploads.get("Uploads")


def test_what_cannot_be_written(s3: S3Server) -> None:
    for call in (conditional.read, conditional.state, lambda url: conditional.create(url, b"x")):
        with pytest.raises(FileAccessError, match="no such bucket"):
            call("s3://no-such-bucket/x")
        with pytest.raises(InvalidParamError, match="cannot tell whether somebody else") as caught:
            call("https://u:geheim@127.0.0.1:1/x")
        assert "geheim" not in str(caught.value)
    assert not conditional.has_conditions("hf://owner/model/x")
    assert not conditional.has_conditions("zip://a::s3://bucket/a.zip")


def test_whether_a_store_keeps_to_it_is_tried(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert conditional.keeps_conditions(folder)
    assert not conditional.keeps_conditions("ftp://127.0.0.1:1/x")
    kind = conditional._KINDS[folder.partition(":")[0]]

    def careless(self: conditional._Place, data: bytes | str, wanted: str | None) -> str:
        assert isinstance(data, bytes)
        self.fs.pipe_file(self.place, data)
        return str(self.state())

    monkeypatch.setattr(kind, "put", careless)
    assert not conditional.keeps_conditions(folder)
