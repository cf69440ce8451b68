"""A memory beside one sequence of a language model: what it reads from the model's output, and how it answers.

Per token the model gives its final hidden state h and its logits z. The learned memory M corrects them,
``z' = z + R (M(phi(h)) - mu)``, for the candidate rows R of the read-out matrix: the model's most likely tokens and
those that came lately. The exact window adds what followed the states most like h, and a gate decides between the
two. Knows nothing of llama.cpp, text or files.

Tokens are taken in steps of ``chunk_size``: within a step, memory, window and gate stay as they were at its start, so
that reading a text at once and token by token are the same but for rounding: BLAS and llama.cpp add in an order that
depends on how many tokens come together.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from atlas_kit.codecs.numbers import Array
from atlas_kit.errors import InvalidParamError, ModelError
from atlas_kit.llama.gating import TRUSTED_AFTER, brought_to_one, weights_of_one
from atlas_kit.llama.looking import Looking
from atlas_kit.llama.middle_layers import seen
from atlas_kit.llama.output_matrix import OutputRows
from atlas_kit.llama.reading import (
    NO_SLOTS,
    NoReadout,
    Reading,
    SlotRow,
    Slots,
    change_of,
    far_off,
    summarize,
    with_bound,
)
from atlas_kit.llama.reading_one import read_few, read_one
from atlas_kit.llama.side_by_side import read_side_by_side
from atlas_kit.llama.waiting_rows import ASKED, PENDING, rows_fit
from atlas_kit.llama.whitened_reading import (
    LEAST_LIFT,
    LIFT,
    Asking,
    asked_for,
    bias_step,
    correct_all,
    likely,
)
from atlas_kit.memory import (
    Memory,
    MemoryConfig,
    MemoryState,
    Readout,
    WhitenedMatrix,
    WhitenedMemory,
    gate_features,
    match_lengths,
)
from atlas_kit.memory.backend import choose, quiet, to_host
from atlas_kit.memory.ranking import Ranked, Ranking
from atlas_kit.memory.whitened import Found
from atlas_kit.settings.atlas_settings import ADAPTIVE, AtlasSettings

#: Tokens that came lately and are candidates therefore.
RECENT = 1024
#: Tokens behind a control token in which the window does not say what follows.
SETTLED = 4
#: Tokens that a match may be long.
MOST_MATCHED = 255
#: Bytes of the array that is used again for the candidates' rows of each step.
MOST_KEPT = 32 << 20
#: How far logits may be from the formula, as a share of their spread: llama.cpp rounds states as it rounds weights.
MOST_ERROR = 0.3
#: How far the step size moves per step at most, and in all, as logarithms.
ETA_RATE, ETA_BOUND = 0.02, math.log(16)
#: How far a token's bias moves for a probability that was wrong by 1.
BIAS_STEP = 0.1
#: Parts of a configuration that decide what the arrays are, or what they mean.
_FIXED = (
    "features", "module", "window_size", "omega_window", "chunk_size", "window_dtype", "gate", "ranking",
    "warmup_tokens",
)  # fmt: skip
#: What follows from settings and memory, and is asked for at every token.
_KNOWN = ("width", "learns", "whitened", "count", "kind", "_looks")


class TokenMemory:
    """A memory that reads along with one sequence.

    Parameters
    ----------
    rows
        The model's read-out rows.
    settings
        What kind of memory.
    backend
        ``"numpy"`` or ``"cupy"``; None chooses as ``Memory`` does.
    state
        What it goes on from, whose arrays stay as they are; None: it is empty.

    Raises
    ------
    InvalidParamError
        When the settings do not fit the model.
    """

    def __init__(
        self,
        rows: OutputRows,
        settings: AtlasSettings,
        backend: str | None = "numpy",
        state: MemoryState | None = None,
    ) -> None:
        self.rows, self.settings = rows, settings
        config = settings.memory_config(rows.n_embd, rows.scale, rows.softcap, rows.n_vocab)
        self.memory = _memory_of(config, choose(backend).__name__)
        self._checked = False
        self._begin(self.memory.init() if state is None else state)
        self._pinned = state is not None

    def reset(self) -> None:
        """Forget everything."""
        self._begin(self.memory.init())

    def _begin(self, state: MemoryState) -> None:
        """Start from a state, and with nothing that waits."""
        #: The state, but for what only its next step needs, which may still be looked for.
        self.present = state
        self._looking = Looking[Found]()
        self._pinned = False
        self.recent = np.empty(0, np.int32)
        #: The last tokens that came without being learned: what follows is matched with them all the same.
        self.watched = np.empty(0, np.int64)
        self._pending: dict[str, list[Array]] = {name: [] for name in self._waits_with}
        self._asking: list[tuple[Asking, Array]] = []
        self._waiting = 0
        self._due = False
        self._lift: tuple[Array, Array] | None = None
        self._evening: tuple[Array, Callable[[Array], Array]] | None = None
        self._ahead: tuple[Reading, int] | None = None
        self._line: list[int] = []  # the last tokens that were learned, or wait for it
        self._plain: int | None = (
            0  # how many of them came behind the last control token; None: not counted yet
        )
        self.log_eta = 0.0
        self._window: SlotRow | None = None
        self._distinct: Array | None = None
        self._matrix = np.empty((0, self.rows.n_embd), np.float32)

    @property
    def state(self) -> MemoryState:
        """What it has learned so far, whole."""
        found = self._looking.found()
        if found is None or self.whitened is None:
            return self.present
        return self.whitened.with_directions(self.present, found)

    @state.setter
    def state(self, state: MemoryState) -> None:
        self._looking.drop()
        self.present = state

    def _complete(self) -> None:
        """Wait for what the next step needs."""
        try:
            self.present = self.state
        finally:
            self._looking.drop()

    @functools.cached_property
    def width(self) -> int:
        """How many numbers of a token's states it looks at: the final one, and that of a middle layer behind it."""
        return self.rows.n_embd * (1 + self.settings.looks_inside)

    def keys_of(self, hidden: Array) -> Array:
        """Return of states (n, width) those that it learns from, (n, n_embd)."""
        return hidden[:, -self.rows.n_embd :]

    @functools.cached_property
    def learns(self) -> bool:
        """Whether there is a learned memory beside the window."""
        return self.settings.learning_rate > 0

    @functools.cached_property
    def whitened(self) -> WhitenedMemory | None:
        """The memory, if it is a whitened one."""
        return self.memory if isinstance(self.memory, WhitenedMemory) else None

    @property
    def _waits_with(self) -> tuple[str, ...]:
        """Names of what waits for its step to fill."""
        return (*PENDING, *ASKED) if self.learns and self.settings.whitened else PENDING

    @functools.cached_property
    def count(self) -> int:
        """How many of the model's most likely tokens are candidates."""
        if not self.learns:
            return 0
        return min(self.settings.candidates or self.rows.n_vocab, self.rows.n_vocab)

    @property
    def room(self) -> int:
        """Tokens until the present step is full; of one that is full already, the next is meant."""
        return self.memory.config.chunk_size - (0 if self._due else self._waiting)

    @property
    def due(self) -> bool:
        """Whether a step is full and was put off; ``commit`` takes it, and so does whatever needs what it gives."""
        return self._due

    @property
    def tokens_seen(self) -> int:
        """Tokens taken in so far."""
        return int(self.present.counters["seen"]) + self._waiting

    # --- reading -------------------------------------------------------------------------------------------

    def read(self, hidden: Array, logits: Array, current: Array) -> Reading:
        """Return what is expected after each of ``n`` tokens that follow each other.

        Parameters
        ----------
        hidden, logits
            (n, n_embd), (n, n_vocab): the model's output at these tokens; states of a middle layer may lie behind the
            final ones.
        current
            (n,): the tokens.

        Raises
        ------
        ModelError
            When the logits do not follow from the states, so that a correction would make no sense.
        """
        self.commit()
        hidden = seen(hidden, self.width)
        if len(hidden) == 1 and self.kind is not None:
            return self._read_one(hidden, logits, int(current[0]))
        y, directions = self._answers(hidden)
        pull = None
        if self.learns and self.whitened is not None:
            _, lse, entropy = summarize(logits, 0)
            top = np.array([likely(row, self.lift, self.count) for row in logits])
            tokens, own, corrected, log_z, before, behind, expected, pull = correct_all(
                self.rows, hidden, logits, top, y, lse, self.bias, self.require_formula, self._matrix,
                knows=self.whitened.is_whitened(self.present),
            )  # fmt: skip
        else:
            top, lse, entropy = summarize(logits, self.count)
            tokens, own, corrected, log_z, before = self._corrected(hidden, logits, top, lse, y)
            behind = np.exp(corrected - log_z[:, None])
            expected = (behind * change_of(own, corrected)).sum(axis=1)
        slots, window = self._look_up(directions, current)
        features = gate_features(window.similarity, entropy, window.length, window.confidence)
        if not self.settings.window_size:
            features[:, [1, 3, 4]] = 0  # all but the constant and the entropy look at the window
        w = to_host(self.present.gate["w"])[None]
        has_window = self._settled(current)[None] & (len(slots.tokens) > 0)
        weights = self.weights_of(w, features[None], has_window)
        return Reading(
            hidden, lse, top, logits, tokens, own, corrected, log_z, before, behind, expected, slots, window,
            weights, features, pull,
        )  # fmt: skip

    def _read_one(self, hidden: Array, logits: Array, current: int) -> Reading:
        """Read one token, where it was not read ahead."""
        ahead, self._ahead = self._ahead, None
        if ahead is None or ahead[1] != current or ahead[0].hidden.tobytes() != hidden.tobytes():
            if self.whitened is not None:
                return read_one(self, hidden, logits[0], current)
            return read_each([self], hidden, [logits[0]], [current])[0]
        found = ahead[0]
        found.hidden, found.logits = hidden, logits  # the very same, but what was given then is the engine's
        return found

    def will_read(self, reading: Reading, token: int) -> None:
        """Keep what was read ahead: it is what ``read`` returns, if it is asked for that."""
        self._ahead = reading, token

    @functools.cached_property
    def kind(self) -> tuple[Any, ...] | None:
        """What memories have in common that can be read side by side; None: this one cannot."""
        if not (self.learns and self._looks and self.memory.xp is np):
            return None
        return id(self.memory), id(self.rows), self.settings.candidates, self.settings.blend_ratio

    @property
    def bias(self) -> Array | None:
        """What a whitened memory adds to the logits of tokens (n_vocab,), on the host; None: nothing yet."""
        if not int(self.present.counters["steps"]):
            return None
        return np.asarray(to_host(self.present.parameters["bias"])[0])

    @property
    def lift(self) -> tuple[Array, Array] | None:
        """What counts beside the logits when candidates are chosen: the same for a whole step."""
        if self._lift is None and (bias := self.bias) is not None:
            tokens = np.flatnonzero(bias > LEAST_LIFT)
            self._lift = tokens, np.float32(LIFT) * bias[tokens]
        return self._lift

    def _answers(self, hidden: Array) -> tuple[Array, Array]:
        """Return what the learned memory answers to states (n, n_embd), and as what the window is asked for them."""
        given, memory, state = self._on_device(self.keys_of(hidden)), self.memory, self.present
        looks = self._looks
        if self.learns and looks:
            y, directions = memory.read_and_direct(state, given)
            return to_host(y), directions
        none = np.empty((len(hidden), 0), np.float32)
        return (
            to_host(memory.read(state, given)) if self.learns else none,
            memory.directions(state, given) if looks else none,
        )

    @functools.cached_property
    def _looks(self) -> bool:
        """Whether the window is asked, too."""
        return bool(self.settings.window_size) and self.memory.config.ranking is not None

    @quiet
    def _corrected(
        self, hidden: Array, logits: Array, top: Array, lse: Array, y: Array
    ) -> tuple[Array, Array, Array, Array, Array]:
        """Return the candidates, their logits, these behind the memory, log-sum-exp then, probabilities before."""
        n = len(hidden)
        if not self.learns:
            none = np.empty((n, 0), np.float32)
            return np.empty(0, np.int64), none, none, lse, none.astype(np.float64)
        lately = self._lately
        tokens = self._candidates(top, lately)
        own = logits[:, tokens] if len(tokens) < logits.shape[1] else logits
        rows = self.rows
        self.require_formula(hidden, own, tokens)
        change = (rows.product(y, tokens) - (y @ rows.mean)[:, None]) * np.float32(rows.scale)
        corrected = own + change if rows.softcap is None else with_bound(own, change, rows.softcap)
        mine = self._mask(tokens, top, lately)
        if mine is not None:
            corrected = np.where(mine, corrected, own)
        before = np.exp(own.astype(np.float64) - lse[:, None])
        after = np.exp(corrected.astype(np.float64) - lse[:, None])
        # the other tokens keep their logits, so their mass stays what it was
        rest = np.maximum(1 - before.sum(axis=1), 0)
        log_z = lse + np.log(rest + after.sum(axis=1))
        for row in np.flatnonzero(~np.isfinite(log_z)):
            corrected[row], log_z[row] = far_off(own[row], corrected[row], lse[row], rest[row])
        return tokens, own, corrected, log_z, before

    def require_formula(self, hidden: Array, own: Array, tokens: Array) -> None:
        """Check once that the model's logits are what ``OutputRows`` says, or a correction would be meaningless."""
        if self._checked:
            return
        if self._can_wait:
            return
        self._checked = True
        final = hidden[:1, : self.rows.n_embd]
        error = self.rows.logits(final, self.rows(tokens), tokens) - own[:1]
        if float(np.square(error).mean()) > MOST_ERROR**2 * float(own[:1].var()):
            raise ModelError(
                "the model's logits do not follow from its last state and its output matrix as they do elsewhere",
                hint="Use the window alone: learning_rate=0.",
            )

    @property
    def _can_wait(self) -> bool:
        """Whether the output matrix has not been looked at, and need not be: nothing is corrected yet."""
        memory = self.whitened
        return not self.rows.opened and memory is not None and not memory.is_whitened(self.present)

    @property
    def _asked_widths(self) -> tuple[int, int]:
        """How many numbers a token asks for: of ``ASKED``."""
        return self.rows.n_embd, self.count

    def _candidates(self, top: Array, lately: Array) -> Array:
        if self.count >= self.rows.n_vocab:
            return np.arange(self.rows.n_vocab)
        flags = np.zeros(self.rows.n_vocab, np.bool_)
        flags[top.ravel()] = True
        flags[lately] = True
        return np.flatnonzero(flags)

    def candidates_of(self, top: Array) -> Array:
        """Return the candidates (U,), ascending, behind a token whose most likely successors are ``top`` (K,)."""
        return self._candidates(top, self._lately)

    def _mask(self, tokens: Array, top: Array, lately: Array) -> Array | None:
        """Return (n, U): each token's own candidates among those of all ``n``; None: all are."""
        if len(top) == 1 or self.count >= self.rows.n_vocab:
            return None
        mine = np.zeros((len(top), len(tokens)), np.bool_)
        mine[:, np.searchsorted(tokens, lately)] = True
        mine[np.arange(len(top))[:, None], np.searchsorted(tokens, top)] = True
        return mine

    @property
    def _lately(self) -> Array:
        """The tokens that came lately, ascending: the same for a whole step."""
        if self._distinct is None:
            self._distinct = np.unique(self.recent)
        return self._distinct

    def _look_up(self, directions: Array, current: Array) -> tuple[Slots, Ranked]:
        """Return what the window holds, and how its slots rank for each query."""
        n, ranking = len(current), self.memory.config.ranking
        slots = self.slots()
        keys, tokens = slots.keys, slots.tokens
        if ranking is None or not len(tokens):
            none = np.empty((n, 0), np.float32)
            return NO_SLOTS, Ranking().read(np.zeros(3), none, none, none, tokens)
        cosine = to_host(directions @ keys.T)
        match = match_lengths(self._histories(current, ranking.longest), tokens, ranking.longest)
        # the newest slot lies one token before the first that waits
        ages = np.arange(len(tokens) + n - 1, 0, -1, dtype=np.float32)
        ages += self.unlearned
        age = ages[None] if n == 1 else ages[np.arange(n - 1, -1, -1)[:, None] + np.arange(len(tokens))]
        w = to_host(self.present.gate["rank"])
        return slots, ranking.read(w, cosine, match, age, tokens)

    def slots(self) -> Slots:
        """Return what the window holds: the same for a whole step."""
        if not self.settings.window_size:
            return NO_SLOTS
        if self._window is None:
            self._window = SlotRow(self.settings.window_size, *self.memory.remembered(self.present))
        return self._window.slots

    @property
    def unlearned(self) -> int:
        """Tokens that came behind the newest slot."""
        return self._waiting + len(self.watched)

    def history(self, current: int, longest: int) -> Array | list[int]:
        """Return the last tokens, at most ``longest``, up to and with ``current``, of which the rest is known.

        No control token stands before the last one: every turn begins as others do, and that says nothing.
        """
        if len(self.watched):
            return np.asarray(self._histories(np.array([current]), longest)[0])
        line = self._line
        came = (
            line[-longest:] if line and line[-1] == current else [*line[len(line) - longest + 1 :], current]
        )
        plain = self._plain_tokens - (1 if line and line[-1] == current else 0)
        if plain >= 0:
            return came[-1 - plain :]
        for back in range(2, len(came) + 1):  # the token itself is a control token
            if self.rows.is_control(came[-back]):
                return came[1 - back :]
        return came

    def settled(self, current: int) -> bool:
        """Tell whether so many tokens have come since the last control token that the window may say what follows.

        Right behind one, all turns are alike, and the window would begin each answer like the one before.
        """
        if self.rows.is_control(current):
            return False
        if len(self.watched):
            return bool(self._settled(np.array([current]))[0])
        line = self._line
        if line and line[-1] == current:
            return self._plain_tokens >= min(SETTLED, len(line))
        return self._plain_tokens >= min(SETTLED - 1, len(line))

    @property
    def _plain_tokens(self) -> int:
        """How many tokens were learned, or wait for it, since the last control token."""
        if self._plain is None:
            line = self._line
            self._plain = next(
                (back for back, token in enumerate(reversed(line)) if self.rows.is_control(token)), len(line)
            )
        return self._plain

    def _settled(self, current: Array) -> Array:
        """Return ``settled`` of each of the tokens (n,) that follow each other."""
        line = self._lines(current, SETTLED)
        control = np.array([token >= 0 and self.rows.is_control(token) for token in line.ravel().tolist()])
        return np.asarray(~control.reshape(line.shape).any(axis=1))

    def _histories(self, current: Array, longest: int) -> Array:
        """Return (n, longest): ``history`` of each of ``current``, which follow each other; -1 where there is none."""
        histories = self._lines(current, longest)
        before = histories[:, :-1]
        for token in set(before.ravel().tolist()):
            if token >= 0 and self.rows.is_control(token):
                for row in np.flatnonzero((before == token).any(axis=1)).tolist():
                    before[row, : int(np.flatnonzero(before[row] == token)[-1]) + 1] = -1
        return histories

    def _lines(self, current: Array, longest: int) -> Array:
        """Return (n, longest): the tokens up to and with each of ``current``; -1 where there is none."""
        came: Array = np.concatenate(
            (np.full(longest, -1), self.recent[-longest:], *self._pending["token"], self.watched)
        ).astype(np.int64)
        line = np.concatenate((came, current[1:]))
        ends = np.arange(len(came) - 1, len(line))
        histories = line[ends[:, None] + np.arange(1 - longest, 1)]
        # The first token of a text followed nothing, so no slot holds it, and only its own history does; were it in
        # those behind it, they would depend on how the text comes in parts.
        if came[-1] != current[0]:
            histories[0] = np.append(came[len(came) - longest + 1 :], current[0])
        return np.asarray(histories)

    def weights_of(self, w: Array, features: Array, has_window: Array) -> Array:
        """Return how much model, memory and window count (R n, 3).

        Parameters
        ----------
        w, features, has_window
            (R, 2, 5), (R, n, 5), (R, n): of R gates, each for its own ``n`` tokens; whether the window is asked.
        """
        weights, ratio = np.zeros((*features.shape[:2], 3)), self.settings.blend_ratio
        gate = self.memory.config.gate
        assert gate is not None
        if ratio == ADAPTIVE:
            weights[..., self._experts] = gate.weights({"w": w}, features)
        else:
            weights[..., 2] = float(ratio)
            weights[..., 1 if self.learns else 0] = 1 - float(ratio)
        weights[..., 2][~has_window] = 0
        return brought_to_one(weights.reshape(-1, 3), self.trust)

    @property
    def trust(self) -> float:
        """The share of its weight that a learned memory has by now: of a young whitened one, little."""
        if self.whitened is None or self.settings.blend_ratio != ADAPTIVE:
            return 1.0
        return min(1.0, int(self.present.counters["steps"]) / TRUSTED_AFTER)

    def weights_of_one(self, features: Sequence[float], has_window: bool) -> tuple[float, float, float]:
        """Return ``weights_of`` one token with its five features, where there are memory and window."""
        ratio = None if self.settings.blend_ratio == ADAPTIVE else float(self.settings.blend_ratio)
        return weights_of_one(self.present.gate["w"].tolist(), features, ratio, has_window, self.trust)

    @property
    def _experts(self) -> slice | list[int]:
        """Which of model, memory and window there are."""
        if self.learns and self.settings.window_size:
            return slice(None)
        return [0, *([1] if self.learns else []), *([2] if self.settings.window_size else [])]

    # --- learning ------------------------------------------------------------------------------------------

    def learn(self, reading: Reading, token: Array, *, put_off: bool = False) -> Array:
        """Take in which tokens came, (n,) for the ``n`` of a reading, at most ``room``; return ``probabilities_of``.

        ``put_off``: a step that is full then waits for ``commit``, until the next reading at the latest. Nobody has
        looked by then, so it is the same step to the bit.

        Raises
        ------
        InvalidParamError
            For more tokens than the present step has room for.
        """
        self.commit()
        if len(token) > self.room:
            raise InvalidParamError(f"{len(token)} tokens do not fit into a step with room for {self.room}")
        self.watched = self.watched[:0]
        probabilities, slope = reading.outcome(token, self.memory.config.ranking)
        # copies of what others may write into
        hidden, token, gave = np.array(self.keys_of(reading.hidden)), np.array(token), np.array(probabilities)
        values = (hidden, reading.lse, token, reading.top, reading.features, gave, slope)
        for name, value in zip(PENDING, values, strict=True):
            self._pending[name].append(value)
        if reading.pull is not None:
            self._asking.append((Asking.of(reading), token))
        self._waiting += len(token)
        self._line += (came := token.tolist())
        plain = self._plain
        if plain is not None:
            for one in came:
                plain = 0 if self.rows.is_control(one) else plain + 1
            self._plain = plain
        if len(self._line) > 4 * MOST_MATCHED:
            del self._line[:-MOST_MATCHED]
        self._ahead = None
        self._due = self._waiting == self.memory.config.chunk_size
        if not put_off:
            self.commit()
        return probabilities

    def watch(self, reading: Reading, token: Array) -> Array:
        """Return what ``learn`` returns, and learn nothing."""
        self.watched = np.concatenate((self.watched, token))[-RECENT:]
        self._ahead = None
        return reading.probabilities_of(token)

    def follow(
        self, hidden: Array, logits: Array, current: Array, following: Array, *, learn: bool = True
    ) -> Iterator[tuple[Reading, Array, Array]]:
        """Read and learn (or watch) step by step.

        Parameters
        ----------
        hidden, logits, current
            As for ``read``; rows from ``n`` on are left out.
        following
            (n,): the token that came after each.

        Yields
        ------
        What was expected, which tokens came, and ``probabilities_of`` them: of each step.
        """
        at = 0
        while at < len(following):
            step = slice(at, min(at + self.room, len(following)))
            reading, came = self.read(hidden[step], logits[step], current[step]), following[step]
            yield reading, came, (self.learn if learn else self.watch)(reading, came)
            at = step.stop

    def commit(self) -> None:
        """Take the step that is due, if one is: gate, learned memory, window."""
        if not self._due:
            return
        self._complete()
        self._due, self._ahead = False, None
        self._ask()
        rows = {name: np.concatenate(parts) for name, parts in self._pending.items()}
        self._pending = {name: [] for name in self._waits_with}
        self._waiting = 0
        device = self._on_device
        state, posterior = self._learn_blend(self.present, rows)
        self.recent = np.concatenate((self.recent, rows["token"].astype(np.int32)))[-RECENT:]
        self._distinct, self._lift = None, None
        if self.whitened is not None:
            self._step(self.whitened, state, rows, posterior)
            return
        readout = self._readout(rows["top"]) if self.learns else NoReadout()
        targets = {name: device(rows[name]) for name in ("token", "hidden", "lse")}
        # a memory without a step corrects nothing, but for the rounding of a softcap
        if self.learns and self.settings.blend_ratio == ADAPTIVE and int(state.counters["steps"]):
            self._adapt(rows["slope"][:, -1] * posterior[:, 1])
        eta = device(np.full(len(rows["token"]), self.learning_rate, np.float32))
        self.present, _ = self.memory.observe(
            state, targets["hidden"], targets, readout=readout, eta=eta, donate=not self._pinned
        )
        self._pinned = False  # the new arrays are this memory's alone
        if self._window is not None:
            self._window.append(*self.memory.remembered(self.present, len(rows["token"])))

    def _ask(self) -> None:
        """Let what waits be what is asked for: once for a whole step."""
        if asking := self._asking:
            read, tokens = zip(*asking, strict=True)
            if self._can_wait:  # what is asked of a memory that does not learn yet is looked at by nobody
                found = tuple(
                    np.zeros((sum(map(len, tokens)), width), np.float32) for width in self._asked_widths
                )
            else:
                found = asked_for(read, np.concatenate(tokens), self.rows)
            for name, value in zip(ASKED, found, strict=True):
                self._pending[name].append(value.astype(np.float32, copy=False))
            self._asking = []

    def _step(
        self, memory: WhitenedMemory, state: MemoryState, rows: Mapping[str, Array], posterior: Array
    ) -> None:
        """Take the step of a whitened memory; ``rows`` are what waited."""
        gradient = slopes = bias = None
        if self.learns and memory.is_whitened(state) and len(rows["token"]):
            if self.settings.blend_ratio == ADAPTIVE and int(state.counters["steps"]):
                self._adapt(rows["slope"][:, -1] * posterior[:, 1])
            slopes = rows["gradient"]
            gradient = self._on_device(self._even(slopes))
            bias = bias_step(rows["top"], rows["share"], BIAS_STEP)
        before = memory.is_whitened(state)
        self.present = memory.step(
            state,
            self._on_device(rows["hidden"]),
            {name: self._on_device(rows[name]) for name in ("token", "lse")},
            gradient=gradient,
            slopes=None if slopes is None else self._on_device(slopes),
            bias=bias,
            eta=self.learning_rate,
            donate=not self._pinned,
            later=self._looking.begin,
        )
        self._pinned = False
        if memory.is_whitened(self.present) != before:
            self._window = None  # all of its keys are others
        elif self._window is not None:
            self._window.append(*memory.remembered(self.present, len(rows["token"])))

    def _even(self, gradients: Array) -> Array:
        """Return gradients of the answers (n, n_embd) made even: as they vary, where that is known already."""
        found = self.present.parameters.get("directions")
        if found is None:
            return self.rows.even(gradients)
        if self._evening is None or self._evening[0] is not found:
            directions = np.asarray(to_host(found))
            even: Callable[[Array], Array] = self.rows.even
            if directions.any():
                rest = float(self.present.parameters["rest"][0, 0])
                even = self.rows.evening(directions, rest).__call__
            self._evening = found, even
        return self._evening[1](gradients)

    def _adapt(self, gain: Array) -> None:
        """Move the step size: up while larger corrections would have been better, down while smaller ones.

        ``gain`` (n,) is d log p / d g of the blended prediction: ``Reading.gain``, weighed by how likely it was the
        memory that knew. It is of tokens that were predicted before they were learned; mean over root mean square
        lies in [-1, 1], whatever the model.
        """
        size = float(np.sqrt(np.square(gain).mean()))
        if size > 0 and math.isfinite(size):
            self.log_eta += ETA_RATE * float(gain.mean()) / size
            self.log_eta = min(max(self.log_eta, -ETA_BOUND), ETA_BOUND)

    @property
    def learning_rate(self) -> float:
        """The step size at present: the setting, times what was adapted."""
        return self.settings.learning_rate * math.exp(self.log_eta)

    def _learn_blend(self, state: MemoryState, rows: Mapping[str, Array]) -> tuple[MemoryState, Array]:
        """Move gate and ranking towards what was right.

        Returns the state, and (n, 3): how likely it was model, memory or window that knew the token which came.
        """
        gate, ranking = self.memory.config.gate, self.memory.config.ranking
        assert gate is not None
        w, p = to_host(state.gate["w"]), rows["probabilities"][None][..., self._experts]
        moved, _, known = gate.update_and_posterior({"w": w[None]}, rows["features"][None], p)
        posterior = np.zeros((p.shape[1], 3))
        posterior[:, self._experts] = known[0]
        changed = dict(state.gate)
        if ranking is not None and int(state.counters["filled"]):
            rank = ranking.update(to_host(state.gate["rank"]), rows["slope"][:, :-1], posterior[:, 2])
            changed["rank"] = self._on_device(rank)
        if int(state.counters["seen"]) or not self.settings.window_size:
            changed["w"] = self._on_device(moved["w"][0])
        return dataclasses.replace(state, gate=changed), posterior

    def _readout(self, top: Array) -> Readout:
        tokens = self._candidates(top, self._lately)
        everything = len(tokens) == self.rows.n_vocab
        bias = None if self.rows.bias is None else self._on_device(self.rows.bias[tokens])
        rows = self.rows(tokens, self._matrix)
        if len(tokens) < self.rows.n_vocab and len(self._matrix) < len(tokens) <= MOST_KEPT // rows[0].nbytes:
            self._matrix = rows
        return Readout(
            self._on_device(rows),
            None if everything else self._on_device(tokens),
            self._on_device(self.rows.mean),
            bias,
        )

    def _on_device(self, array: Array) -> Any:
        return self.memory.xp.asarray(array)

    # --- saving ------------------------------------------------------------------------------------------

    def pin(self) -> MemoryState:
        """Return the present state, whose arrays stay as they are: the next step copies what it would write into."""
        self.commit()
        self._complete()
        self._pinned = True
        return self.present

    @property
    def pinned(self) -> bool:
        """Whether somebody may hold the arrays of the present state."""
        return self._pinned

    def release(self, state: MemoryState) -> None:
        """Take back a pin that nobody else has asked for: ``state``, which ``pin`` gave, is not used any more."""
        if self.present is state:
            self._pinned = False

    def waiting(self) -> dict[str, Array]:
        """Return the tokens whose step is not full yet, and the recent ones: what goes with ``state``."""
        self.commit()
        return self._unlearned()

    def _unlearned(self) -> dict[str, Array]:
        self._ask()
        found = {name: np.concatenate(parts) for name, parts in self._pending.items() if parts}
        return {**found, "recent": self.recent, "log_eta": np.asarray(self.log_eta)}

    def restore(self, state: MemoryState, waiting: Mapping[str, Array]) -> None:
        """Go on from a state and what waited then; the arrays given stay as they are.

        Raises
        ------
        InvalidParamError
            When the arrays do not fit this memory.
        """
        self._begin(state)  # the arrays of an empty memory may be as large, and are not made
        self._pinned = True
        recent, log_eta = (
            np.asarray(waiting.get(name, getattr(self, name))) for name in ("recent", "log_eta")
        )
        count = len(waiting.get("token", ()))
        parts = {name: np.asarray(waiting[name]) for name in self._waits_with} if count else {}
        if not self._fits(recent, log_eta, parts, count):
            raise InvalidParamError(
                "the tokens that waited to be learned do not fit this memory", key="waiting"
            )
        self.recent, self.log_eta = recent.astype(np.int32)[-RECENT:], float(log_eta)
        for name, array in parts.items():
            self._pending[name].append(array)
        self._waiting = count
        self._line = np.concatenate((self.recent, *self._pending["token"]))[-MOST_MATCHED:].tolist()
        self._plain = None

    def _fits(self, recent: Array, log_eta: Array, parts: Mapping[str, Array], count: int) -> bool:
        """Tell whether arrays from a file are what ``waiting`` could have returned."""
        return (
            log_eta.shape == ()
            and abs(float(log_eta)) <= ETA_BOUND
            and recent.ndim == 1
            and count < self.memory.config.chunk_size
            and rows_fit(
                parts, count, recent, width=self.rows.n_embd, candidates=self.count, n_vocab=self.rows.n_vocab
            )
        )  # fmt: skip

    def retune(self, changes: Mapping[str, Any]) -> None:
        """Change settings that leave the arrays as they are, such as ``blend_ratio`` and ``learning_rate``.

        Raises
        ------
        InvalidParamError
            When a setting decides what the arrays are.
        """
        self.commit()
        self._ask()
        settings = self.settings.replace(**changes)
        changed = [name for name in changes if getattr(settings, name) != getattr(self.settings, name)]
        if not changed:
            return
        rows = self.rows
        config = settings.memory_config(rows.n_embd, rows.scale, rows.softcap, rows.n_vocab)
        for name in _FIXED:
            if getattr(config, name) != getattr(self.memory.config, name):
                raise InvalidParamError(
                    f"{', '.join(changed)}: a memory that has learned keeps its sizes and its ranking",
                    key="settings",
                    hint="Start a new memory, or leave the setting out.",
                )
        self.settings, self._ahead = settings, None
        self.memory = _memory_of(config, self.memory.xp.__name__)
        for name in _KNOWN:
            self.__dict__.pop(name, None)
        # what waits has as many candidates as there were; more of them are repeated
        self._pending["top"] = [
            top[:, np.arange(self.count) % top.shape[1]] if self.learns else top
            for top in self._pending["top"]
        ]
        for place, share in enumerate(self._pending.get("share", [])):
            fitting = np.zeros((len(share), self.count), np.float32)
            fitting[:, : share.shape[1]] = share[:, : self.count]
            self._pending["share"][place] = fitting

    def stats(self) -> dict[str, Any]:
        """Return counts and sizes as JSON-ready data; nothing is changed: another thread may be at work."""
        config, counters = self.memory.config, self.present.counters
        gate, rank = self.present.gate.get("w"), self.present.gate.get("rank")
        return {
            "tokens_seen": self.tokens_seen,
            "tokens_learned": int(counters["learned"]) if self.learns else 0,
            "window": min(int(counters["filled"]), config.window_size),
            "window_size": config.window_size,
            "learning_rate": self.learning_rate,
            "state_bytes": self.state_bytes,
            "row_cache_bytes": self.rows.cached_bytes,
            "gate": None if gate is None else to_host(gate).astype(np.float64).round(4).tolist(),
            "ranking": None if rank is None else to_host(rank).astype(np.float64).round(4).tolist(),
            "settings": self.settings.to_json(),
        }

    @property
    def state_bytes(self) -> int:
        """Bytes of everything that is kept: parameters, optimiser, window, gate and what waits."""
        state = self.present
        groups = (state.parameters, state.momentum, state.window, state.adaptation, state.gate)
        kept = sum(int(array.nbytes) for group in groups for array in group.values())
        kept += sum(array.nbytes for parts in self._pending.values() for array in tuple(parts))
        asked = 4 * sum(self._asked_widths)  # bytes of a token, once it is asked for
        kept += sum(asked * len(token) for _, token in tuple(self._asking))
        return kept + self.recent.nbytes + np.asarray(self.log_eta).nbytes


@functools.lru_cache(maxsize=8)
def _memory_of(config: MemoryConfig, backend: str) -> Memory:
    """Return the memory of a kind: it holds constants and no state, so that sessions may share it."""
    return (WhitenedMemory if isinstance(config.module, WhitenedMatrix) else Memory)(config, backend)


def read_each(
    memories: Sequence[TokenMemory], hidden: Array, logits: Sequence[Array], current: Sequence[int]
) -> list[Reading]:
    """Read one token each of memories of one kind."""
    read = read_side_by_side if memories[0].whitened is None else read_few
    return read(memories, seen(hidden, memories[0].width), logits, current)
