"""``atlas-tool learn``."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from typing import TYPE_CHECKING, Any

import click

from atlas_kit.cli import _render
from atlas_kit.cli._model_options import (
    MODEL,
    Abandoned,
    Stopping,
    force_option,
    memory_file_help,
    model_options,
    open_model,
    save_session,
)
from atlas_kit.cli._options import (
    FILE,
    atlas_settings_options,
    backup_option,
    command_,
    json_option,
    keys_options,
    one_stdin,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from atlas_kit.operations.learn import Learned, Read, Told

#: Seconds between two lines of progress where no bar can be drawn.
LINE_EVERY = 10.0


@command_(
    "learn",
    """\
Read documents into a memory.

The model reads text files (UTF-8; - is standard input) one after the other, and a memory beside it learns: what it
has read helps it later, in `run` for example, when the text has long left the model's context. The model file stays
as it is. A memory that F holds already goes on, with the sizes that it has. It is saved every --save-every tokens
and at the end, whole or not at all, so that a killed process loses little; Ctrl-C saves and ends with exit code 130.

Files are stored first, as they are, which takes seconds: from then on `ask` answers questions about them, while the
memory still learns. --store-only leaves it at that. F then holds their text, and is readable unless it is encrypted.

Losses are in nats per token: of the model alone, and with the memory, before it had learned the token in question.

Examples:
  atlas-tool learn sample_data/models/tiny-python.gguf sample_data/models/*.md --memory-file card.atlas
  cat sample_data/text/*.txt | atlas-tool learn sample_data/models/tiny-python.gguf - --memory-file chat.atlas --json
""",
)
@click.argument("model", type=MODEL)
@click.argument("files", type=FILE, nargs=-1, required=True, metavar="FILE...")
@click.option("-m", "--memory-file", type=click.Path(), required=True, metavar="F", help=memory_file_help)
@click.option("--atlas-auto", is_flag=True, help="Start a new memory as `recommend` suggests.")
@click.option(
    "--save-every",
    type=click.IntRange(1),
    default=10_000,
    show_default=True,
    metavar="N",
    help="Tokens between two saves.",
)
@click.option(
    "--store-only", is_flag=True, help="Only store the documents, to be asked about; nothing is learned."
)
@atlas_settings_options
@model_options
@backup_option
@force_option
@click.option("-q", "--quiet", is_flag=True, help="No progress and no notes.")
@json_option
@keys_options
def command(
    model: str,
    files: tuple[str, ...],
    memory_file: str,
    as_json: bool,
    quiet: bool,
    keys: Any,
    **options: Any,
) -> int:
    """Run the command."""
    from atlas_kit.llama.open_session import open_session
    from atlas_kit.operations.learn import Document, learn
    from atlas_kit.persistence.place import Place

    one_stdin(*files)
    place = Place(memory_file, model, keys)
    place.require_encrypted()
    documents = [Document(name) for name in files]
    for document in documents:
        document.check()
    chosen = options["chosen"]
    with contextlib.ExitStack() as stack:
        engine = stack.enter_context(open_model(model, options["engine_options"], quiet=quiet))
        session = stack.enter_context(
            open_session(
                engine,
                "auto" if options["atlas_auto"] else True,
                file=memory_file,
                config=chosen.over() if chosen.config is not None else None,
                changes=chosen.values,
                device=options["device"],
                force=options["force"],
                keys=keys,
            )
        )
        stop = stack.enter_context(Stopping())
        first = options["backup"]

        def save() -> None:
            nonlocal first
            save_session(place, session, context=False, backup=first, force=options["force"])
            first = False  # what this command wrote itself is not worth a backup

        with _progress(len(documents), quiet) as progress:
            try:
                result = learn(
                    session, documents, save=save, name=memory_file, save_every=options["save_every"],
                    progress=progress, stop=stop, store_only=options["store_only"],
                )  # fmt: skip
            except Abandoned:
                _render.note(f"nothing was saved since the last time: {memory_file}")
                raise
        code = _render.emit(result, _text, as_json)
        sys.stdout.flush()
        stop.raise_if_asked()
        return code


def _text(result: Learned) -> Iterator[_render.Block]:
    rows = [_row(read, read.name) for read in result.documents]
    if len(rows) > 1:
        rows.append(_row(result.total, "in all"))
    if rows:
        yield _render.Table([">tokens", ">tokens/s", ">model alone", ">with memory", "document"], rows)
        yield ""
    memory = result.memory
    known = f"{memory['tokens_seen']:,} tokens seen, {_render.size(memory['state_bytes'])}"
    yield f"{result.total.name}: {known}, saved {_render.plural(result.saves, 'time')}"
    if result.stored:
        yield f"{result.stored:,} tokens of text can be asked about"
    if result.dropped:
        yield (
            f"the oldest {_render.plural(result.dropped, 'token')} of text had to go: "
            "--episode-tokens says how many there is room for"
        )


def _row(read: Read, name: str) -> list[object]:
    speed = "" if read.tokens_per_second is None else f"{read.tokens_per_second:,.0f}"
    return [f"{read.tokens:,}", speed, loss(read.model_loss), loss(read.loss), _render.name(name)]


def loss(value: float | None) -> str:
    """Return a loss for people."""
    return "" if value is None else f"{value:.3f}"


# --- progress --------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _progress(count: int, silent: bool) -> Iterator[Callable[[Told], None] | None]:
    """Yield what is told of the reading: a bar on a terminal, else a line now and then; both on standard error."""
    if silent:
        yield None
    elif sys.stderr.isatty() and os.environ.get("TERM") != "dumb":
        with _bar() as told:
            yield told
    else:
        yield _lines()


def _said(read: Read) -> str:
    speed = read.tokens_per_second or 0
    losses = f"loss {loss(read.model_loss)} alone, {loss(read.loss)} with the memory" if read.scored else ""
    return ", ".join(filter(None, (f"{read.tokens:,} tokens", f"{speed:,.0f} tokens/s", losses)))


def _trouble(error: object) -> str:
    return f"could not save; reading continues: {error}"


def _lines() -> Callable[[Told], None]:
    last = time.monotonic()

    def told(now: Told) -> None:
        nonlocal last
        if now.trouble is not None:
            _render.note(_trouble(now.trouble))
        if now.ended or time.monotonic() - last >= LINE_EVERY:
            last = time.monotonic()
            size = now.document.size
            share = f" {min(1, now.document.done / size):.0%}" if size and not now.ended else ""
            _render.note(f"{now.document.name}{share}: {_said(now.read)}")

    return told


@contextlib.contextmanager
def _bar() -> Iterator[Callable[[Told], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    from atlas_kit.errors import printable

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(20),
        TextColumn("{task.fields[said]}"),
    )
    console = Console(stderr=True, highlight=False, markup=False, emoji=False)
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=None, said="")

        def told(now: Told) -> None:
            if now.trouble is not None:
                bar.console.print(printable(_trouble(now.trouble)))
            bar.update(
                task,
                description=_render.name(os.path.basename(now.document.name), 24),
                total=now.document.size,
                completed=min(now.document.done, now.document.size or 0),
                said=_said(now.read),
            )

        yield told
