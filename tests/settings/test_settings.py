"""The settings of a memory: ranges, names, files, and the memory that they describe."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atlas_kit.errors import AtlasError, InvalidParamError, NoSuchFileError
from atlas_kit.memory import (
    CrossEntropy,
    Identity,
    Memory,
    MemoryConfig,
    Polynomial,
    RandomFourier,
    WhitenedMatrix,
    WhitenedMemory,
    WinnerTakeAll,
)
from atlas_kit.settings.atlas_settings import GATE_FEATURES, NEVER, AtlasSettings, settings_table

ROWS = {row.name: row for row in settings_table()}


def values(row):
    """A strategy of what a setting may be."""
    if isinstance(row.default, bool):
        return st.booleans()
    found = [st.sampled_from(row.choices)] if row.choices else []
    if row.least is not None:
        whole = isinstance(row.default, int)
        kind = st.integers if whole else st.floats
        found.append(kind(int(row.least) if whole else row.least, int(row.most) if whole else row.most))
    return st.one_of(found)


@given(st.fixed_dictionaries({}, optional={name: values(row) for name, row in ROWS.items()}))
def test_json_and_back(changes):
    try:
        settings = AtlasSettings(**changes)
    except InvalidParamError as error:
        assert error.key in ("omega_window", "window_size")  # noqa: PT017 - these depend on others
        return
    document = json.loads(json.dumps(settings.to_json()))
    assert AtlasSettings.from_json(document) == settings
    assert set(document) == set(ROWS)
    for name, value in changes.items():
        assert getattr(settings, name) == value


@pytest.mark.parametrize("name", ROWS)
def test_every_setting_explains_itself(name):
    row = ROWS[name]
    assert row.option == "--" + name.replace("_", "-")
    assert row.note
    assert row.range
    assert row.check(row.default) == row.default
    assert getattr(AtlasSettings(), name) == row.default
    bad = [None, "nonsense", [], {}, math.nan, math.inf, b"1", object(), 1 + 2j]
    bad += ["true", 1, 0] if isinstance(row.default, bool) else [True, False]
    if row.least is not None:
        bad += [row.least - 1, row.most + 1, str(row.least), -math.inf, 10**400]
        bad += [row.least + 0.5] if isinstance(row.default, int) else []
    for value in bad:
        with pytest.raises(InvalidParamError) as caught:
            AtlasSettings(**{name: value})
        assert caught.value.key == name
        assert row.range in str(caught.value)
        assert "\n" not in str(caught.value)


def test_ranges_are_plain_numbers():
    assert ROWS["window_size"].range == "0 to 16777216"
    assert ROWS["blend_ratio"].range == "0 to 1 or adaptive"
    assert ROWS["sharpness"].range == "0.01 to 1000"
    assert ROWS["use_muon"].range == "true or false"


def test_numbers_take_the_settings_own_type():
    settings = AtlasSettings(window_size=512.0, learning_rate=1, blend_ratio=0)
    assert type(settings.window_size) is int
    assert type(settings.learning_rate) is float
    assert settings.blend_ratio == 0.0
    assert type(settings.blend_ratio) is float


def test_settings_that_do_not_fit_together():
    with pytest.raises(InvalidParamError, match="no memory"):
        AtlasSettings(window_size=0, learning_rate=0)
    with pytest.raises(InvalidParamError, match="omega_window is 8") as caught:
        AtlasSettings(omega_window=8)
    assert "at least 16" in caught.value.hint
    assert AtlasSettings(omega_window=8, chunk_size=8).omega_window == 8


def test_replacing():
    settings = AtlasSettings().replace(window_size=5, features="sparse")
    assert (settings.window_size, settings.features) == (5, "sparse")
    with pytest.raises(InvalidParamError, match="no setting 'windowsize'") as caught:
        settings.replace(windowsize=5)
    assert "window_size" in caught.value.hint


# --- files ------------------------------------------------------------------------------------------------


def test_a_file(tmp_path):
    path = tmp_path / "settings.json"
    path.write_text('{"window_size": 2048, "blend_ratio": 0.5}')
    assert AtlasSettings.from_file(path) == AtlasSettings(window_size=2048, blend_ratio=0.5)
    path.write_text("{}")
    assert AtlasSettings.from_file(str(path)) == AtlasSettings()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "not JSON"), (b"{", "not JSON"), (b"\xff\xfe", "not JSON"), (b"[" * 100_000, "not JSON"),
        (b"[1]", "not a JSON object"), (b"7", "not a JSON object"), (b"null", "not a JSON object"),
        (b'{"windows": 1}', "no setting"), (b'{"window_size": "many"}', "window_size is 'many'"),
        (b'{"window_size": NaN}', "window_size is nan"), (b'{"omega_window": 1}', "omega_window is 1"),
        (b'{"window_size": 1' + b"0" * 5000 + b"}", ""),
    ],
)  # fmt: skip
def test_files_that_are_none(content, words, tmp_path):
    path = tmp_path / "settings.json"
    path.write_bytes(content)
    with pytest.raises(InvalidParamError) as caught:
        AtlasSettings.from_file(path)
    text = str(caught.value)
    assert words in text
    assert str(path) in text
    assert "\n" not in text
    assert len(text) < 1000


def test_no_file(tmp_path):
    with pytest.raises(NoSuchFileError):
        AtlasSettings.from_file(tmp_path / "none.json")
    with pytest.raises(AtlasError):
        AtlasSettings.from_file(tmp_path)


# --- the memory -------------------------------------------------------------------------------------------


def test_the_defaults_work_with_every_width():
    for width in (1, 16, 64, 65, 2048, 5120):
        config = AtlasSettings().memory_config(width)
        assert (config.d_k, config.d_v) == (width, width)
        assert config.d_key == min(width, 64)


def test_what_a_memory_is_made_of():
    config = AtlasSettings(features="polynomial", sharpness=9.0, omega_window=40, chunk_size=8).memory_config(
        256, 0.5, 30.0
    )
    assert config.objective == CrossEntropy(0.5, 30.0)
    assert (config.step, config.chunk_size, config.omega_window) == ("chunk", 8, 33)
    assert isinstance(config.features.map, Polynomial)
    assert config.features.projection == 64
    assert config.window_dtype == "float16"
    assert (config.gate.experts, config.gate.features) == (3, GATE_FEATURES)
    assert config.ranking.start[0] == 9
    assert MemoryConfig.from_json(json.loads(json.dumps(config.to_json()))) == config


def test_parts_may_be_left_out():
    window = AtlasSettings(learning_rate=0).memory_config(128)
    assert isinstance(window.features.map, Identity)
    assert window.gate.experts == 2
    assert window.warmup_tokens == NEVER
    learned = AtlasSettings(window_size=0).memory_config(128)
    assert learned.gate.experts == 2
    assert learned.ranking is None
    plain = AtlasSettings(ranking=False, sharpness=20.0).memory_config(128).ranking
    assert plain.start == (20, 0, 0)
    assert plain.rates == (0, 0, 0)


@pytest.mark.parametrize(
    ("features", "kind"), [("polynomial", Polynomial), ("sparse", WinnerTakeAll), ("fourier", RandomFourier)]
)
@pytest.mark.parametrize("degree", [1, 2, 3])
def test_feature_maps(features, kind, degree):
    config = AtlasSettings(features=features, polynomial_degree=degree, memory_dim=8).memory_config(32)
    assert isinstance(config.features.map, kind)
    if features == "polynomial":
        assert config.features.map.degree == degree
    Memory(config).init()


@given(st.integers(1, 3), st.booleans(), st.booleans(), st.sampled_from(["adaptive", 0.0, 0.5, 1.0]))
def test_any_memory_can_be_made(degree, muon, ranking, blend):
    settings = AtlasSettings(
        polynomial_degree=degree,
        use_muon=muon,
        ranking=ranking,
        blend_ratio=blend,
        memory_dim=4,
        window_size=3,
    )
    state = Memory(settings.memory_config(16)).init()
    assert state.gate["w"].shape == (2, GATE_FEATURES)


def test_whitened_states_are_the_default():
    config = AtlasSettings(sharpness=9.0, chunk_size=8).memory_config(256, 0.5, 30.0, 4096)
    assert config.module == WhitenedMatrix(192, 4096, 512, 256)
    assert config.objective == CrossEntropy(0.5, 30.0)
    assert (config.step, config.chunk_size, config.recall) == ("chunk", 8, 520)
    assert (config.d_key, config.window_dtype) == (64, "float16")
    assert config.ranking.start[0] == 9
    assert WhitenedMemory(config).init().parameters["bias"].shape == (1, 4096)
    assert MemoryConfig.from_json(json.loads(json.dumps(config.to_json()))) == config
    alone = AtlasSettings(learning_rate=0).memory_config(256, n_vocab=4096)
    assert alone.module == WhitenedMatrix(64, 0, 512)
    assert alone.warmup_tokens == NEVER


def test_what_was_saved_before_whitening_goes_on_as_it_was():
    assert AtlasSettings.from_saved({"window_size": 5}).features == "polynomial"
    assert AtlasSettings.from_saved({"window_size": 5}).candidates == 256
    saved = AtlasSettings(candidates=7).to_json()
    assert AtlasSettings.from_saved(saved) == AtlasSettings(candidates=7)
    del saved["even_steps"]
    assert AtlasSettings.from_saved(saved) == AtlasSettings(candidates=7, even_steps=0)
    del saved["memory_rank"]
    assert AtlasSettings.from_saved({**saved, "features": "sparse"}).features == "sparse"
