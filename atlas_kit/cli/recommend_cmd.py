"""``atlas-tool recommend``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from atlas_kit.cli import _render, _shell
from atlas_kit.cli._options import FILE, command_, given, json_option

if TYPE_CHECKING:
    from collections.abc import Iterator

    from atlas_kit.settings.model_facts import ModelFacts
    from atlas_kit.settings.recommend import Recommendation


@command_(
    "recommend",
    """\
Recommend the memory that suits a model.

Reads metadata only, so that it takes no time on a model of any size: says what the model is, which settings of a
memory suit it and why, what memory and time they will cost beside it (times are estimates), what the metadata
cannot tell, and the command line that uses all this. Models that do not generate text are refused.

The member `settings` of --json is what --config of other commands takes.

Examples:
  atlas-tool recommend model.gguf
  atlas-tool recommend models/model.gguf --json
""",
)
@click.argument("model", type=FILE)
@json_option
def command(model: str, as_json: bool) -> int:
    """Run the command."""
    from atlas_kit.settings.recommend import recommend

    return _render.emit(_WithCommands(recommend(given(model))), _text, as_json)


def run_command(result: Recommendation) -> str:
    """Return the command line that runs the model with the settings that are recommended."""
    from atlas_kit.settings.atlas_settings import settings_table

    words = []
    for row in settings_table():
        value = getattr(result.settings, row.name)
        if value == row.default:
            continue
        if isinstance(value, bool):
            words.append(row.option if value else f"--no-{row.option[2:]}")
        else:
            words += [row.option, str(value)]
    return _run(result, "--atlas", *words)


def automatic_command(result: Recommendation) -> str:
    """Return the command line that finds these settings by itself."""
    return _run(result, "--atlas-auto")


def _run(result: Recommendation, *words: str) -> str:
    from atlas_kit.storage.urls import is_url, last_part

    model = last_part(result.model.path) if is_url(result.model.path) else result.model.path
    return " ".join(
        ["atlas-tool run", model if model == "-" else _shell.path(model), *map(_shell.word, words)]
    )


class _WithCommands:
    """A recommendation that says with which command lines to follow it."""

    exit_code = 0

    def __init__(self, result: Recommendation) -> None:
        self.result = result

    def to_json(self) -> dict[str, Any]:
        commands = {"command": run_command(self.result), "automatic": automatic_command(self.result)}
        return {**self.result.to_json(), **commands}


def _text(given: _WithCommands) -> Iterator[_render.Block]:
    result = given.result
    yield _render.Facts([row for row in _facts(result.model) if row[1] not in (None, "")])
    rows = []
    for name, value in result.settings.to_json().items():
        shown = str(value).lower() if isinstance(value, bool) else value
        rows.append((name, _render.Styled(str(shown), "head"), result.reasons[name]))
    yield _render.Table(["setting", "value", "reason"], rows)
    yield from _costs(result)
    yield _render.Lines(["", *(f"note: {note}" for note in result.notes), ""])
    yield _render.Lines([_render.Styled(run_command(result), "good"), f"or: {automatic_command(result)}"])


def _facts(model: ModelFacts) -> Iterator[tuple[str, object]]:
    from atlas_kit.settings.recommend import short

    yield "model", model.path if model.name is None else f"{model.path} ({model.name})"
    yield "architecture", f"{model.architecture}, family: {model.family}"
    yield "parameters", short(model.parameters)
    weights = f"mostly {model.quantisation}, {model.bits_per_weight:.1f} bits a parameter"
    yield "weights", f"{weights}, {_render.size(model.size)}"
    yield "layers", None if model.layers is None else f"{model.layers:,}, {model.width:,} wide"
    yield "heads", _heads(model)
    yield "experts", model.experts and f"{model.experts_used or '?'} of {model.experts} per token"
    tokens = "unknown" if model.vocabulary is None else f"{model.vocabulary:,} tokens"
    yield "vocabulary", f"{tokens}, output matrix {'is the embedding' if model.tied else 'of its own'}"
    yield "context", "unknown" if model.context is None else f"{model.context:,} tokens"
    scaling = [("scaled by", model.logit_scale), ("capped at", model.softcap)]
    yield "logits", ", ".join(f"{word} {number:g}" for word, number in scaling if number is not None)


def _heads(model: ModelFacts) -> str | None:
    if model.heads is None:
        return None
    same = model.heads_kv is None or model.heads_kv == model.heads
    return f"{model.heads}" if same else f"{model.heads}, {model.heads_kv} of keys and values"


def _costs(result: Recommendation) -> Iterator[_render.Block]:
    costs = result.costs
    rows = [(_render.size(size), what) for what, size in costs.memory]
    rows.append(
        (_render.size(costs.total_bytes), "in all; a saved memory has " + _render.size(costs.state_bytes))
    )
    yield _render.Table([">extra memory", "for"], rows)
    times = f"{costs.extra_time:.0%} of" if costs.extra_time < 2 else f"{costs.extra_time:,.0f} times"
    yield ""
    yield (
        f"extra time: about {times} the model's own (an estimate), "
        f"{costs.flops / 1e6:,.1f} MFLOP and {_render.size(costs.bytes_read)} read per token; "
        f"the model reads {_render.size(result.model.read_per_token)}"
    )
