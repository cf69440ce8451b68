"""``validate`` on reported files: verdict, exit code and sentence."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import report_files as built
from gguf_builder import ARR, BOOL, I32, KV, STR, U16, U32, Array, split_llama


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
    "template": (built.bad_template, "", 0, "the chat template is not valid Jinja: Unexpected end of template"),
    "template, strict": (built.bad_template, "--strict", 1, "template-invalid"),
    "licence": (built.license_array, "", 0, "the value is a list (2 of text), where text is expected"),
    "layers": (built.layers_missing, "", 1, "a llama model of 2 layers needs this tensor and it is missing"),
    "twice": (built.tensor_twice, "", 1, "two tensors have this name: llama.cpp refuses that"),
    "prefixed": (built.prefixed, "", 1, "llama.cpp has no use for this tensor"),
    "total": (built.wrong_total, "", 1, "the header gives the entries 7 bytes, and they have"),
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


ODD: dict[str, tuple[KV, str]] = {
    "name": (KV("general.name", ARR, Array(STR, ["a"])), "key-type-wrong"),  # llama.cpp refuses that one
    "author": (KV("general.author", U32, 7), "the value is a number, where text is expected"),
    "url": (KV("general.url", BOOL, 1), "the value is true or false, where text is expected"),
    "tags": (KV("general.tags", STR, "a, b"), "the value is text, where a list of text is expected"),
    "languages": (KV("general.languages", ARR, Array(U32, [1])), "where a list of text is expected"),
    "temperature": (KV("general.sampling.temp", STR, "0.7"), "the value is text, where a number is expected"),
    "named template": (KV("tokenizer.chat_template.tools", STR, "{{ x"), "template-invalid"),
    "filter": (KV("tokenizer.chat_template", STR, "{{ x | nofilter }}"), "No filter named 'nofilter'"),
}


@pytest.mark.parametrize("name", ODD)
def test_odd_metadata(name: str, tmp_path: Path, run_cli) -> None:
    pair, said = ODD[name]
    path = tmp_path / "model.gguf"
    path.write_bytes(built.model().with_kv(pair).bytes())
    assert said in run_cli("validate", path).stdout
    assert run_cli("validate", "--strict", path).exit_code == 1


@pytest.mark.parametrize(
    "pair",
    [
        KV("general.tags", ARR, Array(STR, [])),
        KV("general.license", STR, "mit"),
        KV("general.sampling.top_k", U32, 40),
        KV("llama.attention.sliding_window_pattern", U32, 4),
        KV("llama.feed_forward_length", ARR, Array(I32, [64])),
        KV(
            "tokenizer.chat_template",
            STR,
            "{% for m in messages %}{% if m.x %}{% break %}{% endif %}{% endfor %}",
        ),
        KV(
            "tokenizer.chat_template",
            STR,
            "{% generation %}{{ messages | tojson(indent=2) }}{% endgeneration %}",
        ),
        KV("x.unknown", ARR, Array(STR, ["a"])),
    ],
)
def test_what_is_usual_is_not_odd(pair: KV, tmp_path: Path, run_cli) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(built.model().with_kv(pair).bytes())
    assert run_cli("validate", "--strict", path).exit_code == 0


def test_shards_that_disagree(tmp_path: Path, run_cli) -> None:
    shards = split_llama(3)
    paths = [tmp_path / f"m-{number:05d}-of-00003.gguf" for number in (1, 2, 3)]
    for path, shard in zip(paths, shards, strict=True):
        path.write_bytes(shard.bytes())
    assert run_cli("validate", "--strict", paths[0]).exit_code == 0
    paths[1].write_bytes(shards[1].with_kv(KV("split.count", U16, 4)).bytes())
    assert "m-00002-of-00003.gguf says that there are 4 shards" in run_cli("validate", paths[0]).stdout
    assert (
        "the name says that there are 3 shards, and split.count says 4"
        in run_cli("validate", paths[1]).stdout
    )
    paths[1].write_bytes(shards[2].bytes())
    assert "the name says that this is shard 2, and split.no says 3" in run_cli("validate", paths[1]).stdout


def test_findings_of_one_kind_are_a_few_lines_with_what_helps_once(tmp_path: Path, run_cli) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(built.prefixed(layers=6))
    (report,) = json.loads(run_cli("validate", path, "--json").stdout)
    missing = [one for one in report["findings"] if one["code"] == "tensor-missing"]
    assert len(missing) == 6 * 9 + 2
    lines = run_cli("validate", path).stdout.splitlines()
    assert len([line for line in lines if line.startswith("  error [tensor-missing]")]) == 20
    assert f"  ... and {len(missing) - 20} more of [tensor-missing] (--json lists all)" in lines
    assert (
        len([line for line in lines if "atlas-tool rename" in line]) == 2
    )  # for what is missing, and what is no use
