"""The words of JSON Schema that say where in a schema other schemas stand, and where there are only values."""

from __future__ import annotations

#: Where schemas stand in a schema: a table of them by names, a list of them, one of them.
TABLES = ("properties", "$defs", "definitions")
LISTS = ("anyOf", "oneOf", "allOf", "prefixItems")
SINGLE = ("items", "additionalItems", "additionalProperties")
#: What holds values, and no schemas.
VALUES = frozenset({"enum", "const", "default", "examples"})
