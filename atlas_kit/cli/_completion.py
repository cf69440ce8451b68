"""What the Tab key offers where a key of a file is to be typed. Nothing that goes wrong here is ever said."""

from __future__ import annotations

import os
import shlex
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    import click

#: A shell shows no more than this in any useful way.
MOST = 500


def keys(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Return the keys of the file that was named before, which begin with what was typed.

    Left out are keys that would have to be quoted, and those that stand on the command line already. An encrypted file
    is opened with what the options or ``ATLAS_PASSPHRASE`` say; nobody is asked.
    """
    try:
        given = {word for value in ctx.params.values() if isinstance(value, tuple) for word in value}
        found = (key for key in _keys_of(ctx) if key.startswith(incomplete) and key not in given)
        return [key for _, key in zip(range(MOST), filter(_is_plain, found), strict=False)]
    except Exception:
        return []


def _keys_of(ctx: click.Context) -> Iterable[str]:
    from atlas_kit.cli._options import read_keys
    from atlas_kit.operations.ls import list_file
    from atlas_kit.storage.keys import Keys

    file = ctx.params.get("file") or next(iter(ctx.params.get("files") or ()), None) or _file_on_the_line()
    if not file or file == "-" or not os.path.isfile(file):
        return ()
    secrets = [ctx.params.get(name) for name in ("passphrase_file", "key_file")]
    known = read_keys(*(path if path and os.path.isfile(path) else None for path in secrets))
    return list_file(file, (), Keys(known.passphrase, known.key)).names()


def _file_on_the_line() -> str | None:
    """Return the first word after the command that is a file: behind an option without its value, click knows none."""
    from click.shell_completion import split_arg_string

    words = split_arg_string(os.environ.get("COMP_WORDS", ""))[2:]
    return next((word for word in words if os.path.isfile(word)), None)


def _is_plain(key: str) -> bool:
    return key.isprintable() and shlex.quote(key) == key
