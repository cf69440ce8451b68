"""``atlas-tool compress``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from atlas_kit.cli import _render
from atlas_kit.cli._fleet import fleet_options, more_files
from atlas_kit.cli._options import (
    FILE,
    codec_options,
    command_,
    decrypt_option,
    force_option,
    given,
    json_option,
    keys_options,
    output_option,
    place_of,
    quiet_option,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from atlas_kit.operations.compressed import Compressed, EntryRatio
    from atlas_kit.operations.model_check import ModelCheck


_TYPES = ["f16", "bf16", "q8_0", "q6_k", "q5_k_m", "q5_k_s", "q5_1", "q5_0", "q4_k_m", "q4_k_s", "q4_1", "q4_0",
          "iq4_nl", "iq4_xs", "mxfp4", "q3_k_l", "q3_k_m", "q3_k_s", "q2_k", "tq2_0", "tq1_0"]  # fmt: skip


@command_(
    "compress",
    """\
Make a file smaller, without loss unless asked to.

Each entry of a memory file is coded on its own, and stays as it is where coding does not make it smaller. The bytes
of numbers are grouped first (shuffled), which suits codecs; the codec is zstd unless --codec says otherwise.
--quantize stores float tensors with fewer bits and reports the error for each; it also works on the weight matrices
of a GGUF model, which has no codecs.

Other types than f16, bf16 and q8_0 are made by llama.cpp's own quantiser, which keeps some tensors wider: q2_k,
q3_k_s, q3_k_m, q3_k_l, q4_0, q4_1, q4_k_s, q4_k_m, q5_0, q5_1, q5_k_s, q5_k_m, q6_k, iq4_nl, iq4_xs, mxfp4,
tq1_0 and tq2_0. --check has both models read a text and reports what quantising costs.

The result is encrypted if FILE is, or if a passphrase or key is given.

Of several files, or a pattern, each is written below the folder OUTPUT under its own name; --workers, --scheduler and
--table spread them, and what is wrong with one stops no other.

Examples:
  atlas-tool compress llama-7b_memory.atlas -o small.atlas
  atlas-tool compress llama-7b_memory.atlas -o fast.atlas --codec lz4
  atlas-tool compress model.gguf -o model-q8_0.gguf --quantize q8_0
  atlas-tool compress sample_data/models/tiny-python.gguf -o q4.gguf --quantize q4_k_m --requantize
  atlas-tool compress model.gguf -o q8.gguf --quantize q8_0 --check sample_data/text/chat.txt
""",
)
@click.argument("file", type=FILE)
@more_files
@output_option(
    "Where the smaller file goes; - is standard output. For several files a folder.", required=True
)
@codec_options
@click.option(
    "--quantize",
    type=click.Choice(_TYPES, case_sensitive=False),
    metavar="TYPE",
    help="Store float tensors with fewer bits: f16, bf16 or q8_0, and for a model the types above.",
)
@click.option("--requantize", is_flag=True, help="Quantise even a model that is quantised already.")
@click.option(
    "--check",
    type=FILE,
    metavar="TEXT",
    help="Have the model read a text before and after: perplexity and KL divergence.",
)
@click.option(
    "--check-tokens",
    type=click.IntRange(2),
    default=2048,
    show_default=True,
    metavar="N",
    help="How many tokens of TEXT to read.",
)
@force_option
@decrypt_option
@quiet_option
@json_option
@keys_options
@fleet_options("compress")
def command(file: str, output: str, as_json: bool, keys: Any, **options: Any) -> int:
    """Run the command."""
    from atlas_kit.operations.compress import compress_file
    from atlas_kit.operations.compressed import CompressOptions

    how = CompressOptions(
        codec=options["codec"],
        level=options["level"],
        shuffle=not options["no_shuffle"],
        quantize=options["quantize"],
        force=options["force"],
        requantize=options["requantize"],
        check=given(options["check"]) if options["check"] is not None else None,
        check_tokens=options["check_tokens"],
        decrypt=options["decrypt"],
    )
    target = place_of(output)
    with _render.progress() as progress:
        result = compress_file(given(file), target, how, keys, progress)
    return _render.emit_beside(result, _text, as_json, target)


def _text(result: Compressed) -> Iterator[_render.Block]:
    quantised = any(row.error for row in result.entries)
    rows = [_row(row, quantised) for row in result.entries]
    errors = [">max error", ">relative L2"] if quantised else []
    if rows:
        yield _render.Table([">before", ">after", ">ratio", "stored as", *errors, "entry"], rows)
    yield ""
    ratio = "" if result.ratio is None else f", {result.ratio:.1%}"
    yield f"{result.source}: {_render.exact_size(result.size_before)}"
    yield f"{result.output}: {_render.exact_size(result.size_after)}{ratio}"
    if result.check is not None:
        yield _check(result.check)
    for note in result.notes:
        yield f"note: {note}"
    for row in result.entries:
        if row.note:
            yield f"{_render.name(row.key)}: {row.note}"


def _row(row: EntryRatio, quantised: bool) -> list[object]:
    stored = row.codec
    if row.dtype_after:
        stored = row.dtype_after if row.codec == "none" else f"{row.dtype_after}, {row.codec}"
    ratio = "" if row.ratio is None else f"{row.ratio:.1%}"
    error = ["", ""]
    if row.error is not None:
        error = [format(row.error.max_abs, ".3g"), format(row.error.relative_l2, ".3g")]
    return [row.size, row.stored_after, ratio, stored, *(error if quantised else []), _render.name(row.key)]


def _check(check: ModelCheck) -> _render.Facts:
    before, after = check.perplexity_before, check.perplexity_after
    return _render.Facts(
        [
            ("text", f"{check.text}, {check.tokens:,} tokens predicted"),
            ("perplexity", f"{before:.4f} before, {after:.4f} after ({after / before - 1:+.2%})"),
            (
                "KL divergence",
                f"{check.kl_mean:.5f} nats on average, below {check.kl_99:.5f} for 99 % of the tokens, "
                f"{check.kl_max:.5f} at most",
            ),
            ("same token first", f"{check.same_top:.1%}"),
        ]
    )
