"""What a saved memory consists of: the fields of its description, and the keys of its arrays.

Saving, loading and the specification (``formats/atlas-memory.md``) share them. Which arrays there are is
``memory/arrays.py``'s.
"""

from __future__ import annotations

from dataclasses import dataclass

from atlas_kit.memory.arrays import ARRAYS

#: What the description says of itself, and the newest form of it that is read.
FORMAT = "atlas-kit/memory-state"
VERSION = 1
#: Of what a session keeps beside its memory (``RUNTIME_FIELDS``).
RUNTIME_VERSION = 1


@dataclass(frozen=True)
class FieldRow:
    """One field of the description: its name, its JSON type, what it says."""

    name: str
    type: str
    note: str


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
