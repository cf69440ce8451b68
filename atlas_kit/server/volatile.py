"""System prompts without what changes from request to request, so that what was read of them need not be read again.

Assistants put such things at the very beginning, where they keep everything behind from being known:

- ``x-anthropic-billing-header: cc_version=...; cc_entrypoint=...; cch=...;`` (Claude Code, with a new hash each time)
  goes as a whole: it is a stamp for accounts, and nothing for the model.
- A line that tells the current date and time (``Current time: ...``, ``Today is ...``, ``The current date and time is
  ...``) keeps the date, which changes once a day, and loses the time of day. Where it has no date, the line goes.

All other text stays as it is, times in it too.
"""

from __future__ import annotations

import re

_STAMP = re.compile(r"\A\s*x-anthropic-billing-header:(?:[ \t]*[\w.-]+=[^;\n]*(?:;|(?=\n)|\Z))*[ \t]*\n?")
#: A line that may tell what time it is: whether it does, its other words say.
_LINE = re.compile(
    r"^[^\n\w]{0,8}[^\n:]{0,40}\b(?:current|now|today|today's)(?:\b|_)[^\n]{0,160}$",
    re.IGNORECASE | re.MULTILINE,
)
_CLOCK = re.compile(
    r"(?:(?<=\d)[T ]|,?\s+(?:at\s+)?)?(?<![\d:.])\d{1,2}:\d{2}(?::\d{2}(?:[.,]\d+)?)?(?![\d:])"
    r"(?:\s*[AaPp]\.?[Mm]\b\.?)?"
    r"(?:\s*(?:Z\b|(?:UTC|GMT)?[+-]\d{1,2}(?::?\d{2})?\b|UTC\b|GMT\b|[A-Z]{3,4}\b))?"
    r"(?:\s*\([\w /+:,-]{1,60}\))?"
)
_NO_WORDS = re.compile(r"\([^()]*\)|\b[A-Z]\w+/[A-Z][\w/]+|\b[A-Z]{1,5}\b|\d+(?:st|nd|rd|th)\b")
_VOCABULARY = (
    "a and at date datetime day current is it iso local now of on s system the time timestamp timezone today today's "
    "user user's utc gmt zone "
    "monday tuesday wednesday thursday friday saturday sunday mon tue tues wed thu thurs fri sat sun "
    "january february march april may june july august september october november december "
    "jan feb mar apr jun jul aug sep sept oct nov dec"
)
_WORDS = frozenset(_VOCABULARY.split())


def steady(text: str) -> str:
    r"""Return a part of a system prompt without what changes each time.

    >>> steady("x-anthropic-billing-header: cc_version=2.1; cch=a5145;You are an assistant.")
    'You are an assistant.'
    >>> steady("Be kind.\nCurrent time: 2026-11-29T21:12:16Z\nLunch is at 12:30.")
    'Be kind.\nCurrent time: 2026-11-29\nLunch is at 12:30.'
    """
    return _LINE.sub(_without_clock, _STAMP.sub("", text))


def _without_clock(found: re.Match[str]) -> str:
    """Take the time of day out of a line that has nothing else to say than when it is."""
    line = found[0]
    kept = _CLOCK.sub("", line)
    words = re.findall(r"[^\W\d_]+(?:'s)?", _NO_WORDS.sub(" ", kept))
    if kept == line or not all(word.lower() in _WORDS for word in words):
        return line
    return kept if re.search(r"\d", kept) else ""
