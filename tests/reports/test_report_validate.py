"""``validate`` on reported files: verdict, exit code and sentence."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import report_files as built


def whole() -> bytes:
    return built.model().bytes()


#: name -> (file, options, exit code, what is said)
CASES: dict[str, tuple[Callable[[], bytes], str, int, str]] = {
    "whole": (whole, "", 0, ": ok (tensor data not looked at: --data)"),
    "whole, read": (whole, "--data --strict", 0, ": ok\n"),
    "preallocated": (built.preallocated, "", 1, "2097152 bytes of weights up to the end of the data are zeros"),
    "resumed": (built.resumed_too_early, "", 1, "resumed 1048576 bytes too early"),
    "resumed and cut": (
        lambda: built.resumed_too_early(cut=True), "--data", 1, "resumed 1048576 bytes too early",
    ),
    "nan weight": (
        built.nan_weight, "--data", 1, '"output_norm.weight": 1 of its numbers are NaN or infinite',
    ),
    "nan epsilon": (built.nan_epsilon, "", 1, "the epsilon of its norms is nan: llama.cpp aborts at the first token"),
    "negative epsilon": (built.negative_epsilon, "", 1, "the epsilon of its norms is -1e-05"),
    "half norm": (built.half_norm, "", 1, "tensor-type-unusable"),
    "double attention": (built.double_attention, "", 1, "a tensor of type F64 cannot be multiplied"),
    "crc32": (built.crc32_payload, "", 0, "1 entry with CRC-32 for a checksum, under a header with FNV-1a"),
    "crc32, strict": (built.crc32_payload, "--strict", 1, "dialect-v1-crc32"),
    "nan scale": (built.nan_scale, "--data", 1, "1 of its scales are NaN or infinite"),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_verdict(name: str, tmp_path: Path, run_cli) -> None:
    make, options, code, said = CASES[name]
    path = tmp_path / "model.gguf"
    path.write_bytes(make())
    result = run_cli("validate", path, *options.split())
    assert result.exit_code == code, result.stdout
    assert said in result.stdout


def test_json_says_whether_data_were_read(tmp_path: Path, run_cli) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(whole())
    for options, read in (((), False), (("--data",), True)):
        (report,) = json.loads(run_cli("validate", path, "--json", *options).stdout)
        assert report["data_read"] is read
