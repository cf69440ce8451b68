"""llama-server's own endpoints: shapes, frames, prompts in all forms, slots and their files, and what is refused."""

from __future__ import annotations

import asyncio
import json
import threading
from typing import Any

import pytest

from atlas_kit.errors import FileCorruptError, InvalidParamError
from atlas_kit.llama.fake_engine import END, FakeEngine
from atlas_kit.server.file_names import checked_file_name
from atlas_kit.server.native_answer import chosen_fields
from atlas_kit.server.prompts import gap, prompts_of
from atlas_kit.server.slot_files import SlotContext, read, written
from server.conftest import Insider, Server, fake_engine

TEXT = "to be or not to be, that is the question"
GREEDY = {"temperature": 0, "n_predict": 5}


# --- /completion ----------------------------------------------------------------------------------------------


def test_an_answer_has_all_that_llama_servers_clients_read(serve: Server):
    server = serve()
    found = server.post("/completion", prompt=TEXT, return_tokens=True, **GREEDY)
    assert len(found["tokens"]) == found["tokens_predicted"] == found["timings"]["predicted_n"] == 5
    assert found["tokens_evaluated"] == len(TEXT)
    assert found["content"] == bytes(found["tokens"]).decode("utf-8", "replace")
    assert (found["stop"], found["stop_type"], found["stopping_word"]) == (True, "limit", "")
    assert (found["index"], found["truncated"], found["has_new_line"]) == (0, False, False)
    assert found["prompt"] == TEXT
    assert found["model"] == "fake.gguf"
    assert found["generation_settings"]["n_predict"] == 5
    assert found["generation_settings"]["samplers"][0] == "penalties"
    assert found["timings"]["prompt_n"] + found["timings"]["cache_n"] == len(TEXT)
    assert all(value >= 0 for value in found["timings"].values())
    assert found["atlas"]["enabled"] is False
    assert server.post("/completions", prompt=TEXT, **GREEDY)["content"] == found["content"]


def test_tokens_are_told_only_where_asked_for(serve: Server):
    server = serve()
    assert server.post("/completion", prompt=TEXT, **GREEDY)["tokens"] == []
    assert "completion_probabilities" not in server.post("/completion", prompt=TEXT, **GREEDY)


def test_a_stream_has_a_frame_for_each_token_and_one_at_the_end(serve: Server):
    server = serve()
    frames = server.events("/completion", prompt=TEXT, timings_per_token=True, **GREEDY)
    whole = server.post("/completion", prompt=TEXT, cache_prompt=False, return_tokens=True, **GREEDY)
    assert [frame["stop"] for frame in frames] == [False] * 5 + [True]
    assert [frame["tokens"] for frame in frames[:-1]] == [[token] for token in whole["tokens"]]
    assert "".join(frame["content"] for frame in frames) == whole["content"]
    assert [frame["tokens_predicted"] for frame in frames] == [1, 2, 3, 4, 5, 5]
    assert all("timings" in frame for frame in frames)
    assert frames[-1]["generation_settings"] == {
        **whole["generation_settings"],
        "stream": True,
        "timings_per_token": True,
    }
    assert frames[-1]["atlas"]["session_id"] is None


def test_the_progress_of_a_prompt(serve: Server):
    frames = serve().events(
        "/completion", prompt=TEXT, return_progress=True, timings_per_token=True, **GREEDY
    )
    told = [frame for frame in frames if "prompt_progress" in frame]
    assert told == frames[: len(told)]
    assert told[0]["prompt_progress"] == {"total": len(TEXT), "cache": 0, "processed": 0, "time_ms": 0}
    assert told[0]["timings"]["prompt_n"] == 0
    assert told[-1]["prompt_progress"]["processed"] == len(TEXT)


@pytest.mark.parametrize("memory", [False, True])
def test_probabilities_before_and_after_the_samplers(memory, serve: Server):
    server = serve(atlas=memory)
    settings = {"prompt": TEXT, "n_probs": 4, "top_k": 3, "seed": 1, "n_predict": 4}
    before = server.post("/completion", **settings)["completion_probabilities"]
    after = server.post("/completion", post_sampling_probs=True, cache_prompt=not memory, **settings)
    for told in before:
        assert len(told["top_logprobs"]) == 4
        assert told["logprob"] <= 0
        assert bytes(told["bytes"]) == bytes([told["id"]]) * (told["id"] != END)
    for told in after["completion_probabilities"]:
        assert len(told["top_probs"]) == 3
        assert sum(one["prob"] for one in told["top_probs"]) == pytest.approx(1.0)
        assert any(one["id"] == told["id"] and one["prob"] == told["prob"] for one in told["top_probs"])
    frames = server.events("/completion", **settings)
    assert all(len(frame["completion_probabilities"]) == 1 for frame in frames if not frame["stop"])


@pytest.mark.parametrize(
    ("prompt", "texts"),
    [
        ("ab", ["ab"]),
        ([97, 98], ["ab"]),
        ([97, "bc", 100], ["abcd"]),
        (["ab", 99], ["abc"]),
        ({"prompt_string": "ab"}, ["ab"]),
        (["ab", "cd"], ["ab", "cd"]),
        ([[97, 98], "cd", {"prompt_string": "ef"}, ["g", 104]], ["ab", "cd", "ef", "gh"]),
    ],
)
def test_prompts_in_all_forms(prompt, texts, serve: Server):
    found = serve().post("/completion", prompt=prompt, **GREEDY)
    found = found if isinstance(found, list) else [found]
    assert [one["prompt"] for one in found] == texts
    assert [one["index"] for one in found] == list(range(len(texts)))


@pytest.mark.parametrize(
    "prompt",
    [None, 7, [], [[]], "", {}, {"text": "a"}, [257], [-1], [1.5], [True], ["a", None], ["a"] * 65,
     {"prompt_string": "a", "multimodal_data": ["AAAA"]}],
)  # fmt: skip
def test_prompts_that_are_none(prompt, serve: Server):
    answer = serve().client.post("/completion", json={"prompt": prompt})
    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("path", "body", "key"),
    [
        ("/completion", {"prompt": "a\ud800"}, "prompt"),
        ("/v1/completions", {"prompt": ["b", "a\ud800"]}, "prompt"),
        ("/tokenize", {"content": "a\ud800"}, "content"),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a\ud800"}]}, "messages"),
        ("/v1/embeddings", {"input": ["b", "a\ud800"]}, "input"),
    ],
    ids=str,
)
def test_half_a_character_is_refused_under_the_name_that_it_has(path, body, key, serve: Server):
    answer = serve().client.post(path, content=json.dumps(body), headers={"content-type": "application/json"})
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert (error["param"], "half a character" in error["message"]) == (key, True)


def test_several_answers_to_several_prompts(serve: Server):
    server = serve()
    asked = {
        "prompt": ["ab", "cd"],
        "n_cmpl": 2,
        "seed": 7,
        "temperature": 2.0,
        "n_predict": 4,
        "ignore_eos": True,
    }
    found = server.post("/completion", **asked)
    assert [one["prompt"] for one in found] == ["ab", "ab", "cd", "cd"]
    assert found[0]["content"] != found[1]["content"]
    assert [one["generation_settings"]["seed"] for one in found] == [7, 8, 7, 8]
    frames = server.events("/completion", **asked)
    texts = ["".join(frame["content"] for frame in frames if frame["index"] == index) for index in range(4)]
    assert texts == [one["content"] for one in found]


def test_no_token_is_generated_where_none_is_wanted(serve: Server):
    server = serve()
    found = server.post("/completion", prompt=TEXT, n_predict=0)
    assert (found["content"], found["tokens_predicted"], found["timings"]["prompt_n"]) == ("", 0, len(TEXT))
    assert found["timings"]["predicted_ms"] == 0 < found["timings"]["prompt_ms"]  # it only read
    assert server.post("/completion", prompt=TEXT, n_predict=1)["timings"]["cache_n"] == len(TEXT)


def test_a_prompt_is_read_again_where_nothing_may_be_reused(serve: Server):
    server = serve()
    first = server.post("/completion", prompt=TEXT, **GREEDY)
    again = server.post("/completion", prompt=TEXT, cache_prompt=False, **GREEDY)
    assert first["timings"]["prompt_n"] == again["timings"]["prompt_n"] == len(TEXT)
    assert again["content"] == first["content"]
    assert server.post("/completion", prompt=TEXT, **GREEDY)["timings"]["prompt_n"] == 0


def test_without_a_limit_the_context_is_the_limit(serve: Server):
    server = serve(fake_engine(n_ctx=64))
    found = server.post("/completion", prompt=TEXT, ignore_eos=True, n_predict=-1, temperature=0)
    assert (found["tokens_predicted"], found["truncated"], found["stop_type"]) == (
        64 - len(TEXT),
        True,
        "limit",
    )
    answer = server.client.post("/completion", json={"prompt": TEXT * 2})
    assert answer.status_code == 400
    assert "exceeds the available context size" in answer.json()["error"]["message"]
    assert answer.json()["error"]["code"] == "context_length_exceeded"


@pytest.mark.parametrize("settings", [{"context_shift": True}, {"atlas": True}])
def test_answers_may_outgrow_the_context(settings, serve: Server):
    server = serve(fake_engine(n_ctx=64), **settings)
    found = server.post("/completion", prompt=TEXT, ignore_eos=True, n_predict=60, temperature=0)
    assert (found["tokens_predicted"], found["truncated"]) == (60, True)


@pytest.mark.parametrize("settings", [{"context_shift": True}, {"atlas": True}])
@pytest.mark.parametrize("rollover", ["shift", "refeed"])
@pytest.mark.parametrize(("keep", "kept"), [(None, 0), (0, 0), (10, 10), (-1, 40), (1000, 40)])
def test_the_beginning_stays_in_a_full_context(settings, rollover, keep, kept, serve: Server):
    server = serve(fake_engine(n_ctx=64, shiftable=rollover == "shift"), **settings)
    prompt = TEXT[:40]
    body = {"prompt": prompt, "ignore_eos": True, "n_predict": 90, "temperature": 0}
    answer = server.post("/completion", **body, n_keep=keep, return_tokens=True)
    session = server.service.conversations.slots[0].session
    context = [*session.context_tokens, *session._owed]  # the last one waits for what follows it
    assert session.owes == 1
    whole = [*prompt.encode(), *answer["tokens"]]
    assert answer["truncated"]
    behind = len(context) - kept
    assert context == whole[:kept] + whole[len(whole) - behind :]


def test_the_servers_limit_holds_where_a_request_says_nothing(serve: Server):
    server = serve(n_predict=3)
    for asked in ({}, {"n_predict": -1}):
        assert server.post("/completion", prompt=TEXT, ignore_eos=True, **asked)["tokens_predicted"] == 3
    assert server.post("/completion", prompt=TEXT, ignore_eos=True, max_tokens=4)["tokens_predicted"] == 4


class Writing(FakeEngine):
    """Writes a text, whatever it reads."""

    def __init__(self, text: str) -> None:
        super().__init__(n_ctx=256, n_sequences=2, n_batch=64)
        self._said = [*text.encode(), END]

    def sampler(self, sampling: Any) -> Any:
        found = super().sampler(sampling)
        left = list(self._said)
        found.sample = lambda logits, index=None: left.pop(0)
        return found


def test_why_an_answer_ended(serve: Server):
    server = serve(Writing("one two three"))
    asked = {"prompt": "a", "n_predict": 50}
    found = server.post("/completion", **asked)
    assert (found["content"], found["stop_type"]) == ("one two three", "eos")
    found = server.post("/completion", stop=["", "two", "four"], **asked)
    assert (found["content"], found["stop_type"], found["stopping_word"]) == ("one ", "word", "two")
    frames = server.events("/completion", stop="threet", **asked)
    assert "".join(frame["content"] for frame in frames) == "one two three"
    assert all(len(frame["tokens"]) == 1 for frame in frames[:-1])


def test_a_line_with_less_space_ends_the_answer(serve: Server):
    server = serve(Writing("if a:\n    b\n    c\nend\n"))
    found = server.post("/completion", prompt="a", n_predict=50, n_indent=4)
    assert (found["content"], found["stop_type"], found["has_new_line"]) == (
        "if a:\n    b\n    c\n",
        "limit",
        True,
    )
    assert server.get("/slots")[0]["is_processing"] is False


def test_only_the_fields_that_were_asked_for(serve: Server):
    found = serve().post(
        "/completion",
        prompt=TEXT,
        response_fields=["content", "generation_settings/n_predict", "x/y"],
        **GREEDY,
    )
    assert set(found) == {"content", "generation_settings/n_predict"}
    assert chosen_fields({"a": 1}, []) == {"a": 1}


def test_a_session_goes_on(serve: Server):
    server = serve()
    asked = {"prompt": TEXT, "atlas": {"session_id": "anna"}, **GREEDY}
    assert server.post("/completion", **asked)["atlas"]["session_id"] == "anna"
    found = server.post("/completion", **asked)
    assert found["timings"]["cache_n"] == len(TEXT)
    assert found["atlas"]["enabled"] is True


@pytest.mark.parametrize("form", [[[97, False]], {"97": False}, [["a", False]], {"a": False}])
def test_biases_in_all_forms(form, serve: Server):
    server = serve(Writing("x"))
    found = server.post("/completion", prompt="b", logit_bias=form, n_predict=1)
    assert found["generation_settings"]["logit_bias"] == [{"token": 97, "bias": None}]


def test_ignoring_the_end_is_told_as_biases(serve: Server):
    found = serve().post("/completion", prompt=TEXT, ignore_eos=True, **GREEDY)
    assert found["generation_settings"]["logit_bias"] == [{"token": END, "bias": None}]
    assert found["generation_settings"]["ignore_eos"] is True


NUMBERS = [
    ("temperature", -1), ("temperature", 1e9), ("top_k", -2), ("top_k", 1 << 40), ("top_p", 2), ("min_p", "much"),
    ("typical_p", -0.1), ("top_n_sigma", -2), ("xtc_probability", 2), ("xtc_threshold", -1), ("dynatemp_range", -1),
    ("dynatemp_exponent", 0), ("dry_multiplier", -1), ("dry_base", 0), ("dry_allowed_length", -1),
    ("dry_penalty_last_n", 1 << 20), ("dry_sequence_breakers", []), ("dry_sequence_breakers", ["a" * 100]),
    ("mirostat", 3), ("mirostat_tau", -1), ("mirostat_eta", 2), ("adaptive_target", 2), ("adaptive_decay", 1),
    ("min_keep", -1), ("samplers", "?"), ("samplers", ["best"]), ("repeat_last_n", -2), ("repeat_penalty", 0),
    ("seed", 1 << 63), ("n_predict", -2), ("n_predict", 1 << 40), ("n_probs", -1), ("n_probs", 100_000),
    ("n_cmpl", 0), ("n_cmpl", 17), ("id_slot", 2), ("id_slot", 999), ("n_indent", -1), ("t_max_predict_ms", -2),
    ("logit_bias", "a"), ("logit_bias", [["a"]]), ("logit_bias", {"a": "b"}), ("logit_bias", [[999999, 1]]),
    ("logit_bias", {"1": 1e300}), ("logit_bias", [["a" * 70_000, 1]]),
    ("stop", ["a"] * 65), ("grammar", "x" * 70_000), ("response_fields", "a"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value"), NUMBERS, ids=[f"{name}-{value!r:.12}" for name, value in NUMBERS])
def test_numbers_out_of_range_reach_nobody(name, value, inside: Insider):
    async def test() -> None:
        async with inside() as server:
            answer = await server.client.post(
                "/completion", json={"prompt": "a", "n_predict": 1, name: value}
            )
            assert answer.status_code == 400, answer.text
            assert name in json.dumps(answer.json()["error"])
            assert server.service.conversations.slots[0].conversation is None

    asyncio.run(test())


@pytest.mark.parametrize("name", ["lora", "backend_sampling", "grammar_lazy", "speculative", "image_data"])
def test_what_is_not_supported_is_said(name, inside: Insider):
    async def test() -> None:
        async with inside() as server:
            answer = await server.client.post("/completion", json={"prompt": "a", name: [{"id": 1}]})
            assert (answer.status_code, answer.json()["error"]["param"]) == (501, name)
            assert (
                await server.client.post("/completion", json={"prompt": "a", name: []})
            ).status_code == 200

    asyncio.run(test())


@pytest.mark.parametrize(
    "asked",
    [
        {"grammar": f"root ::= {'(' * 20_000}'a'{')' * 20_000}"},
        {"grammar": "root ::= nothing"},
        {"json_schema": {"type": "string", "pattern": f"^{'(' * 20_000}a{')' * 20_000}$"}},
        {"json_schema": {"type": "nonsense"}},
    ],
    ids=["parentheses", "undefined", "pattern", "type"],
)
def test_grammars_are_compiled_before_anything_waits(asked, serve: Server, real):
    """The first of them ends llama-server."""
    engine = real(n_sequences=1, n_ctx=256)
    server = serve(engine)
    before = engine.decodes
    for path, prompt in (("/completion", {"prompt": "a"}), ("/v1/completions", {"prompt": "a"})):
        answer = server.client.post(path, json={**prompt, **asked})
        assert answer.status_code == 400, answer.text
        assert answer.json()["error"]["param"] in ("grammar", "json_schema")
    assert engine.decodes == before
    assert server.post("/completion", prompt="a", n_predict=3, grammar='root ::= "yes"')["content"] == "yes"
    assert json.loads(
        server.post("/completion", prompt="a", json_schema={"enum": [1, 2]}, grammar="")["content"]
    ) in (1, 2)


# --- /infill --------------------------------------------------------------------------------------------------


def test_a_gap_is_filled(serve: Server):
    server = serve()
    found = server.post("/infill", input_prefix="ab", input_suffix="yz", prompt="c", **GREEDY)
    assert found["prompt"] == "\x01abc\x02yz\x03"
    extra = [{"text": "def f", "filename": "f.py"}, {"text": "x"}]
    found = server.post("/infill", input_prefix="ab", input_suffix="yz", input_extra=extra, **GREEDY)
    assert found["prompt"] == "\n\n--- snippet ---\n\ndef f\n\n--- snippet ---\n\nx\x01ab\x02yz\x03"


def test_of_a_long_text_the_nearest_is_kept():
    engine = FakeEngine()
    tokens = gap(engine, "ab" * 100, "yz" * 100, "c", [("f", "x" * 100)], 44)
    assert tokens is not None
    assert bytes(tokens) == b"\x01" + b"ab" * 15 + b"c\x02" + b"yz" * 5 + b"\x03"
    assert bytes(gap(engine, "ab", "yz", "", [("f", "1234567890")], 13) or ()) == b"567890\x01ab\x02yz\x03"


@pytest.mark.parametrize(
    "asked",
    [{}, {"input_prefix": "a"}, {"input_prefix": "a", "input_suffix": "b", "input_extra": [{}]},
     {"input_prefix": "a", "input_suffix": "b", "input_extra": [{"text": 1}]},
     {"input_prefix": "a", "input_suffix": "b", "prompt": ["a"]}],
)  # fmt: skip
def test_gaps_that_are_none(asked, serve: Server):
    assert serve().client.post("/infill", json=asked).status_code == 400


def test_a_model_without_tokens_for_gaps(serve: Server):
    class Plain(FakeEngine):
        infill_tokens = None

    answer = serve(Plain(n_ctx=256)).client.post("/infill", json={"input_prefix": "a", "input_suffix": "b"})
    assert (answer.status_code, answer.json()["error"]["type"]) == (501, "not_supported_error")


# --- text -----------------------------------------------------------------------------------------------------


def test_tokens_of_a_text_and_back(serve: Server):
    server = serve()
    assert server.post("/tokenize", content="aé")["tokens"] == [97, 195, 169]
    assert server.post("/tokenize", content="aé", with_pieces=True)["tokens"] == [
        {"id": 97, "piece": "a"}, {"id": 195, "piece": [195]}, {"id": 169, "piece": [169]},
    ]  # fmt: skip
    assert server.post("/tokenize", content=["a", 98, "c"])["tokens"] == [97, 98, 99]
    assert server.post("/tokenize")["tokens"] == []
    assert server.post("/detokenize", tokens=[97, 195, 169])["content"] == "aé"
    for path, body in (
        ("tokenize", {"content": [300]}),
        ("detokenize", {"tokens": [-1]}),
        ("detokenize", {"tokens": "a"}),
    ):
        assert server.client.post(f"/{path}", json=body).status_code == 400


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/tokenize", {"content": "a" * 30_000, "with_pieces": True}),
        ("/detokenize", {"tokens": [97] * 30_000}),
    ],
)
def test_a_long_text_holds_nobody_up(path, body, inside: Insider):
    """It is read and written on another thread than the event loop's."""
    engine, threads = fake_engine(), set()
    tokenize, piece = engine.tokenize, engine.piece

    def noted(function):
        def call(*given, **more):
            threads.add(threading.get_ident())
            return function(*given, **more)

        return call

    async def ask():
        async with inside(engine) as server:
            engine.tokenize, engine.piece = noted(tokenize), noted(piece)
            assert (await server.client.post(path, json=body)).status_code == 200

    asyncio.run(ask())
    assert threads
    assert threading.get_ident() not in threads


@pytest.mark.model
def test_begin_and_control_tokens(serve: Server, real):
    engine = real(n_ctx=256)
    server = serve(engine)
    begin = list(engine.begin)
    assert begin
    assert server.post("/tokenize", content="ab", add_special=True)["tokens"][: len(begin)] == begin
    assert server.post("/tokenize", content="<|end|>")["tokens"] == [5]
    assert len(server.post("/tokenize", content="<|end|>", parse_special=False)["tokens"]) > 1
    # the begin token is not put twice before a text that names it
    assert server.post("/completion", prompt="<|begin|>ab", n_predict=0)["tokens_evaluated"] == len(
        begin
    ) + len(engine.tokenize("ab"))


def test_a_conversation_as_the_model_reads_it(serve: Server):
    server = serve()
    messages = [
        {"role": "developer", "content": "be brief"},
        {"role": "user", "content": [{"type": "text", "text": "hi"}]},
    ]
    assert (
        server.post("/apply-template", messages=messages)["prompt"]
        == "<system>be brief</><user>hi</><assistant>"
    )
    found = server.post("/apply-template", messages=messages[1:], add_generation_prompt=False)
    assert found["prompt"] == "<user>hi</>"
    assert server.client.post("/apply-template", json={"messages": []}).status_code == 400


def test_a_template_may_refuse_a_conversation(serve: Server):
    server = serve(fake_engine("{{ raise_exception('roles must alternate') }}"))
    answer = server.client.post("/apply-template", json={"messages": [{"role": "user", "content": "a"}]})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "messages")


def test_pages_of_this_machine_may_ask(serve: Server):
    client = serve(cors=("localhost",)).client
    for origin, allowed in (
        ("http://localhost:3000", True),
        ("http://[::1]", True),
        ("http://localhost.evil", False),
    ):
        headers = {"origin": origin, "access-control-request-method": "POST"}
        answer = client.options("/completion", headers=headers)
        found = answer.headers.get("access-control-allow-origin")
        assert (answer.status_code, found) == (200, origin if allowed else None)


@pytest.mark.parametrize(("reasoning", "text"), [("on", "yes"), ("off", "no"), ("auto", "yes")])
def test_whether_a_model_thinks_is_for_the_server_to_say(reasoning, text, serve: Server):
    template = (
        "{{ messages[0].content }}{% if enable_thinking is defined %}{{ 'yes' if enable_thinking else 'no' }}"
        "{% else %}as ever{% endif %}"
    )
    server = serve(fake_engine(template), reasoning=reasoning)
    messages = [{"role": "user", "content": "think: "}]
    assert server.post("/apply-template", messages=messages)["prompt"] == f"think: {text}"
    own = server.post("/apply-template", messages=messages, chat_template_kwargs={"enable_thinking": True})
    assert own["prompt"] == "think: yes"


# --- what there is ----------------------------------------------------------------------------------------------


def test_props_tell_no_path(serve: Server):
    found = serve(temperature=0.3, seed=5, alias="one,b").get("/props")
    assert found["model_path"] == "fake.gguf"
    assert found["model_alias"] == "b"
    assert found["total_slots"] == 2
    assert found["default_generation_settings"]["n_ctx"] == 256
    assert found["default_generation_settings"]["params"]["seed"] == 5
    assert found["default_generation_settings"]["params"]["temperature"] == 0.3
    assert found["modalities"] == {"vision": False, "audio": False, "video": False}
    assert "<assistant>" in found["chat_template"]


def test_models_have_names_tags_and_sizes(serve: Server):
    server = serve(alias="b,a", tags="small,chat")
    found = server.get("/models")["data"][0]
    assert (found["id"], found["aliases"], found["tags"]) == ("a", ["a", "b"], ["small", "chat"])
    assert found["meta"]["n_ctx"] == 256
    assert server.get("/v1/models/b") == server.get("/v1/models/a") == found
    assert server.client.get("/v1/models/c").status_code == 404


@pytest.mark.parametrize(("asked", "named"), [("b", "b"), ("a", "a"), ("gpt", "a"), (None, "a")])
def test_an_answer_has_the_name_that_was_asked_for_if_it_is_one(serve: Server, asked, named):
    server = serve(alias="b,a")
    hi = {"model": asked, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1}
    text = {"model": asked, "max_tokens": 1, "input": "Hi"}
    for path, body in (
        ("chat/completions", hi), ("messages", hi), ("completions", {**text, "prompt": "Hi"}), ("responses", text),
        ("embeddings", text),
    ):  # fmt: skip
        assert server.post(f"/v1/{path}", **body)["model"] == named, path
    chunks = server.events("/v1/chat/completions", **hi)
    assert {one["model"] for one in chunks} == {named}


def test_slots_tell_what_they_do_and_no_text(serve: Server):
    server = serve()
    before = server.get("/slots")
    assert before == [{"id": n, "n_ctx": 256, "speculative": False, "is_processing": False} for n in (0, 1)]
    server.post("/completion", prompt=TEXT, id_slot=1, seed=3, **GREEDY)
    first, second = server.get("/slots")
    assert first == before[0]
    assert second["params"]["seed"] == 3
    assert (second["n_prompt_tokens"], second["n_prompt_tokens_cache"]) == (len(TEXT), 0)
    assert second["next_token"][0] == {
        "has_next_token": False,
        "has_new_line": False,
        "n_remain": -1,
        "n_decoded": 0,
    }
    assert TEXT not in json.dumps(second)
    assert serve(slots=False).client.get("/slots").status_code == 501


def test_no_slot_is_free(inside: Insider):
    async def test() -> None:
        async with inside() as server:
            assert (await server.client.get("/slots", params={"fail_on_no_slot": "1"})).status_code == 200
            for slot in server.service.conversations.slots:
                slot.busy = True
            answer = await server.client.get("/slots", params={"fail_on_no_slot": "1"})
            for slot in server.service.conversations.slots:
                slot.busy = False
            assert (answer.status_code, answer.json()["error"]["type"]) == (503, "unavailable_error")

    asyncio.run(test())


def test_a_slot_that_is_asked_for_goes_on_with_what_is_in_it(serve: Server):
    server = serve()
    for slot in (1, 0):
        assert server.post("/completion", prompt=TEXT, id_slot=slot, **GREEDY)["timings"]["cache_n"] == 0
    for slot in (1, 0):
        found = server.post("/completion", prompt=TEXT[:20] + "!", id_slot=slot, **GREEDY)
        assert (found["id_slot"], found["timings"]["cache_n"]) == (slot, 20)


@pytest.mark.parametrize("memory", [False, True])
def test_the_context_of_a_slot_is_saved_restored_and_erased(memory, serve: Server, tmp_path):
    server = serve(atlas=memory, slot_save_path=str(tmp_path))
    first = server.post("/completion", prompt=TEXT, id_slot=1, return_tokens=True, **GREEDY)
    saved = server.post("/slots/1?action=save", filename="one.bin")
    assert saved["n_saved"] == len(TEXT) + 5
    assert saved["n_written"] == (tmp_path / "one.bin").stat().st_size
    restored = server.post("/slots/0?action=restore", filename="one.bin")
    assert (restored["n_restored"], restored["n_read"]) == (saved["n_saved"], saved["n_written"])
    longer = {"prompt": [*TEXT.encode(), *first["tokens"], 63], "id_slot": 0, **GREEDY}
    assert server.post("/completion", **longer)["timings"]["cache_n"] == len(TEXT) + 5
    assert server.post("/slots/1?action=erase")["n_erased"] == len(TEXT) + 5
    again = server.post("/completion", prompt=TEXT, id_slot=1, **GREEDY)
    assert again["timings"]["cache_n"] == (0 if not memory else again["timings"]["cache_n"])


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/slots/9?action=save", {"filename": "a"}, 400),
        ("/slots/-1?action=save", {"filename": "a"}, 400),
        ("/slots/x?action=save", {"filename": "a"}, 400),
        ("/slots/0?action=sing", {"filename": "a"}, 400),
        ("/slots/0", {"filename": "a"}, 400),
        ("/slots/0?action=save", {}, 400),
        ("/slots/0?action=save", {"filename": "../a"}, 400),
        ("/slots/0?action=save", {"filename": "a"}, 400),  # there is nothing in it
        ("/slots/0?action=erase", {}, 400),
        ("/slots/0?action=restore", {"filename": "a"}, 400),
        ("/slots/0?action=restore", {"filename": "link"}, 400),
        ("/slots/0?action=restore", {"filename": "other"}, 400),
    ],
)
def test_actions_that_are_refused(path, body, status, serve: Server, tmp_path):
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "kept" / "other").write_bytes(b"something else")
    (tmp_path / "elsewhere").write_bytes(written(SlotContext([97], b"")))
    answer = serve(slot_save_path=str(tmp_path / "kept")).client.post(path, json=body)
    assert answer.status_code == status
    assert str(tmp_path) not in answer.text


def test_contexts_replace_nothing_but_contexts(serve: Server, tmp_path):
    """A folder of models or of memories is often the same as that of contexts."""
    own = tmp_path / "own.atlas"
    server = serve(atlas_memory_dir=str(tmp_path), atlas_memory_file=str(own))
    server.post("/v1/completions", prompt=TEXT, max_tokens=2)
    server.post("/v1/atlas/memory/save")
    server.post("/completion", prompt=TEXT, id_slot=1, atlas={"enabled": False}, **GREEDY)
    own.with_name("own_1.atlas.bak").write_bytes(own.read_bytes())
    (tmp_path / "model.gguf").write_bytes(b"GGUF and so on")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    names = (
        "own.atlas",
        "own_1.atlas.bak",
        "own_2.atlas.bak",
        "own.atlas.bak",
        "own.atlas.x.aside",
        "model.gguf",
    )
    for name in (*names, "sessions"):
        answer = server.client.post("/slots/1?action=save", json={"filename": name})
        assert answer.status_code == 409, (name, answer.text)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before
    for _ in range(2):  # and a context its own like
        assert server.post("/slots/1?action=save", filename="owner.atlas")["n_saved"]


def test_without_a_folder_there_are_no_actions(serve: Server):
    assert serve().client.post("/slots/0?action=save", json={"filename": "a"}).status_code == 501


def test_nobody_meets_another_keys_slots_and_files(serve: Server, tmp_path):
    server = serve(api_key=("one", "two"), slot_save_path=str(tmp_path))
    one, two = ({"authorization": f"Bearer {key}"} for key in ("one", "two"))
    client = server.client
    asked = {"prompt": "a secret " + TEXT, "id_slot": 0, **GREEDY}
    assert client.post("/completion", json=asked, headers=one).status_code == 200
    for action in ("save", "erase"):
        answer = client.post(f"/slots/0?action={action}", json={"filename": "a"}, headers=two)
        assert answer.status_code == 403
    assert client.post("/slots/0?action=save", json={"filename": "a"}, headers=one).status_code == 200
    answer = client.post("/slots/1?action=restore", json={"filename": "a"}, headers=two)
    assert answer.status_code == 400
    found = client.post("/completion", json=asked, headers=two).json()
    assert found["timings"]["cache_n"] == 0


# --- files ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a", "slot1.bin", "with space.bin", "größe.atlas", "日本.bin", "a" * 255])
def test_names_that_files_may_have(name):
    assert checked_file_name(name) == name


@pytest.mark.parametrize(
    "name",
    [None, 7, "", ".", "..", "a..b", ".hidden", "-rf", " a", "a ", "a.", "a/b", "a\\b", "/a", "a:b", "a*", "a?", 'a"',
     "a<", "a>", "a|", "a\0", "a\n", "a\x7f", "a\x85", "a\u2215b", "a\u2044b", "a\uff0eb", "a\uff0fb", "a\u2024b",
     "a\u202eb", "a\u200bb", "a\u00a0b", "a\ufeff", "a\ufffd", "\ud800", "a" * 256, "é" * 128, "con", "NUL.txt",
     "a\ue000", "com1"],
)  # fmt: skip
def test_names_that_no_file_may_have(name):
    with pytest.raises(InvalidParamError, match="not the name of a file"):
        checked_file_name(name)


def test_contexts_in_llama_cpps_form():
    context = SlotContext([1, 2, 3], b"state")
    data = written(context)
    assert data == b"qsgg" + b"\3\0\0\0" + b"\3\0\0\0" + b"\1\0\0\0\2\0\0\0\3\0\0\0" + b"state"
    assert read(data, 4, 3) == context
    packed = b"qsgg\3\0\0\0\6\0\0\0" + b"\xff\xff\xff\xff\1\0\0\0\3\0\0\0" + data[12:]
    assert read(packed, 4, 3) == context
    for bad in (
        b"",
        data[:11],
        b"xxxx" + data[4:],
        data[:4] + b"\2" + data[5:],
        data[:8] + b"\xff" + data[9:],
    ):
        with pytest.raises(FileCorruptError):
            read(bad, 4, 3)
    for limits in ((3, 3), (4, 2)):
        with pytest.raises(FileCorruptError, match="does not fit"):
            read(data, *limits)


@pytest.mark.model
def test_a_context_goes_through_llama_cpps_own_reader(real, tmp_path):
    """What llama_state_seq_load_file reads, llama-server restores."""
    import ctypes

    from atlas_kit.llama.session import AtlasSession

    engine = real(n_ctx=64, n_sequences=2)
    with AtlasSession(engine, None) as session:
        session.feed("to be or not to be")
        tokens = list(session.context_tokens)
        path = tmp_path / "slot.bin"
        path.write_bytes(written(SlotContext(tokens, engine.save_sequence(session.sequence))))
    api = engine._lib.api
    room, count = (api.llama_token * 64)(), ctypes.c_size_t()
    size = api.llama_state_seq_load_file(
        engine._context, str(path).encode(), 1, room, 64, ctypes.byref(count)
    )
    assert size == path.stat().st_size
    assert list(room[: count.value]) == tokens


def test_how_many_prompts_there_may_be():
    with pytest.raises(InvalidParamError, match="1 to 64 prompts"):
        prompts_of(FakeEngine(), [])
