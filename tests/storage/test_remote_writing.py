"""New files at addresses: whole or not at all, from store to store, and none over another unless asked for."""

from __future__ import annotations

import os
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("s3fs", reason="needs the cloud extra")
pytest.importorskip("moto", reason="needs the cloud extra, and moto")
pytest.importorskip("flask_cors", reason="needs the cloud extra, and flask-cors")

from atlas_kit import MemoryFile
from atlas_kit.cli.main import run
from atlas_kit.errors import AtlasError, FileAccessError, InvalidParamError
from atlas_kit.operations.compress import compress_file
from atlas_kit.operations.convert import ConvertOptions, convert_file
from atlas_kit.operations.merge import merge_files
from atlas_kit.operations.repair import RepairOptions, repair_file
from atlas_kit.operations.validate import validate_file
from atlas_kit.storage import remote_writing
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
    s3fs.S3FileSystem.clear_instance_cache()
    return running


def test_from_store_to_store(s3: S3Server) -> None:
    memory = s3.put("in/a.atlas", (SAMPLES / "atlas" / "all-types.atlas").read_bytes())
    model = s3.put("in/m.gguf", (SAMPLES / "gguf" / "tiny.gguf").read_bytes())
    broken = s3.put("in/broken.atlas", (SAMPLES / "broken" / "truncated.atlas").read_bytes())
    assert convert_file(memory, "s3://bucket/out/a.json").to_json()["output"] == "s3://bucket/out/a.json"
    convert_file("s3://bucket/out/a.json", "s3://bucket/out/again.atlas")
    compress_file(memory, "s3://bucket/out/small.atlas")
    merge_files([memory, "s3://bucket/out/small.atlas"], "s3://bucket/out/merged.atlas")
    assert repair_file(broken, "s3://bucket/out/saved.atlas").output == "s3://bucket/out/saved.atlas"
    convert_file(model, "s3://bucket/out/m.safetensors")
    convert_file(model, "s3://bucket/out/swapped.gguf", ConvertOptions(byte_order=">"))
    for name in ("again.atlas", "small.atlas", "merged.atlas", "saved.atlas", "m.safetensors"):
        assert validate_file(f"s3://bucket/out/{name}").ok, name
    assert [one.code for one in validate_file("s3://bucket/out/swapped.gguf").findings] == ["big-endian"]


def test_nothing_is_overwritten_unasked(s3: S3Server) -> None:
    before = b"something else"
    place = s3.put("taken.atlas", before)
    memory = str(SAMPLES / "atlas" / "all-types.atlas")
    with pytest.raises(FileAccessError, match="the file exists already"):
        compress_file(memory, place)
    assert s3.file_system().cat("bucket/taken.atlas") == before
    convert_file(memory, place, ConvertOptions(force=True))
    assert validate_file(place).ok
    with pytest.raises(InvalidParamError, match="the output is the input itself"):
        convert_file(place, place, ConvertOptions(force=True))


def test_what_appears_while_the_output_is_made_stays(
    s3: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from atlas_kit.operations import convert

    memory = str(SAMPLES / "atlas" / "all-types.atlas")
    made = convert.convert_file(memory, str(tmp_path / "expected.json"))
    assert made.target_size
    write = remote_writing.put

    def late(path: str, url: str, *, new: bool = False) -> None:
        s3.file_system().pipe("bucket/late.json", b"somebody else's")
        write(path, url, new=new)

    monkeypatch.setattr(remote_writing, "put", late)
    s3.forget()
    with pytest.raises(FileAccessError, match="the file exists already"):
        convert_file(memory, "s3://bucket/late.json")
    assert s3.file_system().cat("bucket/late.json") == b"somebody else's"
    convert_file(memory, "s3://bucket/late.json", ConvertOptions(force=True))
    assert s3.file_system().cat("bucket/late.json") == (tmp_path / "expected.json").read_bytes()
    monkeypatch.undo()


def test_a_store_like_s3_without_conditions_is_looked_at_instead(
    s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    import errno

    import s3fs

    put = s3fs.S3FileSystem._put_file

    async def unknown(self: Any, *args: Any, mode: str = "overwrite", **options: Any) -> None:
        if mode == "create":
            raise OSError(errno.ENOSYS, "A header you provided implies functionality that is not implemented")
        await put(self, *args, **options)

    monkeypatch.setattr(s3fs.S3FileSystem, "_put_file", unknown)
    s3fs.S3FileSystem.clear_instance_cache()
    memory = str(SAMPLES / "atlas" / "all-types.atlas")
    convert_file(memory, "s3://bucket/older-store.json")
    with pytest.raises(FileAccessError, match="the file exists already"):
        convert_file(memory, "s3://bucket/older-store.json")


@pytest.mark.parametrize("size", [100, pytest.param((2 << 24) + 7, marks=pytest.mark.slow)])
def test_a_write_whose_answer_was_lost_finds_itself(s3: S3Server, tmp_path: Path, size: int) -> None:
    file, url = tmp_path / "x", f"s3://bucket/lost-{size}"
    file.write_bytes(os.urandom(size))
    remote_writing.put(str(file), url, new=True)
    remote_writing.put(str(file), url, new=True)
    kept = file.read_bytes()
    file.write_bytes(os.urandom(size))
    with pytest.raises(FileAccessError, match="the file exists already"):
        remote_writing.put(str(file), url, new=True)
    assert s3.file_system().cat(f"bucket/lost-{size}") == kept
    assert not s3.file_system().call_s3("list_multipart_uploads", Bucket="bucket").get("Uploads")


def test_what_fails_leaves_nothing(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    import s3fs

    memory = str(SAMPLES / "atlas" / "all-types.atlas")
    with pytest.raises(AtlasError):
        convert_file(str(SAMPLES / "broken" / "truncated.atlas"), "s3://bucket/none/a.json")

    async def cut(*_: Any, **__: Any) -> None:
        raise ConnectionResetError("geheim")

    monkeypatch.setattr(s3fs.S3FileSystem, "_put_file", cut)
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(FileAccessError, match="cannot write: the store cannot be reached") as caught:
        convert_file(memory, "s3://bucket/none/a.json")
    assert "geheim" not in str(caught.value)
    assert s3.file_system().find("bucket/none") == []
    monkeypatch.undo()
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(FileAccessError, match="there is no such bucket"):
        convert_file(memory, "s3://no-such-bucket/a.json")


@pytest.mark.slow
def test_a_large_file_goes_in_parts_and_little_memory(s3: S3Server, tmp_path: Path) -> None:
    file = tmp_path / "large.atlas"
    with MemoryFile.edit(file, create=True) as memory:
        for number in range(60):
            memory.set(f"entry-{number}", os.urandom(1_000_000), codec="none")
    s3.file_system().put_file(str(file), "bucket/large.atlas")
    s3.forget()
    tracemalloc.start()
    try:
        convert_file("s3://bucket/large.atlas", "s3://bucket/copy.atlas")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert validate_file("s3://bucket/copy.atlas").ok
    assert peak < 400_000_000  # the server is in this process, too, and keeps what it is given
    assert len([one for one in s3.asked if one[0] == "PUT"]) >= 4


def test_where_nothing_can_be_written(tmp_path: Path) -> None:
    memory = str(SAMPLES / "atlas" / "all-types.atlas")
    for url in ("https://u:geheim@127.0.0.1:1/a.json", "zip://a.json::s3://bucket/a.zip"):
        with pytest.raises(InvalidParamError, match="nothing can be written") as caught:
            convert_file(memory, url, ConvertOptions(to="json"))
        assert "geheim" not in str(caught.value)
    for url in ("s3://bucket/", "s3://bucket", "gs://bucket", "s3://"):
        with pytest.raises(InvalidParamError, match="ends in its name"):
            convert_file(memory, url, ConvertOptions(to="json", force=True))
    convert_file(memory, f"file://{tmp_path}/b.json")
    assert (tmp_path / "b.json").exists()
    compress_file(memory, f"file://{tmp_path}/b.atlas")
    assert validate_file(f"file://{tmp_path}/b.atlas").ok
    assert sorted(os.listdir(tmp_path)) == ["b.atlas", "b.json"]


def test_stores_that_show_half_a_file_get_it_under_another_name_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import fsspec
    from fsspec.implementations.memory import MemoryFileSystem

    monkeypatch.setattr(remote_writing, "_WHOLE", frozenset())
    monkeypatch.setattr(remote_writing, "_CONDITIONAL", frozenset())
    put, names = MemoryFileSystem.put_file, []

    def noted(self: Any, here: str, there: str, **options: Any) -> None:
        names.append(there)
        put(self, here, there, **options)

    monkeypatch.setattr(MemoryFileSystem, "put_file", noted)
    convert_file(str(SAMPLES / "atlas" / "all-types.atlas"), "memory://x/b.atlas")
    assert validate_file("memory://x/b.atlas").ok
    assert fsspec.filesystem("memory").ls("/x", detail=False) == ["/x/b.atlas"]
    assert [name.startswith("/x/.b.atlas.") for name in names] == [True]


def test_many_files_from_a_bucket_into_another_folder(
    s3: S3Server, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("x/1.atlas", "x/deep/2.atlas"):
        s3.put(name, (SAMPLES / "atlas" / "all-types.atlas").read_bytes())
    assert run(["compress", "s3://bucket/x/**", "-o", "s3://bucket/y"]) == 0, capsys.readouterr().err
    assert validate_file("s3://bucket/y/deep/2.atlas").ok
    assert validate_file("s3://bucket/y/1.atlas").ok


def test_repair_options_hold_for_addresses(s3: S3Server) -> None:
    model = s3.put("cut.gguf", (SAMPLES / "broken" / "truncated.gguf").read_bytes())
    result = repair_file(model, "s3://bucket/mended.gguf", RepairOptions(drop_damaged=True))
    assert result.output == "s3://bucket/mended.gguf"
    assert validate_file("s3://bucket/mended.gguf").ok
