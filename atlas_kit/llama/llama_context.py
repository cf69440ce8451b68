"""A context of a model in llama.cpp: how large it is, and making it. Needs no NumPy.

It takes some ten milliseconds, in which Python is not needed. Whoever loads a model on a thread of its own makes it
there (``prepare``), and an engine that asks for the same takes it over.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any

from atlas_kit.errors import ModelError
from atlas_kit.llama.llama_library import LoadedModel, require_range

#: Bytes of logits that a decode may return: 64 tokens of a 128k vocabulary; and one for many sequences at once.
OUTPUT_BYTES, TOGETHER_BYTES = 32 << 20, 128 << 20
#: Tokens of a decode at most, unless somebody asks for more.
MOST_TOKENS = 512


@dataclass(frozen=True)
class Wanted:
    """What an engine may ask for; None: as ``LlamaEngine`` says."""

    n_ctx: int | None = None
    n_sequences: int = 1
    n_threads: int | None = None
    n_batch: int | None = None


@dataclass
class Context:
    """A context, which whoever has it frees.

    ``n_ctx`` is that of one sequence; ``n_batch`` are the tokens of one sequence that a decode takes, ``n_together``
    and ``n_outputs`` the tokens and outputs of a decode for several.
    """

    pointer: Any
    n_ctx: int
    n_sequences: int
    n_batch: int
    n_together: int
    n_outputs: int
    n_threads: int
    notes: list[str] = field(default_factory=list)


def make_context(loaded: LoadedModel, wanted: Wanted) -> Context:
    """Make a context.

    Raises
    ------
    ModelError, InvalidParamError
        llama.cpp cannot, or something is out of range.
    """
    api = loaded.library.api
    trained = api.llama_model_n_ctx_train(loaded.model)
    n_vocab = api.llama_vocab_n_tokens(loaded.vocab)
    n_ctx = min(trained or 4096, 4096) if wanted.n_ctx is None else wanted.n_ctx
    require_range("n_ctx", n_ctx, 16, 1 << 24)
    require_range("n_sequences", wanted.n_sequences, 1, 256)
    if wanted.n_batch is not None:
        n_batch = n_together = n_outputs = wanted.n_batch
    else:
        n_batch = min(MOST_TOKENS, _rows(OUTPUT_BYTES, n_vocab), max(16, n_ctx))
        n_together = max(n_batch, min(MOST_TOKENS, n_ctx * wanted.n_sequences))
        n_outputs = max(n_batch, min(n_together, _rows(TOGETHER_BYTES, n_vocab)))
    require_range("n_batch", n_batch, 1, 1 << 16)
    threads = len(os.sched_getaffinity(0)) if wanted.n_threads is None else wanted.n_threads
    require_range("n_threads", threads, 1, 1024)
    params = api.llama_context_default_params()
    params.n_ctx, params.n_seq_max = n_ctx * wanted.n_sequences, wanted.n_sequences
    params.n_batch = params.n_ubatch = n_together
    params.n_threads = params.n_threads_batch = threads
    params.pooling_type = api.LLAMA_POOLING_TYPE_NONE
    params.no_perf = True
    pointer = loaded.library.heard(lambda: api.llama_init_from_model(loaded.model, params))
    if not pointer:
        raise ModelError(
            f"llama.cpp cannot make a context of {n_ctx} tokens: {loaded.library.last_error()}",
            path=loaded.path,
            key="n_ctx",
        )
    made = Context(pointer, n_ctx, wanted.n_sequences, n_batch, n_together, n_outputs, threads)
    if trained and n_ctx > trained:
        made.notes.append(
            f"a context of {n_ctx} tokens is more than the {trained} that the model was trained with"
        )
    return made


def _rows(size: int, n_vocab: int) -> int:
    """Return how many tokens' logits fit into so many bytes."""
    return max(16, size // (4 * n_vocab) // 16 * 16)


def prepare(loaded: LoadedModel, wanted: Wanted) -> None:
    """Make a context for whoever asks for it next; as ``make_context``."""
    loaded.free_prepared()
    made = make_context(loaded, wanted)
    loaded.prepared = wanted, made, made.pointer


def context_of(loaded: LoadedModel, wanted: Wanted) -> Context:
    """Return the context that was prepared, where it is what is wanted, or a new one; as ``make_context``."""
    if loaded.prepared is not None and loaded.prepared[0] == wanted:
        made: Context = loaded.prepared[1]
        loaded.prepared = None
        return made
    loaded.free_prepared()
    return make_context(loaded, wanted)
