"""Grammars put together: JSON schemas as rules of GBNF, and texts around them. Knows no tools and no templates."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from atlas_kit.errors import InvalidParamError, MissingExtraError
from atlas_kit.llama.schema_words import LISTS, SINGLE, TABLES, VALUES

#: How often a schema may demand something, by ``minLength`` or ``{m,n}`` of a pattern, for example.
MOST_REPEATED = 2000
#: Properties of one object, and characters of a grammar: the time that both take grows faster than their number.
MOST_PROPERTIES, MOST_CHARACTERS = 400, 1 << 18
_COUNTS = frozenset({"minLength", "minItems"})
#: Keywords of JSON Schema that say what a value is. Any value fits a schema that has none of them, whatever else is in
#: it: a title alone is what pydantic makes of ``typing.Any``.
_SAYING = {
    "$ref", "$dynamicRef", "type", "enum", "const", "anyOf", "oneOf", "allOf", "not", "if", "then",
    "else", "properties", "patternProperties", "additionalProperties", "propertyNames",
    "unevaluatedProperties", "dependentRequired", "dependentSchemas", "required", "minProperties",
    "maxProperties", "items", "prefixItems", "unevaluatedItems", "contains", "minItems", "maxItems",
    "uniqueItems", "pattern", "format", "minLength", "maxLength", "minimum", "maximum",
    "exclusiveMinimum", "exclusiveMaximum", "multipleOf",
}  # fmt: skip
#: Those that say something of values of one type.
_OF_TYPE = {
    "object": ("properties", "additionalProperties", "required", "allOf"),
    "array": ("items", "prefixItems", "minItems", "maxItems"),
    "integer": ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"),
    "string": ("pattern", "format", "minLength", "maxLength"),
}
#: What the converter calls any value; a whole answer that nothing is said of is an object, as in llama-server.
_ANYTHING = {"type": ["object", "array", "string", "number", "boolean", "null"]}


def schema_rules(schema: Mapping[str, Any] | str, name: str = "root") -> str:
    """Return the rules of a JSON schema, whose first is called ``name`` and whose others begin with ``name-``.

    Raises
    ------
    InvalidParamError
        The schema cannot become a grammar.
    MissingExtraError
        llama-cpp-python is not installed.
    """
    try:
        from atlas_kit.llama.schema_converter import converted
    except ImportError as error:
        raise MissingExtraError("a grammar from a JSON schema", "llama") from error
    try:
        given = json.loads(schema) if isinstance(schema, str) else schema
        _require_small(given)
        spelled_out = _spelled_out(_followed(given))
        found = converted({} if spelled_out == _ANYTHING else spelled_out)
        if len(found) > MOST_CHARACTERS:
            raise InvalidParamError("this schema is too large to become a grammar", key="json_schema")
    except InvalidParamError:
        raise
    except Exception as error:  # the converter raises whatever it stumbles over
        raise InvalidParamError(f"this schema cannot become a grammar: {error}", key="json_schema") from error
    return found if name == "root" else _renamed(found, name)


def _require_small(schema: Any) -> None:
    """Refuse a schema that repeats something so often that its grammar, which writes each one out, has no end."""
    if isinstance(schema, list):
        for one in schema:
            _require_small(one)
    if not isinstance(schema, Mapping):
        return
    for key, value in schema.items():
        counts = [value] if key in _COUNTS and isinstance(value, (int, float)) else []
        if key == "pattern" and isinstance(value, str):
            counts = [int(one) for one in re.findall(r"\d{1,18}", " ".join(re.findall(r"\{([^}]*)", value)))]
        if any(count > MOST_REPEATED for count in counts):
            raise InvalidParamError(
                f"a schema may ask for something {MOST_REPEATED:,} times at most", key="json_schema"
            )
        if key == "properties" and isinstance(value, Mapping) and len(value) > MOST_PROPERTIES:
            raise InvalidParamError(
                f"an object of a schema may have {MOST_PROPERTIES} properties at most", key="json_schema"
            )
        if key in TABLES and isinstance(value, Mapping):
            _require_small([*value.values()])
        elif key not in VALUES:
            _require_small(value)


def _followed(schema: Any) -> Any:
    """Return a schema that is not a reference as a whole, as recursive models are to pydantic."""
    seen = set[str]()
    while isinstance(schema, Mapping) and isinstance(ref := schema.get("$ref"), str) and ref[:2] == "#/":
        target: Any = schema
        for name in ref[2:].split("/"):
            target = target.get(name) if isinstance(target, Mapping) else None
        if ref in seen or not isinstance(target, Mapping):
            break
        seen.add(ref)
        schema = {**{name: schema[name] for name in ("$defs", "definitions") if name in schema}, **target}
    return schema


def _by_type(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a schema of several types as one of each: the converter would forget what else it says."""
    types = schema.get("type")
    if not isinstance(types, list) or not types or not all(isinstance(one, str) for one in types):
        return schema
    if "enum" in schema or "const" in schema:
        return {name: value for name, value in schema.items() if name != "type"}
    said = {
        name: value for name, value in schema.items() if any(name in words for words in _OF_TYPE.values())
    }
    if not said or "anyOf" in schema or "oneOf" in schema or "$ref" in schema:
        return schema
    rest = {name: value for name, value in schema.items() if name != "type" and name not in said}
    each = [{"type": one, **{n: v for n, v in said.items() if n in _OF_TYPE.get(one, ())}} for one in types]
    return {**rest, "anyOf": each}


def _spelled_out(schema: Any, place: str = "") -> Any:
    """Return a schema in which those that any value fits say so, as the converter knows none that say nothing."""
    if schema is True or (isinstance(schema, Mapping) and not _SAYING.intersection(schema)):
        return dict(_ANYTHING)
    if not isinstance(schema, Mapping):
        raise InvalidParamError(f"a JSON schema is expected at {place or 'the top'}", key="json_schema")
    schema = _by_type(schema)
    found, inside = dict(schema), f"{place}." if place else ""
    for key in TABLES:
        if key in schema:
            if not isinstance(schema[key], Mapping):
                raise InvalidParamError(
                    f"an object with JSON schemas is expected at {inside}{key}", key="json_schema"
                )
            found[key] = {
                name: _spelled_out(one, f"{inside}{key}.{name}"[:200]) for name, one in schema[key].items()
            }
    for key in LISTS:
        if key in schema:
            if not isinstance(schema[key], list):
                raise InvalidParamError(
                    f"a list of JSON schemas is expected at {inside}{key}", key="json_schema"
                )
            found[key] = [
                _spelled_out(one, f"{inside}{key}.{number}"[:200]) for number, one in enumerate(schema[key])
            ]
    for key in SINGLE:
        if isinstance(schema.get(key), list):  # what prefixItems was called before
            found[key] = [_spelled_out(one, f"{inside}{key}.{n}"[:200]) for n, one in enumerate(schema[key])]
        elif key in schema and schema[key] is not False and (key == "items" or schema[key] is not True):
            found[key] = _spelled_out(schema[key], f"{inside}{key}"[:200])
    return found


def _renamed(rules: str, name: str) -> str:
    """Give rules names of their own; texts and classes of characters stay as they are."""

    def one(found: re.Match[str]) -> str:
        word: str = found[0]
        if not re.match(r"[A-Za-z]", word):
            return word
        return name if word == "root" else f"{name}-{word}"

    return re.sub(r'"(?:\\.|[^"\\])*"|\[(?:\\.|[^\]\\])*\]|\{[\d, ]*\}|[A-Za-z][\w-]*', one, rules)


def rebased(schema: Any, place: str) -> Any:
    """Return a schema whose references still mean the same where it stands at a place of another one.

    >>> rebased({"a": {"$ref": "#/b"}}, "/properties/c")
    {'a': {'$ref': '#/properties/c/b'}}
    """
    if isinstance(schema, list):
        return [rebased(one, place) for one in schema]
    if not isinstance(schema, Mapping):
        return schema
    found: dict[str, Any] = {}
    for key, value in schema.items():
        if key in TABLES and isinstance(value, Mapping):  # whatever the names in it are
            found[key] = {name: rebased(one, place) for name, one in value.items()}
        else:
            found[key] = value if key in VALUES else rebased(value, place)
    if isinstance(ref := schema.get("$ref"), str) and ref.startswith("#"):
        found["$ref"] = f"#{place}{ref[1:]}"
    return found


def quoted(text: str) -> str:
    r"""Return a text as GBNF writes it.

    >>> print(quoted('say "so"'))
    "say \"so\""
    """
    return json.dumps(text, ensure_ascii=False)


def up_to(mark: str, name: str, then: str = "", *, ends: bool = False) -> str:
    r"""Return rules for any text that ends with the first ``mark``; the first is called ``name``.

    Parameters
    ----------
    then
        What follows the mark.
    ends
        Whether the text may end without it, and without what follows it.

    >>> print(up_to("ab", "t"))
    t ::= "a" t-1 | [^a] t
    t-1 ::= "a" t-1 | "b" | [^ab] t
    >>> print(up_to("ab", "t", "rest", ends=True))
    t ::= "a" t-1 | [^a] t | ""
    t-1 ::= "a" t-1 | "b" rest | [^ab] t | ""
    """
    behind = f" {then}" if then else ""
    lines = []
    for at in range(len(mark)):
        follows: dict[str, int] = {}
        for char in dict.fromkeys(mark):
            text = mark[:at] + char
            most = min(len(text), len(mark))
            follows[char] = next(n for n in range(most, -1, -1) if text.endswith(mark[:n]))
        choices = [
            quoted(char) + (behind if length == len(mark) else f" {_state(name, length)}")
            for char, length in follows.items()
            if length
        ]
        others = "".join(_escaped(char) for char, length in follows.items() if length)
        choices += [f"[^{others}] {name}", *(['""'] if ends else [])]
        lines.append(f"{_state(name, at)} ::= {' | '.join(choices)}")
    return "\n".join(lines)


def _state(name: str, number: int) -> str:
    return f"{name}-{number}" if number else name


def _escaped(char: str) -> str:
    return "\\" + char if char in "]\\^-[" else char
