"""Files in a bucket of a local S3 server: how often it is asked, what changes meanwhile, what it refuses."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("s3fs", reason="needs the cloud extra")
pytest.importorskip("moto", reason="needs the cloud extra, and moto")
pytest.importorskip("flask_cors", reason="needs the cloud extra, and flask-cors")

from atlas_kit import MemoryFile
from atlas_kit.errors import ConflictError, FileAccessError, NoSuchFileError
from atlas_kit.operations.get import get_value
from atlas_kit.operations.inspect import Wanted, inspect_file
from atlas_kit.operations.validate import validate_file
from atlas_kit.storage import remote_stores
from atlas_kit.storage.given import open_source
from tests.storage.s3_server import S3Server, s3_serving

SAMPLES = Path(__file__).parents[2] / "sample_data"


@pytest.fixture(scope="module")
def running() -> Iterator[S3Server]:
    with s3_serving() as server:
        yield server


@pytest.fixture
def s3(running: S3Server, monkeypatch: pytest.MonkeyPatch) -> S3Server:
    import s3fs

    for name, value in running.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(remote_stores, "PATIENCE", remote_stores.Patience(first_wait=0.01, longest_wait=0.02))
    s3fs.S3FileSystem.clear_instance_cache()
    running.forget()
    return running


def test_a_model_in_one_request_without_asking_for_its_size_first(s3: S3Server) -> None:
    url = s3.put("models/tiny.gguf", (SAMPLES / "gguf" / "tiny.gguf").read_bytes())
    s3.forget()
    assert inspect_file(url, Wanted()).to_json()["path"] == url
    assert s3.asked == [("GET", "/bucket/models/tiny.gguf")]


def test_one_entry_of_a_memory(s3: S3Server, tmp_path: Path) -> None:
    file = tmp_path / "m.atlas"
    with MemoryFile.edit(file, create=True) as memory:
        for n in range(20):
            memory.set(f"entry-{n}", os.urandom(100_000), codec="none")
    url = s3.put("m.atlas", file.read_bytes())
    s3.forget()
    with get_value(url, "entry-7") as value:
        assert sum(map(len, value.chunks())) == 100_000
    assert len(s3.asked) <= 4
    with open_source(url) as source:
        assert source.modified > 1_000_000_000


def test_a_file_that_is_changed_while_it_is_read(s3: S3Server) -> None:
    url = s3.put("data", bytes(300_000))
    with open_source(url) as source:
        assert not source.changed()
        s3.put("data", os.urandom(300_000))
        assert source.changed()
        with pytest.raises(ConflictError, match="changed while it was being read"):
            source.read(200_000, 10)


def test_what_there_is_not(s3: S3Server) -> None:
    assert [one.code for one in validate_file(s3.put("empty.gguf", b"")).findings] == ["file-empty"]
    for url in ("s3://bucket/none.gguf", "s3://no-such-bucket/none.gguf"):
        with pytest.raises(NoSuchFileError, match="there is no such file"):
            open_source(url)
    with pytest.raises(FileAccessError, match="this is a bucket"):
        open_source("s3://bucket")


def test_nobody_there_and_no_credentials(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    import s3fs

    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(FileAccessError, match="cannot be reached") as caught:
        open_source("s3://bucket/key")
    assert "geheim" not in str(caught.value)


def test_names_that_look_like_patterns(s3: S3Server, capsys: pytest.CaptureFixture[str]) -> None:
    from atlas_kit.cli.main import run

    model = (SAMPLES / "gguf" / "micro.gguf").read_bytes()
    for name in ("odd/a[1].gguf", "odd/b?.gguf"):
        s3.put(name, model)
        for command in (["inspect"], ["validate", "--workers", "1"], ["hash"]):
            assert run([*command, f"s3://bucket/{name}"]) == 0, capsys.readouterr().err
    capsys.readouterr()
    for name in ("odd/", "odd/*.gguf", "odd/**"):
        assert run(["validate", f"s3://bucket/{name}"]) == 0
        assert "2 files, all well" in capsys.readouterr().out
    assert run(["inspect", "s3://bucket/odd/none[1].gguf"]) == 2
    assert "the pattern matches no file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("url", "pattern"),
    [
        ("s3://b/a.gguf", False),
        ("s3://b/*.gguf", True),
        ("s3://b/a[12].gguf", True),
        ("s3://b/a?.gguf", True),
        ("https://h/a?x[1]=*", False),
        ("https://h/*.gguf?x=1", True),
        ("https://[::1]/a.gguf", False),
        ("zip://*.gguf::s3://b/a.zip", True),
        ("zip://a.gguf::s3://b/*.zip", False),
    ],
)
def test_what_is_a_pattern(url: str, pattern: bool) -> None:
    from atlas_kit.storage.remote_listing import is_pattern

    assert is_pattern(url) is pattern
