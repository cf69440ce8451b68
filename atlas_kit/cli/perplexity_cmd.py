"""``atlas-tool perplexity``."""

from __future__ import annotations

import contextlib
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import click

from atlas_kit.cli import _render
from atlas_kit.cli._model_options import MODEL, model_options, open_model
from atlas_kit.cli._options import FILE, atlas_settings_options, command_, json_option

if TYPE_CHECKING:
    from collections.abc import Iterator

    from atlas_kit.operations.perplexity import Comparison

DEFAULT = "none,window,omega,atlas"


class _Kinds(click.ParamType):  # type: ignore[type-arg,unused-ignore]
    name = "KIND,KIND,..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        from atlas_kit.operations.perplexity import KINDS

        kinds = tuple(value.split(",")) if isinstance(value, str) else value
        for kind in kinds:
            if kind not in KINDS:
                self.fail(f"{kind!r} is not one of {', '.join(KINDS)}", param, ctx)
        return kinds


@command_(
    "perplexity",
    """\
Measure what a memory is worth: perplexity with and without it.

Reads each TEXT once through the model; every memory sees the same tokens, states and logits, and starts empty with
each text. `none` is the model alone, `window` the exact window, `omega` the learned memory, `atlas` both. `knn` is the
unbounded rival, a kNN-LM over the whole history with the same online gate, `knn-fixed` the same with the weight that
would have been best. `after` leaves out the tokens that the model's own context may still cover. Sizes are of
everything that a memory keeps; times are of the model and this memory.

Examples:
  atlas-tool perplexity sample_data/models/tiny-python.gguf sample_data/documents/statistics.py --tokens 2000
  atlas-tool perplexity sample_data/models/tiny-python.gguf sample_data/text/chat.txt --memory none,atlas --json
""",
)
@click.argument("model", type=MODEL)
@click.argument("texts", type=FILE, nargs=-1, required=True, metavar="TEXT...")
@click.option(
    "--memory", "kinds", type=_Kinds(), default=DEFAULT, show_default=True, help="Memories to compare."
)
@click.option("--ctx", "ctx", type=int, metavar="N", help="Tokens of context: the same as --n-ctx.")
@click.option(
    "--after", type=int, default=4096, show_default=True, metavar="N", help="Also score from there on."
)
@click.option(
    "--tokens", "limit", type=click.IntRange(2), metavar="N", help="Read at most so many of each text."
)
@click.option("--atlas-auto", is_flag=True, help="Use the memory that `recommend` suggests.")
@click.option("--curve", is_flag=True, help="Show perplexity over the position in the text.")
@atlas_settings_options
@model_options
@click.option("-q", "--quiet", is_flag=True, help="No notes.")
@json_option
def command(model: str, texts: tuple[str, ...], as_json: bool, quiet: bool, **options: Any) -> int:
    """Run the command."""
    from atlas_kit.llama import memory_choice
    from atlas_kit.operations.learn import Document
    from atlas_kit.operations.perplexity import compare

    documents = [(name, Document(name).text()) for name in texts]
    how = dict(options["engine_options"])
    if options["ctx"] is not None:
        how["n_ctx"] = options["ctx"]
    with contextlib.ExitStack() as stack:
        engine = stack.enter_context(open_model(model, how, quiet=quiet))
        base, _ = memory_choice.choose(engine, "auto" if options["atlas_auto"] else True, {})
        settings = options["chosen"].over(base)
        with _render.progress() as progress:
            result = compare(
                engine, documents, options["kinds"], settings=settings, after=options["after"],
                limit=options["limit"], device=options["device"],
                progress=None if progress is None else lambda done, total: progress("reading", done, total),
            )  # fmt: skip
    return _render.emit(result, lambda found: _text(found, options["curve"]), as_json)


def _text(result: Comparison, curve: bool) -> Iterator[_render.Block]:
    from atlas_kit.operations.perplexity import NOTES

    yield _render.Facts(
        [
            ("model", f"{result.model}, context of {result.n_ctx:,} tokens"),
            ("text", f"{result.tokens:,} tokens, {result.scored_after:,} from token {result.after:,} on"),
        ]
    )
    alone = result.results.get("none")
    alone_after = None if alone is None else alone.perplexity_after
    rows = []
    for score in result.results.values():
        note = NOTES[score.kind] + (f" {score.weight:g}" if score.weight is not None else "")
        after = "" if score.perplexity_after is None else f"{score.perplexity_after:.2f}"
        lower: str | _render.Styled = ""
        if score is not alone and alone_after is not None and score.perplexity_after is not None:
            share = 1 - score.perplexity_after / alone_after
            lower = _render.Styled(f"{-share:+.0%}", "good" if share > 0 else "bad")
        size = _render.size(score.state_bytes) if score.state_bytes else ""
        rows.append(
            [score.kind, f"{score.perplexity:.2f}", after, lower, size, f"{score.seconds:.1f} s", note]
        )
    heads = ["memory", ">perplexity", f">from {result.after:,}", ">", ">keeps", ">time", ""]
    yield _render.Table(heads, rows)
    if curve:
        yield ""
        spans = pairwise(result.edges)
        kinds = list(result.results)
        yield _render.Table(
            [">tokens", *(f">{kind}" for kind in kinds)],
            [
                [f"{a:,} to {b:,}", *(f"{result.results[kind].curve[i]:.2f}" for kind in kinds)]
                for i, (a, b) in enumerate(spans)
            ],
        )
