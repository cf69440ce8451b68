"""``rename`` and ``rm``: names of entries, metadata keys and tensors, in place or in a new file, all or none."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from gguf_builder import ARR, F32_T, KV, STR, U32, Array, File, Tensor, split_llama, tiny_llama

from atlas_kit.errors import InvalidParamError, KeyNotFoundError
from atlas_kit.formats.atlas import MemoryFile
from atlas_kit.formats.gguf import GGUFFile, edit_metadata
from atlas_kit.formats.gguf.tensor_edit import edit_names
from atlas_kit.operations.rename import RenameOptions, rename_names

TINY = tiny_llama()


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "m.gguf"
    path.write_bytes(TINY.bytes())
    return path


@pytest.fixture(params=[1, 2, 3])
def memory(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    secret = {"passphrase": b"pass"} if request.param == 3 else {}
    path = tmp_path / "m.atlas"
    made = MemoryFile(version=request.param, **secret)
    for number in range(4):
        made.set(f"chat/{number}", f"text {number}", timestamp=number + 1)
    made.save(path)
    return path


SECRET = {"ATLAS_PASSPHRASE": "pass"}


def opened(path: Path) -> MemoryFile:
    with open(path, "rb") as file:
        secret = {"passphrase": b"pass"} if file.read(5)[4] == 3 else {}
    return MemoryFile.open(path, **secret)


def secret_of(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if path.read_bytes()[4] == 3:
        monkeypatch.setenv("ATLAS_PASSPHRASE", "pass")


# --- models ---------------------------------------------------------------------------------------------------


def renamed(file: File, names: dict[str, str]) -> File:
    """Return the file as the independent builder writes it under other names."""
    pairs = tuple(replace(pair, key=names.get(str(pair.key), pair.key)) for pair in file.kv)
    tensors = tuple(replace(t, name=names.get(str(t.name), t.name)) for t in file.tensors)
    return replace(file, kv=pairs, tensors=tensors)


@pytest.mark.parametrize("in_place", [True, False])
@pytest.mark.parametrize(
    "names", [("output.weight", "t"), ("output.weight", "o" * 63), ("general.name", "g")]
)
def test_a_name_changes_and_nothing_else(
    model: Path, tmp_path: Path, run_cli: Callable[..., Any], names: tuple[str, str], in_place: bool
) -> None:
    out = model if in_place else tmp_path / "new.gguf"
    result = run_cli("rename", model, *names, *([] if in_place else ["-o", out]))
    assert result.exit_code == 0, result.stderr
    wanted = renamed(TINY, dict([names]))
    if not in_place:
        assert out.read_bytes() == wanted.bytes()
        assert model.read_bytes() == TINY.bytes()
    with GGUFFile.open(out) as file:
        assert [info.name for info in file.tensor_infos] == [t.name for t in wanted.tensors]
        assert [f.key for f in file.fields if f.key != "atlas.pad"] == [pair.key for pair in wanted.kv]
        for tensor in wanted.tensors:
            assert b"".join(file.iter_raw(str(tensor.name))) == tensor.payload


def test_what_fits_is_written_in_place(model: Path) -> None:
    edit_metadata(model, [], in_place=False, reserve=400)
    inode = model.stat().st_ino
    result = edit_names(model, tensors={"output.weight": "a.longer.name.than.before.weight"})
    assert (result.mode, model.stat().st_ino) == ("in-place", inode)
    assert result.bytes_written < 10_000
    assert edit_names(model, tensors={"a.longer.name.than.before.weight": "output.weight"}).mode == "in-place"
    with GGUFFile.open(model) as file:
        assert [info.name for info in file.tensor_infos] == [t.name for t in TINY.tensors]


def test_patterns(model: Path, run_cli: Callable[..., Any]) -> None:
    plan = json.loads(
        run_cli("rename", model, r"^blk\.(\d+)\.", r"model.layers.\1.", "--regex", "-n", "--json").stdout
    )
    assert model.read_bytes() == TINY.bytes()
    assert plan["renamed"][0] == {
        "part": "tensor", "name": "blk.0.attn_norm.weight", "old": "blk.0.attn_norm.weight",
        "new": "model.layers.0.attn_norm.weight",
    } or plan["renamed"][0]["new"] == "model.layers.0.attn_norm.weight"  # fmt: skip
    assert len(plan["renamed"]) == 18
    assert run_cli("rename", model, r"^blk\.(\d+)\.", r"model.layers.\1.", "--regex").exit_code == 0
    assert run_cli("rename", model, "model.layers.*.ffn_*", "blk.*.ffn_*", "--glob").exit_code == 0
    with GGUFFile.open(model) as file:
        assert "blk.1.ffn_up.weight" in file.tensors
        assert "model.layers.1.attn_q.weight" in file.tensors
    assert run_cli("rename", model, "model.layers.*", "blk.*", "--glob").exit_code == 0
    assert run_cli("validate", model).exit_code == 0


@pytest.mark.parametrize(
    ("old", "new", "how", "said"),
    [
        ("nothing", "x", "exact", "no entry with this key"),
        ("nothing*", "x", "glob", "no name matches"),
        ("output.weight", "output_norm.weight", "exact", "would be two"),
        ("blk.*", "x", "glob", "would be two"),
        ("blk.*", "x*y*", "glob", "more stars"),
        ("output.weight", "x" * 64, "exact", "1 to 63 bytes"),
        ("output.weight", "\u00fc" * 32, "exact", "1 to 63 bytes"),
        ("output.weight", "", "exact", "1 to 63 bytes"),
        ("general.name", "", "exact", "1 to 65535 bytes"),
        ("general.name", "atlas.pad", "exact", "reserved"),
        ("general.name", "llama.block_count", "exact", "would be two"),
        ("(", "x", "regex", "not a regular expression"),
        ("blk", r"\3", "regex", "cannot be put"),
    ],
)
def test_what_cannot_be_changes_nothing(
    model: Path, run_cli: Callable[..., Any], old: str, new: str, how: str, said: str
) -> None:
    options = [] if how == "exact" else [f"--{how}"]
    for more in ([], ["-n"], ["-o", model.with_name("out.gguf")], ["--backup"]):
        result = run_cli("rename", *options, *more, "--", model, old, new)
        assert result.exit_code == 2, more
        assert said in result.stderr
        assert model.read_bytes() == TINY.bytes()
        assert sorted(path.name for path in model.parent.iterdir()) == ["m.gguf"]


def test_names_may_change_places(model: Path) -> None:
    edit_names(model, tensors={"output.weight": "token_embd.weight", "token_embd.weight": "output.weight"})
    with GGUFFile.open(model) as file:
        assert b"".join(file.iter_raw("output.weight")) == TINY.tensors[0].payload


def test_another_alignment_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(tiny_llama(align=64).bytes())
    before = path.read_bytes()
    with pytest.raises(InvalidParamError, match="alignment"):
        edit_names(path, keys={"general.alignment": "x"})
    assert path.read_bytes() == before
    edit_names(path, tensors={"output.weight": None}, out=tmp_path / "out.gguf")
    with GGUFFile.open(tmp_path / "out.gguf") as file:
        assert file.alignment == 64


def test_names_that_occur_twice(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    twice = replace(TINY, tensors=(*TINY.tensors, Tensor("output.weight", (2,), F32_T, bytes(8))))
    path.write_bytes(twice.bytes())
    with pytest.raises(InvalidParamError, match="more than once"):
        edit_names(path, tensors={"output.weight": "x"})
    edit_names(path, tensors={"output_norm.weight": "x"})  # the header of a damaged file can still be changed
    edit_names(path, tensors={"x": "output_norm.weight", "output.weight": None})
    with GGUFFile.open(path) as file:
        assert "output.weight" not in file.tensors
        assert len(file.tensors) == 20


def test_a_backup_is_the_old_file(model: Path, run_cli: Callable[..., Any]) -> None:
    assert run_cli("rename", model, "output.weight", "x", "--backup").exit_code == 0
    backups = [path for path in model.parent.iterdir() if path.name.endswith(".bak")]
    assert [path.read_bytes() for path in backups] == [TINY.bytes()]
    assert run_cli("rename", model, "x", "y", "--backup", "-o", model.with_name("o.gguf")).exit_code == 2


def test_odd_values_keep_their_bytes(tmp_path: Path) -> None:
    odd = TINY.with_kv(KV("n", ARR, Array(ARR, [Array(U32, [1])])), KV("b", 7, 2), KV("s", STR, b"\xff"))
    path = tmp_path / "m.gguf"
    path.write_bytes(odd.bytes())
    edit_names(path, tensors={"output.weight": "x"}, out=tmp_path / "o.gguf")
    assert (tmp_path / "o.gguf").read_bytes() == renamed(odd, {"output.weight": "x"}).bytes()


# --- removing tensors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("in_place", [True, False])
def test_a_tensor_goes_with_its_data(
    model: Path, tmp_path: Path, run_cli: Callable[..., Any], in_place: bool
) -> None:
    out = model if in_place else tmp_path / "new.gguf"
    wanted = TINY.without_tensor("token_embd.weight").without_tensor("blk.1.attn_q.weight")
    line = ["rm", model, "token_embd.weight", "blk.1.attn_q.weight"]
    assert run_cli(*line, *([] if in_place else ["-o", out])).exit_code == 0
    assert out.read_bytes() == wanted.bytes()
    assert in_place or model.read_bytes() == TINY.bytes()


def test_tensors_and_keys_go_together(model: Path, run_cli: Callable[..., Any]) -> None:
    dry = run_cli("rm", model, "output*", "general.name", "--glob", "-n")
    assert model.read_bytes() == TINY.bytes()
    done = run_cli("rm", model, "output*", "general.name", "--glob", "--backup")
    assert done.stdout == dry.stdout.replace("would remove", "removed")
    wanted = TINY.without("general.name").without_tensor("output.weight").without_tensor("output_norm.weight")
    assert model.read_bytes() == wanted.bytes()
    assert [p.read_bytes() for p in model.parent.iterdir() if p.name.endswith(".bak")] == [TINY.bytes()]
    refused = run_cli("rm", model, "general.architecture", "nothing")
    assert refused.exit_code == 2
    assert model.read_bytes() == wanted.bytes()


def test_a_prefix_that_a_converter_left(tmp_path: Path, run_cli: Callable[..., Any]) -> None:
    """acestep.cpp#31: every tensor is named model.blk..., and llama.cpp refuses the file."""
    path = tmp_path / "m.gguf"
    prefixed = renamed(TINY, {str(t.name): f"model.{t.name}" for t in TINY.tensors})
    path.write_bytes(prefixed.bytes())
    assert run_cli("validate", path).exit_code == 1
    assert run_cli("rename", path, r"^model\.", "", "--regex").exit_code == 0
    assert run_cli("validate", path).exit_code == 0
    assert run_cli("rm", path, "output.weight").exit_code == 0
    assert run_cli("validate", path).exit_code == 0


def test_reserved_space_is_no_key_of_anybody(tmp_path: Path, run_cli: Callable[..., Any]) -> None:
    """A value that became shorter leaves room, under a key that ``ls`` shows."""
    path = tmp_path / "m.gguf"
    path.write_bytes(TINY.bytes())
    for value in ("long" * 1000, "short"):
        assert run_cli("set", path, "general.name", value).exit_code == 0
    assert "atlas.pad" in run_cli("ls", path).stdout
    before = path.read_bytes()
    for line in (["rm", path, "atlas.pad"], ["rename", path, "atlas.pad", "x"]):
        refused = run_cli(*line)
        assert refused.exit_code == 2
        assert "kept for reserved space" in refused.stderr
    assert run_cli("rename", path, "atlas.*", "b.*", "--glob").exit_code == 2
    assert path.read_bytes() == before
    assert run_cli("rm", path, "*", "--glob", "--dry-run").exit_code == 0
    assert run_cli("rm", path, "general.*", "atlas.*", "--glob", "--ignore-missing").exit_code == 0


def test_split_models(tmp_path: Path, run_cli: Callable[..., Any]) -> None:
    paths = [tmp_path / f"m-{number:05d}-of-00003.gguf" for number in (1, 2, 3)]
    for path, file in zip(paths, split_llama(3), strict=True):
        path.write_bytes(file.bytes())
    before = [path.read_bytes() for path in paths]
    name = split_llama(3)[1].tensors[0].name
    for line in (["rename", paths[1], name, "x"], ["rm", paths[1], name]):
        refused = run_cli(*line)
        assert refused.exit_code == 2
        assert "atlas-tool join" in refused.stderr
        assert [path.read_bytes() for path in paths] == before
        assert run_cli(*line, "-o", tmp_path / "out.gguf", "--force").exit_code == 0
        with GGUFFile.open(tmp_path / "out.gguf") as file:
            assert name not in file.tensors
            assert not file.is_split
    refused = run_cli("rename", paths[1], "general.name", "x")
    assert refused.exit_code == 2
    assert run_cli("rename", paths[0], "general.name", "general.title").exit_code == 0


# --- memory files ---------------------------------------------------------------------------------------------


def test_entries_are_renamed(
    memory: Path, run_cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    secret_of(memory, monkeypatch)
    before = memory.read_bytes()
    dry = run_cli("rename", memory, "chat/1", "old/one", "-n")
    assert (dry.stdout, dry.stderr) == ("would rename chat/1 -> old/one\n", "")
    assert memory.read_bytes() == before
    assert run_cli("rename", memory, "chat/1", "old/one", "--backup").exit_code == 0
    with opened(memory) as file:
        assert sorted(file) == ["chat/0", "chat/2", "chat/3", "old/one"]
        assert (file["old/one"].text, file["old/one"].timestamp) == ("text 1", 2)
    assert run_cli("rename", memory, "chat/*", "talk/*", "--glob").exit_code == 0
    assert run_cli("rename", memory, r"talk/(\d)", r"\1", "--regex").exit_code == 0
    with opened(memory) as file:
        assert sorted(file) == ["0", "2", "3", "old/one"]
    assert run_cli("validate", memory).exit_code == 0


def test_entries_in_a_new_file(
    memory: Path, run_cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    secret_of(memory, monkeypatch)
    before, out = memory.read_bytes(), memory.with_name("out.atlas")
    assert run_cli("rename", memory, "chat/1", "x", "-o", out).exit_code == 0
    assert memory.read_bytes() == before
    assert out.read_bytes()[:5] == before[:5]  # of the same version: encrypted where it was
    with opened(out) as file:
        assert sorted(file) == ["chat/0", "chat/2", "chat/3", "x"]
        assert file["x"].text == "text 1"
    refused = run_cli("rename", memory, "chat/1", "x", "-o", out)
    assert refused.exit_code == 2
    assert run_cli("rm", memory, "chat/0", "-o", out, "--force").exit_code == 0
    assert memory.read_bytes() == before
    assert out.read_bytes()[:5] == before[:5]
    with opened(out) as file:
        assert sorted(file) == ["chat/1", "chat/2", "chat/3"]
    for verb in (["rename", memory, "chat/1", "x"], ["rm", memory, "chat/1"]):
        assert run_cli(*verb, "-o", memory, "--force").exit_code == 2
        assert memory.read_bytes() == before


@pytest.mark.parametrize("names", [("chat/1", "chat/2"), ("nothing", "x"), ("chat/1", "k" * 100_000)])
def test_entries_that_cannot_be_renamed(
    memory: Path, run_cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, names: tuple[str, str]
) -> None:
    secret_of(memory, monkeypatch)
    before = memory.read_bytes()
    result = run_cli("rename", memory, *names)
    assert result.exit_code == 2
    assert "internal error" not in result.stderr
    assert memory.read_bytes() == before


def test_entries_may_change_names_with_each_other(tmp_path: Path) -> None:
    path = tmp_path / "m.atlas"
    with MemoryFile.edit(path, create=True) as file:
        file.update({"a1": "one", "a2": "two", "11": "x"})
    with pytest.raises(InvalidParamError, match="already"):
        rename_names(path, "a([12])", r"\1\1", RenameOptions(how="regex"))
    rename_names(path, "^a?(.)(.?)$", r"\2a\1", RenameOptions(how="regex"))
    with MemoryFile.open(path) as file:
        assert {key: file[key].text for key in file} == {"a1": "one", "a2": "two", "1a1": "x"}
    with pytest.raises(KeyNotFoundError):
        rename_names(path, "b*", "c*", RenameOptions(how="glob"))


@pytest.mark.parametrize(
    ("old", "new", "names"),
    [
        ("chat/*", "*", {"chat/a": "a", "chat/": ""}),
        ("*.*", "*_*", {"a.b": "a_b", "a.b.c": "a.b_c"}),
        ("?b", "x", {"ab": "x", "b": None}),
        ("[ab]*", "*", {"a1": "1", "c1": None}),
        ("[!ab]*", "*", {"c1": "1", "a1": None}),
        ("a+b", "x", {"a+b": "x", "aab": None}),
        ("*", "pre-*", {"x\ny": "pre-x\ny"}),
        ("[", "x", {"[": "x"}),
    ],
)
def test_what_a_pattern_means(old: str, new: str, names: dict[str, str | None]) -> None:
    from atlas_kit.operations.rename import _changer

    change = _changer(old, new, "glob")
    assert {name: change(name) for name in names} == names
