"""Whether an answer says something of what was read again, and what is held back until it does."""

from __future__ import annotations

import pytest

from atlas_kit.llama.checking import LEAST, SOON, checked, held_back, saying
from atlas_kit.llama.engine import Feed
from atlas_kit.llama.steps import Finish, Step, Token


@pytest.mark.parametrize(
    ("answer", "something"),
    [
        ("", False),
        ("The answer to this question is: ", False),
        ("What is my doctor called?", False),
        ("Your doctor is my doctor.", False),
        ("It is TARR", True),
        ("Bow", True),
        ("the street", True),
        ("Street musicians", True),
        ("Streets", False),
        ("Wilhelm", False),
    ],
)
def test_what_says_something(answer, something):
    says = saying("What is my doctor called?", ["My doctor is Wilhelmina Tarr,", "in Bow Street."])
    assert says(answer) is something


def test_languages_without_spaces():
    says = saying("茶室的猫叫什么？", ["茶室的猫叫铜钱，客人不许喂它吃鱼。"])
    assert says("铜钱")
    assert not says("茶室的猫")


def test_a_piece_that_holds_no_more_than_the_question():
    assert not saying("What is the tower?", ["The tower is what."])("The tower.")


def driven(work):
    """Return the texts that come out, the tokens that steps tell, and what was returned."""
    out, told, item = [], [], None
    try:
        while True:
            item = work.send("outputs" if isinstance(item, Step) else None)
            if isinstance(item, Token):
                out.append(item.text)
            elif item.token is not None:
                told.append(item.token.text)
    except StopIteration as done:
        return out, told, done.value


def saying_words(texts, ends, closed=None):
    """Work that says texts, each of which it also tells with the step for the next one."""
    try:
        for number, text in enumerate(texts):
            token = Token(number, text, None)
            assert (yield Step(Feed(0, [number], number, 1), False, token)) == "outputs"
            assert (yield token) is None
        return ends
    finally:
        if closed is not None:
            closed.append(True)


def test_tokens_come_once_something_is_said():
    ends = Finish("stop")
    work = held_back(saying_words(["It ", "is ", "Tarr", ", ", "yes"], ends), lambda text: "Tarr" in text)
    out, told, (value, held, when) = driven(work)
    assert out == ["It ", "is ", "Tarr", ", ", "yes"]
    assert told == [", ", "yes"]
    assert (value, held) == (ends, [])
    assert when > 0


def test_an_answer_that_says_nothing_is_held_back():
    ends = Finish("stop")
    out, told, (value, held, when) = driven(held_back(saying_words(["It ", "is"], ends), lambda text: False))
    assert (out, told, value, when) == ([], [], ends, 0.0)
    assert [token.text for token in held] == ["It ", "is"]


def test_one_that_says_nothing_for_long_is_given_up():
    closed = []
    work = held_back(saying_words(["a "] * 100, None, closed), lambda text: False)
    out, _, (value, held, _) = driven(work)
    assert (out, value, len(held), closed) == ([], None, SOON, [True])


def test_who_gives_up_ends_the_work():
    closed = []
    work = held_back(saying_words(["a"] * 9, None, closed), lambda text: True)
    work.send(None)
    work.close()
    assert closed == [True]


@pytest.mark.parametrize(
    ("reason", "length", "tries"),
    [
        ("cancelled", SOON - 1, 1),
        ("length", LEAST - 1, 1),
        ("length", LEAST, 2),
        ("stop", 1, 2),
        ("stop", 0, 2),
    ],
)
def test_when_it_is_asked_for_again(reason, length, tries):
    begun = []

    def answer():
        begun.append(True)
        return saying_words(["a "] * length, Finish(reason))

    work = checked(answer, lambda: iter(()), lambda text: False, lambda finish: finish.reason)
    out, _, (finish, held, when) = driven(work)
    assert (len(begun), finish.reason, len(held), out, when) == (tries, reason, length, [], 0.0)
