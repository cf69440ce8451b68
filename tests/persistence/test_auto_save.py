"""When to save: multiples of tokens, seconds, and never what has not changed."""

from __future__ import annotations

import pytest

from atlas_kit.errors import InvalidParamError
from atlas_kit.persistence.auto_save import AutoSave


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def test_every_so_many_tokens():
    policy = AutoSave(tokens=10)
    found = []
    for count in range(0, 60, 3):
        if policy.due(count):
            policy.saved(count)
            found.append(count)
    assert found == [12, 21, 30, 42, 51]


def test_every_so_many_seconds_if_there_is_something_new():
    clock = Clock()
    policy = AutoSave(seconds=5, clock=clock)
    assert not policy.due(3)
    clock.now += 5
    assert policy.due(3)
    policy.saved(3)
    clock.now += 50
    assert not policy.due(3)
    assert policy.due(4)  # the five seconds have long passed
    policy.saved(4)
    clock.now += 4.9
    assert not policy.due(9)
    clock.now += 0.1
    assert policy.due(9)


def test_a_save_that_failed_is_due_again_later():
    clock = Clock()
    policy = AutoSave(tokens=10, seconds=5, clock=clock)
    assert policy.due(10)
    assert not policy.due(11)
    assert policy.changed(11)
    clock.now += 5
    assert policy.due(11)
    assert policy.due(20)


def test_nobody_asked_for_it():
    policy = AutoSave()
    assert not policy.due(10**9)
    assert policy.changed(10**9)
    policy.saved(10**9)
    assert not policy.changed(10**9)


@pytest.mark.parametrize(
    "wrong", [{"tokens": 0}, {"tokens": -1}, {"tokens": "3"}, {"seconds": 0}, {"seconds": float("nan")}]
)
def test_what_is_no_interval(wrong):
    ((name, value),) = wrong.items()
    with pytest.raises(InvalidParamError) as caught:
        AutoSave(**wrong)
    assert str(caught.value) == f"{name} must be greater than 0, and not {value!r}"
