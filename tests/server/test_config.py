"""Settings of the server: from options, the environment and files, checked, and under llama-server's names, too."""

from __future__ import annotations

import json

import pytest

from atlas_kit.errors import AtlasError, InvalidParamError
from atlas_kit.server.config import ServerConfig, table
from atlas_kit.server.config_files import read_file
from atlas_kit.server.service import memory_settings
from atlas_kit.settings.atlas_settings import AtlasSettings


def test_the_defaults_are_allowed():
    config = ServerConfig(model="m.gguf")
    assert (config.host, config.port) == ("127.0.0.1", 8080)
    assert not config.remembers
    assert not config.persists
    assert config.changes == {}
    assert config.keys == ()


def test_names_and_variables_are_nobody_elses():
    words = [word for row in table() for word in (*row.words, *row.off)]
    assert len(words) == len(set(words))
    variables = [variable for row in table() for variable in row.variables]
    assert len(variables) == len(set(variables))


@pytest.mark.parametrize("row", table(), ids=lambda row: row.name)
def test_every_setting_is_explained(row):
    assert row.help.rstrip("]").endswith((".", "name", "CPU", "memories", "none"))
    assert row.words
    assert row.variables
    assert row.group


def test_options_stand_above_the_environment_and_that_above_the_file(tmp_path):
    file = tmp_path / "server.json"
    file.write_text(json.dumps({"port": 1, "host": "file", "ctx-size": 100, "atlas": True}))
    environment = {"LLAMA_ARG_PORT": "2", "LLAMA_ARG_HOST": "environment", "ATLAS_MEMORY_PERSIST": "1"}
    config = ServerConfig.from_sources({"port": 3, "host": None}, file=file, environment=environment)
    assert (config.port, config.host, config.n_ctx) == (3, "environment", 100)
    assert config.atlas
    assert config.atlas_memory_persist


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("c.json", '{"atlas-memory-file": "a.atlas", "atlas_no_auto_save": true, "api-key": ["a", "b"]}'),
        ("c.toml", 'atlas-memory-file = "a.atlas"\natlas-no-auto-save = true\napi-key = ["a", "b"]\n'),
        ("c.json", '{"atlas-file": "a.atlas", "atlas_auto_save": false, "api_key": "a,b"}'),
    ],
)
def test_files_name_settings_as_the_command_line_does(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    config = ServerConfig(**read_file(tmp_path / name, table()))
    assert config.atlas_memory_file == "a.atlas"
    assert not config.atlas_auto_save
    assert config.keys == ("a", "b")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"prot": 1}', "there is no setting 'prot'"),
        ("[1]", "not an object of settings"),
        ("{", "cannot be read"),
        ("[" * 100_000, "cannot be read"),
    ],
)
def test_files_that_are_no_good(tmp_path, text, said):
    file = tmp_path / "c.json"
    file.write_text(text)
    with pytest.raises(InvalidParamError, match=said):
        read_file(file, table())


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(AtlasError, match="there is no such file"):
        read_file(tmp_path / "none.json", table())


@pytest.mark.parametrize(
    "wrong",
    [
        {"port": 65536},
        {"port": "x"},
        {"port": -1},
        {"n_parallel": 0},
        {"n_parallel": 257},
        {"log_format": "xml"},
        {"atlas": "perhaps"},
        {"atlas_learning_rate": float("nan")},
        {"atlas_polynomial": 4},
        {"drain_seconds": -1},
        {"max_body": 1},
        {"chat_template_kwargs": "[1]"},
        {"chat_template_kwargs": "{"},
        {"port": float("inf")},
        {"port": 8080.5},
        {"port": True},
        {"port": [8080]},
        {"drain_seconds": 10**400},
        {"alias": {"name": "m"}},
        {"api_key": [["one"]]},
        {"api_key": {"key": "one"}},
        {"cors": [None]},
        {"host": ""},
        {"host": " , "},
        {"host": "a\0b"},
        {"atlas_memory_dir": ""},
        {"atlas_memory_file": ""},
    ],
    ids=str,
)
def test_values_out_of_range(wrong):
    with pytest.raises(InvalidParamError) as caught:
        ServerConfig(model="m", **wrong)
    assert caught.value.key == next(iter(wrong))
    assert caught.value.hint


def test_keys_from_options_and_a_file(tmp_path):
    file = tmp_path / "keys"
    file.write_text("one\n\n two \n")
    config = ServerConfig(model="m", api_key=("zero, half", "one"), api_key_file=str(file))
    assert config.keys == ("zero", "half", "one", "two")


@pytest.mark.parametrize("file", ["\ufeffone\r\ntwo\r\n", "one\rtwo"])
def test_keys_from_a_file_of_another_system(tmp_path, file):
    path = tmp_path / "keys"
    path.write_bytes(file.encode())
    assert ServerConfig(model="m", api_key_file=str(path)).keys == ("one", "two")


@pytest.mark.parametrize("keys", [("",), (" ", ","), ("", "")])
def test_an_empty_key_does_not_open_the_server(keys):
    with pytest.raises(InvalidParamError, match="the API key is empty"):
        _ = ServerConfig(model="m", api_key=keys).keys


@pytest.mark.parametrize("text", ["", "\n \r\n", "\ufeff"])
def test_an_empty_file_of_keys_does_not_open_the_server(tmp_path, text):
    path = tmp_path / "keys"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InvalidParamError, match="no API key in this file"):
        _ = ServerConfig(model="m", api_key_file=str(path)).keys


@pytest.mark.parametrize("key", [chr(0xDCFF), chr(0xD800), "schlüssel"], ids=ascii)
def test_any_key_is_a_key(key):
    from atlas_kit.server.asgi import Keys

    keys = Keys([key])
    assert keys.namespace(key)
    assert not keys.namespace("other")


def test_null_is_what_nobody_says(tmp_path):
    path = tmp_path / "c.json"
    path.write_text('\ufeff{"port": null, "api-key": null, "model": "m"}', encoding="utf-8")
    assert ServerConfig.from_sources({}, file=path) == ServerConfig(model="m")


def test_settings_of_memories():
    config = ServerConfig(
        model="m", atlas_window=128, atlas_blend="0.5", atlas_muon=True, atlas_memory_dim=16
    )
    settings = memory_settings(config, "nowhere.gguf")
    assert (settings.window_size, settings.blend_ratio, settings.use_muon) == (128, 0.5, True)
    assert settings.memory_dim == 16
    adaptive = memory_settings(ServerConfig(model="m", atlas_blend="adaptive"), "nowhere.gguf")
    assert adaptive == AtlasSettings()
    with pytest.raises(InvalidParamError, match="blend_ratio"):
        memory_settings(ServerConfig(model="m", atlas_blend="much"), "nowhere.gguf")


@pytest.mark.parametrize("name", ["atlas", "atlas_auto", "atlas_memory_persist"])
def test_what_makes_a_server_remember(name):
    assert ServerConfig(model="m", **{name: True}).remembers


@pytest.mark.parametrize(
    ("given", "variables"),
    [
        ({}, {"enable_thinking": True}),
        ({"reasoning": "off"}, {"enable_thinking": False}),
        ({"chat_template_kwargs": '{"enable_thinking": false, "a": 1}'}, {"enable_thinking": False, "a": 1}),
    ],
)
def test_what_a_chat_template_is_given(given, variables):
    assert ServerConfig(model="m", **given).template_variables == variables


@pytest.mark.parametrize(
    ("host", "hosts"),
    [("127.0.0.1", ("127.0.0.1",)), ("127.0.0.1, ::1,127.0.0.1", ("127.0.0.1", "::1"))],
)
def test_addresses_to_listen_at(host, hosts):
    assert ServerConfig(model="m", host=host).hosts == hosts


@pytest.mark.parametrize(
    ("given", "room"),
    [
        ({}, 0),
        ({"n_ctx": 1000}, 250),
        ({"n_ctx": 3}, 1),
        ({"n_ctx": 1000, "kv_unified": True}, 1000),
        ({"kv_unified": True}, 0),
    ],
)
def test_the_context_of_a_slot(given, room):
    assert ServerConfig(model="m", n_parallel=4, **given).n_ctx_slot == room
