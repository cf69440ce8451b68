"""What tools/bench/recall.py compares with: the model alone, with the right passage, and with what plain BM25 finds.

All of them put a text before the question in one form, and answer greedily, several questions side by side. Answers
are kept in a file by their prompts' tokens, so that what was asked once is not asked again. Knows nothing of memories.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from atlas_kit.llama.asking_prompts import LEAD, MIDDLE, PARTS
from atlas_kit.llama.chat import ChatTemplate
from atlas_kit.llama.engine import Engine, Feed
from tools.bench._recall_set import Episode, Question

#: Tokens of an answer.
ANSWER = 40
#: Tokens of a block at most; a segment is two blocks of one episode.
BLOCK, SPAN = 128, 2
K1, B = 1.2, 0.75
_WORD = re.compile(r"[^\W_]+")
_SPACELESS = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]")


class Reader:
    """A model that answers questions with a text before them."""

    def __init__(self, engine: Engine, cache: Path | None = None) -> None:
        self.engine = engine
        self.template = ChatTemplate(engine) if engine.info.chat_template else None
        self._cache, self._known = cache, dict[str, str]()
        if cache is not None and cache.exists():
            with open(cache, encoding="utf-8") as file:
                self._known = dict(json.loads(line) for line in file)

    def prompt(self, question: Question, texts: Sequence[str] = ()) -> list[int]:
        """Return the tokens up to where the answer starts."""
        context = PARTS.join(text.strip() for text in texts)
        if self.template is not None:
            lead = LEAD + context + MIDDLE if context else ""
            messages = []
            for asked, answered in question.before:
                messages += [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]
            return self.template.tokens([*messages, {"role": "user", "content": lead + question.ask}])
        text = context + "\n\n" if context else ""
        for asked, answered in question.before:
            text += f"Question: {asked}\nAnswer: {answered}\n"
        return [*self.engine.begin, *self.engine.tokenize(f"{text}Question: {question.ask}\nAnswer:")]

    def answers(self, prompts: Sequence[Sequence[int]]) -> list[str]:
        """Return the greedy answers to some prompts, as many side by side as the engine has sequences."""
        keys = [hashlib.sha256(np.array(prompt, np.int32).tobytes()).hexdigest() for prompt in prompts]
        missing = {key: prompt for key, prompt in zip(keys, prompts, strict=True) if key not in self._known}
        for key, answer in self._fresh(missing.items()):
            self._known[key] = answer
            if self._cache is not None:
                self._cache.parent.mkdir(parents=True, exist_ok=True)
                with open(self._cache, "a", encoding="utf-8") as file:
                    file.write(json.dumps([key, answer], ensure_ascii=False) + "\n")
        return [self._known[key] for key in keys]

    def _fresh(self, prompts: Iterable[tuple[str, Sequence[int]]]) -> Iterator[tuple[str, str]]:
        engine, waiting = self.engine, deque(prompts)
        free = list(range(engine.n_sequences))
        at_work: dict[int, tuple[str, list[int], int]] = {}  # sequence: key, tokens of the answer, position
        while waiting or at_work:
            while waiting and free:
                key, prompt = waiting.popleft()
                sequence = free.pop()
                at_work[sequence] = (key, [self._read(sequence, prompt)], len(prompt))
            for sequence in [s for s, (_, answer, _) in at_work.items() if self._is_done(answer)]:
                key, answer, _ = at_work.pop(sequence)
                free.append(sequence)
                yield key, self._text(answer)
            if not at_work:
                continue
            feeds = [Feed(s, answer[-1:], position, 1) for s, (_, answer, position) in at_work.items()]
            for feed, out in zip(feeds, engine.decode(feeds), strict=True):
                key, answer, position = at_work[feed.sequence]
                at_work[feed.sequence] = (key, [*answer, int(out.logits[-1].argmax())], position + 1)

    def _read(self, sequence: int, prompt: Sequence[int]) -> int:
        """Read a prompt and return the likeliest token behind it."""
        engine = self.engine
        engine.forget(sequence)
        for start in range(0, len(prompt), engine.n_batch):
            part = prompt[start : start + engine.n_batch]
            last = start + len(part) == len(prompt)
            found = engine.decode([Feed(sequence, part, start, int(last))])[0]
        return int(found.logits[-1].argmax())

    def _is_done(self, answer: Sequence[int]) -> bool:
        if len(answer) >= ANSWER or self.engine.is_end(answer[-1]):
            return True
        return self.template is None and b"\n" in self._bytes(answer).lstrip()

    def _bytes(self, tokens: Sequence[int]) -> bytes:
        return b"".join(self.engine.piece(token) for token in tokens)

    def _text(self, tokens: Sequence[int]) -> str:
        text = self._bytes(tokens).decode("utf-8", "replace").strip()
        return text if self.template is not None else text.split("\n", 1)[0]

    def passage(self, episode: Episode, question: Question, count: int) -> str:
        """Return about ``count`` tokens of an episode with a question's passage in their middle."""
        pieces = [self.engine.piece(token) for token in self.engine.tokenize(episode.text)]
        ends = np.cumsum([len(piece) for piece in pieces])
        start, stop = _place(episode.text, question.passage)
        first = int(np.searchsorted(ends, start, side="right"))
        last = int(np.searchsorted(ends, stop, side="left")) + 1
        more = max(0, count - (last - first))
        first = max(0, min(first - more // 2, len(pieces) - count))
        return b"".join(pieces[first : max(last, first + count)]).decode("utf-8", "ignore")


def _place(text: str, passage: str) -> tuple[int, ...]:
    """Return where in the bytes of a text a passage begins and ends."""
    found = re.search(r"\s+".join(map(re.escape, passage.split())), text)
    assert found is not None, passage
    return tuple(len(text[:place].encode()) for place in found.span())


class Segment(NamedTuple):
    """A text, and the numbers of its first block and of the one behind its last."""

    text: str
    start: int
    stop: int


def segments(engine: Engine, episodes: Sequence[Episode]) -> list[Segment]:
    """Return the segments of episodes: two blocks each, a block being lines of at most ``BLOCK`` tokens."""
    found: list[Segment] = []
    number = 0
    for episode in episodes:
        blocks, count = [""], 0
        for line in episode.text.splitlines(keepends=True):
            cost = len(engine.tokenize(line))
            if count and count + cost > BLOCK:
                blocks.append("")
                count = 0
            blocks[-1] += line
            count += cost
        for first in range(max(1, len(blocks) - SPAN + 1)):
            part = blocks[first : first + SPAN]
            found.append(Segment("".join(part), number + first, number + first + len(part)))
        number += len(blocks)
    return found


def words(text: str) -> list[str]:
    """Return the words of a text; of scripts without spaces, pairs of characters."""
    found = []
    for word in _WORD.findall(text.casefold()):
        spaceless = _SPACELESS.search(word) and len(word) > 1
        found += [word[i : i + 2] for i in range(len(word) - 1)] if spaceless else [word]
    return found


class Bm25:
    """Okapi BM25 over some segments, as in any textbook."""

    def __init__(self, segments: Sequence[Segment]) -> None:
        documents = [words(segment.text) for segment in segments]
        lengths = np.array([len(document) for document in documents], np.float32)
        self._norm = K1 * (1 - B + B * lengths / max(1.0, float(lengths.mean())))
        rows: dict[str, list[tuple[int, int]]] = defaultdict(list)
        for number, document in enumerate(documents):
            for word, count in Counter(document).items():
                rows[word].append((number, count))
        self._rows = {word: np.array(row).T for word, row in rows.items()}
        self._segments = segments

    def best(self, question: str, count: int) -> list[Segment]:
        """Return the best segments, none of which shares a block with a better one."""
        scores = np.zeros(len(self._segments), np.float32)
        for word in set(words(question)) & self._rows.keys():
            places, times = self._rows[word]
            weight = math.log(1 + (len(scores) - len(places) + 0.5) / (len(places) + 0.5))
            scores[places] += weight * times * (K1 + 1) / (times + self._norm[places])
        found: list[Segment] = []
        for number in np.argsort(-scores, kind="stable"):
            one = self._segments[number]
            if len(found) < count and all(
                one.stop <= other.start or other.stop <= one.start for other in found
            ):
                found.append(one)
            if len(found) == count:
                break
        return found
