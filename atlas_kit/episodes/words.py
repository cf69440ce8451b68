"""The words of a text, as they are looked up: the same for what is stored and for what is asked.

A word is folded: case, accents and width do not count. Names such as ``sources.list``, ``wt-epi``, ``snake_case`` or
``CamelCase`` are their parts, and the whole without what joins them. Chinese, Japanese, Korean, Thai and others
that do not end a word with a space are overlapping pairs of characters.
"""

from __future__ import annotations

import functools
import re
import unicodedata

#: Letters that do not stand between spaces word by word. In Korean they do, with particles that vary.
_HAN = "々〆㐀-䶿一-鿿豈-\ufaff\U00020000-\U0003ffff"
_KANA = "ぁ-ゖゝゞァ-ヺーヽヾㇰ-ㇿ"
_UNSPACED = (_HAN, _KANA, "가-힣", "\u0e01-\u0e5b", "\u0e81-\u0edf", "\u1000-\u109f", "\u1780-\u17dd")
#: Signs above and below letters, which Python does not count among the letters of a word.
_SIGNS = (
    "\u0300-\u036f\u0483-\u0487\u0591-\u05bd\u05bf\u05c1\u05c2\u05c4\u05c5\u05c7\u0610-\u061a\u064b-\u065f"
    "\u0670\u0900-\u0963\u0966-\u096f\u0971-\u0df3\u0e01-\u0e5b\u0e81-\u0edf\u1000-\u109f\u1780-\u17dd\u3099\u309a"
)
#: Those of them that are left out: accents, and the vowels of Arabic and Hebrew, which are seldom written.
_LEFT_OUT = "[\u0300-\u036f\u0591-\u05bd\u05bf\u05c1\u05c2\u05c4\u05c5\u05c7\u064b-\u065f\u0670ـ]"

_JOINED = r"[._\-/@:+'’‐,]"
_ASCII_RUN = re.compile(rf"[A-Za-z0-9]+(?:{_JOINED}[A-Za-z0-9]+)*")
_RUN = rf"(?:[^\W_]|[{_SIGNS}])+(?:{_JOINED}(?:[^\W_]|[{_SIGNS}])+)*"
_SPLIT = re.compile(_JOINED)
_APOSTROPHE = re.compile("['’]")
#: Parts of a name that is written in one: CamelCase, HTTPServer, 512MB.
_PARTS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
_HUMP = re.compile(r"[a-z][A-Z]|[A-Z]{2}[a-z]|^\d+[A-Za-z]")
_BY_SCRIPT = "|".join(f"[{script}]+" for script in _UNSPACED) + f"|[^{''.join(_UNSPACED)}]+"
_UNSPACED_LETTER = f"[{''.join(_UNSPACED)}]"
#: Longer than this it is no word: a key, a picture as text.
_LONGEST = 64
#: The patterns that only other texts than ASCII need are made for the first of them: that takes 15 ms.
_pattern = functools.cache(re.compile)


def runs(text: str) -> list[str]:
    """Return what stands between spaces and punctuation, as it is written: what ``of_run`` makes words of."""
    return (
        _ASCII_RUN.findall(text)
        if text.isascii()
        else _pattern(_RUN).findall(unicodedata.normalize("NFKC", text))
    )


def of_run(run: str) -> list[str]:
    """Return the words of one run."""
    if run.isascii():
        if run.isalpha() and (run.islower() or run[1:].islower() or run.isupper()):
            return [run.lower()[:_LONGEST]]
    elif _pattern(_UNSPACED_LETTER).search(run):
        return [word for part in _pattern(_BY_SCRIPT).findall(run) for word in _of_script(part)]
    found: list[str] = []
    commas = run.split(",")
    if len(commas) > 1 and not all(part.isdigit() for part in commas):
        return [word for part in commas for word in of_run(part)]
    for part in _APOSTROPHE.split(run):
        pieces = [piece for piece in _SPLIT.split(part) if piece]
        found += [word for piece in pieces for word in _of_name(piece)]
        if len(pieces) > 1:
            found.append(_folded("".join(pieces)))
    found = [word for word in found if word]  # an accent alone is none
    # What an apostrophe cuts off says nothing: it's, l'eau.
    return [word for word in found if len(word) > 1] or found if _APOSTROPHE.search(run) else found


def words(text: str) -> list[str]:
    """Return the words of a text in their order."""
    return [word for run in runs(text) for word in of_run(run)]


def is_unspaced(word: str) -> bool:
    """Tell whether a word begins with a letter that does not stand between spaces word by word."""
    return _pattern(_UNSPACED_LETTER).match(word) is not None


def _of_script(part: str) -> list[str]:
    """Words of a part of a run in which either all letters stand without spaces or none."""
    if not _pattern(_UNSPACED_LETTER).match(part):
        return of_run(part) if re.search(r"[^\W_]", part) else []
    return [part[i : i + 2] for i in range(max(1, len(part) - 1))]


def _of_name(piece: str) -> list[str]:
    """A word, and the parts of one that is written in one."""
    whole = _folded(piece)
    if not _HUMP.search(piece) or not piece.isascii():
        return [whole]
    return [*(part.lower() for part in _PARTS.findall(piece)), whole]


def _folded(word: str) -> str:
    if word.isascii():
        return word.lower()[:_LONGEST]
    plain = _pattern(_LEFT_OUT).sub("", unicodedata.normalize("NFKD", word.casefold()))
    return unicodedata.normalize("NFC", plain)[:_LONGEST]
