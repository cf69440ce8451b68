"""How much work a grammar makes for llama.cpp at the place where it is: refused before it is too much.

llama.cpp follows a grammar with stacks, one for each way in which what was said can be read. For a token of several
characters it tries every way on, and ways that meet again are tried twice: ``(" " | " ")*`` doubles them with every
space, and some vocabularies have a token of 64 spaces. So the same stacks are followed here, and the ways counted
along the vocabulary's own tokens, without trying them. Knows no llama.cpp.
"""

from __future__ import annotations

import bisect
import functools
import itertools
import threading
from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

import numpy as np

from atlas_kit.codecs.numbers import Array
from atlas_kit.errors import InvalidParamError
from atlas_kit.llama.grammar_rules import Chars, Rules, rules_of

#: Stacks that a grammar may have at once, and those looked at on the way to the next characters.
MOST_STACKS, MOST_ON_THE_WAY = 5_000, 20_000
#: Steps, of one way and one character of one token, for a look at the whole vocabulary. A JSON schema makes some
#: hundred thousand; llama.cpp takes a second for these.
MOST_STEPS = 50_000_000
#: Different sets of stacks, on the way through a vocabulary; and stacks in all that one look finds.
_MOST_SETS, _MOST_TRIED = 20_000, 500_000
#: Stacks that are kept for a grammar; each character of a text may make a new one.
_MOST_KEPT = 1 << 20
#: Those after which a grammar is begun anew for the next answer: it is shared by all that ask for the same.
_MANY_KEPT = 1 << 17
#: Bits of a character's number.
_BITS = 21
#: The end of a text: a stack with nothing on it.
_END = -1


class Vocabulary:
    """The tokens of a vocabulary as a tree of characters.

    Parameters
    ----------
    pieces
        The bytes of each token, as a grammar reads them.
    """

    def __init__(self, pieces: Sequence[bytes]) -> None:
        texts = [_whole(piece) for piece in pieces]
        letters = np.frombuffer("".join(texts).encode("utf-32-le", "surrogatepass"), np.uint32).astype(
            np.int64
        )
        lengths = np.array([len(text) for text in texts], np.int64)
        starts, node = np.cumsum(lengths) - lengths, np.zeros(len(texts), np.int64)
        parents, codes, levels = [np.zeros(1, np.int64)], [np.zeros(1, np.int64)], list[Array]()
        count, alive = 1, np.flatnonzero(lengths)
        while len(
            alive
        ):  # all tokens at once, one character further each time: there may be hundreds of thousands
            keys, which = np.unique(
                node[alive] << _BITS | letters[starts[alive] + len(levels)], return_inverse=True
            )
            parents.append(keys >> _BITS)
            codes.append(keys & ((1 << _BITS) - 1))
            levels.append(np.arange(count, count + len(keys), dtype=np.int32))
            node[alive] = count + which
            count += len(keys)
            alive = alive[lengths[alive] > len(levels)]
        self.parents, self.codes = np.concatenate(parents).astype(np.int32), np.concatenate(codes)
        self.weights, self.levels = np.bincount(node, minlength=count).astype(np.float64), levels


class Ways(NamedTuple):
    """Stacks and in how many ways each is reached, and all of these ways."""

    counts: tuple[tuple[int, int], ...]
    total: float


class Grammar:
    """A grammar's stacks; made once for a text and a vocabulary, as what was found out is of use to the next answer.

    Parameters
    ----------
    rules
        Its rules.
    vocabulary
        The tokens that it will be asked about.
    key
        The setting that it came in, for errors.
    """

    def __init__(self, rules: Rules, vocabulary: Vocabulary, key: str = "grammar") -> None:
        self._rules, self._vocabulary, self._key = rules, vocabulary, key
        self._lock = threading.RLock()  # some begin an answer while others go on with one
        #: Where each place of a rule is: a rule, an alternative, a part.
        self._places: list[tuple[int, int, int]] = []
        self._place_ids: dict[tuple[int, int, int], int] = {}
        #: Stacks: the top's place, and the stack below it.
        self._stacks: list[tuple[int, int]] = []
        self._stack_ids: dict[tuple[int, int], int] = {}
        self._behind: dict[int, tuple[int, ...]] = {}
        edges = {0}
        for rule in rules.rules:
            for parts in rule:
                for part in parts:
                    if isinstance(part, Chars):
                        for first, last in part.ranges:
                            edges |= {first, last + 1}
        #: Characters that no rule tells apart are one class.
        self._edges = sorted(edges)
        self._classes = np.searchsorted(np.array(self._edges), vocabulary.codes, side="right") - 1
        self._ways: list[Ways] = [Ways((), 0.0)]
        self._way_ids: dict[tuple[tuple[int, int], ...], int] = {(): 0}
        self._next: dict[tuple[int, int], int] = {}
        self._looked_at = set[int]()
        self._tried = 0
        self.start = self._started()

    def _started(self) -> tuple[int, ...]:
        """Return the stacks at the beginning."""
        root = self._rules.root
        begins = [self._pushed(_END, root, number, 0) for number in range(len(self._rules.rules[root]))]
        return self._bounded(dict.fromkeys(itertools.chain(*map(self._advanced, begins))))

    def _pushed(self, below: int, rule: int, alternative: int, part: int) -> int:
        """Return a stack with a place on top; where that is the end of its rule, what is below."""
        if part >= len(self._rules.rules[rule][alternative]):
            return below
        where = rule, alternative, part
        place = self._place_ids.setdefault(where, len(self._places))
        if place == len(self._places):
            self._places.append(where)
        stack = self._stack_ids.setdefault((place, below), len(self._stacks))
        if stack == len(self._stacks):
            self._stacks.append((place, below))
        return stack

    def _advanced(self, stack: int) -> list[int]:
        """Return the stacks that it becomes, on top of each of which is a character."""
        todo, seen, found = [stack], set[int](), []
        while todo:
            one = todo.pop()
            if one in seen:
                continue
            seen.add(one)
            if len(seen) > MOST_ON_THE_WAY:
                raise self._too_much()
            if one == _END:
                found.append(one)
                continue
            place, below = self._stacks[one]
            rule, alternative, at = self._places[place]
            part = self._rules.rules[rule][alternative][at]
            if isinstance(part, Chars):
                found.append(one)
                continue
            behind = self._pushed(below, rule, alternative, at + 1)
            todo += [self._pushed(behind, part, number, 0) for number in range(len(self._rules.rules[part]))]
        return found

    def _after(self, stack: int) -> tuple[int, ...]:
        """Return the stacks behind the character on top of one."""
        found = self._behind.get(stack)
        if found is None:
            place, below = self._stacks[stack]
            rule, alternative, at = self._places[place]
            found = self._behind[stack] = tuple(
                self._advanced(self._pushed(below, rule, alternative, at + 1))
            )
        return found

    def _takes(self, stack: int, number: int) -> bool:
        """Tell whether the character on top of a stack is of a class."""
        if stack == _END:
            return False
        code = self._edges[number]
        return any(first <= code <= last for first, last in self._part(stack).ranges)

    def _way(self, stacks: dict[int, int]) -> int:
        counts = tuple(sorted(stacks.items()))
        number = self._way_ids.setdefault(counts, len(self._ways))
        if number == len(self._ways):
            if number > _MOST_SETS:
                self._forget()
                raise self._too_much()
            self._ways.append(Ways(counts, float(sum(stacks.values()))))
        return number

    def _forget(self) -> None:
        """Forget what is known of ways, which another answer may find out anew."""
        self._ways, self._way_ids = [Ways((), 0.0)], {(): 0}
        self._next.clear()
        self._looked_at.clear()

    def _step(self, way: int, number: int) -> int:
        """Return the ways behind a character of a class; 0: there is none."""
        found = self._next.get((way, number))
        if found is None:
            stacks: dict[int, int] = {}
            for stack, count in self._ways[way].counts:
                if self._takes(stack, number):
                    for behind in self._after(stack):
                        stacks[behind] = stacks.get(behind, 0) + count
                if len(stacks) > MOST_ON_THE_WAY:
                    raise self._too_much()
            self._tried += len(stacks)
            if self._tried > _MOST_TRIED or sum(stacks.values()) > MOST_STEPS:
                raise self._too_much()
            found = self._next[way, number] = self._way(stacks)
        return found

    @property
    def used_up(self) -> bool:
        """Whether so much has come together that the next answer had better begin with another one."""
        return len(self._stacks) > _MANY_KEPT

    def require_bounded(self, stacks: Sequence[int]) -> None:
        """Refuse to go on where a look at the whole vocabulary would take too long.

        Raises
        ------
        InvalidParamError
            There are too many ways on.
        """
        with self._lock:
            self._look(stacks)

    def _look(self, stacks: Sequence[int]) -> None:
        if len(self._ways) > _MOST_SETS // 2:
            self._forget()
        self._tried = 0
        start, words, steps = self._way(dict.fromkeys(stacks, 1)), self._vocabulary, 0.0
        if start in self._looked_at:
            return
        at = np.zeros(len(words.codes), np.int64)
        at[0], width = start, len(self._edges)
        for level in words.levels:
            before = at[words.parents[level]]
            some = np.flatnonzero(before)
            if not len(some):
                break
            level = level[some]
            pairs, inverse = np.unique(before[some] * width + self._classes[level], return_inverse=True)
            behind = [self._step(*divmod(pair, width)) for pair in pairs.tolist()]
            steps += float((words.weights[level] * self._totals(pairs // width)[inverse]).sum())
            at[level] = np.array(behind, np.int64)[inverse]
            if steps > MOST_STEPS:
                raise self._too_much()
        self._looked_at.add(start)

    def _totals(self, ways: Array) -> Array:
        return np.array([self._ways[way].total for way in ways.tolist()])

    def said(self, stacks: Sequence[int], text: str) -> tuple[int, ...]:
        """Return the stacks behind a token's text.

        What stands for a token takes any: which one it is, llama.cpp knows.

        Raises
        ------
        InvalidParamError
            There are too many ways on.
        """
        with self._lock:
            tokens = [stack for stack in stacks if text and stack != _END and not self._part(stack).ranges]
            for char in text:
                number = self._class_of(char)
                taking = [stack for stack in stacks if self._takes(stack, number)]
                stacks = self._bounded(dict.fromkeys(itertools.chain(*map(self._after, taking))))
            return self._bounded(dict.fromkeys([*stacks, *itertools.chain(*map(self._after, tokens))]))

    def require_short(self, stacks: Sequence[int], text: str) -> None:
        """Refuse to ask about one token where that would take too long."""
        with self._lock:
            self._tried = 0
            way, steps = self._way(dict.fromkeys(stacks, 1)), 0.0
            for char in text:
                steps += self._ways[way].total
                way = self._step(way, self._class_of(char))
        if steps > MOST_STEPS:
            raise self._too_much()

    def _class_of(self, char: str) -> int:
        return bisect.bisect_right(self._edges, ord(char)) - 1

    def _part(self, stack: int) -> Chars:
        """Return the character on top of a stack."""
        rule, alternative, at = self._places[self._stacks[stack][0]]
        part = self._rules.rules[rule][alternative][at]
        assert isinstance(part, Chars)
        return part

    def _bounded(self, stacks: Collection[int]) -> tuple[int, ...]:
        if len(stacks) > MOST_STACKS or len(self._stacks) > _MOST_KEPT:
            raise self._too_much()
        return tuple(stacks)

    def _too_much(self) -> InvalidParamError:
        return InvalidParamError("there are too many ways to read a text by this grammar", key=self._key)


class Follower:
    """Where one answer is in a grammar.

    Parameters
    ----------
    grammar
        What is followed; it is shared.
    pieces
        The bytes of tokens.
    """

    def __init__(self, grammar: Grammar, pieces: Sequence[bytes]) -> None:
        self._grammar, self._pieces = grammar, pieces
        self._stacks, self._rest = grammar.start, b""
        grammar.require_bounded(self._stacks)

    def require_short(self, token: int) -> None:
        """Refuse a token about which to ask would take too long."""
        self._grammar.require_short(self._stacks, _whole(self._rest + self._pieces[token]))

    def require_bounded(self) -> None:
        """Refuse to go on where a look at all tokens would take too long."""
        self._grammar.require_bounded(self._stacks)

    def accept(self, token: int) -> None:
        """Take note of a token that was chosen."""
        data = self._rest + self._pieces[token]
        text = _whole(data)
        self._rest = data[len(text.encode("utf-8", "surrogatepass")) :][:3]
        self._stacks = self._grammar.said(self._stacks, text)


def _whole(piece: bytes) -> str:
    """Return the characters that bytes begin with."""
    try:
        return piece.decode()
    except UnicodeDecodeError as error:
        return piece[: error.start].decode()


class Grammars:
    """The grammars of a vocabulary that were asked for last.

    Parameters
    ----------
    pieces
        Returns the bytes of all tokens; called when the first grammar comes.
    """

    def __init__(self, pieces: Callable[[], Sequence[bytes]]) -> None:
        self._pieces = functools.cache(pieces)
        self._vocabulary = functools.cache(lambda: Vocabulary(self._pieces()))
        self._made = functools.lru_cache(maxsize=16)(self._make)

    def _make(self, text: str, key: str) -> Grammar | None:
        rules = rules_of(text, key)
        if rules is None:
            return None
        rules.require_bounded(key)
        return Grammar(rules, self._vocabulary(), key)

    def follower(self, text: str, key: str) -> Follower | None:
        """Return what follows a grammar; None where llama.cpp does not understand it.

        Raises
        ------
        InvalidParamError
            There are too many ways to read a text by it.
        """
        grammar = self._made(text, key)
        if grammar is not None and grammar.used_up:
            self._made.cache_clear()
            grammar = self._made(text, key)
        return None if grammar is None else Follower(grammar, self._pieces())
