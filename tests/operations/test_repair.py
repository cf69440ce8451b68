"""``repair``: sentence, exit code and files always say the same, whatever happened to the file.

One rule: 0 nothing was wrong and nothing is written, 1 something was mended or lost, 2 a repair cannot help.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from gguf_builder import F32_T, Tensor, tiny_llama, vocab_only

from atlas_kit.formats.findings import Finding
from atlas_kit.formats.gguf.lost_file import lost_name
from atlas_kit.operations.validate import validate_file
from atlas_kit.storage.keys import Keys

ROOT = Path(__file__).resolve().parents[2]
SAMPLES = sorted((ROOT / "sample_data" / "broken").iterdir())
WHOLE = [
    *sorted((ROOT / "sample_data" / "atlas").glob("*.atlas")),
    *sorted((ROOT / "sample_data" / "gguf").glob("*.gguf")),
]
PASSPHRASE = "correct horse battery staple"
Repair = Callable[..., tuple[int, str, str]]
#: Remedies that promise that ``repair`` does something.
PROMISES = {"mend", "repair", "rescue-entries"}
#: Generated breakages of each file.
TRIES = 12


@pytest.fixture(autouse=True)
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)


def findings(path: Path) -> list[Finding]:
    return validate_file(path, Keys(passphrase=PASSPHRASE.encode(), ambient=True)).findings


def errors(found: list[Finding]) -> list[str]:
    return [finding.message for finding in found if finding.severity == "error"]


@pytest.fixture
def repair(run_cli, monkeypatch: pytest.MonkeyPatch) -> Repair:
    def repair(path: Path, *arguments: object) -> tuple[int, str, str]:
        if "secret" in path.name:  # for a plain file it would ask for an encrypted one
            monkeypatch.setenv("ATLAS_PASSPHRASE", PASSPHRASE)
        else:
            monkeypatch.delenv("ATLAS_PASSPHRASE", raising=False)
        done = run_cli("repair", path, *arguments)
        return done.exit_code, done.stdout, done.stderr

    return repair


def check(path: Path, folder: Path, repair: Repair) -> int:
    """Repair a file, and require that all that is said and done agrees; return the exit code."""
    out = folder / f"out{path.suffix}"
    lost = lost_name(out)
    lost.write_text("of an earlier repair")
    if out.exists():
        out.unlink()
    before, old = findings(path), path.read_bytes()
    code, said, problem = repair(path, "-o", out)
    assert (code, said, out.exists()) == (2, "", False), "an old lost-and-found file is in the way"
    lost.unlink()
    dry = repair(path, "-n", "--json")
    code, said, problem = repair(path, "-o", out)
    assert dry[0] == code
    assert path.read_bytes() == old
    wrong = bool(errors(before)) or any(f.remedy is not None and f.remedy.name in PROMISES for f in before)
    assert (code == 0) == (not wrong), before
    assert said.startswith("there is nothing to repair") == (code == 0)
    if code == 0 and path.suffix == ".gguf":
        assert "tensor data were not looked at (--data does)" in said
    assert ("nothing to repair" in said) == (not out.exists() and code == 0)
    assert out.exists() == (code == 1)
    assert bool(problem) == (code == 2)
    if code < 2:
        counts = json.loads(dry[1])
        assert counts["intact"] == (code == 0) == (not counts["mended_count"] and not counts["lost_count"])
    if code == 1:
        assert counts["mended_count"] or counts["lost_count"]
        assert (", mended " in said) == bool(counts["mended_count"])
        assert bool(counts["lost_count"]) == (
            " damaged" in said.splitlines()[-2] or " lost" in said.splitlines()[-2]
        )
        for message in errors(findings(out)):
            assert message in said, "what is still wrong is said"
        if path.suffix == ".atlas":
            assert not errors(findings(out))
    assert lost.exists() == (code == 1 and path.suffix == ".gguf" and counts["lost_count"] > 0)
    if lost.exists():
        assert str(lost) in said
        assert json.loads(lost.read_bytes())["lost"]
        lost.unlink()
    return code


@pytest.mark.parametrize("path", [*SAMPLES, *WHOLE], ids=lambda path: path.name)
def test_all_that_is_said_of_a_sample_agrees(path: Path, tmp_path: Path, repair) -> None:
    code = check(path, tmp_path, repair)
    if path in WHOLE:
        assert code == (2 if path.stem == "big-endian" else 0)
    elif code == 1:
        assert not errors(findings(tmp_path / f"out{path.suffix}"))


def broken(data: bytes, seed: int) -> Iterator[bytes]:
    rng = random.Random(seed)
    for _ in range(TRIES):
        at = rng.randrange(len(data)) if rng.random() < 0.5 else rng.randrange(min(len(data), 4000))
        size = rng.choice((1, 4, 32, 400))
        yield rng.choice(
            (
                data[: at + 1],
                data[:at] + bytes(size) + data[at + size :],
                data[:at] + rng.randbytes(size) + data[at + size :],
                data[:at] + data[at + size :],
                data[:at] + rng.randbytes(size) + data[at:],
                data + data[at : at + size],
                rng.randbytes(size) + data,
            )
        )


@pytest.mark.parametrize(
    "path", [path for path in WHOLE if path.stat().st_size < 30_000], ids=lambda path: path.name
)
def test_all_that_is_said_of_a_breakage_agrees(path: Path, tmp_path: Path, repair) -> None:
    codes = set()
    for number, data in enumerate(broken(path.read_bytes(), path.stat().st_size)):
        damaged = tmp_path / f"{path.stem}-{number}{path.suffix}"
        damaged.write_bytes(data)
        codes.add(check(damaged, tmp_path, repair))
    assert 1 in codes


def test_models_of_which_much_is_gone(tmp_path: Path, repair) -> None:
    whole = tiny_llama().bytes()
    table = whole.index(b"token_embd.weight") - 8
    cut = whole[:-20_000]
    for data in (whole[:table], whole[: table + 30], whole[:table] + bytes(len(whole) - table), cut):
        path = tmp_path / "in.gguf"
        path.write_bytes(data)
        assert check(path, tmp_path, repair) == 1
        left = [finding.code for finding in findings(tmp_path / "out.gguf") if finding.severity == "error"]
        assert left == (
            ["tensor-zeroed"] if data is cut else []
        )  # zeros stand for what is gone, and are told


def test_what_no_repair_can_mend_is_not_written(tmp_path: Path, repair) -> None:
    path, out = tmp_path / "in.gguf", tmp_path / "out.gguf"
    path.write_bytes(tiny_llama().without_tensor("output_norm.weight").bytes())
    out.write_bytes(b"older")
    code, said, problem = repair(path, "-o", out, "--force")
    assert (code, said) == (2, "")
    assert "a repair cannot help" in problem
    assert out.read_bytes() == b"older"


def test_an_old_account_of_losses_does_not_stay_beside_a_new_file(tmp_path: Path, repair) -> None:
    gguf, atlas = tmp_path / "in.gguf", ROOT / "sample_data" / "broken" / "bit-flip.atlas"
    file = tiny_llama()
    gguf.write_bytes(file.bytes()[:-9])
    for path in (gguf, atlas):
        out = tmp_path / f"out{path.suffix}"
        lost_name(out).write_text("old")
        code, _, problem = repair(path, "-o", out)
        assert code == 2
        assert "exists already" in problem
        assert lost_name(out).read_text() == "old"
        assert repair(path, "-o", out, "--force")[0] == 1
        assert lost_name(out).exists() == (path == gguf)
    assert json.loads(lost_name(tmp_path / "out.gguf").read_bytes())["lost"]
    gguf.write_bytes(file.with_kv().bytes().replace(b"GGUF\3", b"GGUF\7", 1))
    assert repair(gguf, "-o", tmp_path / "out.gguf", "--force")[0] == 1
    assert not lost_name(tmp_path / "out.gguf").exists()


def test_a_vocabulary_and_a_tensor_too_many(tmp_path: Path, repair) -> None:
    """A file without tensors is whole; one that promises some has lost them."""
    path = tmp_path / "in.gguf"
    path.write_bytes(vocab_only("gpt2").bytes())
    assert check(path, tmp_path, repair) == 0
    file = tiny_llama()
    path.write_bytes(file.with_kv().bytes())
    assert check(path, tmp_path, repair) == 0
    twice = file.tensors[2]
    more = (*file.tensors, Tensor(twice.name, twice.dims, F32_T, twice.payload[::-1]))
    path.write_bytes(type(file)(**{**vars(file), "tensors": more}).bytes())
    assert check(path, tmp_path, repair) == 1
    assert not errors(findings(tmp_path / "out.gguf"))


def test_a_whole_file_is_written_where_another_form_is_asked_for(tmp_path: Path, repair) -> None:
    path, out = ROOT / "sample_data" / "atlas" / "chat.atlas", tmp_path / "out.atlas"
    assert repair(path, "-o", out, "--to", "atlas-v1") == (0, "there is nothing to repair\n", "")
    assert not out.exists()
    code, said, _ = repair(path, "-o", out, "--to", "atlas-v2")
    assert (code, said.splitlines()[0]) == (0, "nothing is wrong")
    assert not errors(findings(out))
    secret = ROOT / "sample_data" / "atlas" / "secret.atlas"
    assert repair(secret, "-o", out, "--force", "--decrypt")[0] == 0
    assert out.read_bytes()[4] == 2


def test_where_a_model_may_go(tmp_path: Path, repair) -> None:
    """To a file of any name: beside a stream nothing can be told of what was lost."""
    path = tmp_path / "in.gguf"
    path.write_bytes(tiny_llama().bytes()[:-9])
    os.mkfifo(tmp_path / "pipe")
    for out in ("-", tmp_path / "pipe", "/dev/full"):
        code, _, problem = repair(path, "-o", out)
        assert (code, "goes to a file" in problem) == (2, True)
    for name in ("n" * 250 + ".gguf", "a\nb\udcff\u202e.gguf"):
        out = tmp_path / name
        assert repair(path, "-o", out)[0] == 1
        assert json.loads(lost_name(out).read_bytes())["lost"]


# --- what tensors hold ----------------------------------------------------------------------------------------


@pytest.fixture
def spoilt(tmp_path: Path) -> Path:
    """A model whose header is sound, and one of whose weights is none."""
    data = bytearray(tiny_llama().bytes())
    data[-64:-60] = b"\0\0\xc0\x7f"
    path = tmp_path / "spoilt.gguf"
    path.write_bytes(data)
    assert errors(validate_file(path, data=True).findings)
    return path


def test_what_was_not_looked_at_is_not_said_to_be_whole(spoilt: Path, tmp_path: Path, repair) -> None:
    out = tmp_path / "out.gguf"
    code, said, _ = repair(spoilt, "-o", out)
    assert (code, out.exists()) == (0, False)
    assert said.strip() == (
        "there is nothing to repair in the header; tensor data were not looked at (--data does)"
    )
    for options in (["-n"], ["-o", out]):
        code, said, problem = repair(spoilt, "--data", *options)
        assert (code, said, out.exists()) == (2, "", False)
        assert "a repair cannot help: 1 of its numbers are NaN or infinite" in problem


def test_what_tensors_hold_is_still_wrong_in_a_mended_copy(spoilt: Path, tmp_path: Path, repair) -> None:
    data = spoilt.read_bytes()
    spoilt.write_bytes(data[:8] + (1).to_bytes(8, "little") + data[16:])  # another count of tensors
    out = tmp_path / "out.gguf"
    code, said, _ = repair(spoilt, "-o", out)
    assert (code, "NaN" in said) == (1, False)
    code, said, _ = repair(spoilt, "-o", out, "--data", "--force")
    assert code == 1
    assert "still: error" in said
    assert "NaN or infinite" in said
    assert errors(validate_file(out, data=True).findings)


def test_a_whole_model_whose_data_were_looked_at(tmp_path: Path, repair) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(tiny_llama().bytes())
    code, said, _ = repair(path, "-n", "--data")
    assert code == 0
    assert said.startswith("there is nothing to repair: header and tensor data were looked at\n")
    warned = [f.message for f in validate_file(path, data=True).findings if f.severity == "warning"]
    assert all(message in said for message in warned)
    assert json.loads(repair(path, "-n", "--data", "--json")[1])["data_read"] is True
    assert json.loads(repair(path, "-n", "--json")[1])["data_read"] is False


def test_a_long_cut_tail_is_told_once(tmp_path: Path, repair) -> None:
    data = (ROOT / "sample_data" / "models" / "tiny-python.gguf").read_bytes()
    path, out = tmp_path / "cut.gguf", tmp_path / "out.gguf"
    path.write_bytes(data[: len(data) // 10])
    code, said, _ = repair(path, "-o", out)
    assert code == 1
    lines = said.splitlines()
    assert len(lines) < 50
    assert sum(line.startswith("missing ") for line in lines) < 41
    assert "more tensors, of which" in said
    still = [line for line in lines if line.startswith("still: error")]
    assert len(still) == 1
    assert "zeros that take the place of what is lost" in still[0]
    lost = json.loads(lost_name(out).read_bytes())["lost"]
    assert f"{len(lost)} parts were lost" in lines[-2]
    path.write_bytes(data[: len(data) // 2])
    code, said, _ = repair(path, "-o", out, "--force", "--drop-damaged")
    assert code == 1
    assert len(said.splitlines()) < 60
    assert "more like these: tensor-missing" in said
    assert "needs this tensor and it is missing" in said


# --- bytes that a download wrote twice --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sample() -> bytes:
    return (ROOT / "sample_data" / "models" / "tiny-python.gguf").read_bytes()


@pytest.mark.parametrize(
    ("again", "at"),
    [(3000, 6_000_000), (200_000, 6_000_000), (5_000_000, 6_000_000), (200_000, None), (5_000_000, None)],
)
def test_a_download_that_was_resumed_too_early_is_whole_again(
    sample: bytes, again: int, at: int | None, tmp_path: Path, repair, run_cli
) -> None:
    """Resumed ``again`` bytes too early at a place, or begun again (``None``) after so many bytes."""
    made = sample[:again] + sample if at is None else sample[:at] + sample[at - again :]
    path, out = tmp_path / "m.gguf", tmp_path / "out.gguf"
    path.write_bytes(made)
    said = run_cli("validate", path)
    assert said.exit_code == 1
    assert "Without them the file is whole" in said.stdout
    assert f"atlas-tool repair {path} -o OUT" in said.stdout
    assert repair(path, "-n")[0] == 1
    code, text, _ = repair(path, "-o", out)
    assert code == 1
    assert f"{again} bytes that a download wrote twice were taken out" in text
    assert out.read_bytes() == sample
    assert not lost_name(out).exists()


def test_what_is_there_twice_for_other_reasons_stays(sample: bytes, tmp_path: Path, repair) -> None:
    path, out = tmp_path / "m.gguf", tmp_path / "out.gguf"
    for made in (sample + bytes(200_000), sample + os.urandom(5000), sample + sample):
        path.write_bytes(made)
        assert repair(path, "-o", out)[0] == 0
    path.write_bytes(sample[:6_000_000] + sample[5_990_000:6_090_000])  # and cut off besides
    code, text, _ = repair(path, "-o", out)
    assert (code, "wrote twice" in text) == (1, False)
