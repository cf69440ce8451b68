"""llama.cpp's samplers on logits that a memory may have changed.

llama_chain.py makes the chain; a bias comes before it. A grammar is asked about the chosen token first, and about the
whole vocabulary only when it refuses: asking about all of 128k tokens costs more than the model.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import secrets
import threading
from collections.abc import Callable, Iterable
from functools import cached_property
from typing import Any, TypeVar

import numpy as np

from atlas_kit.codecs.numbers import Array
from atlas_kit.errors import InvalidParamError
from atlas_kit.llama.engine import ModelInfo, encoded
from atlas_kit.llama.grammar_reach import Follower, Grammars
from atlas_kit.llama.llama_chain import Chain
from atlas_kit.llama.sampling import Floats, Sampling
from atlas_kit.llama.schema_grammar import schema_rules

#: What a grammar may have; at 20,000 nested parentheses, or as many rules in a chain, llama.cpp's stack is used up.
MOST_NESTED, MOST_RULES = 1000, 10_000
#: Characters, classes and rules that repetitions may write out all together; each is a few bytes, or a rule of its own.
MOST_REPEATED = 1 << 20
#: llama.cpp repeats something as often as it likes where more than this is allowed.
ENDLESS = 2000
#: What a grammar quotes: texts, classes of characters, tokens by their names, comments.
_QUOTED = re.compile(r'"(?:\\.|[^"\\])*"|\[(?:\\.|[^\]\\])*\]|<[^>]*>|#[^\r\n]*')
#: Repetitions, and what may stand before one.
_PARTS = re.compile(_QUOTED.pattern + r"|\{\s*(\d+)\s*(?:(,)\s*(\d*)\s*)?\}|[\w-]+|\S")
_SAYS = b"parse: error parsing grammar:"
_stderr = threading.Lock()
T = TypeVar("T")
#: Where more tokens than this may be chosen, or more have a bias, all are looked at.
_MOST_FEW = 128
_TOKEN_DATA = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])


class _Candidates:
    """An array of candidates that llama.cpp's samplers work on, and what it takes to hand it to them."""

    def __init__(self, api: Any, count: int) -> None:
        self._api, self._count = api, count
        self.rows = np.zeros(count, _TOKEN_DATA)
        self.ids, self.logits = self.rows["id"], self.rows["logit"]
        self._first = self.rows.ctypes.data_as(ctypes.POINTER(api.llama_token_data))
        self._array = api.llama_token_data_array()
        self._reference = ctypes.byref(self._array)

    def apply(self, sampler: Any, count: int | None = None) -> tuple[int, int]:
        """Apply a sampler in place, to the first ``count``; return the place that it selected and how many it left."""
        array = self._array
        array.data, array.selected, array.sorted = self._first, -1, False
        array.size = self._count if count is None else count
        self._api.llama_sampler_apply(sampler, self._reference)
        return int(array.selected), int(array.size)


class LlamaSampler:
    """A chain of llama.cpp's samplers; see ``Sampler``. ``ends``: tokens that are never chosen.

    ``grammars``: what is known of those of its vocabulary.
    """

    def __init__(
        self,
        api: Any,
        context: Any,
        vocab: Any,
        info: ModelInfo,
        sampling: Sampling,
        ends: Iterable[int] = (),
        *,
        grammars: Grammars,
    ) -> None:
        self._api, self._context = api, context
        self._n_vocab = info.n_vocab
        bias = {**sampling.logit_bias, **dict.fromkeys(ends, float("-inf"))}
        if unknown := [token for token in bias if not 0 <= token < info.n_vocab]:
            raise InvalidParamError(f"there is no token {unknown[0]}", key="logit_bias")
        # a grammar, and a bias that forbids everything, are seen before the chain comes; all else it does by itself
        free = sampling.grammar is None and sampling.json_schema is None
        chained = free and list(bias.values()).count(float("-inf")) < info.n_vocab
        self._biased = np.fromiter(() if chained else bias, np.int64)
        self._bias = np.fromiter(() if chained else bias.values(), np.float32)
        self._tells, self._greedy = sampling.tells, sampling.greedy
        # a temperature that follows the entropy may come so close to 0 that probabilities are no numbers any more
        self._checked = sampling.dynatemp_range > 0
        self.candidates: list[tuple[int, float]] = []
        self._looks_back = sampling.looks_back
        # a bias may raise a token from anywhere, or lower as many of the likeliest as there are biases
        lowers = chained and all(value <= 0 for value in bias.values())
        decided_by = sampling.decided_by if lowers else 0
        self.few = decided_by + len(bias) if 0 < decided_by <= _MOST_FEW >= len(bias) else 0
        self._chain = Chain(api, context, vocab, info.n_vocab, sampling).make(bias if chained else {})
        self._follower: Follower | None = None
        self._grammar = self._make_grammar(vocab, sampling, grammars)

    @cached_property
    def _all(self) -> _Candidates:
        """All tokens, made when they are needed first: llama.cpp takes most from its own outputs."""
        return _Candidates(self._api, self._n_vocab)

    @cached_property
    def _one(self) -> _Candidates:
        """One token, which a grammar is asked about."""
        return _Candidates(self._api, 1)

    @cached_property
    def _ids(self) -> Any:
        return np.arange(self._n_vocab, dtype=np.int32)

    def accept(self, tokens: Iterable[int]) -> None:
        """Take note of tokens that stand before what is chosen, for the penalties."""
        count = self._looks_back
        if not count:
            return
        known = list(tokens)
        for token in known if count < 0 else known[-count:]:
            self._api.llama_sampler_accept(self._chain, token)

    def _make_grammar(self, vocab: Any, s: Sampling, grammars: Grammars) -> Any:
        text, key = s.grammar, "grammar"
        if (schema := s.schema_text) is not None:
            text, key = schema_rules(schema), "json_schema"
        if text is None:
            return None
        text_bytes = encoded(text)
        _require_shallow(text, key)
        _require_finite(text, key)
        self._follower = grammars.follower(text, key)
        usable = text.strip() and b"\0" not in text_bytes  # llama.cpp takes none for one without rules
        make = self._api.llama_sampler_init_grammar
        grammar, said = _overheard(lambda: usable and make(vocab, text_bytes, b"root"), text_bytes)
        if not grammar:
            found = re.search(r"error parsing grammar: *(.*\S)", said)
            reason = f": {found[1]}" if found else ""
            reason = (
                f"{reason} its end" if reason.endswith(" at") else reason
            )  # llama.cpp quotes what is left there
            raise InvalidParamError(f"llama.cpp does not understand this grammar{reason}", key=key)
        if self._follower is None:  # what is not understood here cannot be bounded
            self._api.llama_sampler_free(grammar)
            raise InvalidParamError("this grammar is written in a way that is not understood", key=key)
        return grammar

    def sample(self, logits: Floats, index: int | None = None) -> int:
        """Choose a token from logits (n_vocab,), and accept it."""
        if (
            index is not None
            and self._grammar is None
            and not (len(self._bias) or self._tells or self._checked)
        ):
            return int(self._api.llama_sampler_sample(self._chain, self._context, index))
        token = self._choose(logits, constrained=False)
        if self._grammar is not None and self._follower is not None:
            self._follower.require_short(token)
            self._one.rows[0] = (token, 1.0, 0.0)
            self._one.apply(self._grammar)
            if not np.isfinite(self._one.logits[0]):
                self._follower.require_bounded()
                token = self._choose(logits, constrained=True)
            self._follower.accept(token)
            self._api.llama_sampler_accept(self._grammar, token)
        self._api.llama_sampler_accept(self._chain, token)
        return token

    def sample_among(self, tokens: Array, logits: Floats) -> int:
        """Choose among the likeliest tokens, and accept what is chosen."""
        some, count = self._all, len(tokens)
        some.ids[:count], some.logits[:count] = tokens, logits
        token = self._chosen(*some.apply(self._chain, count))
        self._api.llama_sampler_accept(self._chain, token)
        return token

    def _choose(self, logits: Floats, *, constrained: bool) -> int:
        every = self._all
        every.ids[:], every.logits[:] = self._ids, logits
        if len(self._bias):
            every.logits[self._biased] += self._bias
        if constrained:
            every.apply(self._grammar)
        if (constrained or len(self._bias)) and not np.isfinite(every.logits).any():
            if self._grammar is not None:
                raise InvalidParamError("no token can follow what the grammar allows", key="grammar")
            raise InvalidParamError("every token is forbidden by its bias", key="logit_bias")
        return self._chosen(*every.apply(self._chain))

    def _chosen(self, chosen: int, left: int) -> int:
        """Return the token that the chain chose of those it left, which it has moved to the front."""
        every = self._all
        if not 0 <= chosen < left:  # a distribution that is none, such as one of logits that are no numbers
            raise InvalidParamError("these samplers leave no token to choose", key="samplers")
        if self._checked and np.isnan(every.rows["p"][chosen]):
            chosen, every.rows["p"][:left] = 0, [1.0] + [0.0] * (left - 1)  # they are sorted by then
        if self._tells:
            self.candidates = self._left(chosen, left)
        return int(every.ids[chosen])

    def _left(self, chosen: int, left: int) -> list[tuple[int, float]]:
        """Return the tokens that the chain left, with the probabilities that it drew from."""
        if self._greedy:
            return [(int(self._all.ids[chosen]), 1.0)]
        rows = self._all.rows[:left]
        rows = rows[rows["p"] > 0]
        rows = rows[np.argsort(-rows["p"], kind="stable")]
        return list(zip(rows["id"].tolist(), rows["p"].tolist(), strict=True))

    def close(self) -> None:
        """Free it."""
        for name in ("_chain", "_grammar"):
            if getattr(self, name, None):
                self._api.llama_sampler_free(getattr(self, name))
                setattr(self, name, None)

    def __del__(self) -> None:
        self.close()


def _require_shallow(grammar: str, key: str) -> None:
    """Refuse a grammar so deep that llama.cpp's recursive parser would run out of stack, and end the process."""
    depth = deepest = 0
    for mark in re.findall(r"[()]", _QUOTED.sub("", grammar)):
        depth += 1 if mark == "(" else -1
        deepest = max(deepest, depth)
    if deepest > MOST_NESTED or grammar.count("::=") > MOST_RULES:
        raise InvalidParamError(
            f"a grammar may have {MOST_RULES:,} rules and parentheses {MOST_NESTED:,} deep", key=key
        )


def _require_finite(grammar: str, key: str) -> None:
    """Refuse repetitions that llama.cpp would write out until memory is full: ``"a"{5,2}``, or a long text often."""
    bare = _QUOTED.sub(lambda found: " " if found[0].startswith("#") else found[0], grammar)
    size = total = 0
    for part in _PARTS.finditer(bare):
        word, least, most = part[0], _count(part[1]), _count(part[3])
        if part[1] is None:
            size = len(word) if word[0] in '"[' else 1
            continue
        if part[3] and most < least:
            raise InvalidParamError(
                f"a repetition of this grammar ends before it begins: {word[:40]}", key=key
            )
        size *= max(1, least, most if most <= ENDLESS else 0)
        total += size
        if total > MOST_REPEATED:
            raise InvalidParamError(
                f"the repetitions of a grammar may stand for {MOST_REPEATED:,} characters and rules at most",
                key=key,
            )


def _count(digits: str | None) -> int:
    return int((digits or "").lstrip("0")[:20] or "0")


def _overheard(call: Callable[[], T], source: bytes) -> tuple[T, str]:
    """Return what a call returns, and what llama.cpp's parser said of the grammar ``source``, on standard error.

    It prints past its own log, so file descriptor 2 is a pipe meanwhile, and what others write into it is passed on:
    other threads, and processes that they start just now, which keep the pipe for as long as they live.
    """
    with _stderr:
        try:
            before = os.dup(2)
        except OSError:  # closed
            return call(), ""
        out, into = os.pipe()
        ear = _Ear(out, before, source)
        try:
            os.dup2(into, 2)
            found = call()
        finally:
            os.dup2(before, 2)
            ear.stop(into)
        return found, ear.said.decode("utf-8", "replace")


class _Ear(threading.Thread):
    """Reads a pipe to its end, keeps what the parser said, and writes everything else where it belongs."""

    def __init__(self, out: int, before: int, source: bytes) -> None:
        super().__init__(name="atlas-stderr", daemon=True)
        self.said = b""
        self._out, self._before, self._source = out, before, source
        self._end = secrets.token_bytes(16)
        self._heard = threading.Event()
        self.start()

    def stop(self, into: int) -> None:
        """Close the pipe's other end, and wait until all that came so far is where it belongs."""
        with open(into, "wb", buffering=0) as pipe:
            pipe.write(self._end)
        self._heard.wait()

    def run(self) -> None:
        data = b""
        while self._end not in data and (more := os.read(self._out, 1 << 16)):
            data += more
        own, _, rest = data.partition(self._end)
        self.said, others = _taken_apart(own, self._source)
        self._pass_on(others + rest)
        self._heard.set()
        while more := os.read(self._out, 1 << 16):
            self._pass_on(more)
        os.close(self._out)
        os.close(self._before)

    def _pass_on(self, data: bytes) -> None:
        with contextlib.suppress(OSError):  # whoever reads standard error is gone
            while data:
                data = data[os.write(self._before, data) :]


def _taken_apart(data: bytes, source: bytes) -> tuple[bytes, bytes]:
    """Return what llama.cpp's parser wrote (its sentence, then the grammar), and what others did."""
    start = data.find(_SAYS)
    if start < 0:
        return b"", data
    end = data.find(b"\n", start) + 1 or len(data)
    said, rest = data[start:end], data[end:]
    known = {b"", *source.split(b"\n")}  # the sentence may quote the grammar's end
    others = [line for line in rest.splitlines(keepends=True) if line.rstrip(b"\n") not in known]
    return said, data[:start] + b"".join(others)
