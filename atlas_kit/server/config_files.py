"""Settings of the server and keys that are in files."""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections.abc import Sequence
from typing import Any

from atlas_kit.errors import InvalidParamError
from atlas_kit.server.config_rows import Row, as_bool


def read_keys(path: str | os.PathLike[str]) -> list[str]:
    """Return the API keys in a file, one in each line.

    Raises
    ------
    InvalidParamError
        There is none.
    """
    from atlas_kit.storage.given import open_source

    with open_source(path) as source:
        text = source.read(0, min(source.size, 1 << 20)).decode("utf-8-sig", "replace")
    lines = [line.strip() for line in text.splitlines()]
    if not any(lines):
        raise InvalidParamError("there is no API key in this file", path=path, key="api_key_file")
    return lines


def read_file(path: str | os.PathLike[str], rows: Sequence[Row]) -> dict[str, Any]:
    """Return the settings in a JSON or TOML file, under the names of ``rows``.

    Raises
    ------
    InvalidParamError
        It is neither, or names a setting that there is not.
    """
    from atlas_kit.storage.given import open_source

    with open_source(path) as source:
        text = source.read(0, min(source.size, 1 << 20)).decode("utf-8-sig", "replace")
    document = _parsed(text, os.fspath(path))
    names: dict[str, str] = {}
    for row in rows:
        for word in (row.name, *row.words, *row.off):
            names[word.replace("-", "_")] = row.name
    found = {}
    for name, value in document.items():
        plain = name.replace("-", "_")
        if plain not in names:
            raise InvalidParamError(
                f"there is no setting {name!r}", path=path, hint="Settings are named as the options are."
            )
        row = next(row for row in rows if row.name == names[plain])
        negated = any(word.replace("-", "_") == plain for word in row.off)
        found[row.name] = not as_bool(value) if negated else value
    return found


def _parsed(text: str, path: str) -> dict[str, Any]:
    if path.endswith(".toml"):
        parse: Any = importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli").loads
    else:
        parse = json.loads
    try:
        document = parse(text)
    except (ValueError, RecursionError) as error:
        raise InvalidParamError(f"the configuration cannot be read: {error}", path=path) from error
    if not isinstance(document, dict):
        raise InvalidParamError("this is not an object of settings", path=path)
    return document


def json_object(text: str | None) -> dict[str, Any]:
    """Return what the chat template is given, as it was written.

    Raises
    ------
    InvalidParamError
        It is no JSON object.
    """
    try:
        found = json.loads(text or "{}")
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise InvalidParamError(
            "chat_template_kwargs is no JSON object", key="chat_template_kwargs",
            hint='Write it as {"enable_thinking": false}.',
        )  # fmt: skip
    return found
