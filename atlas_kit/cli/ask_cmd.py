"""``atlas-tool ask``."""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING, Any

import click

from atlas_kit.cli import _render
from atlas_kit.cli._model_options import MODEL, Stopping, force_option, model_options, open_model
from atlas_kit.cli._options import command_, json_option, keys_options

if TYPE_CHECKING:
    from collections.abc import Iterator

    from atlas_kit.llama.asking import Answer
    from atlas_kit.llama.recalling import Piece
    from atlas_kit.llama.session import AtlasSession
    from atlas_kit.llama.steps import Token
    from atlas_kit.operations.ask import Asked


#: Files without anything to ask about that are named.
_LEFT_OUT_SHOWN = 10


@command_(
    "ask",
    """\
Ask about what was read or said, and get the answer with its sources.

F is a memory that `learn`, `run` or `serve` keeps. For each QUESTION, pieces of the stored text that may help are
looked up, the model itself judges which of them makes the question likeliest, reads that one again in front of the
question, and answers. Below each answer stand the pieces that it was given, with the file and the line or whose turn
it was, and when. Where nothing helps with a question, the model answers from what it knows, and that is said.
Questions do not know of each other, and the memory stays as it is. On a terminal each answer appears as it comes.

F may be an address, and it may stand for many memories: a folder, or a pattern such as 's3://bucket/memories/**'. What
all of them have read and heard is then searched as one, and each piece names its file. Memories of other models are
left out, and so is what was learned.

A small model reads badly: what matters is in the pieces.

Examples:
  atlas-tool ask sample_data/models/tiny-python.gguf "How is a file opened?" -m code.atlas --max-tokens 20
  atlas-tool ask sample_data/models/tiny-python.gguf "Who?" "When?" -m code.atlas --max-tokens 20 --json
""",
)
@click.argument("model", type=MODEL)
@click.argument("questions", nargs=-1, required=True, metavar="QUESTION...")
@click.option(
    "-m", "--memory-file", type=click.Path(), required=True, metavar="F", help="Ask the memory in F."
)
@click.option(
    "--recall",
    type=click.Choice(["auto", "off", "always"]),
    help="Read again what helps (auto), nothing, or always the best.  [default: as the memory says]",
)
@click.option(
    "--recall-segments", type=click.IntRange(1, 16), metavar="N", help="Pieces before a question at most."
)
@click.option(
    "--recall-gate",
    type=click.FloatRange(-100, 100),
    metavar="X",
    help="Nats per token of the question that a piece must gain.",
)
@click.option(
    "--max-tokens", type=click.IntRange(1), default=256, show_default=True, metavar="N",
    help="Length of an answer.",
)  # fmt: skip
@click.option("--system", metavar="TEXT", help="What the chat starts with.")
@click.option("--no-chat", is_flag=True, help="Ask in plain text, even if the model has a chat template.")
@click.option("-v", "--verbose", is_flag=True, help="Also show what was considered and not taken.")
@model_options
@force_option
@click.option("-q", "--quiet", is_flag=True, help="No notes.")
@json_option
@keys_options
def command(
    model: str, questions: tuple[str, ...], memory_file: str, as_json: bool, quiet: bool, keys: Any,
    verbose: bool, **options: Any,
) -> int:  # fmt: skip
    """Run the command."""
    from atlas_kit.errors import NoSuchFileError
    from atlas_kit.llama.open_session import open_session
    from atlas_kit.operations.ask import ask
    from atlas_kit.storage.given import STDIN

    names = {"mode": "recall", "segments": "recall_segments", "gate": "recall_gate"}
    recall = {name: options[option] for name, option in names.items() if options[option] is not None}
    if memory_file == STDIN:
        raise NoSuchFileError("a memory is read from a file", path=memory_file, hint="Give its name.")
    with contextlib.ExitStack() as stack:
        engine = stack.enter_context(open_model(model, options["engine_options"], quiet=quiet))
        if (files := _many(memory_file)) is not None:
            session = stack.enter_context(
                _over_many(engine, files, keys, options["device"], force=options["force"], quiet=quiet)
            )
        else:
            session = stack.enter_context(
                open_session(
                    engine,
                    True,
                    file=memory_file,
                    device=options["device"],
                    learn=False,
                    force=options["force"],
                    keys=keys,
                )
            )
        stop = stack.enter_context(Stopping())
        live = (
            _Live(named=len(questions) > 1, verbose=verbose) if sys.stdout.isatty() and not as_json else None
        )
        result = ask(
            session, questions, name=memory_file, recall=recall, stop=stop, system=options["system"],
            max_tokens=options["max_tokens"], template=not options["no_chat"], told=live,
        )  # fmt: skip
        code = result.exit_code
        if live is None:
            code = _render.emit(result, lambda result: _text(result, verbose), as_json)
        sys.stdout.flush()
        stop.raise_if_asked()
        return code


def _many(name: str) -> list[str] | None:
    """Return the files that the name of a memory stands for, None where it is one file's own."""
    import glob
    import os

    from atlas_kit.storage.urls import is_url

    if is_url(name):
        from atlas_kit.storage.remote_listing import stands_for_many

        if not stands_for_many(name):
            return None
    elif not os.path.isdir(name) and (os.path.lexists(name) or not glob.has_magic(name)):
        return None
    from atlas_kit.fleet.files import found

    files = [file.name for file in found([name], (".atlas",))]
    return [file for file in files if file.lower().endswith(".atlas")] or files


def _over_many(
    engine: Any, files: list[str], keys: Any, device: str, *, force: bool, quiet: bool
) -> AtlasSession:
    """Return a session over what many memories have read and heard, and say what is left out."""
    from atlas_kit.operations.many_memories import gather, session_over

    gathered = gather(files, engine.info.identity, keys=keys, force=force)
    for why in [] if quiet else gathered.left_out[:_LEFT_OUT_SHOWN]:
        _render.note(f"left out: {why}")
    if not quiet and len(gathered.left_out) > _LEFT_OUT_SHOWN:
        _render.note(f"left out: {len(gathered.left_out) - _LEFT_OUT_SHOWN:,} more")
    return session_over(engine, gathered, device=device)


class _Live:
    """Writes each answer to a terminal as it comes, and behind it where it is from."""

    def __init__(self, *, named: bool, verbose: bool) -> None:
        self._named, self._verbose = named, verbose
        self._count, self._begun = 0, False

    def __call__(self, item: str | Token | Answer) -> None:
        """Take a question, a token of its answer, or the whole answer."""
        from atlas_kit.llama.asking import Answer

        if isinstance(item, str):
            self._begins(item)
        elif isinstance(item, Answer):
            sys.stdout.write("\n")
            _render.show([_render.Lines(list(_sources(item, verbose=self._verbose)))])
        else:
            text = item.text if self._begun else item.text.lstrip()
            self._begun = self._begun or bool(text)
            _render.safely(text)
        sys.stdout.flush()

    def _begins(self, question: str) -> None:
        if self._count:
            sys.stdout.write("\n")
        if self._named:
            _render.show([_render.Lines([_render.Styled(question, "head")])])
        self._count, self._begun = self._count + 1, False


def _text(result: Asked, verbose: bool) -> Iterator[_render.Block]:
    for number, answer in enumerate(result.answers):
        if number:
            yield ""
        yield _render.Lines(list(_lines(answer, named=len(result.answers) > 1, verbose=verbose)))


def _lines(answer: Answer, *, named: bool, verbose: bool) -> Iterator[str | _render.Styled]:
    if named:
        yield _render.Styled(answer.question, "head")
    yield from answer.text.splitlines() or [""]
    yield from _sources(answer, verbose=verbose)


def _sources(answer: Answer, *, verbose: bool) -> Iterator[str | _render.Styled]:
    if not answer.pieces:
        yield _render.Styled(f"  from nothing that was stored: {answer.recalled.reason}", "dim")
    for piece in answer.pieces:
        yield from piece_lines(piece)
    for piece in answer.recalled.earlier:
        yield from piece_lines(piece, taken=False, word="corrects")
    if verbose:
        for piece in answer.recalled.candidates:
            if piece not in (*answer.pieces, *answer.recalled.earlier):
                yield from piece_lines(piece, taken=False)


def piece_lines(piece: Piece, *, taken: bool = True, word: str = "") -> Iterator[str | _render.Styled]:
    """Yield a piece for people: where it stands, what it gains, and its text; ``word`` stands in front."""
    gain = "" if piece.gain is None else f" ({piece.gain:+.2f} nats per token)"
    word = word or ("from" if taken else "not from")
    yield _render.Styled(f"  {word} {piece.place}{gain}", "place" if taken else "dim")
    for line in piece.text.strip().splitlines():
        yield _render.Styled(f"    {line}", "dim")
