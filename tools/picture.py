"""Take the picture in README.md: run atlas-tool on a terminal and draw what it really prints as SVG.

The command runs on a pseudo-terminal, so that it behaves as in front of a person; rich turns its output into
the drawing. The same output gives the same file. Needs a Unix-like system.
"""

from __future__ import annotations

import fcntl
import io
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT)]

from tools.reference import environment, split  # noqa: E402

COMMANDS = (
    "atlas-tool inspect sample_data/atlas/assistant.atlas",
    "atlas-tool validate sample_data/broken/truncated.atlas sample_data/gguf/tiny.gguf",
)
TARGET = ROOT / "sample_data" / "expected" / "inspect.svg"
COLUMNS, ROWS = 104, 60


def on_a_terminal(command: str) -> str:
    """Return what a command prints on a terminal of ``COLUMNS`` columns, escape sequences included."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
    env = environment(TERM="xterm-256color", COLORTERM="truecolor", COLUMNS=str(COLUMNS))
    del env["NO_COLOR"]
    child = subprocess.Popen(split(command)[1], cwd=ROOT, env=env, stdin=slave, stdout=slave, stderr=slave)
    os.close(slave)
    pieces = []
    while True:
        try:
            piece = os.read(master, 65536)
        except OSError:  # how Linux says that the other side is closed
            break
        if not piece:
            break
        pieces.append(piece)
    os.close(master)
    if child.wait() not in (0, 1):
        raise SystemExit(f"{command} failed:\n{b''.join(pieces).decode()}")
    return b"".join(pieces).decode().replace("\r\n", "\n")


def draw(outputs: list[tuple[str, str]]) -> str:
    """Return commands and their coloured output as an SVG of a terminal that loads nothing from elsewhere."""
    from rich.console import Console
    from rich.text import Text

    console = Console(
        record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True, legacy_windows=False
    )
    session = "\n\n".join(f"$ {command}\n{output.rstrip()}" for command, output in outputs)
    console.print(Text.from_ansi(session), soft_wrap=True)
    svg = console.export_svg(title="atlas-tool", unique_id="atlas")
    svg = re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.S)
    return "\n".join(line.rstrip() for line in svg.splitlines()) + "\n"


def main() -> None:
    """Draw the picture."""
    TARGET.parent.mkdir(exist_ok=True)
    TARGET.write_text(draw([(command, on_a_terminal(command)) for command in COMMANDS]), encoding="utf-8")


if __name__ == "__main__":
    main()
