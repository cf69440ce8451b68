"""``MemoryLab`` on a running server: what a session there reads, says and recalls, live, without disturbing it.

One background thread reads what the server sends of the session (``/v1/atlas/trace``), and asks how things stand; the
view is that of any lab. Nothing can be changed from here. Knows the server by its API alone.
"""

from __future__ import annotations

import base64
import contextlib
import json
import socket
import sys
import threading
import urllib.parse
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from http.client import HTTPException
from typing import TYPE_CHECKING, Any

import ipywidgets

from atlas_kit.background import start_thread
from atlas_kit.errors import AtlasError
from atlas_kit.llama.trace import Trace
from atlas_kit.llama.trace_frames import GivenWords, unpacked
from atlas_kit.widgets import ending
from atlas_kit.widgets.base import Shown
from atlas_kit.widgets.lab import static_view as static
from atlas_kit.widgets.lab.history import History
from atlas_kit.widgets.lab.past import Past
from atlas_kit.widgets.lab.recall_pane import RecallPane
from atlas_kit.widgets.lab.recollection import Recollection
from atlas_kit.widgets.lab.view import LabView
from atlas_kit.widgets.remote import PATIENCE, Remote

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from atlas_kit.llama.asking import Answer

#: Seconds until a server is asked again that did not answer.
AGAIN = 2.0
_NOTHING = {
    "at": 0, "total": 0, "context": 0, "seen": 0, "window": 0, "window_size": 0, "learning_rate": 0.0,
    "learning_rate_set": 0.0, "speed": 0.0,
}  # fmt: skip


#: The lab that looks at a session: a cell that is run again makes another, and nobody ends the one before.
_LABS: weakref.WeakValueDictionary[tuple[str, str | None], AttachedLab] = weakref.WeakValueDictionary()


class AttachedLab(Shown, ipywidgets.VBox):  # type: ignore[misc]
    """A session of a running server, looked at.

    Parameters
    ----------
    url
        Of the server: ``"http://127.0.0.1:8080"``.
    session
        The name of a session, which may begin later; None: the memory that all requests without one share.
    key
        The API key, where the server wants one; it is shown nowhere.

    Raises
    ------
    InvalidParamError
        No such server answers there, or it wants another key.
    """

    def __init__(self, url: str, *, session: str | None = None, key: str | None = None) -> None:
        self._remote = Remote(url, key)
        self._what = f"session {session!r}" if session is not None else "the shared memory"
        self._what += f" at {self._remote.url}"
        self._session = session
        self._facts: dict[str, Any] = dict(_NOTHING)
        self._trace, self._words = Trace(), GivenWords()
        self._past: Past | None = None  # what is still known when it is closed
        self._take_facts(self._remote.json("/v1/atlas/metrics?window=10"))
        if session is None:
            self._remote.require_shared()
        lab = weakref.proxy(self)  # neither view nor thread must keep the lab alive
        self.view = LabView(lambda: lab.facts(), lambda seen: lab._looked_at(seen))
        self.view.take(self._trace, self._words)
        self.recalled = RecallPane(None)
        super().__init__([self.view, self.recalled])
        self.add_class("atlas-memory-lab")
        self.recalled.add_class("atlas-lab-recall")
        self.view.panes = ["text", "recall", "weights"]
        self.view.state = "running"
        self._follow()
        place = (self._remote.url, session)
        if (other := _LABS.get(place)) is not None:
            other._leave("Another MemoryLab looks at this session now; run this cell again to take it back.")
        _LABS[place] = self
        ending.replace(self)

    def _follow(self) -> None:
        """Read what the server sends from now on; what is shown stays until the session reads on."""
        lab = weakref.proxy(self)
        self._follower = follower = _Follower(
            self._remote, self._session, lambda piece: lab._take(piece), lambda facts: lab._take_facts(facts),
            lambda error: lab._tell(error),
        )  # fmt: skip
        self._thread = start_thread(follower.follow, name="atlas-attached", stop=follower.stop)

    def _looked_at(self, seen: bool) -> None:
        """Ask the server nothing while no page shows this, and go on when one does again."""
        if self.view.state == "done":
            return
        if seen:
            self.view.status = ""
            self._follow()
        else:
            self._follower.stop()
            self.view.state, self.view.status = "paused", "Nobody looked on."

    # --- for Python ------------------------------------------------------------------------------------------

    @property
    def state(self) -> str:
        """``running`` while the server answers, ``paused`` while it does not, ``done`` once this is closed."""
        return str(self.view.state)

    @property
    def error(self) -> str:
        """What went wrong last, as a sentence, or nothing."""
        return str(self.view.error)

    @property
    def trace(self) -> Trace:
        """What was read since this lab looks on, and what was expected of it."""
        return self._trace if self._past is None else self._past.trace

    @property
    def words(self) -> GivenWords:
        """How it is spelled."""
        return self._words if self._past is None else self._past.words

    @property
    def history(self) -> History:
        """What came since this lab looks on, and its losses."""
        trace = self.trace
        count, loss = len(trace), trace.loss
        return History(trace.tokens[:count].copy(), loss[:count, 0].copy(), loss[:count, 1].copy())

    @property
    def answer(self) -> Answer | None:
        """The last answer since this lab looks on, with the pieces that it was given; None before the first."""
        return None if self.recalled.last is None else self.recalled.last.answer

    def facts(self) -> dict[str, Any]:
        """Return the numbers of the moment as JSON-ready data."""
        return self._facts

    def close(self) -> None:
        """Look on no more, and close every view; closing twice is fine."""
        if not hasattr(self, "_follower"):  # ipywidgets also closes what could not be made
            return
        self._leave("")
        self._thread.join(PATIENCE)
        if self._past is None and not sys.is_finalizing():
            self._past = past = Past.of(self._facts, None, self._trace, self._words)
            self.view.look_at(lambda: (past.trace, past.words))
            self._trace, self._words = Trace(), GivenWords()
        ending.close(self.recalled, self.view)
        ending.close_looks(self)
        super().close()

    def _leave(self, said: str) -> None:
        self._follower.stop()
        self.view.state, self.view.status = "done", said

    # --- what comes ------------------------------------------------------------------------------------------

    def _take(self, piece: dict[str, Any]) -> None:
        """Take in what the session has read since, or recalled for an answer."""
        if piece.get("object") == "atlas.recalled":
            self.recalled.take(Recollection.of_server(piece))
            return
        if piece["from"] == 0:
            self._trace, self._words = Trace(), GivenWords()
            self.view.take(self._trace, self._words)
        elif piece["from"] != len(self._trace):
            return  # of a stream that ended meanwhile: the next one begins at 0
        self._words.take(piece["texts"], ((int(token), name) for token, name in piece["names"]))
        rows, tokens, sources = (
            base64.b64decode(piece.get(name, "")) for name in ("rows", "tokens", "sources")
        )
        self._trace.extend(unpacked(rows, tokens, sources, start=len(self._trace)))

    def _take_facts(self, report: dict[str, Any]) -> None:
        """Take in how things stand."""
        shared = self._session is None
        for one in report["conversations"]:
            memory = one["memory"]
            if (
                memory is None
                or one["shared"] != shared
                or (not shared and one["session_id"] != self._session)
            ):
                continue
            tokens = report["tokens"]
            self._facts = {
                "at": len(self._trace),
                "total": 0,
                "context": 0,
                "seen": memory["tokens_seen"],
                "window": memory["window_tokens"],
                "window_size": memory["window_size"],
                "learning_rate": memory["learning_rate"],
                "learning_rate_set": memory["learning_rate_set"],
                "speed": tokens["read"]["per_second"] + tokens["generated"]["per_second"],
            }
        if hasattr(self, "view"):
            self.view.show()

    def _tell(self, error: str) -> None:
        """Say that the server does not answer, or that it does again."""
        self.view.error = error  # whoever sees another state can read why
        self.view.state = "paused" if error else "running"

    def _repr_mimebundle_(self, **options: Any) -> Any:
        ending.shown(self)
        return super()._repr_mimebundle_(**options)

    # --- without a page --------------------------------------------------------------------------------------

    def text(self) -> str:
        """Return how things stand, in a few lines."""
        return static.attached_text(self, self._what)

    def sheet(self) -> tuple[Sequence[str], Iterable[Sequence[Any]]]:
        """Return a row for each token that was read, with its losses."""
        return static.sheet(self)

    def figure(self) -> Figure:
        """Return loss curves and weights as a matplotlib figure of its own."""
        return static.attached_figure(self)

    def html(self) -> str:
        """Return curves, the newest text coloured by surprise, and what was recalled last, to look around in."""
        return static.attached_page(self, self._what)


class _Follower:
    """Reads what a server sends of a session, until it is told to stop."""

    def __init__(
        self,
        remote: Remote,
        session: str | None,
        take: Callable[[dict[str, Any]], None],
        take_facts: Callable[[dict[str, Any]], None],
        tell: Callable[[str], None],
    ) -> None:
        self._remote, self._take, self._take_facts, self._tell = remote, take, take_facts, tell
        query = "" if session is None else "?" + urllib.parse.urlencode({"session_id": session})
        self._path = f"/v1/atlas/trace{query}"
        self._stopped, self._telling = threading.Event(), threading.RLock()
        self._answer: Any = None

    def follow(self) -> None:
        """Read, and where the server goes away, ask again until it is there."""
        with contextlib.suppress(ReferenceError):  # nobody has the lab any more
            while not self._stopped.is_set():
                said = "the server ended the stream"
                try:
                    self._read()
                except (AtlasError, OSError, HTTPException, ValueError) as error:
                    said = error.message if isinstance(error, AtlasError) else "the server went away"
                except (LookupError, TypeError, AttributeError):  # it says something else than it should
                    said = self._remote.stranger().message
                self._say(f"{said[:1].upper()}{said[1:]}. It is asked again.")
                self._stopped.wait(AGAIN)

    def _read(self) -> None:
        with self._remote.open(self._path) as self._answer:
            self._say("")
            for piece in _events(self._answer):
                if self._stopped.is_set():
                    return
                self._take(piece)
                self._take_facts(self._remote.json("/v1/atlas/metrics?window=10"))

    def _say(self, error: str) -> None:
        """Tell how it goes; once it was stopped, whoever did that has said so."""
        with self._telling:
            if not self._stopped.is_set():
                self._tell(error)

    def stop(self) -> None:
        """End reading, also while nothing comes."""
        with self._telling:
            self._stopped.set()
        answer = self._answer
        with contextlib.suppress(AttributeError, OSError, ValueError):
            answer.fp.raw._sock.shutdown(socket.SHUT_RDWR)  # else it would wait for the next line


def _events(answer: Any) -> Iterator[dict[str, Any]]:
    """Yield the data of server-sent events."""
    for line in answer:
        if line.startswith(b"data: "):
            yield json.loads(line[6:])
