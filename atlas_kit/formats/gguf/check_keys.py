"""Metadata that loads and is not what its key promises: other types than everybody's, templates that are no Jinja.

All of it is warned of and nothing refused: llama.cpp ignores what it does not need. Called by ``check_model``.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from atlas_kit.errors import Remedy
from atlas_kit.formats.gguf.chat_template import TEMPLATE, problem_of
from atlas_kit.formats.gguf.tables import ValueType, describe_key, value_type_name, value_type_of_name

if TYPE_CHECKING:
    from atlas_kit.formats.findings import Report
    from atlas_kit.formats.gguf.values import MetadataField

Fields = Mapping[str, "MetadataField"]

_TEXT, _TRUTH, _NUMBER = "text", "true or false", "a number"
_NAMES = {ValueType.STRING: _TEXT, ValueType.BOOL: _TRUTH}
_SHARD = re.compile(r"(?s).*-(\d{5})-of-(\d{5})\.gguf")


def check_keys(report: Report, known: Fields, refused: frozenset[str]) -> None:
    """Warn of well-known keys of another kind than theirs, and of templates that cannot be compiled.

    ``refused`` are the keys whose type is an error already.
    """
    for key, item in known.items():
        row = describe_key(key)
        wanted = value_type_of_name(row.type) if row is not None and key not in refused else None
        if row is not None and wanted is not None:
            _check_kind(report, item, wanted, many="{arch}" in row.key)
        if key == TEMPLATE or key.startswith(f"{TEMPLATE}."):
            _check_template(report, item)


def _check_kind(
    report: Report, item: MetadataField, wanted: tuple[ValueType, ValueType | None], *, many: bool
) -> None:
    """Compare what a value is, and not its width: whole numbers come as any of them."""
    kind, element = wanted
    is_array = item.is_array
    given = _NAMES.get(item.element_type if is_array else item.type, _NUMBER)  # type: ignore[call-overload]
    expected = _NAMES.get(element or kind, _NUMBER)
    if is_array == (kind == ValueType.ARRAY) and given == expected:
        return
    if many and _TEXT not in (given, expected):
        return  # one for all layers, or one for each
    if is_array and item.count == 0:
        return
    what = f"a list ({item.count} of {given})" if is_array else given
    should = f"a list of {expected}" if kind == ValueType.ARRAY else expected
    plain = Remedy("set-type", key=item.key, type=value_type_name(kind)) if kind != ValueType.ARRAY else None
    report.warning(
        "key-type-odd",
        f"the value is {what}, where {should} is expected: programs do not show it, or fail",
        offset=item.value_offset,
        key=item.key,
        remedy=plain,
    )


def _check_template(report: Report, item: MetadataField) -> None:
    if item.type != ValueType.STRING:
        return
    problem = problem_of(str(item.items))
    if problem is not None:
        report.warning(
            "template-invalid",
            f"the chat template is not valid Jinja: {problem}. The model loads, and chats with it fail",
            "Get a mended template from the model's page, or give one to the program that runs it.",
            offset=item.value_offset,
            key=item.key,
        )


def check_shard_name(report: Report, path: str | None, known: Fields) -> None:
    """Warn of a shard whose name and metadata disagree about which one it is, or of how many."""
    count, number = known.get("split.count"), known.get("split.no")
    match = _SHARD.fullmatch(os.path.basename(path or ""))
    if match is None or count is None or not isinstance(count.items, int) or count.items < 1:
        return
    if int(match[2]) != count.items:
        message = f"the name says that there are {int(match[2])} shards, and split.count says {count.items}"
        report.warning("split-count-differs", message, offset=count.value_offset, key="split.count")
    if number is not None and isinstance(number.items, int) and int(match[1]) != number.items + 1:
        message = f"the name says that this is shard {int(match[1])}, and split.no says {number.items + 1}"
        report.warning("split-number-differs", message, offset=number.value_offset, key="split.no")
