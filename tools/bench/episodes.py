"""How soon what was read can be asked, and how often the right segment is found: ours beside SQLite's FTS5 and bm25s.

    python tools/bench/episodes.py                              # 70,000 and 1,200,000 tokens of what Python ships
    python tools/bench/episodes.py --model SmolLM2.gguf --text handbook.txt --text manual.txt
    python tools/bench/episodes.py --json tools/bench/results/episodes-cpu.json

Times are of one processor, so that a busy machine does not count. The peers are given the texts of the same segments,
and a ratio says how many times ours they take; bm25s is left out where it is not installed. The hit rate is how many
of the questions of ``sets/`` have their passage in the first 1, 4 and 8 segments that words alone find, with all the
text around them; the questions on turns are searched among the turns. Exit 1 when a limit is missed.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import sqlite3
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(ROOT), str(Path(__file__).resolve().parent)]

import numpy as np  # noqa: E402
from _recall_set import Question, RecallSet, filler, holds, load  # noqa: E402

from atlas_kit.episodes import TURNS, EpisodeArrays, Episodes, Kind, Segment  # noqa: E402

MODEL = ROOT / "sample_data" / "models" / "tiny-python.gguf"
SIZES = (70_000, 1_200_000)
#: Seconds of one processor: a million tokens from text until they can be asked, and from arrays; one search.
LIMITS = {"text": 30.0, "load": 1.0, "search": 0.005}
COUNTS = (1, 4, 8)
ROUNDS = 5

Search = Callable[[str, bool], list[Segment]]


def clocked(work: Callable[[], Any]) -> tuple[float, Any]:
    """Return the processor time of some work, in seconds, and what came of it."""
    start = time.process_time()
    value = work()
    return time.process_time() - start, value


def texts(paths: Sequence[Path]) -> list[tuple[str, str]]:
    """Return names and texts of documents: those that were asked for, else help topics and modules of Python."""
    if paths:
        return [(path.name, path.read_text(encoding="utf-8")) for path in paths]
    found = [(episode.source, episode.text) for episode in filler()]
    folder = Path(statistics.__file__).parent
    for path in sorted([*folder.glob("*.py"), *folder.glob("*/*.py")]):
        if "site-packages" not in path.parts:
            found.append((path.name, path.read_text(encoding="utf-8", errors="replace")))
    return found


class Library:
    """A tokeniser's episodes: documents up to so many tokens, and the sets of questions behind them."""

    def __init__(self, model: Path, documents: list[tuple[str, str]], size: int) -> None:
        from atlas_kit.llama.llama_engine import LlamaEngine

        self.engine = LlamaEngine(model, n_ctx=256, n_threads=1)
        self.store = self.empty()
        self.seconds = 0.0
        for name, text in documents:
            if len(self.store) >= size:
                break
            self.seconds += clocked(lambda name=name, text=text: self.read(Kind.DOCUMENT, name, text, size))[
                0
            ]

    def empty(self) -> Episodes:
        """Return a store without a bound that counts here."""
        return Episodes(self.engine.piece, self.engine.info.n_vocab, limit=1 << 24)

    def read(self, kind: Kind, source: str, text: str, size: int = 1 << 30) -> None:
        """Read a document or a turn, up to so many tokens of all."""
        tokens = self.engine.tokenize(text)
        self.store.begin(kind, source, len(self.store))
        self.store.append(tokens[: max(0, size - len(self.store))])

    def loaded(self, arrays: EpisodeArrays) -> Episodes:
        """Return a store of what was saved."""
        return Episodes.from_arrays(arrays, self.engine.piece, self.engine.info.n_vocab, limit=1 << 24)

    def add(self, recall_set: RecallSet) -> None:
        """Read all that a set asks about."""
        for episode in recall_set.episodes:
            self.read(Kind[episode.kind.upper()], episode.source, episode.text)


def ours(store: Episodes) -> Search:
    """Return our search: among all, or among turns."""

    def search(question: str, turns: bool) -> list[Segment]:
        found = store.search(question, COUNTS[-1], kinds=TURNS if turns else None)
        return [hit.segment for hit in found]

    return search


def segments_of(store: Episodes) -> list[tuple[Segment, str]]:
    """Return all segments with their texts, as the peers index them."""
    segments = [store.segment(block) for block in range(store.blocks)]
    return [(segment, store.text(segment.start, segment.stop)) for segment in segments]


def apart(ranked: list[Segment]) -> list[Segment]:
    """Leave out what overlaps something better, as ours does."""
    best: list[Segment] = []
    for segment in ranked:
        if all(segment.stop <= other.start or other.stop <= segment.start for other in best):
            best.append(segment)
    return best[: COUNTS[-1]]


def fts5(segments: list[tuple[Segment, str]]) -> Search:
    """SQLite's full-text index, in memory; turns in a table of their own."""
    base = sqlite3.connect(":memory:")
    for table in ("everything", "turns"):
        base.execute(f"CREATE VIRTUAL TABLE {table} USING fts5(text, content='')")
    rows = [(number, text) for number, (_, text) in enumerate(segments)]
    base.executemany("INSERT INTO everything(rowid, text) VALUES (?, ?)", rows)
    turns = [row for row in rows if segments[row[0]][0].kind in TURNS]
    base.executemany("INSERT INTO turns(rowid, text) VALUES (?, ?)", turns)

    def search(question: str, turns: bool) -> list[Segment]:
        asked = " OR ".join(f'"{word}"' for word in dict.fromkeys(re.findall(r"\w+", question)))
        table = "turns" if turns else "everything"
        query = f"SELECT rowid FROM {table} WHERE {table} MATCH ? ORDER BY rank LIMIT ?"
        found = base.execute(query, (asked, 2 * COUNTS[-1])).fetchall()
        return apart([segments[number][0] for (number,) in found])

    return search


def bm25s_search(segments: list[tuple[Segment, str]]) -> Search:
    """The package bm25s, with its own tokeniser and no stop words; turns in an index of their own."""
    import bm25s

    def index(some: list[tuple[Segment, str]]) -> Any:
        retriever = bm25s.BM25(k1=1.2, b=0.75)
        tokens = bm25s.tokenize([text for _, text in some], stopwords=None, show_progress=False)
        retriever.index(tokens, show_progress=False)
        return retriever, [segment for segment, _ in some]

    turns_only = [row for row in segments if row[0].kind in TURNS]
    indices = {False: index(segments), True: index(turns_only) if turns_only else None}

    def search(question: str, turns: bool) -> list[Segment]:
        retriever, known = indices[turns]
        asked = bm25s.tokenize([question], stopwords=None, show_progress=False)
        found, _ = retriever.retrieve(asked, k=min(2 * COUNTS[-1], len(known)), show_progress=False)
        return apart([known[int(number)] for number in found[0]])

    return search


PEERS: dict[str, Callable[[list[tuple[Segment, str]]], Search]] = {"FTS5": fts5, "bm25s": bm25s_search}


def hit_rates(store: Episodes, search: Search, recall_set: RecallSet) -> dict[str, list[float]]:
    """Return for documents and turns how many questions have their passage in the first few segments."""
    ranks: dict[str, list[int]] = {"documents": [], "turns": []}
    for question in recall_set.questions:
        on_turns = recall_set.episodes[question.place].source == ""
        asked = " ".join([*(part for pair in question.before for part in pair), question.ask])
        ranks["turns" if on_turns else "documents"].append(_rank(store, search(asked, on_turns), question))
    return {
        name: [round(sum(rank < count for rank in some) / len(some), 3) for count in COUNTS]
        for name, some in ranks.items()
    }


def _rank(store: Episodes, segments: list[Segment], question: Question) -> int:
    found = (
        i for i, segment in enumerate(segments) if holds(store.text(segment.start, segment.stop), question)
    )
    return next(found, COUNTS[-1])


def measure(
    model: Path, documents: list[tuple[str, str]], size: int, recall_set: RecallSet
) -> dict[str, Any]:
    """Return all figures at one size."""
    library = Library(model, documents, size)
    store, questions = library.store, [question.ask for question in recall_set.questions]
    first, _ = clocked(lambda: store.search(questions[0], 8))
    arrays = store.arrays()
    loads = [clocked(lambda: library.loaded(arrays).search(questions[0], 8))[0] for _ in range(ROUNDS)]
    n = len(store)
    library.add(recall_set)
    row: dict[str, Any] = {
        "tokens": n,
        "blocks": store.blocks,
        "bytes a token": round(sum(getattr(arrays, name).nbytes for name in _ROWS) / n, 2),
        "ours": _figures(store, ours(store), questions, recall_set),
    }
    row["ours"] |= {"text": library.seconds + first, "load": statistics.median(loads)}
    segments = segments_of(store)
    for name, build in PEERS.items():
        try:
            seconds, search = clocked(lambda build=build: build(segments))
        except (ImportError, sqlite3.OperationalError) as error:
            print(f"  {name} is left out: {error}", file=sys.stderr)
            continue
        row[name] = {"load": seconds, **_figures(store, search, questions, recall_set)}
    return row


_ROWS = ("tokens", "block_start", "episode_start", "kind", "source", "time_ms", "position", "line")


def _figures(
    store: Episodes, search: Search, questions: Sequence[str], recall_set: RecallSet
) -> dict[str, Any]:
    search(questions[0], False)
    times = [clocked(lambda asked=asked: search(asked, False))[0] for asked in questions]
    return {"search": statistics.median(times), "hits": hit_rates(store, search, recall_set)}


def show(row: dict[str, Any]) -> bool:
    """Print one size; return whether the limits are kept."""
    print(f"{row['tokens']:,} tokens, {row['blocks']:,} blocks, {row['bytes a token']} bytes a token")
    million = row["tokens"] / 1e6
    mine, kept = row["ours"], True
    for name, what in (
        ("text", "from text until it can be asked"),
        ("load", "from arrays"),
        ("search", "one search"),
    ):
        limit = LIMITS[name] * (1 if name == "search" else max(1.0, million))
        kept &= mine[name] <= limit
        peers = [
            f"{row[p][name] / mine[name]:.1f} times that with {p}" for p in PEERS if name in row.get(p, ())
        ]
        print(
            f"  {what}: {1000 * mine[name]:,.1f} ms of {1000 * limit:,.0f} allowed; {', '.join(peers)}".rstrip(
                "; "
            )
        )
    for where in ("documents", "turns"):
        for name in ("ours", *PEERS):
            if name in row:
                hits = ", ".join(f"{100 * part:.0f} %" for part in row[name]["hits"][where])
                print(f"  {where}, the right one in the first {COUNTS}, {name}: {hits}")
    return kept


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", type=Path, default=MODEL, help="whose tokens it is counted in")
    parser.add_argument("--text", type=Path, action="append", default=[], help="a document; can be repeated")
    parser.add_argument("--tokens", type=int, action="append", help="how many to read; can be repeated")
    parser.add_argument("--set", default="report", help="questions: tune or report")
    parser.add_argument("--json", type=Path, help="write the figures to a file")
    given = parser.parse_args()
    documents, recall_set = texts(given.text), load(given.set)
    kept, rows = True, []
    for size in given.tokens or SIZES:
        rows.append(measure(given.model, documents, size, recall_set))
        kept &= show(rows[-1])
    if given.json:
        about = {
            "date": date.today().isoformat(),
            "processor": platform.processor() or platform.machine(),
            "python": platform.python_version(),
            "numpy": np.__version__,
            "sqlite": sqlite3.sqlite_version,
            "model": given.model.name,
            "text": [path.name for path in given.text] or ["Python's help topics and modules"],
            "set": given.set,
        }
        given.json.write_text(json.dumps({**about, "rows": rows}, indent=1) + "\n", encoding="utf-8")
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
