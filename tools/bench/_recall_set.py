"""The questions that tools/bench/recall.py asks, what is read before, and whether an answer is right.

A set is a folder in ``sets/``: documents (``*.txt``), a conversation (``talk.txt``, a turn a line), ``questions.json``
about both, and ``general.json`` with questions that have nothing to do with them. ``tune`` is there to choose settings
by, ``report`` is what is reported. ``words`` has documents alone, asked for in other words, for the same as ``tune``.
Knows nothing about models.

An answer is judged by its key words. ``right`` are alternatives, one of which must come, as whole words or with an
English ending; ``a & b`` wants both, ``burn*`` any word that begins so. Where one of ``wrong`` (what a look-alike or a
corrected fact would say) comes first, the answer is not right; where it comes alone, the answer was taken from it. Of a
corrected fact an answer may say first that the old one is over: "She has left the mill. Now she bakes."
"""

from __future__ import annotations

import functools
import json
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SETS = Path(__file__).resolve().parent / "sets"
HALVES = ("tune", "report")
#: What there is beside the halves: more questions to choose settings by.
WORDS = "words"
TALK = "talk.txt"
DOCUMENT, USER, ASSISTANT = "document", "user", "assistant"
#: Groups of questions, in the order of the table, and what they are.
GROUPS = {
    "near": "documents, in the text's words",
    "far": "documents, in other words",
    "turn": "facts in a conversation",
    "paraphrase": "facts in a conversation, without common words",
    "follow-up": "follow-up questions",
    "corrected": "facts that were corrected later",
    "look-alike": "facts with a look-alike",
    "language": "German, French, Chinese",
}
GENERAL, CORRECTED = "general", "corrected"
_SPACELESS = re.compile(r"[\u0e00-\u0eff\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]")
_ENDING = "(?:'?s|es|n)?"
#: Where a sentence ends, or turns to what is otherwise.
_SENTENCE = re.compile(r"(?<=[.;!?])\s+|[,;]?\s+but\s+")
#: What says of a sentence that what it names is over, and what says that it is not so.
_OVER = re.compile(
    r"(?:(?<!\w)(?:no longer|any ?more|used to|formerly|previously)|(?:(?<!\w)(?:has|have|had)|'s|'ve) (?:since )?"
    r"(?:left|quit|given up|gone from|moved (?:away )?(?:from|out of)|stopped|resigned|retired))(?!\w)"
)
_NOT_SO = re.compile(r"(?<!\w)(?:not|never|neither|nor)(?!\w)|n't(?!\w)")
#: Characters of a passage on each side of its key words, without which they say nothing.
_AROUND = 16


@dataclass(frozen=True)
class Episode:
    """A document or a turn: its kind, the file that it comes from (none for a turn), its text."""

    kind: str
    source: str
    text: str


@dataclass(frozen=True)
class Question:
    """A question, what a right answer says, and where that is written.

    ``before`` are earlier questions with their answers, which a follow-up leans on; ``place`` is the episode that holds
    ``passage``.
    """

    group: str
    ask: str
    right: tuple[str, ...]
    wrong: tuple[str, ...] = ()
    passage: str = ""
    place: int = -1
    before: tuple[tuple[str, str], ...] = ()

    @functools.cached_property
    def core(self) -> str:
        """The key words in the passage with a little around them: what a piece must hold to be the right one."""
        text = plain(self.passage)
        found = first(text, self.right)
        return text if found is None else text[max(0, found[0] - _AROUND) : found[1] + _AROUND].strip()


@dataclass(frozen=True)
class RecallSet:
    """What is read, and what is asked then."""

    name: str
    episodes: tuple[Episode, ...]
    questions: tuple[Question, ...]
    general: tuple[Question, ...] = field(default=())


def load(name: str, folder: Path | None = None) -> RecallSet:
    """Return a set by its name.

    Raises
    ------
    ValueError
        A passage does not stand where its question says, or stands there twice.
    """
    folder = folder or SETS / name
    episodes = [
        Episode(DOCUMENT, path.name, path.read_text(encoding="utf-8"))
        for path in sorted(folder.glob("*.txt"))
        if path.name != TALK
    ]
    for line in (folder / TALK).read_text(encoding="utf-8").splitlines():
        kind, text = line.split(": ", 1)
        episodes.append(Episode(kind, "", text))
    questions = tuple(_question(row, episodes) for row in _rows(folder / "questions.json"))
    general = tuple(_question(row, episodes) for row in _rows(folder / "general.json"))
    return RecallSet(name, tuple(episodes), questions, general)


def _rows(path: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
    return rows


def _question(row: dict[str, Any], episodes: Sequence[Episode]) -> Question:
    passage, place = row.get("passage", ""), -1
    if passage:
        where = "" if row["where"] == TALK else row["where"]
        places = [
            number
            for number, episode in enumerate(episodes)
            if episode.source == where and plain(passage) in plain(episode.text)
        ]
        if len(places) != 1:
            raise ValueError(f"{passage!r} stands {len(places)} times in {row['where']}")
        place = places[0]
    before = tuple((asked, answered) for asked, answered in row.get("before", ()))
    right, wrong = tuple(row["right"]), tuple(row.get("wrong", ()))
    return Question(row["group"], row["ask"], right, wrong, passage, place, before)


def filler() -> Iterator[Episode]:
    """Give documents that no question is about: the help topics of this Python."""
    from pydoc_data import topics

    for name, text in sorted(topics.topics.items()):
        yield Episode(DOCUMENT, f"{name}.txt", text)


# --- answers -------------------------------------------------------------------------------------------------


def plain(text: str) -> str:
    """Return a text as answers are compared: without case, marks of thousands, line ends and curly quotes."""
    text = unicodedata.normalize("NFKC", text).casefold().replace("’", "'")
    text = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", text)
    return " ".join(text.split())


@functools.lru_cache(maxsize=4096)
def _pattern(phrase: str) -> re.Pattern[str]:
    open_ended, phrase = phrase.endswith("*"), plain(phrase.rstrip("*"))
    exact = re.escape(phrase)
    if _SPACELESS.search(phrase):
        return re.compile(exact)
    word_end = "" if open_ended else _ENDING + r"(?!\w)"
    end = r"(?:st|nd|rd|th)?(?!\w|[.,:]\d)" if phrase[-1].isdigit() else word_end
    begin = r"(?<!\w)(?<!\d[.,:])" if phrase[0].isdigit() else r"(?<!\w)"
    return re.compile(begin + exact + end)


def first(text: str, phrases: Sequence[str]) -> tuple[int, int] | None:
    """Return where in a plain text the first of some phrases is complete, and where it ends; None if none comes."""
    places = []
    for phrase in phrases:
        parts = [_pattern(part.strip()).search(text) for part in phrase.split("&")]
        if all(parts):
            places.append(max((part.start(), part.end()) for part in parts if part))
    return min(places, default=None)


def is_right(answer: str, question: Question) -> bool:
    """Tell whether an answer says what it should, and says nothing wrong before."""
    text, outdated = plain(answer), False
    if question.group == CORRECTED:
        text, outdated = _without_what_is_over(text, question)
    right, wrong = first(text, question.right), first(text, question.wrong)
    if right is None or (outdated and _NOT_SO.search(text)):
        return False
    return wrong is None or right[0] <= wrong[0]


def _without_what_is_over(text: str, question: Question) -> tuple[str, bool]:
    """Leave out the sentences that only say of what is right or wrong that it is over; tell if any was wrong."""
    kept, outdated = [], False
    for sentence in _SENTENCE.split(text):
        over = _OVER.search(sentence)
        right, wrong = first(sentence, question.right), first(sentence, question.wrong)
        named = right or wrong
        if over is None or named is None or (right and wrong) or over.start() < named[1] <= over.end():
            kept.append(sentence)
        else:
            outdated = outdated or wrong is not None
    return " ".join(kept), outdated


def is_mistaken(answer: str, question: Question) -> bool:
    """Tell whether an answer is what the look-alike, or the fact before it was corrected, would give."""
    return not is_right(answer, question) and first(plain(answer), question.wrong) is not None


def holds(text: str, question: Question) -> bool:
    """Tell whether a piece of text holds the answer at its place."""
    return question.core in plain(text)
