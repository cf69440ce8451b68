"""The published vectors of formats/vectors/atlas-episodes.json: read, written again, refused; and the schema."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from atlas_kit.errors import AtlasError
from atlas_kit.formats.atlas import MemoryFile
from atlas_kit.persistence.entry_keys import EPISODES
from atlas_kit.persistence.episode_entries import read_episodes
from atlas_kit.persistence.tables import episodes_schema
from tools import make_episode_vectors as maker

DOCUMENT = json.loads(maker.VECTORS.read_text(encoding="utf-8"))
VALID = [pytest.param(v, id=v["name"]) for v in DOCUMENT["vectors"] if v["valid"]]
INVALID = [pytest.param(v, id=v["name"]) for v in DOCUMENT["vectors"] if not v["valid"]]
#: What the schema alone can refuse; the others are in the arrays, or contradict them.
SEEN_BY_SCHEMA = {"version"}


@pytest.mark.parametrize("vector", VALID)
def test_values(vector: dict[str, Any]) -> None:
    with MemoryFile.load(bytes.fromhex(vector["hex"])) as file:
        arrays = read_episodes(file)
    assert arrays is not None
    found = maker.meaning(arrays)
    assert json.loads(json.dumps(found)) == {name: vector[name] for name in found}


@pytest.mark.parametrize("vector", VALID)
def test_written_again(vector: dict[str, Any]) -> None:
    with MemoryFile.open(bytes.fromhex(vector["hex"])) as file:
        arrays = read_episodes(file)
    assert arrays is not None
    assert maker.written(arrays, version=vector["version"]) == vector["hex"]


@pytest.mark.parametrize("vector", INVALID)
def test_refused(vector: dict[str, Any]) -> None:
    with MemoryFile.open(bytes.fromhex(vector["hex"])) as file, pytest.raises(AtlasError) as caught:
        read_episodes(file)
    assert caught.value.code.name == vector["error"]


@pytest.mark.parametrize("vector", [*VALID, *INVALID])
def test_the_schema(vector: dict[str, Any]) -> None:
    from jsonschema import Draft202012Validator

    Draft202012Validator.check_schema(episodes_schema())
    with MemoryFile.open(bytes.fromhex(vector["hex"])) as file:
        if EPISODES not in file:
            return
        errors = list(Draft202012Validator(episodes_schema()).iter_errors(file[EPISODES].json()))
    assert bool(errors) is (vector["name"] in SEEN_BY_SCHEMA)


def test_the_files_are_what_the_tables_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["make_episode_vectors.py", "--check"])
    assert maker.main() == 0
    stale = tmp_path / "stale.json"
    stale.write_text("{}")
    monkeypatch.setattr(maker, "SCHEMA", stale)
    assert maker.main() == 1
