"""Muon's orthogonalisation by Newton-Schulz: replaces a matrix by about U V^T of its SVD (eqs. 32-33, 57-58).

Pure arithmetic on the last two axes, so every matrix of a batch is one of a few matrix products.
"""

from __future__ import annotations

import math

from atlas_kit.errors import InvalidParamError
from atlas_kit.memory._checks import is_whole
from atlas_kit.memory.backend import Array, namespace, quiet

# For X = U diag(s) V^T, A = X X^T = U diag(s^2) U^T, so a step X <- a X + (b A + c A^2) X is
#     X <- U diag(p(s)) V^T,    p(s) = a s + b s^3 + c s^5:
# the singular vectors stay, and each singular value runs through the scalar iteration s <- p(s). The
# coefficients (K. Jordan, "Muon", 2024; github.com/KellerJordan/Muon) do not converge to 1. They make p steep
# at 0, so that few steps lift even a small s, and keep what has arrived near 1: p's local minimum and maximum
# are 0.682 and 1.202, and p maps [0.682, 1.202] into [0.682, 1.134].
A, B, C = 3.4445, -4.7750, 2.0315

#: Of the paper's NewtonSchulz_5: singular values of X_0 from 0.00151 up end between 0.68 and 1.21.
STEPS = 5


@quiet
def newton_schulz(S: Array, steps: int = STEPS) -> Array:
    """Return U (..., rows, columns), about the nearest orthogonal matrix to S (..., rows, columns).

    ``X_0 = S / ||S||_F``, then ``steps`` times ``X <- a X + (b A + c A^2) X`` with ``A = X X^T`` on the
    smaller side; the dtype is kept. The size of S has no influence: 1e-30 S and 1e30 S give what S gives. A
    zero matrix stays zero; one that holds a NaN or an infinity becomes NaN, and its batch is not affected.

    Raises
    ------
    InvalidParamError
        When S has less than two axes, or ``steps`` is not a whole number of 0 or more.

    Examples
    --------
    diag(3, 4) / 5 has the singular values 0.6 and 0.8, and p(0.6) = 2.0667 - 1.0314 + 0.15796944, p(0.8) =
    2.7556 - 2.4448 + 0.66568192:

    >>> import numpy as np
    >>> newton_schulz(np.diag([3.0, 4.0]), steps=1).round(8).tolist()
    [[1.19326944, 0.0], [0.0, 0.97648192]]
    """
    if S.ndim < 2:
        raise InvalidParamError(f"shape {S.shape} is not a matrix or a batch of them", key="S")
    if not is_whole(steps):
        raise InvalidParamError(f"steps is {steps!r}, not a whole number of 0 or more", key="steps")
    if 0 in S.shape:
        return S.copy()
    tall = S.shape[-2] > S.shape[-1]
    xp = namespace(S)
    X = _unit(S)
    if tall:
        X = xp.swapaxes(X, -1, -2)
    for _ in range(steps):
        gram = X @ xp.swapaxes(X, -1, -2)
        polynomial = gram @ gram
        polynomial *= C
        gram *= B
        polynomial += gram
        step = polynomial @ X
        X *= A
        X += step
    return xp.swapaxes(X, -1, -2) if tall else X


def _unit(S: Array) -> Array:
    """Return S / ||S||_F as a new array; by way of the largest entry, whose square float32 may not hold."""
    xp = namespace(S)
    peak = abs(S).max(axis=(-2, -1), keepdims=True)
    peak = xp.where(peak == 0.0, 1.0, peak).astype(S.dtype, copy=False)
    # An infinity over itself would warn; NaN says the same quietly.
    X = S / xp.where(xp.isinf(peak), math.nan, peak).astype(S.dtype, copy=False)
    norm = xp.sqrt((X * X).sum(axis=(-2, -1), keepdims=True))
    X /= xp.where(norm == 0.0, 1.0, norm).astype(S.dtype, copy=False)
    return X
