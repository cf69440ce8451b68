"""Anthropic's messages, tools and answers in the words of ``dialogue.py``, and back. Knows no HTTP and no model."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from atlas_kit.server.answers import Part
from atlas_kit.server.problems import ApiError
from atlas_kit.server.volatile import steady

#: Why an answer ended, by what ``AnswerParser`` says.
_REASONS = {"tool_calls": "tool_use", "length": "max_tokens", "stop": "end_turn"}


# --- from a request ------------------------------------------------------------------------------------------


def chat_messages(system: Any, messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return messages as OpenAI's chat API has them.

    Results of tools come before the text of the same message, right behind their calls. Of the system prompt, what
    changes each time is left out: see ``volatile.py``.

    Raises
    ------
    ApiError
        A block is none, or none that can be read.
    """
    found: list[dict[str, Any]] = []
    blocks = [{"type": "text", "text": system}] if isinstance(system, str) else system or ()
    texts = [steady(_text(block, f"system.{number}")) for number, block in enumerate(blocks)]
    if text := "\n".join(filter(None, texts)):
        found.append({"role": "system", "content": text})
    for number, message in enumerate(messages):
        role, content, place = message.get("role"), message.get("content"), f"messages.{number}"
        if role not in ("user", "assistant", "system"):
            raise ApiError(400, f"{place}.role: the role is user or assistant.", param=f"{place}.role")
        if isinstance(content, str):
            content = [{"type": "text", "text": content}]
        if not isinstance(content, list):
            raise ApiError(
                400, f"{place}.content: this is a text or a list of blocks.", param=f"{place}.content"
            )
        places = [f"{place}.content.{index}" for index in range(len(content))]
        pairs = list(zip(places, map(_block, content, places), strict=True))
        if role == "assistant":
            found.append(_said(pairs))
        else:
            found += _heard(str(role), pairs)
    return found


def _block(block: Any, place: str) -> Mapping[str, Any]:
    if not isinstance(block, Mapping) or not isinstance(block.get("type"), str):
        raise ApiError(400, f"{place}: this is no block with a type.", param=place)
    return block


def _text(block: Any, place: str) -> str:
    """Return the text of a block of text, or of a document that is plain text."""
    kind, text = _block(block, place)["type"], block.get("text")
    if kind == "document":
        source = block.get("source")
        plain = isinstance(source, Mapping) and source.get("type") == "text"
        text = source.get("data") if plain and isinstance(source, Mapping) else None
        if isinstance(block.get("title"), str) and isinstance(text, str):
            text = f"{block['title']}\n{text}"
    elif kind != "text":
        raise ApiError(
            400, f"{place}: {kind[:40]} input is not supported: this model reads text only.", param=place
        )
    if not isinstance(text, str):
        raise ApiError(400, f"{place}: this block has no text.", param=place)
    return text


def _heard(role: str, blocks: Iterable[tuple[str, Mapping[str, Any]]]) -> list[dict[str, Any]]:
    results, texts = [], []
    for place, block in blocks:
        if block["type"] == "tool_result":
            results.append(_result(block, place))
        else:
            texts.append(_text(block, place))
    if texts or not results:
        return [*results, {"role": role, "content": "\n".join(texts)}]
    return results


def _result(block: Mapping[str, Any], place: str) -> dict[str, Any]:
    content = block.get("content")
    if content is None:
        content = ""
    elif isinstance(content, list):
        content = "\n".join(_text(one, f"{place}.content.{index}") for index, one in enumerate(content))
    if not isinstance(content, str) or not isinstance(block.get("tool_use_id"), str):
        raise ApiError(400, f"{place}: a tool_result needs a tool_use_id and a text.", param=place)
    if block.get("is_error"):  # templates have no other word for it
        content = f"Error: {content}"
    return {"role": "tool", "tool_call_id": block["tool_use_id"], "content": content}


def _said(blocks: Iterable[tuple[str, Mapping[str, Any]]]) -> dict[str, Any]:
    text, thought, calls = "", "", []
    for place, block in blocks:
        if block["type"] == "thinking":
            thought += str(block.get("thinking", ""))
        elif block["type"] == "tool_use":
            calls.append(_call(block, place))
        elif block["type"] != "redacted_thinking":  # it is nobody's here
            text += _text(block, place)
    found: dict[str, Any] = {"role": "assistant", "content": text}
    if thought:
        found["reasoning_content"] = thought
    if calls:
        found["tool_calls"] = calls
    return found


def _call(block: Mapping[str, Any], place: str) -> dict[str, Any]:
    name, given = block.get("name"), block.get("input", {})
    if not isinstance(name, str) or not isinstance(given, Mapping):
        raise ApiError(400, f"{place}: a tool_use needs a name and an input.", param=place)
    arguments = json.dumps(given, ensure_ascii=False)
    return {
        "id": str(block.get("id", "")),
        "type": "function",
        "function": {"name": name, "arguments": arguments},
    }


def chat_tools(tools: Sequence[Mapping[str, Any]] | None) -> list[dict[str, Any]]:
    """Return tools as OpenAI's chat API has them.

    Raises
    ------
    ApiError
        One is no tool of the client's own: those of Anthropic's servers are not here.
    """
    found = []
    for number, tool in enumerate(tools or ()):
        kind = tool.get("type") or "custom"
        if kind != "custom":
            raise ApiError(
                400,
                f"tools.{number}: there is no tool {str(kind)[:40]} here: only tools with a name and an input_schema.",
                param=f"tools.{number}.type",
            )
        function = {"name": tool.get("name"), "parameters": tool.get("input_schema")}
        if tool.get("description") is not None:
            function["description"] = tool["description"]
        found.append({"type": "function", "function": function})
    return found


def chat_choice(choice: Mapping[str, Any] | None) -> tuple[Any, bool]:
    """Return the choice of tools as OpenAI's chat API has it, and whether several may be called at once.

    Raises
    ------
    ApiError
        It is none.
    """
    if choice is None:
        return None, True
    parallel = not choice.get("disable_parallel_tool_use")
    kind = choice.get("type")
    if kind == "tool":
        return {"type": "function", "function": {"name": choice.get("name")}}, parallel
    if kind not in ("auto", "any", "none"):
        raise ApiError(400, "tool_choice: its type is auto, any, tool or none.", param="tool_choice")
    return {"any": "required"}.get(kind, kind), parallel


# --- to an answer --------------------------------------------------------------------------------------------


class Blocks:
    """The blocks of an answer while they come; every change is an event of a stream."""

    def __init__(self) -> None:
        self.content: list[dict[str, Any]] = []
        self._open = False
        self._arguments = ""

    def add(self, parts: Iterable[Part]) -> list[dict[str, Any]]:
        """Take in what has come; return the events."""
        found: list[dict[str, Any]] = []
        for part in parts:
            if part.kind == "reasoning":
                found += self._in("thinking", {"type": "thinking", "thinking": "", "signature": ""})
                self.content[-1]["thinking"] += part.text
                found.append(self._delta({"type": "thinking_delta", "thinking": part.text}))
            elif part.kind == "content":
                found += self._in("text", {"type": "text", "text": ""})
                self.content[-1]["text"] += part.text
                found.append(self._delta({"type": "text_delta", "text": part.text}))
            elif part.kind == "call":
                found += self._close()
                found += self._begin({"type": "tool_use", "id": part.id, "name": part.name, "input": {}})
            else:
                self._arguments += part.text
                found.append(self._delta({"type": "input_json_delta", "partial_json": part.text}))
        return found

    def finish(self) -> list[dict[str, Any]]:
        """Return the events of the end; an answer without anything has an empty text."""
        found = [] if self.content else self._in("text", {"type": "text", "text": ""})
        return found + self._close()

    def _in(self, kind: str, block: dict[str, Any]) -> list[dict[str, Any]]:
        if self._open and self.content[-1]["type"] == kind:
            return []
        return [*self._close(), *self._begin(block)]

    def _begin(self, block: dict[str, Any]) -> list[dict[str, Any]]:
        self.content.append(block)
        self._open, self._arguments = True, ""
        return [{"type": "content_block_start", "index": len(self.content) - 1, "content_block": dict(block)}]

    def _delta(self, delta: dict[str, Any]) -> dict[str, Any]:
        return {"type": "content_block_delta", "index": len(self.content) - 1, "delta": delta}

    def _close(self) -> list[dict[str, Any]]:
        if not self._open:
            return []
        self._open, block, found = False, self.content[-1], []
        if block["type"] == "tool_use":
            block["input"] = _object(self._arguments)
        elif block["type"] == "thinking":  # nothing is signed here, and clients wait for it
            found.append(self._delta({"type": "signature_delta", "signature": ""}))
        return [*found, {"type": "content_block_stop", "index": len(self.content) - 1}]


def _object(text: str) -> dict[str, Any]:
    """Return the input of a call; where it was cut short, nothing."""
    try:
        found = json.loads(text or "{}")
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def stop_of(reason: str | None, stop: str | None, sequences: Sequence[str]) -> tuple[str, str | None]:
    """Return why an answer ended, and with which of the client's own strings."""
    if reason == "stop" and stop is not None and stop in sequences:
        return "stop_sequence", stop
    return _REASONS.get(reason or "", "end_turn"), None
