"""Histories as messages: what is written says the same when it is read, and two become one without loss."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atlas_kit.errors import InvalidParamError
from atlas_kit.operations.chats import Chat, Message, chat_of, joined, message_from, text_of

words = st.text(st.sampled_from("ab :\n\r\tUser:Ai\u00e4\U0001f600\u2028"), max_size=12)
roles = st.sampled_from(["user", "assistant", "system", "tool", "Anna", ""])
messages = st.lists(st.builds(Message, roles, words), max_size=6)
forms = st.sampled_from(["text", "list", "object"])


@given(messages, forms)
def test_what_is_written_is_read_again(said, form):
    payload = Chat(said, form).payload()
    again = chat_of(payload)
    assert again is not None
    if said or form == "text":
        assert again.messages == said


@given(words)
def test_any_text_is_a_history_that_gives_its_bytes_again_or_differs_openly(text):
    chat = chat_of(text.encode())
    assert chat is not None
    payload = chat.payload()
    again = chat_of(payload)
    assert again is not None
    assert again.messages == chat.messages
    if text_of(chat.messages) == text:
        assert payload == text.encode()


@given(messages, messages, forms)
def test_two_histories_are_one(first, second, form):
    one, two = (chat_of(Chat(said, form).payload()) for said in (first, second))
    assert one is not None
    assert two is not None
    both = joined(one, two)
    if one.has_speakers != two.has_speakers:
        assert both is None
        return
    assert both is not None
    same = joined(one, one)
    assert same is not None
    assert chat_of(same.payload()) is not None
    if one.has_speakers and form != "text":
        assert both.messages[: len(one.messages)] == one.messages
        assert set(map(str, both.messages)) == set(map(str, [*one.messages, *two.messages]))
        again = joined(both, both)
        assert again is not None
        assert again.messages == both.messages
        assert same.messages == one.messages


@pytest.mark.parametrize("data", [b"\xff\xfe", b"a\0b"])
def test_bytes_are_no_history(data):
    assert chat_of(data) is None


@pytest.mark.parametrize("value", [3, None, [], {"content": "x"}, {"role": 1, "content": "x"}, {"role": "user"},
                                   {"role": "user", "content": {}}, {"role": "user", "content": [3]}])  # fmt: skip
def test_what_is_no_message(value):
    with pytest.raises(InvalidParamError, match="message 3"):
        message_from(value, "message 3")
