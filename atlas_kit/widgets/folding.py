"""What a cell gives, behind a line that opens it: the solution of an exercise is not to be seen before it is asked for.

It stays folded when the cell runs again, in a saved notebook and in an exported page. Knows IPython and no widgets.
"""

from __future__ import annotations

import contextlib
import html
from collections.abc import Iterator
from typing import Any

from atlas_kit.widgets.base import CODE


@contextlib.contextmanager
def folded(title: str = "What it gives") -> Iterator[None]:
    """Show what is printed and displayed inside behind a line with a title, which opens it.

    Examples
    --------
    ::

        with folded():
            print("42")
    """
    from IPython import display, get_ipython
    from IPython.utils.capture import capture_output

    show: Any = display.display
    captured: Any = None
    try:
        shell: Any = get_ipython()
        publisher: Any = getattr(shell, "display_pub", None)
        with capture_output() as captured:
            if hasattr(publisher, "set_parent"):
                # JupyterLab's messages to widgets come in another thread, which says so to whatever publishes: without
                # this a widget that is open meanwhile would not hear them.
                shell.display_pub.set_parent = publisher.set_parent
            yield
    except BaseException:
        if captured is not None:
            captured.show()  # whatever led to an error is not for later
        raise
    show(_details(title, captured.stdout + captured.stderr, captured.outputs), raw=True)


def _details(title: str, text: str, outputs: list[Any]) -> dict[str, str]:
    """Return the bundle of what was captured: HTML that needs no script, and plain text."""
    parts, plain = [], [text]
    if text:
        parts.append(f'<pre style="{CODE};margin:.4em 0">{html.escape(text.rstrip())}</pre>')
    for output in outputs:
        data = output.data or {}
        if "text/html" in data:
            parts.append(data["text/html"])
        elif "image/png" in data:
            says = html.escape(str(data.get("text/plain", "a picture")), quote=True)
            parts.append(
                f'<img style="max-width:100%" alt="{says}" src="data:image/png;base64,{_base64(data)}">'
            )
        elif "text/plain" in data:
            parts.append(f'<pre style="{CODE};margin:.4em 0">{html.escape(data["text/plain"])}</pre>')
        plain.append(str(data.get("text/plain", "")))
    summary = f'<summary style="cursor:pointer">{html.escape(title)}</summary>'
    return {
        "text/html": f"<details>{summary}{''.join(parts)}</details>",
        "text/plain": "\n".join(filter(None, (part.rstrip() for part in plain))),
    }


def _base64(data: dict[str, Any]) -> str:
    import base64

    picture = data["image/png"]
    return base64.b64encode(picture).decode() if isinstance(picture, bytes) else str(picture).strip()
