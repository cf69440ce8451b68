r"""Words for a POSIX shell: what somebody can copy from the screen and type, whatever is in a file's name.

``shlex`` quotes for programs and leaves control characters and surrogate escapes as they are; a terminal would act on
the former and cannot show the latter. Such words are written as ``$'...'`` (bash, zsh, ksh, POSIX 2024), byte by byte
where a character cannot be shown. Knows no command.
"""

from __future__ import annotations

import shlex

from atlas_kit.codecs.json_text import to_bytes


def word(text: str) -> str:
    """Return one word of a command line."""
    if text.isprintable():
        return shlex.quote(text)
    return f"$'{''.join(map(_escaped, text))}'"


def path(name: str) -> str:
    """Return a file's name as an argument; one that looks like an option, or like standard input, is ``./-name``."""
    return word(f"./{name}" if name.startswith("-") else name)


def _escaped(char: str) -> str:
    if char in "\\'":
        return f"\\{char}"
    return char if char.isprintable() else "".join(f"\\x{byte:02x}" for byte in to_bytes(char))
