"""``set``: which files it makes, and values that look like options."""

from __future__ import annotations

import shutil

import pytest

from atlas_kit.formats.atlas import MemoryFile
from atlas_kit.formats.gguf import GGUFFile
from tests.conftest import SAMPLES

NEGATIVE = ["-1", "-12", "-0", "-1.5", "-.5", "-1e-3", "-1E+30", "-inf", "-nan"]


@pytest.fixture
def model(tmp_path):
    return shutil.copy(SAMPLES / "gguf" / "tiny.gguf", tmp_path / "model.gguf")


@pytest.mark.parametrize(
    "name", ["modell.gguf", "typo.gguf", "notes", "notes.txt", "notes.atlas.bak", ".atlas/x"]
)
def test_a_name_that_is_not_there_makes_no_file(tmp_path, model, run_cli, name):
    before = sorted(tmp_path.iterdir())
    ran = run_cli("set", tmp_path / name, "general.name", "x")
    assert ran.exit_code == 2
    assert "there is no such file" in ran.stderr
    assert "--new" in ran.stderr
    assert sorted(tmp_path.iterdir()) == before
    if name == "modell.gguf":
        assert f"Similar: {model}." in ran.stderr


@pytest.mark.parametrize(("name", "more"), [("new.atlas", []), ("NEW.ATLAS", []), ("notes", ["--new"])])
def test_a_new_memory_file(tmp_path, run_cli, name, more):
    ran = run_cli("set", tmp_path / name, "key", "value", *more)
    assert ran.stdout == f"created {tmp_path / name}\nadded key (text, 5 bytes)\n"
    assert MemoryFile.open(tmp_path / name)["key"].text == "value"
    assert run_cli("set", tmp_path / name, "key", "other", "--new").stdout == "replaced key (text, 5 bytes)\n"


def test_no_memory_under_the_name_of_a_model(tmp_path, model, run_cli):
    (tmp_path / "text.txt").write_text("text")
    for call in (["learn", model, tmp_path / "text.txt"], ["run", model, "-p", "x"]):
        ran = run_cli(*call, "--memory-file", tmp_path / "typo.gguf")
        assert ran.exit_code == 2
        assert "the name of a model" in ran.stderr
        assert not (tmp_path / "typo.gguf").exists()


@pytest.mark.parametrize("value", NEGATIVE)
def test_a_negative_number_is_a_value(tmp_path, run_cli, value):
    path = tmp_path / "m.atlas"
    for call in (
        [path, "key", value],
        ["--flags", "3", path, "key", value],
        [path, "key", value, "--flags", "3"],
    ):
        ran = run_cli("set", *call)
        assert ran.exit_code == 0, ran.stderr
        assert MemoryFile.open(path)["key"].text == value


@pytest.mark.parametrize(("kind", "value"), [("i8", -128), ("i32", -1), ("i64", -(2**63)), ("f32", -0.5)])
def test_a_negative_number_in_a_model(model, run_cli, kind, value):
    assert run_cli("set", model, "some.key", value, "--type", kind).exit_code == 0
    with GGUFFile.open(model) as opened:
        assert opened.metadata["some.key"].items == value
    assert run_cli("get", model, "some.key").stdout == str(value)
    ran = run_cli("set", model, "some.key", "-3", "--type", "u32")
    assert ran.exit_code == 2
    assert "option" not in ran.stderr


@pytest.mark.parametrize("option", ["-x", "--bakup", "-1x", "--1", "-h1"])
def test_what_is_no_number_and_no_option_is_refused(tmp_path, run_cli, option):
    for call in ([option], ["-1", option], [option, "-1"]):
        ran = run_cli("set", tmp_path / "m.atlas", "key", *call)
        if option == "-h1" and ran.exit_code == 0:
            assert ran.stdout.startswith("Usage:")
            continue
        assert ran.exit_code == 2
        assert "o such option" in ran.stderr
    assert not (tmp_path / "m.atlas").exists()
    assert run_cli("set", tmp_path / "m.atlas", "key", "--", option).exit_code == 0
    assert MemoryFile.open(tmp_path / "m.atlas")["key"].text == option
