"""A session's context made to end where a text ends that its memory knows: nothing is learned, little is read again.

Knows of a session what it shows to those that work inside of it.
"""

from __future__ import annotations

from collections.abc import Sequence

from atlas_kit.llama.inside import Inside
from atlas_kit.llama.steps import Work, common_length


def placing(session: Inside, history: Sequence[int], tokens: Sequence[int]) -> Work[None]:
    """Do ``AtlasSession.placing``."""
    yield from session.catching_up()
    context, keep = session._context, session._kept()
    gone = len(history) - len(context)
    whole = gone >= 0 and context[keep:] == list(history[gone + keep :])
    same = keep + common_length(context[keep:], tokens[gone + keep :]) if whole else 0
    if gone + same == len(tokens) and same == len(context) and session._last_output is not None:
        return
    same = min(same, len(tokens) - gone - 1)  # the last one is read again, for what it gives
    if same <= keep or not session.engine.forget(session.sequence, same):
        session.forget_context()
        most = session.engine.n_ctx
        owed = list(tokens)
        if len(owed) >= most and not session.engine.info.recurrent:  # as if it had just been full
            front = owed[: min(session.keeps, most - 4)] or [*session.engine.begin]
            owed = [*front, *owed[-max(1, (most - len(front)) // 2) :]]
    else:
        del context[same:]
        session._position, session._last_output, owed = same, None, list(tokens[gone + same :])
    session._owed = owed
    yield from session.catching_up()
