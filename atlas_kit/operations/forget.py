"""Take what was read or said out of a memory's file, wherever in the file it is.

The file is written whole, so that none of the text is left in its bytes: the episodes that are meant go, and with them
what else holds text, whose ever it is, since nobody can tell it apart: the saved context, the texts of the conversation
and the window of the last tokens. What the matrix learned is numbers; it stays, or is learned again from the episodes
that are left. Knows no terminal.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from atlas_kit.codecs.json_text import named
from atlas_kit.codecs.quantities import parse_time
from atlas_kit.errors import (
    FileAccessError,
    InvalidParamError,
    KeyNotFoundError,
    LockedError,
    Remedy,
    WrongModelError,
)
from atlas_kit.formats.atlas.tables import DataType
from atlas_kit.formats.opening import open_memory, require_encrypted
from atlas_kit.persistence.entry_keys import DESCRIPTION, EPISODES
from atlas_kit.storage.keys import Keys

if TYPE_CHECKING:
    from atlas_kit.episodes import EpisodeArrays, Episodes
    from atlas_kit.episodes.store import Segment
    from atlas_kit.formats.atlas import Entry, MemoryFile
    from atlas_kit.llama.engine import Engine
    from atlas_kit.operations.token_words import Words
    from atlas_kit.persistence.episode_entries import EpisodeCounts
    from atlas_kit.persistence.session_state import SessionState
    from atlas_kit.storage.given import Progress

#: Characters of each piece that a result shows.
SHOWN = 80


class Choice(NamedTuple):
    """What is to be forgotten: what all of these hold for that are given.

    ``source``: the document of this name. ``about``: words that all occur. ``before_ms``: read or said before this.
    """

    source: str | None = None
    about: str | None = None
    before_ms: int | None = None


@dataclass(frozen=True)
class Gone:
    """One piece that goes, and the beginning of its text where words are known."""

    kind: str
    source: str
    time_ms: int
    line: int
    tokens: int
    text: str | None

    def to_json(self) -> dict[str, Any]:
        """Return the piece as JSON-ready data."""
        return dataclasses.asdict(self)


@dataclass
class Forgotten:
    """What was (or, in a dry run, would be) forgotten.

    Attributes
    ----------
    pieces
        What went of the episodes.
    counts, left
        How much that was, and how much is left; None for nothing.
    others
        What else went because it holds text: ``context``, ``texts``, ``window``.
    rebuilt
        Tokens that the memory was learned from again; None where what it had learned stays.
    learned
        Whether there is a learned memory at all.
    backups, backups_removed
        The names of the file's backups, which may hold the text, and whether they are gone.
    texts
        Keys of other entries of text in the file, which stay.
    similar
        Names of documents like the one that is not there.
    alike
        Documents of the same file name in other folders, which stay.
    """

    path: str
    dry_run: bool
    pieces: list[Gone] = field(default_factory=list)
    counts: EpisodeCounts | None = None
    left: EpisodeCounts | None = None
    others: list[str] = field(default_factory=list)
    rebuilt: int | None = None
    learned: bool = False
    backups: list[str] = field(default_factory=list)
    backups_removed: bool = False
    texts: list[str] = field(default_factory=list)
    similar: list[str] = field(default_factory=list)
    alike: list[str] = field(default_factory=list)

    @property
    def exit_code(self) -> int:
        """Return 1 when there is nothing to forget."""
        return int(not self.pieces and not self.backups_removed)

    def to_json(self) -> dict[str, Any]:
        """Return the result as JSON-ready data."""
        return {
            **named("path", self.path),
            "dry_run": self.dry_run,
            "tokens": self.counts.tokens if self.counts else 0,
            "documents": self.counts.documents if self.counts else 0,
            "turns": self.counts.turns if self.counts else 0,
            "pieces": [piece.to_json() for piece in self.pieces],
            "left": self.left._asdict() if self.left else {"tokens": 0, "documents": 0, "turns": 0},
            "also_removed": self.others,
            "rebuilt_from_tokens": self.rebuilt,
            "backups": [named("name", name) for name in self.backups],
            "backups_removed": self.backups_removed,
            "other_texts": [named("key", key) for key in self.texts],
            "similar": self.similar,
            "alike": self.alike,
        }


def forget(
    path: str,
    choice: Choice,
    *,
    words: Words | None = None,
    engine: Engine | None = None,
    device: str = "cpu",
    remove_backups: bool = False,
    dry_run: bool = False,
    force: bool = False,
    keys: Keys | None = None,
    progress: Progress | None = None,
) -> Forgotten:
    """Forget part of what a memory's file holds of what was read and said.

    No session should have the memory open: it would save again what it knows.

    Parameters
    ----------
    words
        What turns tokens into text; needed for ``about``.
    engine
        The model: the memory is learned again from what is left. None: what it learned stays.
    device
        Where it is learned again: ``cpu`` or ``cuda``.
    remove_backups
        Remove the file's backups, too, also when nothing is found.
    dry_run
        Change nothing.
    force
        Take a memory of another model.

    Raises
    ------
    KeyNotFoundError
        The file holds no episodes.
    InvalidParamError
        Nothing is chosen, or ``about`` without ``words``.
    WrongModelError
        The memory is another model's.
    LockedError
        A server has the memory open.
    ConflictError
        Somebody else has saved the memory meanwhile; nothing was forgotten.
    """
    if choice.about is not None and words is None:
        raise InvalidParamError("to find words in the memory, its model must be given", key="about")
    keys, removes = Keys() if keys is None else keys, remove_backups and not dry_run
    with open_memory(path, keys) as file:
        require_encrypted(file, keys)
        store = _store(file, words)
        result = Forgotten(os.fsdecode(path), dry_run, learned=DESCRIPTION in file)
        if (source := _source(store, choice.source, result)) is not None or choice.source is None:
            choice = choice._replace(source=source)
            _select(store, choice, words, result)
        if result.pieces:
            store.forget(*choice)
            result.left = _counts_of(store)
            result.texts = [entry.key for entry in file.entries() if _may_hold_text(entry)]
            with contextlib.nullcontext() if dry_run else _no_server(path):
                _write(path, file, store.arrays(), result, engine, device, force, keys, progress)
    _see_to_backups(path, result, removes)
    return result


def forget_episodes(
    arrays: EpisodeArrays, choice: Choice, words: Words, *, dry_run: bool = False
) -> tuple[EpisodeArrays, Forgotten]:
    """Forget part of what was read and said, in main memory; return what is left, and what went.

    Parameters
    ----------
    words
        What turns tokens into text.
    dry_run
        Change nothing: all is left.

    Raises
    ------
    InvalidParamError
        Nothing is chosen, or several documents have the name.
    """
    from atlas_kit.episodes import Episodes
    from atlas_kit.episodes.store import MOST_LIMIT

    result = Forgotten("", dry_run, learned=True)
    store = Episodes.from_arrays(arrays, words.piece, len(words), limit=MOST_LIMIT)
    if (source := _source(store, choice.source, result)) is not None or choice.source is None:
        choice = choice._replace(source=source)
        _select(store, choice, words, result)
    if result.pieces and not dry_run:
        store.forget(*choice)
    result.left = _counts_of(store)
    return store.arrays(), result


def time_of(text: str) -> int:
    """Return a date or a time in ISO 8601 as milliseconds since 1970; UTC where no zone is named.

    Raises
    ------
    InvalidParamError
        It is neither.
    """
    found = parse_time(text)
    if found is None:
        raise InvalidParamError(
            f'"{text}" is not a date', key="before", hint="Write 2026-11-30, or 2026-11-30T14:00."
        )
    return found


# --- what is meant ---------------------------------------------------------------------------------------


def _store(file: MemoryFile, words: Words | None) -> Episodes:
    from atlas_kit.episodes import Episodes
    from atlas_kit.episodes.store import MOST_LIMIT
    from atlas_kit.persistence.episode_entries import read_episodes

    arrays = read_episodes(file)
    if arrays is None:
        raise KeyNotFoundError(
            "the file holds nothing of what was read or said that could be forgotten",
            path=file.path,
            key=EPISODES,
        )
    if words is None:
        n_vocab = int(arrays.tokens.max()) + 1 if len(arrays) else 1
        return Episodes.from_arrays(arrays, lambda token: b"", n_vocab, limit=MOST_LIMIT)
    try:
        return Episodes.from_arrays(arrays, words.piece, len(words), limit=MOST_LIMIT)
    except InvalidParamError as error:
        error.path = error.path or file.path
        raise


def _source(store: Episodes, wanted: str | None, result: Forgotten) -> str | None:
    """Return the document that a name means: its own name, or the only one of that name in any folder."""
    from atlas_kit.episodes.arrays import source_name

    if wanted is None:
        return None
    names = [name for name in store.arrays().sources if name]
    alike = [name for name in names if os.path.basename(name) == os.path.basename(wanted)]
    if (own := source_name(wanted)) in names:
        result.alike = [name for name in alike if name != own]
        return wanted
    if len(alike) == 1:
        return alike[0]
    if alike:
        raise InvalidParamError(
            f"{len(alike)} documents have the name {os.path.basename(wanted)}: {', '.join(alike[:5])}",
            key="source",
        )
    result.similar = difflib.get_close_matches(wanted, names, 3)
    return None


def _select(store: Episodes, choice: Choice, words: Words | None, result: Forgotten) -> None:
    from atlas_kit.episodes.arrays import Kind
    from atlas_kit.persistence.episode_entries import EpisodeCounts

    found = store.select(*choice)
    for segment in found:
        text = None if words is None else _beginning(store, segment)
        result.pieces.append(
            Gone(
                segment.kind.name.lower(), segment.source, segment.time_ms, segment.line,
                segment.stop - segment.start, text,
            )
        )  # fmt: skip
    if found:
        documents = {(s.source, s.time_ms) for s in found if s.kind is Kind.DOCUMENT}
        turns = sum(s.kind is not Kind.DOCUMENT for s in found)
        result.counts = EpisodeCounts(sum(s.stop - s.start for s in found), len(documents), turns)


def _beginning(store: Episodes, segment: Segment) -> str:
    text = " ".join(store.text(segment.start, min(segment.stop, segment.start + SHOWN)).split())
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 3]}..."


def _may_hold_text(entry: Entry) -> bool:
    """Tell whether an entry is text of others, or what a repair could not make out."""
    return entry.type in (DataType.TEXT, DataType.CONVERSATION) or entry.key.startswith("lost+found/")


def _counts_of(store: Episodes) -> EpisodeCounts | None:
    from atlas_kit.persistence.episode_entries import counts_of

    return counts_of(store.arrays()) if len(store) else None


# --- what is done ----------------------------------------------------------------------------------------


def _write(
    path: str, file: MemoryFile, arrays: EpisodeArrays, result: Forgotten, engine: Engine | None, device: str,
    force: bool, keys: Keys, progress: Progress | None,
) -> None:  # fmt: skip
    """Write the file without what goes."""
    if DESCRIPTION not in file:
        from atlas_kit.persistence.episode_entries import put_episodes

        if not result.dry_run:
            put_episodes(file, arrays)
            file.save()
        return
    from atlas_kit.persistence.session_file import FORGOTTEN, read_session_state, write_session_state
    from atlas_kit.persistence.snapshot import describe_memory

    description = describe_memory(file)
    state = read_session_state(file, episodes=False)
    if engine is not None and not force:
        try:
            state.require_model(engine.info.identity, path=path)
        except WrongModelError as error:
            error.hint, error.remedy = None, Remedy("force-load")
            raise
    kept = {"context": bool(state.tokens), "texts": bool(state.texts), "window": description.window}
    result.others = [name for name, there in kept.items() if there]
    if result.dry_run:
        return
    kept_metadata = {name: value for name, value in description.metadata.items() if name != "runtime"}
    if engine is None:
        state = _without_text(state, arrays)
    else:
        state = _learned_again(engine, device, state, arrays, progress)
        result.rebuilt = len(arrays)
    write_session_state(
        path, state,
        metadata={**kept_metadata, FORGOTTEN: int(time.time() * 1000)},
        read_from=file, optimizer=description.optimizer, window=engine is not None, dtype=description.dtype,
        codec=_codec_of(file), force=force, **keys.options(),
    )  # fmt: skip


def _without_text(state: SessionState, arrays: EpisodeArrays) -> SessionState:
    """Return a state of which nothing but the episodes can be read; it is to be written without its window."""
    waiting = {name: array for name, array in state.waiting.items() if name == "log_eta"}
    return dataclasses.replace(
        state, waiting=waiting, tokens=(), position=0, output={}, context=None, texts=(), episodes=arrays
    )


def _learned_again(
    engine: Engine, device: str, state: SessionState, arrays: EpisodeArrays, progress: Progress | None
) -> SessionState:
    """Return the state of a new memory that has read the episodes, in their order; a document begins a new context."""
    from atlas_kit.llama.session import AtlasSession
    from atlas_kit.settings.atlas_settings import AtlasSettings

    tokens, done = arrays.tokens.tolist(), 0
    settings = AtlasSettings.from_saved(state.settings).replace(episode_tokens=0)  # they are there already
    with AtlasSession(engine, settings, device=device) as session:
        for begin, end, anew in _runs(arrays):
            if anew:
                session.forget_context()
            for at in range(begin, end, engine.n_batch):
                part = tokens[at : min(end, at + engine.n_batch)]
                session.feed(part, score=False)
                done += len(part)
                if progress:
                    progress("learning again", done, len(tokens))
        new = session.state(context=False)
    return dataclasses.replace(new, settings=state.settings, episodes=arrays)


def _runs(arrays: EpisodeArrays) -> Iterator[tuple[int, int, bool]]:
    """Yield where each episode begins and ends, and whether it goes on with nothing that stands before it."""
    starts = [*arrays.episode_start.tolist(), len(arrays)]
    before = 0
    for number, kind in enumerate(arrays.kind.tolist()):
        yield starts[number], starts[number + 1], kind == 0 or before == 0
        before = kind


@contextlib.contextmanager
def _no_server(path: str) -> Iterator[None]:
    """Let no server keep its memory in a file meanwhile: it would save what it knows again."""
    from atlas_kit.persistence.place import lock_of_server

    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(lock_of_server(path))
        except LockedError as error:
            raise LockedError(
                "a server keeps its memory in this file, and would save again what is forgotten",
                path=path,
                hint="Stop the server first.",
            ) from error
        except FileAccessError as error:  # about the lock's file
            error.path = path
            raise
        yield


def _codec_of(file: MemoryFile) -> str | None:
    """Return how the file's arrays are coded, to go on so; version 1 codes nothing."""
    coded = (entry.codec for entry in file.entries() if entry.dtype_id and entry.codec_id)
    return None if file.version == 1 else next(coded, None)


def _see_to_backups(path: str, result: Forgotten, remove: bool) -> None:
    from atlas_kit.persistence.backups import backup_names, remove_backups

    result.backups = backup_names(path)
    if remove:
        remove_backups(path, result.backups)
        result.backups_removed = bool(result.backups)


__all__ = ["Choice", "Forgotten", "Gone", "forget", "forget_episodes", "time_of"]
