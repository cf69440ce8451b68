"""``atlas-tool get``."""

from __future__ import annotations

import contextlib
import os
import sys
from typing import Any

import click

from atlas_kit.cli import _completion, _render
from atlas_kit.cli._options import (
    FILE,
    command_,
    force_words_option,
    given,
    is_standard_output,
    json_option,
    keys_options,
    one_shard_option,
    output_option,
    place_of,
    words_option,
)


@command_(
    "get",
    """\
Print values, or save them to files.

The exact bytes of an entry's payload go to standard output, checked against their checksum. A metadata value
of a GGUF model is printed as text, an array one element to a line, with line breaks and backslashes as \\n and
\\\\; a tensor gives its bytes. Binary data is not written to a terminal. --npy writes a tensor's numbers, as float32
where it is quantised, or with --raw as they are stored. --json describes the value as well, and shows what is
not text as base64.

With several KEYs, each value is printed below a line `==> KEY <==`; -o OUTPUT is then a folder with a file for each,
and --json prints a list. If any of them does not exist, nothing is printed.

With --model, the entry `episodes` of a memory is the text of what was read and said; without it, these are token
numbers, in entries such as episodes.0.tokens.

Examples:
  atlas-tool get llama-7b_memory.atlas chat_history
  atlas-tool get llama-7b_memory.atlas chat_history user_prefs
  atlas-tool get notes.atlas embedding --npy -o embedding.npy
  atlas-tool get model.gguf tokenizer.ggml.tokens
  atlas-tool get talk.atlas episodes --model sample_data/models/tiny-python.gguf
""",
)
@click.argument("file", type=FILE)
@click.argument("names", nargs=-1, required=True, metavar="KEY...", shell_complete=_completion.keys)
@output_option(
    "Save the value to OUTPUT instead of printing it; several values, to files in the folder OUTPUT."
)
@force_words_option
@click.option("--npy", is_flag=True, help="Write a tensor as a .npy file.")
@click.option(
    "--raw", is_flag=True, help="With --npy: write quantised blocks and bfloat16 as they are stored."
)
@words_option
@one_shard_option
@json_option
@keys_options
def command(
    file: str,
    names: tuple[str, ...],
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
    from atlas_kit.operations.get import get_values, write_value
    from atlas_kit.operations.token_words import words_of
    from atlas_kit.storage.given import use_source

    if as_json and (npy or output):
        raise click.UsageError("--json cannot be combined with --npy or --output")
    if raw and not npy:
        raise click.UsageError("--raw goes with --npy; without it the bytes are as they are stored")
    if npy and model is not None:
        raise click.UsageError("--npy cannot be combined with --model")
    with contextlib.ExitStack() as opened:
        source = opened.enter_context(use_source(given(file)))
        words = None
        if model is not None:
            words = words_of(model, source, force=force, keys=keys)
        values = opened.enter_context(
            get_values(source, dict.fromkeys(names), keys, words=words, one_shard=one_shard)
        )
        several = len(values) > 1
        if as_json:
            return _render.emit_json(values) if several else _render.emit(values[0], lambda _: (), True)
        places = _places(values, output, npy) if several else [output]
        for number, (value, place) in enumerate(zip(values, places, strict=True)):
            target = place_of("-" if place is None else place)
            if several and place is None:
                _headed(value.key, number)
            if npy and value.numbers is not None and not raw:
                of = f"{value.key}: " if several else ""
                _render.note(f"{of}{value.stored} became float32; --raw gives what is stored")
            if place is None and not npy and sys.stdout.isatty():
                _to_terminal(value)
            else:
                sys.stdout.flush()
                write_value(value, target, npy=npy, raw=raw, force=force, inputs=[file])
    return max(value.exit_code for value in values)


def _places(values: list[Any], folder: str | None, npy: bool) -> list[str | None]:
    """Return the file of each value in a folder, which is made; None for standard output."""
    if folder is None or is_standard_output(folder):
        return [None] * len(values)
    from atlas_kit.operations.outputs import file_names, make_folder

    make_folder(folder)
    names = file_names([value.key for value in values], ".npy" if npy else "")
    return [os.path.join(folder, name) for name in names]


def _headed(key: str, number: int) -> None:
    """Print the line above one of several values."""
    from atlas_kit.errors import printable

    sys.stdout.flush()
    line = f"{chr(10) if number else ''}==> {printable(key)} <==\n"
    sys.stdout.buffer.write(line.encode("utf-8", "replace"))


def _to_terminal(value: Any) -> None:
    if not value.is_text:
        raise click.UsageError("the value is binary; save it with -o FILE, or look at it with --json")
    text = b"".join(value.chunks()).decode("utf-8", "surrogateescape")
    _render.show([_render.Lines(line.expandtabs() for line in text.split("\n"))])
