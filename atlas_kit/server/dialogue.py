"""Messages, tools and the shape of an answer become tokens to read, a grammar, and a parser of what is generated.

Every API that has messages uses this. Whatever is wrong with them is found here, before anything waits or is read.
Knows no HTTP.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from atlas_kit.errors import InvalidParamError, MissingExtraError, ModelError
from atlas_kit.llama.chat import Placed
from atlas_kit.llama.llama_sampler import MOST_RULES
from atlas_kit.llama.schema_grammar import MOST_CHARACTERS, quoted, rebased, schema_rules, up_to
from atlas_kit.server.answers import HERMES, AnswerParser, CallFormat, call_format, thought_tags
from atlas_kit.server.channels import ChannelParser, channel_rules, in_channels
from atlas_kit.server.said import Said, Spoken, said_in
from atlas_kit.server.thoughts import Budget

if TYPE_CHECKING:
    from atlas_kit.llama.chat import ChatTemplate
    from atlas_kit.llama.engine import Engine
    from atlas_kit.llama.sampling import Sampler
    from atlas_kit.llama.steps import Token

Message = Mapping[str, Any]
#: The form of conversations with a model that has none of its own: it was trained on texts, and goes on with one.
TRANSCRIPT = (
    "{%- set names = {'system': 'System', 'user': 'User', 'assistant': 'Assistant', 'tool': 'Tool'} -%}"
    "{%- for message in messages -%}"
    "{{ names.get(message.role, message.role | capitalize) + ': ' + message.content + '\\n' }}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ 'Assistant:' }}{%- endif -%}"
)
#: What ends an answer there: the next one's turn.
TRANSCRIPT_STOPS = ("\nUser:", "\nSystem:", "\nAssistant:", "\nTool:")
_NAME = re.compile(r"[A-Za-z0-9_.:-]{1,128}", re.ASCII)
_EMPTY = {"type": "object", "properties": {}}
_TEXT_PARTS = frozenset({"text", "input_text", "output_text"})
_INSTRUCTIONS = (
    "You may call functions to help with the request. These functions are available:\n<tools>\n{tools}\n</tools>\n"
    "For each call, write a JSON object with the name of the function and its arguments between tags:\n"
    '<tool_call>\n{{"name": "...", "arguments": {{...}}}}\n</tool_call>'
)


@dataclass(frozen=True)
class Asked:
    """What an answer is to be like, in the words of OpenAI's chat API.

    Attributes
    ----------
    tools
        ``{"type": "function", "function": {"name": ..., "description": ..., "parameters": ...}}``.
    tool_choice
        ``"none"``, ``"auto"``, ``"required"``, or ``{"type": "function", "function": {"name": ...}}``.
    parallel
        Whether several calls may come at once.
    response_format
        ``{"type": "json_object"}`` or ``{"type": "json_schema", "json_schema": {"schema": ...}}``.
    variables
        What the template is given beside: ``{"enable_thinking": False}``.
    reasoning_format
        ``"none"`` leaves thoughts in the text, everything else splits them off.
    generation_prompt
        False: the text ends behind the last message, and the model goes on as it likes.
    own_grammar
        Whether the answer follows a grammar that is none of ours.
    """

    tools: Sequence[Mapping[str, Any]] | None = None
    tool_choice: Any = None
    parallel: bool = True
    response_format: Mapping[str, Any] | None = None
    variables: Mapping[str, Any] = field(default_factory=dict)
    reasoning_format: str | None = None
    generation_prompt: bool = True
    own_grammar: bool = False


@dataclass(frozen=True)
class Dialogue:
    """What is read, and how the answer is chosen and taken apart.

    Attributes
    ----------
    tokens
        The conversation, up to where the answer begins.
    sampling
        Settings of ``Sampling`` that follow: ``grammar`` or ``json_schema``.
    stops
        Strings that end an answer beside those that are asked for.
    said
        Who says what in it.
    """

    tokens: list[int]
    sampling: dict[str, Any]
    stops: tuple[str, ...]
    said: Said
    _make: Callable[..., AnswerParser]
    _parser: dict[str, Any]

    def budget(self, engine: Engine, most: int | None) -> Callable[[Sampler], Sampler] | None:
        """Return what lets a sampler end the thoughts after ``most`` tokens; None where there are none to end."""
        marks, thinking = self._parser.get("thoughts"), self._parser.get("thinking", False)
        if most is None or most < 0 or marks is None:
            return None
        return lambda sampler: Budget(sampler, engine, marks, thinking, most)

    def parser(self) -> AnswerParser:
        """Return what takes one answer apart."""
        return self._make(**self._parser)


def dialogue(
    engine: Engine, template: ChatTemplate, messages: Sequence[Message], asked: Asked | None = None
) -> Dialogue:
    """Return what a conversation asks of the model.

    Raises
    ------
    InvalidParamError
        The messages, the tools or the form of the answer are none that can be used; ``key`` names which.
    """
    asked = asked or Asked()
    messages = normal_messages(messages)
    tools = _functions(asked.tools)
    choice = _choice(asked.tool_choice, tools)
    source = template.source
    if in_channels(source):
        return _in_channels(engine, template, messages, tools, choice, asked)
    form = None if not tools or choice == "none" else (call_format(source) or HERMES)
    known = call_format(source) is not None
    if not known and (form is not None or _speaks_of_tools(messages)):
        messages = _told_in_words(messages, tools if form is not None else {})
    listed, transcript = list(tools.values()) if form is not None and known else None, source == TRANSCRIPT

    def read(of: list[dict[str, Any]]) -> Placed:
        found = _read(template, of, asked, listed)
        if transcript and tuple(found.tokens[: len(engine.begin)]) != engine.begin:
            found = found.behind(engine.begin)
        return found

    placed = read(messages)
    tokens, thoughts = placed.tokens, thought_tags(source)
    thinking = thoughts is not None and _ends_with(engine, tokens, thoughts[0])
    goes_on = asked.generation_prompt and messages[-1]["role"] == "assistant"
    schemas = {name: one["function"]["parameters"] for name, one in tools.items()}
    parser: dict[str, Any] = {
        "thoughts": thoughts,
        "thinking": thinking,
        "calls": form,
        "tools": schemas,
        "several": asked.parallel,
        "name_of": lambda token: _control(engine, token),
        "strip": transcript and not goes_on,
    }
    spoken = None if thoughts is None else _spoken(lambda: AnswerParser(**parser))
    return Dialogue(
        tokens,
        _grammar(form, schemas, choice, asked, thoughts, thinking),
        TRANSCRIPT_STOPS if transcript else (),
        said_in(messages, placed, read, thoughts=thoughts, spoken=spoken),
        AnswerParser,
        {**parser, "thoughts": None} if asked.reasoning_format == "none" else parser,
    )


def _spoken(new: Callable[[], AnswerParser], *, always: bool = False) -> Spoken:
    """Return what takes the thoughts out of an answer; ``always``: without any it is not as it stands, either."""

    def spoken(tokens: Sequence[Token]) -> str | None:
        parser = new()
        parser.add(tokens)
        parser.finish("stop")
        return parser.answer.content if always or parser.answer.reasoning else None

    return spoken


def _in_channels(
    engine: Engine,
    template: ChatTemplate,
    messages: list[dict[str, Any]],
    tools: dict[str, dict[str, Any]],
    choice: str,
    asked: Asked,
) -> Dialogue:
    """Return what a conversation asks of a model that answers in channels."""
    listed = list(tools.values()) if tools and choice != "none" else None
    placed = _read(template, messages, asked, listed)
    schemas = {name: one["function"]["parameters"] for name, one in tools.items()} if listed else {}
    shape, forced = schema_of(asked.response_format), choice == "required" or choice.startswith("=")
    chosen = {choice[1:]: schemas[choice[1:]]} if choice.startswith("=") else schemas
    sampling = {}
    if forced or shape is not None:
        sampling = {"grammar": channel_rules(chosen, None if forced else shape)}
    parser: dict[str, Any] = {
        "tools": schemas,
        "several": asked.parallel,
        "split": asked.reasoning_format != "none",
        "name_of": lambda token: _control(engine, token),
    }
    spoken = _spoken(lambda: ChannelParser(**{**parser, "split": True}), always=True)
    said = said_in(messages, placed, lambda of: _read(template, of, asked, listed), spoken=spoken)
    return Dialogue(placed.tokens, sampling, (), said, ChannelParser, parser)


# --- messages -------------------------------------------------------------------------------------------------


def normal_messages(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Return messages as templates know them: ``developer`` is ``system``, contents are texts, nothing is null.

    Raises
    ------
    InvalidParamError
        There are none, one is no message, or a part of one is no text.
    """
    found = []
    for number, message in enumerate(messages):
        one = {key: value for key, value in message.items() if value is not None}
        role = one.get("role")
        if role == "function" or "function_call" in one:
            raise InvalidParamError(
                "functions are called by tools now", key=f"messages.{number}.role", hint="Use role tool."
            )
        one["role"] = "system" if role == "developer" else role
        one["content"] = _text(one.get("content", ""), number)
        if not one.get("tool_calls"):
            one.pop("tool_calls", None)
        found.append(one)
    if not found:
        raise InvalidParamError("there are no messages", key="messages")
    if found[-1].get("tool_calls"):
        raise InvalidParamError(
            "the last message calls tools, and their results are missing",
            key="messages",
            hint="Add a message of role tool for each call.",
        )
    return found


def _text(content: Any, number: int) -> str:
    if isinstance(content, str):
        return content
    key = f"messages.{number}.content"
    if not isinstance(content, (list, tuple)):
        raise InvalidParamError("the content of a message is a text or a list of parts", key=key)
    parts = []
    for part in content:
        kind = part.get("type") if isinstance(part, Mapping) else None
        text = part.get("refusal" if kind == "refusal" else "text") if isinstance(part, Mapping) else None
        if not isinstance(kind, str) or (kind not in _TEXT_PARTS and kind != "refusal"):
            raise InvalidParamError(
                f"this model reads only text, and a part of the message is {str(kind)[:40]}", key=key
            )
        if not isinstance(text, str):
            raise InvalidParamError("a part of a message has no text", key=key)
        parts.append(text)
    return "\n".join(parts)


def _read(
    template: ChatTemplate, messages: list[dict[str, Any]], asked: Asked, tools: list[Any] | None
) -> Placed:
    """Return the tokens; where the template takes no system message, the first user's message begins with it."""

    def placed(of: list[dict[str, Any]]) -> Placed:
        return template.placed(of, answer=asked.generation_prompt, tools=tools, variables=asked.variables)

    try:
        try:
            return placed(messages)
        except ModelError:
            if (merged := _without_system(messages)) is None:
                raise
            try:
                found = placed(merged)
            except ModelError:
                return placed(messages)
            others = [number for number, one in enumerate(messages) if one["role"] != "system"]
            return Placed(found.tokens, {others[number]: place for number, place in found.places.items()})
    except ModelError as error:
        raise InvalidParamError(error.message, key="messages") from error
    except InvalidParamError as error:
        raise InvalidParamError(error.message, key=error.key or "messages", hint=error.hint) from error


def _without_system(messages: list[dict[str, Any]]) -> list[dict[str, Any]] | None:
    systems = [one["content"] for one in messages if one["role"] == "system"]
    others = [one for one in messages if one["role"] != "system"]
    if not systems or not others or others[0]["role"] != "user":
        return None
    content = "\n\n".join([*systems, others[0]["content"]])
    return [{**others[0], "content": content}, *others[1:]]


def _speaks_of_tools(messages: list[dict[str, Any]]) -> bool:
    return any(one["role"] == "tool" or one.get("tool_calls") for one in messages)


def _told_in_words(
    messages: list[dict[str, Any]], tools: Mapping[str, Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Write tools, calls and results as text, for a template that knows none."""
    found: list[dict[str, Any]] = []
    for one in messages:
        if one["role"] == "tool":
            text = f"<tool_response>\n{one['content']}\n</tool_response>"
            if found and found[-1]["role"] == "user" and found[-1].get("results"):
                found[-1]["content"] += f"\n{text}"
            else:
                found.append({"role": "user", "content": text, "results": True})
        elif one.get("tool_calls"):
            calls = [_call_in_words(call) for call in one["tool_calls"]]
            more = {key: value for key, value in one.items() if key != "tool_calls"}
            found.append({**more, "content": "\n".join([*filter(None, [one["content"]]), *calls])})
        else:
            found.append(dict(one))
    for one in found:
        one.pop("results", None)
    if tools:
        listed = "\n".join(json.dumps(dict(tool), ensure_ascii=False) for tool in tools.values())
        text = _INSTRUCTIONS.format(tools=listed)
        if found[0]["role"] == "system":
            found[0]["content"] = f"{found[0]['content']}\n\n{text}"
        else:
            found.insert(0, {"role": "system", "content": text})
    return found


def _call_in_words(call: Any) -> str:
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise InvalidParamError("a call of a tool needs a function", key="messages")
    arguments = function.get("arguments", "{}")
    written = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    name = json.dumps(function["name"], ensure_ascii=False)
    return f'<tool_call>\n{{"name": {name}, "arguments": {written or "{}"}}}\n</tool_call>'


# --- tools ----------------------------------------------------------------------------------------------------


def _functions(tools: Sequence[Mapping[str, Any]] | None) -> dict[str, dict[str, Any]]:
    """Return the tools by their names, each with parameters."""
    found: dict[str, dict[str, Any]] = {}
    for number, tool in enumerate(tools or ()):
        key = f"tools.{number}"
        kind, function = tool.get("type", "function"), tool.get("function")
        if kind != "function" or not isinstance(function, Mapping):
            raise InvalidParamError("a tool is a function here: give its type and function", key=key)
        name, parameters = function.get("name"), function.get("parameters")
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise InvalidParamError(
                "the name of a function has 1 to 128 letters, digits, and _ - . :", key=f"{key}.function.name"
            )
        if name in found:
            raise InvalidParamError("two functions have the same name", key=f"{key}.function.name")
        if parameters is not None and not isinstance(parameters, Mapping):
            raise InvalidParamError("parameters are a JSON schema", key=f"{key}.function.parameters")
        plain = {one: value for one, value in function.items() if value is not None and one != "strict"}
        found[name] = {"type": "function", "function": {**plain, "parameters": dict(parameters or _EMPTY)}}
    return found


def _choice(given: Any, tools: Mapping[str, Any]) -> str:
    """Return ``none``, ``auto``, ``required``, or ``=name``."""
    if given is None:
        return "auto" if tools else "none"
    if isinstance(given, str):
        if given == "any":
            given = "required"
        if given not in ("none", "auto", "required"):
            raise InvalidParamError("tool_choice is none, auto, required, or a function", key="tool_choice")
        if given == "required" and not tools:
            raise InvalidParamError("a tool is required, and there are none", key="tool_choice")
        return str(given)
    function = given.get("function") if isinstance(given, Mapping) else None
    name = function.get("name") if isinstance(function, Mapping) else None
    if name is None and isinstance(given, Mapping):
        name = given.get("name")
    if not isinstance(name, str) or name not in tools:
        raise InvalidParamError("tool_choice names a function that is not among the tools", key="tool_choice")
    return f"={name}"


# --- grammars -------------------------------------------------------------------------------------------------


def _grammar(
    form: CallFormat | None,
    schemas: Mapping[str, Any],
    choice: str,
    asked: Asked,
    thoughts: tuple[str, str] | None,
    thinking: bool,
) -> dict[str, Any]:
    """Return the grammar that an answer must follow, as a setting of ``Sampling``."""
    shape = schema_of(asked.response_format)
    forced = choice == "required" or choice.startswith("=")
    if shape is None and not forced:
        if form is None or form.bare or asked.own_grammar:
            return {}
        return _grammar_of_calls(form, schemas, asked, thoughts, thinking)
    if shape is not None and form is None and thoughts is None:
        return {"json_schema": shape}
    rules, answers = [], []
    if form is not None and (forced or shape is not None):
        chosen = {choice[1:]: schemas[choice[1:]]} if choice.startswith("=") else dict(schemas)
        try:
            rules.append(_call_rules(form, chosen, several=asked.parallel and not choice.startswith("=")))
        except InvalidParamError as error:
            raise InvalidParamError(error.message, key="tools", hint=error.hint) from error
        answers.append("calls")
    if shape is not None and not forced:
        rules.append(schema_rules(shape, "shape"))
        answers.append("shape")
    root = f"( {' | '.join(answers)} )"
    if thoughts is not None:
        rules.append(up_to(thoughts[1], "thought"))
        rules.append("thinking-space ::= [ \\n]*")
        begin = "" if thinking else f"{quoted(thoughts[0])} "
        before = f"{begin}thought thinking-space"
        root = f"{before} {root}" if thinking else f"( {before} )? {root}"
    return {"grammar": "\n".join([f"root ::= {root}", *rules]) + "\n"}


def _grammar_of_calls(
    form: CallFormat,
    schemas: Mapping[str, Any],
    asked: Asked,
    thoughts: tuple[str, str] | None,
    thinking: bool,
) -> dict[str, Any]:
    """Return the grammar of an answer that may say anything, and whose calls, where it makes any, are whole.

    Nothing, where the parameters of a tool are none that a grammar can follow: nobody has asked for one.
    """
    written = json.dumps([schemas, asked.parallel])
    rules = _rules_behind(form, written)
    if rules is None:
        return {}
    found = [up_to(form.opens, "said", "called", ends=True), rules]
    root = "said"
    if thoughts is not None:
        found.append(up_to(thoughts[1], "thought", "said", ends=True))
        root = "thought" if thinking else f"( [ \\n]* {quoted(thoughts[0])} thought | said )"
    return {"grammar": "\n".join([f"root ::= {root}", *found]) + "\n"}


@functools.lru_cache(maxsize=32)
def _rules_behind(form: CallFormat, written: str) -> str | None:
    """Return the rules of what follows the mark of a call; None: there are none. Clients send the same tools again."""
    schemas, several = json.loads(written)
    try:
        rules = _call_rules(form, schemas, several=several)
    except (InvalidParamError, MissingExtraError):
        return None
    usable = len(rules) <= MOST_CHARACTERS and rules.count("::=") < MOST_RULES // 2
    return rules if usable else None


def _call_rules(form: CallFormat, schemas: Mapping[str, Any], *, several: bool) -> str:
    """Return the rules of calls as a model writes them: ``calls``, and ``called`` for what follows the first mark."""
    rules, names = [], []
    for number, (name, schema) in enumerate(schemas.items()):
        rule = f"call{number}"
        names.append(rule)
        if form.named:
            rules.append(schema_rules(schema, f"{rule}-arguments"))
            rules.append(f"{rule} ::= {quoted(f'{name}{form.named}')} {rule}-arguments {_close(form)}")
            continue
        inside = rebased(schema, f"/properties/{form.arguments}")
        properties = {form.name: {"const": name}, form.arguments: inside}
        whole = {"type": "object", "properties": properties, "required": list(properties)}
        rules.append(schema_rules(whole, rule))
    one, opens = f"( {' | '.join(names)} )", quoted(form.opens)
    if form.bare:
        more = f' ( "; " {one} )*' if several else ""
        return "\n".join([f"calls ::= {one}{more}", *rules])
    if form.named:
        first, next_one = one, f"{opens} {one}"
    elif form.listed:
        more = f' ( ", " {one} )*' if several else ""
        first, next_one = f'"[" {one}{more} "]" {_close(form)}', ""
    else:
        first = f'"\\n" {one} "\\n"? {quoted(form.closes)}'
        next_one = f'"\\n" {opens} {first}'
    called = f"{first} ( {next_one} )*" if several and next_one else first
    return "\n".join([f"calls ::= {opens} called", f"called ::= {called}", *rules])


def _close(form: CallFormat) -> str:
    return quoted(form.closes) if form.closes else '""'


def schema_of(response_format: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Return the JSON schema that an answer must follow; None: it is free.

    Raises
    ------
    InvalidParamError
        The format is none of OpenAI's.
    """
    kind = "text" if response_format is None else response_format.get("type")
    if response_format is None or kind == "text":
        return None
    if kind == "json_object":
        schema = response_format.get("schema")
        return dict(schema) if isinstance(schema, Mapping) and schema else {"type": "object"}
    inner = response_format.get("json_schema")
    schema = inner.get("schema") if isinstance(inner, Mapping) else response_format.get("schema")
    if kind != "json_schema" or not isinstance(schema, Mapping):
        raise InvalidParamError(
            "response_format is text, json_object, or json_schema with a schema", key="response_format"
        )
    return dict(schema)


# --- tokens ---------------------------------------------------------------------------------------------------


def _ends_with(engine: Engine, tokens: Sequence[int], mark: str) -> bool:
    """Tell whether a text ends with a mark, but for space."""
    end = b"".join(engine.piece(token, special=True) for token in tokens[-(len(mark) + 8) :])
    return end.rstrip().endswith(mark.encode())


def _control(engine: Engine, token: int) -> str:
    """Return the name of a control token; nothing for others."""
    if engine.piece(token):
        return ""
    return engine.piece(token, special=True).decode("utf-8", "replace")


def transcript(engine: Engine) -> ChatTemplate:
    """Return the template of a model that has none.

    Raises
    ------
    AtlasError
        jinja2 is not installed.
    """
    from atlas_kit.llama.chat import ChatTemplate

    return ChatTemplate(engine, TRANSCRIPT)
