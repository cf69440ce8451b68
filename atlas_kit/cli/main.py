"""The entry point of ``atlas-tool``: finds the command, and turns every failure into one line and a code.

Commands are imported when they are called, never for ``--help`` or ``--version``. This is the only place
that ends the process; it knows nothing of any file format.

Exit codes: 0 fine, 1 findings or differences, 2 misuse or unreadable input, 130 interrupted.
"""

from __future__ import annotations

import contextlib
import gc
import os
import sys
from typing import TYPE_CHECKING

from atlas_kit import __version__

if TYPE_CHECKING:
    from collections.abc import Sequence

PROG = "atlas-tool"
VERSION = ["--version"], ["-V"]
#: Longer error messages lose their middle.
LONGEST = 2000
FINE, FINDINGS, MISUSE, INTERRUPTED, BROKEN_PIPE = 0, 1, 2, 130, 141


def main(argv: Sequence[str] | None = None) -> None:
    """Run ``atlas-tool`` with ``argv`` (the process's own by default) and exit."""
    if argv is not None:
        sys.exit(run(list(argv)))
    gc.disable()  # a short run makes little garbage, and collecting what imports made takes 5 % of it
    code = run(sys.argv[1:])
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()
    # Commands leave nothing to clean up, and taking the interpreter apart takes 10 % of a small inspection.
    os._exit(code)


def run(args: list[str]) -> int:
    """Run one command line and return its exit code; nothing gets past it."""
    if args in VERSION:  # answered before click, which costs twice the interpreter's start
        print(f"{PROG} {__version__}")  # noqa: T201
        return FINE
    _have_streams()
    _be_printable()
    try:
        code = _invoke(args)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return _fail("interrupted", INTERRUPTED)
    except SystemExit as error:  # a library that gave up on its own
        return error.code if isinstance(error.code, int) else MISUSE
    except BrokenPipeError:
        return _quiet_stdout(BROKEN_PIPE)
    except BaseException as error:
        if os.environ.get("ATLAS_KIT_DEBUG"):
            import traceback

            traceback.print_exc()
        return _failed(error)
    return code


def _invoke(args: list[str]) -> int:
    from atlas_kit.cli._group import group

    completion = os.environ.get("_ATLAS_TOOL_COMPLETE")
    if completion:
        from click.shell_completion import shell_complete

        return shell_complete(group, {}, PROG, "_ATLAS_TOOL_COMPLETE", completion)
    with group.make_context(PROG, args) as context:
        result = group.invoke(context)
    return result if isinstance(result, int) else FINE


def _have_streams() -> None:
    """Open what the caller closed (``>&-``) on nothing, so that no file of ours gets its number."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115 (for the rest of the run)


def _be_printable() -> None:
    """Make a terminal that lacks a character show an escape instead of ending the program."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")


def _failed(error: BaseException) -> int:
    """Say in one line what went wrong, and return the code for it."""
    from atlas_kit.errors import AtlasError

    if isinstance(error, AtlasError):
        from atlas_kit.cli import _remedies

        return _fail(_remedies.sentence(error), MISUSE)
    import click

    if isinstance(error, click.exceptions.Exit):
        return error.exit_code
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        click.echo(error.format_message())
        return MISUSE
    if isinstance(error, click.Abort):
        return _fail("interrupted", INTERRUPTED)
    if isinstance(error, click.UsageError):
        where = error.ctx.command_path if error.ctx else PROG
        return _fail(f"{_sentence(error.format_message())} (See: {where} --help)", MISUSE)
    if isinstance(error, click.ClickException):
        return _fail(_sentence(error.format_message()), MISUSE)
    return _fail(_explain(error), MISUSE)


def _explain(error: BaseException) -> str:
    """Put an error that is not ours into a sentence."""
    if isinstance(error, MemoryError):
        return "there is not enough memory for this"
    if isinstance(error, RecursionError):
        return "the data is nested too deeply"
    if isinstance(error, OSError):
        why = error.strerror or str(error) or type(error).__name__
        name = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, (str, bytes)) else ""
        return f"{name}{why[:1].lower()}{why[1:]}"
    if isinstance(error, UnicodeError):
        return f"the text is not {getattr(error, 'encoding', 'UTF-8')}: {error}"
    if isinstance(error, ImportError):
        return f"a package that atlas-tool needs cannot be imported: {error}. Try: pip install atlas-kit"
    reason = str(error).splitlines()
    return (
        f"internal error: {type(error).__name__}: {reason[0] if reason else ''}"
        " (please report it; ATLAS_KIT_DEBUG=1 shows where)"
    )


def _sentence(message: str) -> str:
    message = " ".join(message.split())
    return f"{message[:1].lower()}{message[1:].rstrip('.')}" if message[1:2].islower() else message


def _fail(message: str, code: int) -> int:
    from atlas_kit.errors import printable

    try:
        sys.stdout.flush()
    except OSError:
        _quiet_stdout(code)
    message = printable(message)
    if "://" in message:  # an address that click, or an entry's key, repeats as it was typed
        from atlas_kit.storage.urls import without_secrets

        message = without_secrets(message)
    if len(message) > LONGEST:  # a key may have megabytes
        message = f"{message[: LONGEST // 2]} ... {message[-LONGEST // 2 :]}"
    try:
        print(f"{PROG}: {message}", file=sys.stderr)  # noqa: T201
        sys.stderr.flush()
    except OSError:
        pass
    return code


def _quiet_stdout(code: int) -> int:
    """Send what is still buffered nowhere: the interpreter would complain about it at exit."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return code
