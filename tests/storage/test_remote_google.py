"""Files in Google's store: gcsfs against a server of a few lines that speaks its API, generations included."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("gcsfs", reason="needs the cloud extra")

from atlas_kit.cli.main import run
from atlas_kit.errors import ConflictError, FileAccessError, NoSuchFileError
from atlas_kit.fleet.files import found
from atlas_kit.operations.convert import ConvertOptions, convert_file
from atlas_kit.operations.get import get_value
from atlas_kit.operations.hash import hash_file
from atlas_kit.operations.inspect import Wanted, inspect_file
from atlas_kit.operations.validate import validate_file
from atlas_kit.storage import remote_writing
from atlas_kit.storage.given import open_source
from tests.storage.google_server import GoogleServer, google_serving

#: google-auth leaves a socket open when it looks for credentials and finds none.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")

SAMPLES = Path(__file__).parents[2] / "sample_data"


@pytest.fixture(scope="module")
def running() -> Iterator[GoogleServer]:
    with google_serving() as server:
        yield server


@pytest.fixture
def google(running: GoogleServer, monkeypatch: pytest.MonkeyPatch) -> GoogleServer:
    import gcsfs

    monkeypatch.setenv("STORAGE_EMULATOR_HOST", running.endpoint)
    monkeypatch.setenv("NO_GCE_CHECK", "true")  # nobody is asked for credentials where there are none
    gcsfs.GCSFileSystem.clear_instance_cache()
    running.objects.clear()
    running.asked.clear()
    return running


@pytest.mark.parametrize("name", ["deep/tiny.gguf", "with space.gguf", "ü and 京.gguf", "per%25cent.gguf"])
def test_a_file_is_read_and_named(google: GoogleServer, name: str) -> None:
    url = google.put(name, (SAMPLES / "gguf" / "tiny.gguf").read_bytes())
    google.asked.clear()
    shown = inspect_file(url, Wanted()).to_json()
    assert shown["path"] == url
    assert len([one for one in google.asked if "alt=media" in one[1]]) == 1
    assert hash_file(url).content == hash_file(str(SAMPLES / "gguf" / "tiny.gguf")).content


def test_one_entry_and_a_listing(google: GoogleServer, capsys: pytest.CaptureFixture[str]) -> None:
    data = (SAMPLES / "atlas" / "llama-7b_memory.atlas").read_bytes()
    for name in ("m/a.atlas", "m/deep/b.atlas", "m/readme.txt"):
        google.put(name, data)
    with get_value("gs://bucket/m/a.atlas", "user_prefs") as value:
        assert b"".join(value.chunks())
    assert [one.name for one in found(["gs://bucket/m/**/*.atlas"])] == [
        "gs://bucket/m/a.atlas",
        "gs://bucket/m/deep/b.atlas",
    ]
    assert run(["validate", "gs://bucket/m/", "--workers", "1"]) == 0
    assert "2 files, all well" in capsys.readouterr().out


def test_what_is_not_there(google: GoogleServer) -> None:
    with pytest.raises(NoSuchFileError):
        open_source("gs://bucket/none.gguf")
    with pytest.raises((NoSuchFileError, FileAccessError)):
        open_source("gs://no-such-bucket/none.gguf")


def test_what_changes_while_it_is_read(google: GoogleServer) -> None:
    url = google.put("changing.bin", bytes(1_000_000))
    with open_source(url) as source:
        source.read(0, 10)
        google.put("changing.bin", bytes(1_000_000))
        with pytest.raises(ConflictError, match="changed while it was being read"):
            source.read(900_000, 10)


@pytest.mark.parametrize("size", [100, 6 << 20])
def test_what_is_written_is_whole_and_over_nobody_elses(
    google: GoogleServer, tmp_path: Path, size: int
) -> None:
    file, url = tmp_path / "x", f"gs://bucket/new/{size}"
    file.write_bytes(os.urandom(size))
    remote_writing.put(str(file), url, new=True)
    assert google.objects[f"new/{size}"][0] == file.read_bytes()
    remote_writing.put(str(file), url, new=True)  # its own: the answer may have been lost
    kept = file.read_bytes()
    file.write_bytes(os.urandom(size))
    with pytest.raises(FileAccessError, match="the file exists already"):
        remote_writing.put(str(file), url, new=True)
    assert google.objects[f"new/{size}"][0] == kept
    remote_writing.put(str(file), url)
    assert google.objects[f"new/{size}"][0] == file.read_bytes()


def test_from_store_to_store(google: GoogleServer) -> None:
    google.put("in.atlas", (SAMPLES / "atlas" / "all-types.atlas").read_bytes())
    convert_file("gs://bucket/in.atlas", "gs://bucket/out.json")
    with pytest.raises(FileAccessError, match="the file exists already"):
        convert_file("gs://bucket/in.atlas", "gs://bucket/out.json")
    convert_file("gs://bucket/in.atlas", "gs://bucket/out.json", ConvertOptions(force=True))
    convert_file("gs://bucket/out.json", "gs://bucket/again.atlas")
    assert validate_file("gs://bucket/again.atlas").ok
