"""What the server writes into its log: a line for each request, and whatever went wrong, as text or as JSON lines.

Every line has the id of the request that it belongs to. No line has a prompt, an answer or a key in it, whichever
error was raised while one was at hand: of what others raised, the kind and the places are written, not the words.
"""

from __future__ import annotations

import contextlib
import contextvars
import json
import logging
import time
import traceback
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from atlas_kit.errors import AtlasError

if TYPE_CHECKING:
    from typing import TextIO

    from atlas_kit.server.config import ServerConfig

access = logging.getLogger("atlas_kit.server.access")
#: Looked at all the time by machines: told only where something is wrong.
QUIET = frozenset({"/health", "/v1/health", "/ready", "/metrics", "/v1/atlas/metrics"})
#: Loggers that this server's log is made of, and what is told of each.
_LOGGERS = {"atlas_kit.server": logging.INFO, "uvicorn": logging.WARNING, "asyncio": logging.WARNING}
#: Facts that the text of a line has in it already.
_IN_TEXT = frozenset({"method", "path", "status", "seconds"})

_facts: contextvars.ContextVar[dict[str, Any] | None] = contextvars.ContextVar("request_facts", default=None)


@contextlib.contextmanager
def about(request_id: str) -> Iterator[dict[str, Any]]:
    """Let every line that is written within belong to a request; give the facts that its own line will have."""
    facts: dict[str, Any] = {"request_id": request_id}
    token = _facts.set(facts)
    try:
        yield facts
    finally:
        _facts.reset(token)


def note(**facts: Any) -> None:
    """Add facts to the line of the request under way; counts of several parts of one request are added up."""
    found = _facts.get()
    if found is None:
        return
    for name, value in facts.items():
        if value is None:
            continue
        before = found.get(name)
        both = isinstance(value, (int, float)) and isinstance(before, (int, float))
        found[name] = round(before + value, 6) if both else value


def answered(facts: dict[str, Any], method: str, path: str, status: int, seconds: float) -> None:
    """Write the line of a request that was answered; status 0: its client went away before."""
    quiet = path in QUIET and status < 400
    facts = {**facts, "method": method, "path": path, "status": status, "seconds": round(seconds, 6)}
    text = "%s %s %s %.3f s"
    access.log(
        logging.DEBUG if quiet else logging.INFO, text, method, printable(path), status, seconds,
        extra={"facts": facts},
    )  # fmt: skip


def printable(text: str) -> str:
    r"""Return a text that is one line: what a client sends must not look like a line of ours.

    >>> printable("/a\nINFO all is well")
    '/a\\nINFO all is well'
    """
    return "".join(one if one.isprintable() else ascii(one)[1:-1] for one in text)


def set_up(config: ServerConfig, stream: TextIO) -> logging.Handler:
    """Write the server's log to a stream, in the way that is configured; return the handler that does so."""
    handler = logging.StreamHandler(stream)
    formatter = JsonLines if config.log_format == "json" else TextLines
    handler.setFormatter(formatter(words=config.log_prompts))
    for name, level in _LOGGERS.items():
        logger = logging.getLogger(name)
        logger.addHandler(handler)
        logger.setLevel(level)
    return handler


class _Lines(logging.Formatter):
    """What both kinds of lines share: ``words``: also what errors say that are not this library's."""

    def __init__(self, *, words: bool = False) -> None:
        super().__init__()
        self._words = words

    def facts(self, record: logging.LogRecord) -> dict[str, Any]:
        """Return the facts of a line."""
        found = getattr(record, "facts", None)
        if found is None:
            request_id = getattr(record, "request_id", (_facts.get() or {}).get("request_id"))
            found = {} if request_id is None else {"request_id": request_id}
        return dict(found)

    def error(self, record: logging.LogRecord) -> list[str]:
        """Return the lines of a traceback, with those of what caused it."""
        if not record.exc_info or record.exc_info[1] is None:
            return []
        chain: list[BaseException] = []
        error: BaseException | None = record.exc_info[1]
        while error is not None and error not in chain:
            chain.append(error)
            error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
        lines: list[str] = []
        for one in reversed(chain):
            for frame in traceback.extract_tb(one.__traceback__):
                lines.append(f"{frame.filename}:{frame.lineno} in {frame.name}")
            lines.append(self._said(one))
        return lines

    def _said(self, error: BaseException) -> str:
        kind = type(error).__qualname__
        if self._words or isinstance(error, (AtlasError, OSError)):  # these never quote a request
            return f"{kind}: {printable(str(error))}"
        return kind


class TextLines(_Lines):
    """``2026-11-29 21:00:00 INFO POST /v1/completions 200 0.120 s request_id=... generated_tokens=16``."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, and a traceback below it."""
        stamp = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(record.created))
        facts = [f"{name}={_plain(one)}" for name, one in self.facts(record).items() if name not in _IN_TEXT]
        line = " ".join([stamp, record.levelname, record.getMessage(), *facts])
        return "\n".join([line, *(f"    {one}" for one in self.error(record))])


def _plain(value: Any) -> str:
    return (
        printable(json.dumps(value, ensure_ascii=False))
        if isinstance(value, str) and " " in value
        else printable(str(value))
    )


class JsonLines(_Lines):
    """An object a line: ``time``, ``level``, ``logger``, ``message``, the facts, and ``error`` with its traceback."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        found: dict[str, Any] = {
            "time": f"{moment}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **self.facts(record),
        }
        if lines := self.error(record):
            found["error"] = {"said": lines[-1], "traceback": lines[:-1]}
        line = json.dumps(found, ensure_ascii=False, default=str)
        # what ends a line to some readers, or moves a terminal's cursor, is written as JSON's escapes
        return line if line.isprintable() else "".join(map(_escaped, line))


def _escaped(one: str) -> str:
    return one if one.isprintable() else json.dumps(one)[1:-1]
