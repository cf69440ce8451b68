"""``atlas-tool get``."""

from __future__ import annotations

import sys
from typing import Any

import click

from atlas_kit.cli import _render
from atlas_kit.cli._options import (
    FILE,
    command_,
    force_option,
    given,
    is_standard_output,
    json_option,
    keys_options,
    one_shard_option,
    output_option,
)


@command_(
    "get",
    """\
Print one value, or save it to a file.

The exact bytes of an entry's payload go to standard output, checked against their checksum. A metadata value
of a GGUF model is printed as text, an array one element a line, with line breaks and backslashes in it as \\n and
\\\\; a tensor gives its bytes. Binary data is not written to a terminal. --npy gives a tensor's numbers, which are
float32 where it is quantised; with --raw they are what is stored. --json describes the value as well, and shows
what is not text as base64.

With --model, the entry `episodes` of a memory is what was read and said, as text; without, it is tokens by number, in
entries such as episodes.0.tokens.

Examples:
  atlas-tool get llama-7b_memory.atlas chat_history
  atlas-tool get notes.atlas embedding --npy -o embedding.npy
  atlas-tool get model.gguf tokenizer.ggml.tokens
  atlas-tool get talk.atlas episodes --model sample_data/models/tiny-python.gguf
""",
)
@click.argument("file", type=FILE)
@click.argument("key")
@output_option("Save the value to OUTPUT instead of printing it.")
@force_option
@click.option("--npy", is_flag=True, help="Give a tensor as a .npy file.")
@click.option("--raw", is_flag=True, help="With --npy: quantised blocks and bfloat16 as they are stored.")
@click.option(
    "-m", "--model", type=click.Path(), metavar="MODEL", help="The model whose tokens a memory holds."
)
@one_shard_option
@json_option
@keys_options
def command(
    file: str,
    key: str,
    output: str | None,
    force: bool,
    npy: bool,
    raw: bool,
    model: str | None,
    one_shard: bool,
    as_json: bool,
    keys: Any,
) -> int:
    """Run the command."""
    from atlas_kit.operations.get import get_value, npy_bytes

    if as_json and (npy or output):
        raise click.UsageError("--json cannot be combined with --npy or --output")
    if raw and not npy:
        raise click.UsageError("--raw goes with --npy; without it the bytes are as they are stored")
    if npy and model is not None:
        raise click.UsageError("--npy cannot be combined with --model")
    source, words = given(file), None
    if model is not None:
        from atlas_kit.operations.forget import words_of

        words = words_of(model, source, keys=keys)
    with get_value(source, key, keys, words=words, one_shard=one_shard) as value:
        if as_json:
            return _render.emit(value, lambda _: (), True)
        if npy:
            if value.numbers is not None and not raw:
                _render.note(f"{value.stored} became float32; --raw gives what is stored")
            _write(iter([npy_bytes(value, raw=raw)]), output, force, [file])
        elif output or not sys.stdout.isatty():
            _write(value.chunks(), output, force, [file])
        else:
            _to_terminal(value)
    return value.exit_code


def _write(chunks: Any, output: str | None, force: bool, inputs: list[Any]) -> None:
    from atlas_kit.operations.outputs import output_file
    from atlas_kit.storage.given import check_output

    if output is None or is_standard_output(output):
        sys.stdout.flush()
        for chunk in chunks:
            sys.stdout.buffer.write(chunk)
        sys.stdout.buffer.flush()
        return
    check_output(output, inputs, force)
    with output_file(output) as file:
        for chunk in chunks:
            file.write(chunk)


def _to_terminal(value: Any) -> None:
    if not value.is_text:
        raise click.UsageError("the value is binary; save it with -o FILE, or look at it with --json")
    text = b"".join(value.chunks()).decode("utf-8", "surrogateescape")
    _render.show([_render.Lines(line.expandtabs() for line in text.split("\n"))])
