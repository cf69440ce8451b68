"""``recommend``, and the options that every command with a memory shares."""

from __future__ import annotations

import json

import click
import pytest

from atlas_kit.cli._options import ChosenSettings, atlas_settings_options, command_
from atlas_kit.errors import InvalidParamError
from atlas_kit.settings.atlas_settings import AtlasSettings, settings_table


def test_recommend_shows_every_setting_and_the_command(run_cli, samples):
    result = run_cli("recommend", samples / "gguf" / "tiny.gguf")
    assert result.exit_code == 0, result.stderr
    for row in settings_table():
        assert row.name in result.stdout
    assert "in all" in result.stdout
    assert "estimate" in result.stdout
    assert "note: " in result.stdout
    assert result.stdout.splitlines()[-1].endswith("--atlas-auto")


def test_recommend_json_is_a_config_file(run_cli, samples, tmp_path):
    model = samples / "gguf" / "tiny.gguf"
    document = json.loads(run_cli("recommend", model, "--json").stdout)
    config = tmp_path / "settings.json"
    config.write_text(json.dumps(document["settings"]))
    assert run_cli("convert", model, tmp_path / "a.gguf", "--config", config).exit_code == 0
    assert run_cli("convert", model, tmp_path / "b.gguf", "--auto").exit_code == 0
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("gguf/vocabulary-only.gguf", "vocabulary and no weights"),
        ("atlas/chat.atlas", "not a GGUF file"),
        ("text/prefs.json", "not a GGUF file"),
        ("gguf/none.gguf", "no such file"),
    ],
)
def test_recommend_refuses_in_a_sentence(run_cli, samples, name, words):
    result = run_cli("recommend", samples / name)
    assert result.exit_code == 2
    assert words in result.stderr
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""


def test_a_hostile_name_does_nothing_to_the_terminal(run_cli, samples, tmp_path):
    import shutil

    path = tmp_path / "a\x1b[31m b.gguf"
    shutil.copy(samples / "gguf" / "tiny.gguf", path)
    result = run_cli("recommend", path)
    assert result.exit_code == 0
    assert "\x1b" not in result.stdout


# --- the options ----------------------------------------------------------------------------------------------


@pytest.fixture
def chosen_by(run_cli):
    """Return a function that parses options as a command with ``atlas_settings_options`` does."""
    seen: list[ChosenSettings] = []

    @command_("probe", "Probe the options.")
    @atlas_settings_options
    def probe(chosen):
        seen.append(chosen)

    def parse(*arguments):
        seen.clear()
        with probe.make_context("probe", [str(argument) for argument in arguments]) as context:
            probe.invoke(context)
        return seen[0]

    parse.command = probe
    return parse


def test_there_is_an_option_for_every_setting(chosen_by):
    options = {o.name: o for o in chosen_by.command.params}
    assert list(options) == [*(row.name for row in settings_table()), "config"]
    for row in settings_table():
        assert row.option in options[row.name].opts
        assert row.note.rstrip(".")[1:] in options[row.name].help


def test_nothing_chosen(chosen_by):
    chosen = chosen_by()
    assert not chosen
    assert chosen.over() == AtlasSettings()
    base = AtlasSettings(window_size=5)
    assert chosen.over(base) == base


@pytest.mark.parametrize(
    ("words", "changes"),
    [
        (["--window-size", "0"], {"window_size": 0}),
        (["--window-size", "1e3"], {"window_size": 1000}),
        (["--learning-rate", "1"], {"learning_rate": 1.0}),
        (["--use-muon"], {"use_muon": True}),
        (["--no-use-muon"], {"use_muon": False}),
        (["--blend-ratio", "adaptive"], {"blend_ratio": "adaptive"}),
        (["--blend-ratio", "0.25"], {"blend_ratio": 0.25}),
        (["--features", "sparse"], {"features": "sparse"}),
        (["--chunk-size", "32", "--omega-window", "32"], {"chunk_size": 32, "omega_window": 32}),
    ],
)
def test_options(chosen_by, words, changes):
    chosen = chosen_by(*words)
    assert chosen
    assert chosen.values == changes
    base = AtlasSettings(sharpness=3.0, use_muon=True)
    assert chosen.over(base) == base.replace(**changes)


@pytest.mark.parametrize(
    "words",
    [
        ["--window-size", "-1"],
        ["--window-size", "many"],
        ["--window-size", "1.5"],
        ["--window-size", "1e400"],
        ["--learning-rate", "nan"],
        ["--blend-ratio", "2"],
        ["--features", "cubic"],
        ["--polynomial-degree", "0"],
    ],
)
def test_options_out_of_range(chosen_by, words):
    with pytest.raises(click.BadParameter, match="is not") as caught:
        chosen_by(*words)
    assert words[0] in caught.value.format_message()


def test_options_stand_above_the_file_and_the_file_above_all_else(chosen_by, tmp_path):
    config = tmp_path / "c.json"
    config.write_text('{"window_size": 64, "sharpness": 2}')
    chosen = chosen_by("--config", config, "--window-size", "128")
    base = AtlasSettings(sharpness=9.0, candidates=5)
    assert chosen.over(base) == AtlasSettings(window_size=128, sharpness=2.0)


@pytest.mark.parametrize(
    "text", ["", "[]", '{"window": 3}', '{"window_size": -1}', "\xff", '{"a":' * 100_000]
)
def test_config_files_that_are_none(chosen_by, tmp_path, text):
    config = tmp_path / "c.json"
    config.write_bytes(text.encode("latin-1"))
    with pytest.raises(InvalidParamError) as caught:
        chosen_by("--config", config).over()
    assert caught.value.path == str(config)


def test_settings_that_do_not_fit_together(chosen_by):
    with pytest.raises(InvalidParamError, match="less than a step"):
        chosen_by("--chunk-size", "128").over()
