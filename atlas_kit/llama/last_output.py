"""The output of the last token that a session has read, from which the next one is predicted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from atlas_kit.codecs.numbers import Array

if TYPE_CHECKING:
    from atlas_kit.llama.reading import Reading


@dataclass
class LastOutput:
    """The last token's output, until it is known which token follows."""

    hidden: Array | None
    logits: Array
    place: tuple[int, int] | None  # in the engine's batch, and in which decode that was
    token: int  # the token itself
    reading: Reading | None = None

    def keep(self) -> None:
        """Copy what the engine's next decode overwrites."""
        self.logits = self.logits.copy()
        self.hidden = None if self.hidden is None else self.hidden.copy()

    def arrays(self, width: int | None) -> dict[str, Array]:
        """Return copies of logits and state, of this width: what ``last_output_of`` takes."""
        found = {"logits": np.array(self.logits, np.float32).reshape(1, -1)}
        if self.hidden is None:
            return found
        return {**found, "hidden": np.array(self.hidden[:, :width], np.float32)}


def last_output_of(output: Mapping[str, Array], token: int) -> LastOutput:
    """Return the output that a state kept of its last token."""
    return LastOutput(output["hidden"], output["logits"], None, token)
