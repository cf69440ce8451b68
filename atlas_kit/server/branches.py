"""What of a text that a client sends is known already: texts compared by their bytes, where tokens may be cut anew.

A client sends a conversation whole each time, and reads it as text: the model's own answer comes back cut into other
tokens than were generated. So two texts are compared by bytes from the first token on in which they differ, and the
last place counts where both have a seam. A control token is no text: nothing that anybody writes is equal to it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from atlas_kit.llama.steps import common_length


class Match(NamedTuple):
    """How far two texts are the same: the first ``known`` tokens of one are the first ``wanted`` of the other."""

    known: int
    wanted: int


def match(known: Sequence[int], wanted: Sequence[int], spelled: Callable[[int], bytes]) -> Match:
    """Return how far a text that was read is what a text that shall be read begins with.

    ``spelled`` gives the bytes of a token; see ``Spelling``.

    >>> pieces = {1: b"a", 2: b"b", 3: b"ab", 4: b"c"}
    >>> match([4, 1, 2, 4], [4, 3, 4, 4], pieces.__getitem__)
    Match(known=4, wanted=3)
    """
    one = other = common_length(known, wanted)
    found = Match(one, other)
    ahead, behind = b"", b""  # what stands since the last seam, of known and of wanted
    while True:
        if len(ahead) <= len(behind):
            if one == len(known):
                return found
            ahead += spelled(known[one])
            one += 1
        else:
            if other == len(wanted):
                return found
            behind += spelled(wanted[other])
            other += 1
        shared = min(len(ahead), len(behind))
        if ahead[:shared] != behind[:shared]:
            return found
        ahead, behind = ahead[shared:], behind[shared:]
        if not ahead and not behind:
            found = Match(one, other)


class Spelling:
    """The bytes of tokens; those of control tokens begin with 0xFF, which is in no text."""

    def __init__(self, piece: Callable[[int], bytes]) -> None:
        self._piece = piece
        self._kept: dict[int, bytes] = {}

    def __call__(self, token: int) -> bytes:
        """Return the bytes of a token."""
        found = self._kept.get(token)
        if found is None:
            found = self._piece(token) or b"\xff%d\xff" % token
            self._kept[token] = found
        return found
