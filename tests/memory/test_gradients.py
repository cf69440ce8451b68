"""Every module under every objective against central finite differences in float64."""

from __future__ import annotations

import numpy as np
import pytest

from atlas_kit.memory.modules import ACTIVATIONS, GatedMLP, Matrix, ResidualMLP, gradient
from atlas_kit.memory.objectives import L2, CrossEntropy, DotProduct, Readout

TOKENS = 4
VOCABULARY = 12
CANDIDATES = np.array([2, 5, 6, 9])

MODULES = {
    "matrix": Matrix(),
    **{
        f"mlp{depth}-{activation}-{'residual' if residual else 'plain'}": ResidualMLP(
            depth, 3, activation, residual
        )
        for depth in (2, 3, 4)
        for activation in ACTIVATIONS
        for residual in (True, False)
    },
    **{
        f"gated-{activation}-{'residual' if residual else 'plain'}": GatedMLP(3, activation, residual)
        for activation in ACTIVATIONS
        for residual in (True, False)
    },
}

#: name -> objective, candidates only, centred, tokens
AMONG, OUTSIDE = [2, 9, 5, 5], [2, 0, 11, 7]
OBJECTIVES = {
    "l2": (L2(), False, False, None),
    "dot": (DotProduct(), False, False, None),
    "ce-full": (CrossEntropy(), False, False, OUTSIDE),
    "ce-full-scale-softcap-centre": (CrossEntropy(scale=0.7, softcap=2.0), False, True, OUTSIDE),
    "ce-candidates": (CrossEntropy(), True, False, AMONG),
    "ce-candidates-centre": (CrossEntropy(), True, True, AMONG),
    "ce-candidates-scale": (CrossEntropy(scale=1.6), True, True, AMONG),
    "ce-candidates-softcap": (CrossEntropy(softcap=1.5), True, True, AMONG),
    "ce-candidates-outside": (CrossEntropy(scale=0.7, softcap=2.0), True, True, OUTSIDE),
}


def make_targets(objective, candidates, centred, tokens, d_v, rng):
    """Return targets of TOKENS tokens, and the readout; lse as a model with this vocabulary would have it."""
    if tokens is None:
        return {"value": rng.standard_normal((TOKENS, d_v))}, None
    rows, hidden = rng.standard_normal((VOCABULARY, d_v)), rng.standard_normal((TOKENS, d_v))
    logits = objective.scale * hidden @ rows.T
    if objective.softcap:
        logits = objective.softcap * np.tanh(logits / objective.softcap)
    targets = {"token": np.array(tokens), "hidden": hidden, "lse": np.log(np.exp(logits).sum(axis=-1))}
    ids = CANDIDATES if candidates else None
    return targets, Readout(
        rows[CANDIDATES] if candidates else rows, ids, rows.mean(axis=0) if centred else None
    )


def spread(targets, size):
    """Repeat the targets for each of ``size`` batch rows."""
    return {name: np.broadcast_to(array, (size, *array.shape)) for name, array in targets.items()}


@pytest.mark.parametrize(("d_in", "d_out"), [(3, 3), (4, 3), (3, 4)], ids=["square", "cut", "padded"])
@pytest.mark.parametrize("objective_name", OBJECTIVES)
@pytest.mark.parametrize("module_name", MODULES)
def test_gradient_is_the_finite_difference(module_name, objective_name, d_in, d_out):
    module, (objective, *how) = MODULES[module_name], OBJECTIVES[objective_name]
    rng = np.random.default_rng(7)
    params = {name: rng.standard_normal(shape) * 0.7 for name, shape in module.shapes(d_in, d_out).items()}
    x, weights = rng.standard_normal((TOKENS, d_in)), rng.uniform(0.2, 1.0, TOKENS)
    targets, readout = make_targets(objective, *how, d_out, rng)

    y, cache = module.forward(params, x)
    loss, dy = objective.evaluate(y, targets, readout)
    assert loss.shape == (TOKENS,)
    found = gradient(module.factors(params, cache, dy), weights)

    # One batch row per step of one entry: f' = (8 (f(h) - f(-h)) - (f(2h) - f(-2h))) / 12 h + O(h^4).
    h = 1e-4
    for name, matrix in params.items():
        steps = (
            np.eye(matrix.size).reshape(matrix.size, 1, *matrix.shape)
            * np.array([1, -1, 2, -2])[:, None, None]
            * h
        )
        size = matrix.size * 4
        moved = {key: np.broadcast_to(array, (size, *array.shape)) for key, array in params.items()}
        moved[name] = (matrix + steps).reshape(size, *matrix.shape)
        losses, _ = objective.evaluate(
            module.forward(moved, np.broadcast_to(x, (size, *x.shape)))[0], spread(targets, size), readout
        )
        f = (losses @ weights).reshape(matrix.size, 4)
        difference = (8 * (f[:, 0] - f[:, 1]) - (f[:, 2] - f[:, 3])) / (12 * h)
        scale = max(1.0, float(abs(difference).max()))
        np.testing.assert_allclose(found[name], difference.reshape(matrix.shape), rtol=0, atol=1e-9 * scale)
