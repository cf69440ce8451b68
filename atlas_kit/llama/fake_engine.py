"""A language model of a few lines, deterministic and instant, that keeps the engine's contract: for tests and teaching.

Every byte is a token, and token 256 ends a text. The state of a token is a random direction per token, mixed with
those before it, so that equal contexts have equal states: enough for a memory to recognise what it has seen.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence

import numpy as np

from atlas_kit.codecs.numbers import Array
from atlas_kit.errors import InvalidParamError
from atlas_kit.llama.engine import DecodeError, Feed, InfillTokens, ModelInfo, Outputs, check_feeds, encoded
from atlas_kit.llama.output_matrix import OutputRows
from atlas_kit.llama.sampling import COLD, ORDER, Floats, Sampling

END = 256


class FakeEngine:
    """An engine without llama.cpp.

    Parameters
    ----------
    n_ctx, n_sequences, n_batch
        As of every engine.
    n_together, n_outputs
        The same; None: as ``n_batch``.
    n_embd
        Width of the hidden state.
    shiftable
        Whether contexts can be shifted.
    seed
        Of the random weights.
    """

    def __init__(
        self, n_ctx: int = 64, n_sequences: int = 4, n_batch: int = 32, n_embd: int = 32,
        shiftable: bool = True, seed: int = 0, n_together: int | None = None, n_outputs: int | None = None,
    ) -> None:  # fmt: skip
        random = np.random.default_rng(seed)
        self._embedding = random.standard_normal((END + 1, n_embd)).astype(np.float32)
        self._matrix = (random.standard_normal((END + 1, n_embd)) / np.sqrt(n_embd)).astype(np.float32)
        self.n_ctx, self.n_sequences, self.n_batch = n_ctx, n_sequences, n_batch
        self.n_together, self.n_outputs = n_together or n_batch, n_outputs or n_batch
        self.notes: list[str] = []
        self._shiftable = shiftable
        self._contexts: dict[int, list[int]] = {}
        self.asleep = self.middle = False
        self.decodes = 0
        self.lock, self.taken = threading.RLock(), set[int]()
        self._given: list[Floats] = []
        self.info = ModelInfo(
            path="fake", name="fake", architecture="fake", description="fake", identity="00" * 31 + "fa",
            n_vocab=END + 1, n_embd=n_embd, n_layer=1, n_ctx_train=n_ctx, n_params=0, size=0,
            hybrid=not shiftable,
        )  # fmt: skip

    def metadata(self, key: str) -> str | None:
        """Return nothing: there is no file."""
        return None

    @property
    def can_shift(self) -> bool:
        """Whether ``shift`` works."""
        return self._shiftable

    def sleep(self) -> None:
        """Forget all contexts, until something is to be decoded."""
        self._contexts.clear()
        self.asleep = True

    def wake(self) -> None:
        """Be there again."""
        self.asleep = False

    @property
    def begin(self) -> tuple[int, ...]:
        """No begin token."""
        return ()

    def tokenize(self, text: str, *, special: bool = False) -> list[int]:
        """Return the bytes of a text."""
        return list(encoded(text))

    def piece(self, token: int, *, special: bool = False) -> bytes:
        """Return a token's byte."""
        return bytes([token]) if token < END else b"<end>" * special

    def is_end(self, token: int) -> bool:
        """Tell whether a token is the end token."""
        return token == END

    @property
    def end_tokens(self) -> tuple[int, ...]:
        """The end token."""
        return (END,)

    @property
    def infill_tokens(self) -> InfillTokens | None:
        """Three control characters."""
        return InfillTokens(1, 2, 3)

    def _state(self, tokens: Sequence[int]) -> Floats:
        """State after the last of some tokens: the last four, each half as strong as the next."""
        last = self._embedding[list(tokens[-4:])][::-1]
        state: Floats = (last * 0.5 ** np.arange(len(last), dtype=np.float32)[:, None]).sum(axis=0)
        return state

    def decode(self, feeds: Sequence[Feed], *, hidden: bool = False) -> list[Outputs]:
        """Decode at most ``n_together`` tokens; one ``Outputs`` for each feed."""
        total = check_feeds(feeds, self, hidden=hidden)
        self.wake()
        for old in self._given:
            old.fill(np.nan)  # views end with the next decode
        self._given = []
        self.decodes += 1
        for feed in feeds:
            length = len(self._contexts.get(feed.sequence, []))
            if feed.position != length or length + len(feed.tokens) > self.n_ctx:
                emptied = [feed.sequence] if len(feeds) == 1 else []
                for sequence in emptied:
                    self.forget(sequence)
                raise DecodeError(
                    f"the model could not read {total} tokens: the context is full",
                    path=self.info.path,
                    emptied=emptied,
                )
        found, at = [], 0
        for feed in feeds:
            context = self._contexts.setdefault(feed.sequence, [])
            states, inner = [], []
            for token in feed.tokens:
                context.append(int(token))
                states.append(self._state(context))
                inner.append(self._state(context[-2:]))
            rows = np.stack(states)[len(states) - feed.outputs :]
            logits = (rows @ self._matrix.T).astype(np.float32)
            if self.middle:
                rows = np.concatenate((rows, np.stack(inner)[len(states) - feed.outputs :]), axis=1)
            self._given += [rows, logits]
            found.append(Outputs(logits, rows if hidden else None, at + len(states) - feed.outputs))
            at += len(states)
        return found

    def show_middle(self) -> bool:
        """Give states of the last two tokens as those of a middle layer."""
        self.middle = True
        return True

    def forget(self, sequence: int, start: int = 0, end: int = -1) -> bool:
        """Remove positions [start, end) of a sequence."""
        context = self._contexts.setdefault(sequence, [])
        end = len(context) if end < 0 else end
        if not self._shiftable and start > 0:
            return False
        del context[start:end]
        return True

    def shift(self, sequence: int, start: int, count: int) -> None:
        """Remove ``count`` positions from ``start`` on and move what comes behind them down."""
        del self._contexts[sequence][start : start + count]

    def save_sequence(self, sequence: int) -> bytes:
        """Return a sequence's tokens."""
        tokens = np.asarray(self._contexts.get(sequence, []), "<i4")
        return b"fake" + len(tokens).to_bytes(4, "little") + tokens.tobytes()

    def load_sequence(self, sequence: int, data: bytes) -> bool:
        """Put saved tokens into a sequence."""
        self.forget(sequence)
        tokens = np.frombuffer(data[8 : len(data) // 4 * 4], "<i4").tolist()
        fits = data[:4] == b"fake" and len(data) == 8 + 4 * int.from_bytes(data[4:8], "little")
        self._contexts[sequence] = tokens if fits else []
        return fits and len(tokens) <= self.n_ctx

    def sampler(self, sampling: Sampling) -> FakeSampler:
        """Return a sampler that knows temperature and seed."""
        return FakeSampler(sampling)

    def output_rows(self) -> OutputRows:
        """Return the read-out matrix."""
        return OutputRows(
            lambda tokens: self._matrix[tokens],
            *self._matrix.shape,
            is_control=lambda token: not self.piece(token),
        )

    def close(self) -> None:
        """Nothing to free."""

    def __enter__(self) -> FakeEngine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


#: Settings of samplers that are not imitated here, with the values that switch them off.
_OFF = {"dry_multiplier": 0, "xtc_probability": 0, "mirostat": 0, "dynatemp_range": 0, "typical_p": 1}


_DEFAULTS = Sampling()


class FakeSampler:
    """Chooses by bias, penalties, the cuts of ``top_k`` and the like, temperature and seed; the rest is refused.

    What is as it is by default cuts nothing: every byte stays possible.
    """

    def __init__(self, sampling: Sampling) -> None:
        if sampling.grammar is not None or sampling.json_schema is not None:
            raise InvalidParamError("the fake engine cannot follow a grammar", key="grammar")
        for name, off in _OFF.items():
            if getattr(sampling, name) != off:
                raise InvalidParamError(f"the fake engine has no {name}", key=name)
        if sampling.samplers is not None and set(sampling.order) - set(ORDER):
            raise InvalidParamError("the fake engine has no such samplers", key="samplers")
        if unknown := [token for token in sampling.logit_bias if not 0 <= token <= END]:
            raise InvalidParamError(f"there is no token {unknown[0]}", key="logit_bias")
        self._s = sampling
        self._random = np.random.default_rng(sampling.short_seed)
        self._said: list[int] = []
        self.candidates: list[tuple[int, float]] = []
        lowers = all(value <= 0 for value in sampling.logit_bias.values())
        biases = len(sampling.logit_bias) + sampling.ignore_eos
        self.few = sampling.decided_by + biases if lowers and sampling.decided_by else 0
        self._bias = np.zeros(END + 1, np.float32)
        for token, bias in sampling.logit_bias.items():
            self._bias[token] = bias
        if sampling.ignore_eos:
            self._bias[END] = -np.inf
        if not np.isfinite(self._bias).any():
            raise InvalidParamError("every token is forbidden by its bias", key="logit_bias")

    def accept(self, tokens: Iterable[int]) -> None:
        """Take note of tokens that stand before what is chosen."""
        self._said += tokens

    def sample(self, logits: Floats, index: int | None = None) -> int:
        """Choose a token from logits (n_vocab,)."""
        left = self._punished(logits + self._bias)
        if self._s.greedy:
            token = int(left.argmax())
            self.candidates = [(token, 1.0)] if self._s.tells else []
        else:
            for name in self._s.order:
                left = self._cut(name, left)
            noise = self._random.gumbel(size=len(logits))
            token = int((left + noise).argmax())
            if self._s.tells:
                p = _softmax(left)
                self.candidates = [(int(one), float(p[one])) for one in np.argsort(-p) if p[one] > 0]
        self._said.append(token)
        return token

    def sample_among(self, tokens: Array, logits: Floats) -> int:
        """Choose among the likeliest tokens."""
        every = np.full(len(self._bias), -np.inf, np.float32)
        every[tokens] = logits
        return self.sample(every)

    def _punished(self, logits: Floats) -> Floats:
        s = self._s
        last = (
            self._said[-s.repeat_last_n :] if s.repeat_last_n > 0 else self._said if s.repeat_last_n else []
        )
        if "penalties" not in s.order or not last:
            return logits
        counts = np.bincount(last, minlength=len(logits))
        came = counts > 0
        scaled = np.where(logits > 0, logits / s.repeat_penalty, logits * s.repeat_penalty)
        punished: Floats = np.where(came, scaled, logits).astype(np.float32)
        punished -= came * np.float32(s.presence_penalty) + counts * np.float32(s.frequency_penalty)
        return punished

    def _cut(self, name: str, logits: Floats) -> Floats:
        """Apply one of the samplers: forbid what it forbids."""
        s, keep = self._s, np.ones(len(logits), bool)
        if name == "temperature":
            warmer: Floats = logits / np.float32(max(s.temperature, COLD))
            return warmer
        if getattr(s, name, None) == getattr(_DEFAULTS, name, None):
            return logits
        if name == "top_k" and 0 < s.top_k < len(logits):
            keep = logits >= np.sort(logits)[-s.top_k]
        elif name == "min_p" and s.min_p:
            keep = logits >= logits.max() + np.log(s.min_p)
        elif name == "top_n_sigma" and s.top_n_sigma > 0:
            keep = logits >= logits.max() - s.top_n_sigma * logits[np.isfinite(logits)].std()
        elif name == "top_p" and s.top_p < 1:
            p = _softmax(logits)
            order = np.argsort(-p, kind="stable")
            keep[order[1:]] = np.cumsum(p[order])[:-1] < s.top_p
        keep[np.argsort(-logits, kind="stable")[: s.min_keep]] = True
        return np.where(keep, logits, -np.inf).astype(np.float32)

    def close(self) -> None:
        """Nothing to free."""


def _softmax(logits: Floats) -> Floats:
    p = np.exp(logits - logits.max())
    found: Floats = p / p.sum()
    return found
