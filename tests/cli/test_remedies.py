"""How the command line words what the library says can be done."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

import atlas_kit
from atlas_kit.cli._remedies import WORDS, advice, sentence, worded
from atlas_kit.errors import REMEDIES, FileCorruptError, Remedy, printable
from atlas_kit.formats.findings import Finding

COMMAND = re.compile(r"atlas-tool|--[a-z]")


def example(name: str) -> Remedy:
    """Return a remedy with a value for each placeholder, in the library's words and the command line's."""
    fields = {*re.findall(r"{(\w+)}", REMEDIES[name] + WORDS[name])} - {"FILE"}
    return Remedy(name, **dict.fromkeys(fields, "x y"))


def test_every_remedy_has_words() -> None:
    assert list(WORDS) == list(REMEDIES)


@pytest.mark.parametrize("name", REMEDIES)
def test_a_remedy_is_a_sentence_in_both_tongues(name: str) -> None:
    remedy = example(name)
    assert remedy.sentence.endswith(".")
    assert not COMMAND.search(remedy.sentence)
    assert "{" not in remedy.sentence + worded(remedy, "a.atlas")
    assert remedy.to_json()["name"] == name


def test_no_remedy_is_left_over() -> None:
    package = Path(atlas_kit.__file__).parent
    library = "".join(path.read_text(encoding="utf-8") for path in package.rglob("*.py"))
    assert [
        name for name in REMEDIES if f'Remedy("{name}"' not in library.replace("Remedy(\n", "Remedy(")
    ] == []


def test_an_unknown_remedy_or_a_missing_argument_fails_at_once() -> None:
    for make in (lambda: Remedy("pray"), lambda: Remedy("choose-format")):
        with pytest.raises(KeyError):
            make()


def test_the_file_is_named_where_it_is_known() -> None:
    repair = Remedy("repair")
    assert (
        worded(repair, "my file.atlas")
        == "Rescue what is intact with: atlas-tool repair 'my file.atlas' -o OUT"
    )
    assert (
        worded(repair, None)
        == worded(repair, "-")
        == "Rescue what is intact with: atlas-tool repair FILE -o OUT"
    )


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("a.atlas", "a.atlas"),
        ("it's.atlas", "'it'\"'\"'s.atlas'"),
        ("-name.atlas", "./-name.atlas"),
        ("--help", "./--help"),
        ("-\n'\\.atlas", "$'./-\\x0a\\'\\\\.atlas'"),
        ("\x1b[31m.atlas", "$'\\x1b[31m.atlas'"),
        ("caf\u00e9\udcff1\u202e.atlas", "$'caf\u00e9\\xff1\\xe2\\x80\\xae.atlas'"),
        ("caf\u00e9.atlas", "'caf\u00e9.atlas'"),
    ],
)
def test_a_file_of_any_name_can_be_copied_from_the_screen(name: str, shown: str) -> None:
    assert worded(Remedy("repair"), name) == f"Rescue what is intact with: atlas-tool repair {shown} -o OUT"
    numbered = Remedy("recover-number", backup="b", file=name, number="1")
    assert worded(numbered, None) == f"b would load: atlas-tool recover {shown} --restore 1"
    assert printable(shown) == shown
    done = subprocess.run(["bash", "-c", f"printf %s {shown}"], capture_output=True, check=True)
    typed = os.fsdecode(done.stdout)
    assert typed == (f"./{name}" if name.startswith("-") else name)


def test_at_an_address_nothing_is_changed_in_place() -> None:
    url = "s3://bucket/m.gguf"
    assert worded(Remedy("recover"), url) == ""
    assert worded(Remedy("rekey"), url) == "Change its passphrase or key with: atlas-tool rekey COPY"
    assert url in worded(Remedy("mend"), url)


def test_an_error_says_the_hint_and_then_the_remedy() -> None:
    error = FileCorruptError("it is damaged", path="a.atlas", hint="It was whole.", remedy=Remedy("repair"))
    assert str(error) == f"a.atlas: it is damaged. It was whole. {REMEDIES['repair']}"
    assert sentence(error) == (
        "a.atlas: it is damaged. It was whole. Rescue what is intact with: atlas-tool repair a.atlas -o OUT"
    )
    assert sentence(FileCorruptError("it is damaged")) == "it is damaged"


def test_a_finding_carries_its_remedy_as_data() -> None:
    remedy = Remedy("set-type", key="a.b", type="u32")
    finding = Finding("key-type-wrong", "error", "the value is a str", key="a.b", remedy=remedy)
    assert finding.to_json()["remedy"] == {"name": "set-type", "key": "a.b", "type": "u32"}
    assert finding.to_json()["hint"] == finding.advice == "Set it again, as a value of type u32."
    assert advice(finding, "m.gguf") == "Set it again: atlas-tool set m.gguf a.b VALUE --type u32"
    assert advice(Finding("x", "note", "fine"), "m.gguf") == ""
