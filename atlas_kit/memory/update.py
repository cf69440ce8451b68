"""The update rule: decay, momentum and step over one chunk (equations 9, 32 to 34, 39 to 41, 57 and 58).

    S_t = theta_t S_{t-1} + G_t            G_t = sum over the window of gamma_i^(t) grad l(M_0; k_i, v_i)
    M_t = alpha_t M_{t-1} - eta_t U_t      U_t = S_t, or NewtonSchulz_5(S_t) with Muon

All gradients of a chunk are taken at its first parameters M_0. A weighted sum of gradients is itself one product of
matrices, A^T diag(w) B, so S_t and M_t need not be built token by token: the recurrences run over the weights
w (small), and each parameter is touched once per chunk.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import numpy as np

from atlas_kit.memory.backend import Array, namespace
from atlas_kit.memory.modules import Factors, gradient
from atlas_kit.memory.muon import newton_schulz

# Rows of a large matrix that are updated together: the product's block (256 x 2,048 float32 = 2 MB) is still in
# the core's cache when it is added. Measured 64 to 1,024: within 15 % of each other, 128 and 256 best.
_BLOCK_BYTES = 2 << 20


@functools.lru_cache(maxsize=64)
def window_weights(steps: tuple[int, ...], past: int, chunk: int, omega_window: int, gamma: float) -> Array:
    """Return gamma_i^(t) of equation 9, as (len(steps), past + chunk) float64 on the host.

    Row s belongs to the step at token ``steps[s]`` of the chunk; columns are the ``past`` tokens before the chunk
    and the chunk's own. For c = 2 without decay, and one token before a chunk of two:

    >>> window_weights((0, 1), past=1, chunk=2, omega_window=2, gamma=1.0)
    array([[1., 1., 0.],
           [0., 1., 1.]])
    """
    age = np.asarray(steps)[:, None] - np.arange(-past, chunk)[None, :]
    inside = (age >= 0) & (age < omega_window)
    weights = np.where(inside, float(gamma) ** np.where(inside, age, 0), 0.0)
    weights.setflags(write=False)
    return weights


def decay_products(rate: Array) -> Array:
    """Return P with P[t, r] = rate[r+1] * ... * rate[t] for t >= r, else 0; rate: (..., s), P: (..., s, s).

    The scan of equations 39 to 41 as one matrix: the linear recurrence ``h_t = rate_t h_{t-1} + x_t`` from
    h = 0 is ``P @ x``. Zero rates are exact, because nothing is divided.

    >>> decay_products(np.array([0.5, 0.5, 0.0]))
    array([[1. , 0. , 0. ],
           [0.5, 1. , 0. ],
           [0. , 0. , 1. ]])
    """
    xp = namespace(rate)
    s = rate.shape[-1]
    below = xp.tril(xp.ones((s, s), dtype=bool), -1)
    one = xp.ones((), dtype=rate.dtype)
    factors = xp.where(below, rate[..., :, None], one)
    return xp.tril(xp.cumprod(factors, axis=-2))


@dataclasses.dataclass(frozen=True)
class Recurrence:
    """The chunk's recurrences, solved over weights instead of parameters.

    With s steps and n tokens (leading axes left out)::

        S_t = p_t S_0 + grad(w_t)                    p: (s,)   w: (s, n)
        M_t = a_t M_0 - sum_r e_tr U_r               a: (s,)   e: (s, s)
    """

    p: Array
    w: Array
    a: Array
    e: Array

    @classmethod
    def solve(cls, alpha: Array, theta: Array | None, eta: Array, weights: Array) -> Recurrence:
        """Solve for rates (..., s) and window weights (..., s, n); ``theta`` None means no momentum."""
        xp = namespace(weights)
        by_alpha = decay_products(alpha)
        if theta is None:
            p, w = xp.zeros_like(alpha), weights
        else:
            by_theta = decay_products(theta)
            p, w = by_theta[..., :, 0] * theta[..., :1], by_theta @ weights
        return cls(p, w, by_alpha[..., :, 0] * alpha[..., :1], by_alpha * eta[..., None, :])


@dataclasses.dataclass(frozen=True)
class Step:
    """What one chunk makes of one parameter: its new value and momentum, and their squared Frobenius norms."""

    parameter: Array
    momentum: Array | None
    squares: Array  #: (R,); infinite or NaN when anything in either is


def final(M: Array, S: Array | None, factors: Factors, rule: Recurrence, muon: bool, scale: Array) -> Step:
    """Return parameter and momentum behind the chunk's last token.

    M, S: (R, rows, cols); A: (R, n, rows), B: (R, n, cols); ``scale`` (R,) shortens the step when it is retried.
    """
    A, B = factors
    xp = namespace(M)
    a, e = rule.a[:, -1], rule.e[:, -1, :] * scale[:, None]
    if muon:
        S_t = _momenta(S, factors, rule)
        U = newton_schulz(S_t)
        M_t = a[:, None, None] * M - (
            e[:, None, :] @ U.reshape(*U.shape[:2], M.shape[1] * M.shape[2])
        ).reshape(M.shape)
        momentum = None if S is None else S_t[:, -1].copy()
        return Step(
            M_t, momentum, _worst(xp, _squares(M_t), None if momentum is None else _squares(momentum))
        )
    w = (e[:, None, :] @ rule.w)[:, 0, :]
    if S is None:
        M_t, squares = decayed_sum(M, a, A, B * -w[..., None])
        return Step(M_t, None, squares)
    q = -(e * rule.p).sum(axis=-1)
    M_t, squares = decayed_sum(M, a, A, B * -w[..., None], S, q)
    momentum, more = decayed_sum(S, rule.p[:, -1], A, B * rule.w[:, -1, :, None])
    return Step(M_t, momentum, _worst(xp, squares, more))


def trajectory(
    M: Array, S: Array | None, factors: Factors, rule: Recurrence, muon: bool, scale: Array
) -> Array:
    """Return the parameter behind every step of the chunk: (R, s, rows, cols)."""
    U = _momenta(S, factors, rule)
    if muon:
        U = newton_schulz(U)
    R, s, rows, cols = U.shape
    steps = (rule.e * scale[:, None, None]) @ U.reshape(R, s, rows * cols)
    return rule.a[..., None, None] * M[:, None] - steps.reshape(R, s, rows, cols)


def matrix_reads(
    M: Array,
    S: Array | None,
    factors: Factors,
    rule: Recurrence,
    queries: Array,
    scale: Array,
) -> Array:
    """Return y_t = M_t(phi(q_t)) for a matrix memory without Muon, without building any M_t (equation 34).

    As chunked linear attention does it: M_t is M_0 plus a weighted sum of outer products, so a read of it is a
    read of M_0 plus attention over the chunk's keys. queries: (R, s, rows); returns (R, s, cols).
    """
    A, B = factors
    e = rule.e * scale[:, None, None]
    y = rule.a[..., None] * (queries @ M)
    if S is not None:
        y = y - (e @ rule.p[..., None]) * (queries @ S)
    return y - ((queries @ A.swapaxes(-1, -2)) * (e @ rule.w)) @ B


def decayed_sum(
    W: Array,
    a: Array,
    A: Array,
    B: Array,
    S: Array | None = None,
    q: Array | None = None,
) -> tuple[Array, Array]:
    """Return a W + A^T B (+ q S) and its squared norms: (R, rows, cols) and (R,); a, q: (R,).

    On the host, large matrices go block by block, so that the product is added while it is in the cache: NumPy
    has no product that accumulates.
    """
    xp = namespace(W)
    R, rows, cols = W.shape
    block = max(1, _BLOCK_BYTES // max(1, cols * W.itemsize))
    if xp is not np or block >= rows:
        out = A.swapaxes(-1, -2) @ B
        out += a[:, None, None] * W
        if S is not None and q is not None:
            out += q[:, None, None] * S
        return out, _squares(out)
    out = np.empty_like(W)
    scratch = np.empty((block, cols), W.dtype)
    squares = np.zeros(R, W.dtype)
    for r in range(R):
        left = A[r].T
        for start in range(0, rows, block):
            stop = min(start + block, rows)
            product, into, old = scratch[: stop - start], out[r, start:stop], W[r, start:stop]
            np.matmul(left[start:stop], B[r], out=product)
            if a[r] != 1:
                np.multiply(old, a[r], out=into)
                old = into
            np.add(old, product, out=into)
            if S is not None and q is not None:
                np.multiply(S[r, start:stop], q[r], out=product)
                np.add(into, product, out=into)
            flat = into.reshape(-1)
            squares[r] += np.dot(flat, flat)
    return out, squares


def _momenta(S: Array | None, factors: Factors, rule: Recurrence) -> Array:
    """Return S_t of every step: (R, s, rows, cols)."""
    grads = gradient({"": factors}, rule.w)[""]
    return grads if S is None else grads + rule.p[..., None, None] * S[:, None]


def _squares(array: Array) -> Array:
    """Return the squared Frobenius norm of each row's matrix: (R,)."""
    flat = array.reshape(len(array), 1, array.shape[1] * array.shape[2])
    return (flat @ flat.swapaxes(-1, -2))[:, 0, 0]


def _worst(xp: Any, squares: Array, momentum: Array | None) -> Array:
    """Return the parameter's squared norm, or the momentum's where that one is not finite."""
    return squares if momentum is None else xp.where(xp.isfinite(momentum), squares, momentum)
