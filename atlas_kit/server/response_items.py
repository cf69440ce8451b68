"""The items of OpenAI's Responses API in the words of ``dialogue.py``, and back. Knows no HTTP and no model."""

from __future__ import annotations

import copy
import json
import secrets
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from atlas_kit.server.answers import Answer, Part
from atlas_kit.server.problems import ApiError

_TEXTS = frozenset({"input_text", "output_text", "text", "summary_text", "reasoning_text", "refusal"})
_ROLES = frozenset({"user", "assistant", "system", "developer"})


def new_id(prefix: str) -> str:
    """Return an id for an item."""
    return f"{prefix}_{secrets.token_hex(16)}"


# --- from a request ------------------------------------------------------------------------------------------


def chat_messages(given: str | Sequence[Any]) -> list[dict[str, Any]]:
    """Return what was sent as messages of OpenAI's chat API.

    Thoughts, text and calls of the assistant that follow each other are one message, as they were when it said them.

    Raises
    ------
    ApiError
        An item is none, or none that can be read.
    """
    if isinstance(given, str):
        return [{"role": "user", "content": given}]
    found: list[dict[str, Any]] = []
    for number, item in enumerate(given):
        place = f"input.{number}"
        if not isinstance(item, Mapping):
            raise ApiError(400, f"{place}: this is no item.", param=place)
        kind = item.get("type") or ("message" if "role" in item else None)
        if kind == "message":
            _message(found, item, place)
        elif kind == "function_call":
            _said(found).setdefault("tool_calls", []).append(_call(item, place))
        elif kind == "function_call_output":
            found.append(_result(item, place))
        elif kind == "reasoning":
            _thought(found, item, place)
        else:
            said = (
                "an item needs a type"
                if kind is None
                else f"no items of type {str(kind)[:40]} are understood"
            )
            raise ApiError(400, f"{place}: {said}.", param=place)
    return found


def _message(found: list[dict[str, Any]], item: Mapping[str, Any], place: str) -> None:
    role = item.get("role")
    if not isinstance(role, str) or role not in _ROLES:
        raise ApiError(400, f"{place}.role: the role is user, assistant, system or developer.", param=place)
    text = _text(item.get("content"), f"{place}.content")
    if role == "assistant":
        _said(found)["content"] += text
    else:
        found.append({"role": role, "content": text})


def _text(content: Any, place: str, *, joined: str = "\n") -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise ApiError(400, f"{place}: this is a text or a list of parts.", param=place)
    parts = []
    for number, part in enumerate(content):
        kind = part.get("type") if isinstance(part, Mapping) else None
        if not isinstance(kind, str) or kind not in _TEXTS:
            what = str(kind).removeprefix("input_")[:40]
            raise ApiError(
                400,
                f"{place}.{number}: {what} input is not supported: this model reads text only.",
                param=f"{place}.{number}",
            )
        text = part.get("refusal" if kind == "refusal" else "text")
        if not isinstance(text, str):
            raise ApiError(400, f"{place}.{number}: this part has no text.", param=f"{place}.{number}")
        parts.append(text)
    return joined.join(parts)


def _said(found: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the assistant's message at the end, which is begun where there is none."""
    if not found or found[-1]["role"] != "assistant":
        found.append({"role": "assistant", "content": ""})
    return found[-1]


def _call(item: Mapping[str, Any], place: str) -> dict[str, Any]:
    name, arguments, number = item.get("name"), item.get("arguments"), item.get("call_id")
    if not isinstance(name, str) or not isinstance(arguments, str) or not isinstance(number, str):
        raise ApiError(400, f"{place}: a function_call needs call_id, name and arguments.", param=place)
    return {"id": number, "type": "function", "function": {"name": name, "arguments": arguments}}


def _result(item: Mapping[str, Any], place: str) -> dict[str, Any]:
    if not isinstance(item.get("call_id"), str):
        raise ApiError(400, f"{place}: a function_call_output needs a call_id.", param=place)
    return {
        "role": "tool",
        "tool_call_id": item["call_id"],
        "content": _text(item.get("output"), f"{place}.output"),
    }


def _thought(found: list[dict[str, Any]], item: Mapping[str, Any], place: str) -> None:
    """Add a thought; of one that only has another server's encrypted form, nothing is known."""
    text = _text(item.get("content") or item.get("summary") or [], f"{place}.content")
    if text:
        message = _said(found)
        before = message.get("reasoning_content")
        message["reasoning_content"] = text if before is None else f"{before}\n{text}"


def listed(given: str | Sequence[Any]) -> list[dict[str, Any]]:
    """Return what was sent as a client may list it: each item with an id, messages with parts."""
    items: Sequence[Any] = [{"role": "user", "content": given}] if isinstance(given, str) else given
    found = []
    for item in items:
        one = {"id": new_id("item"), "type": "message", "status": "completed", **item}
        if one["type"] == "message" and isinstance(one.get("content"), str):
            kind = "output_text" if one["role"] == "assistant" else "input_text"
            part = {"type": kind, "text": one["content"]}
            one["content"] = [{**part, "annotations": []} if kind == "output_text" else part]
        if one["type"] == "reasoning":
            one.setdefault("summary", [])
        found.append(one)
    return found


def page(items: Sequence[dict[str, Any]], limit: int, order: str, after: str) -> dict[str, Any]:
    """Return some of a list of items as a client may page through it; ``after`` is the last id that it has."""
    ordered = list(items) if order == "asc" else list(items)[::-1]
    places = [place for place, item in enumerate(ordered) if item["id"] == after]
    rest = ordered[places[0] + 1 :] if places else ordered
    found = rest[: max(1, min(limit, 100))]
    return {
        "object": "list",
        "data": found,
        "first_id": found[0]["id"] if found else None,
        "last_id": found[-1]["id"] if found else None,
        "has_more": len(found) < len(rest),
    }


def chat_tools(
    tools: Sequence[Mapping[str, Any]] | None, choice: Any
) -> tuple[list[dict[str, Any]], Any, list[dict[str, Any]]]:
    """Return functions and the choice of them as OpenAI's chat API has them, and the tools that an answer names.

    Tools that OpenAI's own servers run (searching, computers, ...) are not here: the model is not told of them, and
    the answer does not name them.

    Raises
    ------
    ApiError
        A tool has no name, or the choice is one that cannot be made.
    """
    functions: dict[str, dict[str, Any]] = {}
    for number, tool in enumerate(tools or ()):
        if tool.get("type", "function") != "function":
            continue
        inner = tool.get("function")
        function = inner if isinstance(inner, Mapping) else tool
        name = function.get("name")
        if not isinstance(name, str) or name in functions:
            raise ApiError(
                400, f"tools.{number}: a function needs a name of its own.", param=f"tools.{number}"
            )
        functions[name] = {key: function.get(key) for key in ("name", "description", "parameters", "strict")}
    if isinstance(choice, Mapping) and choice.get("type") == "allowed_tools":
        names = choice.get("tools")
        if not isinstance(names, list):
            raise ApiError(400, "tool_choice: allowed_tools needs a list of tools.", param="tool_choice")
        allowed = [one.get("name") for one in names if isinstance(one, Mapping)]
        functions = {name: one for name, one in functions.items() if name in allowed}
        choice = choice.get("mode", "auto")
    elif isinstance(choice, Mapping):
        if choice.get("type") != "function":
            what = str(choice.get("type"))[:40]
            raise ApiError(
                400, f"tool_choice: there is no tool {what} here, only functions.", param="tool_choice"
            )
        choice = {"type": "function", "function": {"name": choice.get("name")}}
    if choice == "auto" and not functions:
        choice = None
    named = [{"type": "function", **one} for one in functions.values()]
    return [{"type": "function", "function": one} for one in functions.values()], choice, named


def text_format(text: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """Return the ``response_format`` of OpenAI's chat API that ``text`` asks for.

    Raises
    ------
    ApiError
        It is none.
    """
    form = (text or {}).get("format")
    if form is None or (isinstance(form, Mapping) and form.get("type") == "text"):
        return None
    if not isinstance(form, Mapping) or form.get("type") not in ("json_schema", "json_object"):
        raise ApiError(400, "text.format: its type is text, json_object or json_schema.", param="text.format")
    if form["type"] == "json_object":
        return {"type": "json_object"}
    if not isinstance(form.get("schema"), Mapping):
        raise ApiError(400, "text.format: a json_schema needs a schema.", param="text.format")
    return {"type": "json_schema", "json_schema": {"schema": form["schema"]}}


# --- to an answer --------------------------------------------------------------------------------------------


def said(answer: Answer) -> list[dict[str, Any]]:
    """Return an answer as the message that a later request goes on from; calls that were cut short are left out."""
    found: dict[str, Any] = {"role": "assistant", "content": answer.content}
    if answer.reasoning:
        found["reasoning_content"] = answer.reasoning
    calls = [
        {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
        for call in answer.calls
        if _whole(call.arguments)
    ]
    if calls:
        found["tool_calls"] = calls
    return [found] if answer.content or answer.reasoning or calls else []


def _whole(arguments: str) -> bool:
    try:
        json.loads(arguments)
    except (ValueError, RecursionError):
        return False
    return True


class Output:
    """The items of an answer while they come; every change is an event of a stream."""

    def __init__(self) -> None:
        self.items: list[dict[str, Any]] = []
        self._open = False

    def add(self, parts: Iterable[Part], logprobs: Sequence[Any] = ()) -> list[dict[str, Any]]:
        """Take in what has come; return the events. ``logprobs`` belong to the text among it."""
        found: list[dict[str, Any]] = []
        for part in parts:
            if part.kind == "reasoning":
                found += self._thinks(part.text)
            elif part.kind == "content":
                found += self._says(part.text, logprobs)
                logprobs = ()
            elif part.kind == "call":
                found += self._close("completed")
                found += self._begin(
                    {
                        "id": new_id("fc"),
                        "type": "function_call",
                        "status": "in_progress",
                        "arguments": "",
                        "call_id": part.id,
                        "name": part.name,
                    }
                )
            else:
                self.items[-1]["arguments"] += part.text
                found.append(self._event("response.function_call_arguments.delta", delta=part.text))
        return found

    def finish(self, status: str, logprobs: Sequence[Any] = ()) -> list[dict[str, Any]]:
        """Return the events of the end; an answer without anything is a message with an empty text."""
        found = [] if self.items else self._says("", ())
        if logprobs and self._open and self.items[-1]["type"] == "message":
            self.items[-1]["content"][0]["logprobs"] += logprobs
        return found + self._close(status)

    def _thinks(self, text: str) -> list[dict[str, Any]]:
        found = self._in(
            {"id": "rs", "type": "reasoning", "status": "in_progress", "summary": [], "content": []},
            {"type": "reasoning_text", "text": ""},
        )
        self.items[-1]["content"][0]["text"] += text
        return [*found, self._event("response.reasoning_text.delta", content_index=0, delta=text)]

    def _says(self, text: str, logprobs: Sequence[Any]) -> list[dict[str, Any]]:
        found = self._in(
            {"id": "msg", "type": "message", "status": "in_progress", "role": "assistant", "content": []},
            {"type": "output_text", "text": "", "annotations": [], "logprobs": []},
        )
        part = self.items[-1]["content"][0]
        part["text"] += text
        part["logprobs"] += logprobs
        if text:
            found.append(
                self._event(
                    "response.output_text.delta", content_index=0, delta=text, logprobs=list(logprobs)
                )
            )
        return found

    def _in(self, item: dict[str, Any], part: dict[str, Any]) -> list[dict[str, Any]]:
        """Be in an item of a kind; it is begun with its part where the last one is of another."""
        if self._open and self.items[-1]["type"] == item["type"]:
            return []
        found = [*self._close("completed"), *self._begin({**item, "id": new_id(item["id"])})]
        self.items[-1]["content"].append(part)
        return [*found, self._event("response.content_part.added", content_index=0, part=copy.deepcopy(part))]

    def _begin(self, item: dict[str, Any]) -> list[dict[str, Any]]:
        self.items.append(item)
        self._open = True
        index = len(self.items) - 1
        return [{"type": "response.output_item.added", "output_index": index, "item": copy.deepcopy(item)}]

    def _close(self, status: str) -> list[dict[str, Any]]:
        if not self._open:
            return []
        self._open, item = False, self.items[-1]
        item["status"] = status
        if item["type"] == "function_call":
            found = [
                self._event(
                    "response.function_call_arguments.done", arguments=item["arguments"], name=item["name"]
                )
            ]
        else:
            part = copy.deepcopy(item["content"][0])
            kind = part["type"].removeprefix("response.")
            more = {"logprobs": part["logprobs"]} if "logprobs" in part else {}
            found = [
                self._event(f"response.{kind}.done", content_index=0, text=part["text"], **more),
                self._event("response.content_part.done", content_index=0, part=part),
            ]
        last = {
            "type": "response.output_item.done",
            "output_index": len(self.items) - 1,
            "item": copy.deepcopy(item),
        }
        return [*found, last]

    def _event(self, kind: str, **more: Any) -> dict[str, Any]:
        return {
            "type": kind, "item_id": self.items[-1]["id"], "output_index": len(self.items) - 1, **more,
        }  # fmt: skip
