"""A model in llama.cpp, through llama-cpp-python's low-level API: contexts, decoding, what comes of it."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from atlas_kit.errors import ClosedError, InvalidParamError
from atlas_kit.llama.blas_threads import one_blas_thread
from atlas_kit.llama.engine import (
    DecodeError,
    Feed,
    InfillTokens,
    ModelInfo,
    Outputs,
    check_feeds,
    encoded,
)
from atlas_kit.llama.grammar_reach import Grammars
from atlas_kit.llama.llama_batch import LlamaBatch, Rows
from atlas_kit.llama.llama_context import Wanted, context_of
from atlas_kit.llama.llama_library import LoadedModel
from atlas_kit.llama.middle_layers import middle_of
from atlas_kit.llama.model_file import ModelFile
from atlas_kit.llama.output_matrix import OutputRows
from atlas_kit.llama.sampling import Sampler, Sampling
from atlas_kit.settings.model_facts import LEAST_LAYERS, MIDDLE_STATES


@dataclass(frozen=True)
class LateInfo(ModelInfo):
    """What a model is; which one, it finds out when somebody asks: samples of all of its tensors are read for that."""

    def __getattr__(self, name: str) -> Any:
        """Return the identity, which is missing until then."""
        if name != "identity":
            raise AttributeError(name)
        found = self.__dict__["file"].identity()
        object.__setattr__(self, "identity", found)
        return found

    @classmethod
    def of(cls, file: ModelFile, **facts: Any) -> LateInfo:
        """Return what a model in a file is."""
        found = cls(identity="", **facts)
        object.__delattr__(found, "identity")
        object.__setattr__(found, "file", file)
        return found


class LlamaEngine:
    """A GGUF model in llama.cpp.

    Parameters
    ----------
    path
        The model; of a split one, the first shard.
    n_ctx
        Tokens of context per sequence; None: what the model was trained with, at most 4,096.
    n_sequences
        Sessions that share the model.
    n_gpu_layers
        Layers that llama.cpp puts on a GPU; -1 for all.
    n_threads
        Threads; None: one per CPU that this process may use.
    n_batch
        Tokens per decode; None: 512, and of one sequence less for large vocabularies.
    extra_buffers
        llama.cpp's special CPU buffers. None: on, unless the CPU has AMX, with which many builds crash.
    check_later
        Load the model without having looked into the file before: that is done when something is wrong with it, or
        when its identity or its output matrix are asked for.
    loaded
        The model, where llama.cpp has loaded it already; it is the engine's from now on.
    sleeps
        Whether ``sleep`` may be called: the vocabulary is loaded a second time for that, which takes a few MB.

    Raises
    ------
    MissingExtraError, ModelError, InvalidParamError, FileCorruptError
        llama-cpp-python is missing; llama.cpp refuses the model, or it does not generate text; an option is out of
        range; the file is damaged.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        n_ctx: int | None = None,
        n_sequences: int = 1,
        n_gpu_layers: int = 0,
        n_threads: int | None = None,
        n_batch: int | None = None,
        extra_buffers: bool | None = None,
        check_later: bool = False,
        loaded: LoadedModel | None = None,
        sleeps: bool = False,
    ) -> None:
        self._loaded: LoadedModel | None = None
        self.asleep = False
        self._context: Any = None
        self._matrix: Any = None
        self._gives_both: bool | None = None
        self.middle = False
        self._show_middle: Any = None
        self._give_middle: Any = None
        self._ends: tuple[int, ...] | None = None
        self._is_end: dict[int, bool] = {}
        self._controls: dict[int, bool] = {}
        self._pieces: dict[tuple[int, bool], bytes] = {}
        self._grammars = Grammars(self._all_pieces)
        self.decodes = 0
        self._logits, self._states, self._inner = Rows(), Rows(), Rows()
        self.lock, self.taken = threading.RLock(), set[int]()
        self._free_blas: Callable[[], None] | None = None
        path = os.fspath(path)
        with contextlib.ExitStack() as undo:
            undo.callback(self.close)
            if loaded is None:
                loaded = LoadedModel(
                    path, n_gpu_layers=n_gpu_layers, extra_buffers=extra_buffers, check_later=check_later
                )
            self._loaded, self._lib = loaded, loaded.library
            self._model, self._vocab = loaded.model, loaded.vocab
            self.notes: list[str] = [*loaded.notes]
            self._n_batch = n_batch
            self._make_context(Wanted(n_ctx, n_sequences, n_threads, n_batch))
            if sleeps:
                self._vocab = loaded.keep_words()
            self.info = self._info(path)
            if not loaded.checks_later:
                loaded.file.identity()
            self._free_blas = one_blas_thread()
            undo.pop_all()

    def _make_context(self, wanted: Wanted) -> None:
        assert self._loaded is not None
        made = context_of(self._loaded, wanted)
        self._context, self._memory = made.pointer, self._lib.api.llama_get_memory(made.pointer)
        self.n_ctx, self.n_sequences, self.n_batch = made.n_ctx, made.n_sequences, made.n_batch
        self.n_threads = made.n_threads
        self.notes += made.notes
        self.n_together, self.n_outputs = made.n_together, made.n_outputs
        self._batch = LlamaBatch(self._lib.api, made.n_together)
        if self.middle:  # it was asleep
            self._show_middle(self._context, middle_of(self.info.n_layer), True)

    def _info(self, path: str) -> ModelInfo:
        api, model = self._lib.api, self._model
        assert self._loaded is not None
        text = ctypes.create_string_buffer(256)
        api.llama_model_desc(model, text, len(text))
        template = api.llama_model_chat_template(model, None)
        n_params = int(api.llama_model_n_params(model))
        return LateInfo.of(
            self._loaded.file,
            path=path,
            name=self.metadata("general.name") or os.path.basename(path),
            architecture=str(self.metadata("general.architecture")),
            description=_described(text.value.decode("utf-8", "replace"), n_params),
            n_vocab=api.llama_vocab_n_tokens(self._vocab),
            n_embd=api.llama_model_n_embd_out(model),
            n_layer=api.llama_model_n_layer(model),
            n_ctx_train=api.llama_model_n_ctx_train(model),
            n_params=n_params,
            size=api.llama_model_size(model),
            recurrent=bool(api.llama_model_is_recurrent(model)),
            hybrid=bool(api.llama_model_is_hybrid(model)),
            chat_template=template.decode("utf-8", "replace") if template else None,
            build=f"llama-cpp-python {self._lib.version}",
        )

    def metadata(self, key: str) -> str | None:
        """Return a value of the model's file as text; None where there is none, or a list of values."""
        self._require_words()
        assert self._loaded is not None
        return self._loaded.metadata(key)

    # --- text ----------------------------------------------------------------------------------------------

    @property
    def begin(self) -> tuple[int, ...]:
        """The tokens that a text starts with (none, or the begin token)."""
        api = self._lib.api
        token = api.llama_vocab_bos(self._vocab)
        return (token,) if token >= 0 and api.llama_vocab_get_add_bos(self._vocab) else ()

    def tokenize(self, text: str, *, special: bool = False) -> list[int]:
        """Return the tokens of a text; ``special``: names of control tokens in the text become those tokens."""
        self._require_words()
        data = encoded(text)
        room = len(data) + 16
        while True:
            tokens = (self._lib.api.llama_token * room)()
            count = self._lib.api.llama_tokenize(self._vocab, data, len(data), tokens, room, False, special)
            if count >= 0:
                return list(tokens[:count])
            if -count <= room:
                raise InvalidParamError("the text is too long to be tokenised at once")
            room = -count

    def piece(self, token: int, *, special: bool = False) -> bytes:
        """Return a token's bytes, which may be part of a character; control tokens are empty unless ``special``."""
        self._require_words()
        known = self._pieces.get((token, special))
        if known is not None:
            return known
        if not 0 <= token < self.info.n_vocab:  # llama.cpp would end the process
            raise InvalidParamError(f"there is no token {token}", key="token")
        found = self._pieces[token, special] = self._spelled(token, special)
        return found

    def _spelled(self, token: int, special: bool) -> bytes:
        room = 64
        while True:
            text = ctypes.create_string_buffer(room)
            count = self._lib.api.llama_token_to_piece(self._vocab, token, text, room, 0, special)
            if count >= 0:
                return text.raw[:count]
            room = -count

    def is_end(self, token: int) -> bool:
        """Tell whether a token ends an answer."""
        self._require_words()
        if (ends := self._is_end.get(token)) is None:
            ends = self._is_end[token] = bool(self._lib.api.llama_vocab_is_eog(self._vocab, token))
        return ends

    @property
    def end_tokens(self) -> tuple[int, ...]:
        """The tokens that end an answer."""
        if self._ends is None:
            self._ends = tuple(token for token in range(self.info.n_vocab) if self.is_end(token))
        return self._ends

    @property
    def infill_tokens(self) -> InfillTokens | None:
        """The tokens around what is to be filled in; None where the vocabulary lacks them."""
        self._require_words()
        found = [
            int(getattr(self._lib.api, f"llama_vocab_fim_{name}")(self._vocab))
            for name in InfillTokens._fields
        ]
        if min(found[:3]) < 0:
            return None
        return InfillTokens(*found[:3], *(token if token >= 0 else None for token in found[3:]))

    # --- the state of a middle layer ----------------------------------------------------------------------

    def show_middle(self) -> bool:
        """Give states of a middle layer, too, from now on; False where this cannot be.

        Where llama.cpp's graph of an architecture lacks them, it would end the process, so only those are asked that
        were tried (``MIDDLE_STATES``); and only on the processor.
        """
        if self.middle:
            return True
        found, loaded = self._lib.middle_states, self._loaded
        if found is None or loaded is None or loaded.on_gpu or self.info.architecture not in MIDDLE_STATES:
            return False
        if (
            self.info.n_layer < LEAST_LAYERS
            or self._lib.api.llama_model_n_embd(self._model) != self.info.n_embd
        ):
            return False
        with self.lock:
            self._show_middle, self._give_middle = found
            self.middle = True
            if self._context:
                self._show_middle(self._context, middle_of(self.info.n_layer), True)
        return True

    def _with_middle(self, states: Any) -> Any:
        """Return final states (n, n_embd) with those of the middle layer behind them, in memory of its own."""
        n, width = states.shape
        given = self._give_middle(self._context, middle_of(self.info.n_layer))
        found = np.empty((n, 2 * width), np.float32)
        found[:, :width], found[:, width:] = states, self._inner.rows(given, n, width)
        return found

    # --- decoding ------------------------------------------------------------------------------------------

    def decode(self, feeds: Sequence[Feed], *, hidden: bool = False) -> list[Outputs]:
        """Decode at most ``n_together`` tokens; one ``Outputs`` for each feed.

        Raises
        ------
        ModelError
            llama.cpp failed, or a sequence has no room left.
        """
        with self.lock:  # two threads in one context would end the process
            return self._decode(feeds, hidden)

    def _decode(self, feeds: Sequence[Feed], hidden: bool) -> list[Outputs]:
        self._require_open()
        api = self._lib.api
        total = check_feeds(feeds, self, hidden=hidden)
        # llama.cpp takes ascending, consecutive sequences in one go, and splits others into smaller batches
        order = [0]
        if len(feeds) > 1:
            order = sorted(range(len(feeds)), key=[feed.sequence for feed in feeds].__getitem__)
            feeds = [feeds[i] for i in order]
        # an engine with embeddings makes every token an output, so all are asked for
        self._batch.fill(feeds, all_outputs=hidden)
        if hidden:
            self._clear_logits()
        self.decodes += 1
        api.llama_set_embeddings(self._context, hidden)
        status = api.llama_decode(self._context, self._batch.struct)
        if status:
            reason = "the context is full" if status == 1 else f"llama_decode returned {status}"
            raise DecodeError(
                f"the model could not read {total} tokens: {reason}",
                path=self.info.path,
                emptied=self._taken_back(feeds, status),
            )
        if len(feeds) == 1:
            return self._outputs(feeds, total, hidden)
        found: list[Any] = [None] * len(order)
        for place, outputs in zip(order, self._outputs(feeds, total, hidden), strict=True):
            found[place] = outputs
        return found

    def _taken_back(self, feeds: Sequence[Feed], status: int) -> set[int]:
        """Undo what a failed decode has read; return the sequences that had to be emptied for it.

        llama.cpp itself takes back a batch without room (1) and one that is invalid (-1), and leaves parts of others.
        """
        emptied = set()
        for feed in feeds:
            whole = len(feeds) == 1 or (status not in (1, -1) and (self.info.recurrent or self.info.hybrid))
            if whole or not self.forget(feed.sequence, feed.position):
                self.forget(feed.sequence)
                emptied.add(feed.sequence)
        return emptied

    def _outputs(self, feeds: Sequence[Feed], total: int, hidden: bool) -> list[Outputs]:
        api, found, at, row = self._lib.api, [], 0, 0
        rows = total if hidden else sum(feed.outputs for feed in feeds)
        n_vocab, n_embd = self.info.n_vocab, self.info.n_embd
        logits = self._logits.rows(api.llama_get_logits(self._context), rows, n_vocab)
        states = self._states.rows(api.llama_get_embeddings(self._context), rows, n_embd) if hidden else None
        if states is not None:
            if self._gives_both is None:
                self._gives_both = bool(logits[0].any())
            if not self._gives_both:  # lfm2's graph gives either of them
                np.copyto(logits, self._logits_of(states))  # where its samplers look for them, too
            if self.middle:
                states = self._with_middle(states)
        for feed in feeds:
            first = at + len(feed.tokens) - feed.outputs
            start = first if hidden else row
            stop = start + feed.outputs
            found.append(Outputs(logits[start:stop], None if states is None else states[start:stop], first))
            at, row = at + len(feed.tokens), row + feed.outputs
        return found

    def _clear_logits(self) -> None:
        """Clear the last row, until it is known whether there are logits beside hidden states."""
        if self._gives_both is None and (old := self._lib.api.llama_get_logits(self._context)):
            np.ctypeslib.as_array(old, (1, self.info.n_vocab))[:] = 0

    def _logits_of(self, states: Any) -> Any:
        """Return the logits that belong to hidden states, where llama.cpp does not give both."""
        rows = self.output_rows()
        if self._matrix is None:
            self._matrix = rows.whole()
            self.notes.append(
                "llama.cpp does not give logits together with hidden states for this architecture, so they are "
                "computed here: "
                f"{self._matrix.nbytes / 1e6:.0f} MB, and slower"
            )
        return rows.logits(states, self._matrix)

    # --- contexts ------------------------------------------------------------------------------------------

    @property
    def can_shift(self) -> bool:
        """Whether ``shift`` works with this model.

        llama.cpp also says yes to recurrent and hybrid models, whose state keeps what was dropped, and to those with
        sliding windows, where it crashed (0.3.36, gemma2).
        """
        self._require_open()
        stateful = self.info.recurrent or self.info.hybrid or self._lib.api.llama_model_n_swa(self._model) > 0
        return not stateful and bool(self._lib.api.llama_memory_can_shift(self._memory))

    def forget(self, sequence: int, start: int = 0, end: int = -1) -> bool:
        """Remove positions [start, end) of a sequence (-1: to its end); False where the model cannot."""
        with self.lock:
            if not self._context:  # a session may end after its model; one that sleeps holds nothing
                return self.asleep
            return bool(self._lib.api.llama_memory_seq_rm(self._memory, sequence, start, end))

    def shift(self, sequence: int, start: int, count: int) -> None:
        """Remove ``count`` positions from ``start`` on and move what comes behind them down by ``count``."""
        api = self._lib.api
        with self.lock:
            self._require_open()
            api.llama_memory_seq_rm(self._memory, sequence, start, start + count)
            api.llama_memory_seq_add(self._memory, sequence, start + count, -1, -count)

    def save_sequence(self, sequence: int) -> bytes:
        """Return a sequence's whole context as bytes that ``load_sequence`` takes back."""
        api = self._lib.api
        with self.lock:
            self._require_open()
            size = api.llama_state_seq_get_size(self._context, sequence)
            data, place = _fresh_bytes(size)
            written = api.llama_state_seq_get_data(self._context, place, size, sequence)
            return data if written == size else data[:written]

    def load_sequence(self, sequence: int, data: bytes) -> bool:
        """Put a saved context into a sequence; False where it does not fit this model."""
        place = ctypes.cast(ctypes.c_char_p(data), ctypes.POINTER(ctypes.c_uint8))  # read, not copied
        with self.lock:
            self._require_open()
            self.forget(sequence)
            return bool(self._lib.api.llama_state_seq_set_data(self._context, place, len(data), sequence))

    # --- parts ---------------------------------------------------------------------------------------------

    def sampler(self, sampling: Sampling) -> Sampler:
        """Return a new sampler with the engine's vocabulary."""
        from atlas_kit.llama.llama_sampler import LlamaSampler

        self._require_open()
        ends = self.end_tokens if sampling.ignore_eos else ()
        return LlamaSampler(
            self._lib.api, self._context, self._vocab, self.info, sampling, ends, grammars=self._grammars
        )

    def _all_pieces(self) -> list[bytes]:
        return [self._spelled(token, True) for token in range(self.info.n_vocab)]

    def output_rows(self) -> OutputRows:
        """Return the read-out matrix, from which logits are made; it is there while the model sleeps."""
        self._require_words()
        assert self._loaded is not None
        return self._loaded.file.rows(self._is_control, self._plain_matrix())

    def _plain_matrix(self) -> tuple[int, int] | None:
        """Return the shape of a read-out matrix that need not be looked at before one of its rows is needed."""
        assert self._loaded is not None
        if not self._loaded.checks_later:
            return None
        keys = (f"{self.info.architecture}.{name}" for name in ("logit_scale", "final_logit_softcapping"))
        return None if any(map(self.metadata, keys)) else (self.info.n_vocab, self.info.n_embd)

    def _is_control(self, token: int) -> bool:
        """Tell whether a token has no text; of a model that is closed, what was known then."""
        if (found := self._controls.get(token)) is None:
            if not self._context and not self.asleep:
                return False
            found = self._controls[token] = not self.piece(token) and bool(self.piece(token, special=True))
        return found

    def _require_open(self) -> None:
        if self.asleep:
            self.wake()
        if not self._context:  # llama.cpp would end the process
            raise ClosedError("the model is closed", path=self.info.path)

    def _require_words(self) -> None:
        """Require the vocabulary, which is there while the model sleeps."""
        if not self.asleep:
            self._require_open()

    def sleep(self) -> None:
        """Free weights and contexts, until the model is needed again; nothing of what sequences hold is kept.

        The vocabulary stays, so that texts can be read meanwhile. No sampler may be in use.

        Raises
        ------
        InvalidParamError
            The engine was not opened with ``sleeps``.
        """
        with self.lock:
            if self._loaded is None or not self._context:
                return
            if not self._loaded.keeps_words:
                raise InvalidParamError("this model was not opened so that it can sleep", key="sleeps")
            self._logits, self._states, self._inner = Rows(), Rows(), Rows()
            self.asleep = True  # first: other threads read texts meanwhile
            self._free()
            self._loaded.sleep()
            self._loaded.file.let_go()

    def wake(self) -> None:
        """Load weights and make contexts again, where the model sleeps; it wakes by itself when it is to decode.

        Raises
        ------
        ModelError
            llama.cpp does not load the model any more, or its file is another one's by now.
        """
        with self.lock:
            if not self.asleep or self._loaded is None:
                return
            notes = [*self.notes]
            try:
                self._loaded.wake()
                self._model = self._loaded.model
                self._make_context(Wanted(self.n_ctx, self.n_sequences, self.n_threads, self._n_batch))
            except BaseException:
                self._free()
                self._loaded.sleep()
                raise
            finally:
                self.notes = notes
            self.asleep = False

    def close(self) -> None:
        """Free the model; closing twice is fine."""
        with self.lock:
            self._close()

    def _free(self) -> None:
        if self._context:
            self._lib.api.llama_free(self._context)
        self._context = None

    def _close(self) -> None:
        self._free()
        if self._free_blas is not None:
            self._free_blas()
            self._free_blas = None
        if self._loaded is not None:
            self._loaded.close()
        self._loaded = self._matrix = None
        self.asleep = False

    def __enter__(self) -> LlamaEngine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        with contextlib.suppress(Exception):
            self.close()


def _described(text: str, n_params: int) -> str:
    """Return llama.cpp's description of a model with its true size: it guesses that from the number of layers.

    >>> _described("llama 256M Q4_1", 134_515_008), _described("llama ?B Q8_0", 8_100_000)
    ('llama 135M Q4_1', 'llama 8.1M Q8_0')
    >>> _described("llama 7B Q4_K - Medium", 6_738_415_616), _described("llama 8x7B F16", 46_702_792_704)
    ('llama 7B Q4_K - Medium', 'llama 8x7B F16')
    """
    architecture, _, rest = text.partition(" ")
    size, _, kind = rest.partition(" ")
    named = re.fullmatch(r"(\d+(?:\.\d+)?)([KMB])", size)
    if named is not None:
        ratio = float(named[1]) * {"K": 1e3, "M": 1e6, "B": 1e9}[named[2]] / max(n_params, 1)
        if 0.75 < ratio < 1.33:
            return text
    elif size != "?B":
        return text
    return f"{architecture} {_in_words(n_params)} {kind}"


def _in_words(n_params: int) -> str:
    """Return how many parameters there are.

    >>> _in_words(263_000), _in_words(134_515_008), _in_words(1_235_814_432)
    ('263K', '135M', '1.2B')
    """
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "K")):
        if n_params >= size:
            count = n_params / size
            return f"{count:.{1 if count < 10 else 0}f}".removesuffix(".0") + unit
    return str(n_params)


def _fresh_bytes(size: int) -> tuple[bytes, Any]:
    """Return bytes that are yet to be filled, and where: a context may be 100 MB, which nobody need copy."""
    make = ctypes.pythonapi.PyBytes_FromStringAndSize
    make.restype, make.argtypes = ctypes.py_object, (ctypes.c_void_p, ctypes.c_ssize_t)
    data = make(None, size)
    return data, ctypes.cast(ctypes.c_char_p(data), ctypes.POINTER(ctypes.c_uint8))
