"""How much work a grammar makes along the tokens of a vocabulary."""

from __future__ import annotations

import numpy as np
import pytest

from atlas_kit.errors import InvalidParamError
from atlas_kit.llama import AtlasSession, Sampling, grammar_reach
from atlas_kit.llama.grammar_reach import MOST_STACKS, Follower, Grammars, Vocabulary

#: Letters, a long word, 64 spaces, parts of a character.
PIECES = [bytes([code]) for code in range(32, 127)] + [
    b" " * 64,
    b"abababab",
    "é".encode(),
    b"\xc3",
    b"\xa9",
    b"",
]


def follower(text: str) -> Follower:
    found = Grammars(lambda: PIECES).follower(text, "grammar")
    assert found is not None
    return found


def token(text: str) -> int:
    return PIECES.index(text.encode())


@pytest.mark.parametrize(
    "text",
    [
        'root ::= (" " | " ")*',
        'root ::= " " root "a" | " " root "b" | "c"',
        "root ::= (. | . | . )*",
        'root ::= "x" a | "y"\na ::= ([^"] | [ ])*',
    ],
)
def test_ways_that_double_along_a_token_are_refused(text):
    def follow() -> None:
        here = follower(text)
        here.accept(token("x"))
        here.require_bounded()

    with pytest.raises(InvalidParamError, match="too many ways to read a text"):
        follow()


def test_a_token_is_refused_before_anybody_asks_about_it():
    here = follower('root ::= "x" (" " | " ")*')
    here.require_short(token(" " * 64))
    here.accept(token("x"))
    here.require_short(token(" "))
    with pytest.raises(InvalidParamError, match="too many ways"):
        here.require_short(token(" " * 64))


def test_too_many_stacks_are_refused_at_the_start_and_later():
    many = " | ".join(f'"{"x" * (n % 7 + 1)}" "{n}"' for n in range(MOST_STACKS + 1))
    with pytest.raises(InvalidParamError, match="too many ways"):
        follower(f"root ::= {many}")
    here = follower('root ::= "a" root "b" | "a" root "c" | "d"')

    def go_on() -> None:
        for _ in range(64):
            here.accept(token("a"))

    here.accept(token("a"))
    with pytest.raises(InvalidParamError, match="too many ways"):
        go_on()


def test_a_character_in_parts_counts_when_it_is_whole():
    here = follower('root ::= "é" "a"')
    here.accept(PIECES.index(b"\xc3"))
    before = here._stacks
    here.accept(PIECES.index(b"\xa9"))
    assert here._stacks != before
    here.accept(token("a"))
    assert here._stacks == (-1,)


def test_what_stands_for_a_token_takes_one():
    here = follower('root ::= <[3]> "a"')
    here.accept(token("("))
    here.accept(token("a"))
    assert here._stacks == (-1,)


def test_a_grammar_that_is_not_understood_has_no_follower():
    assert Grammars(lambda: PIECES).follower("root ::= b", "grammar") is None


@pytest.mark.parametrize(
    "sampling",
    [
        {
            "json_schema": {
                "type": "object",
                "properties": {"name": {"type": "string"}, "n": {"type": "integer"}},
            }
        },
        {"json_schema": {"type": "array", "items": {"type": "number"}, "maxItems": 9}},
        {"json_schema": {"type": "string", "pattern": "^(a|b)+c?[0-9]{2,4}$"}},
        {"json_schema": {}},
        {"grammar": 'root ::= ("yes" | "no" | [^x]+) (" " root)?'},
        {"grammar": 'root ::= line{1,5}\nline ::= "- " [a-z ]{3,20} "\\n"'},
    ],
)
def test_what_llama_cpp_allows_can_be_read_here_too(sampling, real):
    engine, random = real(), np.random.default_rng(5)
    sampler, before = engine.sampler(Sampling(seed=3, **sampling)), ()
    for _ in range(40):
        token = sampler.sample(random.standard_normal(engine.info.n_vocab).astype(np.float32))
        if engine.is_end(token):
            assert -1 in before
            break
        before = sampler._follower._stacks
        assert before
    sampler.close()


def test_the_sample_model_refuses_what_would_keep_it_busy(real):
    with AtlasSession(real(), None) as session:
        rules = (
            "root ::= r0\n" + "".join(f"r{i} ::= r{i + 1} | r{i + 1}\n" for i in range(60)) + 'r60 ::= "a"\n'
        )
        with pytest.raises(InvalidParamError, match="begin with each other in too many ways"):
            list(session.generate("a", sampling=Sampling(grammar=rules)))


@pytest.mark.parametrize(
    "pieces", [PIECES, [], [b""], ["\U0001f600a".encode(), b"a", b"ab", b"a", b"abc", b"xbc"]]
)
def test_a_vocabulary_is_the_tree_of_its_tokens(pieces):
    found = Vocabulary(pieces)
    texts = [""] + [""] * (len(found.codes) - 1)
    for depth, level in enumerate(found.levels):
        for node in level.tolist():
            texts[node] = texts[found.parents[node]] + chr(found.codes[node])
            assert len(texts[node]) == depth + 1
    whole = [piece.decode("utf-8", "ignore") for piece in pieces]
    assert len(set(texts)) == len(texts)
    assert set(texts) == {text[:length] for text in ["", *whole] for length in range(len(text) + 1)}
    assert found.weights.tolist() == [whole.count(text) for text in texts]


def test_a_grammar_that_many_ask_for_is_not_used_up(monkeypatch):
    monkeypatch.setattr(grammar_reach, "_MOST_KEPT", 40)
    monkeypatch.setattr(grammar_reach, "_MANY_KEPT", 20)
    shared = Grammars(lambda: PIECES)
    text = 'root ::= "(" root ")" root | "x"'
    for _ in range(20):
        one = shared.follower(text, "grammar")
        for char in "((x)x":  # places that no answer before had been at are looked at, too
            one.accept(token(char))
            one.require_bounded()
    deep = shared.follower(text, "grammar")

    def go_deep():
        for _ in range(100):
            deep.accept(token("("))

    with pytest.raises(InvalidParamError, match="too many ways"):
        go_deep()
    shared.follower(text, "grammar").accept(token("("))
