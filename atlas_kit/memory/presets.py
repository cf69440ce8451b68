"""Named memories: the known rules as settings of one update, each the special case that the paper derives.

Every function takes ``d_k``, ``d_v`` and any setting of ``MemoryConfig`` that should differ. The deep ones choose eta
by the number of hidden units, and do not decay: the paper's decay is a trained gate per token, and a constant one wears
the input matrices of an MLP down to nothing within some thousand tokens, after which it learns no more.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

from atlas_kit.memory.config import MemoryConfig
from atlas_kit.memory.features import Features, Identity, Polynomial
from atlas_kit.memory.modules import GatedMLP, Matrix, ResidualMLP
from atlas_kit.memory.objectives import L2, DotProduct

_PLAIN = Features(map=Identity(), normalize_keys=False)
# The paper trains the coefficients a_i, from 1/i! on. Untrained, these are better: in one pass at d_k = 16 a matrix
# behind them holds 68.7 pairs instead of 12.1 (capacity in tools/experiments), because the constant is what all keys
# share and the squares tell them apart.
_POLYNOMIAL = Features(map=Polynomial(degree=2, coefficients=(0.0, 0.5, 1.0), constant=False), normalize=True)
# No skip connection: nothing trains projections here that would give it a meaning, and an empty memory is to read as
# nothing, not as its own key.
_DEEP = ResidualMLP(residual=False)
_GATED = GatedMLP(residual=False)


def linear_attention(d_k: int, d_v: int, **settings: Any) -> MemoryConfig:
    """Linear attention, the Hebbian rule: M_t = M_{t-1} + v_t k_t^T (dot-product objective, c = 1, eta = 1)."""
    return _config(d_k, d_v, settings, features=_PLAIN, module=Matrix(), objective=DotProduct(), eta=1.0)


def delta_rule(d_k: int, d_v: int, **settings: Any) -> MemoryConfig:
    """The Delta rule: M_t = M_{t-1} - eta (M_{t-1} k_t - v_t) k_t^T (L2 objective, c = 1), k_t of length 1."""
    return _config(
        d_k, d_v, settings, features=Features(map=Identity()), module=Matrix(), objective=L2(), eta=0.5
    )


def titans(d_k: int, d_v: int, **settings: Any) -> MemoryConfig:
    """Titans: a deep memory with momentum, learning from the last token (c = 1).

    The Titans paper puts eta into the momentum (S = theta S - eta grad, M = M + S), which is the same while eta is
    constant; its decay is trained, see above.
    """
    return _deep(
        d_k, d_v, settings, lambda units: 0.3 / units, features=Features(map=Identity()), module=_DEEP,
        theta=0.6, guard=True,
    )  # fmt: skip


def omega_net(d_k: int, d_v: int, **settings: Any) -> MemoryConfig:
    """OmegaNet (equation 10): polynomial features, deep memory, gradient descent on the last 16 tokens."""
    return _deep(
        d_k, d_v, settings, lambda units: 0.8 / units, features=_POLYNOMIAL, module=_DEEP,
        omega_window=16, guard=True,
    )  # fmt: skip


def atlas(d_k: int, d_v: int, **settings: Any) -> MemoryConfig:
    """Atlas (equations 32 and 33): OmegaNet with momentum and Muon.

    One step for every two tokens, since Newton-Schulz is most of the cost; ``chunk_size=1`` is the paper's, with a step
    for each.
    """
    return _deep(
        d_k, d_v, settings, lambda units: 1.0 / math.sqrt(units * d_k), features=_POLYNOMIAL, module=_DEEP,
        theta=0.5, omega_window=16, use_muon=True, guard=True, chunk_size=2, step="chunk",
    )  # fmt: skip


def atlas_pp(d_k: int, d_v: int, **settings: Any) -> MemoryConfig:
    """Atlas++: Atlas with a gated deep memory (equation 43)."""
    return atlas(d_k, d_v, **{"module": _GATED, **settings})


PRESETS: dict[str, Callable[..., MemoryConfig]] = {
    "linear_attention": linear_attention,
    "delta_rule": delta_rule,
    "titans": titans,
    "omega_net": omega_net,
    "atlas": atlas,
    "atlas_pp": atlas_pp,
}


def _config(d_k: int, d_v: int, settings: dict[str, Any], **defaults: Any) -> MemoryConfig:
    unknown = settings.keys() - {field.name for field in dataclasses.fields(MemoryConfig)}
    if unknown:  # with the words of ``replace``
        MemoryConfig(d_k, d_v).replace(**dict.fromkeys(sorted(unknown)))
    return MemoryConfig(d_k, d_v, **{**defaults, **settings})


def _deep(
    d_k: int, d_v: int, settings: dict[str, Any], rate: Callable[[int], float], **defaults: Any
) -> MemoryConfig:
    """Return a configuration whose eta fits the hidden units, unless ``settings`` has one.

    Hidden units have the variance 1, so the input h of the output matrix has |h|^2 in proportion to their number. A
    step of gradient descent changes a read by eta |h|^2, one of Muon, which has a fixed size, by eta |h|. A matrix
    reads the features themselves, of length 1. (Steps of a fixed size never settle: older pairs suffer from every one,
    and the more of them a wider key can tell apart, the smaller they have to be.)
    """
    config = _config(d_k, d_v, settings, **defaults)
    if "eta" in settings:
        return config
    units = 1 if isinstance(config.module, Matrix) else config.module.shapes(config.d_phi, d_v)["W_out"][0]
    return config.replace(eta=rate(units))
