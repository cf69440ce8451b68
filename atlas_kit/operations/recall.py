"""Does a memory recall? Plant facts in a text, bury them under more of it, ask.

One stream of tokens for all: filler, the facts with some filler between them, filler. When ``distance`` tokens have
come since a fact, its beginning is fed once more, and what follows greedily is compared with what followed then: by
the model alone, by model and learned memory (with the window), from the same context, and by the whole memory, which
also finds what was read and reads it again. Asking leaves no trace, so every fact is asked at
every distance, and no question helps another one.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from atlas_kit.errors import InvalidParamError
from atlas_kit.llama.completing import complete
from atlas_kit.llama.engine import Engine
from atlas_kit.llama.recalling import recall_of
from atlas_kit.llama.sampling import Sampling
from atlas_kit.llama.session import AtlasSession

#: Filler before the first fact, from which the memory learns how much to trust itself, and between facts.
WARM_UP, BETWEEN = 512, 24
#: Tokens that a fact may take, roughly.
ROOM = 32
#: What a fact looks like: as far as ``{value}`` it is the question.
TEMPLATES = {"code": "KEY_{name} = {value}", "text": "The code of {name} is {value}."}
#: Values are the numbers between these.
LEAST, MOST = 1000, 9999


@dataclass(frozen=True)
class Fact:
    """One fact: its text as tokens, how many of them are the question, and the answer."""

    tokens: tuple[int, ...]
    question: int
    value: str


@dataclass
class Row:
    """Answers at one distance, in tokens.

    Attributes
    ----------
    reach
        What of all kept surely holds the fact: ``context``, ``window``, or (``learned memory``) nothing but that.
    right_model, right, right_recalled, right_given
        Facts whose answer came exactly: from the model alone, with learned memory and window, with the episodes, too;
        and from the model where the fact and the text around it stand right in front, as if it had been found for sure:
        what recalling can reach. None where the episodes are not asked.
    nats_model, nats
        Mean -log p of the whole answer: how far from sure.
    """

    distance: int
    reach: str
    facts: int = 0
    right_model: int = 0
    right: int = 0
    right_recalled: int | None = None
    right_given: int | None = None
    nats_model: float = 0.0
    nats: float = 0.0


@dataclass
class Recall:
    """What ``recall`` found.

    ``chance_value`` is what guessing any value gives, ``chance_planted`` guessing one of those that were planted.
    """

    model: str
    n_ctx: int
    facts: int
    seed: int
    template: str
    filler: str
    tokens: int
    example: str
    rows: list[Row]
    memory: dict[str, Any] = field(default_factory=dict)
    interrupted: bool = False

    exit_code = 0

    @property
    def chance_value(self) -> float:
        """Share of right answers that guessing numbers gives."""
        return 1 / (MOST - LEAST + 1)

    @property
    def chance_planted(self) -> float:
        """Share that guessing among the planted values gives."""
        return 1 / self.facts

    def to_json(self) -> dict[str, Any]:
        """Return the result as JSON-ready data."""
        rows = []
        for row in self.rows:
            shares = {"accuracy_model": _share(row.right_model, row), "accuracy": _share(row.right, row)}
            shares["accuracy_recalled"] = _share(row.right_recalled, row)
            shares["accuracy_given"] = _share(row.right_given, row)
            rows.append({**asdict(row), **shares})
        rest = {name: value for name, value in vars(self).items() if name != "rows"}
        return {
            **rest,
            "chance_value": self.chance_value,
            "chance_planted": self.chance_planted,
            "results": rows,
        }


def _share(right: int | None, row: Row) -> float | None:
    return right / row.facts if row.facts and right is not None else None


def recall(
    session: AtlasSession,
    *,
    facts: int = 20,
    distances: Sequence[int] = (128, 768, 4096),
    seed: int = 0,
    template: str | None = None,
    filler: str | None = None,
    progress: Callable[[str, int, int], None] | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> Recall:
    """Plant facts, bury them, ask; the session should be new, and has read everything afterwards.

    Parameters
    ----------
    facts
        How many; each is asked at every distance.
    distances
        Tokens between the end of a fact and its question.
    template
        Of a fact, with ``{name}`` before ``{value}``. None: an assignment for a model of programs, a sentence for
        others.
    filler
        Text to bury them under, long enough for the largest distance. None: text from a fixed generator, of the kind
        that the model expects more.
    progress
        Told what is done, tokens read and tokens in all.

    Raises
    ------
    InvalidParamError
        A number out of range, a template that does not fit, or too little filler.
    """
    check(facts, distances, template)
    assert session.memory is not None
    engine, rng = session.engine, random.Random(seed)
    style = "given" if filler is not None else _style(session)
    template = template or TEMPLATES[style if filler is None else "code" if _is_code(filler) else "text"]
    planted = _facts(engine, template, facts, rng)
    stream, ends = _stream(engine, planted, max(distances), filler, style, rng)
    result = Recall(
        engine.info.name, engine.n_ctx, facts, seed, template, style, len(stream),
        _text(engine, planted[0].tokens).strip(), [_row(session, distance) for distance in sorted(set(distances))],
    )  # fmt: skip
    events = sorted((end + row.distance, i, row) for i, end in enumerate(ends) for row in result.rows)
    at = 0
    for position, i, row in sorted(events, key=lambda event: event[:2]):
        while at < position and not result.interrupted:
            part = stream[at : min(position, at + engine.n_batch)]
            session.feed(part)
            at += len(part)
            result.interrupted = stop()
            if progress is not None:
                progress("reading and asking", at, len(stream))
        if result.interrupted:
            break
        _ask(session, planted[i], row, _around(session, stream, planted[i], ends[i]))
    for row in result.rows:
        if row.facts:
            row.nats_model, row.nats = row.nats_model / row.facts, row.nats / row.facts
    result.memory = session.memory.stats()
    return result


def check(facts: int, distances: Sequence[int], template: str | None) -> None:
    """Raise ``InvalidParamError`` for what ``recall`` would refuse, before a model is loaded for it."""
    if not 1 <= facts <= 1000:
        raise InvalidParamError(f"facts is {facts}", key="facts", hint="Choose 1 to 1000.")
    if not distances or any(not 1 <= distance <= 1 << 24 for distance in distances):
        raise InvalidParamError("a distance is 1 to 16777216 tokens", key="distances")
    if template is None:
        return
    name, value = template.find("{name}"), template.find("{value}")
    if template.count("{name}") != 1 or template.count("{value}") != 1 or name > value:
        raise InvalidParamError(
            "a template has {name} once, and {value} once after it", key="template",
            hint='Such as: "The code of {name} is {value}."',
        )  # fmt: skip


def _row(session: AtlasSession, distance: int) -> Row:
    assert session.memory is not None
    settings = session.memory.settings
    # a context that rolls over keeps between half of itself and all; a fact and its question take room, too
    if distance < session.engine.n_ctx // 2 - ROOM:
        return Row(distance, "context")
    if distance < settings.window_size - ROOM:
        return Row(distance, "window")
    if settings.window_size and distance < settings.window_size + settings.chunk_size:
        return Row(distance, "window's edge")  # what waits for its step has not pushed anything out yet
    return Row(distance, "learned memory" if session.memory.learns else "nothing")


# --- the text --------------------------------------------------------------------------------------------


def _facts(engine: Engine, template: str, count: int, rng: random.Random) -> list[Fact]:
    """Return facts with different names and different values."""
    values = rng.sample(range(LEAST, MOST + 1), count)
    names: dict[str, None] = {}
    while len(names) < count:
        names[_name(rng)] = None
    upper = "KEY_" in template
    return [
        _fact(engine, template, name.upper() if upper else name.title(), str(value))
        for name, value in zip(names, values, strict=True)
    ]


def _name(rng: random.Random) -> str:
    return "".join(rng.choice("bcdfghklmnprstvz") + rng.choice("aeiou") for _ in range(3))


def _fact(engine: Engine, template: str, name: str, value: str) -> Fact:
    """Return a fact as tokens; the question ends before the token that has the value's first letter."""
    before, after = template.replace("{name}", name).split("{value}")
    tokens = engine.tokenize(f"\n{before}{value}{after}\n")
    room = len(_bytes(engine, tokens)) - len(f"{value}{after}\n".encode())
    count = length = 0
    for token in tokens:
        length += len(engine.piece(token))
        if length > room:
            break
        count += 1
    return Fact(tuple(tokens), count, value)


def _bytes(engine: Engine, tokens: Sequence[int]) -> bytes:
    return b"".join(engine.piece(token) for token in tokens)


def _text(engine: Engine, tokens: Sequence[int]) -> str:
    return _bytes(engine, tokens).decode("utf-8", "replace")


def _stream(
    engine: Engine, planted: list[Fact], distance: int, filler: str | None, style: str, rng: random.Random
) -> tuple[list[int], list[int]]:
    """Return all tokens, and where each fact ends."""
    need = WARM_UP + len(planted) * BETWEEN + distance
    text = filler_text(style, need * 8, rng.randrange(1 << 30)) if filler is None else filler
    tokens = engine.tokenize(text)
    if len(tokens) < need:
        raise InvalidParamError(
            f"the filler has {len(tokens):,} tokens, and {need:,} are needed", key="filler",
            hint="Give a longer text, or smaller distances.",
        )  # fmt: skip
    stream, at, ends = tokens[:WARM_UP], WARM_UP, []
    for fact in planted:
        stream += fact.tokens
        ends.append(len(stream))
        stream += tokens[at : at + BETWEEN]
        at += BETWEEN
    return stream + tokens[at : at + max(0, ends[-1] + distance - len(stream))], ends


def _style(session: AtlasSession) -> str:
    """Return which of the generated texts the model expects more: ``code`` or ``text``."""
    losses = {}
    for style in TEMPLATES:
        sample = filler_text(style, 1000, 1)
        with session.aside():
            session.forget_context()
            fed = session.feed(sample)
        losses[style] = -float(fed.logprob[:, 0].sum()) / len(sample)
    return min(losses, key=lambda style: losses[style])


def _is_code(text: str) -> bool:
    """Guess whether a text is a program: many of its lines are indented, or end as statements do."""
    lines = [line for line in text.splitlines()[:2000] if line.strip()]
    marks = sum(bool(re.search(r"^(\s{4}|\t)|[:;{}()\],]\s*$|^\s*(#|//)", line)) for line in lines)
    return bool(lines) and marks > len(lines) / 2


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


_NOUNS = _words(
    "river garden window letter engine market teacher valley station lantern harbour orchard bridge village mirror "
    "ladder kitchen forest machine journey captain winter library shadow mountain painter railway supper carpet island"
)
_VERBS = _words(
    "crossed painted found repaired carried watched opened forgot followed measured counted visited described lifted "
    "answered collected hid bought remembered left"
)
_QUALITIES = _words(
    "old narrow quiet bright broken distant heavy green empty famous wooden careful slow silver round early hidden warm"
)


def filler_text(style: str, length: int, seed: int) -> str:
    """Return at least ``length`` characters of generated text, the same for the same seed.

    >>> filler_text("text", 60, 1)
    'Every machine found the empty letter and collected the round ladder. '
    """
    rng = random.Random(seed)
    parts: list[str] = []
    size = 0
    while size < length:
        parts.append(_function(rng) if style == "code" else _sentence(rng))
        size += len(parts[-1])
    return "".join(parts)


def _sentence(rng: random.Random) -> str:
    def thing() -> str:
        return f"the {rng.choice(_QUALITIES)} {rng.choice(_NOUNS)}"

    def did() -> str:
        return f"{rng.choice(_VERBS)} {thing()}"

    forms = (
        lambda: f"{thing()} {did()} near {thing()}",
        lambda: f"every {rng.choice(_NOUNS)} {did()} and {did()}",
        lambda: f"before {thing()} {did()}, nobody {did()}",
        lambda: f"{rng.choice(_QUALITIES)} as {thing()} was, it {did()} in {rng.randrange(2, 90)} days",
    )
    text = rng.choice(forms)()
    return f"{text[0].upper()}{text[1:]}.{rng.choice('    ' + chr(10))}"


def _function(rng: random.Random) -> str:
    verb, noun, other, quality = (
        rng.choice(_VERBS), rng.choice(_NOUNS), rng.choice(_NOUNS), rng.choice(_QUALITIES),
    )  # fmt: skip
    bodies = (
        f"    return [{noun} for {noun} in {other}s if {noun}.{quality} > {rng.randrange(100)}]\n",
        f"    for {noun} in {other}s:\n        if not {noun}.{quality}:\n            continue\n"
        f"        self.{verb}({noun})\n",
        f"    {quality} = len({other}s) % {rng.randrange(2, 50)}\n    if {quality}:\n"
        f'        raise ValueError("{quality} {noun}")\n    return {quality}\n',
        f"    try:\n        {noun} = {other}s.pop()\n    except KeyError:\n        return None\n"
        f"    return {noun}.{verb}\n",
    )
    return f"def {verb}_{noun}(self, {other}s):\n{rng.choice(bodies)}\n"


# --- asking ----------------------------------------------------------------------------------------------


def _around(session: AtlasSession, stream: Sequence[int], fact: Fact, stop: int) -> Sequence[int]:
    """Return a fact, which ends there, with the text before and behind it: as many tokens as are read for an answer.

    Nothing where the context has no room for the fact, its question and an answer.
    """
    length = len(fact.tokens)
    room = session.engine.n_ctx * 3 // 4 - length
    more = (min(recall_of(None).tokens, room) - length) // 2
    return stream[max(0, stop - length - more) : stop + more] if more >= 0 else ()


def _ask(session: AtlasSession, fact: Fact, row: Row, given: Sequence[int]) -> None:
    """Ask for one fact, the model alone and then with its memory, and count."""
    question = fact.tokens[: fact.question]
    rest = fact.tokens[fact.question :]
    row.facts += 1
    row.right_model += _answered(session, question, fact, alone=True)
    row.right += _answered(session, question, fact, alone=False)
    if (
        session.episodes is not None
        and session.memory is not None
        and session.memory.settings.recall != "off"
    ):
        text, _ = complete(session, question, len(rest))
        row.right_recalled = (row.right_recalled or 0) + _is_right(text, fact)
        if given:
            text, _ = complete(session, question, len(rest), given=given)
            row.right_given = (row.right_given or 0) + _is_right(text, fact)
    count = _answer_length(session.engine, rest, fact.value)
    with session.aside():
        logprob = session.feed([*question, *rest[:count]]).logprob[-count:]
    row.nats_model -= float(np.sum(logprob[:, 0]))
    row.nats -= float(np.sum(logprob[:, 1]))


def _answered(session: AtlasSession, question: Sequence[int], fact: Fact, *, alone: bool) -> bool:
    """Tell whether the answer that comes greedily is the right one."""
    count = len(fact.tokens) - len(question)
    with session.aside():
        if alone:
            session.memory = None
        session.feed(question, score=False)
        answer = session.generate(max_tokens=count, sampling=Sampling(temperature=0))
        text = "".join(map(str, answer))
    return _is_right(text, fact)


def _is_right(text: str, fact: Fact) -> bool:
    return re.match(rf"\s*{re.escape(fact.value)}(?!\w)", text) is not None


def _answer_length(engine: Engine, tokens: Sequence[int], value: str) -> int:
    """Return how many tokens have the value in them."""
    return next(n for n in range(1, len(tokens) + 1) if value in _text(engine, tokens[:n]))
