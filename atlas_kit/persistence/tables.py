"""What a saved memory consists of: the fields of its description, and the keys of its arrays.

Saving, loading and the specification (``formats/atlas-memory.md``) share them. Which arrays there are is
``memory/arrays.py``'s.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from atlas_kit.memory.arrays import ARRAYS
from atlas_kit.persistence.entry_keys import EPISODES

#: What the description of a memory says of itself, and the newest form of it that is read.
FORMAT = "atlas-kit/memory-state"
VERSION = 1
#: Of what a session keeps beside its memory (``RUNTIME_FIELDS``).
RUNTIME_VERSION = 1
#: What the description of episodes says of itself, and the newest form of it that is read.
EPISODES_FORMAT = "atlas-kit/episodes"
EPISODES_VERSION = 1
#: A part of the episodes holds the tokens between two multiples of so many positions.
PART_TOKENS = 1 << 16


@dataclass(frozen=True)
class FieldRow:
    """One field of a JSON object: its name, its JSON type, what it says, whether it may be missing."""

    name: str
    type: str
    note: str
    optional: bool = False


#: JSON type -> what Python's parser makes of it.
JSON_TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "number": (int,),
    "boolean": (bool,),
    "list": (list,),
    "object": (dict,),
    "object or list": (dict, list),
    "string or null": (str, type(None)),
}
DESCRIPTION_FIELDS = (
    FieldRow("format", "string", f"`{FORMAT}`"),
    FieldRow("version", "number", f"of this description, now {VERSION}"),
    FieldRow("layers", "number", "how many memories there are, from 1"),
    FieldRow(
        "batch",
        "list",
        "leading axes of every array: `[]` for one session, `[50]` for 50 that advance together",
    ),
    FieldRow(
        "config", "object or list", "the configuration; a list with one for each layer where they differ"
    ),
    FieldRow("tokens_learned", "list", "for each layer the sum of its counter `learned`; for listings only"),
    FieldRow("optimizer", "boolean", "whether momentum and the adaptation of eta were saved"),
    FieldRow("window", "boolean", "whether the window was saved"),
    FieldRow("dtype", "string or null", "what large arrays were rounded to, `null` where nothing was"),
    FieldRow("metadata", "object", "whatever the application keeps beside the memory"),
)
#: What a session keeps beside its memory: ``runtime`` in the metadata of the description.
RUNTIME_FIELDS = (
    FieldRow("version", "number", f"of these fields, now {RUNTIME_VERSION}"),
    FieldRow("model", "object", "`name`, `architecture` and `identity` of the model, all strings"),
    FieldRow(
        "settings",
        "object",
        "the settings under their usual names: `window_size`, `learning_rate`, `polynomial_degree`, `use_muon`, "
        "`memory_dim`, `warmup_tokens`, `blend_ratio` and the finer ones",
    ),
    FieldRow(
        "waiting", "object", "arrays: tokens whose step of `chunk_size` was not full, and what came lately"
    ),
    FieldRow("context", "list", "the tokens in the model's context, as numbers", optional=True),
    FieldRow("position", "number", "where the next token stands in it", optional=True),
    FieldRow(
        "open", "object", "arrays: the last token's output, from which the next is predicted", optional=True
    ),
    FieldRow(
        "build",
        "string",
        "what computed the engine's own copy of the context, with its version: to another, that is of no use",
        optional=True,
    ),
)


@dataclass(frozen=True)
class KeptRow:
    """One array that a session keeps as JSON: its name, NumPy's type, shape in words, what it is.

    ``whitened``: only memories on whitened states have it.
    """

    name: str
    type: str
    shape: tuple[str, ...]
    note: str
    whitened: bool = False


#: The arrays in ``waiting``. Those with ``n`` rows are all there, or none (some only where states are whitened); the
#: others have a default: nothing, zero.
WAITING = (
    KeptRow("hidden", "float32", ("n", "width"), "the model's last hidden state at a token"),
    KeptRow("lse", "float64", ("n",), "log-sum-exp of its logits"),
    KeptRow("token", "int64", ("n",), "the token that came next"),
    KeptRow("top", "int64", ("n", "candidates"), "the model's most likely tokens"),
    KeptRow("features", "float64", ("n", "5"), "what the gate looks at"),
    KeptRow("probabilities", "float64", ("n", "3"), "of the token that came: model, with memory, window"),
    KeptRow(
        "slope",
        "float64",
        ("n", "4 or more"),
        "three derivatives of the ranking, those of a metric where one is learned, and that of the step size",
    ),
    KeptRow("gradient", "float32", ("n", "width"), "if whitened: the gradient of the answer", True),
    KeptRow("share", "float32", ("n", "candidates"), "if whitened: the gradient of `top`'s logits", True),
    KeptRow("recent", "int32", ("at most 1024",), "tokens that came lately, oldest first"),
    KeptRow("log_eta", "float64", (), "log of the factor by which the step size has moved"),
)
#: The arrays in ``open``.
OPEN = (
    KeptRow("logits", "float32", ("1", "vocabulary"), "the model's, -inf for a token that it rules out"),
    KeptRow("hidden", "float32", ("1", "width"), "its last hidden state"),
)
#: The description of the episodes.
EPISODES_FIELDS = (
    FieldRow("format", "string", f"`{EPISODES_FORMAT}`"),
    FieldRow("version", "number", f"of this description, now {EPISODES_VERSION}"),
    FieldRow("tokens", "number", "how many tokens there are in all parts"),
    FieldRow("parts", "list", "the numbers of the parts that there are, ascending"),
    FieldRow("sources", "list", 'names of files, each once; `""` is for talk and for what has no name'),
    FieldRow("end", "number", "the position that the next token will have"),
    FieldRow("dropped", "number", "how many tokens were left out because there were too many"),
)
#: The arrays of each part of the episodes.
PART_ARRAYS = (
    KeptRow("tokens", "uint32", ("n",), "the model's number of each token"),
    KeptRow("block_start", "uint32", ("b",), "where in `tokens` of this part each block begins"),
    KeptRow("episode_start", "uint32", ("e",), "where in `tokens` of this part each episode begins"),
    KeptRow("kind", "uint8", ("e",), "what it is: 0 document, 1 user, 2 assistant, 3 system, 4 tool"),
    KeptRow("source", "uint32", ("e",), "which of `sources` it is from, counted from 0"),
    KeptRow("time_ms", "int64", ("e",), "when it was read or said: milliseconds since 1970, UTC"),
    KeptRow("position", "int64", ("e",), "the position of its first token"),
    KeptRow("line", "uint32", ("e",), "the line of its document on which its first token stands, from 1"),
)
_GROUPS = {row.name.partition(".")[0] for row in ARRAYS}


def is_kept(name: str, *, optimizer: bool, window: bool, dtype: str | None) -> bool:
    """Tell whether a file that was saved with these options holds the array ``name``.

    The parameters before the last step make no sense beside rounded ones: their difference would be the rounding.
    """
    group, _, rest = name.partition(".")
    if group == "window":
        return window
    if rest.startswith("previous."):
        return optimizer and dtype is None
    return optimizer or group not in ("momentum", "adaptation") or rest == "mean"


def array_key(layer: int, name: str) -> str:
    """Return the entry's key: ``model_context_0.parameters.W``."""
    return f"model_context_{layer}.{name}"


def is_array_key(key: str) -> bool:
    """Tell whether an entry of this key belongs to a saved memory, of whatever configuration."""
    context, _, name = key.partition(".")
    number = context.removeprefix("model_context_")
    return number != context and number.isascii() and number.isdecimal() and name.partition(".")[0] in _GROUPS


def part_key(number: int, name: str) -> str:
    """Return the entry's key: ``episodes.0.tokens``."""
    return f"{EPISODES}.{number}.{name}"


def is_part_key(key: str) -> bool:
    """Tell whether an entry of this key belongs to episodes, of whatever part."""
    first, _, rest = key.partition(".")
    number, _, name = rest.partition(".")
    known = any(name == row.name for row in PART_ARRAYS)
    return first == EPISODES and known and number.isascii() and number.isdecimal()


def runtime_schema() -> dict[str, Any]:
    """Return the JSON schema (draft 2020-12) of ``runtime``."""

    def of_field(row: FieldRow) -> dict[str, Any]:
        return {"type": _SCHEMA_TYPES[row.type], "description": row.note}

    def of_arrays(rows: tuple[KeptRow, ...]) -> dict[str, Any]:
        return {
            row.name: {"$ref": "#/$defs/array", "description": f"{row.type}, {shape_of(row)}: {row.note}"}
            for row in rows
        }

    properties = {row.name: of_field(row) for row in RUNTIME_FIELDS}
    properties["version"]["const"] = RUNTIME_VERSION
    names = ("name", "architecture", "identity")
    properties["model"] |= {"properties": {name: {"type": "string"} for name in names}, "required": [*names]}
    properties["waiting"]["properties"] = of_arrays(WAITING)
    together = [row for row in WAITING if row.shape[:1] == ("n",)]
    properties["waiting"]["dependentRequired"] = {"token": [row.name for row in together if not row.whitened]}
    properties["context"]["items"] = {"type": "integer", "minimum": 0}
    properties["open"] |= {"properties": of_arrays(OPEN), "required": [row.name for row in OPEN]}
    array = {
        "type": "object",
        "description": "an array: NumPy's name of its type, and its little-endian bytes in C order, in base64",
        "properties": {
            "dtype": {"type": "string", "pattern": "^(float|int|uint)(8|16|32|64)$"},
            "shape": {"type": "array", "items": {"type": "integer", "minimum": 0}},
            "data": {"type": "string", "contentEncoding": "base64"},
        },
        "required": ["dtype", "shape", "data"],
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "runtime: what a session keeps beside its memory in a .atlas file",
        "type": "object",
        "properties": properties,
        "required": [row.name for row in RUNTIME_FIELDS if not row.optional],
        "dependentRequired": {"context": ["position", "open"]},
        "$defs": {"array": array},
    }


def episodes_schema() -> dict[str, Any]:
    """Return the JSON schema (draft 2020-12) of the description of episodes."""
    properties: dict[str, dict[str, Any]] = {
        row.name: {"type": _SCHEMA_TYPES[row.type], "description": row.note} for row in EPISODES_FIELDS
    }
    properties["format"]["const"] = EPISODES_FORMAT
    properties["version"]["const"] = EPISODES_VERSION
    for name in ("tokens", "end", "dropped"):
        properties[name]["minimum"] = 0
    properties["parts"] |= {"items": {"type": "integer", "minimum": 0}, "uniqueItems": True}
    properties["sources"] |= {"items": {"type": "string", "maxLength": 1024}, "uniqueItems": True}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "episodes: what was read and said, in a .atlas file",
        "type": "object",
        "properties": properties,
        "required": [row.name for row in EPISODES_FIELDS],
    }


_SCHEMA_TYPES = {"number": "integer", "object": "object", "list": "array", "string": "string"}


def shape_of(row: KeptRow) -> str:
    """Return a shape in words: ``(n, width)``, or ``scalar``."""
    return f"({', '.join(row.shape)})" if row.shape else "scalar"
