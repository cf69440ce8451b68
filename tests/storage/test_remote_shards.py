"""A set of shards at an address is one model, as on disk."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("aiohttp", reason="needs the cloud extra")

from atlas_kit.errors import FileCorruptError, NoSuchFileError
from atlas_kit.formats.gguf import GGUFFile
from atlas_kit.operations.convert import convert_file
from atlas_kit.operations.hash import hash_file
from atlas_kit.operations.inspect import Wanted, inspect_file
from atlas_kit.operations.join import join_files
from atlas_kit.operations.split import SplitOptions, split_file
from atlas_kit.operations.validate import validate_file
from atlas_kit.storage import remote_stores
from tests.gguf_builder import I32, KV, U16, File
from tests.storage.web_server import Page, WebServer, serving

SAMPLES = Path(__file__).parents[2] / "sample_data"


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_stores, "PATIENCE", remote_stores.Patience(first_wait=0.01, longest_wait=0.02))


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("shards")
    split_file(str(SAMPLES / "gguf" / "tiny.gguf"), SplitOptions(max_tensors=2, stem=folder / "m"))
    return sorted(folder.glob("*.gguf"))


@pytest.fixture
def web(shards: list[Path]) -> Iterator[WebServer]:
    with serving({f"/a%20b/{path.name}": Page(path.read_bytes()) for path in shards}, 0.0) as server:
        yield server


def test_any_shard_stands_for_the_model(web: WebServer, shards: list[Path], tmp_path: Path) -> None:
    assert len(shards) > 2
    with GGUFFile.open(shards[0]) as near:
        for name in (shards[0].name, shards[-1].name):
            with GGUFFile.open(web.url(f"/a%20b/{name}")) as far:
                assert list(far.tensors) == list(near.tensors)
                assert far.architecture == near.architecture
                name = list(far.tensors)[-1]
                assert b"".join(far.iter_raw(name)) == b"".join(near.iter_raw(name))
    first, last = web.url(f"/a%20b/{shards[0].name}"), web.url(f"/a%20b/{shards[-1].name}")
    expected = inspect_file(str(shards[0]), Wanted()).to_json()
    found = inspect_file(first, Wanted()).to_json()
    for one in (expected, found):
        one["path"] = ""
        one["shards"] = [place.rpartition("/")[2] for place in one["shards"]]
    assert found == expected
    assert hash_file(last).content == hash_file(str(shards[0])).content
    assert [validate_file(place).findings for place in (first, last)] == [
        validate_file(str(place)).findings for place in (shards[0], shards[-1])
    ]
    convert_file(last, str(tmp_path / "m.safetensors"))
    join_files([first], str(tmp_path / "joined.gguf"))
    assert hash_file(str(tmp_path / "joined.gguf")).content == hash_file(str(shards[0])).content


def test_each_header_takes_one_request(web: WebServer, shards: list[Path]) -> None:
    web.forget()
    inspect_file(web.url(f"/a%20b/{shards[0].name}"), Wanted())
    assert len(web.asked) <= len(shards) + 1


def test_one_shard_alone(web: WebServer, shards: list[Path]) -> None:
    web.forget()
    with GGUFFile.open(web.url(f"/a%20b/{shards[1].name}"), shards=False) as file:
        assert len(file.tensors) == 2
    signed = web.url(f"/a%20b/{shards[1].name}?X-Amz-Signature=geheim")
    with GGUFFile.open(signed) as file:  # signed for this file only
        assert len(file.tensors) == 2
    assert {place for _, place, _ in web.asked} <= {
        f"/a%20b/{shards[1].name}",
        f"/a%20b/{shards[1].name}?X-Amz-Signature=geheim",
    }


def test_shards_that_are_missing_or_broken_are_named(web: WebServer, shards: list[Path]) -> None:
    first = web.url(f"/a%20b/{shards[0].name}")
    kept = web.pages.pop(f"/a%20b/{shards[1].name}")
    with pytest.raises(
        NoSuchFileError, match=f"1 of {len(shards)} shards of this model is missing"
    ) as caught:
        GGUFFile.open(first)
    assert shards[1].name in str(caught.value)
    assert [one.code for one in validate_file(first).findings] == ["shard-missing"]
    assert "shard-missing" in [
        one.code for one in validate_file(web.url(f"/a%20b/{shards[-1].name}")).findings
    ]
    web.pages[f"/a%20b/{shards[1].name}"] = Page(b"GGUF" + bytes(4))
    assert [one.code for one in validate_file(first).findings] == ["shard-broken"]
    web.pages[f"/a%20b/{shards[1].name}"] = Page(web.pages[f"/a%20b/{shards[2].name}"].data)
    with pytest.raises(FileCorruptError):
        GGUFFile.open(first)
    assert [one.code for one in validate_file(first).findings] == ["shard-wrong"]
    web.pages[f"/a%20b/{shards[1].name}"] = kept
    assert validate_file(first).ok


def test_what_claims_thousands_of_shards_is_not_asked_for_all(web: WebServer, shards: list[Path]) -> None:
    for number in (0, 1):
        metadata = (KV("split.no", U16, number), KV("split.count", U16, 60_000))
        page = Page(File((*metadata, KV("split.tensors.count", I32, 9))).bytes())
        web.pages[f"/x-{number + 1:05d}-of-60000.gguf"] = page
    web.forget()
    with pytest.raises(NoSuchFileError, match="shards of this model are missing"):
        GGUFFile.open(web.url("/x-00001-of-60000.gguf"))
    assert not validate_file(web.url("/x-00001-of-60000.gguf")).ok
    assert not validate_file(web.url("/x-00002-of-60000.gguf")).ok
    assert len(web.asked) < 100
