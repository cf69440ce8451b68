"""The published vectors of formats/vectors/atlas-session.json: read, written again, refused; and the schema."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from atlas_kit.errors import AtlasError
from atlas_kit.formats.atlas import MemoryFile
from atlas_kit.persistence.entry_keys import CONTEXT, DESCRIPTION
from atlas_kit.persistence.session_file import read_session_state
from atlas_kit.persistence.tables import runtime_schema
from tools import make_session_vectors as maker

DOCUMENT = json.loads(maker.VECTORS.read_text(encoding="utf-8"))
VALID = [pytest.param(v, id=v["name"]) for v in DOCUMENT["vectors"] if v["valid"]]
INVALID = [pytest.param(v, id=v["name"]) for v in DOCUMENT["vectors"] if not v["valid"]]
#: What the schema alone can refuse; the others are numbers in base64.
SEEN_BY_SCHEMA = {"version", "no-settings", "missing"}


def runtime_in(vector: dict[str, Any]) -> Any:
    with MemoryFile.open(bytes.fromhex(vector["hex"])) as file:
        return file[DESCRIPTION].json()["metadata"]["runtime"]


@pytest.mark.parametrize("vector", VALID)
def test_values(vector: dict[str, Any]) -> None:
    found = maker.meaning(read_session_state(bytes.fromhex(vector["hex"])))
    assert json.loads(json.dumps(found)) == {name: vector[name] for name in found}


@pytest.mark.parametrize("vector", VALID)
def test_written_again(vector: dict[str, Any]) -> None:
    state = read_session_state(bytes.fromhex(vector["hex"]))
    assert maker.written(state, version=vector.get("version")) == vector["hex"]


@pytest.mark.parametrize("vector", INVALID)
def test_refused(vector: dict[str, Any]) -> None:
    with pytest.raises(AtlasError) as caught:
        read_session_state(bytes.fromhex(vector["hex"]))
    assert caught.value.code.name == vector["error"]


def test_the_context_is_the_entry_that_is_named() -> None:
    assert DOCUMENT["context_entry"] == CONTEXT
    for vector in (param.values[0] for param in VALID):
        with MemoryFile.open(bytes.fromhex(vector["hex"])) as file:  # type: ignore[arg-type, index]
            kept = bytes(file[CONTEXT].data).hex() if CONTEXT in file else None
        assert kept == vector["context"]  # type: ignore[call-overload, index]


@pytest.mark.parametrize("vector", [*VALID, *INVALID])
def test_the_schema(vector: dict[str, Any]) -> None:
    from jsonschema import Draft202012Validator

    Draft202012Validator.check_schema(runtime_schema())
    errors = list(Draft202012Validator(runtime_schema()).iter_errors(runtime_in(vector)))
    assert bool(errors) is (vector["name"] in SEEN_BY_SCHEMA)


def test_the_files_are_what_the_tables_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["make_session_vectors.py", "--check"])
    assert maker.main() == 0
    stale = tmp_path / "stale.json"
    stale.write_text("{}")
    monkeypatch.setattr(maker, "SCHEMA", stale)
    assert maker.main() == 1
