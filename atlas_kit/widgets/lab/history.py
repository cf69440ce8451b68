"""What a run of the lab has given so far, token by token."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from atlas_kit.codecs.numbers import Array


@dataclass(frozen=True, eq=False)
class History:
    """What a run has given so far, one row per token.

    Attributes
    ----------
    tokens
        (n,) as they came.
    loss_model, loss
        (n,) in nats, without and with the memory; NaN where nothing came before.
    """

    tokens: Array
    loss_model: Array
    loss: Array

    @property
    def scored(self) -> int:
        """How many tokens have a loss."""
        return int(np.isfinite(self.loss).sum())

    @property
    def mean(self) -> tuple[float, float]:
        """Mean losses in nats per token, without and with the memory."""
        return float(np.nanmean(self.loss_model)), float(np.nanmean(self.loss))
