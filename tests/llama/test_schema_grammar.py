"""JSON schemas as rules of GBNF: what clients send that llama.cpp's converter does not know."""

from __future__ import annotations

import pytest

from atlas_kit.errors import InvalidParamError
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
