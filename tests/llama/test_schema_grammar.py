"""JSON schemas as rules of GBNF: what clients send that llama.cpp's converter does not know."""

from __future__ import annotations

import json

import pytest

from atlas_kit.errors import InvalidParamError
from atlas_kit.llama.grammar_reach import Grammar, Vocabulary
from atlas_kit.llama.grammar_rules import rules_of
from atlas_kit.llama.schema_grammar import rebased, schema_rules

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


WHOLE, TEXT = {"type": "integer"}, {"type": "string"}
PAIR = {"type": "array", "prefixItems": [WHOLE, TEXT]}


@pytest.mark.parametrize(
    ("schema", "right", "wrong"),
    [
        ({"type": "array", "prefixItems": [WHOLE, {"$ref": "#/prefixItems/0"}]}, [[1, 2]], [[1, "a"], [1]]),
        ({"anyOf": [WHOLE, {"type": "array", "items": {"$ref": "#/anyOf/1"}}]}, [1, [], [[], [[]]]], [[1], "a"]),
        (
            {"type": "object", "properties": {"a": {"$ref": "#"}}, "additionalProperties": False},
            [{}, {"a": {"a": {}}}],
            [{"b": 1}, {"a": 1}],
        ),
        (
            {
                "$defs": {"a/b": WHOLE, "c~d": TEXT, "e f": {"type": "null"}},
                "prefixItems": [
                    {"$ref": "#/$defs/a~1b"}, {"$ref": "#/$defs/c~0d"}, {"$ref": "#/$defs/e%20f"},
                ],
            },
            [[1, "a", None]],
            [["a", 1, None]],
        ),
        (  # of one name, and one that grammars have for something else
            {
                "$defs": {
                    "x": {"properties": {"v": WHOLE}}, "y": {"properties": {"v": TEXT}},
                    "string": WHOLE, "root": TEXT,
                },
                "prefixItems": [
                    {"$ref": "#/$defs/x/properties/v"}, {"$ref": "#/$defs/y/properties/v"},
                    {"$ref": "#/$defs/string"}, {"$ref": "#/$defs/root"},
                ],
            },
            [[1, "a", 2, "b"]],
            [[1, 1, 2, "b"], [1, "a", "2", "b"], [1, "a", 2, 3]],
        ),
        (  # a property, and what is meant by a reference
            {
                "$defs": {"a": {"properties": {"b": WHOLE, "a": {"$ref": "#/$defs/a"}}, "required": ["b"]}},
                "properties": {"a": TEXT, "c": {"$ref": "#/$defs/a"}},
                "required": ["a", "c"],
            },
            [{"a": "x", "c": {"b": 2, "a": {"b": 1}}}],
            [{"a": {"b": 1}, "c": {"b": 2}}],
        ),
        (  # names of properties that are words of schemas
            {
                "$defs": {"w": WHOLE},
                "properties": {"default": {"$ref": "#/$defs/w"}, "enum": {"$ref": "#/properties/default"}},
                "required": ["default", "enum"],
            },
            [{"default": 1, "enum": 2}],
            [{"default": "1", "enum": 2}, {"default": 1, "enum": "2"}],
        ),
        ({"properties": {"$ref": TEXT}, "required": ["$ref"]}, [{"$ref": "a"}], [{"$ref": 1}]),
        (PAIR, [[1, "a"]], [[1], [1, "a", 2]]),
        ({**PAIR, "minItems": 2, "maxItems": 2}, [[1, "a"]], [[1], [1, "a", 2]]),
        ({**PAIR, "items": False}, [[1, "a"]], [[1, "a", 2]]),
        ({**PAIR, "items": {"type": "boolean"}}, [[1, "a"], [1, "a", True, False]], [[1], [1, "a", 2]]),
        ({**PAIR, "items": True}, [[1, "a", None, [2]]], [["a"]]),
        ({**PAIR, "minItems": 0}, [[], [1], [1, "a"]], [["a"], [1, 2]]),
        ({**PAIR, "minItems": 1}, [[1], [1, "a"]], [[]]),
        ({**PAIR, "minItems": 3}, [[1, "a", None], [1, "a", 2, 3]], [[1, "a"]]),
        ({**PAIR, "maxItems": 1}, [[1]], [[1, "a"], []]),
        (
            {**PAIR, "items": WHOLE, "minItems": 3, "maxItems": 4},
            [[1, "a", 2], [1, "a", 2, 3]],
            [[1, "a"], [1, "a", 2, 3, 4]],
        ),
        (
            {**PAIR, "items": WHOLE, "minItems": 0, "maxItems": 2001},
            [[], [1], [1, "a", *[2] * 1999]],
            [[1, "a", *[2] * 2000]],
        ),
        ({"prefixItems": [], "items": WHOLE, "minItems": 2}, [[1, 2], [1, 2, 3]], [[1], ["a", "b"]]),
        ({"type": "array", "items": [WHOLE, TEXT], "additionalItems": False}, [[1, "a"]], [[1], [1, "a", 2]]),
        ({"type": "array", "items": [WHOLE], "additionalItems": TEXT}, [[1], [1, "a", "b"]], [[1, 2]]),
        ({"type": "array", "items": False}, [[]], [[1]]),
        (
            {"properties": {"p": {"type": "array", "prefixItems": [WHOLE, WHOLE]}}, "required": ["p"]},
            [{"p": [1, 2]}],
            [{"p": [1]}],
        ),
        ({"type": "array", "items": WHOLE, "maxItems": 0}, [[]], [[1]]),
        ({"type": "array", "items": WHOLE, "minItems": 1, "maxItems": 1}, [[1]], [[], [1, 2]]),
        ({"type": "array", "items": WHOLE, "minItems": 2}, [[1, 2], [1, 2, 3]], [[1]]),
        ({"type": "string", "pattern": "^(ab){2,1500}c$"}, ["ababc", "ab" * 1500 + "c"], ["abc"]),
        ({"type": "string", "pattern": "^a{3}b{0,}c{2,}$"}, ["aaacc", "aaabbccc"], ["aac", "aaabc"]),
    ],
)  # fmt: skip
def test_lists_references_and_counts_are_followed(schema, right, wrong):
    for value in right:
        assert takes(schema, json.dumps(value)), value
    for value in wrong:
        assert not takes(schema, json.dumps(value)), value


@pytest.mark.parametrize("count", [1, 2, 1000, 1001, 1500, 2000])
def test_how_often_something_may_come_is_counted(count):
    def longest(schema, one):
        """Whether it takes as many as it says, and no more."""
        made = [
            json.dumps([one] * number if isinstance(one, int) else one * number)
            for number in (count, count + 1)
        ]
        return [takes(schema, text) for text in made]

    assert longest({"type": "string", "maxLength": count}, "a") == [True, False]
    assert longest({"type": "array", "items": WHOLE, "maxItems": count}, 1) == [True, False]
    assert longest({"type": "string", "minLength": count + 1 if count < 2000 else count}, "a")[1]
    assert not takes({"type": "string", "minLength": count}, json.dumps("a" * (count - 1)))
    assert not takes({"type": "array", "items": WHOLE, "minItems": count}, json.dumps([1] * (count - 1)))


@pytest.mark.parametrize("most", [2100, 1 << 20, 1e9])
def test_what_may_come_more_often_than_llama_cpp_counts_has_no_end(most):
    assert takes({"type": "string", "maxLength": most}, json.dumps("a" * 2500))
    assert takes({"type": "array", "items": WHOLE, "minItems": 1, "maxItems": most}, json.dumps([1] * 2500))
    with pytest.raises(InvalidParamError, match="2,000 times at most"):
        schema_rules({"type": "string", "minLength": most})


@pytest.mark.parametrize(
    ("schema", "says"),
    [
        ({"$ref": "#/nothing"}, "there is nothing at #/nothing"),
        ({"anyOf": [WHOLE, {"$ref": "#/anyOf/7"}]}, "there is nothing at #/anyOf/7"),
        ({"anyOf": [WHOLE, {"$ref": "#/anyOf/-1"}]}, "there is nothing at #/anyOf/-1"),
        ({"anyOf": [WHOLE, {"$ref": "#/anyOf"}]}, "there is no schema at #/anyOf"),
        (
            {"anyOf": [WHOLE, {"$ref": "https://example.com/a"}]},
            "https://example.com/a is not in this schema",
        ),
        ({"type": "array", "items": WHOLE, "minItems": 3, "maxItems": 2}, "at least 3 and at most 2"),
    ],
)
def test_what_is_wrong_with_a_schema_is_said(schema, says):
    with pytest.raises(InvalidParamError, match=says):
        schema_rules(schema)


#: No two of them begin alike.
SIGNS = [chr(0x4E00 + number) + chr(0x4E00 + number * 7 % 3000) for number in range(3000)]
NAMES = [f"{number * 7919 % 99991:05d}" for number in range(8000)]


@pytest.mark.parametrize("values", [SIGNS, NAMES], ids=["signs", "names"])
@pytest.mark.parametrize("form", ["enum", "anyOf", "oneOf", "nested", "or null"])
def test_there_may_be_thousands_of_alternatives(values, form):
    each = [{"const": value, "title": "one of them"} for value in values]
    schema = {
        "enum": {"enum": values},
        "anyOf": {"anyOf": each},
        "oneOf": {"oneOf": each},
        "nested": {"anyOf": [{"enum": values[:700]}, {"anyOf": each[700:]}]},
        "or null": {"anyOf": [*each, {"type": "null"}]},
    }[form]
    pieces = [value.encode() for value in values[:500]] + [bytes([number]) for number in range(256)]
    rules = rules_of(schema_rules(schema))
    rules.require_bounded("json_schema")
    grammar = Grammar(rules, Vocabulary(pieces))
    grammar.require_bounded(grammar.start)
    for value in (values[0], values[1234], values[-1]):
        assert -1 in grammar.said(grammar.start, json.dumps(value, ensure_ascii=False))
    for wrong in ("nothing", values[0] + values[1], values[0][:-1]):
        assert -1 not in grammar.said(grammar.start, json.dumps(wrong, ensure_ascii=False))
    assert (-1 in grammar.said(grammar.start, "null")) == (form == "or null")


def test_references_move_with_their_schema():
    schema = {
        "$defs": {"w": WHOLE},
        "properties": {
            "a": {"$ref": "#/$defs/w"},
            "default": {"$ref": "#/properties/a"},
            "again": {"$ref": "#"},
        },
        "required": ["a", "default"],
        "examples": [{"$ref": "#/none"}],
    }
    inside = rebased(schema, "/properties/arguments")
    assert inside["examples"] == schema["examples"]
    whole = {"properties": {"arguments": inside}, "required": ["arguments"]}
    assert takes(whole, '{"arguments": {"a": 1, "default": 2, "again": {"a": 1, "default": 2}}}')
    assert not takes(whole, '{"arguments": {"a": 1, "default": "2"}}')
    assert not takes(whole, '{"arguments": {"a": 1, "default": 2, "again": {"arguments": {}}}}')
