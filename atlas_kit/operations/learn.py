"""Read documents into a session's memory, saving it on the way. Knows no terminal."""

from __future__ import annotations

import codecs
import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from atlas_kit.codecs.json_text import named
from atlas_kit.codecs.numbers import Array
from atlas_kit.episodes import Episodes, Kind
from atlas_kit.errors import AtlasError, InvalidParamError
from atlas_kit.llama.session import AtlasSession
from atlas_kit.persistence.auto_save import AutoSave
from atlas_kit.storage.given import STDIN, open_source
from atlas_kit.storage.urls import is_url, shown

#: Bytes that are read, and turned into tokens, at a time.
PIECE = 1 << 20


class Document:
    """A text file (``-``: standard input): UTF-8, with replacement characters where it is not.

    Attributes
    ----------
    name
        Its path.
    size
        In bytes; None where nobody knows.
    done
        Bytes learned so far, roughly.
    again
        Whether it can be read more than once.
    source
        What it is called where it is found again.
    """

    def __init__(self, name: str) -> None:
        self.name, self.done = name, 0
        self.size = None if name == STDIN or not os.path.isfile(name) else os.path.getsize(name)
        self.again = self.size is not None or is_url(name)
        self.source = "" if name == STDIN else shown(name)

    def check(self) -> None:
        """Raise what ``pieces`` would raise at once; standard input is left alone.

        Raises
        ------
        AtlasError
            It cannot be read, or holds no text.
        """
        if self.size is not None or self.name != STDIN:
            with self._open() as stream:
                self._require_text(self._read(stream, 1 << 16) if self.size is not None else b"")

    def pieces(self) -> Iterator[str]:
        """Yield the text in pieces that end where a line ends, if lines are not longer than that.

        Raises
        ------
        AtlasError
            As ``check``.
        """
        decoder = codecs.getincrementaldecoder("utf-8-sig")("replace")
        held = ""
        with self._open() as stream:
            while data := self._read(stream, PIECE):
                self._require_text(data)
                held += decoder.decode(data)
                end = held.rfind("\n") + 1 or len(held)
                yield held[:end]
                held = held[end:]
        if held := held + decoder.decode(b"", final=True):
            yield held

    def text(self) -> str:
        """Return the whole text."""
        return "".join(self.pieces())

    @contextlib.contextmanager
    def _open(self) -> Iterator[BinaryIO]:
        from atlas_kit.storage.source import access_error

        if self.name == STDIN:
            yield sys.stdin.buffer
            return
        if is_url(self.name):
            with open_source(self.name) as source, source.stream() as far:
                source.prepare(0, source.size)
                yield far  # type: ignore[misc]
            return
        try:
            stream = open(self.name, "rb")  # noqa: SIM115 (closed below)
        except (OSError, ValueError) as error:
            if isinstance(error, ValueError):
                raise InvalidParamError("this is not a valid path", path=shown(self.name)) from error
            raise access_error(error, shown(self.name)) from error
        with stream:
            yield stream

    def _read(self, stream: BinaryIO, size: int) -> bytes:
        from atlas_kit.storage.source import access_error

        try:
            return stream.read(size)
        except OSError as error:
            raise access_error(error, shown(self.name)) from error

    def _require_text(self, data: bytes) -> None:
        if b"\0" in data:
            raise InvalidParamError(
                "this is not a text file: it has NUL bytes",
                path=shown(self.name),
                hint="Give UTF-8 text files.",
            )


@dataclass
class Read:
    """What was read, of one document or of all.

    ``losses`` are sums in nats over ``scored`` tokens: of the model alone, and with the memory.
    """

    name: str
    tokens: int = 0
    seconds: float = 0.0
    scored: int = 0
    losses: list[float] = field(default_factory=lambda: [0.0, 0.0])

    def add(self, tokens: int, seconds: float, logprob: Array) -> None:
        """Count what ``AtlasSession.feed`` gave."""
        self.tokens += tokens
        self.seconds += seconds
        self.scored += len(logprob)
        for column in (0, 1):
            self.losses[column] -= float(logprob[:, column].sum())

    @property
    def model_loss(self) -> float | None:
        """Mean loss of the model alone in nats per token; None before there is one."""
        return self.losses[0] / self.scored if self.scored else None

    @property
    def loss(self) -> float | None:
        """Mean loss with the memory in nats per token."""
        return self.losses[1] / self.scored if self.scored else None

    @property
    def tokens_per_second(self) -> float | None:
        """Speed, reading and learning together."""
        return self.tokens / self.seconds if self.seconds > 0 else None

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON-ready data."""
        numbers = {
            "tokens": self.tokens,
            "seconds": round(self.seconds, 3),
            "tokens_per_second": self.tokens_per_second,
            "loss_model": self.model_loss,
            "loss": self.loss,
        }
        return {**named("path", self.name), **numbers}


@dataclass
class Learned:
    """What ``learn`` did: the documents, all of them together, how often it was saved, and whether it was stopped.

    ``stored`` are the tokens that can be asked about now, those of earlier times included; ``dropped`` those that had
    to go for them, since there is room for ``episode_tokens`` only.
    """

    documents: list[Read]
    total: Read
    memory: dict[str, Any]
    saves: int = 0
    interrupted: bool = False
    stored: int = 0
    dropped: int = 0

    exit_code = 0

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON-ready data; the total's path is the memory's file."""
        total = self.total.to_json()
        file = {name.replace("path", "memory_file"): total.pop(name) for name in [*total] if "path" in name}
        documents = [document.to_json() for document in self.documents]
        rest: dict[str, Any] = {
            "saves": self.saves,
            "interrupted": self.interrupted,
            "stored": self.stored,
            "dropped": self.dropped,
            "memory": self.memory,
        }
        return {**file, **total, "documents": documents, **rest}


@dataclass(frozen=True)
class Told:
    """What ``progress`` is told: the document, what was read of it and in all, a save's failure, and its end."""

    document: Document
    read: Read
    total: Read
    trouble: AtlasError | None = None
    ended: bool = False


def learn(
    session: AtlasSession,
    documents: Iterable[Document],
    *,
    save: Callable[[], None],
    name: str = "",
    save_every: int = 10_000,
    progress: Callable[[Told], None] | None = None,
    stop: Callable[[], bool] = lambda: False,
    store_only: bool = False,
) -> Learned:
    """Read documents one after the other; the memory stays, the model's context is emptied between them.

    Files are stored first, all of them, which takes seconds and saves once: from then on they can be asked about,
    while the memory learns them. Standard input is stored as it is read.

    Parameters
    ----------
    save
        Saves the memory. Called every ``save_every`` tokens, where a failure is told and reading goes on, and at the
        end if there is more to save, also when something else fails.
    name
        Of the memory's file, for the result.
    stop
        Asked between batches; True ends the reading.
    store_only
        Store the documents, and let the memory learn nothing.

    Raises
    ------
    AtlasError
        A document cannot be read, llama.cpp fails, or the last save fails.
    """
    if save_every < 1:
        raise InvalidParamError(f"save_every is {save_every}", key="save_every", hint="Choose at least 1.")
    assert session.memory is not None
    if store_only and session.episodes is None:
        raise InvalidParamError(
            "this memory stores no documents: its episode_tokens is 0", path=name or None,
            hint="Set episode_tokens.",
        )  # fmt: skip
    result, policy = Learned([], Read(name), {}), AutoSave(tokens=save_every)
    documents = list(documents)
    dropped = 0 if session.episodes is None else session.episodes.dropped
    stored = _stored(session, documents, store_only, stop)
    if any(stored.values()):
        trouble = _saved(save, result)
        if trouble is not None and store_only:
            raise trouble
        if trouble is not None and progress is not None:
            progress(Told(documents[0], Read(documents[0].name), result.total, trouble))
    try:
        for document in [] if store_only else documents:
            result.interrupted = result.interrupted or stop()
            if result.interrupted:
                break
            read = Read(document.name)
            result.documents.append(read)
            session.forget_context()
            kind = None if id(document) in stored else Kind.DOCUMENT
            _read(session, document, read, result, save, policy, progress, stop, kind)
            if progress is not None:
                progress(Told(document, read, result.total, ended=True))
    except (AtlasError, OSError):
        if result.total.tokens:  # more may have been learned than was counted
            save()
        raise
    if policy.changed(result.total.tokens):
        save()
        result.saves += 1
    result.memory = session.memory.stats()
    if session.episodes is not None:
        result.stored, result.dropped = len(session.episodes), session.episodes.dropped - dropped
    return result


def _read(
    session: AtlasSession, document: Document, read: Read, result: Learned, save: Callable[[], None],
    policy: AutoSave, progress: Callable[[Told], None] | None, stop: Callable[[], bool], kind: Kind | None,
) -> None:  # fmt: skip
    total = result.total
    for text in document.pieces():
        tokens = session.engine.tokenize(text)
        before, size = document.done, len(text.encode("utf-8", "replace"))
        for at in range(0, len(tokens), session.engine.n_batch):
            if stop():
                result.interrupted = True
                return
            started = time.perf_counter()
            part = tokens[at : at + session.engine.n_batch]
            fed = session.feed(part, kind=kind, source=document.source)
            seconds = time.perf_counter() - started
            document.done = before + size * (at + len(part)) // len(tokens)
            for count in (read, total):
                count.add(fed.tokens, seconds, fed.logprob)
            trouble = None
            if policy.due(total.tokens):
                trouble = _saved(save, result)
                if trouble is None:
                    policy.saved(total.tokens)
            if progress is not None:
                progress(Told(document, read, total, trouble))


def _stored(
    session: AtlasSession, documents: list[Document], every: bool, stop: Callable[[], bool]
) -> dict[int, int]:
    """Store documents, so that they can be asked about; return how many tokens each was, by its ``id``.

    Those that can be read only once are left to be stored when they are learned, unless it is ``every``. What cannot
    be read is left, too: whoever learns it says so in its turn.
    """
    found: dict[int, int] = {}
    for document in documents:
        if not (document.again or every) or stop():
            continue
        try:
            tokens = [token for text in document.pieces() for token in session.engine.tokenize(text)]
        except AtlasError:
            if every:
                raise
            continue
        known = session.episodes is None or _is_stored(session.episodes, document.source, tokens)
        found[id(document)] = 0 if known else len(tokens)
        if not known:
            session.remember(Kind.DOCUMENT, tokens, document.source)
    return found


def _is_stored(episodes: Episodes, source: str, tokens: list[int]) -> bool:
    """Tell whether the last that was stored of a source is the same text; of a new one, the last of any source."""
    last = {one.source: one for one in episodes.episodes if one.kind == Kind.DOCUMENT}
    found = [last[source]] if source in last else [one for one in last.values() if one.source]
    return any(
        one.stop - one.start == len(tokens) and episodes.tokens(one.start, one.stop) == tokens
        for one in found
    )


def _saved(save: Callable[[], None], result: Learned) -> AtlasError | None:
    try:
        save()
    except AtlasError as error:
        return error
    result.saves += 1
    return None
