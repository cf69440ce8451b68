"""Names that promise what is not written."""

from __future__ import annotations

import io

import pytest

from atlas_kit.errors import InvalidParamError
from atlas_kit.formats.endings import KINDS, ending_of, require_ending


@pytest.mark.parametrize("kind", KINDS)
def test_its_own_endings_fit_and_those_of_others_do_not(kind):
    fitting = KINDS[kind][1]
    for ending in fitting:
        for name in (f"a{ending}", f"A{ending.upper()}", f"a{ending}.bak", f"a.json{ending}"):
            require_ending(name, kind)
    for other in KINDS:
        for ending in {*KINDS[other][1], ".pdf", ".zst"} - {*fitting, ".bin", ".raw", ".dat"}:
            for name in (f"a{ending}", f"b/c.atlas{ending}", f"A{ending.upper()}", f"a{ending}.bak"):
                with pytest.raises(InvalidParamError) as caught:
                    require_ending(name, kind)
                assert f"ends in {ending}, and {KINDS[kind][0]} would be written" in str(caught.value)


@pytest.mark.parametrize("name", ["a", "a.", "m.new", "m.old", ".atlas", ".json", "a.7", "/dev/stdout", "a.txt/b",
                                  "caf\u00e9.\u202ejson", "a\udcff", "json", ""])  # fmt: skip
def test_what_promises_nothing_is_whoevers_choice(name):
    for kind in KINDS:
        require_ending(name, kind)


def test_a_stream_has_no_name():
    require_ending(io.BytesIO(), "atlas")
    require_ending(None, "gguf")


@pytest.mark.parametrize(
    ("name", "ending"),
    [("a.atlas.bak", ".atlas"), ("a_20260101.atlas.bak", ".atlas"), ("a.GGUF", ".gguf"), ("a", ""), ("x.y/a", "")],
)  # fmt: skip
def test_the_ending_of_a_backup_is_that_of_the_file(name, ending):
    assert ending_of(name) == ending
