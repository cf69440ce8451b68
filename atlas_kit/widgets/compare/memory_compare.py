"""``MemoryCompare``: two memories side by side, or one over time: their matrices, spectra, windows and behaviour.

What is compared, and what cannot be, is decided in ``operations/compare.py``; what a text tells in
``operations/behaviour.py``; here it is put on the screen. Slow figures come from a thread of their own (``_newest``).
"""

from __future__ import annotations

import html
import os
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import ipywidgets
import numpy as np

from atlas_kit.codecs.json_text import brief
from atlas_kit.codecs.numbers import Array
from atlas_kit.errors import AtlasError, InvalidParamError
from atlas_kit.memory.statistics import MatrixStatistics
from atlas_kit.operations import compare as numbers
from atlas_kit.operations.behaviour import Behaviour
from atlas_kit.operations.compare import Side
from atlas_kit.operations.diff import Comparison, diff_files
from atlas_kit.storage.keys import Keys, passphrase_bytes
from atlas_kit.widgets import ending
from atlas_kit.widgets.base import Shown
from atlas_kit.widgets.compare import static_view as static
from atlas_kit.widgets.compare.behaviour_pane import BehaviourPane
from atlas_kit.widgets.compare.panes import CompareTable, Spectra
from atlas_kit.widgets.compare.sides import Moments
from atlas_kit.widgets.live import Runner
from atlas_kit.widgets.matrix import MatrixView
from atlas_kit.widgets.newest import Newest
from atlas_kit.widgets.remote import ServerMemory, is_address

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from atlas_kit.llama.engine import Engine
    from atlas_kit.llama.session import AtlasSession

#: A matrix: its name, its moment, and, for a difference, the moment from which the first is taken away.
Key = tuple[str, int, int | None]

WHICH = ("a", "b", "b-a")
#: What a moment of a run is compared with.
AGAINST = ("the first", "the one before")
#: Seconds between two moments when a run is played.
PACE = 0.25
#: Characters of a lab's own text that are the probe where none is given.
PROBE = 1200
#: Rows of a table; more help nobody.
MOST_ROWS = 500

_MATRIX_COLUMNS = [
    {"key": "name", "label": "matrix", "kind": "text"},
    {"key": "shape", "label": "shape", "kind": "text"},
    {"key": "max_a", "label": "max |A|", "kind": "number"},
    {"key": "max_b", "label": "max |B|", "kind": "number"},
    {"key": "max_difference", "label": "max |B − A|", "kind": "number"},
    {"key": "relative", "label": "relative L2", "kind": "number", "note": "‖B − A‖ / ‖A‖"},
    {"key": "cosine", "label": "cosine", "kind": "number", "note": "of A and B as vectors"},
    {
        "key": "rank_a",
        "label": "eff. rank A",
        "kind": "number",
        "note": "exp of the entropy of the singular values",
    },
    {"key": "rank_b", "label": "eff. rank B", "kind": "number"},
    {"key": "rank_d", "label": "eff. rank B − A", "kind": "number"},
]
_CHANGE_COLUMNS = [
    {"key": "mark", "label": "±", "kind": "mark", "note": "+ only in B, − only in A, ~ in both"},
    {"key": "name", "label": "what", "kind": "text"},
    {"key": "before", "label": "A", "kind": "text"},
    {"key": "after", "label": "B", "kind": "text"},
]
_TOKEN_COLUMNS = [
    {"key": "token", "label": "token", "kind": "text"},
    {"key": "a", "label": "times in A", "kind": "count"},
    {"key": "b", "label": "times in B", "kind": "count"},
    {"key": "difference", "label": "B − A", "kind": "count"},
]


class MemoryCompare(Shown, ipywidgets.VBox):  # type: ignore[misc]
    """Two memories side by side, or the snapshots of a run.

    Parameters
    ----------
    a, b
        Each a ``.atlas`` file (any file with entries or tensors), an ``AtlasSession``, a ``MemoryState``, a pair of
        ``Memory`` and state, what ``load_memory`` gave, a snapshot, or a mapping of names to matrices; or the address
        of a running server (``"http://127.0.0.1:8080"``), or a ``ServerMemory``. Without ``b``, ``a`` is a run: a list
        of such, or something with ``snapshots``, such as a ``MemoryLab``; or an address with two sessions.
    model
        For the behaviour: the path of a GGUF model, an engine with a free sequence, or a session, which lends its own.
        By default the session's among ``a`` and ``b``, if there is one.
    probe
        A text that both memories read, without learning.
    labels
        What to call them; by default file names, or what they call themselves.
    passphrase
        Of encrypted files.
    session, key
        Of servers that are given by their address: one for both, or one for each, as a pair. Without a session, it is
        the memory that all requests without one share.
    height
        Of the matrices, in CSS pixels.

    Raises
    ------
    InvalidParamError
        There are fewer than two memories, or a session is named and no server. What else is wrong with them is said in
        the widget, such as that a server is away, wants another key, or knows no such session.

    Examples
    --------
    >>> MemoryCompare("http://127.0.0.1:8080", session=("anna", "ben"))  # doctest: +SKIP
    """

    _open = False
    _held = False  # the controls are set from here

    def __init__(
        self,
        a: Any,
        b: Any = None,
        model: str | os.PathLike[str] | Engine | AtlasSession | None = None,
        probe: str | None = None,
        *,
        labels: Sequence[str] | None = None,
        passphrase: str | bytes | None = None,
        session: str | Sequence[str | None] | None = None,
        key: str | Sequence[str | None] | None = None,
        height: int = 260,
    ) -> None:
        a, b = _of_servers(a, b, session, key)
        given = [a, b] if b is not None else _moments_of(a)
        secret = None if passphrase is None else passphrase_bytes(passphrase)
        self._keys = Keys(secret)
        self._moments = Moments(given, labels, self._keys)
        self._at = 0, len(given) - 1  # one assignment: threads read both or neither
        self._spectra: dict[Key, MatrixStatistics | None] = {}
        self._rows: tuple[tuple[int, int], list[numbers.MatrixRow]] | None = None
        self._changes: Comparison | None = None
        self._showing = threading.RLock()
        self._newest = Newest(self._failed)
        model = model if model is not None else _model_of(a, b)
        self.behaviour = BehaviourPane(
            self._pair,
            model,
            probe or _probe_of(a),
            self._newest,
            getattr(a, "lock", None),
            self._keys.options(),
            lambda: self._show_window(),  # tokens have texts now
        )
        self._build(height)
        super().__init__(self._layout())
        self.add_class("atlas-memory-compare")
        self._open = True
        self._show()
        ending.replace(self)

    @classmethod
    def over_time(cls, snapshots: Sequence[Any], **options: Any) -> MemoryCompare:
        """Return the comparison of a run's snapshots, in order; ``options`` are those of the class."""
        return cls(list(snapshots), **options)

    # --- what is compared -----------------------------------------------------------------------------------

    @property
    def a(self) -> Side:
        """The one side."""
        return self._moments.side(self._at[0])

    @property
    def b(self) -> Side:
        """The other side."""
        return self._moments.side(self._at[1])

    @property
    def sealed(self) -> bool:
        """Whether a passphrase has opened what is compared."""
        return self._keys.passphrase is not None

    @property
    def matrix(self) -> str:
        """The name of the matrix in view; "" where there is none."""
        return self._menu.value or ""

    def show(self, first: int, second: int) -> None:
        """Compare two moments of a run by their numbers; negative ones count from the end.

        Raises
        ------
        InvalidParamError
            There is no such moment.
        """
        moments = range(len(self._moments))
        try:
            at = moments[first], moments[second]
        except IndexError:
            raise InvalidParamError(f"the run has {len(moments)} moments, not {first} and {second}") from None
        with self._showing:
            self._at = at
            self._held = True
            self.against.value, self.slider.value = self._at
            self._held = False
            self._show()

    def refresh(self) -> None:
        """Look at sessions and files anew."""
        self._moments.forget()
        self._spectra.clear()
        self._rows = None
        self._show()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait for the figures that are being computed; False if that took longer than ``timeout`` seconds."""
        return self._newest.wait(timeout)

    def compare_behaviour(self, probe: str | None = None) -> Behaviour | None:
        """Read the probe text beside both memories now and return what was found; None where that cannot be done.

        ``probe``: another text than before.
        """
        self._newest.stop("behaviour")
        if probe is not None:
            self.behaviour.set_probe(probe)
        return self.behaviour.compare()

    def rows(self) -> list[numbers.MatrixRow]:
        """Return how every matrix differs."""
        at, known = self._at, self._rows
        if known is None or known[0] != at:
            a, b = map(self._moments.side, at)
            known = self._rows = at, numbers.compare_matrices(a, b)
        return known[1]

    def spectrum(self, which: str, name: str | None = None) -> MatrixStatistics | None:
        """Return the singular values of a matrix, by default the one in view; ``which``: ``"a"``, ``"b"``, ``"b-a"``.

        Computed now if they are not known yet; None where there is no such matrix, or it is not finite.
        """
        key = self._key(which, self.matrix if name is None else name)
        if key not in self._spectra:
            matrix = self._moments.matrix(*key)
            self._spectra[key] = None if matrix is None else numbers.spectrum(matrix)
        return self._spectra[key]

    def _key(self, which: str, name: str) -> Key:
        """Return what a matrix is called whatever is in view: its moment, or the two whose difference it is."""
        first, second = self._at
        keys: dict[str, Key] = {
            "a": (name, first, None),
            "b": (name, second, None),
            "b-a": (name, first, second),
        }
        return keys[which]

    # --- the parts ------------------------------------------------------------------------------------------

    def _build(self, height: int) -> None:
        """Make the controls and panes."""
        over_time = len(self._moments) > 2
        self._heading, self._notes = ipywidgets.HTML(), ipywidgets.HTML()
        self.slider = ipywidgets.IntSlider(
            self._at[1], 0, len(self._moments) - 1, description="Moment", continuous_update=True, readout=False,
            layout=ipywidgets.Layout(flex="1 1 240px", width="auto"),
        )  # fmt: skip
        self.against = ipywidgets.Dropdown(
            options=[(name, -1 - n) for n, name in enumerate(AGAINST)]
            + [(label, n) for n, label in enumerate(self._moments.labels)],
            description="against",
            layout=ipywidgets.Layout(width="240px"),
        )
        self._menu = ipywidgets.Dropdown(description="Matrix", layout=ipywidgets.Layout(width="260px"))
        empty = np.zeros((1, 1), np.float32)
        self.views = [MatrixView(empty, height=height) for _ in range(3)]
        self._linked = False
        self.table = CompareTable(columns=_MATRIX_COLUMNS, chooses=True)
        self.spectra = Spectra()
        self.window, self.settings, self.entries = (
            CompareTable(columns=columns) for columns in (_TOKEN_COLUMNS, _CHANGE_COLUMNS, _CHANGE_COLUMNS)
        )
        self.play = ipywidgets.Button(description="Play", icon="play", layout=ipywidgets.Layout(width="96px"))
        self._runner = Runner(self._advance, on_state=self._show_state)
        self.play.on_click(lambda _: self.pause() if self.playing else self.start())
        self._timeline = [self.play, self.slider, self.against] if over_time else []
        self.slider.observe(lambda _: self._moved(), "value")
        self.against.observe(lambda _: self._moved(), "value")
        self._menu.observe(lambda _: self._chosen(), "value")
        self.table.observe(lambda change: self._choose(change.new), "selected")

    def _layout(self) -> list[Any]:
        for pane, flex in (*((view, "1 1 230px") for view in self.views), (self.spectra, "1 1 400px")):
            pane.layout.flex, pane.layout.min_width = (
                flex,
                "0",
            )  # another layout would leave the first one behind
        self._tabs = ipywidgets.Tab(
            [self.window, self.settings, self.entries],
            layout=ipywidgets.Layout(flex="1 1 400px", min_width="0"),
        )
        self._opens = True
        self._tabs.titles = ("Window", "Settings", "Entries")
        return [
            self._heading,
            ipywidgets.HBox(self._timeline),
            self._notes,
            self._menu,
            _row(self.views),
            self.table,
            _row([self.spectra, self._tabs]),
            self.behaviour,
        ]

    # --- what the controls do -------------------------------------------------------------------------------

    @property
    def playing(self) -> bool:
        """Whether the moments of a run pass by."""
        return self._runner.state == "running"

    def start(self) -> None:
        """Play the run from the present moment, or from its beginning if this is the last."""
        if self.slider.value == self.slider.max:
            self.slider.value = 0
        self._runner.start()

    def pause(self) -> None:
        """Stop playing."""
        self._runner.pause()

    def _advance(self) -> bool:
        """Go to the next moment when the page has drawn this one; False at the end."""
        due = time.monotonic() + PACE
        self.slider.value = min(self.slider.max, self.slider.value + 1)
        while self.playing and (time.monotonic() < due or not all(view.ready for view in self.views)):
            time.sleep(0.02)
        return bool(self.slider.value < self.slider.max)

    def _show_state(self) -> None:
        playing = self.playing
        self.play.description, self.play.icon = ("Pause", "pause") if playing else ("Play", "play")
        if not playing and self._open:
            self.behaviour.start()

    def _moved(self) -> None:
        """Go to the moment that the controls show."""
        second, against = self.slider.value, self.against.value
        first = {-1: 0, -2: max(0, second - 1)}.get(against, against)
        if not self._held and (first, second) != self._at:
            with self._showing:
                self._at = first, second
                self._show()

    def _chosen(self) -> None:
        """Show another matrix."""
        self._show_matrix(self.matrix)
        self._newest.submit("spectra", self._compute_spectra)

    def _choose(self, name: str) -> None:
        if name in self._menu.options:
            self._menu.value = name

    # --- showing --------------------------------------------------------------------------------------------

    def _show(self) -> None:
        """Show the two moments everywhere; from any thread."""
        with self._showing:
            self._show_moments()

    def _show_moments(self) -> None:
        self._heading.value = static.heading(self.a, self.b)
        notes = numbers.not_comparable(self.a, self.b)
        items = "".join(f"<li>{html.escape(note)}</li>" for note in notes)
        self._notes.value = (
            f'<ul role="status" style="margin:0;line-height:1.4">{items}</ul>' if notes else ""
        )
        names = numbers.matrix_names(self.a, self.b)
        if tuple(names) != tuple(self._menu.options):
            chosen = self.matrix
            self._menu.options = names
            self._menu.value = chosen if chosen in names else next(iter(names), None)
            self._menu.layout.display = None if len(names) > 1 else "none"
        self._show_matrix(self.matrix)
        self._newest.submit("tables", self._compare_tables)
        self._newest.submit("spectra", self._compute_spectra)
        if not self.playing:
            self.behaviour.start()
        self._newest.submit("ranks", self._compute_ranks)

    def _show_matrix(self, name: str | None) -> None:
        """Show A, B and B - A of one matrix, and ask for its spectra."""
        matrices = [self._moments.matrix(*self._key(which, name or "")) for which in WHICH]
        titles = static.titles(self.a.label, self.b.label).values()
        self._link(matrices)
        peak = max(self._moments.peak(name or ""), _finite_peak(matrices[2])) or 1.0
        for view, matrix, title in zip(self.views, matrices, titles, strict=True):
            view.layout.display = "none" if matrix is None else None
            view.title = title
            if matrix is not None:
                view.update(matrix, vmax=peak)
        self.table.selected = name or ""
        self._show_spectra()

    def _link(self, matrices: Sequence[Array | None]) -> None:
        """Let the three share scale, zoom and cursor, where places in the one are places in the others."""
        together = len({m.shape for m in matrices if m is not None}) == 1
        if together != self._linked:
            self._linked = together
            for view in self.views:
                view.unlink()
            if together:
                MatrixView.link(*self.views)

    def _compare_tables(self, _: Callable[[], bool]) -> None:
        self._show_table()
        self._show_window()
        self._show_settings()
        self._show_entries()
        self._open_table()

    def _compute_spectra(self, stale: Callable[[], bool]) -> None:
        """Compute the spectra of the matrix in view."""
        for which in WHICH:
            if not stale():
                self.spectrum(which)
        if not stale():
            self._show_spectra()
            self._show_table()

    def _compute_ranks(self, stale: Callable[[], bool]) -> None:
        """Compute the spectra of all other matrices, for the table."""
        for name in numbers.matrix_names(self.a, self.b):
            for which in WHICH:
                if stale():
                    return
                self.spectrum(which, name)
            self._show_table()

    def _show_spectra(self) -> None:
        """Show what is known of the spectra in view."""
        names = static.titles(self.a.label, self.b.label)
        found, wanted = [], []
        for which, name in names.items():
            key = self._key(which, self.matrix)
            if key not in self._spectra:
                wanted.append(name)
            elif (known := self._spectra[key]) is not None:
                found.append({
                    "key": {"b-a": "d"}.get(which, which), "name": name,
                    "values": known.spectrum.tolist(), "rank": float(known.effective_rank),
                })  # fmt: skip
        with self.spectra.hold_sync():
            self.spectra.series = found
            self.spectra.busy = f"Computing singular values of {', '.join(wanted)} ..." if wanted else ""

    def _show_table(self) -> None:
        rows = []
        for row in self.rows():
            known = {which: self._spectra.get(self._key(which, row.name)) for which in WHICH}
            ranks = {w: None if s is None else float(s.effective_rank) for w, s in known.items()}
            shapes = list(dict.fromkeys(static.shape(s) for s in (row.shape_a, row.shape_b) if s))
            rows.append({
                **row.to_json(), "id": row.name, "shape": " and ".join(shapes),
                "rank_a": ranks["a"], "rank_b": ranks["b"], "rank_d": ranks["b-a"],
            })  # fmt: skip
        with self.table.hold_sync():
            self.table.caption = f"{len(rows)} matri{'x' if len(rows) == 1 else 'ces'}"
            self.table.rows = rows

    def _show_window(self) -> None:
        x, y = self.a.window, self.b.window
        if x is None or y is None:
            missing = [side.label for side in (self.a, self.b) if side.window is None]
            self.window.caption, self.window.rows = _no_window(missing), []
            return
        found = numbers.compare_windows(x, y)
        with self.window.hold_sync():
            self.window.caption = static.window_sentence(found)
            self.window.rows = [
                {"id": str(token), "token": self._piece(token), "a": a, "b": b, "difference": b - a}
                for token, a, b in found.tokens
            ]

    def _piece(self, token: int) -> str:
        """Name a token: its text if a model is there, else its number."""
        return self.behaviour.piece(token) or f"token {token}"

    def _show_settings(self) -> None:
        rows = numbers.compare_facts(self.a, self.b)
        with self.settings.hold_sync():
            self.settings.caption = f"{len(rows)} differ" if rows else "Settings and counters are the same."
            self.settings.rows = [
                {
                    "id": path,
                    "what": what,
                    "mark": static.MARKS[what],
                    "name": path,
                    "before": "" if x is None else brief(x),
                    "after": "" if y is None else brief(y),
                }
                for path, what, x, y in rows[:MOST_ROWS]
            ]

    def _show_entries(self) -> None:
        if None in map(self._moments.file, self._at):
            self._changes = None
            self.entries.caption, self.entries.rows = "Entries are compared between two files.", []
            return
        self.entries.caption = "Comparing entries ..."
        self._newest.submit("entries", self._compare_entries)

    def _compare_entries(self, _: Callable[[], bool]) -> None:
        a, b = map(self._moments.file, self._at)
        assert a is not None
        assert b is not None
        try:
            found = diff_files(a, b, keys=self._keys)
        except AtlasError as error:
            self.entries.caption, self.entries.rows = str(error), []
            return
        self._changes = found
        with self.entries.hold_sync():
            self.entries.caption = f"{len(found.changes)} of {len(found.changes) + found.same} differ"
            self.entries.rows = static.entry_rows(found, MOST_ROWS)
        self._open_table()

    def _open_table(self) -> None:
        """Open the first table that has something in it, once, unless somebody has chosen one."""
        full = [n for n, table in enumerate((self.window, self.settings, self.entries)) if table.rows]
        if full and self._opens:
            self._opens = False
            if not self._tabs.selected_index:
                self._tabs.selected_index = full[0]

    def _pair(self) -> tuple[Any, Any, str, str]:
        first, second = self._at
        return (
            *map(self._moments.frozen, (first, second)),
            *map(self._moments.labels.__getitem__, (first, second)),
        )

    def _failed(self, name: str, error: Exception) -> None:
        """Say what went wrong in a thread."""
        sentence = html.escape(f"The {name} could not be computed: {error}")
        self._notes.value = f'<p role="alert" style="margin:0">{sentence}</p>'

    # --- static ---------------------------------------------------------------------------------------------

    def _repr_mimebundle_(self, **options: Any) -> Any:
        ending.shown(self)
        return super()._repr_mimebundle_(**options)

    def text(self) -> str:
        """Return the comparison in plain lines."""
        return static.text(self)

    def sheet(self) -> tuple[Sequence[str], Iterable[Sequence[Any]]]:
        """Return a row for each matrix."""
        columns = self.table.columns
        return [c["label"] for c in columns], [
            [row.get(c["key"]) for c in columns] for row in self.table.rows
        ]

    def figure(self) -> Figure:
        """Return A, B and B - A with their spectra as a matplotlib figure."""
        return static.figure(self)

    def html(self) -> str:
        """Return pictures, tables, and what was found of the behaviour, as a page of HTML that runs nothing."""
        return static.page(self)

    def close(self) -> None:
        """Stop what is computed, and close a model that was opened here."""
        if not self._open:  # Python calls this again when it lets go of the widget
            return
        self._open = False
        self._runner.close()
        self._newest.stop()
        self._newest.wait(5)
        self.behaviour.close_model()
        ending.close_parts(self)
        # not every comparison shows these
        ending.close(self.play, self.slider, self.against, self.behaviour.path)
        super().close()


def _row(children: Sequence[Any]) -> ipywidgets.HBox:
    """Return panes side by side, or below each other where the page is narrow."""
    return ipywidgets.HBox(
        children,
        layout=ipywidgets.Layout(flex_flow="row wrap", align_items="flex-start", grid_gap="8px 16px"),
    )


def _no_window(labels: Sequence[str]) -> str:
    """Say why no windows are compared."""
    have = "has no window" if len(labels) == 1 else "have no window"
    return f"{' and '.join(labels)} {have} of exact tokens: there is nothing to compare here."


def _model_of(*given: Any) -> Any:
    """Return a session that could read a probe: one of those given, or a lab's."""
    from atlas_kit.llama.session import AtlasSession

    candidates = [one if isinstance(one, AtlasSession) else getattr(one, "session", None) for one in given]
    return next((one for one in candidates if isinstance(one, AtlasSession)), None)


def _finite_peak(matrix: Array | None) -> float:
    found = 0.0 if matrix is None else numbers.peak(matrix)
    return found if np.isfinite(found) else 0.0


def _of_servers(a: Any, b: Any, session: Any, key: Any) -> tuple[Any, Any]:
    """Return both sides, with a server's memory where an address was given."""
    sessions, keys = _both("session", session), _both("key", key)
    if b is None and is_address(a) and sessions[0] != sessions[1]:
        b = a
    sides = [
        ServerMemory(one, session=name, key=secret) if is_address(one) else one
        for one, name, secret in zip((a, b), sessions, keys, strict=True)
    ]
    if (session is not None or key is not None) and not any(isinstance(one, ServerMemory) for one in sides):
        raise InvalidParamError(
            "a session and a key are of a server, and no address of one is given", key="session",
            hint='An address is like "http://127.0.0.1:8080".',
        )  # fmt: skip
    return sides[0], sides[1]


def _both(what: str, given: Any) -> tuple[Any, Any]:
    """Return what is given for both sides."""
    if given is None or isinstance(given, str):
        return given, given
    if len(given) != 2:
        raise InvalidParamError(f"there are two sides, and {len(given)} of these: {what}", key=what)
    return given[0], given[1]


def _moments_of(given: Any) -> list[Any]:
    """Return the moments of a run: a list, or what has snapshots."""
    if isinstance(given, (str, bytes, os.PathLike)) or not isinstance(given, Sequence):
        return list(getattr(given, "snapshots", [given]))
    return list(given)


def _probe_of(given: Any) -> str:
    """Return the end of the text that a lab read last, or nothing."""
    text = getattr(given, "text_to_read", "")
    return text[-PROBE:] if isinstance(text, str) else ""
