"""Files that belong beside a model: what each is, which model it is for, and whether it fits one."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest
import report_files as built
from gguf_builder import ARR, BOOL, F16_T, F32, F32_T, KV, STR, U32, Array, File, Tensor


def _numbers(count: int, kind: int = F32_T) -> bytes:
    return np.arange(count).astype("<f4" if kind == F32_T else "<f2").tobytes()


def lora(width: int = 32, arch: str = "llama", rank: int = 4) -> bytes:
    """An adapter of the attention of one layer."""
    pairs = (
        KV("general.type", STR, "adapter"), KV("general.architecture", STR, arch), KV("adapter.type", STR, "lora"),
        KV("adapter.lora.alpha", F32, 8.0), KV("general.base_model.count", U32, 1),
        KV("general.base_model.0.name", STR, "Tiny"), KV("general.base_model.0.organization", STR, "Example"),
    )  # fmt: skip
    tensors = []
    for name in ("blk.0.attn_q.weight", "blk.0.attn_v.weight"):
        tensors += [
            Tensor(f"{name}.lora_a", (width, rank), F16_T, _numbers(width * rank, F16_T)),
            Tensor(f"{name}.lora_b", (rank, width), F16_T, _numbers(width * rank, F16_T)),
        ]
    return File(pairs, tuple(tensors)).bytes()


def mmproj(width: int = 32) -> bytes:
    """A projector of pictures."""
    pairs = (
        KV("general.type", STR, "mmproj"), KV("general.architecture", STR, "clip"),
        KV("clip.has_vision_encoder", BOOL, 1), KV("clip.projector_type", STR, "mlp"),
        KV("clip.vision.projection_dim", U32, width), KV("clip.vision.image_size", U32, 336),
        KV("general.base_model.0.name", STR, "Tiny"),
    )  # fmt: skip
    return File(pairs, (Tensor("mm.0.weight", (8, width), F32_T, _numbers(8 * width)),)).bytes()


def imatrix(width: int = 32, called: int = 512) -> bytes:
    """An importance matrix of two matrices."""
    pairs = (
        KV("general.type", STR, "imatrix"), KV("imatrix.datasets", ARR, Array(STR, ["calibration.txt"])),
        KV("imatrix.chunk_count", U32, 10), KV("imatrix.chunk_size", U32, 512),
    )  # fmt: skip
    tensors = []
    for name, count in (("blk.0.attn_q.weight", 5120), ("blk.0.ffn_up.weight", called)):
        tensors += [
            Tensor(f"{name}.in_sum2", (width, 1), F32_T, _numbers(width)),
            Tensor(f"{name}.counts", (1, 1), F32_T, np.array([count], "<f4").tobytes()),
        ]
    return File(pairs, tuple(tensors)).bytes()


def imatrix_dat(width: int = 32) -> bytes:
    """The same in the format from before GGUF."""
    out = struct.pack("<i", 2)
    for name, calls in ((b"blk.0.attn_q.weight", 10), (b"blk.0.ffn_up.weight", 10)):
        out += struct.pack("<i", len(name)) + name + struct.pack("<ii", calls, width) + _numbers(width)
    return out + struct.pack("<ii", 10, 15) + b"calibration.txt"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.gguf"
    path.write_bytes(built.model().bytes())
    return path


SAID = {
    "lora": (lora, ["LoRA adapter (lora), rank 4, alpha 8.0", "2 tensors in 1 layer: attn_q, attn_v", "Example Tiny",
                    "a llama model of width 32 with 1 layer or more"]),
    "mmproj": (mmproj, ["projector for vision (mlp), images of 336 x 336", "Tiny", "a model of width 32"]),
    "imatrix": (imatrix, ["importance matrix of 2 matrices", "10 chunks of 512 tokens: calibration.txt", "5,120",
                          "blk.0.ffn_up.weight"]),
    "imatrix.dat": (imatrix_dat, ["importance matrix of 2 matrices", "10 chunks: calibration.txt",
                                  "blk.0.attn_q.weight"]),
}  # fmt: skip


@pytest.mark.parametrize("name", SAID)
@pytest.mark.parametrize("command", ["inspect", "info"])
def test_what_it_is(name: str, command: str, tmp_path: Path, run_cli) -> None:
    make, said = SAID[name]
    path = tmp_path / ("c.dat" if name.endswith("dat") else "c.gguf")
    path.write_bytes(make())
    result = run_cli(command, path)
    assert result.exit_code == 0, result.stderr
    for words in said:
        assert words in result.stdout
    assert "vocabulary" not in result.stdout
    facts = json.loads(run_cli(command, path, "--json").stdout)["companion"]
    assert facts["kind"] in ("adapter", "mmproj", "imatrix")
    assert run_cli("validate", path).exit_code == 0


@pytest.mark.parametrize("name", SAID)
def test_whether_it_fits(name: str, model: Path, tmp_path: Path, run_cli) -> None:
    make, _ = SAID[name]
    path = tmp_path / ("c.dat" if name.endswith("dat") else "c.gguf")
    path.write_bytes(make())
    result = run_cli("inspect", path, "--fits", model)
    assert (result.exit_code, "it fits the model" in result.stdout) == (0, True)
    path.write_bytes(make(64))
    result = run_cli("inspect", path, "--fits", model)
    assert result.exit_code == 1
    assert "it does not fit the model: " in result.stdout
    assert json.loads(run_cli("inspect", path, "--fits", model, "--json").stdout)["fits"] is False


def test_other_files_fit_nothing(model: Path, samples: Path, tmp_path: Path, run_cli) -> None:
    """What is no companion is refused; silence and an exit code of 0 would say that it fits."""
    arrays = tmp_path / "a.npz"
    np.savez(arrays, x=np.ones(3))
    for path in (samples / "atlas" / "chat.atlas", samples / "atlas" / "secret.atlas", arrays, model):
        refused = run_cli("inspect", path, "--fits", model)
        assert (refused.exit_code, refused.stdout) == (2, "")
        assert "adapters, projectors and importance matrices" in refused.stderr


def test_reasons(model: Path, tmp_path: Path, run_cli) -> None:
    path = tmp_path / "c.gguf"
    path.write_bytes(lora(arch="gemma"))
    assert (
        "the adapter is for gemma, and the model is llama" in run_cli("inspect", path, "--fits", model).stdout
    )
    path.write_bytes(lora(64))
    assert (
        "the adapter is for 64 x 64, and the model has 32 x 32"
        in run_cli("inspect", path, "--fits", model).stdout
    )
    path.write_bytes(mmproj(64))
    assert (
        "projects to a width of 64, and the model's is 32" in run_cli("inspect", path, "--fits", model).stdout
    )
    assert "this is a model of its own" in run_cli("inspect", model, "--fits", model).stderr


def test_what_was_never_called(tmp_path: Path, run_cli) -> None:
    path = tmp_path / "c.gguf"
    path.write_bytes(imatrix(called=0))
    assert "1, in part or whole: blk.0.ffn_up.weight" in run_cli("inspect", path).stdout


def test_a_dat_that_is_cut_off(tmp_path: Path, run_cli) -> None:
    path = tmp_path / "c.dat"
    path.write_bytes(imatrix_dat()[:150])
    for command in ("inspect", "validate"):
        result = run_cli(command, path)
        assert result.exit_code in (1, 2)
        assert "the file ends before" in result.stdout + result.stderr


@pytest.mark.parametrize(
    "line",
    ["ls F", "get F x", "hash F", "diff F F", "convert F out.gguf", "convert F out.atlas", "set F a b", "rm F a",
     "rename F a b", "compress F -o out.gguf", "repair F -o out.atlas", "merge F F -o out.atlas", "export F",
     "append F a b", "encrypt F", "split F --max-size 1M", "grep a F", "recommend F", "run F -p x", "forget F a",
     "import F F"],
)  # fmt: skip
def test_every_command_knows_a_dat(line: str, tmp_path: Path, run_cli, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("c.dat").write_bytes(imatrix_dat())
    result = run_cli(*("c.dat" if word == "F" else word for word in line.split()))
    assert result.exit_code == 2
    if line not in ("forget F a", "import F F"):
        assert "an importance matrix in the format from before GGUF" in result.stderr
    assert "internal error" not in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["c.dat"]
