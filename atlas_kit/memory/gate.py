"""The gate: how much to trust each of several experts (model, window, memory), learned while reading.

The mixture ``p = sum_k lambda_k p_k`` has weights ``lambda = softmax(w f)`` of a few features ``f`` of the
token; after each chunk ``w`` takes one clipped gradient step on the mean of ``-log p(target)``. With two
experts this is ``lambda = sigmoid(w . f)``. The paper (arXiv 2505.23735) has no such equation: its gates
are trained with the model, and a stock model has none. Knows neither the experts nor where their
probabilities come from.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from atlas_kit.errors import InvalidParamError
from atlas_kit.memory._checks import is_number, is_whole
from atlas_kit.memory.backend import Array, namespace, quiet

State = dict[str, Array]

#: Features beyond this are cut: useful ones are about 1, and ``w f`` must stay finite whatever a model does.
LARGEST_FEATURE = 1e4


@dataclass(frozen=True)
class Gate:
    """An online-learned mixture of experts; its state is ``{"w": (R, experts - 1, features)}``.

    Attributes
    ----------
    experts
        Number of experts, at least 2. The first is the reference (the model): its logit is 0.
    features
        Number of features per token, such as the three of ``gate_features``.
    rate
        Step size; 0 freezes the gate.
    clip
        Greatest L2 norm of a row's gradient, over all of its ``w``.
    start
        First ``w``: ``experts - 1`` tuples of ``features`` numbers, or one such tuple for all of them. None:
        ``(-1, 0, 0, ...)``, which gives the first of two experts the weight 0.73.

    Raises
    ------
    InvalidParamError
        For a setting out of range, naming it.
    """

    kind: ClassVar[str] = "softmax-gate"

    experts: int = 2
    features: int = 3
    rate: float = 0.05
    clip: float = 1.0
    start: tuple[tuple[float, ...], ...] | tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        _check_count("experts", self.experts, 2)
        _check_count("features", self.features, 1)
        if not (is_number(self.rate) and self.rate >= 0):
            raise InvalidParamError(f"{self.rate!r} is not a finite number of at least 0", key="rate")
        if not (is_number(self.clip) and self.clip > 0):
            raise InvalidParamError(f"{self.clip!r} is not a finite number above 0", key="clip")
        if self.start is not None:
            object.__setattr__(self, "start", self._start_rows(self.start))

    def _start_rows(self, start: Any) -> tuple[tuple[float, ...], ...]:
        """Return ``start`` as ``experts - 1`` tuples, also from one for all and from JSON's lists."""
        rows = start
        if _is_sequence(start) and not any(map(_is_sequence, start)):
            rows = (start,) * (self.experts - 1)
        fits = _is_sequence(rows) and len(rows) == self.experts - 1
        if not fits or not all(_is_sequence(row) and len(row) == self.features for row in rows):
            rows = ()
        if not rows or not all(is_number(number) for row in rows for number in row):
            wanted = f"{self.experts - 1} times {self.features} finite numbers"
            raise InvalidParamError(f"{start!r} is not {wanted}", key="start")
        return tuple(tuple(float(number) for number in row) for row in rows)

    def init(self, rows: int, xp: Any = np, dtype: str = "float32") -> State:
        """Return the first state for ``rows`` rows, in the library ``xp``."""
        one = (-1.0,) + (0.0,) * (self.features - 1)
        start = self.start if self.start is not None else (one,) * (self.experts - 1)
        w = xp.empty((rows, self.experts - 1, self.features), dtype)
        w[:] = xp.asarray(start, dtype)
        return {"w": w}

    @quiet
    def weights(self, state: Mapping[str, Array], f: Array) -> Array:
        """Return ``lambda (R, n, experts)``, which sums to 1, from features ``f (R, n, features)``.

        A feature that is not finite counts as 0.

        >>> gate = Gate()
        >>> gate.weights(gate.init(1, dtype="float64"), np.array([[[1.0, 0.0, 0.0]]])).round(4).tolist()
        [[[0.7311, 0.2689]]]
        """
        return namespace(f).exp(self._log_weights(state, _bounded(f)))

    @quiet
    def blend(self, state: Mapping[str, Array], f: Array, p: Array) -> Array:
        """Return the mixture ``(R, n, ...)`` of the experts' probabilities ``p (R, n, experts, ...)``.

        ``...`` is nothing (the probability of one token each), a vocabulary or a set of candidates.
        """
        self._check_experts(p)
        return mix(self.weights(state, f), p)

    @quiet
    def responsibilities(
        self, state: Mapping[str, Array], f: Array, p_target: Array, mask: Array | None = None
    ) -> Array:
        """Return ``(R, n, experts)``: the probability that each expert was the one who knew (the posterior).

        ``lambda_k p_k / sum_j lambda_j p_j`` of the target's probabilities: minus the blended loss's
        gradient with respect to ``log p_k``, so that a memory whose gradient is weighed by it learns only
        what the others miss. A token that is left out (see ``update``) tells nothing: its posterior is its
        prior, ``lambda``.

        >>> gate = Gate()
        >>> f, p = np.array([[[1.0, 0.0, 0.0]]]), np.array([[[0.1, 0.9]]])
        >>> gate.responsibilities(gate.init(1, dtype="float64"), f, p).round(4).tolist()
        [[[0.232, 0.768]]]
        """
        return self._posterior(state, _bounded(f), p_target, mask)[1]

    @quiet
    def update(
        self, state: Mapping[str, Array], f: Array, p_target: Array, mask: Array | None = None
    ) -> tuple[State, Array]:
        """Take one gradient step of each row's mean ``-log sum_k lambda_k p_k``.

        Parameters
        ----------
        state
            As ``init`` gives it; not changed.
        f
            ``(R, n, features)``, for example ``(2, 16, 3)``.
        p_target
            ``(R, n, experts)``: the probability that each expert gave the token that came.
        mask
            ``(R, n)`` bool: the tokens that count; None: all.

        Returns
        -------
        state, loss
            The new state, and the blended loss ``(R, n)`` in nats before the step.

        Notes
        -----
        With logits ``a_k = w_k . f`` the gradient is ``dL/da_k = lambda_k - posterior_k``. Left out of the
        mean, with loss 0: tokens that ``mask`` hides, that no expert gave any probability, or for which one
        gave a number that is negative or not finite. A row without a token stays as it is.

        Examples
        --------
        ``lambda = (0.7311, 0.2689)``, so ``p = 0.7311 * 0.1 + 0.2689 * 0.9 = 0.3152``, loss 1.1547; the
        second posterior is ``0.2689 * 0.9 / 0.3152 = 0.7680``, the gradient ``0.2689 - 0.7680 = -0.4990``,
        the step ``0.05 * 0.4990 = 0.0250``.

        >>> gate = Gate()
        >>> f, p = np.array([[[1.0, 0.0, 0.0]]]), np.array([[[0.1, 0.9]]])
        >>> state, loss = gate.update(gate.init(1, dtype="float64"), f, p)
        >>> state["w"].round(4).tolist(), loss.round(4).tolist()
        ([[[-0.975, 0.0, 0.0]]], [[1.1547]])
        """
        new, loss, _ = self.update_and_posterior(state, f, p_target, mask)
        return new, loss

    @quiet
    def update_and_posterior(
        self, state: Mapping[str, Array], f: Array, p_target: Array, mask: Array | None = None
    ) -> tuple[State, Array, Array]:
        """Return what ``update`` returns, and the ``responsibilities`` before the step."""
        xp = namespace(f, p_target)
        w = state["w"]
        f = _bounded(f)
        weights, posterior, loss, used = self._posterior(state, f, p_target, mask)
        count = xp.maximum(used.sum(axis=-1), 1).astype(w.dtype)[:, None, None]
        slope = (weights - posterior)[..., 1:]
        gradient = slope.swapaxes(-1, -2) @ f / count
        norm = xp.sqrt((gradient * gradient).sum(axis=(-2, -1), keepdims=True))
        step = gradient * (self.rate * self.clip / xp.maximum(norm, self.clip))
        return {**state, "w": (w - step).astype(w.dtype, copy=False)}, loss, posterior

    def _log_weights(self, state: Mapping[str, Array], f: Array) -> Array:
        """Return ``log lambda (R, n, experts)``."""
        xp = namespace(f)
        others = f @ state["w"].swapaxes(-1, -2)
        logits = xp.zeros((*others.shape[:-1], others.shape[-1] + 1), others.dtype)
        logits[..., 1:] = others
        logits -= logits.max(axis=-1, keepdims=True)
        logits -= xp.log(xp.exp(logits).sum(axis=-1, keepdims=True))
        return logits

    def _posterior(
        self, state: Mapping[str, Array], f: Array, p: Array, mask: Array | None
    ) -> tuple[Array, Array, Array, Array]:
        """Return ``lambda``, posterior (both ``(R, n, experts)``), loss and tokens used (both ``(R, n)``).

        In logarithms, because ``lambda_k p_k`` of a sure gate and a rare token would underflow in float32.
        """
        self._check_experts(p)
        xp = namespace(f, p)
        log_weights = self._log_weights(state, f)
        weights = xp.exp(log_weights)
        positive = (p > 0) & (p < xp.inf)
        used = (positive | (p == 0)).all(axis=-1) & positive.any(axis=-1)
        if mask is not None:
            used = used & mask
        joint = xp.where(positive, log_weights + xp.log(xp.where(positive, p, 1)), -xp.inf)
        informed = positive.any(axis=-1)
        top = xp.where(informed, joint.max(axis=-1), 0)
        share = xp.exp(joint - top[..., None])
        total = xp.where(informed, share.sum(axis=-1), 1)
        loss = xp.where(used, -(top + xp.log(total)), 0)
        posterior = xp.where(used[..., None], share / total[..., None], weights)
        return weights, posterior, loss, used

    def _check_experts(self, p: Array) -> None:
        if p.ndim < 3 or p.shape[2] != self.experts:
            raise InvalidParamError(
                f"probabilities of shape {p.shape} are not (R, n, {self.experts}, ...)", key="experts"
            )


def mix(weights: Array, p: Array) -> Array:
    """Return ``sum_k weights_k p_k``, shape ``(R, n, ...)``, of ``p (R, n, experts, ...)``.

    ``weights``: ``(R, n, experts)``, or one number per expert as ``fixed_blend`` gives them.

    >>> mix(fixed_blend(0.25), np.array([[[0.2, 0.6]]])).round(6).tolist()
    [[0.3]]
    """
    constant = _is_sequence(weights)
    tail = (1,) * (p.ndim - 3)
    out = None
    for k in range(p.shape[2]):
        weight = weights[k] if constant else weights[..., k].reshape(p.shape[:2] + tail)
        out = weight * p[:, :, k] if out is None else out + weight * p[:, :, k]
    return out


def fixed_blend(blend_ratio: float) -> tuple[float, float]:
    """Return the constant weights ``(1 - blend_ratio, blend_ratio)`` of model and memory, for ``mix``.

    Raises
    ------
    InvalidParamError
        Unless ``blend_ratio`` is a number from 0 (model alone) to 1 (memory alone).
    """
    if not (is_number(blend_ratio) and 0 <= blend_ratio <= 1):
        raise InvalidParamError(f"{blend_ratio!r} is not a number from 0 to 1", key="blend_ratio")
    return 1.0 - float(blend_ratio), float(blend_ratio)


def gate_features(
    similarity: Array, entropy: Array, length: Array | None = None, confidence: Array | None = None
) -> Array:
    """Return ``[1, 10 (similarity - 0.8), entropy - 2]``, stacked on a new last axis.

    With ``length`` and ``confidence`` (see ``Ranked``) also ``length - 1.5`` and ``2 confidence - 1``.

    ``similarity``: the greatest cosine of the token's key with the window's (``CacheRead.similarity``);
    ``entropy``: of the model's next-token distribution, in nats. Both ``(R, n)``, shifted and scaled to be
    about 1 around where a cache starts to be right and a model to be unsure.

    >>> gate_features(np.array([[0.9]]), np.array([[1.5]])).round(6).tolist()
    [[[1.0, 1.0, -0.5]]]
    """
    xp = namespace(similarity, entropy)
    found = [1, 10 * (similarity - 0.8), entropy - 2]
    if length is not None and confidence is not None:
        found += [length - 1.5, 2 * confidence - 1]
    stacked = xp.empty((*similarity.shape, len(found)), xp.result_type(*found[1:]))
    for place, feature in enumerate(found):
        stacked[..., place] = feature
    return stacked


def _bounded(f: Array) -> Array:
    """Return features that cannot overflow: those that are not finite as 0, the others cut."""
    xp = namespace(f)
    finite = xp.isfinite(f)
    if not bool(finite.all()):
        f = xp.where(finite, f, 0)
    return xp.maximum(xp.minimum(f, LARGEST_FEATURE), -LARGEST_FEATURE)


def _is_sequence(value: object) -> bool:
    return isinstance(value, (tuple, list))


def _check_count(key: str, value: object, least: int) -> None:
    if not is_whole(value, least):
        raise InvalidParamError(f"{value!r} is not a whole number of at least {least}", key=key)
