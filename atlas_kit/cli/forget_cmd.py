"""``atlas-tool forget``."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import click

from atlas_kit.cli import _render
from atlas_kit.cli._model_options import MODEL, force_option, model_options, open_model
from atlas_kit.cli._options import (
    IN_PLACE,
    LongOption,
    command_,
    dry_run_option,
    json_option,
    keys_options,
    quiet_option,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from atlas_kit.operations.forget import Forgotten

#: Pieces that are listed; --json has all.
LISTED = 20
#: What else goes, in words.
_OTHERS = {
    "context": "the saved context",
    "texts": "the texts of its conversation",
    "window": "the window of its last tokens",
}


@command_(
    "forget",
    """\
Forget part of what a memory has read and heard.

A memory's file holds the text of what was read and said. --source forgets a document, --about what all words of TEXT
occur in (turns of talk whole, and of documents the passages), --before what was read or said before a date (UTC);
given together, all of them must hold. The file is written anew without that text. The saved context, the texts
of the conversation and the window of the last tokens hold text as well, and go whole.

What the memory's matrix learned is no text, and stays; --rebuild learns it again from what is left, which takes as long
as reading that did. --about and --rebuild need the --model that the memory belongs to. Stop what runs with the memory
first: a session that has it open would save again what it knows. The disk itself may still hold what a
replaced file held: that is beyond this command.

The exit code is 1 when there is nothing to forget.

Examples:
  atlas-tool forget talk.atlas --source diary.txt --dry-run
  atlas-tool forget talk.atlas --about "blue stone" --model sample_data/models/tiny-python.gguf --remove-backups
  atlas-tool forget talk.atlas --before 2026-01-01 --rebuild --model sample_data/models/tiny-python.gguf
""",
)
@click.argument("memory", type=IN_PLACE)
@click.option("--source", metavar="FILE", help="Forget the document of this name.")
@click.option("--about", metavar="TEXT", help="Forget where all words of TEXT occur.")
@click.option(
    "--before", metavar="DATE", help="Forget what was read or said before DATE (2026-11-30, or with T14:00)."
)
@click.option(
    "-m", "--model", cls=LongOption, type=MODEL, metavar="MODEL",
    help="The model that the memory belongs to.",
)  # fmt: skip
@click.option("--rebuild", is_flag=True, help="Learn the memory again from what is left.")
@click.option("--remove-backups", is_flag=True, help="Also remove the file's backups, which hold the text.")
@dry_run_option
@model_options
@force_option
@quiet_option
@json_option
@keys_options
def command(
    memory: str, source: str | None, about: str | None, before: str | None, model: str | None, rebuild: bool,
    as_json: bool, force: bool, keys: Any, engine_options: dict[str, Any], device: str, **options: Any,
) -> int:  # fmt: skip
    """Run the command."""
    from atlas_kit.errors import InvalidParamError
    from atlas_kit.operations.forget import Choice, forget, time_of
    from atlas_kit.operations.token_words import EngineWords, require_model, words_of

    if source is None and about is None and before is None:
        raise click.UsageError("say what to forget: --source, --about or --before")
    if model is None and (rebuild or about is not None):
        raise click.UsageError(f"{'--rebuild' if rebuild else '--about'} needs --model")
    choice = Choice(source, about, None if before is None else time_of(before))
    words: Any = None
    with contextlib.ExitStack() as stack:
        engine = None
        if model is not None:
            try:
                words = words_of(model, memory, force=force, keys=keys)
            except InvalidParamError:
                engine = stack.enter_context(open_model(model, engine_options, quiet=as_json))
                words = EngineWords(engine)
                if not force:
                    require_model(memory, engine.info.identity, keys)
            if rebuild and engine is None and not options["dry_run"]:
                engine = stack.enter_context(open_model(model, engine_options, quiet=as_json))
        progress = stack.enter_context(_render.progress())
        result = forget(
            memory, choice, words=words, engine=engine if rebuild else None, device=device, force=force,
            keys=keys, progress=progress, **options,
        )  # fmt: skip
    return _render.emit(result, _text, as_json)


def _text(result: Forgotten) -> Iterator[_render.Block]:
    if result.counts is None:
        yield "nothing to forget"
        if result.similar:
            yield f"documents of similar names: {', '.join(map(_render.name, result.similar))}"
    else:
        yield from _pieces(result)
        left = "nothing" if result.left is None else result.left.amount
        forgot = "would forget" if result.dry_run else "forgot"
        yield f"{forgot} {result.counts.amount}"
        yield f"left: {left}"
        if result.alike:
            yield f"documents of the same name stay: {', '.join(map(_render.name, result.alike))}"
        yield from _beside(result)
    yield from _backups(result)


def _pieces(result: Forgotten) -> Iterator[_render.Block]:
    rows = [
        (
            f"{piece.tokens:,}", _render.moment(piece.time_ms // 1000), piece.kind,
            _render.name(f"{piece.source}:{piece.line}" if piece.source else "", 60), piece.text or "",
        )
        for piece in result.pieces[:LISTED]
    ]  # fmt: skip
    yield _render.Table([">tokens", "time", "kind", "source", "text"], rows)
    if len(result.pieces) > LISTED:
        yield f"... and {len(result.pieces) - LISTED:,} more (--json)"


def _beside(result: Forgotten) -> Iterator[_render.Block]:
    if result.others:
        also = "would also remove" if result.dry_run else "also removed"
        yield f"{also}, since it holds text: {', '.join(_OTHERS[name] for name in result.others)}"
    if result.rebuilt is not None:
        yield f"the memory was learned again from {_render.plural(result.rebuilt, 'token')}"
    elif result.learned:
        yield "what the memory's matrix learned stays; --rebuild learns it again from what is left"
    if result.texts:
        shown = ", ".join(_render.name(key, 40) for key in result.texts[:5])
        yield f"other texts in the file stay, look at them with `atlas-tool get`: {shown}"


def _backups(result: Forgotten) -> Iterator[_render.Block]:
    if not result.backups:
        return
    names = _render.listed(result.backups)
    if result.backups_removed:
        yield f"removed {_render.plural(len(result.backups), 'backup')}: {names}"
    else:
        yield f"backups may still hold it, remove them with --remove-backups: {names}"
