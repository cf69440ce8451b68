"""``inspect`` on reported files: one line says that a file is damaged, and nothing false is said beside it."""

from __future__ import annotations

import json
import os
import re
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
import report_files as built
from gguf_builder import KV, STR, split_llama

#: name -> (file, what is said, what is not)
DAMAGED: dict[str, tuple[Callable[[], bytes], str, str]] = {
    "pairs": (built.one_pair_too_many, "promises 19 metadata pairs, and the file holds 18", "vocabulary only"),
    "tensors": (built.one_tensor_too_many, "promises 13 tensors, and the file holds 12", "tensors           13"),
    "version": (built.version_4, "GGUF version 4 is not known", "version 0"),
    "cut": (built.truncated, "bytes are past the end of the file", "vocabulary only"),
    "cut in the header": (lambda: built.truncated()[:9000], "the tensor list is cut off", "vocabulary only"),
    "cut in the vocabulary": (lambda: built.truncated()[:700], "is cut off", "vocabulary only"),
    "preallocated": (built.preallocated, "are zeros", "vocabulary only"),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged(name: str, tmp_path: Path, run_cli) -> None:
    make, said, unsaid = DAMAGED[name]
    path = tmp_path / "model.gguf"
    path.write_bytes(make())
    result = run_cli("inspect", path)
    assert result.exit_code == 1
    (line,) = [line for line in result.stdout.splitlines() if line.startswith("damaged: ")]
    assert said in line
    assert line.endswith(f"See all of it with: atlas-tool validate {path}")
    assert unsaid not in result.stdout
    assert not result.stderr
    assert run_cli("validate", path).exit_code == 1


def test_whole_models_are_not_damaged(tmp_path: Path, run_cli) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(built.model().bytes())
    result = run_cli("inspect", path)
    assert result.exit_code == 0
    assert "damaged" not in result.stdout


def test_counts_are_those_of_what_is_there(tmp_path: Path, run_cli) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(built.one_tensor_too_many())
    shown = json.loads(run_cli("inspect", path, "--json").stdout)
    assert shown["tensor_count"] == 12
    assert len(shown["problems"]) == 1
    tensors = run_cli("inspect", path, "--tensors").stdout
    path.write_bytes(built.model().bytes())
    assert tensors.startswith(run_cli("inspect", path, "--tensors").stdout)


def test_a_truncation_is_told_in_a_few_lines(tmp_path: Path, run_cli) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(built.truncated())
    assert len(run_cli("validate", path).stdout.splitlines()) == 3
    lines = run_cli("inspect", path, "--stats").stdout.splitlines()
    assert len([line for line in lines if "cannot be read" in line or "should end at byte" in line]) <= 4


@pytest.mark.filterwarnings("error")
def test_stats_of_doubles_are_theirs(tmp_path: Path, run_cli) -> None:
    path = tmp_path / "f64.gguf"
    path.write_bytes(built.doubles())
    shown = json.loads(run_cli("inspect", path, "--stats", "--json").stdout)["stats"][0]
    assert (shown["min"], shown["max"], shown["nan"], shown["inf"]) == (-1e200, 1e300, 0, 0)
    assert shown["mean"] == pytest.approx(2.5e299)
    assert shown["std"] == pytest.approx(4.330127e299)


def test_offsets_of_shards_stand_below_their_file(tmp_path: Path, run_cli) -> None:
    for number, shard in enumerate(split_llama(3), 1):
        (tmp_path / f"m-{number:05d}-of-00003.gguf").write_bytes(shard.bytes())
    path = tmp_path / "m-00001-of-00003.gguf"
    lines = run_cli("inspect", path, "--tensors").stdout.splitlines()
    assert [line for line in lines if line.endswith(".gguf:")] == [
        f"m-{n:05d}-of-00003.gguf:" for n in (1, 2, 3)
    ]
    tensors = json.loads(run_cli("inspect", path, "--tensors", "--json").stdout)["tensors"]
    assert [tensor["shard"] for tensor in tensors[::20]] == ["m-00001-of-00003.gguf", "m-00003-of-00003.gguf"]


def test_chat_template(tmp_path: Path, run_cli) -> None:
    path = tmp_path / "model.gguf"
    source = (
        "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{{ eos_token }}\n{% endfor %}<|assistant|>"
    )
    path.write_bytes(built.model().with_kv(KV("tokenizer.chat_template", STR, source)).bytes())
    result = run_cli("inspect", path, "--template")
    assert result.exit_code == 0
    assert source.split("\n")[0] in result.stdout
    assert (
        "<|user|>Hello</s>\n<|assistant|>Hi there</s>\n<|user|>How are you?</s>\n<|assistant|>"
        in result.stdout
    )
    shown = json.loads(run_cli("inspect", path, "--template", "--json").stdout)["template"]
    assert shown["text"].startswith("<|system|>You are helpful.</s>\n")
    assert shown["problem"] is None


def test_a_template_that_refuses_system_messages_is_shown_without_one(tmp_path: Path, run_cli) -> None:
    path = tmp_path / "model.gguf"
    source = (
        "{% if messages[0].role == 'system' %}{{ raise_exception('no') }}{% endif %}{{ messages[0].content }}"
    )
    path.write_bytes(built.model().with_kv(KV("tokenizer.chat_template", STR, source)).bytes())
    result = run_cli("inspect", path, "--template")
    assert result.exit_code == 0
    assert "becomes:\nHello\n" in result.stdout


@pytest.mark.parametrize(
    "source",
    [
        "{% for m in messages %}",
        "{{ messages.nothing.more }}",
        "{{ 1 / 0 }}",
        "{% for a in range(9999) %}{% for b in range(9999) %}xx{% endfor %}{% endfor %}",
    ],
)
def test_a_template_that_fails(source: str, tmp_path: Path, run_cli) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(built.model().with_kv(KV("tokenizer.chat_template", STR, source)).bytes())
    result = run_cli("inspect", path, "--template")
    assert result.exit_code == 1
    assert source in result.stdout
    assert "it fails: " in result.stdout


def test_no_template(tmp_path: Path, run_cli, samples: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(built.model().bytes())
    assert "has no chat template" in run_cli("inspect", path, "--template").stderr
    result = run_cli("inspect", samples / "atlas" / "chat.atlas", "--template")
    assert result.exit_code == 2
    assert "only a model has a chat template" in result.stderr


@pytest.mark.filterwarnings("error")
def test_stats_of_signalling_nan(tmp_path: Path, run_cli) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(built.model().with_tensor("output_norm.weight", data=b"\1\0\x80\x7f" * 32).bytes())
    stats = json.loads(run_cli("inspect", path, "--stats", "--json").stdout)["stats"]
    assert next(row for row in stats if row["name"] == "output_norm.weight")["nan"] == 32


def test_a_template_is_not_computed_while_it_is_checked(tmp_path: Path, run_cli) -> None:
    path = tmp_path / "model.gguf"
    source = "{{ 'x' * 10 ** 12 }}"
    path.write_bytes(built.model().with_kv(KV("tokenizer.chat_template", STR, source)).bytes())
    assert run_cli("validate", "--strict", path).exit_code == 0


def cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


def zeros_within(data: bytes) -> bytes:
    return data[: len(data) // 2] + bytes(200) + data[len(data) // 2 + 200 :]


HARMS: dict[str, Callable[[bytes], bytes]] = {
    "cut": cut,
    "zeros within": zeros_within,
    "magic": lambda data: b"XXXX" + data[4:],
    "header": lambda data: data[:20] + b"\xff" * 8 + data[28:],
    "version": lambda data: data[:4] + b"\x09" + data[5:],
    "no header": lambda data: data[200:],
    "end": lambda data: data[:-40],
}


@pytest.mark.parametrize("harm", HARMS)
@pytest.mark.parametrize("name", ["all-types", "chat", "learned"])
def test_what_is_intact_of_a_damaged_memory_is_shown(
    name: str, harm: str, tmp_path: Path, samples: Path, run_cli
) -> None:
    whole, path = samples / "atlas" / f"{name}.atlas", tmp_path / "m.atlas"
    path.write_bytes(HARMS[harm](whole.read_bytes()))
    result = run_cli("inspect", path)
    assert (result.exit_code, result.stderr) == (1, "")
    (line,) = [line for line in result.stdout.splitlines() if line.startswith("damaged: ")]
    assert line.endswith(f"See all of it with: atlas-tool validate {path}")
    assert "that are intact" in result.stdout
    assert run_cli("validate", path).exit_code == 1
    keys = json.loads(run_cli("inspect", path, "--keys", "--json").stdout)
    shown = {row["key"] for row in keys["keys"]}
    assert shown
    assert shown <= set(run_cli("ls", whole).stdout.splitlines())
    entries = json.loads(run_cli("inspect", path, "--entries", "--json").stdout)["entries"]
    assert {row["key"] for row in entries} == shown
    saved = run_cli("repair", path, "-o", tmp_path / "out.atlas", "--json")
    assert saved.exit_code in (0, 1)
    kept = run_cli("ls", tmp_path / "out.atlas").stdout.splitlines()
    assert shown == {key for key in kept if not key.startswith("lost+found/")}


@pytest.mark.parametrize("name", ["bit-flip", "secret-altered"])
def test_a_memory_that_opens_and_is_damaged(name: str, samples: Path, run_cli) -> None:
    """A payload whose checksum is wrong, of an encrypted file without its key as well."""
    result = run_cli("inspect", samples / "broken" / f"{name}.atlas")
    assert result.exit_code == 1
    assert len([line for line in result.stdout.splitlines() if line.startswith("damaged: ")]) == 1


def test_whole_memories_are_not_damaged(samples: Path, run_cli) -> None:
    for path in (samples / "atlas").glob("*.atlas"):
        result = run_cli("inspect", path)
        assert result.exit_code == 0, result.stdout
        assert "damaged" not in result.stdout


def test_what_is_left_of_an_encrypted_memory_needs_its_key(
    tmp_path: Path, samples: Path, run_cli, monkeypatch
) -> None:
    path = tmp_path / "s.atlas"
    path.write_bytes((samples / "atlas" / "secret.atlas").read_bytes()[:-100])
    assert "damaged: " in run_cli("inspect", path).stdout
    assert run_cli("inspect", path, "--entries").exit_code == 2
    monkeypatch.setenv("ATLAS_PASSPHRASE", (samples / "text" / "passphrase.txt").read_text().strip())
    result = run_cli("inspect", path, "--entries")
    assert result.exit_code == 1
    assert "conversation" in result.stdout or "text" in result.stdout


def test_nothing_is_left(tmp_path: Path, samples: Path, run_cli) -> None:
    data = (samples / "atlas" / "chat.atlas").read_bytes()
    path = tmp_path / "m.atlas"
    for rest in (data[:40], data[:6], b"", bytes(3000), b"no such thing " * 100):
        path.write_bytes(rest)
        result = run_cli("inspect", path)
        assert (result.exit_code, result.stdout) == (2, "")
        assert re.search("atlas-tool re(pair|cover) |Get it again", result.stderr)


def test_an_archive_of_a_memory_is_no_damaged_one(tmp_path: Path, samples: Path, run_cli) -> None:
    path = tmp_path / "m.atlas"
    with tarfile.open(path, "w") as archive:
        archive.add(samples / "atlas" / "chat.atlas", "chat.atlas")
    result = run_cli("inspect", path)
    assert result.exit_code == 2
    assert "tar archive" in result.stderr


@pytest.mark.parametrize("size", [4, 5, 6, 7])
def test_a_header_of_a_few_bytes_has_no_version(size: int, tmp_path, run_cli) -> None:
    path = tmp_path / "few.gguf"
    path.write_bytes(b"GGUF\3\0\0\0"[:size])
    result = run_cli("inspect", path)
    assert result.exit_code == 1
    assert "version 0" not in result.stdout
    assert "damaged: the file ends inside its first 24 bytes" in result.stdout


def test_a_safetensors_file_that_was_not_filled_is_damaged(tmp_path, run_cli, samples) -> None:
    path = tmp_path / "model.safetensors"
    assert run_cli("convert", samples / "models" / "tiny-python.gguf", path).exit_code == 0
    assert run_cli("inspect", path).exit_code == 0
    size = path.stat().st_size
    os.truncate(path, size - 3_000_000)
    os.truncate(path, size)
    result = run_cli("inspect", path)
    assert result.exit_code == 1
    assert "damaged: " in result.stdout
    assert f"atlas-tool validate {path}" in result.stdout
    assert "are zeros" in result.stdout


# --- safetensors and npz ------------------------------------------------------------------------------------------


def _carrier(path: Path, **how: object) -> bytes:
    """Write arrays as a file of the kind that the name says, and return its bytes."""
    import numpy as np

    arrays = {f"layer.{number}": np.arange(500, dtype=np.float32) + number for number in range(6)}
    if path.suffix == ".npz":
        (np.savez_compressed if how.get("packed") else np.savez)(path, **arrays)
    else:
        from atlas_kit.formats.safetensors import NewTensor, write_safetensors

        with open(path, "wb") as file:
            write_safetensors(
                file,
                [NewTensor(n, "F32", a.shape, lambda a=a: [a.tobytes()]) for n, a in arrays.items()],
                {"format": "pt"},
            )
    return path.read_bytes()


def _flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 0x55]) + data[at + 1 :]


CARRIERS: dict[str, tuple[str, Callable[[bytes], bytes], str, int]] = {
    "cut": (".safetensors", lambda d: d[: len(d) // 2], "2 of 6 tensors are intact", 2),
    "one byte short": (".safetensors", lambda d: d[:-1], "5 of 6 tensors are intact", 5),
    "header alone": (".safetensors", lambda d: d[: 8 + int.from_bytes(d[:8], "little")], "0 of 6 tensors", 0),
    "cut in the header": (".safetensors", lambda d: d[:200], "the file ends before that; 0 of ", 0),
    "cut in the length": (".safetensors", lambda d: d[:5], "too short for a safetensors header; no tensor", 0),
    "more behind": (".safetensors", lambda d: d + b"more", "4 bytes follow the last tensor; 6 of 6", 6),
    "a dtype": (".safetensors", lambda d: d.replace(b"F32", b"F99", 1), "'F99' is not known; 5 of 6", 5),
    "a bad brace": (".safetensors", lambda d: d.replace(b'"layer.3"', b'xlayer.3"'), "not valid JSON", 3),
    "npz cut": (".npz", lambda d: d[: len(d) // 2], "the archive is damaged: File is not a zip file; 3 of ", 3),
    "npz without directory": (".npz", lambda d: d[: d.index(b"PK\1\2")], "6 of 6 arrays are intact", 6),
    "npz beginning": (".npz", lambda d: d[:20], "no array is intact", 0),
    "npz flipped": (".npz", lambda d: _flipped(d, 1000), "CRC", 5),
    "npz method": (".npz", lambda d: _flipped(d, d.index(b"PK\1\2") + 10), "another method than deflate; 5 of 6", 5),
    "npz header": (".npz", lambda d: d.replace(b"'<f4'", b"'<f9'", 1), "5 of 6 arrays are intact", 5),
}  # fmt: skip


@pytest.mark.parametrize("name", CARRIERS)
def test_what_is_intact_of_damaged_arrays_is_shown(name: str, tmp_path: Path, run_cli) -> None:
    suffix, breaks, said, intact = CARRIERS[name]
    path = tmp_path / f"model{suffix}"
    path.write_bytes(breaks(_carrier(path)))
    result = run_cli("inspect", path)
    assert (result.exit_code, result.stderr) == (1, "")
    (line,) = [line for line in result.stdout.splitlines() if line.startswith("damaged: ")]
    assert said in line
    assert line.endswith(f"See all of it with: atlas-tool validate {path}")
    shown = json.loads(run_cli("inspect", path, "--json", "--entries").stdout)
    assert sum(row["key"].startswith("layer.") for row in shown["entries"]) == intact
    assert len(shown["problems"]) == 1
    assert run_cli("validate", path).exit_code == 1


def test_a_compressed_archive_that_was_cut(tmp_path: Path, run_cli) -> None:
    path = tmp_path / "model.npz"
    data = _carrier(path, packed=True)
    path.write_bytes(data[: len(data) * 2 // 3])
    result = run_cli("inspect", path)
    assert result.exit_code == 1
    assert re.search(r"damaged: .*[2-4] of [3-5] arrays are intact", result.stdout)


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_cut_anywhere_it_is_damaged_and_never_more(suffix: str, tmp_path: Path, run_cli) -> None:
    path = tmp_path / f"model{suffix}"
    data = _carrier(path)
    for at in range(1, len(data), 97):
        for made in (data[:at], _flipped(data, at)):
            path.write_bytes(made)
            result = run_cli("inspect", path)
            assert result.exit_code == 1 or (result.exit_code == 0 and len(made) == len(data)) or at < 9, at
            assert "internal error" not in result.stderr


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_a_damaged_side_record_hides_no_array(suffix: str, tmp_path: Path, run_cli) -> None:
    import numpy as np

    path = tmp_path / f"model{suffix}"
    if suffix == ".npz":
        np.savez(path, a=np.arange(3), __atlas_kit__=np.frombuffer(b"{", np.uint8))
    else:
        from atlas_kit.formats.safetensors import NewTensor, write_safetensors

        with open(path, "wb") as file:
            write_safetensors(file, [NewTensor("a", "U8", (3,), lambda: [b"abc"])], {"atlas_kit": "{}"})
    result = run_cli("inspect", path)
    assert (result.exit_code, result.stderr) == (1, "")
    assert "side record of atlas_kit" in result.stdout
    assert json.loads(run_cli("inspect", path, "--json").stdout)["entries"][0]["key"] == "a"
