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

import numpy as np

from atlas_kit.memory.backend import Array, add_scaled, namespace, sum_of_squares
from atlas_kit.memory.modules import Factors, gradient
from atlas_kit.memory.muon import newton_schulz

# How much is updated at a time: the product's block (256 x 2,048 float32 = 2 MB) is still in the core's cache when
# it is added. For 2,144 x 2,048 with 64 tokens on one core the update in place takes 5.8 ms, the product alone into
# a whole matrix 5.7 ms; blocks of 1 to 4 MB are within 3 % of each other.
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
    if s == 1:  # one step per chunk: 35 of the 300 us of a small update went into building this 1
        return xp.ones((*rate.shape, 1), rate.dtype)
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
    """What one chunk makes of one parameter: its new value and momentum, and a bound of their size."""

    parameter: Array
    momentum: Array | None
    squares: Array  #: (R,); at least the parameter's squared Frobenius norm; infinite or NaN when anything is


def final(
    M: Array,
    S: Array | None,
    factors: Factors,
    rule: Recurrence,
    muon: bool,
    scale: Array,
    reuse_within: float = 0.0,
) -> Step:
    """Return parameter and momentum behind the chunk's last token.

    M, S: (R, rows, cols); A: (R, n, rows), B: (R, n, cols); ``scale`` (R,) shortens the step when it is retried.
    Where no norm behind the step can exceed ``reuse_within``, M and S themselves are written to.
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
        return Step(M_t, momentum, _worst(M_t, momentum))
    w = -(e[:, None, :] @ rule.w)[:, 0, :]
    q = None if S is None else -(e * rule.p).sum(axis=-1)
    p, w_S = rule.p[:, -1], rule.w[:, -1, :]
    into: tuple[Array | None, Array | None] = (None, None)
    squares = None
    if reuse_within > 0:
        bound = _bound(A, B, (a, M), (q, S), w)
        if S is not None:
            bound = xp.where(xp.isfinite(_bound(A, B, (p, S), (None, None), w_S)), bound, xp.inf)
        if bool((bound <= reuse_within).all()):
            into, squares = (M, S), bound * bound
    M_t = decayed_sum(M, a, A, B * w[..., None], S, q, into[0])
    S_t = None if S is None else decayed_sum(S, p, A, B * w_S[..., None], into=into[1])
    return Step(M_t, S_t, _worst(M_t, S_t) if squares is None else squares)


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
    into: Array | None = None,
) -> Array:
    """Return a W + A^T B (+ q S): (R, rows, cols); a, q: (R,). ``into``, which may be W, takes the result.

    On the host it goes block by block, each some rows of a large matrix or several small matrices, so that the product
    is added while it is in the cache: NumPy has no product that accumulates.
    """
    xp = namespace(W)
    left = A.swapaxes(-1, -2)
    if xp is not np:
        return add_scaled(left @ B, a, W, q, S, into)
    R, rows, cols = W.shape
    out = np.empty_like(W) if into is None else into
    block = min(rows, max(1, _BLOCK_BYTES // max(1, cols * W.itemsize)))
    group = max(1, _BLOCK_BYTES // max(1, rows * cols * W.itemsize))
    scratch = np.empty((min(group, R), block, cols), W.dtype)
    for first in range(0, R, group):
        row = slice(first, first + group)
        for start in range(0, rows, block):
            part = (row, slice(start, start + block))
            product = scratch[: min(group, R - first), : min(block, rows - start)]
            np.matmul(left[part], B[row], out=product)
            if S is None or q is None:
                add_scaled(product, a[row], W[part], out=out[part])
            else:
                add_scaled(product, a[row], W[part], q[row], S[part], out[part])
    return out


def _bound(
    A: Array, B: Array, matrix: tuple[Array, Array], other: tuple[Array | None, Array | None], w: Array
) -> Array:
    """Return |a| ||W|| + |q| ||S|| + sum_t |w_t| |A_t| |B_t| (R,): at least ||a W + q S + A^T diag(w) B||."""
    xp = namespace(A)
    size = xp.sqrt(xp.einsum("rnk,rnk->rn", A, A) * xp.einsum("rnk,rnk->rn", B, B))
    bound = (abs(w) * size).sum(axis=-1)
    for rate, array in (matrix, other):
        if rate is not None:
            bound = bound + abs(rate) * xp.sqrt(sum_of_squares(array))
    return bound


def _momenta(S: Array | None, factors: Factors, rule: Recurrence) -> Array:
    """Return S_t of every step: (R, s, rows, cols)."""
    grads = gradient({"": factors}, rule.w)[""]
    return grads if S is None else grads + rule.p[..., None, None] * S[:, None]


def _worst(parameter: Array, momentum: Array | None) -> Array:
    """Return the parameter's squared norm, or the momentum's where that one is not finite."""
    squares = sum_of_squares(parameter)
    if momentum is None:
        return squares
    xp = namespace(squares)
    more = sum_of_squares(momentum)
    return xp.where(xp.isfinite(more), squares, more)
