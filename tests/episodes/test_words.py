"""The words of texts in several languages."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atlas_kit.episodes.words import words


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The Quick, brown fox!", ["the", "quick", "brown", "fox"]),
        ("don't and l'eau: Debian's", ["don", "and", "eau", "debian"]),
        ("don’t", ["don"]),
        ("1,000 or 3.5", ["1", "000", "1000", "or", "3", "5", "35"]),
        ("one,two", ["one", "two"]),
        ("/etc/apt/sources.list", ["etc", "apt", "sources", "list", "etcaptsourceslist"]),
        ("snake_case", ["snake", "case", "snakecase"]),
        ("CamelCase HTTPServer", ["camel", "case", "camelcase", "http", "server", "httpserver"]),
        ("USA and 512MB", ["usa", "and", "512", "mb", "512mb"]),
        ("wt-epi, a@b.org", ["wt", "epi", "wtepi", "a", "b", "org", "aborg"]),
        ("Café STRASSE Straße", ["cafe", "strasse", "strasse"]),
        ("Ｆｕｌｌ ﬁne", ["full", "fine"]),
        ("Привет, МИР", ["привет", "мир"]),
        ("مَرْحَبًا", ["مرحبا"]),
        ("नमस्ते दुनिया", ["नमस्ते", "दुनिया"]),
        ("我的猫", ["我的", "的猫"]),
        ("猫", ["猫"]),
        ("猫が好き。", ["猫", "が", "好", "き"]),
        ("メモリ", ["メモ", "モリ"]),
        ("東京タワー", ["東京", "タワ", "ワー"]),
        ("안녕하세요", ["안녕", "녕하", "하세", "세요"]),
        ("กินข้าว", ["กิ", "ิน", "นข", "ข้", "้า", "าว"]),
        ("iPhone手机", ["i", "phone", "iphone", "手机"]),
        ("", []),
        ("?! ... --", []),
    ],
)
def test_words(text, expected):
    assert words(text) == expected


@given(st.text(max_size=200))
def test_words_are_what_is_left_of_any_text(text):
    for word in words(text):
        assert word
        assert not any(character.isspace() for character in word)
        assert word == word.casefold() or not word.isascii()


@given(st.text("abc \n.-_'/", max_size=50))
def test_case_does_not_count(text):
    assert words(text) == words(text.upper())


@given(st.lists(st.from_regex(r"[a-zà-öа-я]{1,9}", fullmatch=True), max_size=20))
def test_words_of_a_line_are_those_of_its_words(some):
    assert words(" ".join(some)) == [word for one in some for word in words(one)]


def test_a_key_without_an_end_is_one_short_word():
    (word,) = words("a" * 100_000)
    assert len(word) == 64
