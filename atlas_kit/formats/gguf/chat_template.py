"""Chat templates as Jinja: the sandbox that they run in, whether they can be compiled, what one makes of an example.

Knows no tokens and no engine: a template here makes text. jinja2 is imported when there is a template to look at.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from atlas_kit.errors import AtlasError, FileCorruptError, MissingExtraError

if TYPE_CHECKING:
    from atlas_kit.formats.gguf.file import GGUFFile

TEMPLATE = "tokenizer.chat_template"
#: The conversation that shows what a template does.
EXAMPLE: tuple[Mapping[str, str], ...] = (
    {"role": "system", "content": "You are helpful."},
    {"role": "user", "content": "Hello"},
    {"role": "assistant", "content": "Hi there"},
    {"role": "user", "content": "How are you?"},
)
#: Characters that a template may make of it.
MOST = 1 << 20


@dataclass
class ShownTemplate:
    """A model's template, what it makes of ``EXAMPLE``, or why it makes nothing of it; names of further templates."""

    source: str
    text: str | None = None
    problem: str | None = None
    others: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the template as JSON-ready data."""
        return {"source": self.source, "example": list(EXAMPLE), "text": self.text, "problem": self.problem,
                "others": list(self.others)}  # fmt: skip


def environment() -> Any:
    """Return the sandbox of templates: jinja2's, with what Hugging Face and llama.cpp put into it.

    Raises
    ------
    MissingExtraError
        jinja2 is not installed.
    """
    try:
        from jinja2 import TemplateError
        from jinja2.ext import Extension
        from jinja2.sandbox import ImmutableSandboxedEnvironment
    except ImportError as error:
        raise MissingExtraError("a chat template", "llama") from error

    class Generation(Extension):
        """``{% generation %}``, which marks answers for training, stands for nothing."""

        tags = {"generation"}  # noqa: RUF012 (as jinja2 declares it)

        def parse(self, parser: Any) -> Any:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    def refuse(message: object) -> None:
        raise TemplateError(str(message))

    made = ImmutableSandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        optimized=False,  # or {{ "x" * 10 ** 10 }} is computed while it is compiled
        extensions=["jinja2.ext.loopcontrols", Generation],
    )
    made.filters["tojson"] = lambda value, **options: json.dumps(value, **{"ensure_ascii": False, **options})
    made.globals["raise_exception"] = refuse
    made.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    return made


def problem_of(source: str) -> str | None:
    """Return why a template cannot be compiled; ``None`` where it can, or where jinja2 is not installed."""
    try:
        environment().from_string(source)
    except MissingExtraError:
        return None
    except Exception as error:  # a syntax error, or one of the compiler that a hostile source provokes
        return _reason(error)
    return None


def shown_template(model: GGUFFile) -> ShownTemplate | None:
    """Return a model's template with what it makes of the example; ``None`` where it has none.

    Raises
    ------
    FileCorruptError
        What stands for the template is no text.
    MissingExtraError
        jinja2 is not installed.
    """
    others = tuple(key[len(TEMPLATE) + 1 :] for key in model.metadata if key.startswith(f"{TEMPLATE}."))
    source = model.get(TEMPLATE)
    if source is None and others:
        source = model.get(f"{TEMPLATE}.{others[0]}")
    if source is None:
        return None
    if not isinstance(source, str):
        raise FileCorruptError("the chat template is not a text", path=model.path, key=TEMPLATE)
    shown = ShownTemplate(source, others=others)
    names = {f"{name}_token": _token(model, name) for name in ("bos", "eos")}
    try:
        compiled = environment().from_string(source)
        try:
            shown.text = _rendered(compiled, EXAMPLE, names)
        except Exception:  # many templates refuse a system message, and say so in their own words
            shown.text = _rendered(compiled, EXAMPLE[1:], names)
    except AtlasError:
        raise
    except Exception as error:
        shown.problem = _reason(error)
    return shown


def _rendered(compiled: Any, messages: Sequence[Mapping[str, str]], names: Mapping[str, str]) -> str:
    pieces, size = [], 0
    for piece in compiled.generate(
        messages=list(map(dict, messages)), add_generation_prompt=True, tools=None, **names
    ):
        pieces.append(piece)
        size += len(piece)
        if size > MOST:
            raise ValueError(f"it makes more than {MOST} characters of four short messages")
    return "".join(pieces)


def _token(model: GGUFFile, name: str) -> str:
    number, tokens = model.get(f"tokenizer.ggml.{name}_token_id"), model.metadata.get("tokenizer.ggml.tokens")
    if not isinstance(number, int) or tokens is None or not tokens.is_array or not 0 <= number < tokens.count:
        return ""
    return str(tokens.items[number])


def _reason(error: BaseException) -> str:
    line = getattr(error, "lineno", None)
    reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
    return f"{reason} (line {line})" if line else reason
