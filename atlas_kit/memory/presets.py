"""Named memories: the known rules as settings of one update, each the special case that the paper derives.

Every function takes ``d_k``, ``d_v`` and any setting of ``MemoryConfig`` that should differ.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from atlas_kit.memory.config import MemoryConfig
from atlas_kit.memory.features import Features, Identity, Polynomial
from atlas_kit.memory.modules import GatedMLP, Matrix, ResidualMLP
from atlas_kit.memory.objectives import L2, DotProduct

_PLAIN = Features(map=Identity(), normalize_keys=False)
_POLYNOMIAL = Features(map=Polynomial(degree=2), normalize=True)


def linear_attention(d_k: int, d_v: int, **settings: Any) -> MemoryConfig:
    """Linear attention, the Hebbian rule: M_t = M_{t-1} + v_t k_t^T (dot-product objective, c = 1, eta = 1)."""
    return _config(d_k, d_v, settings, features=_PLAIN, module=Matrix(), objective=DotProduct(), eta=1.0)


def delta_rule(d_k: int, d_v: int, **settings: Any) -> MemoryConfig:
    """The Delta rule: M_t = M_{t-1} - eta (M_{t-1} k_t - v_t) k_t^T (L2 objective, c = 1), k_t of length 1."""
    return _config(
        d_k, d_v, settings, features=Features(map=Identity()), module=Matrix(), objective=L2(), eta=0.5
    )


def titans(d_k: int, d_v: int, **settings: Any) -> MemoryConfig:
    """Titans: a deep memory with momentum and decay, learning from the last token (c = 1)."""
    return _config(
        d_k, d_v, settings, features=Features(map=Identity()), module=ResidualMLP(),
        alpha=0.999, theta=0.6, eta=0.1, guard=True,
    )  # fmt: skip


def omega_net(d_k: int, d_v: int, **settings: Any) -> MemoryConfig:
    """OmegaNet (equation 10): polynomial features, deep memory, gradient descent on the last 16 tokens."""
    return _config(
        d_k, d_v, settings, features=_POLYNOMIAL, module=ResidualMLP(),
        alpha=0.999, eta=0.05, omega_window=16, guard=True,
    )  # fmt: skip


def atlas(d_k: int, d_v: int, **settings: Any) -> MemoryConfig:
    """Atlas (equations 32 and 33): OmegaNet with momentum and Muon."""
    return _config(
        d_k, d_v, settings, features=_POLYNOMIAL, module=ResidualMLP(),
        alpha=0.999, theta=0.5, eta=0.02, omega_window=16, use_muon=True, guard=True,
    )  # fmt: skip


def atlas_pp(d_k: int, d_v: int, **settings: Any) -> MemoryConfig:
    """Atlas++: Atlas with a gated deep memory (equation 43)."""
    return atlas(d_k, d_v, **{"module": GatedMLP(), **settings})


PRESETS: dict[str, Callable[..., MemoryConfig]] = {
    "linear_attention": linear_attention,
    "delta_rule": delta_rule,
    "titans": titans,
    "omega_net": omega_net,
    "atlas": atlas,
    "atlas_pp": atlas_pp,
}


def _config(d_k: int, d_v: int, settings: dict[str, Any], **defaults: Any) -> MemoryConfig:
    return MemoryConfig(d_k, d_v, **defaults).replace(**settings)
