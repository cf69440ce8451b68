"""Models in several files: every command takes a set of shards as one model, or refuses; reports of what went wrong."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from gguf_builder import KV, STR, File, split_llama, tiny_llama

from atlas_kit.formats.gguf import GGUFFile

WHOLE = tiny_llama()


@pytest.fixture
def shards(tmp_path: Path) -> list[Path]:
    """Return a model in three shards; ``whole.gguf`` beside them is the same one."""
    (tmp_path / "whole.gguf").write_bytes(WHOLE.bytes())
    paths = [tmp_path / f"m-{number:05d}-of-00003.gguf" for number in (1, 2, 3)]
    for path, file in zip(paths, split_llama(3), strict=True):
        path.write_bytes(file.bytes())
    return paths


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


# --- the sweep --------------------------------------------------------------------------------------------

#: Commands that only look, as whoever has one of the files types them.
LOOKS: dict[str, list[str]] = {
    "inspect": ["inspect", "{}", "--entries"],
    "stats": ["inspect", "{}", "--stats"],
    "validate": ["validate", "{}"],
    "ls": ["ls", "{}"],
    "get": ["get", "{}", "general.name"],
    "get tensor": ["get", "{}", "blk.1.ffn_down.weight", "--json"],
    "hash": ["hash", "{}"],
    "identity": ["hash", "{}", "--identity"],
    "recommend": ["recommend", "{}"],
}


@pytest.mark.parametrize("name", LOOKS)
def test_a_look_at_any_shard_is_a_look_at_the_model(
    name: str, shards: list[Path], run_cli: Callable[..., Any]
) -> None:
    before = contents(shards[0].parent)
    line = [word for word in LOOKS[name] if word != "{}"]
    where = LOOKS[name].index("{}")
    said = []
    for path in shards:
        result = run_cli(*line[:where], path, *line[where:])
        assert result.exit_code == 0, result.stderr
        said.append(result.stdout.replace(str(path), "MODEL"))
    if name == "hash":  # the first line is the file's own
        said = [text.split("\n", 1)[1] for text in said]
    if name == "validate":  # a shard that is not the first says so
        said = [text.splitlines()[0] for text in said]
    assert len(set(said)) == 1
    if name.startswith("get"):
        assert (
            said[0] == run_cli(*line[:where], shards[0].with_name("whole.gguf"), *line[where:]).stdout
            or (json.loads(said[0])["base64"])
        )
    assert contents(shards[0].parent) == before


@pytest.mark.parametrize("name", LOOKS)
def test_a_look_at_a_set_with_a_gap_says_which_is_missing(
    name: str, shards: list[Path], run_cli: Callable[..., Any]
) -> None:
    shards[1].unlink()
    for shard in (shards[0], shards[2]):
        result = run_cli(*[word.format(shard) for word in LOOKS[name]])
        assert result.exit_code in (1, 2)
        assert shards[1].name in result.stdout + result.stderr


#: Commands that write, and what must come of them: the whole model, or a refusal that names a way out.
WRITES: dict[str, tuple[list[str], str]] = {
    "to native": (["convert", "{}", "out.gguf", "--to", "atlas-gguf"], "whole"),
    "auto": (["convert", "{}", "out.gguf", "--auto"], "whole"),
    "to stock": (["convert", "{}", "out.gguf", "--to", "gguf"], "atlas-tool join"),
    "quantise": (["compress", "{}", "-o", "out.gguf", "--quantize", "f16"], "whole"),
    "join": (["join", "{}", "-o", "out.gguf"], "whole"),
}


@pytest.mark.parametrize("shard", [0, 1, 2])
@pytest.mark.parametrize("name", WRITES)
def test_what_is_written_is_the_model_or_nothing(
    name: str, shard: int, shards: list[Path], run_cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(shards[0].parent)
    before = contents(shards[0].parent)
    line, expected = WRITES[name]
    result = run_cli(*[word.format(shards[shard].name) for word in line])
    after = contents(shards[0].parent)
    out = after.pop("out.gguf", None)
    assert after == before
    if expected == "whole":
        assert result.exit_code == 0, result.stderr
        assert out is not None
        with GGUFFile.open("out.gguf") as made:
            assert [info.name for info in made.tensor_infos] == [t.name for t in WHOLE.tensors]
            assert not any(key.startswith("split.") for key in made.metadata)
        assert run_cli("validate", "out.gguf").exit_code == 0
    else:
        assert result.exit_code == 2
        assert expected in result.stderr
        assert out is None


@pytest.mark.parametrize("line", [["set", "{}", "general.name", "x"], ["rm", "{}", "general.name"]])
def test_metadata_are_changed_in_the_first_shard_only(
    line: list[str], shards: list[Path], run_cli: Callable[..., Any]
) -> None:
    before = contents(shards[0].parent)
    result = run_cli(*[word.format(shards[1]) for word in line])
    assert result.exit_code == 2
    assert shards[0].name in result.stderr
    assert contents(shards[0].parent) == before
    assert run_cli(*[word.format(shards[0]) for word in line]).exit_code == 0
    assert run_cli("validate", shards[0]).exit_code == 0
    with GGUFFile.open(shards[2]) as model:
        assert model.get("general.name") == (None if line[0] == "rm" else "x")


def test_one_shard_through_a_pipe_is_not_the_model(shards: list[Path], run_cli: Callable[..., Any]) -> None:
    """It can be looked at, and says so; nothing is made of it."""
    data, out = shards[0].read_bytes(), shards[0].parent / "out.gguf"
    looked = run_cli("inspect", "-", stdin=data)
    assert looked.exit_code == 0
    assert "1 of 3, looked at alone" in looked.stdout
    for line in (
        ["compress", "-", "-o", out, "--quantize", "f16"],
        ["split", "-", "-o", out, "--max-tensors", "2"],
        ["join", "-", "-o", out],
        ["convert", "-", out, "--to", "atlas-gguf"],
    ):
        result = run_cli(*line, stdin=data)
        assert result.exit_code == 2, line
        assert result.stderr
        assert not out.exists()


def test_layout_makes_no_difference(shards: list[Path], run_cli: Callable[..., Any]) -> None:
    whole = shards[0].with_name("whole.gguf")
    assert run_cli("diff", whole, shards[1]).exit_code == 0
    assert run_cli("diff", whole, shards[1], "--strict").exit_code == 1
    hashes = [json.loads(run_cli("hash", path, "--json").stdout)[0]["content"] for path in (whole, shards[0])]
    assert hashes[0] == hashes[1]


# --- one shard alone ----------------------------------------------------------------------------------------


def test_one_shard_can_be_looked_at(shards: list[Path], run_cli: Callable[..., Any]) -> None:
    """LostRuins/koboldcpp#2239: somebody has one of three shards and wants to know what it is."""
    lone = shards[0].parent / "lone" / shards[1].name
    lone.parent.mkdir()
    shutil.copy(shards[1], lone)
    refused = run_cli("inspect", lone)
    assert refused.exit_code == 2
    assert "shards=False" not in refused.stderr
    assert "--one-shard" in refused.stderr
    names = [tensor.name for tensor in split_llama(3)[1].tensors]
    for line in (["inspect", lone], ["ls", lone], ["hash", lone], ["inspect", lone, "--tensors"]):
        result = run_cli(*line, "--one-shard")
        assert result.exit_code == 0, result.stderr
        if line[0] != "inspect" or len(line) > 2:
            assert all(name in result.stdout for name in names)
    assert run_cli("validate", lone, "--one-shard").exit_code == 0
    incomplete = run_cli("validate", lone)
    assert incomplete.exit_code == 1
    assert f"shard 1 is missing: {shards[0].name}" in incomplete.stdout
    assert f"shard 3 is missing: {shards[2].name}" in incomplete.stdout
    assert run_cli("get", lone, "split.no", "--one-shard").stdout == "1"
    assert "split.no" in run_cli("grep", "no", lone, "--in-keys", "--one-shard").stdout
    assert run_cli("diff", lone, shards[1], "--one-shard").exit_code == 0
    assert run_cli("diff", shards[0], shards[1], "--one-shard").exit_code == 1


# --- split and join -----------------------------------------------------------------------------------------


def test_split_and_join(shards: list[Path], run_cli: Callable[..., Any]) -> None:
    folder = shards[0].parent
    whole = folder / "whole.gguf"
    before = contents(folder)
    plan = run_cli("split", whole, "--max-size", "50K", "--dry-run")
    assert plan.exit_code == 0
    assert contents(folder) == before
    assert run_cli("split", whole, "--max-size", "50K").stdout == plan.stdout.replace("would write", "wrote")
    made = sorted(folder.glob("whole-*.gguf"))
    assert [path.name for path in made] == [f"whole-{i:05d}-of-00004.gguf" for i in range(1, 5)]
    assert all(path.stat().st_size <= 50_000 for path in made)
    assert run_cli("validate", *made).exit_code == 0
    again = run_cli("split", whole, "--max-size", "50K")
    assert again.exit_code == 2
    assert "exists already" in again.stderr
    assert run_cli("split", whole, "--max-size", "50K", "--force").exit_code == 0
    for path in (made[0], made[-1]):
        assert run_cli("join", path, "-o", folder / "back.gguf", "--force").exit_code == 0
        assert (folder / "back.gguf").read_bytes() == whole.read_bytes()
    listed = json.loads(run_cli("join", *reversed(made), "-o", folder / "b.gguf", "--json").stdout)
    assert (listed["kind"], listed["tensors"], listed["size"]) == ("shards", 21, whole.stat().st_size)
    assert (folder / "b.gguf").read_bytes() == whole.read_bytes()
    piped = run_cli("join", made[0], "-o", "-")
    assert (piped.exit_code, piped.output) == (0, whole.read_bytes())
    for line in (["split", whole, "--max-size", "50K"], ["join", made[0], "-o", folder / "b.gguf"]):
        silent = run_cli(*line, "--force", "--quiet")
        assert (silent.exit_code, silent.output) == (0, b"")


@pytest.mark.parametrize("size", ["0", "-1", "x", "1.5", "G", "1e9", "9" * 40, ""])
def test_sizes_that_make_no_sense(size: str, shards: list[Path], run_cli: Callable[..., Any]) -> None:
    result = run_cli("split", shards[0].with_name("whole.gguf"), f"--max-size={size}", "--dry-run")
    if size == "1.5":  # bytes, rounded down: a tensor a shard
        assert result.exit_code == 0
        assert re.search(r"note: \d+ shards are larger, the first is 1: ", result.stdout)
        assert result.stdout.count("too large for the size") == 1
    else:
        assert result.exit_code == 2
        assert "is not a size" in result.stderr


def test_what_fits_is_not_split(shards: list[Path], run_cli: Callable[..., Any]) -> None:
    result = run_cli("split", shards[0], "--max-size", "1G", "-o", shards[0].parent / "x")
    assert result.exit_code == 2
    assert "nothing to split" in result.stderr
    assert "--max-size" in run_cli("split", shards[0]).stderr


def test_a_failed_split_leaves_nothing(
    shards: list[Path], run_cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from atlas_kit.formats.gguf import split

    real, calls = split.write_laid_out, []

    def fail(*args: Any, **options: Any) -> int:
        calls.append(args)
        if len(calls) == 3:
            raise OSError(28, "No space left on device")
        return real(*args, **options)

    monkeypatch.setattr(split, "write_laid_out", fail)
    before = contents(shards[0].parent)
    result = run_cli("split", shards[0].with_name("whole.gguf"), "--max-tensors", "4")
    assert result.exit_code == 2
    assert len(calls) == 3
    assert contents(shards[0].parent) == before


def pieces(folder: Path, names: list[str], data: bytes) -> list[Path]:
    folder.mkdir()
    paths = [folder / name for name in names]
    step = -(-len(data) // len(names))
    for number, path in enumerate(paths):
        path.write_bytes(data[number * step : (number + 1) * step])
    return paths


NAMES = {
    "part1of3": [f"m.gguf.part{i}of3" for i in (1, 2, 3)],
    "part1of12": [f"m.gguf.part{i}of12" for i in range(1, 13)],
    "split -b": ["m.gguf.aa", "m.gguf.ab", "m.gguf.ac"],
    "TheBloke": ["m.gguf-split-a", "m.gguf-split-b", "m.gguf-split-c"],
    "7-Zip": ["m.gguf.001", "m.gguf.002", "m.gguf.003"],
    "split": ["xaa", "xab", "xac"],
}


@pytest.mark.parametrize("name", NAMES)
def test_pieces_of_a_file_are_joined(name: str, tmp_path: Path, run_cli: Callable[..., Any]) -> None:
    paths = pieces(tmp_path / "parts", NAMES[name], WHOLE.bytes())
    out = tmp_path / "out.gguf"
    for given in ([paths[0]], [paths[1]], list(reversed(paths))):
        result = run_cli("join", *given, "-o", out, "--force")
        assert result.exit_code == 0, result.stderr
        assert out.read_bytes() == WHOLE.bytes()
    out.unlink()
    paths[1].rename(tmp_path / "elsewhere")
    result = run_cli("join", paths[0], "-o", out)
    assert result.exit_code == 2
    assert f"a part is missing: {paths[1].name}" in result.stderr
    assert not out.exists()


def test_a_last_piece_that_is_missing_is_seen(tmp_path: Path, run_cli: Callable[..., Any]) -> None:
    paths = pieces(tmp_path / "parts", NAMES["split -b"], WHOLE.bytes())
    paths[-1].unlink()
    result = run_cli("join", paths[0], "-o", tmp_path / "out.gguf")
    assert result.exit_code == 2
    assert "the 2 parts hold" in result.stderr
    assert "Is the last part missing" in result.stderr


def test_pieces_in_a_wrong_order_or_of_another_file(tmp_path: Path, run_cli: Callable[..., Any]) -> None:
    paths = pieces(tmp_path / "parts", ["one", "two", "three"], WHOLE.bytes())
    out = tmp_path / "out.gguf"
    wrong = run_cli("join", *reversed(paths), "-o", out)
    assert wrong.exit_code == 2
    assert "no file of a known format" in wrong.stderr
    whole = tmp_path / "whole.gguf"
    whole.write_bytes(WHOLE.bytes())
    more = run_cli("join", whole, paths[1], "-o", out)
    assert more.exit_code == 2
    assert "ends before this part" in more.stderr
    assert "nothing to join" in run_cli("join", whole, "-o", out).stderr
    assert "given twice" in run_cli("join", paths[0], paths[0], "-o", out).stderr
    assert not out.exists()
    assert run_cli("join", *paths, "-o", out).exit_code == 0
    assert out.read_bytes() == WHOLE.bytes()


def test_shards_that_were_joined_with_cat(shards: list[Path], run_cli: Callable[..., Any]) -> None:
    """ggml-org/llama.cpp#9613: the shards were put into one file with cat, and llama.cpp refuses it."""
    folder = shards[0].parent
    cat = folder / "cat.gguf"
    cat.write_bytes(b"".join(path.read_bytes() for path in shards))
    looked = run_cli("inspect", cat)
    assert looked.exit_code == 2
    assert "one after the other" in looked.stderr
    assert f"atlas-tool join {cat}" in looked.stderr
    for command in ("validate", "repair"):
        said = run_cli(command, cat, *(["-n"] if command == "repair" else []))
        assert "Give the file this name" not in said.stdout + said.stderr
        assert f"atlas-tool join {cat}" in said.stdout + said.stderr
    assert run_cli("join", cat, "-o", folder / "out.gguf").exit_code == 0
    assert (folder / "out.gguf").read_bytes() == WHOLE.bytes()
    gap = folder / "cat-gap.gguf"
    gap.write_bytes(shards[0].read_bytes() + shards[-1].read_bytes())
    refused = run_cli("join", gap, "-o", folder / "gap-out.gguf")
    assert refused.exit_code == 2
    assert "shard 2 of 3 is missing" in refused.stderr
    assert not (folder / "gap-out.gguf").exists()
    part = pieces(folder / "parts", NAMES["part1of3"], cat.read_bytes())
    assert run_cli("join", part[0], "-o", folder / "out.gguf", "--force").exit_code == 0
    assert (folder / "out.gguf").read_bytes() == WHOLE.bytes()


def test_shards_under_other_names(shards: list[Path], run_cli: Callable[..., Any]) -> None:
    folder = shards[0].parent
    renamed = [path.rename(folder / f"{name}.gguf") for path, name in zip(shards, "cab", strict=True)]
    out = folder / "out.gguf"
    assert run_cli("join", *renamed, "-o", out).exit_code == 0
    assert out.read_bytes() == WHOLE.bytes()
    assert "shard 2 of 3 is missing" in run_cli("join", renamed[0], renamed[2], "-o", folder / "x").stderr
    shutil.copy(renamed[0], folder / "again.gguf")
    assert "two files say" in run_cli("join", *renamed, folder / "again.gguf", "-o", folder / "x").stderr
    other = folder / "other.gguf"
    other.write_bytes(split_llama(2)[1].bytes())
    assert "different models" in run_cli("join", renamed[0], other, "-o", folder / "x").stderr
    assert "no shard of one" in run_cli("join", renamed[0], folder / "whole.gguf", "-o", folder / "x").stderr


def test_an_output_that_is_a_shard_is_refused(shards: list[Path], run_cli: Callable[..., Any]) -> None:
    before = contents(shards[0].parent)
    for out in shards:
        result = run_cli("join", shards[0], "-o", out, "--force")
        assert result.exit_code == 2
    result = run_cli("split", shards[0], "--max-tensors", "7", "--force")
    assert result.exit_code == 2
    assert contents(shards[0].parent) == before


def test_other_files_are_no_models(tmp_path: Path, run_cli: Callable[..., Any], samples: Path) -> None:
    memory = samples / "atlas" / "llama-7b_memory.atlas"
    assert "only a GGUF model is split" in run_cli("split", memory, "--max-size", "1K").stderr
    parts = pieces(tmp_path / "parts", ["m.atlas.aa", "m.atlas.ab"], memory.read_bytes())
    assert run_cli("join", parts[0], "-o", tmp_path / "m.atlas").exit_code == 0
    assert (tmp_path / "m.atlas").read_bytes() == memory.read_bytes()


def test_a_broken_shard_is_not_joined(shards: list[Path], run_cli: Callable[..., Any]) -> None:
    shards[1].write_bytes(shards[1].read_bytes()[:-5000])
    out = shards[0].parent / "out.gguf"
    for line in (["join", shards[0], "-o", out], ["convert", shards[0], out, "--to", "atlas-gguf"]):
        result = run_cli(*line)
        assert result.exit_code == 2
        assert shards[1].name in result.stderr
        assert not out.exists()
    bad = File((KV("general.architecture", STR, "llama"),), split_llama(3)[1].tensors)
    shards[1].write_bytes(bad.bytes())
    assert "split.no is missing" in run_cli("join", shards[0], "-o", out).stderr
