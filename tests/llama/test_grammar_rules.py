"""Grammars read as llama.cpp reads them."""

from __future__ import annotations

import pytest

from atlas_kit.errors import InvalidParamError
from atlas_kit.llama.grammar_rules import Chars, rules_of


def char(text: str) -> Chars:
    return Chars(((ord(text), ord(text)),))


def rules(text: str) -> list:
    found = rules_of(text)
    assert found is not None
    return found.rules


def test_texts_classes_and_other_rules():
    found = rules_of('root ::= "ab" [x-z0] | b # why\n\nb ::= [^a-c] .\n')
    assert found is not None
    last = 0x10FFFF
    assert found.root == 0
    assert found.rules == [
        [[char("a"), char("b"), Chars(((48, 48), (120, 122)))], [1]],
        [[Chars(((0, 96), (100, last))), Chars(((0, last),))]],
    ]


def test_escapes_are_characters():
    assert rules(r'root ::= "\n\x41\u00e9\U0001f600\\\"" [\]\-a]') == [
        [[*map(char, '\nA\u00e9\U0001f600\\"'), Chars(((45, 45), (93, 93), (97, 97)))]]
    ]


def test_groups_and_repetitions_are_rules_of_their_own():
    a = char("a")
    assert rules('root ::= ("a" | "b") "c"') == [[[1, char("c")]], [[a], [char("b")]]]
    assert rules('root ::= "a"*') == [[[1]], [[a, 1], []]]
    assert rules('root ::= "a"+') == [[[a, 1]], [[a, 1], []]]
    assert rules('root ::= "a"?') == [[[1]], [[a], []]]
    assert rules('root ::= "a"{2}') == [[[a, a]]]
    assert rules('root ::= "a"{1,3}') == [[[a, 2]], [[a], []], [[a, 1], []]]
    assert rules('root ::= "ab"{0}') == [[[]]]


def test_what_stands_for_a_token_is_no_character():
    assert rules("root ::= <think> !<[12]> .") == [[[Chars(()), Chars(()), Chars(((0, 0x10FFFF),))]]]


@pytest.mark.parametrize(
    "text",
    ['root = "a"', 'root ::= "a', "root ::= [a", "root ::= b", 'b ::= "a"', "root ::= ( a", 'root ::= *', "",
     'root ::= "\\q"', "root ::= \"a\"{3000}", 'root ::= "a" )', "root ::= {"],
)  # fmt: skip
def test_what_llama_cpp_does_not_understand_has_no_rules(text):
    assert rules_of(text) is None


@pytest.mark.parametrize("last", ["r{} | r{}", 'r{} "x" | r{} "y"'])
def test_rules_that_begin_with_each_other_in_too_many_ways_are_refused(last):
    text = "root ::= r0\n" + "".join(f"r{i} ::= {last.format(i + 1, i + 1)}\n" for i in range(9_000))
    found = rules_of(text + 'r9000 ::= "a" |\n')
    assert found is not None
    with pytest.raises(InvalidParamError, match="too many ways"):
        found.require_bounded("grammar")


@pytest.mark.parametrize(
    "text",
    ['root ::= root "a"', "root ::= b\nb ::= root", 'root ::= "a" root | "b"',
     "root ::= r0\n" + "".join(f"r{i} ::= r{i + 1}\n" for i in range(9_000)) + 'r9000 ::= "a"\n'],
)  # fmt: skip
def test_rules_in_a_chain_or_a_circle_are_looked_through_once(text):
    found = rules_of(text)
    assert found is not None
    found.require_bounded("grammar")


def test_repetitions_of_repetitions_are_not_written_out():
    with pytest.raises(InvalidParamError, match="repetitions of a grammar"):
        rules_of('root ::= "' + "a" * 2000 + '"{1000}')
