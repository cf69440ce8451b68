"""Conditional writes: in S3 (moto's), Google's store (a small one), memory, and a folder, which has none."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from atlas_kit.errors import ConflictError, FileAccessError, InvalidParamError
from atlas_kit.storage import objects
from atlas_kit.storage.objects import ABSENT, Objects, objects_at

pytest.importorskip("fsspec", reason="needs the cloud extra")


@pytest.fixture(scope="module")
def server() -> Iterator[Any]:
    pytest.importorskip("s3fs", reason="needs the cloud extra")
    pytest.importorskip("flask_cors", reason="needs the cloud extra, and flask-cors")
    pytest.importorskip("moto", reason="needs the cloud extra, and moto")
    from tests.storage.s3_server import s3_serving

    with s3_serving() as running, pytest.MonkeyPatch.context() as patch:
        for name, value in running.environment.items():
            patch.setenv(name, value)
        yield running


@pytest.fixture(scope="module")
def google() -> Iterator[None]:
    pytest.importorskip("gcsfs", reason="needs the cloud extra")
    from tests.storage.google_server import google_serving

    with google_serving() as running, pytest.MonkeyPatch.context() as patch:
        patch.setenv("STORAGE_EMULATOR_HOST", running.endpoint)
        patch.setenv("NO_GCE_CHECK", "true")
        yield


@pytest.fixture(params=["s3", "gs", "memory"])
def store(request: pytest.FixtureRequest) -> Objects:
    name = request.node.name.replace("[", "-").replace("]", "")
    if request.param == "s3":
        request.getfixturevalue("server")
        return objects_at(f"s3://bucket/{name}/")
    if request.param == "gs":
        request.getfixturevalue("google")
        return objects_at(f"gs://bucket/{name}")
    return objects_at(f"memory://{name}/below")


def test_a_write_that_expects_something_else_writes_nothing(store: Objects) -> None:
    assert store.read("a") is None
    with pytest.raises(ConflictError):
        store.put("a", b"0", '"11111111111111111111111111111111"')
    first = store.put("a", b"1", ABSENT)
    for expected in (ABSENT, '"11111111111111111111111111111111"'):
        with pytest.raises(ConflictError):
            store.put("a", b"2", expected)
    assert store.read("a") == (b"1", first)
    second = store.put("a", b"2", first)
    with pytest.raises(ConflictError):
        store.put("a", b"3", first)
    assert store.read("a") == (b"2", second)
    assert store.put("a", b"4") not in (first, second)


def test_listing_tells_names_and_versions(store: Objects) -> None:
    assert store.listed("folder") == {}
    versions = {name: store.put(name, name.encode()) for name in ("folder/a", "folder/deep/b", "other/c")}
    assert store.listed("folder") == {name: versions[name] for name in ("folder/a", "folder/deep/b")}
    store.delete("folder/a")
    store.delete("folder/a")
    assert list(store.listed("folder")) == ["folder/deep/b"]


def test_files_come_and_go_whole(store: Objects, tmp_path: Path) -> None:
    here = tmp_path / "file"
    here.write_bytes(b"old")
    assert store.fetch("file", str(here)) is None
    assert here.read_bytes() == b"old"
    (tmp_path / "new").write_bytes(b"new")
    version = store.put_file("file", str(tmp_path / "new"), ABSENT)
    assert store.fetch("file", str(here)) == version
    assert here.read_bytes() == b"new"
    with pytest.raises(ConflictError):
        store.put_file("file", str(here), ABSENT)
    assert sorted(os.listdir(tmp_path)) == ["file", "new"]


def test_a_large_file_goes_in_parts_and_is_refused_at_the_last(
    server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(objects, "_WHOLE", 1 << 20)
    monkeypatch.setattr(objects, "_PART", 5 << 20)
    store, file = objects_at("s3://bucket/large"), tmp_path / "file"
    file.write_bytes(os.urandom(11 << 20))
    store.put_file("file", str(file), ABSENT)
    with pytest.raises(ConflictError):
        store.put_file("file", str(file), ABSENT)
    store.fetch("file", str(tmp_path / "back"))
    assert (tmp_path / "back").read_bytes() == file.read_bytes()


def test_a_store_is_tried_before_it_is_trusted(store: Objects, monkeypatch: pytest.MonkeyPatch) -> None:
    assert store.probe("probe")
    assert store.read("probe") is None
    put = type(store).put

    def ignoring(self: Objects, name: str, data: bytes, expect: str | None = None) -> str:
        return put(self, name, data)

    monkeypatch.setattr(type(store), "put", ignoring)
    assert not store.probe("probe")
    assert not store.conditional


def test_a_folder_behind_fsspec_has_no_conditions(tmp_path: Path) -> None:
    store = objects_at(f"local://{tmp_path}/below")
    assert not store.conditional
    assert not store.probe("probe")
    store.put("a/b", b"1")
    assert store.read("a/b").data == b"1"  # type: ignore[union-attr]
    assert list(store.listed("a")) == ["a/b"]
    assert os.listdir(tmp_path / "below" / "a") == ["b"]


def test_what_is_wrong_with_a_store_is_said_without_its_secrets(
    server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    nowhere = objects_at("s3://no-such-bucket/below")
    with pytest.raises(FileAccessError, match="no such bucket"):
        nowhere.read("a")
    with pytest.raises(FileAccessError, match="no such bucket"):
        nowhere.put("a", b"", '"x"')
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    away = objects_at("s3://away/below")
    for ask in (lambda: away.read("a"), lambda: away.put("a", b"1"), lambda: away.listed("")):
        with pytest.raises(FileAccessError, match="cannot be reached") as caught:
            ask()
        assert "geheim" not in str(caught.value)


@pytest.mark.parametrize("url", ["https://host/folder", "zip://a::s3://bucket/b.zip", "s3://"])
def test_not_every_address_can_be_written_to(url: str) -> None:
    with pytest.raises(InvalidParamError):
        objects_at(url)


def test_a_store_that_takes_connections_and_says_nothing_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("s3fs", reason="needs the cloud extra")
    monkeypatch.setattr(objects, "READ", 1)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # the system takes them
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.setenv(name, "none")
        found = objects_at("s3://bucket/silent")
        for ask in (lambda: found.put("a", b"x"), lambda: found.read("a"), lambda: found.delete("a")):
            with pytest.raises(FileAccessError, match="does not answer in time"):
                ask()
