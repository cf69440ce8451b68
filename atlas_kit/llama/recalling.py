"""What of the episodes is read again for a question: found by words, judged by the model, kept if it helps.

Candidates are the few sentences that are most like the question, by the model's vectors of its tokens and by words
(``atlas_kit.episodes``). The model reads them one after the other, each behind the same beginning, and gives the
likelihood of the question behind it, log p(question | piece). The likeliest is taken if it gains enough over
log p(question), and over log p(question | any text): the gate. Reading is what costs time, so the pieces that are
judged are short, and only the best one is read with what stands around it.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from atlas_kit.codecs.json_text import named
from atlas_kit.episodes import TURNS, Episode, Episodes, Found, Kind, Segment
from atlas_kit.episodes.arrays import place_of
from atlas_kit.episodes.cut import BLOCK_TOKENS
from atlas_kit.episodes.words import words
from atlas_kit.errors import InvalidParamError
from atlas_kit.llama.checking import SMALL
from atlas_kit.llama.excerpts import Window, grown, windows
from atlas_kit.llama.likeness import Near, Question, likeness_of
from atlas_kit.llama.steps import Work
from atlas_kit.settings.atlas_settings import RECALLS, AtlasSettings

if TYPE_CHECKING:
    from atlas_kit.llama.asking_prompts import Form
    from atlas_kit.llama.branching import Branch
    from atlas_kit.llama.engine import Engine

#: Segments that each search gives, of which the best together are read.
WIDE = 24
#: What searches among the turns alone, and for the same words, count beside that for what is like the question.
TURNS_WEIGHT, WORDS_WEIGHT = 0.0, 0.01
#: Segments, of those found together, in whose sentences the pieces are looked for; what a segment's score counts there.
SEARCHED, SEGMENT_WEIGHT = 64, 1.0
#: What the model itself said counts when pieces are looked for, as a part, unless it was asked for it: in a few words
#: it comments what was said (``How romantic!``), which would be judged in the place of what it comments.
ASSISTANT_PART = 0.4
#: What the user said counts at least, as a part of the answer to it that was found.
ANSWERED_PART = 0.9
#: Tokens of what was answered to a turn in which its likeness to a question is looked for, too.
ANSWER_TOKENS = 48
#: Tokens that stand around a piece when it is judged, the question included, about.
AROUND = 28
#: Tokens of a question that are judged; of a longer one the last.
JUDGED = 64
#: Tokens of a text that is still taken for a question.
LONGEST_QUESTION = 256
#: Tokens of context at the ends of a segment that need not be in the model's context for it to count as there.
SEAM = 2


#: Nats per token within which a later turn counts as a correction of an earlier one.
CLOSE = 0.3
#: Nats per token that what the model itself said counts less: it may be wrong, and would be its own source.
ASSISTANT_LESS = 0.5
#: What a correction gains, as a part of what the corrected one does: it seldom repeats all that the question says.
CORRECTS_FROM = 0.5
#: Letters that the forms of a word have in common, and earlier turns that are shown as corrected.
STEM, EARLIER = 5, 3
#: Words with which somebody says that something is otherwise than it was.
_CHANGES = frozenset(
    """
    now anymore longer instead changed moved actually correction corrected meanwhile replaced postponed
    cancelled canceled jetzt nun stattdessen geändert umgezogen inzwischen mittlerweile verschoben
    maintenant désormais finalement changé déménagé reporté
    ahora finalmente cambiado cambió
    """.split()  # noqa: SIM905 (a list of them would take a page)
)
_CHANGED = re.compile("现在|不再|改|换|搬|今は|変|지금|이제")
#: Words with which the model is asked for what it said itself.
_YOU = frozenset(
    """
    you your yours du dich dir dein deine deinen deiner deinem tu te toi ton ta tes vous votre vos usted ti
    """.split()  # noqa: SIM905
)
_YOU_SPACELESS = re.compile("[你您]|あなた|당신")
#: What of the context is judged, too, is as like the question as this part of the likest piece.
AS_LIKE = 0.5
#: Nats per token from which a piece need not gain more than the others.
CLEAR = 0.6
#: What is read in a piece's place, to tell what any text in front of a question makes of it.
ANY_TEXT = (
    "The weather was fine that day, and there was little to do. Thank you. That is all for today, and we go on with it "
    "tomorrow."
)
HELPS, STANDS = "it makes the question likelier", "what helps most stands in the context"
UNRELATED = "nothing that was found helps enough"


@dataclass(frozen=True)
class Recall:
    """How the memory is asked.

    Attributes
    ----------
    mode
        ``auto``: what the gate lets through; ``always``: the best that was found; ``off``: nothing.
    segments
        Pieces that are put before a question at most.
    gate
        Nats per token of the question that a piece must gain. Most of the right pieces gain 0.4 to 3.8; of
        SmolLM2-135M's 20 general questions (tune half) two gained more than this, and one of them stood out.
    candidates
        Pieces that the model reads to judge them, at most.
    window
        Tokens of a piece at most when it is judged.
    read
        Tokens that are read to judge them, at most, with the question behind each piece.
    lead
        Nats per token by which a piece that gains less than ``CLEAR`` must gain more than any other: on questions that
        have nothing to do with what was read all pieces gain alike.
    tokens
        Tokens of a piece at most when it is read for the answer: the sentences around it are read, too. Shorter ones
        lose more answers than a small model gains from reading less: of 44 questions SmolLM2-135M answered 30 from 112
        tokens, 27 from 80 and 26 from 64.
    sure
        Nats per token at which nothing else is read, if the words are clear, too.
    beyond
        Nats per token that a piece which gains less than ``sure`` must gain more than a text that has nothing to do
        with the question, beside the gate, where there is no chat template: alone, the question then stands at the
        beginning of everything, and behind any text it is likelier. Of 40 general questions (20 of the tune half) the
        best piece of 32 passed without this for gemma-3-270m, and none with it; of the 20 first in other words it
        refuses three of the seven right ones. Behind a template such a text costs SmolLM2-135M 0.9 on average.
    """

    mode: str = "auto"
    segments: int = 1
    gate: float = 0.1
    candidates: int = 12
    tokens: int = 112
    window: int = 80
    read: int = 480
    lead: float = 0.05
    sure: float = 2.0
    beyond: float = 0.6

    def __post_init__(self) -> None:
        if self.mode not in RECALLS:
            raise InvalidParamError(
                f"recall cannot be {self.mode!r:.40}", key="recall", hint=f"Choose {', '.join(RECALLS)}."
            )
        for name, least in (("segments", 1), ("candidates", 1), ("tokens", 8)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise InvalidParamError(f"{name} is {value!r:.40}", key=name, hint=f"At least {least}.")
        if not math.isfinite(self.gate):
            raise InvalidParamError(f"gate is {self.gate}", key="gate", hint="Choose a number of nats.")


def within(recall: Recall, form: Form, n_ctx: int, asked: Sequence[int]) -> Recall | None:
    """Return how to ask with as many pieces as a context has room for; None where there is none for a single one."""
    most = form.room(n_ctx, asked) // (recall.tokens + len(form.parts))
    if most < 1:
        return None
    return dataclasses.replace(recall, segments=min(recall.segments, most))


def recall_of(settings: AtlasSettings | None, **changes: Any) -> Recall:
    """Return how a memory of these settings is asked; without settings, as by default."""
    chosen = AtlasSettings() if settings is None else settings
    given = {"mode": chosen.recall, "segments": chosen.recall_segments, "gate": chosen.recall_gate}
    return Recall(**{**given, **changes})


@dataclass(frozen=True)
class Piece:
    """A piece of what was read or said earlier.

    Attributes
    ----------
    text
        What stands in it.
    kind, source, time_ms
        ``document`` or whose turn it was; the document's name; when it was read or said, milliseconds since 1970, UTC.
    start, stop
        Its absolute token positions among all that was stored.
    line
        The line of the document on which it starts, from 1.
    score
        How well the segment that it is of was found; about 1 for the best.
    gain
        Nats per token that it gains on the question; None where nobody read it.
    held
        It stands in the model's context, so that it is judged and not read again.
    segment
        Where the segment that it is of starts and stops, and the line there: what it can grow to.
    """

    text: str
    kind: str
    source: str
    time_ms: int
    start: int
    stop: int
    line: int
    score: float
    gain: float | None = None
    held: bool = False
    segment: tuple[int, int, int] | None = None

    @property
    def place(self) -> str:
        """Where and when it was read or said, for people."""
        return place_of(self.kind, self.source, self.line, self.time_ms)

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON-ready data."""
        found = dataclasses.asdict(self)
        source, _, _ = found.pop("source"), found.pop("held"), found.pop("segment")
        return {**named("source", source), **found}


@dataclass(frozen=True)
class Recalled:
    """What was found for a question.

    Attributes
    ----------
    pieces
        What is put before the question, in the order in which it was read or said; none where nothing helps.
    candidates
        All that the model judged, the likeliest first.
    gain
        The best one's, in nats per token; None where nothing was found.
    reason
        In a few words, why pieces were taken or not.
    earlier
        What was said earlier about the same, and what was taken corrects, the last first. It is not put before the
        question.
    """

    pieces: tuple[Piece, ...] = ()
    candidates: tuple[Piece, ...] = ()
    gain: float | None = None
    reason: str = "off"
    earlier: tuple[Piece, ...] = ()

    @property
    def unrelated(self) -> bool:
        """Whether the question has nothing to do with what is stored: the model alone answers it best."""
        return self.reason == UNRELATED


def candidates(
    engine: Engine, episodes: Episodes, question: str, recall: Recall, *, context: Sequence[int] = (),
    before: str = "",
) -> list[Piece]:  # fmt: skip
    """Return the pieces that may answer a question, those to read first at the front.

    They are found by words, and by what the model's vectors say is like them, among everything and among the turns.

    Parameters
    ----------
    context
        The tokens in the model's context: what is there is not read again. Beside others, the best of it is judged,
        too: it may correct them.
    before
        What was said before the question: where that alone says too little, it counts, too.
    """
    said = frozenset(words(question))
    leading = said.union(words(before))
    if not said or not len(episodes):
        return []
    arrays = episodes.arrays()
    text, count, likeness = f"{before} {question}".strip(), WIDE, likeness_of(engine, episodes)
    like = likeness.question(arrays, engine.tokenize(f" {text}"))
    rows = [
        (1.0, [_as_found(episodes, one) for one in likeness.search(arrays, like, count)]),
        (
            TURNS_WEIGHT,
            [_as_found(episodes, one) for one in likeness.search(arrays, like, count, kinds=TURNS)],
        ),
        (WORDS_WEIGHT, episodes.search(text, count)),
    ]
    held = np.asarray(context, np.int32).tobytes()
    pieces: list[Piece] = []
    there: Piece | None = None
    left = recall.read
    for segment, window, score in _windows(
        episodes, _with_answered(episodes, _merged(rows)), like, leading, min(recall.window, recall.tokens),
        question,
    ):  # fmt: skip
        start, stop = window.start, window.stop
        inside = episodes.text(start, stop)
        if not set(words(inside)) - said or _is_question(segment, inside):
            continue
        known = stands_in(episodes.tokens(start, stop), held)
        if known and there is not None:
            continue
        line = segment.line + episodes.text(segment.start, start).count("\n")
        kind = segment.kind.name.lower()
        piece = Piece(
            inside, kind, segment.source, segment.time_ms, start, stop, line, score,
            held=known, segment=(segment.start, segment.stop, segment.line),
        )  # fmt: skip
        if known:
            there = piece
            continue
        left -= window.size + AROUND
        if pieces and left < 0:
            break
        pieces.append(piece)
        if len(pieces) == recall.candidates:
            break
    if pieces and there is not None and there.score >= AS_LIKE * pieces[0].score:
        pieces.insert(0, there)
    return pieces


def _windows(
    episodes: Episodes, found: Sequence[Found], like: Question, said: frozenset[str], most: int, question: str
) -> Iterator[tuple[Segment, Window, float]]:
    """Give runs of sentences of what was found, those most like the question first; none overlaps another."""
    wants_all = not _YOU.isdisjoint(words(question)) or bool(_YOU_SPACELESS.search(question))
    every = [
        (window, segment, score, part)
        for segment, score in found[:SEARCHED]
        for part in (1.0 if wants_all else _part_of(episodes, segment),)
        for window in windows(episodes, segment, like, said, most, _answer_to(episodes, segment))
        if window.score > 0 or window.common
    ]
    best = max((window.score for window, *_ in every), default=0.0) or 1.0
    ranked = [
        ((part * (window.score / best + SEGMENT_WEIGHT * score), window.common, window.size), window, segment)
        for window, segment, score, part in every
    ]
    taken: list[Window] = []
    for (score, _, _), window, segment in sorted(ranked, key=lambda one: one[0], reverse=True):
        if not any(window.start < other.stop and other.start < window.stop for other in taken):
            taken.append(window)
            yield segment, window, score


def _as_found(episodes: Episodes, near: Near) -> Found:
    return Found(episodes.segment(near.block), near.score)


def _merged(rows: Sequence[tuple[float, Sequence[Found]]]) -> list[Found]:
    """Return what several searches found, best first: their scores, as parts of the best, weighed."""
    totals: dict[tuple[int, int], tuple[float, Segment]] = {}
    for weight, row in rows:
        for segment, score in row:
            place = segment.start, segment.stop
            before = totals[place][0] if place in totals else 0.0
            totals[place] = before + weight * score / row[0].score, segment
    return [Found(segment, total) for total, segment in sorted(totals.values(), key=lambda one: -one[0])]


def _with_answered(episodes: Episodes, found: Sequence[Found]) -> list[Found]:
    """Return what was found, and what the user said before each answer of the model in it, best first.

    A person asks for what was said in other words than it was said in, and often in those that the answer used: ``I am
    allergic to kiwis.``, ``Then better no fruit salad.``
    """
    totals = {(segment.start, segment.stop): (score, segment) for segment, score in found}
    for segment, score in found:
        if (turn := _asked_before(episodes, segment)) is None:
            continue
        start = max(turn.start, turn.stop - 2 * BLOCK_TOKENS)
        held, before = totals.get((start, turn.stop), (0.0, None))
        before = before or Segment(start, turn.stop, turn.kind, turn.source, turn.time_ms, 1)
        totals[start, turn.stop] = max(held, ANSWERED_PART * score), before
    return [Found(segment, total) for total, segment in sorted(totals.values(), key=lambda one: -one[0])]


def _answer_to(episodes: Episodes, segment: Segment) -> list[int]:
    """Return the first tokens of what the model answered to a turn of the user; none where it did not."""
    if segment.kind != Kind.USER or segment.stop >= episodes.end:
        return []
    answer = episodes.episode_at(segment.stop)
    if answer.kind != Kind.ASSISTANT or answer.start != segment.stop:
        return []
    return episodes.tokens(answer.start, min(answer.stop, answer.start + ANSWER_TOKENS))


def _asked_before(episodes: Episodes, segment: Segment) -> Episode | None:
    """Return the turn of the user that a segment answers, if it answers one."""
    if segment.kind != Kind.ASSISTANT or not segment.start:
        return None
    turn = episodes.episode_at(segment.start - 1)
    return turn if turn.kind == Kind.USER and turn.stop == segment.start else None


def _part_of(episodes: Episodes, segment: Segment) -> float:
    """Return what is said in a segment counts as: what the model said unasked counts less."""
    if segment.kind != Kind.ASSISTANT:
        return 1.0
    turn = _asked_before(episodes, segment)
    return 1.0 if turn and _asks(episodes.text(max(turn.start, turn.stop - 8), turn.stop)) else ASSISTANT_PART


def _is_question(segment: Segment, text: str) -> bool:
    """Tell whether somebody asked this: it shares most with a question like it, and says nothing."""
    return segment.kind == Kind.USER and _asks(text)


def _asks(text: str) -> bool:
    return text.rstrip().endswith(("?", "？"))


def stands_in(tokens: Sequence[int], held: bytes) -> bool:
    """Tell whether tokens stand among those of an int32 array; at their ends they may have been joined to others."""
    inside = tokens[SEAM:-SEAM] if len(tokens) > 3 * SEAM else tokens
    wanted, at = np.asarray(inside, np.int32).tobytes(), -1
    while (at := held.find(wanted, at + 1)) >= 0:
        if at % 4 == 0:
            return True
    return False


def recalling(
    branch: Branch, episodes: Episodes, form: Form, asked: Sequence[int], found: Sequence[Piece], recall: Recall, *,
    behind: tuple[Form, Sequence[int]] | None = None,
) -> Work[Recalled]:  # fmt: skip
    """Judge candidates by what they do for a question, in steps; leave the best one and the question in the branch.

    Where pieces are taken, the branch's context ends behind them and the question; ``form.behind`` and the answer
    come next.

    Parameters
    ----------
    asked
        The question's tokens.
    behind
        Where a follow-up is judged together with what was said before, in one text: the form in which that stands in
        front as a conversation, and the question alone. So it is answered.
    """
    if not found:
        return Recalled(reason="nothing was found")
    judged = asked[-JUDGED:]
    rest = asked[: len(asked) - len(judged)]
    start = branch.place()
    yield from branch.begin(form.before[:-1])
    begun, last = branch.place(), form.before[-1:]
    plain = yield from branch.likelihood([*last, *form.plain, *rest], judged)
    branch.back(begun)
    yield from branch.read([*last, *form.lead])
    led = branch.place()
    read: list[Piece] = []
    for number, piece in enumerate(found):
        branch.back(led)
        tokens = [*branch.plain(episodes.tokens(piece.start, piece.stop)), *form.middle, *rest]
        likelihood = yield from branch.likelihood(tokens, judged)
        gain = (likelihood - plain) / len(judged)
        piece = dataclasses.replace(piece, gain=gain)
        read.append(piece)
        if _sure(gain, found, number, recall):
            break
    said = frozenset(words(branch.text(asked)))
    ordered = newest_first(sorted(read, key=lambda piece: -_worth(piece)), recall, said)
    if recall.mode == "auto":
        passes = _taken(ordered[0], recall) and _stands_out(read, recall)
        if passes and not form.lead and _worth(ordered[0]) < recall.sure:
            branch.back(led)
            tokens = [*branch.written(ANY_TEXT), *form.middle, *rest]
            usual = ((yield from branch.likelihood(tokens, judged)) - plain) / len(judged)
            passes = _worth(ordered[0]) >= recall.gate + usual + recall.beyond
        if not passes:
            return Recalled((), tuple(ordered), ordered[0].gain, UNRELATED)
    if any(piece.held and _outdates(piece, ordered[0], recall) for piece in read):
        return Recalled((), tuple(ordered), ordered[0].gain, STANDS)
    likely = [piece for piece in ordered if not piece.held]
    taken = [piece for piece in likely[: recall.segments] if _taken(piece, recall)] or likely[:1]
    shown = [_grown(episodes, piece, recall) for piece in taken]
    shown.sort(key=lambda piece: piece.start)
    if behind is None:
        branch.back(begun)
    else:
        branch.back(start)
        form, asked = behind
        last = form.before
    yield from branch.read([*last, *branch.written(*told(form, shown, asked))])
    earlier = earlier_than(ordered[0], ordered, recall, said) if len(shown) == 1 else ()
    return Recalled(tuple(shown), tuple(ordered), ordered[0].gain, HELPS, earlier)


def told(form: Form, shown: Sequence[Piece], asked: Sequence[int]) -> Iterator[str | Sequence[int]]:
    """Give what is read for an answer: pieces, without the space around them, and the question."""
    yield form.lead
    for number, piece in enumerate(shown):
        yield form.parts if number else ()
        yield piece.text.strip()
    yield form.middle
    yield asked


def again(form: Form, shown: Sequence[Piece], asked: Sequence[int]) -> Iterator[str | Sequence[int]]:
    """Give what is read for another answer: the question, and what was read for the first one."""
    yield from ("Question:" if form.space else "Question: ", asked, "\n\n")
    yield from told(form, shown, asked)


def _outdates(there: Piece, first: Piece, recall: Recall) -> bool:
    """Tell whether what stands in the context is what helps most, or may correct that."""
    newer = (there.time_ms, there.start) >= (first.time_ms, first.start)
    return newer and _taken(there, recall) and (there.gain or 0.0) >= AS_LIKE * (first.gain or 0.0)


def newest_first(pieces: list[Piece], recall: Recall, said: frozenset[str] = frozenset()) -> list[Piece]:
    """Put in front, of turns that help nearly as much as the best one, the newest: what was said later corrects.

    So does the same document, read again later, and a later turn that helps less but is about the same as the best one:
    both hold a word that few of the others do, and the later one says that something is otherwise now, or holds all of
    the question's words that the best one does. Or it takes up what the best one says (``Doctor Marsh has retired``).
    Of SmolLM2-135M's 29 questions on corrected facts and look-alikes (tune half), the right turn was taken for 23
    without the question's words, and for 29 with them.

    Parameters
    ----------
    said
        The question's words.
    """
    first = pieces[0]
    close = [
        piece
        for piece in pieces
        if _worth(first) - _worth(piece) <= CLOSE
        and _taken(piece, recall)
        and (piece.kind != "document" if first.kind != "document" else piece.source == first.source)
        and (piece.kind != "assistant" or first.kind == "assistant")  # which corrects nobody else
    ]
    if first.kind == "document":  # within one reading of it, nothing corrects what stands before
        close = [piece for piece in close if piece.time_ms > first.time_ms]
    else:
        close += [piece for piece in pieces if _corrects(piece, first, pieces, recall, said)]
    newest = max(close, key=lambda piece: (piece.time_ms, piece.start), default=first)
    return [newest, *(piece for piece in pieces if piece is not newest)]


def earlier_than(
    newest: Piece, pieces: Sequence[Piece], recall: Recall, said: frozenset[str]
) -> tuple[Piece, ...]:
    """Return the turns about the same that a later one corrects, the last first."""
    found = [
        piece
        for piece in pieces
        if piece.kind == "user"
        and (piece.time_ms, piece.start) < (newest.time_ms, newest.start)
        and _taken(piece, recall)
        and not piece.held
        and _covers(piece, newest, said)
        and _corrects(newest, piece, pieces, recall, said)
    ]
    return tuple(sorted(found, key=lambda piece: (piece.time_ms, piece.start), reverse=True)[:EARLIER])


def _corrects(
    piece: Piece, first: Piece, pieces: Sequence[Piece], recall: Recall, said: frozenset[str]
) -> bool:
    """Tell whether a later turn of the user says that what stands in an earlier one is otherwise now."""
    if piece.kind != "user" or not _taken(piece, recall):
        return False
    if not piece.held and _answers_to(
        piece, first, pieces, said
    ):  # for what is in the context: ``_outdates``
        return True
    if _worth(piece) < CORRECTS_FROM * _worth(first):
        return False
    if not _changes(piece) and not (said and _covers(piece, first, said)):
        return False
    return _same_matter(piece, first, pieces)


def _answers_to(piece: Piece, first: Piece, pieces: Sequence[Piece], said: frozenset[str]) -> bool:
    """Tell whether a later turn takes up what an earlier one says: of the question, and of what answers it."""
    held = _said(pieces)
    common = frozenset(words(piece.text)).intersection(words(first.text)) - SMALL
    rare = {word for word in common if sum(word in one for one in held) <= 2}
    return bool(said) and not common.isdisjoint(said) and not _stems(rare) <= _stems(said)


def _changes(piece: Piece) -> bool:
    """Tell whether something says that it is otherwise now."""
    return not _CHANGES.isdisjoint(words(piece.text)) or bool(_CHANGED.search(piece.text))


def _covers(piece: Piece, first: Piece, said: frozenset[str]) -> bool:
    """Tell whether a piece holds all of the question's words that another one does, in any form."""
    asked = _stems(said - SMALL)
    return asked.intersection(_stems(words(first.text))) <= _stems(words(piece.text))


def _stems(found: Iterable[str]) -> set[str]:
    """Return the beginnings of words, which their forms have in common: leaves, leave."""
    return {word[:STEM].rstrip("s") if word.isascii() else word[:STEM] for word in found}


def _same_matter(one: Piece, other: Piece, pieces: Sequence[Piece]) -> bool:
    """Tell whether two turns are about the same: both hold a word that few of all pieces do."""
    if "document" in (one.kind, other.kind):
        return False
    held = _said(pieces)
    few = max(2, len(held) // 2)
    common = frozenset(words(one.text)).intersection(words(other.text))
    return any(sum(word in said for said in held) <= few for word in common)


def _said(pieces: Sequence[Piece]) -> list[frozenset[str]]:
    """Return the words of pieces, without answers that only repeat a user's: they make no word more common."""
    users = [frozenset(words(one.text)) for one in pieces if one.kind == "user"]
    others = [(one.kind, frozenset(words(one.text))) for one in pieces if one.kind != "user"]
    repeats = {held for kind, held in others if kind == "assistant" and any(held <= user for user in users)}
    return users + [held for _, held in others if held not in repeats]


def _taken(piece: Piece, recall: Recall) -> bool:
    return recall.mode == "always" or (piece.gain is not None and _worth(piece) >= recall.gate)


def _sure(gain: float, found: Sequence[Piece], number: int, recall: Recall) -> bool:
    """Tell whether nothing else need be read: words and model agree."""
    rivals = [piece.score for piece in found[number + 1 :]]
    return gain >= recall.sure and all(score < 0.6 * found[number].score for score in rivals)


def _stands_out(read: Sequence[Piece], recall: Recall) -> bool:
    """Tell whether the best piece gains much, or at least more than any other: what all of them do is chance."""
    best = max(read, key=_worth)
    rivals = [_worth(piece) for piece in read if piece is not best and not _same_matter(piece, best, read)]
    return _worth(best) >= CLEAR or _worth(best) - max(rivals, default=-math.inf) >= recall.lead


def _worth(piece: Piece) -> float:
    """Return what a piece counts, in nats per token: less where the model itself said it, which may be wrong."""
    return (piece.gain or 0.0) - (ASSISTANT_LESS if piece.kind == "assistant" else 0.0)


def _grown(episodes: Episodes, piece: Piece, recall: Recall) -> Piece:
    """Return a piece with the sentences around it, also of segments beside its own."""
    if piece.segment is None:
        return piece
    first, last, line = piece.segment
    begins, ends = episodes.episode_at(first)[:2]
    if ends >= last:  # what is of two turns, a question and its answer, is all that there is
        first, last = max(begins, piece.start - recall.tokens), min(ends, piece.stop + recall.tokens)
    segment = Segment(first, last, Kind[piece.kind.upper()], piece.source, piece.time_ms, line)
    start, stop = grown(episodes, segment, piece.start, piece.stop, recall.tokens)
    if (start, stop) == (piece.start, piece.stop):
        return piece
    line = piece.line - episodes.text(start, piece.start).count("\n")
    return dataclasses.replace(piece, text=episodes.text(start, stop), start=start, stop=stop, line=line)
