"""Several JavaScript files as the one ES module that a notebook loads: it can import nothing by a relative path.

The files in ``static/`` are plain modules that import each other by ``./name.js`` or ``../folder/name.js``, so that
tests and the JupyterLab extension can load them as they are. Here each becomes a function of its own, in an order in
which it stands behind what it imports; the last one stays as it is. Style sheets import each other as well. A file's
name is its path below ``static/``.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

STATIC = Path(__file__).parent / "static"
_IMPORT = re.compile(r'^import\s+([^;]*?)\s+from\s+"(\.[\w./]+)";$', re.MULTILINE)
_EXPORT = re.compile(r"^export ((?:async )?(?:function\*?|const|let|class) (\w+))", re.MULTILINE)
_DEFAULT = re.compile(r"^export default ", re.MULTILINE)
_STYLE_IMPORT = re.compile(r'^@import "([\w./]+)";$', re.MULTILINE)


def joined(name: str) -> str:
    """Return the module ``static/name`` with everything that it imports."""
    sources: dict[str, str] = {}
    _collect(name, sources)
    last = sources.pop(name)
    return "\n".join(
        [*(_wrapped(other, source) for other, source in sources.items()), _imports_taken(name, last)]
    )


def joined_style(name: str) -> str:
    """Return the style sheet ``static/name`` with everything that it imports."""
    source = (STATIC / name).read_text(encoding="utf-8")
    return _STYLE_IMPORT.sub(lambda found: joined_style(_beside(name, found[1])), source)


def _collect(name: str, sources: dict[str, str]) -> None:
    """Add a file behind what it imports."""
    if name in sources:
        return
    source = (STATIC / name).read_text(encoding="utf-8")
    for found in _IMPORT.finditer(source):
        _collect(_beside(name, found[2]), sources)
    sources[name] = source


def _wrapped(name: str, source: str) -> str:
    """Return a module as a constant that holds what it exports."""
    given = [found[2] for found in _EXPORT.finditer(source)]
    if _DEFAULT.search(source):
        given.append("default: $default")
    body = _DEFAULT.sub("const $default = ", _EXPORT.sub(r"\1", _imports_taken(name, source)))
    return f"const {_constant(name)} = (() => {{\n{body}\nreturn {{ {', '.join(given)} }};\n}})();"


def _imports_taken(name: str, source: str) -> str:
    """Return the source with each import as an assignment: of ``{ a, b as c }`` or a default's name."""

    def taken(found: re.Match[str]) -> str:
        what = found[1].replace(" as ", ": ")
        given = _constant(_beside(name, found[2]))
        return f"const {what if what.startswith('{') else f'{{ default: {what} }}'} = {given};"

    return _IMPORT.sub(taken, source)


def _beside(name: str, other: str) -> str:
    """Return the name of the file that ``name`` calls ``other``."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(name), other))


def _constant(name: str) -> str:
    return "$" + re.sub(r"\W", "_", name)
