"""How somebody names entries, metadata keys and tensors: by patterns, and what a name may mean that is not there.

Knows no format.
"""

from __future__ import annotations

import fnmatch
import itertools
import re
from collections.abc import Iterable, Sequence

from atlas_kit.errors import KeyNotFoundError, Remedy

#: With how many names one that is not there is compared, and a new one.
_COMPARED, _COMPARED_NEW = 5000, 2000


def matches(name: str, patterns: Sequence[str]) -> bool:
    """Tell whether a name matches one of the patterns (``*``, ``?``, ``[...]``), or there are none."""
    return not patterns or any(name == p or fnmatch.fnmatchcase(name, p) for p in patterns)


def similar_keys(key: str, known: Iterable[str]) -> list[str]:
    """Return up to three keys that may be meant by one that is not there: first those of other case, then like it."""
    import difflib

    names = list(known)
    if len(names) > _COMPARED:  # comparing takes microseconds for each
        names = [
            name for name in names if abs(len(name) - len(key)) <= 3 or name.casefold() == key.casefold()
        ]
    same = [name for name in itertools.islice(names, _COMPARED) if name.casefold() == key.casefold()]
    close = difflib.get_close_matches(key, names[:_COMPARED], 3)
    return list(dict.fromkeys([*same, *close]))[:3]


def misspelled(key: str, known: Iterable[str]) -> list[str]:
    """Return keys of which a new one may be a misspelling; those that differ in a number are not."""
    import difflib

    without = re.sub(r"\d", "", key)
    others = (
        one
        for one in itertools.islice(known, _COMPARED_NEW)
        if one != key and re.sub(r"\d", "", one) != without
    )
    return difflib.get_close_matches(key, others, 2, 0.85)


def not_found(key: str, known: Iterable[str], path: str | None) -> KeyNotFoundError:
    """Return the error for a key that is not there, with similar ones as the hint."""
    close = similar_keys(key, known)
    hint = f"Similar: {', '.join(close)}" if close else None
    remedy = None if close else Remedy("list-entries")
    return KeyNotFoundError("there is no entry with this key", path=path, key=key, hint=hint, remedy=remedy)


def no_match(pattern: str, path: str | None) -> KeyNotFoundError:
    """Return the error for a pattern that no name matches."""
    return KeyNotFoundError("no name matches this", path=path, key=pattern, remedy=Remedy("list-entries"))
