"""Does a memory answer? Questions on what was read and said, after a restart, beside what a user would do otherwise.

    python tools/bench/recall.py --model smollm2            # the report half; make real-models fetches the models
    python tools/bench/recall.py --half tune                # the half that settings are chosen by
    python tools/bench/recall.py --half words               # 55 more questions to choose them by, in other words
    python tools/bench/recall.py --only alone --only ask --group turn
    python tools/bench/recall.py --save                     # also write tools/bench/results/recall-MODEL.json

Documents, a conversation and 100,000 tokens of other text are stored and saved, and a new process is asked.
``_recall_set.py`` says what is asked and when an answer is right, and every answer is in the results, to be read.
``_recall_rivals.py`` is what it is compared with: the model alone, the right passage put in front of the question
(the ceiling), and one or three segments that plain BM25 finds, all in one form. Those answers are kept in
``build/recall/`` and asked for once.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(ROOT)]

from atlas_kit.llama.llama_engine import LlamaEngine  # noqa: E402
from tools.bench._recall_rivals import Bm25, Reader, segments  # noqa: E402
from tools.bench._recall_set import (  # noqa: E402
    GENERAL,
    GROUPS,
    HALVES,
    WORDS,
    Episode,
    Question,
    RecallSet,
    filler,
    holds,
    is_mistaken,
    is_right,
    load,
)
from tools.bench.memory import RESULTS, machine_of  # noqa: E402
from tools.real_models import MODELS, OutOfReachError, fetch  # noqa: E402

KEPT = ROOT / "build" / "recall"
#: Columns of the table, and what they are.
COLUMNS = {
    "alone": "the model alone",
    "passage-200": "with the right 200 tokens",
    "passage-64": "with the right 64 tokens",
    "bm25-1": "BM25, one segment",
    "bm25-3": "BM25, three segments",
    "memory": "memory without recall",
    "ask": "**ask**",
}
#: Columns that answer the general questions, too.
WITH_GENERAL = ("alone", "bm25-1", "ask")
#: What a column's questions are asked with (``llama.recalling.Recall``), of those that atlas_kit answers.
ASKED = {"memory": {"mode": "off"}, "ask": {}}
#: Tokens of context that a question has, and how many are answered side by side.
CONTEXT, SIDE_BY_SIDE = 1536, 8


@dataclass
class Asked:
    """What a column said to the questions, in their order, and which texts it looked at and put in front."""

    answers: list[str]
    considered: list[list[str]] | None = None
    taken: list[list[str]] | None = None
    more: list[dict[str, Any]] | None = None


def stored(chosen: RecallSet) -> list[Episode]:
    """Return everything that is read and said: documents among others, the conversation in the middle of it."""
    others = list(filler())
    documents = [episode for episode in chosen.episodes if episode.source]
    turns = [episode for episode in chosen.episodes if not episode.source]
    found: list[Episode] = []
    step = len(others) // (2 * len(documents))
    for number, document in enumerate(documents):
        found += [*others[number * step : (number + 1) * step], document]
    rest = others[len(documents) * step :]
    return [*found, *rest[: len(rest) // 2], *turns, *rest[len(rest) // 2 :]]


# --- columns -------------------------------------------------------------------------------------------------


def alone(reader: Reader, chosen: RecallSet, questions: Sequence[Question]) -> Asked:
    """Ask the model without any text."""
    return Asked(reader.answers([reader.prompt(question) for question in questions]))


def with_passage(count: int) -> Callable[[Reader, RecallSet, Sequence[Question]], Asked]:
    """Return a column: the right passage, as many tokens of it, before the question."""

    def column(reader: Reader, chosen: RecallSet, questions: Sequence[Question]) -> Asked:
        texts = [
            [reader.passage(chosen.episodes[q.place], q, count)] if q.group != GENERAL else []
            for q in questions
        ]
        prompts = [reader.prompt(q, taken) for q, taken in zip(questions, texts, strict=True)]
        return Asked(reader.answers(prompts), taken=texts)

    return column


def with_bm25(count: int) -> Callable[[Reader, RecallSet, Sequence[Question]], Asked]:
    """Return a column: what plain BM25 finds for the question, and for those before, in front of it."""

    def column(reader: Reader, chosen: RecallSet, questions: Sequence[Question]) -> Asked:
        index = Bm25(segments(reader.engine, stored(chosen)))
        found = [
            index.best(" ".join([*(asked for asked, _ in q.before), q.ask]), max(count, 5)) for q in questions
        ]
        texts = [[segment.text for segment in best] for best in found]
        taken = [best[:count] for best in texts]
        prompts = [reader.prompt(q, best) for q, best in zip(questions, taken, strict=True)]
        return Asked(reader.answers(prompts), considered=texts, taken=taken)

    return column


RIVALS: dict[str, Callable[[Reader, RecallSet, Sequence[Question]], Asked]] = {
    "alone": alone,
    "passage-200": with_passage(200),
    "passage-64": with_passage(64),
    "bm25-1": with_bm25(1),
    "bm25-3": with_bm25(3),
}


def of_product(options: argparse.Namespace, path: str, chosen: RecallSet) -> dict[str, Any]:
    """Read, store and save in one process unless the last run did; return what is known of it."""
    from tools.bench._recall_product import read_and_save

    file = KEPT / f"{options.half}-{Path(path).stem}.atlas"
    about = file.with_suffix(".about.json")
    if not (options.reuse and file.exists() and about.exists()):
        KEPT.mkdir(parents=True, exist_ok=True)
        file.unlink(missing_ok=True)
        read = frozenset(chosen.episodes)
        told = _elsewhere(read_and_save, path, file, stored(chosen), read, CONTEXT, options.threads)
        about.write_text(json.dumps(told), encoding="utf-8")
        print(f"read and stored: {told['tokens']:,} tokens, {told['bytes'] / 1e6:.1f} MB", flush=True)
    known: dict[str, Any] = json.loads(about.read_text(encoding="utf-8"))
    return known | {"file": file}


def product(
    options: argparse.Namespace, path: str, file: Path, name: str, questions: Sequence[Question]
) -> tuple[Asked, dict[str, Any]]:
    """Return what a column of atlas_kit itself says in a new process, and how long what took."""
    from tools.bench._recall_product import load_and_ask

    recall = ASKED[name] | (options.recall if name == "ask" else {})
    kept = file.with_name(f"{file.stem}-{name}.jsonl")
    if not options.reuse:
        kept.unlink(missing_ok=True)
    found = _elsewhere(load_and_ask, path, file, list(questions), recall, kept, CONTEXT, options.threads)
    asked = Asked(*(found.pop(part) for part in ("answer", "considered", "taken", "more")))
    assert asked.more is not None
    if recall.get("mode") == "off":
        asked.considered = asked.taken = None
    for what in ("first_token_seconds", "first_token_cpu_seconds"):
        times = sorted(row[what] for row in asked.more)
        found[what] = {"median": statistics.median(times), "most": times[-1]}
    return asked, found


def _elsewhere(function: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


# --- results -------------------------------------------------------------------------------------------------


def row_of(question: Question, column: Asked, number: int) -> dict[str, Any]:
    """Return what a column did with a question, JSON-ready."""
    answer = column.answers[number]
    found: dict[str, Any] = {"answer": answer, "right": is_right(answer, question)}
    if is_mistaken(answer, question):
        found["mistaken"] = True
    for name in ("considered", "taken"):
        texts = getattr(column, name)
        if texts is not None and question.passage:
            found[f"hit_{name}"] = any(holds(text, question) for text in texts[number])
    if column.more is not None:
        found |= column.more[number]
    return found


def table(questions: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Count, for each group and column: questions, right answers, those from a look-alike, hits."""
    counts: dict[str, dict[str, Any]] = {}
    for row in questions:
        for group in (row["group"], "all") if row["group"] != GENERAL else (GENERAL,):
            of_group = counts.setdefault(group, {"questions": 0})
            of_group["questions"] += 1
            for name, said in row["columns"].items():
                column = of_group.setdefault(name, {})
                for what in ("right", "mistaken", "hit_considered", "hit_taken", "worse"):
                    if what in said:
                        column[what] = column.get(what, 0) + int(said[what])
    return counts


def show_hits(counts: dict[str, dict[str, Any]], columns: Sequence[str]) -> None:
    """Print how often the right segment was among those looked at, and among those put before the question."""
    for what in ("hit_considered", "hit_taken"):
        if any(what in counts["all"].get(name, {}) for name in columns):
            print(f"\n{'the right segment, ' + what[4:]:46}" + "".join(f"{name:>13}" for name in columns))
            for group in [*GROUPS, "all"]:
                if group in counts:
                    cells = [str(counts[group].get(name, {}).get(what, "")) for name in columns]
                    title = f"{GROUPS.get(group, group)}, of {counts[group]['questions']}"
                    print(f"{title:46}" + "".join(f"{cell:>13}" for cell in cells))


def show_mistaken(rows: Sequence[dict[str, Any]], name: str) -> None:
    """Print the answers of a column that say what a look-alike would, and where they come from."""
    for row in rows:
        said = row["columns"].get(name, {})
        if said.get("mistaken"):
            print(f"\n{row['ask']}\n  {said['answer']}\n  right would be: {row['key'][0]}")
            for piece in said.get("pieces", []):
                print(f"  from {piece['place']}: {' '.join(piece['text'].split())}")


def show(counts: dict[str, dict[str, Any]], columns: Sequence[str]) -> None:
    """Print the table."""
    print(f"\n{'right answers':46}" + "".join(f"{name:>13}" for name in columns))
    for group in [*GROUPS, "all", GENERAL]:
        if group not in counts:
            continue
        of_group = counts[group]
        cells = []
        for name in columns:
            said = of_group.get(name, {})
            mistaken = f" ({said['mistaken']})" if said.get("mistaken") else ""
            cells.append(f"{said.get('right', '-')}{mistaken}")
        title = f"{GROUPS.get(group, group)}, of {of_group['questions']}"
        print(f"{title:46}" + "".join(f"{cell:>13}" for cell in cells))
    print("In brackets: wrong, and what a look-alike or the fact before its correction says")


def measure(options: argparse.Namespace, path: str) -> dict[str, Any]:
    """Ask all columns that are wanted; return the results."""
    chosen = load(options.half)
    questions = [
        question
        for question in (*chosen.questions, *chosen.general)
        if not options.group or question.group in options.group
    ]
    columns = [name for name in COLUMNS if not options.only or name in options.only]
    found: dict[str, Asked] = {}
    with LlamaEngine(
        path, n_ctx=CONTEXT, n_sequences=SIDE_BY_SIDE, n_threads=options.threads, n_batch=512
    ) as engine:
        identity = engine.info.identity
        reader = Reader(engine, KEPT / f"answers-{identity[:12]}.jsonl")
        for name in columns:
            if name in RIVALS:
                asked = [q for q in questions if q.group != GENERAL or name in WITH_GENERAL]
                said = RIVALS[name](reader, chosen, asked)
                found[name] = _spread(said, asked, questions)
                print(f"{COLUMNS[name]}: asked", flush=True)
    times: dict[str, Any] = {}
    if any(name in ASKED for name in columns):
        times["stored"] = known = of_product(options, path, chosen)
        file = known.pop("file")
        for name in columns:
            if name in ASKED:
                asked = [q for q in questions if q.group != GENERAL or name in WITH_GENERAL]
                said, times[name] = product(options, path, file, name, asked)
                found[name] = _spread(said, asked, questions)
                print(f"{COLUMNS[name]}: asked", flush=True)
    rows = []
    for number, question in enumerate(questions):
        said = {
            name: row_of(question, column, number)
            for name, column in found.items()
            if column.answers[number] is not None
        }
        if question.group == GENERAL and "alone" in said:
            for one in said.values():
                one["worse"] = said["alone"]["right"] and not one["right"]
        rows.append({
            "group": question.group, "before": question.before, "ask": question.ask, "key": question.right,
            "columns": said,
        })  # fmt: skip
    counts = table(rows)
    return {
        "half": options.half, "recall": options.recall, "columns": columns, "table": counts, "times": times,
        "questions": rows,
    }  # fmt: skip


def _spread(said: Asked, asked: Sequence[Question], questions: Sequence[Question]) -> Asked:
    """Put a column's answers to some questions in the places of all."""
    places = {id(question): number for number, question in enumerate(asked)}

    def at(values: list[Any] | None) -> list[Any] | None:
        if values is None:
            return None
        return [values[places[id(q)]] if id(q) in places else None for q in questions]

    answers = at(said.answers)
    assert answers is not None
    return Asked(answers, at(said.considered), at(said.taken), at(said.more))


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    found = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    found.add_argument("--model", default="smollm2", help=f"{', '.join(MODELS)}, or a GGUF file (smollm2)")
    found.add_argument("--half", choices=[*HALVES, WORDS], default="report", help="which questions (report)")
    found.add_argument("--only", action="append", choices=list(COLUMNS), help="this column (more than once)")
    found.add_argument("--group", action="append", choices=[*GROUPS, GENERAL], help="these questions alone")
    found.add_argument("--threads", type=int, default=1, help="threads of llama.cpp (1)")
    found.add_argument(
        "--recall", type=json.loads, default={}, metavar="JSON", help='settings of ask: {"gate": 0.5}'
    )
    found.add_argument(
        "--reuse", action="store_true", help="go on with the memory and the answers of the last run"
    )
    found.add_argument("--save", action="store_true", help="write tools/bench/results/recall-MODEL.json")
    return found


def _short(value: Any) -> str:
    if isinstance(value, dict):
        return " ".join(f"{name} {_short(one)}" for name, one in value.items())
    return f"{value:,.3g}" if isinstance(value, float) else f"{value:,}"


def main() -> int:
    """Measure, print, and save if asked."""
    options = parser().parse_args()
    model = MODELS.get(options.model)
    try:
        path = str(fetch(model) if model else Path(options.model))
    except OutOfReachError as error:
        print(error, file=sys.stderr)
        return 1
    found = machine_of("llama.cpp", quick=False) | {"model": model.title if model else Path(path).name}
    found |= {"threads": options.threads, "cpus": multiprocessing.cpu_count()} | measure(options, path)
    show(found["table"], found["columns"])
    show_hits(found["table"], found["columns"])
    show_mistaken(found["questions"], "ask")
    for name, times in found["times"].items():
        print(f"\n{name}: " + ", ".join(f"{what} {_short(value)}" for what, value in times.items()))
    KEPT.mkdir(parents=True, exist_ok=True)
    text = json.dumps(found, indent=1, ensure_ascii=False) + "\n"
    name = model.name if model else Path(path).stem
    (KEPT / f"{options.half}-{name}.json").write_text(text, encoding="utf-8")
    if options.save:
        (RESULTS / f"recall-{name}.json").write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
