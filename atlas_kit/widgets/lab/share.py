"""A run of ``MemoryLab`` as a file to pass on: picture, animation, table, page. The ending of its name says which.

Knows a lab by what is shown of it.
"""

from __future__ import annotations

import csv
import io
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from atlas_kit.errors import InvalidParamError
from atlas_kit.storage.atomic import write_atomically
from atlas_kit.widgets import saved
from atlas_kit.widgets.lab import static_view as static

if TYPE_CHECKING:
    from atlas_kit.widgets.lab.static_view import ShownLab

#: Endings of names, and what they are.
KINDS = {
    ".png": "a picture",
    ".svg": "a picture that can be enlarged",
    ".gif": "the run as a short animation",
    ".csv": "a table of all tokens",
    ".html": "a page to look around in",
}
#: Pictures of an animation, seconds that it takes, and dots per inch.
FRAMES, SECONDS, DPI = 30, 6.0, 80


def is_shared(path: str | os.PathLike[str]) -> bool:
    """Tell whether a file of this name is one of these kinds."""
    return Path(path).suffix.lower() in KINDS


def write(lab: ShownLab, path: str | os.PathLike[str]) -> None:
    """Write what a lab shows into a file, whose ending says how; it is replaced whole.

    Raises
    ------
    InvalidParamError
        Its name ends otherwise, or there is nothing to animate.
    AtlasError
        It cannot be written.
    """
    suffix = Path(path).suffix.lower()
    if suffix in (".png", ".svg"):
        file = io.BytesIO()
        static.figure(lab).savefig(file, format=suffix[1:], dpi=150, bbox_inches="tight")
        content = file.getvalue()
    elif suffix == ".gif":
        content = animation(lab)
    elif suffix == ".csv":
        content = table(lab).encode("utf-8", "replace")
    elif suffix == ".html":
        title = f"MemoryLab: {lab.session.engine.info.name}"
        content = saved.document(static.page(lab), title).encode("utf-8", "replace")
    else:
        raise InvalidParamError(
            f"a run cannot be written as {suffix or 'a file without an ending'}", key="path",
            hint=f"Endings: {', '.join(KINDS)}.",
        )  # fmt: skip
    write_atomically(path, content)


def table(lab: ShownLab) -> str:
    """Return all tokens of a run as CSV: number, text, losses in nats, weights, and where the window knew it from."""
    out, trace = io.StringIO(), lab.trace
    count = len(trace)
    rows = csv.writer(out, lineterminator="\n")
    rows.writerow(
        ("number", "token", "text", "loss_model", "loss", "model", "memory", "window", "known_from")
    )
    texts = lab.words.texts(0, count)
    for at in range(count):
        numbers = [*trace.loss[at].tolist(), *trace.weights[at].tolist()]
        source = int(trace.source[at])
        rows.writerow(
            (
                at,
                int(trace.tokens[at]),
                texts[at],
                *("" if np.isnan(one) else f"{one:.6g}" for one in numbers),
                "" if source < 0 else source,
            )
        )
    return out.getvalue()


def animation(lab: ShownLab) -> bytes:
    """Return the losses of a run as they came, as an animated GIF."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from PIL import Image

    history = lab.history
    if history.scored < 2:
        raise InvalidParamError("nothing has been read yet that could be animated", key="path")
    both = static.running_mean(np.stack((history.loss_model, history.loss), axis=1))
    figure = Figure(figsize=(7.2, 3.6), layout="constrained", facecolor="white")
    canvas: Any = FigureCanvasAgg(figure)
    axes = figure.add_subplot(xlabel="tokens read", ylabel="loss (nats, running mean)")
    axes.set_xlim(0, len(both))
    static.set_limits(axes, both)
    lines = [
        axes.plot([], [], style, color=colour, lw=2, label=name)[0]
        for name, style, colour in zip(
            ("model alone", "with memory"), ("--", "-"), static.COLOURS, strict=False
        )
    ]
    axes.legend(loc="upper right", frameon=False)
    figure.set_dpi(DPI)
    pictures = []
    for end in np.unique(np.linspace(2, len(both), FRAMES).astype(int)):
        for column, line in enumerate(lines):
            line.set_data(np.arange(end), both[:end, column])
        saves = np.nanmean(history.loss_model[:end] - history.loss[:end])
        axes.set_title(f"{end:,} tokens: the memory saves {saves:+.3f} nats per token", loc="left")
        canvas.draw()
        pictures.append(Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB"))
    file = io.BytesIO()
    each = round(1000 * SECONDS / FRAMES)
    pictures[0].save(
        file, "gif", save_all=True, append_images=pictures[1:], loop=0,
        duration=[each] * (len(pictures) - 1) + [2500],
    )  # fmt: skip
    return file.getvalue()
