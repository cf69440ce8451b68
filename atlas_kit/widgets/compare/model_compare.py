"""``ModelCompare``: two models side by side: the error of each tensor as a picture, metadata, tokens and template.

What differs is found in ``operations/compare_models.py``, tensor by tensor on a thread of its own, and the page that
is saved is made in ``explorer/diff_page.py``. On demand both models read a text.
"""

from __future__ import annotations

import html
import os
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import ipywidgets

from atlas_kit.errors import AtlasError
from atlas_kit.explorer import diff_page
from atlas_kit.operations.compare_models import ModelComparison, ModelPair
from atlas_kit.widgets import ending, saved
from atlas_kit.widgets.base import Shown
from atlas_kit.widgets.compare.panes import CompareTable
from atlas_kit.widgets.newest import Newest

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from atlas_kit.llama.words_only import WordsOnly
    from atlas_kit.operations.model_check import ModelCheck

#: Seconds between two pictures while tensors are being compared.
PACE = 0.5
#: Tokens of a text that both models read.
TOKENS = 2048

_TENSOR_COLUMNS = [
    {"key": "name", "label": "tensor", "kind": "text"},
    {"key": "verdict", "label": "how", "kind": "text"},
    {"key": "types", "label": "type", "kind": "text"},
    {"key": "shape", "label": "shape", "kind": "text"},
    {"key": "error", "label": "relative error", "kind": "number", "note": "relative L2: ‖B − A‖ / ‖A‖"},
    {"key": "largest", "label": "max |B − A|", "kind": "number"},
    {"key": "cosine", "label": "cosine", "kind": "number", "note": "of A and B as vectors"},
]
_CHANGE_COLUMNS = [
    {"key": "mark", "label": "±", "kind": "mark", "note": "+ only in B, − only in A, ~ in both"},
    {"key": "name", "label": "key", "kind": "text"},
    {"key": "before", "label": "A", "kind": "text"},
    {"key": "after", "label": "B", "kind": "text"},
]
_TOKEN_COLUMNS = [
    {"key": "number", "label": "id", "kind": "count"},
    {"key": "a", "label": "A", "kind": "text"},
    {"key": "b", "label": "B", "kind": "text"},
]
_MARKS = {"added": "+", "removed": "−", "changed": "~"}
_TABS = ("Picture", "Tensors", "Metadata", "Tokens", "Template", "On a text")


class ModelCompare(Shown, ipywidgets.VBox):  # type: ignore[misc]
    """Two models side by side, such as one before and after it was quantised.

    Parameters
    ----------
    a, b
        GGUF files; of a split model its first shard.
    text
        What both models read when it is asked for, to say how far their predictions are apart.
    tokens
        Tokens of the text that are read.

    Raises
    ------
    AtlasError
        One of them cannot be opened, or is no model.

    Examples
    --------
    >>> ModelCompare("model-f16.gguf", "model-q4_k_m.gguf")  # doctest: +SKIP
    """

    _open = False

    def __init__(
        self, a: str | os.PathLike[str], b: str | os.PathLike[str], text: str = "", *, tokens: int = TOKENS
    ) -> None:
        self._paths = os.fspath(a), os.fspath(b)
        self._most = tokens
        self._pair = ModelPair(*self._paths)
        self._open = True
        self._lock = threading.Lock()
        #: What both models made of a text; None before that.
        self.check: ModelCheck | None = None
        self._problem = ""
        self._vocabularies: list[WordsOnly] = []
        self._newest = Newest(self._failed)
        self._build(text)
        super().__init__([self._heading, self._status, self._tabs])
        self.add_class("atlas-model-compare")
        self._show_heads()
        self._newest.submit("tensors", self._compare)
        ending.replace(self)

    # --- for Python -------------------------------------------------------------------------------------------

    @property
    def found(self) -> ModelComparison:
        """What differs, as far as it has been compared."""
        return self._pair.found

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until all tensors are compared; False if that took longer than ``timeout`` seconds."""
        return self._newest.wait(timeout)

    def read(self, text: str | None = None) -> ModelCheck | None:
        """Let both models read a text now, by default the one in the box; return how far they are apart.

        None where that cannot be done: the widget says why.
        """
        if text is not None:
            self._text.value = text
        self._newest.stop("text")
        try:
            self._read(lambda: False)
        except AtlasError as error:
            self._failed("text", error)
            return None
        return self.check

    # --- the parts --------------------------------------------------------------------------------------------

    def _build(self, text: str) -> None:
        self._heading, self._status = ipywidgets.HTML(), ipywidgets.HTML()
        self._picture, self._template, self._result = (ipywidgets.HTML() for _ in range(3))
        self.tensors = CompareTable(columns=_TENSOR_COLUMNS)
        self.metadata = CompareTable(columns=_CHANGE_COLUMNS)
        self.tokens = CompareTable(columns=_TOKEN_COLUMNS)
        self._text = ipywidgets.Textarea(
            text, placeholder="A text of your own, for both models to read",
            layout=ipywidgets.Layout(width="auto", height="110px"),
        )  # fmt: skip
        self._text.add_class("atlas-model-text")
        self._go = ipywidgets.Button(description="Read it", icon="play")
        self._go.on_click(lambda _: self._newest.submit("text", self._read))
        behaviour = ipywidgets.VBox([self._text, self._go, self._result])
        self._words = ipywidgets.Text(
            placeholder="Type a text to see how both cut it into tokens", continuous_update=True,
            layout=ipywidgets.Layout(width="auto"),
        )  # fmt: skip
        self._words.observe(lambda _: self._newest.submit("tokens", self._cut), "value")
        self._cut_text = ipywidgets.HTML()
        tokens = ipywidgets.VBox([self._words, self._cut_text, self.tokens])
        panes = [self._picture, self.tensors, self.metadata, tokens, self._template, behaviour]
        self._tabs = ipywidgets.Tab(panes, titles=_TABS)

    def _show_heads(self) -> None:
        found = self.found
        names = (f"<b>A: {html.escape(found.first)}</b>", f"<b>B: {html.escape(found.second)}</b>")
        self._heading.value = f"<div style='line-height:1.5'>{'<br>'.join(names)}</div>"
        self.metadata.rows = [
            {"id": str(n), "mark": _MARKS[c.what], "name": c.name, "before": before, "after": after}
            for n, c in enumerate(found.metadata)
            for before, after in [diff_page.change_cells(c)]
        ]
        self.tokens.caption = "{:,} tokens in A, {:,} in B; {:,} differ.".format(
            *found.token_counts, found.differing_tokens
        )
        self.tokens.rows = [
            {"id": str(n), "number": n, "a": a or "", "b": b or ""} for n, a, b in found.tokens
        ]
        self._template.value = saved.part(diff_page.template_lines(found.template))
        self._show()

    def _show(self) -> None:
        """Show what has been compared so far."""
        found = self.found
        said = f'<p role="alert" style="margin:0">{html.escape(self._problem)}</p>' if self._problem else ""
        self._status.value = f'<p role="status" style="margin:0">{html.escape(found.sentence())}</p>{said}'
        self._picture.value = saved.part(diff_page.picture(found))
        self.tensors.rows = [
            {
                "id": pair.name, "name": pair.name, "verdict": pair.verdict,
                "types": pair.type_a if pair.type_a == pair.type_b else f"{pair.type_a or '–'} → {pair.type_b or '–'}",
                "shape": diff_page.shapes(pair),
                "error": _finite(pair.error),
                "largest": None if pair.numbers is None else _finite(pair.numbers.max_abs),
                "cosine": None if pair.numbers is None else pair.numbers.cosine,
            }
            for pair in found.tensors
        ]  # fmt: skip

    # --- what takes long --------------------------------------------------------------------------------------

    def _compare(self, stale: Callable[[], bool]) -> None:
        due = time.monotonic() + PACE
        for _ in self._pair.compare():
            if stale() or not self._open:
                return
            if time.monotonic() >= due:
                self._show()
                due = time.monotonic() + PACE
        self._show()

    def _read(self, stale: Callable[[], bool]) -> None:
        from atlas_kit.operations.model_check import check_models, different_vocabularies

        text = self._text.value
        if not text.strip():
            self._result.value = '<p role="alert">There is no text to read.</p>'
            return
        counts = self.found.token_counts
        if all(counts) and counts[0] != counts[1]:
            raise different_vocabularies()  # before both are loaded
        with self._lock:
            self._go.disabled = True
            self._result.value = '<p role="status">Loading both models …</p>'

            def tell(what: str, done: int, total: int) -> None:
                self._result.value = (
                    f'<p role="status">{what.capitalize()}: {done:,} of {total:,} tokens …</p>'
                )
                if stale() or not self._open:
                    raise AtlasError("stopped")

            try:
                self.check = check_models(*self._paths, text.encode(), tokens=self._most, progress=tell)
                self._result.value = saved.part(saved.facts(diff_page.check_text(self.check)))
            finally:
                self._go.disabled = False

    def _cut(self, stale: Callable[[], bool]) -> None:
        """Show how both models cut the text that was typed."""
        from atlas_kit.explorer.language import tokens_of
        from atlas_kit.llama.words_only import WordsOnly

        text = self._words.value
        if not text:
            self._cut_text.value = ""
            return
        if not self._vocabularies:
            self._cut_text.value = '<p role="status">Reading both vocabularies …</p>'
            self._vocabularies = [WordsOnly(path) for path in self._paths]
        both = [tokens_of(words, text) for words in self._vocabularies]
        if not stale():
            self._cut_text.value = saved.part("".join(map(_pieces, "AB", both, reversed(both))))

    def _failed(self, name: str, error: Exception) -> None:
        """Say what went wrong."""
        if not self._open:
            return
        said = error.sentence(error.advice) if isinstance(error, AtlasError) else str(error)
        if isinstance(error, AtlasError) and said.startswith(error.message):  # and not with a path
            said = f"{said[:1].upper()}{said[1:].rstrip('.')}."
        if name == "tokens":
            self._cut_text.value = f'<p role="alert">{html.escape(said)}</p>'
        elif name == "text":
            self._result.value = f'<p role="alert">{html.escape(said)}</p>'
        else:
            self._problem = f"The tensors could not be compared: {said}"
            self._show()

    def close(self) -> None:
        """Stop comparing, and let go of both files."""
        if not self._open:  # Python calls this again when it lets go of the widget
            return
        self._open = False
        self._newest.stop()
        self._newest.wait(10)
        self._pair.close()
        for words in self._vocabularies:
            words.close()
        ending.close_parts(self)
        super().close()

    # --- static -----------------------------------------------------------------------------------------------

    def _repr_mimebundle_(self, **options: Any) -> Any:
        ending.shown(self)
        return super()._repr_mimebundle_(**options)

    def text(self) -> str:
        """Return what differs in a few lines."""
        found = self.found
        lines = [f"A: {found.first}", f"B: {found.second}", found.sentence()]
        worst = sorted((p for p in found.tensors if p.error), key=lambda p: -(p.error or 0))[:5]
        lines += [f"  {pair.name}: error {diff_page.say(pair.error)}" for pair in worst]
        if self.check is not None:
            lines += [f"{name}: {value}" for name, value in diff_page.check_text(self.check)]
        return "\n".join(lines)

    def html(self) -> str:
        """Return all of it as a page that loads and runs nothing."""
        at = self._tabs.selected_index or 0
        return diff_page.model_page(self.found, self.check, _TABS[at])

    def sheet(self) -> tuple[Sequence[str], Iterable[Sequence[Any]]]:
        """Return a row for each tensor."""
        return diff_page.TENSOR_COLUMNS, diff_page.tensor_rows(self.found)

    def figure(self) -> Figure:
        """Return the error of each tensor as a matplotlib figure: a line for each role over the layers."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(9.6, 4.6), layout="constrained")
        axes = figure.subplots()
        for number, (role, points) in enumerate(_by_role(self.found).items()):
            layers, errors = zip(*points, strict=True)
            axes.semilogy(layers, errors, "osv^DPX*"[number % 8] + "-", ms=4, lw=1, label=role)
        axes.set(xlabel="layer", ylabel="relative error", title=self.found.sentence())
        axes.title.set_fontsize(9)
        if axes.lines:
            axes.legend(fontsize=7, ncols=2, loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
        else:
            axes.text(0.5, 0.5, "no tensor of a layer differs", ha="center", transform=axes.transAxes)
        return figure


def _by_role(found: ModelComparison) -> dict[str, Sequence[tuple[int, float]]]:
    """Return for each role its layers and errors, where there are any."""
    lines: dict[str, list[tuple[int, float]]] = {}
    for pair in found.tensors:
        error = _finite(pair.error)
        if pair.layer and error:
            lines.setdefault(pair.role, []).append((int(pair.layer.rpartition(".")[2]), error))
    return {role: sorted(points) for role, points in lines.items()}


def _pieces(label: str, tokens: Sequence[dict[str, Any]], others: Sequence[dict[str, Any]]) -> str:
    """Return the tokens of a text as boxes; those that the other model does not cut alike are framed."""
    ends: set[int] = set()
    at = 0
    for token in others:
        at += len(token["bytes"].split())
        ends.add(at)
    boxes, at = [], 0
    for token in tokens:
        start, at = at, at + len(token["bytes"].split())
        alike = (start == 0 or start in ends) and at in ends
        frame = "1px solid #8886" if alike else "2px solid #d55e00"
        boxes.append(
            f'<span style="display:inline-block;border:{frame};border-radius:3px;padding:0 4px;margin:1px;'
            f'white-space:pre" '
            f'title="token {token["id"]}"><bdi>{html.escape(token["text"])}</bdi></span>'
        )
    return f"<p><b>{label}: {len(tokens):,} tokens</b><br>{''.join(boxes)}</p>"


def _finite(value: float | None) -> float | None:
    return value if value is not None and abs(value) < float("inf") else None
