"""The tables of ``docs/server-api.md``: settings from the server's own table, endpoints from its OpenAPI document.

Called by cog. No model is loaded: the application is made, and asked what it offers.
"""

from __future__ import annotations

from functools import cache
from typing import Any

#: Names of the sections, in their order, by the tags of the OpenAPI document.
SECTIONS = {
    "OpenAI": "OpenAI's API",
    "Anthropic": "Anthropic's API",
    "ATLAS": "Memories and sessions",
    "llama-server": "llama-server's own endpoints",
    "health": "Whether it is there",
    "models": "The model",
    "metrics": "Watching it",
}


@cache
def document() -> dict[str, Any]:
    """Return the OpenAPI document of the server."""
    from atlas_kit.server import ServerConfig, Service, create_app

    found: dict[str, Any] = create_app(Service(ServerConfig(model="model.gguf"))).openapi()
    return found


def _row(*cells: str) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


# --- settings -----------------------------------------------------------------------------------------------


def setting_rows(group: str) -> list[str]:
    """Return the rows of a group of settings."""
    from atlas_kit.cli.serve_cmd import command
    from atlas_kit.server.config import table

    options = {parameter.name: [*parameter.opts, *parameter.secondary_opts] for parameter in command.params}
    found = []
    for row in table():
        if row.group != group:
            continue
        said = row.help.partition("  [default: ")
        default = said[2].rstrip("]") or _default(row.default)
        names = " ".join(f"`{one}`" for one in options[row.name])
        meant = said[0] + (f" One of {', '.join(row.choices)}." if row.choices else "")
        found.append(_row(names, " ".join(f"`{one}`" for one in row.variables), default, meant))
    return found


def _default(value: Any) -> str:
    if value is None or value == () or value == "":
        return ""
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else f"{value}"


def settings() -> None:
    """Print a table of settings for each group."""
    import cog

    from atlas_kit.server.config import table

    for group in dict.fromkeys(row.group for row in table()):
        cog.outl(f"### {group}\n")
        cog.outl("| option | variable | default | meaning |\n|---|---|---|---|")
        cog.outl("\n".join(setting_rows(group)) + "\n")


# --- endpoints ----------------------------------------------------------------------------------------------


def endpoints() -> None:
    """Print a table of endpoints for each section."""
    import cog

    for tag, title in SECTIONS.items():
        cog.outl(f"### {title}\n\n| | | |\n|---|---|---|")
        for path, operations in document()["paths"].items():
            for method, operation in operations.items():
                if operation["tags"][0] == tag:
                    cog.outl(_row(method.upper(), f"`{path}`", operation["summary"]))
        cog.outl("")


# --- properties ---------------------------------------------------------------------------------------------


def kind_of(schema: dict[str, Any]) -> str:
    """Return what values a property takes, in words."""
    if "anyOf" in schema:
        kinds = [kind_of(one) for one in schema["anyOf"] if one.get("type") != "null"]
        return " or ".join(dict.fromkeys(kinds))
    if "$ref" in schema:
        return "object"
    if "enum" in schema or "const" in schema:
        return " or ".join(f"`{one}`" for one in schema.get("enum", [schema.get("const")]))
    kind = schema.get("type", "anything")
    if kind == "array":
        items = kind_of(schema.get("items", {}))
        return f"list of {items}s" if items in ("string", "integer", "number") else "list"
    if kind == "string" and "maxLength" in schema:
        return f"string, at most {schema['maxLength']:,} characters"
    return str(kind) + _range(schema)


def _range(schema: dict[str, Any]) -> str:
    least, above = schema.get("minimum"), schema.get("exclusiveMinimum")
    most, below = schema.get("maximum"), schema.get("exclusiveMaximum")
    if max(abs(one) for one in (least, above, most, below, 0) if one is not None) >= 1 << 62:
        return ", 64 bits"
    low = _number(least) if least is not None else f"above {_number(above)}" if above is not None else ""
    high = _number(most) if most is not None else f"below {_number(below)}" if below is not None else ""
    return f", {low} to {high}" if low and high else f", {low} or more" if low else ""


def _number(value: float) -> str:
    return f"{int(value):,}" if value == int(value) else f"{value:.10g}"


def properties_of(name: str) -> dict[str, Any]:
    """Return the properties of a schema."""
    found: dict[str, Any] = document()["components"]["schemas"][name]["properties"]
    return found


def _printed(properties: dict[str, Any], required: list[str]) -> None:
    import cog

    cog.outl("| property | takes | meaning |\n|---|---|---|")
    for name, schema in properties.items():
        meant = schema.get("description", "")
        cog.outl(_row(f"`{name}`" + (" (required)" if name in required else ""), kind_of(schema), meant))
    cog.outl("")


def shared_properties() -> dict[str, Any]:
    """Return what the requests of both of OpenAI's older endpoints hold in the same sense, samplers last."""
    from atlas_kit.server.schemas_sampling import SamplingOptions

    chat, completion = properties_of("ChatRequest"), properties_of("CompletionRequest")
    both = [name for name, schema in completion.items() if chat.get(name) == schema]
    return {
        name: completion[name] for name in sorted(both, key=lambda one: one in SamplingOptions.model_fields)
    }


def properties(name: str | None = None, *more: str) -> None:
    """Print the properties of schemas beyond those that were printed before; without a name, the shared ones."""
    import cog

    before = shared_properties()
    if name is None:
        _printed(before, [])
        return
    for one in (name, *more):
        schema = document()["components"]["schemas"][one]
        own = {key: value for key, value in schema["properties"].items() if before.get(key) != value}
        if name != "AtlasOptions":
            cog.outl(f"### {schema['description'].splitlines()[0].strip('.').replace('``', '`')}\n")
        if one == "InfillRequest":
            cog.outl("All that `/completion` takes, and:\n")
        if one == "NativeRequest":
            before |= own
        _printed(own, schema.get("required", []))
