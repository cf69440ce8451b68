"""llama-cpp-python's converter of JSON schemas into grammars, where it writes texts that are not what JSON says.

Imported when a schema comes: it needs llama-cpp-python.
"""

from __future__ import annotations

import itertools
import json
import types
import urllib.parse
from collections.abc import Mapping, Sequence
from typing import Any

from atlas_kit.llama.llama_binding import low_level
from atlas_kit.llama.schema_integers import between, bounds_of
from atlas_kit.llama.schema_patterns import NotFollowedError, plain_pattern
from atlas_kit.llama.schema_words import TABLES, VALUES

low_level()  # first: else all of that package is imported, which takes half a second and opens files that stay open
from llama_cpp.llama_grammar import (  # noqa: E402
    INVALID_RULE_CHARS_RE,
    PRIMITIVE_RULES,
    RESERVED_NAMES,
    SchemaConverter,
)

#: Values of an enumeration above which those that begin alike are put together: llama.cpp follows each one by itself.
MANY = 100
#: llama.cpp repeats nothing more often than this: what may come more often comes as often as it likes.
MOST_TIMES = 2000
#: How often they are put together within each other.
_DEPTH = 12


def converted(schema: Mapping[str, Any]) -> str:
    """Return the rules of a schema; the first is ``root``."""
    make: Any = _Converter  # nothing in that package has types
    converter = make(prop_order={}, allow_fetch=False, dotall=False, raw_pattern=False)
    converter.visit(converter.resolve_refs(json.loads(json.dumps(schema)), "stdin"), "")
    text: str = converter.format_grammar()
    return text


class _Converter(SchemaConverter):
    def __init__(self, **options: Any) -> None:
        converter: Any = super()
        converter.__init__(**options)
        self._ref_names: dict[str, str] = {}

    def _format_literal(self, literal: str) -> str:
        """Return a text of JSON as GBNF writes it."""
        return _quoted(_plain(literal))

    def _add_rule(self, name: str, rule: str) -> str:
        """Add a rule; in a string of JSON, no line breaks and no other control characters stand for themselves."""
        converter: Any = super()
        found: str = converter._add_rule(name, _CHAR if rule == PRIMITIVE_RULES["char"].content else rule)
        return found

    def resolve_refs(self, schema: Any, url: str) -> Any:
        """Note what all references mean: pointers into tables and lists, and ``#``, which is the whole."""
        todo = [schema]
        while todo:
            one = todo.pop()
            if isinstance(one, list):
                todo += one
            elif isinstance(one, dict):
                if isinstance(ref := one.get("$ref"), str):
                    self._refs[ref] = pointed_at(schema, ref)
                for key, value in one.items():
                    if key in TABLES and isinstance(value, dict):  # whatever the names in it are
                        todo += value.values()
                    elif key not in VALUES:
                        todo.append(value)
        return schema

    def _resolve_ref(self, ref: str) -> str:
        """Return the name of the rule that a reference means: one of its own, whatever else is called so."""
        found = self._ref_names.get(ref)
        if found is None:
            name = INVALID_RULE_CHARS_RE.sub("-", ref.rpartition("/")[2]) or "ref"
            taken = {*self._rules, *self._ref_names.values(), *RESERVED_NAMES}
            name = name if name[0].isalpha() else f"ref-{name}"
            names = itertools.chain([name], (f"{name}-{number}" for number in itertools.count(2)))
            self._ref_names[ref] = free = next(one for one in names if one not in taken)
            found = self._ref_names[ref] = self.visit(self._refs[ref], free)
        return found

    def _visit_pattern(self, pattern: str, name: str) -> str:
        converter: Any = super()
        found: str
        try:
            found = _PATTERN(self, plain_pattern(pattern), name)
        except NotFollowedError:  # any text, as in llama-server
            found = self._add_rule(name, converter._add_primitive("string", PRIMITIVE_RULES["string"]))
        return found

    def visit(self, schema: Any, name: str) -> str:
        """Return the name of a schema's rule, which is there then."""
        found: str
        values, plain = _values_of(schema), not _BEFORE.intersection(schema)
        rule_name = f"{name}-" if name in RESERVED_NAMES else name or "root"
        if plain and schema.get("type") == "integer" and values is None and (ends := bounds_of(schema)):
            found = self._add_rule(rule_name, f"({between(*ends)}) space")
        elif values is not None and len(values) > MANY:
            texts = {_plain(json.dumps(value)) for value in values}
            found = self._add_rule(rule_name, _one_of(sorted(texts), _DEPTH))
        elif plain and schema.get("type") in (None, "array") and (parts := _tuple_of(schema)) is not None:
            found = self._add_rule(rule_name, self._tuple(schema, *parts, f"{name}-" if name else ""))
        else:
            found = _VISIT(self, _gathered(schema), name)
        return found

    def _tuple(self, schema: Any, first: list[Any], rest: Any, name: str) -> str:
        """Return what takes an array whose first values have schemas of their own."""
        rules = [self.visit(one, f"{name}tuple-{number}") for number, one in enumerate(first)]
        least, most = int(schema.get("minItems", len(rules))), schema.get("maxItems")
        if rest is None or most is not None:
            most = (
                min(len(rules), int(most if most is not None else len(rules))) if rest is None else int(most)
            )
            rules = rules[:most]
        inside = ""
        if rest is not None and (most is None or most > len(rules)):
            item, left = self.visit(rest, f"{name}item"), None if most is None else most - len(rules)
            inside = _times(f'("," space {item})', max(0, least - len(rules)), left)
            if not rules:
                inside = repetition(item, least, most, '"," space')
            inside = self._add_rule(f"{name}rest", inside) if "{" in inside else inside
        for number in range(len(rules) - 1, -1, -1):
            inside = f"{rules[number]} {inside}" if not number else f'"," space {rules[number]} {inside}'
            inside = inside.strip() if number < least else f"({inside.strip()})?"
        return f'"[" space {inside} "]" space'


def pointed_at(schema: Any, ref: str) -> Any:
    """Return what a reference within a schema means.

    Raises
    ------
    ValueError
        Nothing is there, or it leads elsewhere.
    """
    if ref != "#" and not ref.startswith("#/"):
        raise ValueError(f"{ref[:100]} is not in this schema")
    found = schema
    for part in ref.split("/")[1:]:
        name = urllib.parse.unquote(part).replace("~1", "/").replace("~0", "~")
        if isinstance(found, Mapping) and name in found:
            found = found[name]
        elif isinstance(found, list) and name.isdecimal() and int(name[:9]) < len(found):
            found = found[int(name)]
        else:
            raise ValueError(f"there is nothing at {ref[:100]}")
    if isinstance(found, Mapping):
        return found
    raise ValueError(f"there is no schema at {ref[:100]}")


def repetition(
    item_rule: str, min_items: int, max_items: int | None, separator_rule: str | None = None,
    item_rule_is_literal: bool = False,
) -> str:  # fmt: skip
    """Return what takes something so often: as llama.cpp counts it, and not written out as the package does.

    >>> repetition("char", 0, 12), repetition("item", 1, 3, "sep")
    ('char{0,12}', 'item (sep item){0,2}')
    """
    item, separator = item_rule, separator_rule
    least, most = int(min_items or 0), None if max_items is None else int(max_items)
    if most is not None and most < max(0, least):
        raise ValueError(f"nothing has at least {least} and at most {most}")
    if separator is None:
        return _times(item, least, most)
    if most == 0:
        return '""'
    rest = _times(f"({separator} {item})", max(0, least - 1), None if most is None else most - 1)
    inside = f"{item} {rest}".strip()
    # llama.cpp multiplies counts within each other, and refuses what is more than it counts
    return inside if least else f'({inside} | "")' if "{" in rest else f"({inside})?"


def _times(item: str, least: int, most: int | None) -> str:
    if most is not None and most > MOST_TIMES:  # as llama-server takes it
        most = None
    if most == 0:
        return ""
    counts = {(0, 1): "?", (1, 1): "", (0, None): "*", (1, None): "+"}
    count = counts.get((least, most))
    if count is None:
        count = f"{{{least}}}" if least == most else f"{{{least},{'' if most is None else most}}}"
    return f"{item}{count}"


def _with_repetition(method: Any) -> Any:
    """Return a method that writes repetitions as they are written here."""
    names = {**method.__globals__, "_build_repetition": repetition}
    return types.FunctionType(method.__code__, names, method.__name__, method.__defaults__)


_VISIT, _PATTERN = map(_with_repetition, (SchemaConverter.visit, SchemaConverter._visit_pattern))


def _values_of(schema: Any) -> list[Any] | None:
    """Return the values of an enumeration, however it is written; None: it is none."""
    if "$ref" in schema:
        return None
    for key in ("anyOf", "oneOf"):
        if isinstance(schema.get(key), list):
            several = [_values_of(one) for one in schema[key]]
            return None if None in several else [value for some in several for value in some or ()]
    if "const" in schema:
        return [schema["const"]]
    values = schema.get("enum")
    return values if isinstance(values, list) else None


def _gathered(schema: Any) -> Any:
    """Return a schema in which many alternatives of one value each are one enumeration."""
    for key in ("anyOf", "oneOf"):
        several = [(one, _values_of(one)) for one in schema.get(key) or ()]
        values = [value for _, some in several for value in some or ()]
        if len(values) > MANY:
            return {**schema, key: [{"enum": values}, *(one for one, some in several if some is None)]}
    return schema


def _tuple_of(schema: Any) -> tuple[list[Any], Any] | None:
    """Return the schemas of an array's first values and that of the others, None for no others; None: all are alike."""
    first, rest = schema.get("prefixItems"), schema.get("items")
    if first is None and isinstance(rest, list):  # as it was written before
        first, rest = rest, schema.get("additionalItems")
    if rest is False and first is None:
        return [], None
    if not isinstance(first, list):
        return None
    if rest is None and int(schema.get("minItems", 0)) > len(first):
        rest = {"type": ["object", "array", "string", "number", "boolean", "null"]}
    return first, rest if isinstance(rest, Mapping) else None


#: A character of a string, as llama.cpp's own converter has it.
_CHAR = r'[^"\\\x7F\x00-\x1F] | "\\" (["\\/bfnrt] | "u" [0-9a-fA-F] [0-9a-fA-F] [0-9a-fA-F] [0-9a-fA-F])'
#: What counts before an enumeration.
_BEFORE = {"$ref", "oneOf", "anyOf", "const", "enum"}


def _plain(literal: str) -> str:
    """Return a text of JSON in which characters stand for themselves, but for halves of some."""
    found = json.dumps(json.loads(literal), ensure_ascii=False)
    try:
        found.encode()
    except UnicodeEncodeError:
        return literal
    return found


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _one_of(texts: Sequence[str], depth: int) -> str:
    """Return what takes one of some texts, which are sorted."""
    choices = list[str]()
    for _, group in itertools.groupby(texts, key=lambda text: text[:1]):
        some = list(group)
        same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(some[0], some[-1], strict=False))
        front = "".join(char for char, _ in same)
        if len(some) == 1 or not depth:
            choices += map(_quoted, some)
        else:
            choices.append(f"{_quoted(front)} ({_one_of([one[len(front) :] for one in some], depth - 1)})")
    return " | ".join(choices)
