"""What differs between two files as a page to look around in: of models the error of each tensor as a picture.

``diff --html`` writes it, and a comparison in a notebook is saved as it. Knows no widget and no command.
"""

from __future__ import annotations

import html
import math
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from atlas_kit.codecs.json_text import brief
from atlas_kit.codecs.quantities import size as in_words
from atlas_kit.errors import printable
from atlas_kit.explorer.page import Panel, bars, document, heat, heatmap, page, table, text
from atlas_kit.storage.keys import Keys

if TYPE_CHECKING:
    from atlas_kit.operations.compare_models import ModelComparison, TensorPair
    from atlas_kit.operations.diff import Change, Comparison, DiffOptions
    from atlas_kit.operations.model_check import ModelCheck
    from atlas_kit.operations.outputs import Output
    from atlas_kit.storage.given import Given, Progress

#: Roles in the order of a layer's work; others stand behind.
_ORDER = "attn_norm attn_qkv attn_q attn_k attn_v attn_output ffn_norm ffn_gate ffn_up ffn_down"
_LAYERS, _ROLES = 200, 60


@dataclass(frozen=True)
class Scale:
    """From the smallest error that is not zero to the largest, so that layers are told apart whatever their level."""

    low: float
    high: float

    @classmethod
    def of(cls, found: ModelComparison) -> Scale | None:
        """Return the scale of a comparison, for its layers where they differ; None where no number does."""
        differing = [pair for pair in found.tensors if pair.error and math.isfinite(pair.error)]
        errors = [pair.error for pair in differing if pair.layer and pair.error] or [
            p.error for p in differing if p.error
        ]
        if not errors:
            return None
        high = max(errors)
        return cls(min(min(errors), high / 1.25), high)

    def share(self, error: float | None) -> float:
        """Return how strong the colour of an error is, from 0 to 1, by its logarithm.

        >>> [Scale(0.01, 1.0).share(error) for error in (0.0, 0.01, 0.1, 1.0, math.inf)]
        [0.0, 0.25, 0.625, 1.0, 1.0]
        """
        if not error:
            return 0.0
        if not math.isfinite(error):
            return 1.0
        part = math.log(error / self.low) / math.log(self.high / self.low)
        return 0.25 + 0.75 * min(max(part, 0.0), 1.0)


def say(error: float | None) -> str:
    """Return a relative error in words: ``0.53 %``."""
    if error is None:
        return "not compared"
    return "the same" if error == 0 else f"{100 * error:.3g} %" if math.isfinite(error) else "not finite"


def title_of(first: str, second: str) -> str:
    """Return which two files are compared, by their names without folders."""
    a, b = (printable(os.path.basename(name) or name) for name in (first, second))
    return f"A: {a} and B: {b}"


# --- models ---------------------------------------------------------------------------------------------------


#: Why a tensor has no error, by what is said of it in the table: of one, and of several.
_REASONS = {
    "other shape": ("has another shape", "have another shape"),
    "only in A": ("is only in A", "are only in A"),
    "only in B": ("is only in B", "are only in B"),
    "not compared": ("could not be read", "could not be read"),
}


def picture(found: ModelComparison) -> str:
    """Return the error of each tensor as a grid of layers and roles, and of what belongs to no layer as a row."""
    scale = Scale.of(found)

    def cell(pair: TensorPair) -> tuple[float | None, str]:
        if pair.error is None or not math.isfinite(pair.error):
            return pair.error, _told(pair)
        return scale.share(pair.error) if scale else 0.0, _told(pair)

    placed = [pair for pair in found.tensors if pair.layer]
    layers = sorted({pair.layer for pair in placed}, key=_natural)[:_LAYERS]
    known = {name: at for at, name in enumerate(_ORDER.split())}
    roles = sorted({pair.role for pair in placed}, key=lambda role: (known.get(role, 99), role))[:_ROLES]
    parts = []
    if layers:
        rows, columns = ({name: at for at, name in enumerate(names)} for names in (layers, roles))
        cells = {
            (rows[pair.layer], columns[pair.role]): cell(pair)
            for pair in placed
            if pair.layer in rows and pair.role in columns
        }
        parts.append(heatmap([f"layer {n}" for n in layers], roles, cells, "Error of each tensor, by layer"))
    others = [pair for pair in found.tensors if not pair.layer][:_ROLES]
    if others:
        cells = {(0, at): cell(pair) for at, pair in enumerate(others)}
        parts.append(heatmap(["model"], [pair.role for pair in others], cells, "Outside of the layers"))
    if not parts:
        return '<p class="ak-dim">No tensor has been compared yet.</p>'
    legend = "".join(
        f'<span style="margin-right:1.2em"><span style="display:inline-block;width:1em;height:1em;'
        f'vertical-align:-2px;box-sizing:border-box;{look}"></span> {html.escape(name)}</span>'
        for name, look in _keys(found, scale)
    )
    why = _why_not(found)
    note = f"<p>{html.escape(why)}</p>" if why else ""
    return f"<p>Relative error, |B − A| / |A|: {legend}</p>{note}{''.join(parts)}"


def _why_not(found: ModelComparison) -> str:
    """Say why there is no error of some tensors; empty where there is one of each."""
    without = Counter(pair.verdict for pair in found.tensors if pair.error is None)
    if not without:
        return ""
    reasons = [f"{count:,} {_REASONS[verdict][count > 1]}" for verdict, count in without.most_common()]
    count = without.total()
    some = f"{count:,} tensor{'s' if count > 1 else ''} cannot"
    who = "No tensor can" if count == len(found.tensors) else some
    return f"{who} be compared number by number: {', '.join(reasons)}."


def _keys(found: ModelComparison, scale: Scale | None) -> list[tuple[str, str]]:
    """Return what the colours of the picture mean, those that are in it: names and styles."""
    keys = []
    if any(pair.error == 0 for pair in found.tensors):
        keys.append(("the same", f"background:{heat(0.0)}"))
    if scale is not None:
        steps = [scale.low * (scale.high / scale.low) ** part for part in (0, 1 / 3, 2 / 3, 1)]
        keys += [(say(step), f"background:{heat(scale.share(step))}") for step in steps]
    if any(pair.error is not None and not math.isfinite(pair.error) for pair in found.tensors):
        keys.append(("not finite", "background:currentColor"))
    if any(pair.error is None for pair in found.tensors):
        keys.append(("not comparable", "border:1px dashed #888"))
    return keys


def _natural(layer: str) -> tuple[str, int]:
    before, _, number = layer.rpartition(".")
    return before, int(number)


def _told(pair: TensorPair) -> str:
    types = (
        pair.type_a
        if pair.type_a == pair.type_b
        else f"{pair.type_a or 'nothing'} to {pair.type_b or 'nothing'}"
    )
    said = say(pair.error) if pair.verdict in ("same", "differs") else pair.verdict
    return f"{pair.name}, {types}: {said}"


TENSOR_COLUMNS = (
    "tensor",
    "layer",
    "role",
    "how",
    "type A",
    "type B",
    "shape",
    "size A",
    "size B",
    "relative error",
    "max |B − A|",
    "cosine",
)


def tensor_rows(found: ModelComparison) -> list[list[Any]]:
    """Return a row for each tensor, under ``TENSOR_COLUMNS``."""
    return [
        [
            pair.name, pair.layer, pair.role, pair.verdict, pair.type_a, pair.type_b,
            shapes(pair),
            _size(pair.bytes_a), _size(pair.bytes_b), pair.error,
            None if pair.numbers is None else pair.numbers.max_abs,
            None if pair.numbers is None else pair.numbers.cosine,
        ]
        for pair in found.tensors
    ]  # fmt: skip


def shapes(pair: TensorPair) -> str:
    """Return the shape of a tensor, or both where they differ: ``32 x 273``."""
    found = dict.fromkeys(shape for shape in (pair.shape_a, pair.shape_b) if shape is not None)
    return " → ".join(" x ".join(f"{n:,}" for n in reversed(shape)) for shape in found)


def _size(count: int | None) -> str | None:
    return None if count is None else in_words(count)


def template_lines(lines: Sequence[str]) -> str:
    """Return a text diff, its lines told apart by their signs and by colour."""
    if not lines:
        return "<p>The chat templates are the same, or there are none.</p>"
    looks = {"+": "background:#009e7333", "-": "background:#d55e0033", "@": "opacity:.7"}
    shown = "\n".join(
        f'<span style="{looks.get(line[:1], "")}">{html.escape(printable(line.expandtabs()))}</span>'
        for line in lines
    )
    return f'<pre tabindex="0">{shown}</pre>'


def check_text(found: ModelCheck) -> list[tuple[str, str]]:
    """Return what two models made of a text, as names and values."""
    return [
        ("Tokens predicted", f"{found.tokens:,}"),
        ("Perplexity of A", f"{found.perplexity_before:.4f}"),
        ("Perplexity of B", f"{found.perplexity_after:.4f}"),
        ("KL divergence, mean", f"{found.kl_mean:.5f} nats"),
        ("KL divergence, 99 of 100 tokens below", f"{found.kl_99:.5f} nats"),
        ("KL divergence, largest", f"{found.kl_max:.4f} nats"),
        ("The likeliest token is the same", f"{found.same_top:.2%}"),
    ]


def model_page(found: ModelComparison, check: ModelCheck | None = None, chosen: str = "") -> str:
    """Return two models side by side as a page."""
    from atlas_kit.explorer.page import facts

    spread = _spread(found)
    panels = [
        Panel("Picture", f"<p>{html.escape(found.sentence())}</p>{picture(found)}{spread}"),
        Panel("Tensors", table(TENSOR_COLUMNS, tensor_rows(found))),
        Panel("Metadata", changes_table(found.metadata)),
        Panel("Tokens", _tokens(found)),
        Panel("Template", template_lines(found.template)),
    ]
    if check is not None:
        panels.append(Panel("On a text", facts(check_text(check))))
    return page(title_of(found.first, found.second), panels, chosen)


def _spread(found: ModelComparison) -> str:
    """Return how many tensors have which error, as bars."""
    errors = [pair.error for pair in found.tensors if pair.error and math.isfinite(pair.error)]
    if len(errors) < 2:
        return ""
    low, high = min(errors), max(errors)
    counts = [0] * 24
    for error in errors:
        counts[min(int((error - low) / (high - low or 1.0) * 24), 23)] += 1
    return bars(counts, (low, high), "How many tensors have which relative error", say)


def _tokens(found: ModelComparison) -> str:
    counts = "<p>{:,} tokens in A, {:,} in B; {:,} differ.</p>".format(
        *found.token_counts, found.differing_tokens
    )
    return counts + (table(["id", "A", "B"], found.tokens, found.differing_tokens) if found.tokens else "")


# --- any two files --------------------------------------------------------------------------------------------


def change_cells(change: Change) -> tuple[str, str]:
    """Return in a few lines what a change was before, and what it is after."""
    before, after = [], []
    for name, x, y in change.details:
        before += [] if x is None else [f"{name}: {brief(x, 200)}"]
        after += [] if y is None else [f"{name}: {brief(y, 200)}"]
    if change.numbers is not None:
        n = change.numbers
        after.append(
            f"{n.differing:,} of {n.count:,} numbers {'differs' if n.differing == 1 else 'differ'}, "
            f"relative L2 {n.relative_l2:.4g}"
        )
    for path, _, x, y in change.paths:
        before += [] if x is None else [f"{path}: {brief(x, 200)}"]
        after += [] if y is None else [f"{path}: {brief(y, 200)}"]
    before += [line[1:] for line in change.lines if line.startswith("-")]
    after += [line[1:] for line in change.lines if line.startswith("+")]
    if change.new_name is not None:
        after.append(change.new_name)
    return printable_lines(before), printable_lines(after)


def printable_lines(lines: Sequence[str]) -> str:
    """Return lines as one text in which nothing acts."""
    return "\n".join(printable(line) for line in lines)


def changes_table(changes: Sequence[Change]) -> str:
    """Return what differs as a table."""
    if not changes:
        return "<p>Nothing differs.</p>"
    rows = ([change.what, change.part, printable(change.name), *change_cells(change)] for change in changes)
    return table(["how", "what", "name", "A", "B"], rows, len(changes))


def comparison_page(found: Comparison) -> str:
    """Return what differs between two files of any kind as a page."""
    counts: dict[str, int] = {}
    for change in found.changes:
        counts[change.what] = counts.get(change.what, 0) + 1
    said = ", ".join([*(f"{count:,} {what}" for what, count in counts.items()), f"{found.same:,} the same"])
    parts = [Panel("What differs", f"<p>{said}.</p>{changes_table(found.changes)}")]
    diffs = [change for change in found.changes if change.lines]
    if diffs:
        body = "".join(
            f"<h4>{html.escape(printable(c.name))}</h4>{template_lines(c.lines)}" for c in diffs[:40]
        )
        parts.append(Panel("Texts", body))
    return page(title_of(found.first, found.second), parts)


# --- writing it -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PageWritten:
    """What was compared, what was found in a sentence, and where the page is."""

    first: str
    second: str
    output: str
    sentence: str
    differs: bool

    @property
    def exit_code(self) -> int:
        """1 if the files differ."""
        return int(self.differs)

    def to_json(self) -> dict[str, Any]:
        """Return the result as JSON-ready data."""
        return {
            "first": printable(self.first), "second": printable(self.second), "output": printable(self.output),
            "sentence": self.sentence, "differs": self.differs,
        }  # fmt: skip


def write_diff_page(
    first: Given, second: Given, output: Output, options: DiffOptions | None = None, *, keys: Keys | None = None,
    force: bool = False, decrypt: bool = False, progress: Progress | None = None,
) -> PageWritten:  # fmt: skip
    """Compare two files and write what differs as one HTML file, which loads nothing.

    Raises
    ------
    InvalidParamError
        The files are of different kinds; the output's name promises another one; or one is encrypted, and nobody
        said that plain text is meant (``decrypt``).
    FileAccessError
        The output exists already (and ``force`` is off), or cannot be written.
    """
    from atlas_kit.formats.endings import require_ending
    from atlas_kit.operations.diff import diff_files
    from atlas_kit.operations.outputs import output_file, output_name, require_free
    from atlas_kit.operations.secrecy import require_plain

    keys = keys or Keys()
    require_ending(output, "html")
    require_free(output, [first, second], force)
    require_plain("an HTML page", encrypted=False, keys=keys, decrypt=decrypt, path=output_name(output))
    if _is_model(first) and _is_model(second):
        from atlas_kit.operations.compare_models import compare_models

        models = compare_models(first, second, options, progress)
        body, names = model_page(models), (models.first, models.second)
        said, differs = models.sentence(), models.differs
    else:
        found = diff_files(first, second, options, keys, progress)
        body, names = comparison_page(found), (found.first, found.second)
        count = len(found.changes)
        said = f"{count:,} {'differs' if count == 1 else 'differ'}, "
        said += f"{found.same:,} {'is' if found.same == 1 else 'are'} the same."
        differs = bool(found.changes)
    title = title_of(*names)
    with output_file(output) as file:
        file.write(document(body, title).encode("utf-8", "replace"))
    return PageWritten(*names, output_name(output), said, differs)


def _is_model(given: Given) -> bool:
    from atlas_kit.formats.detect import detect
    from atlas_kit.storage.given import use_source

    with use_source(given) as source:
        return detect(source) == "gguf"


__all__ = [
    "PageWritten",
    "Scale",
    "changes_table",
    "check_text",
    "comparison_page",
    "document",
    "model_page",
    "picture",
    "shapes",
    "template_lines",
    "tensor_rows",
    "text",
    "write_diff_page",
]
