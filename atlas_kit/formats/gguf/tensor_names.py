"""Where a tensor stands in a model, by its name: its layer, and what it does there. Knows no file."""

from __future__ import annotations

import re

#: ``blk.3.attn_q.weight``, ``enc.blk.0.ffn_up.bias``, ``v.blk.11.attn_out.weight``: llama.cpp's scheme.
_OF_LAYER = re.compile(r"^(?P<before>(?:[a-z_]+\.)*)blk\.(?P<layer>\d{1,6})\.(?P<role>.+)$")
_ENDINGS = (".weight", ".bias")


def layer_and_role(name: str) -> tuple[str, str]:
    """Return the layer of a tensor ("" outside of them), and what it does in each of them.

    >>> layer_and_role("blk.3.attn_q.weight")
    ('3', 'attn_q')
    >>> layer_and_role("v.blk.11.ln1.bias")
    ('v.11', 'ln1.bias')
    >>> layer_and_role("token_embd.weight")
    ('', 'token_embd')
    """
    short = name.removesuffix(_ENDINGS[0])
    found = _OF_LAYER.match(short)
    if found is None:
        return "", short
    return found["before"] + str(int(found["layer"])), found["role"]
