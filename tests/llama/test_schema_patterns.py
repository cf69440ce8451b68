"""Patterns and texts of JSON schemas: what a grammar takes is what the schema takes, written as JSON."""

from __future__ import annotations

import json
import re

import pytest

from atlas_kit.errors import InvalidParamError
from atlas_kit.llama.schema_patterns import NotFollowedError, plain_pattern

# fmt: off
# ruff: noqa: E501
TEXTS = [
    "", "a", "7", "ab", "a.b", "a1b", "12", "123", "1.5", "-1.5", "2026-11-30", "a b", "a\tb", "a\nb", 'a"b', "a\\b", '"',
    "\\", "\n", "anna@example.org", "192.168.0.1", "x_y", "\u00e9", "\U0001f600", "a-b", "]", "^", "A/B", "(x)", "+49 30",
    "#ff00AA", "a|b", "{1}", "$5", "/", "~", " ", "aa", "aaa", "aaaa", "\x7f", "c:\\d",
]
PATTERNS = [
    r"\d", r"\d{2,3}", r"\d+\.\d+", r"-?\d+(\.\d+)?", r"\d{4}-\d{2}-\d{2}", r"\w+", r"\W", r"\s", r"\S+", r"\D*", r"[\w.]+",
    r"[a-zA-Z0-9._%+-]+@[a-z0-9.-]+\.[a-z]{2,6}", r"(?:\d{1,3}\.){3}\d{1,3}", r".*", r".", r"a.b", r"[^a]", r"[^\s]+",
    r"[ -~]*", r"a+?", r"a*?b?", r'a"b', r"a\\b", r"\"", r"[\"]", r"[\\]", r"\n", r"[\]^]", r"\^", r"\$5", r"\/", r"[A-Z]/[A-Z]",
    r"\(x\)", r"\+\d{2} \d\d", r"#[0-9a-fA-F]{6}", r"a\|b", r"\{1\}", "\u00e9", "[\u00e0-\u00ff]", r"\u00e9", r"\x41/B",
    r"[\s\S]*", r"a|b|7", r"(a|7)|12", r"[-a]+", r"[a-]+", r"c:\\d", r"[^\"\\]*", r"]", "~",
]
# fmt: on


@pytest.mark.parametrize("pattern", PATTERNS)
def test_the_text_of_json_matches_where_its_value_does(pattern: str) -> None:
    plain = re.compile(_for_python(plain_pattern(f"^{pattern}$")))
    for text in TEXTS:
        expected = re.fullmatch(pattern, text, re.ASCII) is not None
        written = json.dumps(text, ensure_ascii=False)[1:-1]
        assert (plain.fullmatch(written) is not None) == expected, (pattern, text)


def _for_python(pattern: str) -> str:
    return pattern.removeprefix("^").removesuffix("$")


@pytest.mark.parametrize(
    "pattern", [r"\d", r"^a", r"b$", r"a|7", r"^", "$", "", r"\$5", r"^a\$", r"\\$", r"a\$"]
)
def test_what_has_no_end_may_have_anything_there(pattern: str) -> None:
    plain = re.compile(_for_python(plain_pattern(pattern)))
    searched = re.compile(re.sub(r"(?<!\\)((?:\\\\)*)\$\Z", r"\1\\Z", pattern))
    for text in [*TEXTS, "a$", "a$b"]:
        written = json.dumps(text, ensure_ascii=False)[1:-1]
        assert (plain.fullmatch(written) is not None) == (searched.search(text) is not None), (pattern, text)


@pytest.mark.parametrize(
    "pattern", ["^(?=a)b$", "^(?!a)b$", r"^\bword$", r"^(a)\1$", r"^\p{L}$", "^a^$", "^[]$", "^a|^b$"]
)
def test_what_no_grammar_follows_is_told_of(pattern: str) -> None:
    with pytest.raises(NotFollowedError):
        plain_pattern(pattern)


@pytest.mark.parametrize("pattern", ["^[a$", "^[b-a]$", "^a\\", "(", "^(a$", "^a)(b$", "(?:a"])
def test_what_is_no_regular_expression_is_refused(pattern: str) -> None:
    with pytest.raises(InvalidParamError, match="no regular expression"):
        plain_pattern(pattern)
