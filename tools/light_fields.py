"""Writes ``atlas_kit/server/light_fields.py``: what of the schemas of requests can be checked without pydantic.

    python -m tools.light_fields

A test says when it has to be written anew.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "atlas_kit" / "server" / "light_fields.py"
#: What first requests seldom have, and is more than types and ranges.
LEFT_OUT = frozenset({"response_format", "samplers"})
#: What of a JSON schema says what fits.
KEPT = (
    "type", "enum", "const", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "minLength", "maxLength",
    "minItems", "maxItems", "items", "additionalProperties", "properties", "required", "anyOf",
)  # fmt: skip
HEAD = '''"""What the first requests may hold, from the schemas: types and ranges, as JSON schemas have them. Generated.

``python -m tools.light_fields`` writes it.
"""

from __future__ import annotations

from typing import Any

# fmt: off
# ruff: noqa: E501
'''


def fields() -> dict[str, dict[str, Any]]:
    """Return the schemas of the requests that ``atlas_kit.server.light`` answers, by the names of their models."""
    from atlas_kit.server.schemas import ChatRequest, CompletionRequest

    found = {}
    for model in (CompletionRequest, ChatRequest):
        whole = model.model_json_schema()
        found[model.__name__] = _kept(whole, whole.get("$defs", {}), top=True)
    return found


def _kept(schema: dict[str, Any], known: dict[str, Any], *, top: bool = False) -> dict[str, Any]:
    if "$ref" in schema:
        return _kept(known[schema["$ref"].rpartition("/")[2]], known)
    found: dict[str, Any] = {}
    for name in KEPT:
        if name not in schema:
            continue
        value = schema[name]
        if name == "properties":
            value = {key: _kept(one, known) for key, one in value.items() if not (top and key in LEFT_OUT)}
        elif name == "anyOf":
            value = [_kept(one, known) for one in value]
        elif name in ("items", "additionalProperties") and isinstance(value, dict):
            value = _kept(value, known)
        found[name] = value
    return found


def written() -> str:
    """Return the module: one property in a line, and those that all requests have once."""
    models = fields()
    first, *others = (schema["properties"] for schema in models.values())
    shared = {key: one for key, one in first.items() if all(other.get(key) == one for other in others)}
    lines = ["#: Of every request.", "SHARED: dict[str, Any] = {"]
    lines += [f"    {key!r}: {one!r}," for key, one in shared.items()]
    lines += ["}", "FIELDS: dict[str, dict[str, Any]] = {"]
    for model, schema in models.items():
        lines.append(f"    {model!r}: {{")
        for name, value in schema.items():
            if name == "properties":
                lines += ["        'properties': {", "            **SHARED,"]
                lines += [f"            {key!r}: {one!r}," for key, one in value.items() if key not in shared]
                lines.append("        },")
            else:
                lines.append(f"        {name!r}: {value!r},")
        lines.append("    },")
    return HEAD + "\n".join([*lines, "}"]) + "\n"


if __name__ == "__main__":
    OUT.write_text(written(), encoding="utf-8")
