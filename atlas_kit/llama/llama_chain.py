"""llama.cpp's chain of samplers: one maker for each name, in the order that is asked for.

What changes nothing with its settings is left out, as it would cost a pass over the vocabulary. ``top_p`` over a whole
vocabulary sorts it, so ``top_k`` comes first by default. llama.cpp checks next to nothing: what would end the process
is refused here.
"""

from __future__ import annotations

import ctypes
import secrets
from collections.abc import Callable, Mapping
from typing import Any

from atlas_kit.errors import InvalidParamError
from atlas_kit.llama.sampling import COLD, Sampling

#: Candidates that Mirostat 1 estimates with, as in llama.cpp.
_MIROSTAT_M = 100
#: Candidates that the infill sampler compares with each other; of a whole vocabulary that would take minutes.
_MOST_INFILL = 1000


class Chain:
    """Makes the chain of a model's samplers.

    Parameters
    ----------
    api, context, vocab
        llama.cpp, and the model's parts of it.
    n_vocab
        Tokens.
    sampling
        The settings.
    """

    def __init__(self, api: Any, context: Any, vocab: Any, n_vocab: int, sampling: Sampling) -> None:
        self._api, self._context, self._vocab, self._n_vocab, self._s = api, context, vocab, n_vocab, sampling
        seed = sampling.short_seed
        self._seed = secrets.randbits(32) if seed is None else seed

    def make(self, bias: Mapping[int, float]) -> Any:
        """Return the chain, which is the caller's to free; it begins with a ``bias`` on tokens.

        Raises
        ------
        InvalidParamError
            The samplers cannot be combined in this way.
        """
        makers = self._makers()
        parts = [part for part in (maker() for maker in makers) if part is not None]
        chain = self._api.llama_sampler_chain_init(self._api.llama_sampler_chain_default_params())
        if bias:
            parts.insert(0, self._biased(bias))
        for part in parts:
            self._api.llama_sampler_chain_add(chain, part)
        return chain

    def _biased(self, bias: Mapping[int, float]) -> Any:
        pairs = (self._api.llama_logit_bias * len(bias))(*bias.items())
        return self._api.llama_sampler_init_logit_bias(self._n_vocab, len(bias), pairs)

    def _makers(self) -> list[Callable[[], Any]]:
        s, named = self._s, self._named
        if s.mirostat:
            last = self._greedy if s.greedy else self._mirostat
            return [named["temperature"], last] if not s.greedy else [last]
        order = [name for name in s.order if name != "adaptive_p"]
        if "infill" in order:
            self._require_infill(order)
        if s.greedy:  # of those that may stay, the likeliest does
            return [*(named[name] for name in order if name in ("penalties", "dry")), self._greedy]
        last = self._adaptive if "adaptive_p" in s.order else self._draw
        return [*(named[name] for name in order), last]

    @property
    def _named(self) -> dict[str, Callable[[], Any]]:
        api, s = self._api, self._s
        return {
            "penalties": self._penalties,
            "dry": self._dry,
            "top_n_sigma": lambda: (
                api.llama_sampler_init_top_n_sigma(s.top_n_sigma) if s.top_n_sigma > 0 else None
            ),
            "top_k": lambda: api.llama_sampler_init_top_k(s.top_k) if s.top_k else None,
            "typ_p": lambda: (
                api.llama_sampler_init_typical(s.typical_p, s.min_keep) if s.typical_p < 1 else None
            ),
            "top_p": lambda: api.llama_sampler_init_top_p(s.top_p, s.min_keep) if s.top_p < 1 else None,
            "min_p": lambda: api.llama_sampler_init_min_p(s.min_p, s.min_keep) if s.min_p > 0 else None,
            "xtc": self._xtc,
            "temperature": self._temperature,
            "infill": lambda: api.llama_sampler_init_infill(self._vocab),
        }

    def _penalties(self) -> Any:
        s, make = self._s, self._api.llama_sampler_init_penalties
        if s.repeat_penalty == 1.0 and not s.frequency_penalty and not s.presence_penalty:
            return None
        # llama-cpp-python 0.3.36 also wants n_vocab
        size = (self._n_vocab,) if len(make.argtypes) == 5 else ()
        return make(
            *size, self._last(s.repeat_last_n), s.repeat_penalty, s.frequency_penalty, s.presence_penalty
        )

    def _dry(self) -> Any:
        s, api = self._s, self._api
        if not s.dry_multiplier or not s.dry_penalty_last_n:
            return None
        texts = [text.encode("utf-8", "replace") for text in s.dry_sequence_breakers]
        breakers = (ctypes.c_char_p * len(texts))(*texts)
        make = api.llama_sampler_init_dry
        # it once wanted the length of the training context before its numbers
        size = (api.llama_n_ctx(self._context),) if len(make.argtypes) == 8 else ()
        last = self._last(s.dry_penalty_last_n)
        return make(
            self._vocab, *size, s.dry_multiplier, s.dry_base, s.dry_allowed_length, last, breakers, len(texts)
        )

    def _last(self, count: int) -> int:
        return count if count >= 0 else int(self._api.llama_n_ctx(self._context))

    def _xtc(self) -> Any:
        s = self._s
        if not s.xtc_probability or s.xtc_threshold > 0.5:
            return None
        return self._api.llama_sampler_init_xtc(s.xtc_probability, s.xtc_threshold, s.min_keep, self._seed)

    def _temperature(self) -> Any:
        s, api = self._s, self._api
        if s.dynatemp_range > 0 and not s.mirostat:
            return api.llama_sampler_init_temp_ext(s.temperature, s.dynatemp_range, s.dynatemp_exponent)
        return api.llama_sampler_init_temp(s.temperature if s.temperature > COLD else 0.0)

    def _mirostat(self) -> Any:
        s, api = self._s, self._api
        if s.mirostat == 1:
            return api.llama_sampler_init_mirostat(
                self._n_vocab, self._seed, s.mirostat_tau, s.mirostat_eta, _MIROSTAT_M
            )
        return api.llama_sampler_init_mirostat_v2(self._seed, s.mirostat_tau, s.mirostat_eta)

    def _adaptive(self) -> Any:
        return self._api.llama_sampler_init_adaptive_p(
            self._s.adaptive_target, self._s.adaptive_decay, self._seed
        )

    def _draw(self) -> Any:
        return self._api.llama_sampler_init_dist(self._seed)

    def _greedy(self) -> Any:
        return self._api.llama_sampler_init_greedy()

    def _require_infill(self, order: list[str]) -> None:
        """Refuse what llama.cpp's infill sampler would take minutes for, or end the process at."""
        few = "top_k" in order[: order.index("infill")] and 0 < self._s.top_k <= _MOST_INFILL
        if not few or order.count("infill") > 1:
            raise InvalidParamError(
                f"the sampler infill comes once, behind a top_k of 1 to {_MOST_INFILL}", key="samplers"
            )
        if max(self._api.llama_vocab_eot(self._vocab), self._api.llama_vocab_eos(self._vocab)) < 0:
            raise InvalidParamError("the sampler infill needs a vocabulary with an end token", key="samplers")
