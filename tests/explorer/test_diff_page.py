"""What differs as a page: well-formed, without scripts, with every tensor's error under the pointer."""

from __future__ import annotations

import math
from pathlib import Path
from xml.etree import ElementTree

import pytest

from atlas_kit.errors import FileAccessError, InvalidParamError
from atlas_kit.explorer import diff_page
from atlas_kit.explorer.diff_page import Scale, write_diff_page
from atlas_kit.explorer.page import heat
from atlas_kit.formats.atlas import MemoryFile
from atlas_kit.operations.compare_models import ModelComparison, TensorPair, compare_models
from atlas_kit.operations.tensor_numbers import Difference
from atlas_kit.storage.keys import Keys


def pair(name: str, error: float) -> TensorPair:
    facts = ("F32", "Q8_0", (2, 2), (2, 2), 16, 8)
    return TensorPair(name, *facts, numbers=Difference(error, error, 1.0, 4, 4))


def test_the_picture_has_a_box_for_each_tensor_and_says_its_error():
    found = ModelComparison("a<b>.gguf", "b.gguf", total=4)
    found.tensors = [
        pair("blk.0.attn_q.weight", 0.01),
        pair("blk.10.attn_q.weight", 0.04),
        pair("x", math.inf),
    ]
    found.tensors.append(TensorPair("only", "F32", None, (2,), None, 8, None))
    page = diff_page.model_page(found)
    ElementTree.fromstring(page)
    assert "<script" not in page
    assert "blk.0.attn_q.weight, F32 to Q8_0: 1 %</title>" in page
    assert "blk.10.attn_q.weight, F32 to Q8_0: 4 %</title>" in page
    assert "x, F32 to Q8_0: not finite</title>" in page
    assert "only, F32 to nothing: only in A</title>" in page
    assert page.index(">layer 0<") < page.index(">layer 10<")
    assert f'fill="{heat(1.0)}"' in page


def test_what_cannot_be_compared_is_not_shown_as_the_same():
    found = ModelComparison("a", "b")
    found.tensors = [TensorPair("blk.0.attn_q.weight", "F32", "F32", (2,), (3,), 8, 12)]
    picture = diff_page.picture(found)
    assert ">not comparable<" in picture.replace("</span> ", ">").replace("</span>", "<")
    assert heat(0.0) not in picture
    assert "the same" not in picture
    assert " %" not in picture  # nor a scale of errors that nobody measured
    assert "No tensor can be compared number by number: 1 has another shape." in picture
    found.tensors.append(pair("blk.1.attn_q.weight", 0.02))
    assert "1 tensor cannot be compared number by number: 1 has another shape." in diff_page.picture(found)
    found.tensors += [TensorPair(f"blk.{n}.only", "F32", None, (2,), None, 8, None) for n in (2, 3)]
    assert "3 tensors cannot be" in diff_page.picture(found)
    assert "2 are only in A, 1 has another shape." in diff_page.picture(found)
    assert "2 %" in diff_page.picture(found)
    assert "not finite" not in diff_page.picture(found)


def test_a_long_name_is_shortened_beside_the_picture_and_whole_under_the_pointer():
    found = ModelComparison("a", "b")
    name = f"blk.0.{'long' * 30}.weight"
    found.tensors = [pair(name, 0.02)]
    picture = diff_page.picture(found)
    assert f">{'long' * 30}<" not in picture
    assert f"<title>{name}, " in picture


def test_errors_say_their_unit_and_counts_are_in_good_english():
    found = ModelComparison("a", "b", total=2, differing_tokens=1)
    found.tensors = [pair("blk.0.q", 0.01), pair("blk.1.q", 0.04)]
    assert "from 1 % to " in diff_page.model_page(found)
    assert "; 1 token differs." in found.sentence()
    assert "relative error" in diff_page.TENSOR_COLUMNS


def test_errors_that_are_alike_are_told_apart_no_more_than_they_differ():
    found = ModelComparison("a", "b")
    found.tensors = [pair("blk.0.q", 0.0100), pair("blk.1.q", 0.0101)]
    scale = Scale.of(found)
    assert scale is not None
    assert scale.share(0.0101) - scale.share(0.01) < 0.06
    assert Scale.of(ModelComparison("a", "b")) is None


def test_nothing_compared_and_nothing_different_are_sentences(sample_data: Path):
    assert "No tensor has been compared yet." in diff_page.picture(ModelComparison("a", "b"))
    path = sample_data / "gguf/tiny.gguf"
    page = diff_page.model_page(compare_models(path, path))
    ElementTree.fromstring(page)
    assert "Nothing differs." in page


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("gguf/tiny.gguf", "gguf/micro.gguf"),
        ("atlas/learned.atlas", "atlas/learned-more.atlas"),
        ("atlas/assistant.atlas", "atlas/all-types.atlas"),
    ],
)
def test_any_two_files_of_a_kind_become_a_page(sample_data: Path, tmp_path: Path, a: str, b: str):
    written = write_diff_page(sample_data / a, sample_data / b, tmp_path / "page.html")
    assert written.exit_code == 1
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    ElementTree.fromstring(text[text.index("<section") : text.rindex("</section>") + len("</section>")])
    assert str(sample_data) not in text  # the page is passed on: names without folders
    with pytest.raises(FileAccessError):
        write_diff_page(sample_data / a, sample_data / b, tmp_path / "page.html")
    same = write_diff_page(sample_data / a, sample_data / a, tmp_path / "page.html", force=True)
    assert same.exit_code == 0


def test_what_is_encrypted_becomes_no_page_unless_that_is_meant(tmp_path: Path):
    for name, words in (("a", "one"), ("b", "two")):
        memory = MemoryFile(version=3, passphrase=b"word")
        memory.set("diary", words)
        memory.save(tmp_path / f"{name}.atlas")
    files = tmp_path / "a.atlas", tmp_path / "b.atlas", tmp_path / "page.html"
    with pytest.raises(InvalidParamError, match="plain text"):
        write_diff_page(*files, keys=Keys(b"word"))
    assert not (tmp_path / "page.html").exists()
    write_diff_page(*files, keys=Keys(b"word"), decrypt=True)
    assert "diary" in (tmp_path / "page.html").read_text()


def test_hostile_names_and_texts_stay_text(tmp_path: Path):
    evil = "</pre><script>alert(1)</script>"
    for name, words in (("a", f"{evil}\none\n"), ("b", f"{evil}\ntwo\x1b[31m\n")):
        memory = MemoryFile()
        memory.set(evil, words)
        memory.save(tmp_path / f"{name}.atlas")
    write_diff_page(tmp_path / "a.atlas", tmp_path / "b.atlas", tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert "<script" not in page
    assert "\x1b" not in page
