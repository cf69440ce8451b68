"""``/v1/completions``: prompts of every form, echoes, log-probabilities, and several answers."""

from __future__ import annotations

import asyncio
import json
import math

import pytest

from atlas_kit.llama.sampling import Sampling
from server.scripted import ScriptedEngine


@pytest.fixture
def ask(inside):
    """Return a function that asks a server, and returns the answer, or the chunks of a stream."""

    def asked(*scripts, engine=None, status=200, settings=None, **body):
        async def run():
            made = ScriptedEngine(*(scripts or ("Hello!",)), **(engine or {}))
            async with inside(made, **(settings or {})) as server:
                answer = await server.client.post("/v1/completions", json={"prompt": "ab", **body})
            assert answer.status_code == status, answer.text
            asked.engine = made
            if not body.get("stream") or status != 200:
                return answer.json()
            assert answer.text.endswith("data: [DONE]\n\n")
            return [json.loads(part.removeprefix("data: ")) for part in answer.text.split("\n\n")[:-2]]

        return asyncio.run(run())

    return asked


def joined(chunks, index=0):
    """Return the text, the log-probabilities and the end of a choice."""
    text, reason = "", None
    logprobs = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
    for chunk in chunks:
        for choice in chunk["choices"]:
            if choice["index"] == index:
                text += choice["text"]
                reason = choice["finish_reason"] or reason
                for name, values in (choice["logprobs"] or {}).items():
                    logprobs[name] += values or []
    return text, logprobs, reason


def test_a_text_goes_on(ask):
    found = ask("Hello!")
    assert found["object"] == "text_completion"
    assert found["choices"] == [{"text": "Hello!", "index": 0, "logprobs": None, "finish_reason": "stop"}]
    assert found["usage"]["prompt_tokens"] == 2
    assert len(ask("x" * 100)["choices"][0]["text"]) == 16
    assert len(ask("x" * 100, n_predict=20)["choices"][0]["text"]) == 20


@pytest.mark.parametrize(
    ("prompt", "texts", "count"),
    [
        ("ab", ["ab"], 2),
        (["ab", "c"], ["ab", "c"], 3),
        ([97, 98], ["ab"], 2),
        ([[97, 98], [99]], ["ab", "c"], 3),
        ([97, "bc", 100], ["abcd"], 4),
        (["ab", [99, "d"]], ["ab", "cd"], 4),
    ],
)
def test_prompts_of_every_form(ask, prompt, texts, count):
    found = ask("!", prompt=prompt, echo=True)
    assert [choice["text"] for choice in found["choices"]] == [f"{text}!" for text in texts]
    assert found["usage"]["prompt_tokens"] == count
    chunks = ask("!", prompt=prompt, echo=True, stream=True)
    assert [joined(chunks, index)[0] for index in range(len(texts))] == [f"{text}!" for text in texts]


@pytest.mark.parametrize("path", ["/v1/completions", "/completion"])
@pytest.mark.parametrize("prompt", [[1, ["a"]], ["a", 1, [2]], [[1], 2], [["a", 1], "b", 3]])
def test_tokens_beside_lists_are_no_prompts(serve, path, prompt):
    answer = serve().client.post(path, json={"prompt": prompt, "max_tokens": 1})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "prompt")


def test_a_prompt_can_be_scored_alone(ask):
    for stream in (False, True):
        found = ask(prompt="abc", echo=True, logprobs=2, max_tokens=0, stream=stream)
        chunks = found if stream else [{"choices": found["choices"]}]
        text, logprobs, reason = joined(chunks)
        assert (text, reason) == ("abc", "length")
        assert logprobs["tokens"] == ["a", "b", "c"]
        assert logprobs["text_offset"] == [0, 1, 2]
        assert logprobs["token_logprobs"][0] is None
        assert logprobs["top_logprobs"][0] is None
        assert all(value < 0 for value in logprobs["token_logprobs"][1:])
        assert all(len(top) == 2 for top in logprobs["top_logprobs"][1:])


@pytest.mark.parametrize("atlas", [{"enabled": False}, {"enabled": True, "window_size": 64}])
def test_the_scores_of_a_prompt_are_those_of_generating_it(ask, atlas):
    text = "abcabcabc" * 10
    made = ask(text[1:], prompt=text[0], max_tokens=89, logprobs=3, atlas=atlas)["choices"][0]["logprobs"]
    read = ask(prompt=text, echo=True, max_tokens=0, logprobs=3, atlas=atlas)["choices"][0]["logprobs"]
    assert read["tokens"][1:] == made["tokens"]
    assert read["token_logprobs"][1:] == pytest.approx(made["token_logprobs"], abs=1e-3)
    assert [set(top) for top in read["top_logprobs"][1:]] == [set(top) for top in made["top_logprobs"]]


@pytest.mark.parametrize("atlas", [{"enabled": False}, {"enabled": True, "window_size": 64}])
def test_a_prompt_is_scored_as_often_as_it_is_asked(inside, atlas):
    async def run():
        async with inside(ScriptedEngine("x", n_sequences=1)) as server:
            body = {"prompt": "abcabc", "echo": True, "logprobs": 1, "max_tokens": 1, "atlas": atlas}
            found = [(await server.client.post("/v1/completions", json=body)).json() for _ in range(2)]
        return [one["choices"][0]["logprobs"]["token_logprobs"] for one in found]

    first, second = asyncio.run(run())
    assert None not in first[1:]
    assert first[1:] == pytest.approx(second[1:], abs=1e-4)


def test_logprobs_are_those_of_the_distribution(ask):
    found = ask("Hello", logprobs=5, max_tokens=5)["choices"][0]["logprobs"]
    assert found["tokens"] == list("Hello")
    assert found["text_offset"] == [0, 1, 2, 3, 4]
    for logprob, top in zip(found["token_logprobs"], found["top_logprobs"], strict=True):
        assert logprob <= max(top.values()) <= 0
        assert sum(math.exp(value) for value in top.values()) <= 1
    assert ask("Hello", logprobs=0)["choices"][0]["logprobs"]["top_logprobs"] is None
    echoed = ask("Hé", logprobs=0, echo=True)["choices"][0]["logprobs"]
    assert echoed["tokens"] == ["a", "b", "H", "bytes:\\xc3", "bytes:\\xa9"]
    assert echoed["text_offset"][:4] == [0, 1, 2, 3]


def test_logprobs_in_a_stream(ask):
    whole = ask("Hello world", logprobs=2, stop="wor", echo=True)["choices"][0]
    text, logprobs, reason = joined(ask("Hello world", logprobs=2, stop="wor", echo=True, stream=True))
    assert (text, reason) == (whole["text"], "stop") == ("abHello ", "stop")
    assert logprobs["tokens"] == whole["logprobs"]["tokens"] == list("abHello ")
    assert logprobs["text_offset"] == whole["logprobs"]["text_offset"] == list(range(8))


def test_several_answers_to_several_prompts(ask):
    found = ask("1", "2", "3", "4", prompt=["ab", "cd"], n=2)
    assert [choice["text"] for choice in found["choices"]] == ["1", "2", "3", "4"]
    assert [choice["index"] for choice in found["choices"]] == [0, 1, 2, 3]
    assert found["usage"] == {
        "prompt_tokens": 4,
        "completion_tokens": 4,
        "total_tokens": 8,
        "prompt_tokens_details": {"cached_tokens": 0},
    }
    chunks = ask("1", "2", "3", "4", prompt=["ab", "cd"], n=2, stream=True)
    assert [joined(chunks, index)[0] for index in range(4)] == ["1", "2", "3", "4"]


def test_the_best_answers_are_given(ask):
    scripts = ("qq", "zz", "ab")
    single = {text: ask(text, logprobs=0)["choices"][0]["logprobs"]["token_logprobs"] for text in scripts}
    means = {text: sum(values) / len(values) for text, values in single.items()}
    ranked = sorted(scripts, key=means.__getitem__, reverse=True)
    assert len(ask("a", best_of=0)["choices"]) == 1
    found = ask(*scripts, best_of=3, n=2)
    assert [choice["text"] for choice in found["choices"]] == ranked[:2]
    assert all(choice["logprobs"] is None for choice in found["choices"])
    assert found["usage"]["completion_tokens"] == 6


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"prompt": []}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": [5000]}, "prompt"),
        ({"prompt": ["a"] * 65}, "prompt"),
        ({"prompt": {"prompt_string": "a"}}, "prompt"),
        ({"prompt": ["a"] * 40, "n": 4}, "n"),
        ({"best_of": 2, "n": 3}, "best_of"),
        ({"best_of": 2, "stream": True}, "best_of"),
        ({"logprobs": 21}, "logprobs"),
        ({"stop": ["a"] * 65}, "stop"),
        ({"prompt": "x" * 5000}, "prompt"),
    ],
)
def test_what_is_wrong_is_400_and_costs_nothing(ask, body, param):
    error = ask(status=400, **body)["error"]
    assert error["param"].split(".")[0] == param
    assert ask.engine.decodes == 0


def test_a_suffix_opens_a_gap(ask):
    found = ask("mid", prompt=["ab", "c"], suffix="yz")
    assert [choice["text"] for choice in found["choices"]] == ["mid", "mid"]
    assert found["usage"]["prompt_tokens"] == len("ab") + len("c") + 2 * (3 + len("yz"))
    assert ask(status=400, suffix="yz", engine={"infill": False})["error"]["param"] == "suffix"
    assert ask(status=400, suffix="yz", echo=True)["error"]["param"] == "suffix"
    assert ask("Hello!", suffix="", engine={"infill": False})["choices"][0]["text"] == "Hello!"


def test_a_missing_prompt_is_said(inside):
    async def run():
        async with inside() as server:
            return (await server.client.post("/v1/completions", json={})).json()

    assert asyncio.run(run())["error"]["param"] == "prompt"


#: Every option of the samplers, with a value that changes something.
OPTIONS = [
    {"temperature": 0},
    {"temperature": 1.7, "seed": 1},
    {"top_k": 3},
    {"top_p": 0.5},
    {"min_p": 0.2},
    {"repeat_penalty": 1.3, "repeat_last_n": -1},
    {"presence_penalty": 0.5, "frequency_penalty": -0.5},
    {"logit_bias": {"5": 3, "6": False}},
    {"ignore_eos": True},
    {"typical_p": 0.5},
    {"top_n_sigma": 1.5},
    {"xtc_probability": 0.5, "xtc_threshold": 0.05},
    {"dynatemp_range": 0.5, "dynatemp_exponent": 1.5},
    {"dry_multiplier": 0.8, "dry_base": 1.75, "dry_allowed_length": 2, "dry_penalty_last_n": -1},
    {"mirostat": 1},
    {"mirostat": 2, "mirostat_tau": 3, "mirostat_eta": 0.2},
    {"samplers": ["top_k", "temperature"], "top_k": 5},
    {"adaptive_target": 0.5, "samplers": ["adaptive_p"]},
    {"min_keep": 3, "top_p": 0.01},
    {"grammar": 'root ::= [a-z ]+'},
    {"json_schema": {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}},
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("atlas", [False, True])
@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: next(iter(options)))
def test_every_option_of_the_samplers_with_and_without_a_memory(inside, real, options, atlas):
    async def run():
        engine = real(n_ctx=256)
        async with inside(engine, atlas=atlas, atlas_window=64) as server:
            body = {"prompt": "the cat sat on the mat " * 3, "max_tokens": 24, "logprobs": 2, **options}
            answer = await server.client.post("/v1/completions", json=body)
            assert answer.status_code == 200, answer.text
            [choice] = answer.json()["choices"]
            assert choice["finish_reason"] in ("stop", "length")
            assert all(value <= 0 for value in choice["logprobs"]["token_logprobs"])
            assert answer.json()["atlas"]["enabled"] is atlas
            return choice["text"]

    text = asyncio.run(run())
    if "grammar" in options:
        assert set(text) <= set("abcdefghijklmnopqrstuvwxyz ")
    if "json_schema" in options:
        assert text.startswith("{")


def test_settings_that_are_not_openai_s_reach_the_sampler(ask):
    ask(min_p=0.3, repeat_penalty=1.5, top_k=-1)
    assert ask.engine.samplings[0] == Sampling(min_p=0.3, repeat_penalty=1.5, top_k=0)


@pytest.mark.model
def test_grammars_that_mean_harm_are_400_and_cost_nothing(inside, real):
    async def run():
        engine = real()
        async with inside(engine) as server:
            deep = {"type": "string"}
            for _ in range(200):
                deep = {"type": "array", "items": deep}
            for body in (
                {"grammar": "root ::= " + "(" * 20_000 + '"a"' + ")" * 20_000},
                {"grammar": "root ::= this is (not valid"},
                {"grammar": "root ::= root"},
                {"json_schema": {"type": "nonsense"}},
                {"json_schema": {"type": "string", "pattern": "^(a{1,9}){1,100000}$"}},
                {"json_schema": {"type": "string", "pattern": "^" + "(" * 3000 + "a" + ")" * 3000 + "$"}},
                {"json_schema": {"enum": [f"value {number}" for number in range(50_000)]}},
                {
                    "json_schema": {
                        "type": "object",
                        "properties": {f"p{number}": {} for number in range(900)},
                    }
                },
                {"json_schema": {"$ref": "https://example.com/schema"}},
            ):
                answer = await server.client.post("/v1/completions", json={"prompt": "a", **body})
                assert answer.status_code == 400, (str(body)[:80], answer.text[:200])
                assert answer.json()["error"]["param"] in ("grammar", "json_schema")
            assert engine.decodes == 0
            for body in (  # too far off to be counted: without an end, as in llama-server
                {"json_schema": {"type": "string", "maxLength": 10**9}},
                {"json_schema": {"type": "array", "maxItems": 10**9, "items": {"type": "null"}}},
            ):
                answer = await server.client.post(
                    "/v1/completions", json={"prompt": "a", "max_tokens": 1, **body}
                )
                assert answer.status_code == 200, answer.text
            # as clients of llama-server send none
            none = await server.client.post(
                "/v1/completions", json={"prompt": "a", "grammar": "", "max_tokens": 1}
            )
            assert none.status_code == 200, none.text

    asyncio.run(run())
