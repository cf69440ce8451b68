"""``atlas-tool recall``."""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING, Any

import click

from atlas_kit.cli import _render
from atlas_kit.cli._model_options import MODEL, Stopping, model_options, open_model
from atlas_kit.cli._options import FILE, atlas_settings_options, command_, json_option

if TYPE_CHECKING:
    from collections.abc import Iterator

    from atlas_kit.operations.recall import Recall, Row


#: A short context, unless another is asked for: less text buries a fact.
CONTEXT = 512


class _Distances(click.ParamType):  # type: ignore[type-arg,unused-ignore]
    name = "N,N,..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        try:
            return tuple(int(part) for part in value.split(","))
        except ValueError:
            self.fail(f"{value!r} is not a list of whole numbers such as 128,768,4096", param, ctx)


@command_(
    "recall",
    """\
Measure what a memory recalls, over distance.

Plants facts (names with numbers) in a text, buries them under more text, and asks: the beginning of a fact is fed
once more, and an answer counts when the exact number follows, greedily. The same text, facts and context are given
to the model alone, to model and learned memory (`with memory`), and to the whole memory, which also finds what was
read and reads it again as `ask` does (`with recall`; --recall off leaves that out). `with the fact` is what recalling
can reach: the model is asked with the fact and the text around it right in front. Every fact is asked at every
distance, and asking leaves no trace. A fact that has left the model's context can be known to the memory only, and
one that has left the window (--window-size) to its learned part and to the text that was kept. The context is 512
tokens unless --n-ctx says otherwise. `nats` is what the whole answer cost, -log p: a guess costs ln 9000 = 9.1.

The text is generated, of the kind that the model expects more (programs or sentences), or comes from --filler.

Examples:
  atlas-tool recall sample_data/models/tiny-python.gguf --facts 5 --distances 64,600
  atlas-tool recall sample_data/models/tiny-python.gguf --facts 3 --filler sample_data/documents/tarfile.py
""",
)
@click.argument("model", type=MODEL)
@click.option("--facts", type=int, default=20, show_default=True, metavar="N", help="How many facts.")
@click.option(
    "--distances",
    type=_Distances(),
    default="128,768,4096",
    show_default=True,
    help="Tokens between a fact and its question.",
)
@click.option(
    "--template", metavar="TEXT", help="What a fact looks like, such as: The number of {name} is {value}."
)
@click.option("--filler", type=FILE, metavar="FILE", help="Bury the facts under this text.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of names, numbers and generated text.")
@click.option("--atlas-auto", is_flag=True, help="Use the memory that `recommend` suggests.")
@atlas_settings_options
@model_options
@click.option("-q", "--quiet", is_flag=True, help="No notes.")
@json_option
def command(model: str, filler: str | None, as_json: bool, quiet: bool, **options: Any) -> int:
    """Run the command."""
    from atlas_kit.llama.open_session import open_session
    from atlas_kit.operations.learn import Document
    from atlas_kit.operations.recall import check, recall

    check(options["facts"], options["distances"], options["template"])
    text = None if filler is None else Document(filler).text()
    chosen, how = options["chosen"], {"n_ctx": CONTEXT, **options["engine_options"]}
    with contextlib.ExitStack() as stack:
        engine = stack.enter_context(open_model(model, how, quiet=quiet))
        session = stack.enter_context(
            open_session(
                engine,
                "auto" if options["atlas_auto"] else True,
                config=chosen.over() if chosen.config is not None else None,
                changes=chosen.values,
                device=options["device"],
            )
        )
        stop = stack.enter_context(Stopping())
        progress = stack.enter_context(_render.progress())
        result = recall(
            session, facts=options["facts"], distances=options["distances"], seed=options["seed"],
            template=options["template"], filler=text, progress=progress, stop=stop,
        )  # fmt: skip
        stack.pop_all().close()  # the bar is gone before the table comes
        if not result.interrupted:
            return _render.emit(result, _text, as_json)
        _render.emit(result, _text, as_json)
        sys.stdout.flush()
        raise KeyboardInterrupt


def _text(result: Recall) -> Iterator[_render.Block]:
    settings = result.memory["settings"]
    yield _render.Facts(
        [
            ("model", f"{result.model}, context of {result.n_ctx:,} tokens"),
            (
                "memory",
                f"window of {settings['window_size']:,}, {_render.size(result.memory['state_bytes'])}",
            ),
            ("facts", f"{result.facts}, such as: {result.example}"),
            ("text", f"{result.tokens:,} tokens"),
        ]
    )
    rows = [_row(row) for row in result.rows]
    yield _render.Table(
        [
            ">distance",
            "known to",
            ">model alone",
            ">with memory",
            ">with recall",
            ">with the fact",
            ">nats alone",
            ">nats with memory",
        ],
        rows,
    )
    yield ""
    yield (
        f"chance: {result.chance_value:.2%} for any number, {result.chance_planted:.1%} for one that was planted"
    )


def _row(row: Row) -> list[object]:
    if not row.facts:
        return [f"{row.distance:,}", row.reach, "", "", "", "", "", ""]
    share = [
        _render.Styled("-" if right is None else f"{right / row.facts:.0%}", "good" if right else "dim")
        for right in (row.right_model, row.right, row.right_recalled, row.right_given)
    ]
    return [f"{row.distance:,}", row.reach, *share, f"{row.nats_model:.2f}", f"{row.nats:.2f}"]
