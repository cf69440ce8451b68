"""A session's context made to end where a text ends that its memory knows: nothing is learned, little is read again.

Knows of a session what it shows to those that work inside of it.
"""

from __future__ import annotations

from collections.abc import Sequence

from atlas_kit.llama.inside import Inside
from atlas_kit.llama.steps import Work, common_length


def placing(session: Inside, history: Sequence[int], tokens: Sequence[int]) -> Work[None]:
    """Do ``AtlasSession.placing``."""
    if len(session._owed) != 1 or not session._context:
        yield from session.catching_up()
    context, keep, owed = session._context, session._kept(), session._owed
    gone, ends = len(history) - len(context) - len(owed), len(history) - len(owed)
    whole = gone >= 0 and [*context[keep:], *owed] == list(history[gone + keep :])
    same = keep + common_length(context[keep:], tokens[gone + keep : ends]) if whole else 0
    known = gone + same == ends and same == len(context)
    if known and list(tokens[ends:]) == owed and (owed or session._last_output is not None):
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
    if len(owed) > 1:  # a single one is read together with what follows
        yield from session.catching_up()
