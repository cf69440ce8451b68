"""llama-cpp-python's converter of JSON schemas into grammars, where it writes texts that are not what JSON says.

Imported when a schema comes: it needs llama-cpp-python.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from typing import Any

from llama_cpp.llama_grammar import PRIMITIVE_RULES, RESERVED_NAMES, SchemaConverter

from atlas_kit.llama.schema_integers import between, bounds_of
from atlas_kit.llama.schema_patterns import NotFollowedError, plain_pattern

#: Values of an enumeration above which those that begin alike are put together: llama.cpp follows each one by itself.
MANY = 100
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
    def _format_literal(self, literal: str) -> str:
        """Return a text of JSON as GBNF writes it."""
        return _quoted(_plain(literal))

    def _add_rule(self, name: str, rule: str) -> str:
        """Add a rule; in a string of JSON, no line breaks and no other control characters stand for themselves."""
        converter: Any = super()
        found: str = converter._add_rule(name, _CHAR if rule == PRIMITIVE_RULES["char"].content else rule)
        return found

    def _visit_pattern(self, pattern: str, name: str) -> str:
        converter: Any = super()
        found: str
        try:
            found = converter._visit_pattern(plain_pattern(pattern), name)
        except NotFollowedError:  # any text, as in llama-server
            found = self._add_rule(name, converter._add_primitive("string", PRIMITIVE_RULES["string"]))
        return found

    def visit(self, schema: Any, name: str) -> str:
        """Return the name of a schema's rule, which is there then."""
        found: str
        converter: Any = super()
        values, plain = schema.get("enum"), not _BEFORE.intersection(schema)
        rule_name = f"{name}-" if name in RESERVED_NAMES else name or "root"
        if plain and schema.get("type") == "integer" and values is None and (ends := bounds_of(schema)):
            found = self._add_rule(rule_name, f"({between(*ends)}) space")
        elif plain and isinstance(values, list) and len(values) > MANY:
            texts = {_plain(json.dumps(value)) for value in values}
            found = self._add_rule(rule_name, _one_of(sorted(texts), _DEPTH))
        else:
            found = converter.visit(schema, name)
        return found


#: A character of a string, as llama.cpp's own converter has it.
_CHAR = r'[^"\\\x7F\x00-\x1F] | "\\" (["\\/bfnrt] | "u" [0-9a-fA-F] [0-9a-fA-F] [0-9a-fA-F] [0-9a-fA-F])'
#: What counts before an enumeration.
_BEFORE = {"$ref", "oneOf", "anyOf", "const"}


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
