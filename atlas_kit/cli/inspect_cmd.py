"""``atlas-tool inspect``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from atlas_kit.cli import _completion, _render, _shell
from atlas_kit.cli._fleet import fleet_options, more_files
from atlas_kit.cli._options import FILE, command_, given, json_option, keys_options, one_shard_option

if TYPE_CHECKING:
    from collections.abc import Iterator

    from atlas_kit.formats.gguf.chat_template import ShownTemplate
    from atlas_kit.operations.inspect import Inspection
    from atlas_kit.operations.inspect_parts import OneEntry
    from atlas_kit.operations.tensor_numbers import TensorStats


#: Tensors without statistics that are named.
_LOST_SHOWN = 3


@command_(
    "inspect",
    """\
Show what a file is and what it holds.

Without options: an overview of a memory file, a GGUF model, a safetensors, npz or JSON file. The options show
parts of it instead, several of them one after the other. --hex lists every field of the file with its bytes,
value and meaning, and --map draws the file to scale; both work on damaged files as well. Of a damaged file,
what is intact is shown, a line says what is wrong, and the exit code is 1.

Of a LoRA adapter, a projector (mmproj) or an importance matrix (GGUF or .dat) the overview says which model it
is for, and --fits MODEL whether it fits that one: the exit code is 1 if not.

Of several files, or a pattern such as s3://bucket/**/*.gguf, a table says what each is. --workers, --scheduler and
--table spread them, and what is wrong with one stops no other.

Examples:
  atlas-tool inspect llama-7b_memory.atlas
  atlas-tool inspect model.gguf --tensors --stats
  atlas-tool inspect model.gguf --template
  atlas-tool inspect llama-7b_memory.atlas --hex --map
""",
)
@click.argument("file", type=FILE)
@more_files
@click.option("--entries", is_flag=True, help="List every entry, or all metadata and tensors.")
@click.option(
    "--entry", metavar="KEY", help="Show one entry, metadata key or tensor.", shell_complete=_completion.keys
)
@click.option("--keys", "show_keys", is_flag=True, help="List the keys; of a model with their values.")
@click.option("--tensors", is_flag=True, help="List the tensors.")
@click.option("--stats", is_flag=True, help="Min, max, mean, deviation, zeros and NaN of every tensor.")
@click.option("--template", is_flag=True, help="The chat template, and what it makes of an example.")
@click.option(
    "--fits", type=FILE, metavar="MODEL", help="Tell whether an adapter, projector or imatrix fits."
)
@click.option("--hex", "show_hex", is_flag=True, help="Every field: offset, bytes, name, value, meaning.")
@click.option("--map", "show_map", is_flag=True, help="Draw the byte ranges of the file to scale.")
@click.option(
    "--limit", type=click.IntRange(1), default=200, show_default=True, help="How many fields --hex shows."
)
@one_shard_option
@json_option
@keys_options
@fleet_options("inspect")
def command(file: str, as_json: bool, keys: Any, **options: Any) -> int:
    """Run the command."""
    from atlas_kit.operations.inspect import Wanted, inspect_file

    wanted = Wanted(
        entries=options["entries"],
        keys=options["show_keys"],
        tensors=options["tensors"],
        stats=options["stats"],
        hex=options["show_hex"],
        map=options["show_map"],
        entry=options["entry"],
        limit=options["limit"],
        template=options["template"],
        fits=options["fits"],
        one_shard=options["one_shard"],
    )
    if not options["stats"]:  # everything else is quick, and a bar would only flicker
        return _render.emit(inspect_file(given(file), wanted, keys), _text, as_json)
    with _render.progress() as progress:
        result = inspect_file(given(file), wanted, keys, progress)
    return _render.emit(result, _text, as_json)


def _text(result: Inspection) -> Iterator[_render.Block]:
    if result.overview is not None:
        yield from _overview(result, result.overview)
    elif result.entries is not None:
        yield from _entries(result)
    if result.keys is not None:
        yield _render.Lines(result.keys)
    if result.metadata is not None or result.tensors is not None:
        from atlas_kit.cli.ls_cmd import model_tables

        yield from model_tables(result.metadata or [], result.tensors or [])
    if result.stats is not None:
        yield _stats(result.stats)
    if result.misfits is not None:
        shown = result.misfits[:_LOST_SHOWN]
        yield (
            "it fits the model"
            if not result.misfits
            else _render.Lines([_render.Styled(f"it does not fit the model: {why}", "bad") for why in shown])
        )
        if len(result.misfits) > len(shown):
            yield f"and {len(result.misfits) - len(shown)} more tensors"
    if result.template is not None:
        yield from _template(result.template)
    if result.entry is not None:
        yield from _entry(result.entry)
    if result.fields is not None:
        from atlas_kit.cli._bytes import hex_blocks

        yield from hex_blocks(result.fields, result.fields_error)
    if result.regions is not None:
        from atlas_kit.cli._bytes import map_blocks

        yield from map_blocks(result.regions, result.size)
    for problem in result.problems:
        file = "-" if result.path == "-" else _shell.path(result.path)
        advice = f". See all of it with: atlas-tool validate {file}"
        yield _render.Lines([_render.Styled(f"damaged: {problem.rstrip('.')}{advice}", "bad")])


def _entries(result: Inspection) -> Iterator[_render.Block]:
    from atlas_kit.cli.ls_cmd import entry_table

    yield entry_table(result.entries) if result.entries else "no entries"


def _overview(result: Inspection, facts: dict[str, Any]) -> Iterator[_render.Block]:
    if facts.get("companion"):
        yield from _companion(result, facts["companion"])
        return
    if result.kind == "gguf":
        yield _render.Facts([row for row in _model_facts(result, facts) if row[1] not in (None, "")])
        return
    if facts.get("sealed"):
        yield _render.Facts(list(_sealed_facts(result, facts)))
        return
    yield _render.Facts([row for row in _memory_facts(result, facts) if row[1] not in (None, "")])
    for finding in facts.get("warnings", ()):
        yield _render.Lines([_render.Styled(f"warning: {finding['message']}", "warn")])
    if result.entries:
        from atlas_kit.cli.ls_cmd import entry_table

        yield entry_table(result.entries)
        if facts["count"] > len(result.entries):
            yield f"... and {facts['count'] - len(result.entries):,} more (--entries)"


def _companion(result: Inspection, facts: dict[str, Any]) -> Iterator[_render.Block]:
    """Yield what a file is that belongs beside a model."""
    yield _render.Facts(
        [
            ("file", result.path),
            ("size", _render.exact_size(result.size)),
            *((a, b) for a, b in facts["summary"]),
        ]
    )
    entries = facts.get("entries")
    if entries:
        rows = [
            [f"{row['columns']:,}", f"{row['matrices']:,}", _span(*row["counts"]), _render.name(row["name"])]
            for row in entries
        ]
        yield _render.Table([">inputs", ">matrices", ">counts", "tensor"], rows)


def _span(least: int, most: int) -> str:
    return f"{most:,}" if least == most else f"{least:,} to {most:,}"


def _sealed_facts(result: Inspection, facts: dict[str, Any]) -> Iterator[tuple[str, object]]:
    yield "file", result.path
    yield "format", ".atlas memory file, version 3, encrypted"
    yield "opened by", f"{facts['opened_by']} (--passphrase-file, --key-file or ATLAS_PASSPHRASE)"
    yield "size", _render.exact_size(result.size)
    yield "entries", f"{facts['count']:,}"
    yield "created", _render.moment(facts["created"])
    yield "modified", _render.moment(facts["modified"])
    yield "model hash", facts["model_hash"] or "not set"


def _memory_facts(result: Inspection, facts: dict[str, Any]) -> Iterator[tuple[str, object]]:
    count, counted = facts["count"], facts["counted"]
    of = "" if counted == count else f" (of the first {counted:,})"
    yield "file", result.path
    if result.kind == "atlas":
        dialect = "" if facts["dialect"] == f"v{facts['version']}" else f", dialect {facts['dialect']}"
        sealed = ", encrypted" if facts["version"] == 3 else ""
        yield "format", f".atlas memory file, version {facts['version']}{dialect}{sealed}"
    else:
        version = facts["recorded_version"]
        yield "format", result.kind + (f", of an .atlas file of version {version}" if version else "")
    yield "size", _render.exact_size(result.size)
    yield "entries", f"{count:,}" if facts.get("readable", True) else f"{count:,} that are intact"
    if count:
        yield "payload", _render.exact_size(facts["payload_size"]) + of
        if facts["stored_size"] != facts["payload_size"]:
            share = facts["stored_size"] / facts["payload_size"] if facts["payload_size"] else 0
            yield "stored", f"{_render.exact_size(facts['stored_size'])}, {share:.1%} of the payload{of}"
        yield "types", ", ".join(f"{n:,} {name}" for name, n in facts["types"].items()) + of
        if set(facts["codecs"]) != {"none"}:
            yield "codecs", ", ".join(f"{n:,} {name}" for name, n in facts["codecs"].items()) + of
        if facts["tensor_count"]:
            yield "tensors", f"{facts['tensor_count']:,}{of}"
    if facts.get("memory"):
        yield "memory", facts["memory"]["summary"]
    if facts.get("episodes"):
        yield "readable", facts["episodes"]["summary"]
    yield "created", _render.moment(facts["created"])
    yield "modified", _render.moment(facts["modified"])
    yield "model hash", facts["model_hash"] or "not set"
    if facts.get("garbage"):
        yield "unused", f"{_render.exact_size(facts['garbage'])} of earlier updates"


def _model_facts(result: Inspection, facts: dict[str, Any]) -> Iterator[tuple[str, object]]:
    yield "file", result.path
    version = f", version {facts['version']}, {facts['byte_order']}" if facts["version"] else ""
    yield "format", f"GGUF model{version}"
    yield "size", _render.exact_size(result.size)
    if facts["readable"] or facts["metadata_count"]:
        yield "architecture", facts["architecture"] or "not set"
    for label in ("name", "type", "license", "file_type"):
        yield label.replace("_", " "), facts[label]
    if not facts["readable"]:
        number = facts["tensor_count"]
        yield (
            "tensors",
            f"{number:,} of a list that cannot be read to its end" if number else "cannot be read",
        )
    elif facts["vocabulary_only"]:
        yield "tensors", "none: the file holds a vocabulary only"
    else:
        yield "parameters", f"{facts['parameters']:,}"
        yield "tensors", f"{facts['tensor_count']:,}, {_render.exact_size(facts['tensor_bytes'])}"
        types = [f"{row['count']:,} {name}" for name, row in facts["tensor_types"].items()]
        yield "tensor types", ", ".join(types)
    for label in ("context_length", "embedding_length", "block_count", "head_count", "expert_count"):
        value = facts[label]
        yield label.replace("_", " "), f"{value:,}" if isinstance(value, int) else value
    if facts["tokenizer"]:
        pre = f", {facts['pre_tokenizer']}" if facts["pre_tokenizer"] else ""
        yield "tokenizer", f"{facts['tokenizer']}{pre}, {facts['vocabulary_size'] or 0:,} tokens"
    if not facts["readable"]:
        yield "metadata", f"{_render.plural(facts['metadata_count'], 'key')} that can be read"
        return
    yield "chat template", "yes" if facts["chat_template"] else "no"
    yield "metadata", f"{_render.plural(facts['metadata_count'], 'key')}, alignment {facts['alignment']}"
    if facts["shard"]:
        yield "shard", f"{facts['shard']['number']} of {facts['shard']['count']}, looked at alone"
    if facts["shards"]:
        yield "shards", f"{len(facts['shards'])}: {', '.join(facts['shards'])}"
    for key, value in facts["atlas"].items():
        yield key, str(value).lower() if isinstance(value, bool) else value


def _stats(rows: list[tuple[str, TensorStats | str]]) -> _render.Table:
    def number(value: float | None) -> str:
        return "" if value is None else format(value, ".6g")

    def cells(name: str, stats: TensorStats | str) -> list[object]:
        if isinstance(stats, str):
            return ["", "", "", "", "", "", "", _render.Styled(f"{_render.name(name)}: {stats}", "bad")]
        bad = _render.Styled(str(stats.nan + stats.inf), "bad") if stats.nan + stats.inf else 0
        return [f"{stats.count:,}", number(stats.min), number(stats.max), number(stats.mean),
                number(stats.std), stats.zeros, bad, _render.name(name)]  # fmt: skip

    columns = [">count", ">min", ">max", ">mean", ">std", ">zeros", ">NaN/Inf", "tensor"]
    lost = [row for row in rows if isinstance(row[1], str)]
    shown = [row for row in rows if not isinstance(row[1], str)] + lost[:_LOST_SHOWN]
    cut = (
        []
        if len(lost) <= _LOST_SHOWN
        else [
            [
                "",
                "",
                "",
                "",
                "",
                "",
                "",
                _render.Styled(f"and {len(lost) - _LOST_SHOWN} more tensors cannot be read", "bad"),
            ]
        ]
    )
    return _render.Table(columns, [cells(*row) for row in shown] + cut)


def _template(shown: ShownTemplate) -> Iterator[_render.Block]:
    yield "chat template:"
    yield _render.Lines([line.expandtabs() for line in shown.source.split("\n")])
    if shown.others:
        yield ""
        yield f"templates by name: {', '.join(map(_render.name, shown.others))}"
    if shown.problem is not None:
        yield ""
        yield _render.Lines([_render.Styled(f"it fails: {shown.problem}", "bad")])
    if shown.text is not None:
        yield ""
        yield "an example conversation becomes:"
        yield _render.Lines([line.expandtabs() for line in shown.text.split("\n")])


def _entry(one: OneEntry) -> Iterator[_render.Block]:
    skipped = ("value", "first", "value_hex")
    rows = [
        (name.replace("_", " "), _shown(name, value))
        for name, value in one.info.items()
        if name not in skipped
    ]
    yield _render.Facts([row for row in rows if row[1] is not None])
    if one.stats is not None:
        yield _stats([("", one.stats)])
    if one.problem:
        yield _render.Lines([_render.Styled(f"damaged: {one.problem}", "bad")])
    if one.preview:
        yield ""
        yield _preview(one)
    if one.truncated:
        yield "... (the rest is not shown; `atlas-tool get` gives all of it)"


def _preview(one: OneEntry) -> _render.Block:
    if one.is_text:
        text = one.preview.decode("utf-8", "surrogateescape")
        return _render.Lines([line.expandtabs() for line in text.split("\n")])
    from atlas_kit.cli._bytes import dump_lines

    return _render.Lines(dump_lines(one.preview))


def _shown(name: str, value: Any) -> object:
    if name == "timestamp":
        return _render.moment(value)
    if name == "shape" and value is not None:
        return _render.shape(value)
    return value
