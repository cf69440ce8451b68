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
    from atlas_kit.operations.many_memories import Searched
    from atlas_kit.operations.memory_indexes import Memory


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
left out, and so is what was learned. --index keeps an index beside each of them, of which a question reads only what
it needs; it holds the words of the memory for all to read, and none is made of an encrypted one.

Without a model, FILES (a memory with an index, or many of them) are searched for the words of each QUESTION, and the
pieces are shown; --model M answers from them.

A small model reads badly: what matters is in the pieces.

Examples:
  atlas-tool ask sample_data/models/tiny-python.gguf "How is a file opened?" -m code.atlas --max-tokens 20
  atlas-tool ask sample_data/models/tiny-python.gguf "Who?" "When?" -m code.atlas --max-tokens 20 --json
  atlas-tool ask sample_data/models/tiny-python.gguf -m code.atlas --index
  atlas-tool ask code.atlas "How is a file opened?"
""",
)
@click.argument("model", type=MODEL, metavar="MODEL|FILES")
@click.argument("questions", nargs=-1, metavar="[QUESTION]...")
@click.option(
    "-m",
    "--memory-file",
    type=click.Path(),
    metavar="F",
    help="Ask the memory in F, or all that F stands for.",
)
@click.option("--model", "answering", type=MODEL, metavar="M", help="Answer with M, where FILES come first.")
@click.option(
    "--index", is_flag=True, help="Make an index beside each memory that has none of its present state."
)
@click.option(
    "--pieces",
    type=click.IntRange(1, 1000),
    default=5,
    show_default=True,
    metavar="N",
    help="Pieces to show for each question, where no model answers.",
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
    model: str, questions: tuple[str, ...], memory_file: str | None, answering: str | None, index: bool, pieces: int,
    as_json: bool, quiet: bool, keys: Any, verbose: bool, **options: Any,
) -> int:  # fmt: skip
    """Run the command."""
    from atlas_kit.errors import NoSuchFileError
    from atlas_kit.llama.open_session import open_session
    from atlas_kit.operations.ask import ask
    from atlas_kit.storage.given import STDIN

    if answering is not None:
        if memory_file is not None:
            raise click.UsageError("name the model once: in front, or with --model")
        model, memory_file = answering, model
    if memory_file is None:
        if index:
            raise click.UsageError("--index needs a model, and the memories with -m F")
        return _search(model, questions, pieces, as_json=as_json, quiet=quiet, verbose=verbose)
    if index:
        code = _index(model, memory_file, options, as_json=as_json and not questions, quiet=quiet)
        if not questions:
            return code
    elif not questions:
        raise click.UsageError("QUESTION... is missing")
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


def _many(name: str) -> list[Memory] | None:
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
    from atlas_kit.operations.memory_indexes import memories_of
    from atlas_kit.persistence.index_tables import ENDING

    files = list(found([name], (".atlas", ENDING)))
    memories = [file for file in files if file.name.lower().endswith(".atlas")]
    others = [file for file in files if not file.name.lower().endswith(ENDING)]
    return memories_of(memories or others)


def _one(name: str) -> Memory:
    """Return one memory, with its present state."""
    from atlas_kit.fleet.files import current, found
    from atlas_kit.operations.memory_indexes import memories_of

    return memories_of([current(next(iter(found([name]))))])[0]


def _index(model: str, name: str, options: dict[str, Any], *, as_json: bool, quiet: bool) -> int:
    """Make the indexes that are missing."""
    from atlas_kit.operations.memory_indexes import make_indexes
    from atlas_kit.operations.token_words import EngineWords

    memories = _many(name) or [_one(name)]
    with (
        open_model(model, options["engine_options"], quiet=quiet) as engine, Stopping() as stop,
        _render.progress() as progress,
    ):  # fmt: skip
        result = make_indexes(
            memories, EngineWords(engine), engine.info.identity, model=engine.info.name, force=options["force"],
            stop=stop, progress=progress,
        )  # fmt: skip
        stop.raise_if_asked()
    if as_json:
        return _render.emit(result, lambda result: (), as_json)
    if not quiet:
        for place in result.cached:
            _render.note(f"nothing can be written beside the memory; its index is {place}")
        made, kept = len(result.made), len(result.kept)
        _render.note(f"{made:,} index{'es' * (made != 1)} made, {kept:,} stood already")
        _say_left_out(result.left_out)
    return result.exit_code


def _search(
    name: str, questions: tuple[str, ...], pieces: int, *, as_json: bool, quiet: bool, verbose: bool
) -> int:
    """Show what is like the questions, without a model."""
    from atlas_kit.operations.many_memories import search_memories
    from atlas_kit.storage.urls import is_url

    if not is_url(name) and name.lower().endswith(".gguf"):
        raise click.UsageError("name the memory to ask: -m F")
    if not questions:
        raise click.UsageError("QUESTION... is missing")
    result = search_memories(_many(name) or [_one(name)], questions, count=pieces, name=name)
    code = _render.emit(result, _found, as_json)
    if not quiet:
        _say_left_out(result.left_out)
    return code


def _found(result: Searched) -> Iterator[_render.Block]:
    for number, (question, found) in enumerate(result.questions):
        if number:
            yield ""
        lines: list[str | _render.Styled] = []
        if len(result.questions) > 1:
            lines.append(_render.Styled(question, "head"))
        if not found:
            lines.append(_render.Styled("  nothing has these words", "dim"))
        for piece in found:
            lines.append(_render.Styled(f"  {piece.place}", "place"))
            lines += [f"    {line}" for line in piece.text.strip().splitlines()]
        yield _render.Lines(lines)


def _say_left_out(left_out: list[str]) -> None:
    for why in left_out[:_LEFT_OUT_SHOWN]:
        _render.note(f"left out: {why}")
    if len(left_out) > _LEFT_OUT_SHOWN:
        _render.note(f"left out: {len(left_out) - _LEFT_OUT_SHOWN:,} more")


@contextlib.contextmanager
def _over_many(
    engine: Any, files: list[Memory], keys: Any, device: str, *, force: bool, quiet: bool
) -> Iterator[AtlasSession]:
    """Give a session over what many memories have read and heard, and say what is left out."""
    from atlas_kit.operations.many_memories import gather, session_over

    words = (engine.piece, engine.info.n_vocab)
    gathered = gather(files, engine.info.identity, keys=keys, force=force, words=words)
    with contextlib.closing(gathered):
        if not quiet:
            _say_left_out(gathered.left_out)
        with session_over(engine, gathered, device=device) as session:
            yield session


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
