"""JSON schemas as rules of GBNF: what clients send that llama.cpp's converter does not know."""

from __future__ import annotations

import json

import pytest

from atlas_kit.errors import InvalidParamError
from atlas_kit.llama.grammar_reach import Grammar, Vocabulary
from atlas_kit.llama.grammar_rules import rules_of
from atlas_kit.llama.schema_grammar import schema_rules

pytestmark = pytest.mark.model
pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")


def rule(name, schema):
    """Return what a rule says."""
    lines = [line.partition(" ::= ") for line in schema_rules(schema).splitlines()]
    return next(right for left, _, right in lines if left == name)


ANYTHING = "a-0 | array | string | number | boolean | null"


@pytest.mark.parametrize(
    "says_nothing", [{}, True, {"title": "A"}, {"description": "anything", "default": None}, {"foo": "bar"}]
)
def test_any_value_fits_a_schema_that_says_nothing(says_nothing):
    assert rule("root", says_nothing) == "object"  # a whole answer
    assert rule("a", {"type": "object", "properties": {"a": says_nothing}}) == ANYTHING
    assert "boolean" in rule("item", {"type": "array", "items": says_nothing})
    by_name = {"$defs": {"T": says_nothing}, "type": "object", "properties": {"a": {"$ref": "#/$defs/T"}}}
    assert (rule("a", by_name), "boolean" in rule("T", by_name)) == ("T", True)
    more = {"type": "object", "properties": {}, "additionalProperties": says_nothing}
    assert "boolean" in schema_rules(more)


@pytest.mark.parametrize(
    ("schema", "place"),
    [
        ({"type": "object", "properties": {"a": "bar"}}, "schema is expected at properties.a$"),
        ({"type": "object", "properties": {"a": {"items": 3}}}, "schema is expected at properties.a.items$"),
        ({"type": "object", "properties": {"a": False}}, "schema is expected at properties.a$"),
        ({"type": "object", "properties": ["a"]}, "object with JSON schemas is expected at properties$"),
        ({"anyOf": [{"type": "null"}, "a"]}, "at anyOf.1$"),
        ({"oneOf": {"type": "null"}}, "list of JSON schemas is expected at oneOf$"),
        ({"type": "object", "additionalProperties": "a"}, "at additionalProperties$"),
        (["a"], "at the top$"),
    ],
)
def test_what_is_no_schema_is_named(schema, place):
    with pytest.raises(InvalidParamError, match=place):
        schema_rules(schema)


def takes(schema, text):
    """Tell whether the grammar of a schema takes a text."""
    rules = rules_of(schema_rules(schema))
    assert rules is not None  # llama.cpp understands it
    grammar = Grammar(rules, Vocabulary([]))
    return -1 in grammar.said(grammar.start, text)


NODE = {
    "$defs": {
        "Node": {
            "type": "object",
            "properties": {"v": {"type": "integer"}, "next": {"anyOf": [{"$ref": "#/$defs/Node"}, {"type": "null"}]}},
            "required": ["v", "next"],
        }
    },
    "$ref": "#/$defs/Node",
}  # fmt: skip


@pytest.mark.parametrize(
    ("schema", "right", "wrong"),
    [
        ({"type": "string"}, [r'"a\n\u0001\\"', '"\u00e9"'], ['"a\nb"', '"\t"', '"\x00"']),
        ({"type": "object"}, [r'{"a": "\t"}'], ['{"a": "\t"}', '{"a\n": 1}']),
        ({"type": "string", "maxLength": 3}, [r'"\n\n\n"'], ['"\n"']),
        ({"type": "integer", "minimum": 0, "exclusiveMaximum": 120}, ["0", "7", "119"], ["-1", "120", "00"]),
        ({"type": ["integer", "null"], "minimum": 5}, ["5", "123456", "null"], ["4", "-5"]),
        ({"type": "integer", "minimum": 3, "enum": [1, 2]}, ["1"], ["3"]),
        (NODE, ['{"v": 1, "next": {"v": 2, "next": null}}'], ['{"v": 1}', '{"v": 1, "next": 2}']),
        ({"type": "string", "pattern": r"^\d{2}\.\d$"}, ['"12.3"'], ['"12x3"', '"1.2"', r'"\d\d.\d"']),
        ({"type": "string", "pattern": "[0-9]+"}, ['"a1"', '"12"', r'"\n1"'], ['"a"', '""']),
        (
            {"type": "object", "properties": {"a": {"type": "string", "pattern": "^(?=a)b$"}}},
            ['{"a": "x"}'],
            ['{"a": 1}'],
        ),
        ({"type": "string", "pattern": '^say "\\w+"$'}, [r'"say \"so\""'], ['"say "so""']),
        ({"type": "string", "pattern": "^a.*z$"}, ['"abcz"', r'"a\"z"'], ['"a"z"', '"abc"']),
        ({"type": ["string", "null"], "enum": ["a", None]}, ['"a"', "null"], ['"b"']),
        (
            {"type": ["object", "null"], "properties": {"a": {"type": "null"}}, "required": ["a"]},
            ["null", '{"a": null}'],
            ["{}", '{"a": 1}'],
        ),
        ({"type": ["string", "integer"], "maxLength": 2}, ['"ab"', "123"], ['"abc"']),
        ({"type": ["array", "string"], "items": {"type": "null"}}, ["[null]", '"a"'], ["[1]"]),
    ],
)
def test_what_a_schema_says_is_followed(schema, right, wrong):
    for text in right:
        assert takes(schema, text), text
    for text in wrong:
        assert not takes(schema, text), text


@pytest.mark.parametrize(
    "value",
    ['say "so"', "back\\slash", "line\nbreak", "\u00e9\u4e2d\U0001f600", "tab\t\b\f\x01", "\ud800", "a", 1.5, None],
)  # fmt: skip
def test_values_and_names_are_written_as_json_has_them(value):
    text = json.dumps(value, ensure_ascii=value == "\ud800")
    assert takes({"const": value}, text)
    assert takes({"enum": ["x", value]}, text)
    if isinstance(value, str):
        schema = {"type": "object", "properties": {value: {"type": "null"}}, "required": [value]}
        assert takes(schema, f"{{{text}: null}}")


def test_a_long_enumeration_is_followed_where_its_values_differ():
    values = [f"item-{number:05d}" for number in range(3000)] + ["item", 'a"b', 1, 12, None, "a" * 100]
    values += ["b" * number for number in range(1, 60)]
    schema = {"enum": values}
    rules = rules_of(schema_rules(schema))
    grammar = Grammar(rules, Vocabulary([]))
    for value in values:
        stacks = grammar.start
        for char in json.dumps(value):
            stacks = grammar.said(stacks, char)
            assert 0 < len(stacks) < 60
        assert -1 in stacks
    for wrong in ('"item-3000"', '"ite"', "2", '"' + "b" * 60 + '"', "123"):
        assert not takes(schema, wrong)
    named = {"type": "object", "properties": {"char": schema}, "required": ["char"]}
    assert takes(named, '{"char": "item-00007"}')
