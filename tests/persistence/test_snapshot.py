"""A memory in a file: what comes back, bit by bit; what is refused, and with which words."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import tracemalloc

import numpy as np
import pytest

from atlas_kit.errors import (
    AtlasError,
    DataTooLargeError,
    FileCorruptError,
    InvalidParamError,
    KeyNotFoundError,
    KeyRequiredError,
    Remedy,
    VersionMismatchError,
)
from atlas_kit.formats.atlas import MemoryFile
from atlas_kit.memory import (
    CrossEntropy,
    Features,
    Gate,
    Identity,
    Memory,
    MemoryConfig,
    Polynomial,
    RandomFourier,
    Ranking,
    Readout,
    Schedule,
    presets,
    snapshot,
)
from atlas_kit.memory import arrays as memory_arrays
from atlas_kit.persistence import tables
from atlas_kit.persistence.snapshot import (
    LIMITS,
    WrongModelError,
    describe_memory,
    find_description,
    load_memory,
    save_memory,
)

CE = CrossEntropy()
CONFIGS = {
    "matrix": MemoryConfig(
        6, 4, features=Features(map=Polynomial(2), projection=5), alpha=0.99, theta=0.5, chunk_size=3, window_size=7
    ),
    "deep": presets.atlas(6, 4, chunk_size=2, omega_window=3),
    "gated": presets.atlas_pp(6, 4, omega_window=2),
    "next-token": MemoryConfig(6, 4, objective=CE, window_size=9, omega_window=5, chunk_size=4, step="chunk"),
    "bfloat16": MemoryConfig(6, 4, window_size=5, window_dtype="bfloat16", omega_window=3),
    "float16": MemoryConfig(6, 4, objective=CE, window_size=5, window_dtype="float16"),
    "beside a model": MemoryConfig(
        6, 4, objective=CE, window_size=5, window_dtype="float16", gate=Gate(3, 5), ranking=Ranking((2.0, 1.0, 0.5))
    ),
    "adapting": MemoryConfig(
        6, 4, features=Features(map=Identity(), centre=True), warmup_tokens=3, eta_adaptation=0.1, chunk_size=2
    ),
    "scheduled": MemoryConfig(
        6, 4, features=Features(map=RandomFourier(features=16)), theta=Schedule("linear", 0.0, 0.9, tokens=8),
        max_norm=1e30, dtype="float64", seed=7,
    ),
}  # fmt: skip
SECRET = "correct horse"


def feed(memory, state, tokens, seed=0):
    """Let a memory observe random tokens: the same for a seed."""
    rng = np.random.default_rng(seed)
    config, batch = memory.config, state.batch
    keys = rng.standard_normal((*batch, tokens, config.d_k))
    values = rng.standard_normal((*batch, tokens, config.d_v))
    if not isinstance(config.objective, CrossEntropy):
        return memory.observe(state, keys, values)[0]
    targets = {
        "token": rng.integers(0, 8, (*batch, tokens)),
        "hidden": values,
        "lse": rng.standard_normal((*batch, tokens)) + 5,
    }
    rows = np.random.default_rng(1).standard_normal((8, config.d_v)).astype(config.dtype)
    return memory.observe(state, keys, targets, readout=Readout(rows))[0]


def learned(name="matrix", batch=(), tokens=7):
    memory = Memory(CONFIGS[name])
    return memory, feed(memory, memory.init(batch), tokens)


def bits(state):
    return {
        f"{group}.{name}": (array.dtype.str, array.shape, array.tobytes())
        for group, arrays in state.groups().items()
        for name, array in arrays.items()
    }


@pytest.fixture
def path(tmp_path):
    return tmp_path / "llama-7b_memory.atlas"


@pytest.fixture
def saved(path):
    memory, state = learned()
    save_memory(path, memory, state)
    return path


# --- what comes back -----------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [1, 2, 3])
@pytest.mark.parametrize("batch", [(), (2, 3)])
@pytest.mark.parametrize("name", CONFIGS)
def test_every_bit_comes_back_and_learning_goes_on(path, name, batch, version):
    memory, state = learned(name, batch)
    if version == 3:
        pytest.importorskip("cryptography")
    secret = {"key": bytes(range(32))} if version == 3 else {}
    save_memory(path, memory, state, version=version, **secret)
    loaded = load_memory(path, **secret)
    assert loaded.memory.config == memory.config
    assert bits(loaded.state) == bits(state)
    assert all(array.flags.writeable for array in loaded.state.parameters.values())
    assert bits(feed(loaded.memory, loaded.state, 5, seed=2)) == bits(feed(memory, state, 5, seed=2))
    assert MemoryFile.validate(path, **secret) == []


@pytest.mark.parametrize("name", CONFIGS)
def test_the_table_of_arrays_is_what_states_are_made_of(name):
    state = Memory(CONFIGS[name]).init()
    arrays = {f"{group}.{n}": a for group, found in state.groups().items() for n, a in found.items()}
    expected = memory_arrays.layout(CONFIGS[name])
    assert arrays.keys() == expected.keys()
    for full, array in arrays.items():
        dtype = expected[full].dtype
        assert array.shape == expected[full].shape
        assert array.dtype.name == ("uint16" if dtype == "bfloat16" else dtype)
        assert array.nbytes == expected[full].nbytes(())
        assert len(tables.array_key(10**9, full)) < 256
    assert set(memory_arrays.CONDITIONS) == {row.when for row in memory_arrays.ARRAYS if row.when}


@pytest.mark.parametrize("codec", ["lz4", "zlib", "zstd"])
def test_compressed(path, codec):
    memory, state = learned("deep")
    save_memory(path, memory, state, codec=codec)
    assert bits(load_memory(path).state) == bits(state)
    with MemoryFile.open(path) as file:
        assert file["model_context_0.parameters.W_in"].codec == codec


@pytest.mark.parametrize(
    "options", [{"optimizer": False}, {"window": False}, {"optimizer": False, "window": False}]
)
@pytest.mark.parametrize("name", ["matrix", "deep", "adapting"])
def test_what_is_left_out_starts_anew(path, name, options):
    memory, state = learned(name, (2,))
    expected = memory.restore(snapshot(state, **options))
    whole = save_memory(path, memory, state)
    assert bits(load_memory(path, **options).state) == bits(expected)
    less = save_memory(path, memory, state, **options)
    assert sum(less.sizes.values()) < sum(whole.sizes.values())
    assert bits(load_memory(path).state) == bits(expected)
    assert bits(load_memory(path, **options).state) == bits(expected)


def test_version_1_converted_to_2_still_loads(path, tmp_path, run_cli):
    memory, state = learned("bfloat16")
    save_memory(path, memory, state, version=1)
    for target in ("atlas-v2", "json", "npz"):
        other = tmp_path / f"other.{target}"
        assert run_cli("convert", path, other, "--to", target).exit_code == 0
    assert bits(load_memory(tmp_path / "other.atlas-v2").state) == bits(state)
    assert (
        run_cli("convert", tmp_path / "other.npz", tmp_path / "back.atlas", "--to", "atlas-v2").exit_code == 0
    )
    assert bits(load_memory(tmp_path / "back.atlas").state) == bits(state)


def test_several_layers(path):
    configs = [CONFIGS["matrix"], CONFIGS["deep"], CONFIGS["matrix"]]
    memories = [Memory(config) for config in configs]
    states = [feed(memory, memory.init(2), 4, seed) for seed, memory in enumerate(memories)]
    description = save_memory(path, memories, states)
    assert description.layers == 3
    assert description.summary == "3 layers of 2 sessions, of different sizes, 8 tokens learned"
    loaded = load_memory(path)
    assert [bits(state) for state in loaded.states] == [bits(state) for state in states]
    assert loaded.memories[0] is loaded.memories[2]
    assert bits(load_memory(path, layer=1).state) == bits(states[1])
    with pytest.raises(InvalidParamError, match="3 layers were loaded"):
        _ = loaded.state
    with pytest.raises(InvalidParamError, match="layers 0 to 2"):
        load_memory(path, layer=3)
    save_memory(path, configs[0], states[0])
    assert describe_memory(path).layers == 1
    with MemoryFile.open(path) as file:
        assert not any(key.startswith("model_context_1") for key in file)


def test_bytes_load_as_files_do(saved):
    assert bits(load_memory(saved.read_bytes()).state) == bits(load_memory(saved).state)


# --- rounded -------------------------------------------------------------------------------------------

WIDE = MemoryConfig(
    8, 32, features=Features(map=Polynomial(2)), theta=0.5, eta_adaptation=0.1, window_size=20
)


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("dtype", LIMITS)
def test_rounded(path, dtype, version):
    memory = Memory(WIDE)
    state = feed(memory, memory.init(2), 20)
    whole = save_memory(path, memory, state, version=version)
    small = save_memory(path, memory, state, dtype=dtype)
    share = {"q8_0": 0.3, "float16": 0.51, "bfloat16": 0.51}[dtype]
    if version == 2:
        assert small.sizes["parameters"] <= share * whole.sizes["parameters"]
    loaded = load_memory(path).state
    for group in ("parameters", "momentum", "window"):
        for name, array in getattr(state, group).items():
            again = getattr(loaded, group)[name]
            assert again.dtype == array.dtype
            error = np.linalg.norm(again - array)
            assert error <= LIMITS[dtype] * np.linalg.norm(array)
            assert (error > 0) == (name in ("W", "key", "value"))
    assert all((loaded.counters[name] == array).all() for name, array in state.counters.items())
    assert np.array_equal(loaded.adaptation["log_eta"], state.adaptation["log_eta"])
    assert np.array_equal(loaded.adaptation["previous.W"], loaded.parameters["W"])
    feed(memory, loaded, 5)


def test_rounding_takes_what_fits(path):
    memory = Memory(WIDE)
    state = feed(memory, memory.init(), 20)
    dtypes = {}
    for scale in (1, 1e-9, 1e7):
        state.parameters["W"][...] = scale * np.sin(np.arange(state.parameters["W"].size)).reshape(-1, 32)
        save_memory(path, memory, state, dtype="q8_0")
        with MemoryFile.open(path) as file:
            dtypes[scale] = file["model_context_0.parameters.W"].dtype
            assert file["model_context_0.window.key"].dtype == "float16"  # 8 numbers are no block of 32
            assert file["model_context_0.window.value"].dtype == "q8_0"
        again = load_memory(path).state.parameters["W"]
        assert np.linalg.norm(again - state.parameters["W"]) <= LIMITS["q8_0"] * np.linalg.norm(again)
    assert dtypes == {1: "q8_0", 1e-9: "bfloat16", 1e7: "bfloat16"}


@pytest.mark.parametrize("dtype", LIMITS)
def test_rounding_a_window_that_is_narrow_already(path, dtype):
    memory, state = learned("bfloat16")
    save_memory(path, memory, state, dtype=dtype)
    loaded = load_memory(path).state
    assert loaded.window["key"].dtype == np.uint16
    assert loaded.window["key"].tobytes() == state.window["key"].tobytes()
    with pytest.raises(InvalidParamError, match="q8_0, float16, bfloat16"):
        save_memory(path, memory, state, dtype="q4_0")


# --- beside other things -------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [1, 2])
def test_other_entries_stay(path, version):
    with MemoryFile.edit(path, create=True, version=version) as file:
        file["chat_history"] = "User: Hello\n"
        file["model_context_0"] = b"an entry that the seeds' programs wrote"
        file["model_context_0.note"] = "of nobody's format"
    memory, state = learned("adapting")
    for name in ("adapting", "matrix"):
        memory, state = learned(name)
        save_memory(path, memory, state, metadata={"model": "llama-7b", "n": [1, None]})
    with MemoryFile.open(path) as file:
        assert file.version == version
        assert list(file)[:4] == ["chat_history", "model_context_0", "model_context_0.note", "atlas_memory"]
        assert "model_context_0.adaptation.mean" not in file
    loaded = load_memory(path)
    assert loaded.metadata == {"model": "llama-7b", "n": [1, None]}
    save_memory(path, memory, state, keep_other_entries=False)
    with MemoryFile.open(path) as file:
        assert next(iter(file)) == "atlas_memory"
        assert all(tables.is_array_key(key) for key in list(file)[1:])


def test_saving_again_does_not_grow_the_file(saved):
    memory, state = learned()
    size = saved.stat().st_size
    for _ in range(3):
        save_memory(saved, memory, state)
    assert saved.stat().st_size == size
    save_memory(saved, memory, state, backup=True)
    assert bits(load_memory(f"{saved}.bak").state) == bits(state)


def test_a_save_that_fails_leaves_the_old_file(saved, monkeypatch):
    from atlas_kit.formats.atlas import v2_writer

    def full(*_args, **_options):
        raise OSError(28, "No space left on device")

    before = saved.read_bytes()
    monkeypatch.setattr(v2_writer, "write", full)
    memory, state = learned(tokens=20)
    with pytest.raises(AtlasError, match="disk is full"):
        save_memory(saved, memory, state)
    assert saved.read_bytes() == before
    assert [file.name for file in saved.parent.iterdir()] == [saved.name]


def test_encrypted(path):
    pytest.importorskip("cryptography")
    memory, state = learned()
    save_memory(path, memory, state, passphrase=SECRET)
    with pytest.raises(KeyRequiredError):
        load_memory(path)
    assert bits(load_memory(path, passphrase=SECRET).state) == bits(state)
    assert describe_memory(path, passphrase=SECRET.encode()).tokens_learned == (6,)


def test_options_that_do_not_fit_the_file(path, tmp_path):
    memory, state = learned()
    with pytest.raises(InvalidParamError, match="version 2 cannot be encrypted"):
        save_memory(path, memory, state, version=2, passphrase=SECRET)
    with pytest.raises(InvalidParamError, match="as they are"):
        save_memory(path, memory, state, version=1, codec="zstd")
    assert list(tmp_path.iterdir()) == []
    save_memory(path, memory, state)
    with pytest.raises(InvalidParamError, match="of version 2, not 1") as caught:
        save_memory(path, memory, state, version=1)
    assert caught.value.remedy == Remedy("change-version", version="1")
    with pytest.raises(InvalidParamError, match="the file is not encrypted"):
        save_memory(path, memory, state, passphrase=SECRET)
    with pytest.raises(InvalidParamError, match="not JSON"):
        save_memory(path, memory, state, metadata={"when": object()})
    with pytest.raises(DataTooLargeError):
        save_memory(path, memory, state, metadata={"text": "x" * (1 << 24)})


def test_states_that_do_not_fit_their_configuration(path):
    memory, state = learned()
    for config in ("deep", "next-token", "bfloat16", "scheduled"):
        with pytest.raises(InvalidParamError, match="layer 0"):
            save_memory(path, CONFIGS[config], state)
    with pytest.raises(InvalidParamError, match="layer 1"):
        save_memory(path, memory, [state, memory.init(3)])
    with pytest.raises(InvalidParamError, match="2 configurations for 1 states"):
        save_memory(path, [memory, memory], state)
    with pytest.raises(InvalidParamError, match="no state"):
        save_memory(path, memory, [])
    assert not path.exists()


# --- whose memory it is --------------------------------------------------------------------------------

MINE, OTHERS = bytes(range(32)), "ab" * 32


def test_memory_of_another_model(path):
    memory, state = learned()
    save_memory(path, memory, state, model_hash=OTHERS)
    assert describe_memory(path).model_hash == OTHERS
    load_memory(path, expect_model_hash=OTHERS)
    with pytest.raises(WrongModelError) as caught:
        load_memory(path, expect_model_hash=MINE)
    assert (caught.value.found, caught.value.expected) == (OTHERS, MINE.hex())
    assert OTHERS[:16] in str(caught.value)
    assert MINE.hex()[:16] in str(caught.value)
    load_memory(path, expect_model_hash=MINE, force=True)
    before = path.read_bytes()
    with pytest.raises(WrongModelError):
        save_memory(path, memory, state, model_hash=MINE)
    assert path.read_bytes() == before
    save_memory(path, memory, state)
    assert describe_memory(path).model_hash == OTHERS
    save_memory(path, memory, state, model_hash=MINE, force=True)
    assert describe_memory(path).model_hash == MINE.hex()


def test_memory_of_no_named_model(saved):
    with pytest.raises(WrongModelError, match="does not say whose") as caught:
        load_memory(saved, expect_model_hash=MINE)
    assert caught.value.found is None
    memory, state = learned()
    save_memory(saved, memory, state, model_hash=MINE)
    load_memory(saved, expect_model_hash=MINE)


# --- damaged and hostile files -------------------------------------------------------------------------


def change(path, key, value, **options):
    with MemoryFile.edit(path) as file:
        file.set(key, value, **options)


def redescribe(path, *place, value):
    """Set one value inside the description."""
    with MemoryFile.edit(path) as file:
        document = inner = file["atlas_memory"].json()
        for name in place[:-1]:
            inner = inner[name]
        inner[place[-1]] = value
        file["atlas_memory"] = document


def refused(path, **options):
    """Return the error over a file, which is one sentence that names the file; nothing large is allocated."""
    tracemalloc.start()
    try:
        with pytest.raises(AtlasError) as caught:
            load_memory(path, **options)
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)
    return caught.value


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("name", ["matrix", "deep", "next-token", "adapting"])
def test_every_entry_is_missed(path, name, version):
    memory, state = learned(name)
    save_memory(path, memory, state, version=version)
    with MemoryFile.open(path) as file:
        entries = list(file)
    for key in entries:
        with MemoryFile.edit(path) as file:
            entry = file[key]
            entry = (entry.data, entry.type, entry.dtype, entry.shape)
            del file[key]
        error = refused(path)
        assert error.key == key
        assert isinstance(error, KeyNotFoundError if key == "atlas_memory" else FileCorruptError)
        data, kind, dtype, shape = entry
        change(path, key, data, type=kind, dtype=dtype, shape=shape)
    load_memory(path)


W = "model_context_0.parameters.W"
BAD_ARRAYS = {
    "shape": (W, np.zeros((21, 5), np.float32), "21, 4"),
    "rank": (W, np.zeros((1, 21, 4), np.float32), "21, 4"),
    "NaN": (W, np.full((21, 4), np.nan, np.float32), "NaN"),
    "infinite in float32": (W, np.full((21, 4), 1e300), "infinity"),
    "integers": (W, np.zeros((21, 4), np.int8), "int8, and float32"),
    "complex": (W, np.zeros((21, 4), np.complex64), "complex64"),
    "text": (W, "hello", "neither a tensor"),
    "no bytes": (W, b"", "neither a tensor"),
    "momentum": ("model_context_0.momentum.W", np.full((21, 4), np.inf, np.float32), "infinity"),
    "float counter": ("model_context_0.counters.seen", np.array(7.0), "int64"),
    "narrow counter": ("model_context_0.counters.seen", np.array(7, np.int32), "int64"),
    "counters": ("model_context_0.counters.seen", np.array(-7), "contradict"),
    "behind itself": ("model_context_0.counters.learned", np.array(70), "contradict"),
    "batch": ("model_context_0.counters.seen", np.array([7, 8]), r"\[2\]"),
    "unknown array": ("model_context_0.parameters.V", np.zeros(3, np.float32), "no such array"),
    "unknown group member": ("model_context_0.window.hidden", np.zeros(3, np.float32), "no such array"),
    "unknown layer": ("model_context_1.parameters.W", np.zeros(3, np.float32), "no such array"),
}


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("name", BAD_ARRAYS)
def test_bad_arrays(path, name, version):
    memory, state = learned()
    save_memory(path, memory, state, version=version)
    key, value, words = BAD_ARRAYS[name]
    if version == 1 and name == "no bytes":
        value = b"\x93NUMPY"
    change(path, key, value)
    error = refused(path)
    assert isinstance(error, FileCorruptError)
    assert error.key == (key if words != "contradict" else "model_context_0.counters")
    with pytest.raises(FileCorruptError, match=words):
        load_memory(path)


def npy(header):
    raw = header.encode().ljust(118)
    return b"\x93NUMPY\1\0" + len(raw).to_bytes(2, "little") + raw


@pytest.mark.parametrize(
    "header",
    [
        "{'descr': '<f4', 'fortran_order': False, 'shape': (1152921504606846976,)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (21, 4)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (-1,)}",
        "{'descr': '|O', 'fortran_order': False, 'shape': (0,)}",
        "{'descr': __import__('os').getcwd(), 'fortran_order': False, 'shape': ()}",
        "(" * 60,
        "",
    ],
)
def test_bad_npy_payloads(saved, header):
    change(saved, W, npy(header))
    assert refused(saved).key == W


def test_npy_of_another_order_is_read(saved):
    import io

    state = load_memory(saved).state
    stream = io.BytesIO()
    np.save(stream, np.asfortranarray(state.parameters["W"].astype(">f8")))
    change(saved, W, stream.getvalue(), type=3)
    assert bits(load_memory(saved).state) == bits(state)


def test_a_flipped_bit_is_found(saved):
    with MemoryFile.open(saved) as file:
        place = file[W].payload_offset
    data = bytearray(saved.read_bytes())
    data[place + 5] ^= 1
    saved.write_bytes(data)
    assert refused(saved).key == W


BAD_DESCRIPTIONS = {
    "beyond counting": (
        ["config", "features"],
        {"map": {"kind": "polynomial", "degree": 10**9}, "projection": 10**9},
        "degree",
    ),
    "format": (["format"], "something else", "not the description"),
    "version": (["version"], 2, "version 2"),
    "version as text": (["version"], "1", '"version" is not a number'),
    "true is no number": (["layers"], True, '"layers" is not a number'),
    "layers": (["layers"], 0, "0 layers"),
    "too many layers": (["layers"], 10**9, "cannot hold 1000000000 layers"),
    "batch": (["batch"], [-1], "whole numbers"),
    "batch of nothing": (["batch"], [0], r"\[0, 21, 4\]"),
    "batch of too much": (["batch"], [10**30], "shape"),
    "dimensions": (["batch"], [1] * 300, "shape"),
    "tokens": (["tokens_learned"], [1, 2], "2 numbers"),
    "dtype": (["dtype"], "q4_0", "q4_0"),
    "optimizer": (["optimizer"], 1, '"optimizer" is not a boolean'),
    "metadata": (["metadata"], None, '"metadata" is not a object'),
    "promises no window": (["window"], False, "no such array"),
    "setting": (["config", "colour"], "red", "colour"),
    "range": (["config", "alpha"], 2.0, "alpha"),
    "type": (["config", "d_k"], "6", "d_k"),
    "kind": (["config", "module", "kind"], "sponge", "sponge"),
    "configurations": (["config"], [{}, {}], "2 configurations"),
    "nothing said": (["config"], {}, "d_k"),
    "configuration of a newer form": (["config", "version"], 99, "version"),
    "another d_v": (["config", "d_v"], 10**9, "shape"),
    "depth": (["config", "module"], {"kind": "residual-mlp", "depth": 10**12}, "depth"),
    "width": (["config", "module"], {"kind": "residual-mlp", "width": 10**12}, "missing"),
    "window": (["config", "window_size"], 10**15, "shape"),
    "degree": (["config", "features", "map", "degree"], 500, "features"),
}


@pytest.mark.parametrize("name", BAD_DESCRIPTIONS)
def test_bad_descriptions(saved, name):
    place, value, words = BAD_DESCRIPTIONS[name]
    redescribe(saved, *place, value=value)
    assert isinstance(refused(saved), (FileCorruptError, VersionMismatchError))
    with pytest.raises((FileCorruptError, VersionMismatchError), match=words):
        load_memory(saved)


@pytest.mark.parametrize("payload", [b"", b"\xff", b"{", b"[1]", b"null", b"[" * 100_000, b'{"format": NaN}'])
def test_a_description_that_is_none(saved, payload):
    change(saved, "atlas_memory", payload, type=4)
    assert refused(saved).key == "atlas_memory"
    with MemoryFile.open(saved) as file:
        assert find_description(file) is None


def test_a_field_that_is_missing(saved):
    with MemoryFile.open(saved) as file:
        document = file["atlas_memory"].json()
    assert list(document) == [row.name for row in tables.DESCRIPTION_FIELDS]
    for row in tables.DESCRIPTION_FIELDS[1:]:
        change(saved, "atlas_memory", {n: v for n, v in document.items() if n != row.name})
        assert f'"{row.name}" is missing' in refused(saved).message
    change(saved, "atlas_memory", {**document, "of a newer writer": 1})
    load_memory(saved)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (["config", "d_k"], 10**9),  # no array shows the width before the projection
        (["config", "window_size"], 10**15),
        (["config", "omega_window"], 10**15),
    ],
)
def test_what_no_array_speaks_for_is_bounded(path, place, value):
    memory, state = learned()
    save_memory(path, memory, state, window=False)
    redescribe(path, *place, value=value)
    error = refused(path)
    assert isinstance(error, DataTooLargeError)
    assert "max_bytes" in str(error)


def test_random_directions_are_bounded(path):
    config = MemoryConfig(6, 4, features=Features(map=RandomFourier(features=16)))
    save_memory(path, config, Memory(config).init(), window=False)
    redescribe(path, "config", "d_k", value=10**9)
    assert isinstance(refused(path), DataTooLargeError)
    assert isinstance(refused(path, max_bytes=10**9), DataTooLargeError)
    assert describe_memory(path).configs[0].d_k == 10**9  # which allocates nothing


def test_a_backend_that_does_not_exist_is_not_the_files_fault(saved):
    with pytest.raises(InvalidParamError, match="not a backend"):
        load_memory(saved, backend="abacus")


def test_not_a_memory(tmp_path):
    with pytest.raises(AtlasError, match=r"not a \.atlas file"):
        load_memory(b"hello")
    with MemoryFile.edit(tmp_path / "chat.atlas", create=True) as file:
        file["chat"] = "hello"
    assert isinstance(refused(tmp_path / "chat.atlas"), KeyNotFoundError)


# --- what a file says ----------------------------------------------------------------------------------


def test_description(path):
    memory = Memory(presets.omega_net(16, 8, module=CONFIGS["matrix"].module))
    state = feed(memory, memory.init((2, 3)), 10)
    description = save_memory(path, memory, state, metadata={"model": "tiny"}, dtype="bfloat16")
    assert description == describe_memory(path)
    assert description.summary == (
        "1 layer of 2 x 3 sessions, matrix of 152 x 8, polynomial degree 2, 60 tokens learned"
    )
    assert description.sizes["parameters"] == 6 * 152 * 8 * 2
    assert description.sizes["counters"] == 8 * 6 * 8
    facts = json.loads(json.dumps(description.to_json()))
    assert facts["batch"] == [2, 3]
    assert facts["dtype"] == "bfloat16"
    assert MemoryConfig.from_json(facts["config"]) == memory.config
    assert facts["metadata"] == {"model": "tiny"}


def test_inspect_says_what_was_learned(path, run_cli):
    memory, state = learned()
    save_memory(path, memory, state)
    shown = run_cli("inspect", path)
    assert shown.exit_code == 0
    assert "\nmemory      1 layer, matrix of 21 x 4, polynomial degree 2, 6 tokens learned\n" in shown.stdout
    facts = json.loads(run_cli("inspect", path, "--json").stdout)
    assert facts["memory"]["tokens_learned"] == [6]
    redescribe(path, "batch", value="many")
    assert 'memory      cannot be read: the field "batch" is not a list' in run_cli("inspect", path).stdout
    change(path, "atlas_memory", "a note of somebody else")
    assert "\nmemory" not in run_cli("inspect", path).stdout


def test_diff_compares_memories(path, tmp_path, run_cli):
    memory, state = learned()
    save_memory(path, memory, state)
    later = tmp_path / "later.atlas"
    save_memory(later, memory, feed(memory, state, 3))
    result = run_cli("diff", path, later)
    assert result.exit_code == 1
    assert "tokens_learned" in result.stdout
    assert "model_context_0.parameters.W" in result.stdout
    assert run_cli("diff", path, path).exit_code == 0


# --- what an outside tester tried ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lost", "option"),
    [
        ("window.alpha", "window"),
        ("momentum.W", "optimizer"),
        ("counters.seen", None),
        ("parameters.W", None),
    ],
)
def test_what_a_repair_could_not_save_can_be_left_out(saved, lost, option):
    before = load_memory(saved).state
    with MemoryFile.edit(saved) as file:
        file.remove(f"model_context_0.{lost}")
    error = refused(saved)
    assert error.key == f"model_context_0.{lost}"
    if option is None:
        assert error.hint is None
        return
    assert f"{option}=False" in str(error)
    loaded = load_memory(saved, **{option: False})
    expected = loaded.memory.restore(snapshot(before, **{option: False}))
    assert bits(loaded.state) == bits(expected)


@pytest.mark.parametrize(
    ("call", "key"),
    [
        (lambda p, m, s: save_memory(p, m, None), "states"),
        (lambda p, m, s: save_memory(p, s, m), "states"),
        (lambda p, m, s: save_memory(p, None, s), "memory"),
        (lambda p, m, s: save_memory(p, m.config.to_json(), s), "memory"),
        (lambda p, m, s: save_memory(p, m, s, version=True), "version"),
        (lambda p, m, s: save_memory(p, m, s, version="2"), "version"),
        (lambda p, m, s: save_memory(p, m, s) and load_memory(p, layer="0"), "layer"),
        (lambda p, m, s: save_memory(p, m, s) and load_memory(p, layer=True), "layer"),
    ],
)
def test_arguments_of_the_wrong_kind(path, call, key):
    with pytest.raises(InvalidParamError) as caught:
        call(path, *learned())
    assert caught.value.key == key


def test_no_version_0(path, saved):
    with pytest.raises(AtlasError, match="0 is not a version"):
        save_memory(path.with_name("new.atlas"), *learned(), version=0)
    redescribe(saved, "version", value=0)
    assert "0 is not a version" in refused(saved).message


def test_repr_is_short(path):
    memory, state = learned()
    description = save_memory(path, [memory] * 24, [state] * 24, metadata={"chat": "x" * 10_000})
    assert repr(description) == f"<MemoryDescription of {path}: {description.summary}>"
    assert len(repr(load_memory(path))) < 500
    assert "of bytes:" in repr(describe_memory(path.read_bytes()))


@pytest.mark.slow
def test_a_process_that_is_killed_while_it_saves(path):
    """Whatever moment it dies at, the file is the old one or the new one, and the next save works."""
    memory, first = learned()
    second = feed(memory, first, 3)
    save_memory(path, memory, first)
    program = (
        "import sys; from tests.persistence.test_snapshot import *; memory, first = learned(); "
        "second = feed(memory, first, 3); print(flush=True)\n"
        "while True: save_memory(sys.argv[1], memory, second); save_memory(sys.argv[1], memory, first)"
    )
    for delay in (0.0, 0.003, 0.01):
        with subprocess.Popen([sys.executable, "-c", program, path], stdout=subprocess.PIPE) as process:
            process.stdout.readline()
            time.sleep(delay)
            process.kill()
        assert bits(load_memory(path).state) in (bits(first), bits(second))
    save_memory(path, memory, second)
    assert bits(load_memory(path).state) == bits(second)
    assert [name.name for name in path.parent.iterdir()] == [path.name]


# --- a ranking, and entries beside a memory ------------------------------------------------------------


def test_a_learned_ranking_is_an_array_of_its_own(path):
    memory, state = learned("beside a model")
    state.gate["rank"][:] = (5.0, 0.25, 0.0)
    save_memory(path, memory, state)
    assert load_memory(path).state.gate["rank"].tolist() == [5, 0.25, 0]
    with MemoryFile.open(path) as file:
        assert "model_context_0.gate.rank" in file


@pytest.mark.parametrize("version", [1, 2, 3])
def test_entries_go_with_the_memory(path, version):
    memory, state = learned()
    secret = {"key": bytes(range(32))} if version == 3 else {}
    save_memory(path, memory, state, version=version, entries={"a": b"one", "b": b"two", "c": None}, **secret)
    assert contents(path, secret) == {"a": b"one", "b": b"two"}
    save_memory(path, memory, state, entries={"a": None, "b": b"three"}, **secret)
    assert contents(path, secret) == {"b": b"three"}
    save_memory(path, memory, state, **secret)  # what is not named stays
    assert contents(path, secret) == {"b": b"three"}
    save_memory(path, memory, state, keep_other_entries=False, entries={"d": b"four"}, **secret)
    assert contents(path, secret) == {"d": b"four"}
    assert bits(load_memory(path, **secret).state) == bits(state)


def contents(path, secret):
    with MemoryFile.open(path, **secret) as file:
        own = [name for name in file if not name.startswith(("atlas_memory", "model_context"))]
        return {name: bytes(file.get(name).data) for name in own}
