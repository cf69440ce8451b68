"""What tools/bench/recall.py measures of atlas_kit: one process reads and saves, another loads and is asked.

The set's own documents and turns are read by the model, so that the learned memory knows what it can; the text around
them is only stored. Every question is asked alone and leaves no trace. A follow-up has the exchange before it in the
model's context, as in a conversation that goes on.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from atlas_kit.episodes import Kind
from atlas_kit.llama import AtlasSession
from atlas_kit.llama.asking_prompts import template_of
from atlas_kit.llama.llama_engine import LlamaEngine
from atlas_kit.llama.recalling import Recall
from atlas_kit.settings.recommend import recommend
from tools.bench._recall_rivals import ANSWER
from tools.bench._recall_set import Episode, Question

KINDS = {"document": Kind.DOCUMENT, "user": Kind.USER, "assistant": Kind.ASSISTANT}


def read_and_save(
    model: str, file: Path, episodes: Sequence[Episode], read: frozenset[Episode], context: int, threads: int
) -> dict[str, Any]:
    """Read some episodes, store the others without reading them, and save; return how long what took."""
    seconds = {"read": 0.0, "store": 0.0}
    tokens = {"read": 0, "store": 0}
    with (
        LlamaEngine(model, n_ctx=context, n_threads=threads, n_batch=512) as engine,
        AtlasSession(engine, recommend(model).settings) as session,
    ):
        assert session.episodes is not None
        for episode in episodes:
            how = "read" if episode in read else "store"
            before, started = session.episodes.end, time.process_time()
            if how == "read":
                session.feed(episode.text, kind=KINDS[episode.kind], source=episode.source)
                session.forget_context()
            else:
                session.remember(KINDS[episode.kind], episode.text, source=episode.source)
            seconds[how] += time.process_time() - started
            tokens[how] += session.episodes.end - before
        started = time.process_time()
        session.save(file, context=False)
        return {
            "tokens": len(session.episodes),
            "blocks": session.episodes.blocks,
            "stored_tokens_per_cpu_second": tokens["store"] / max(seconds["store"], 1e-9),
            "read_tokens_per_cpu_second": tokens["read"] / max(seconds["read"], 1e-9),
            "save_cpu_seconds": time.process_time() - started,
            "bytes": file.stat().st_size,
        }


def load_and_ask(
    model: str, file: Path, questions: Sequence[Question], recall: dict[str, Any], kept: Path,
    context: int, threads: int,
) -> dict[str, Any]:  # fmt: skip
    """Load what was saved, and ask; return answers, what was looked at and taken, and times.

    Each answer is added to the file ``kept`` as it comes, and what is there already is not asked again, so that a run
    that was killed goes on.
    """
    known = {}
    if kept.exists():
        rows = [json.loads(line) for line in kept.read_text(encoding="utf-8").splitlines()]
        known = {(row["ask"], row["before"]): row for row in rows}
    found: dict[str, Any] = {}
    with LlamaEngine(model, n_ctx=context, n_threads=threads, n_batch=512) as engine:
        template = template_of(engine)
        started = time.process_time()
        with AtlasSession(engine, str(file), learn=False) as session:
            session.load(file)
            session.forget_context()
            found["load_cpu_seconds"] = time.process_time() - started
            assert session.episodes is not None
            started = time.process_time()
            session.episodes.search("What was the first question?", 4)
            found["index_cpu_seconds"] = time.process_time() - started
            for question in questions:
                if (question.ask, json.dumps(question.before)) not in known:
                    row = _asked(session, template, question, Recall(**recall))
                    known[question.ask, row["before"]] = row
                    with open(kept, "a", encoding="utf-8") as out:
                        out.write(json.dumps(row, ensure_ascii=False) + "\n")
    every = [known[question.ask, json.dumps(question.before)] for question in questions]
    found["search_cpu_seconds"] = statistics.median(row["search_cpu_seconds"] for row in every)
    for part in ("answer", "considered", "taken", "more"):
        found[part] = [row[part] for row in every]
    return found


def _asked(session: AtlasSession, template: Any, question: Question, recall: Recall) -> dict[str, Any]:
    """Ask one question; return what is kept of it."""
    assert session.episodes is not None
    started = time.process_time()
    session.episodes.search(question.ask, 8)
    searched = time.process_time() - started
    _talked(session, template, question)
    first: list[float] = []
    started = time.process_time()
    answer = session.ask(
        question.ask, recall=recall, keep=False, max_tokens=ANSWER, before=question.before or None,
        told=lambda _: first.append(time.process_time()),
    )  # fmt: skip
    if question.before:
        session.forget_context()
    return {
        "ask": question.ask,
        "before": json.dumps(question.before),
        "answer": answer.text,
        "search_cpu_seconds": searched,
        "considered": [piece.text for piece in answer.recalled.candidates],
        "taken": [piece.text for piece in answer.pieces],
        "more": {
            "gain": answer.recalled.gain,
            "pieces": [{"place": piece.place, "text": piece.text} for piece in answer.pieces],
            "first_token_seconds": answer.first_token,
            "first_token_cpu_seconds": (first[0] if first else time.process_time()) - started,
        },
    }


def _talked(session: AtlasSession, template: Any, question: Question) -> None:
    """Put the exchange before a question into the context."""
    if not question.before:
        return
    if template is None:
        text = "\n".join(f"Question: {asked}\nAnswer: {answered}" for asked, answered in question.before)
        session.feed([*session.engine.begin, *session.engine.tokenize(text)], kind=None)
        return
    messages = []
    for asked, answered in question.before:
        messages += [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]
    session.feed(template.tokens(messages, answer=False), kind=None)
