"""What counts as text, whole and cut."""

from __future__ import annotations

import pytest

from atlas_kit.codecs.text import as_text, text_at_start

TEXT = "a é 日 😀 z"


@pytest.mark.parametrize("data", [b"", TEXT.encode(), b"\x1b[31m", b"\xef\xbb\xbfmark"])
def test_text_is_any_utf8(data):
    assert as_text(data) == data.decode()


@pytest.mark.parametrize(
    "data", [b"\0", b"x" * 5000 + b"\0", b"\xff", b"\xc3", "é".encode("latin-1"), b"\xed\xa0\x80"]
)
def test_nul_and_other_encodings_are_no_text(data):
    assert as_text(data) is None


def test_a_cut_may_go_through_any_character():
    data = TEXT.encode()
    for end in range(len(data) + 1):
        found = text_at_start(data[:end], cut=True)
        assert found is not None
        assert TEXT.startswith(found)
        assert len(data[:end]) - len(found.encode()) <= 3


@pytest.mark.parametrize(
    "data", [b"\xff\xfe", b"abc\xff", b"abc\xff\xff\xff\xff", b"\x80\x80\x80", b"ab\0\xc3"]
)
def test_what_is_wrong_before_the_cut_is_no_text(data):
    assert text_at_start(data, cut=True) is None


def test_without_a_cut_all_of_it_must_be_text():
    assert text_at_start(b"caf\xc3", cut=False) is None
    assert text_at_start(b"caf\xc3", cut=True) == "caf"
