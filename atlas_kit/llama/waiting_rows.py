"""What the tokens of a step that is not full wait with, one array each, and whether such arrays fit a memory."""

from __future__ import annotations

from collections.abc import Mapping

from atlas_kit.codecs.numbers import Array
from atlas_kit.settings.atlas_settings import GATE_FEATURES

#: Three derivatives of the ranking, and that of the step size; between them those of a learned metric, if there is one.
SLOPES = 4
#: What waits for its step to fill.
PENDING = ("hidden", "lse", "token", "top", "features", "probabilities", "slope")
#: And what only a whitened memory waits with (see ``asked_for``).
ASKED = ("gradient", "share")


def rows_fit(
    parts: Mapping[str, Array],
    count: int,
    recent: Array,
    *,
    width: int,
    candidates: int,
    n_vocab: int,
    metric: int = 0,
) -> bool:
    """Tell whether arrays from a file are what tokens could have waited with.

    Parameters
    ----------
    parts, count
        Some of ``PENDING`` and ``ASKED``, each with this many rows.
    recent
        Tokens that came lately.
    width, candidates, n_vocab, metric
        Numbers of a state, candidates of each token, tokens that there are, numbers of a key that a metric is learned
        for.
    """
    tails = (
        (width,),
        (),
        (),
        (candidates,),
        (GATE_FEATURES,),
        (3,),
        (SLOPES + metric,),
        (width,),
        (candidates,),
    )
    shapes = {name: (count, *tail) for name, tail in zip((*PENDING, *ASKED), tails, strict=True)}

    def are_tokens(ids: Array) -> bool:
        return ids.dtype.kind in "iu" and (not ids.size or 0 <= ids.min() <= ids.max() < n_vocab)

    return all(array.shape == shapes[name] for name, array in parts.items()) and all(
        are_tokens(ids) for ids in (recent, *(parts[name] for name in ("token", "top") if name in parts))
    )
