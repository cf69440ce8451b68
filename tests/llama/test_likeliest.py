"""``Likeliest``: what it finds is what the whole predictions say, of any reading and any window."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from atlas_kit.llama import AtlasSession, FakeEngine
from atlas_kit.llama.likeliest import Likeliest
from atlas_kit.llama.reading import Slots

TEXT = "It is what it is, said the cat; it is what it was, said the other cat. " * 5
COUNT = 6


def whole(reading, row):
    """The probabilities (n_vocab,) of model and blend."""
    logits = reading.logits[row].astype(float)
    model = np.exp(logits - logits.max())
    return model / model.sum(), np.exp(reading.log_probabilities(row).astype(float))


def compare(reading, found):
    tokens, p = found
    for row in range(len(reading)):
        for who, every in enumerate(whole(reading, row)):
            np.testing.assert_allclose(p[row, who], np.sort(every)[::-1][:COUNT], atol=2e-6)
            np.testing.assert_allclose(p[row, who], every[tokens[row, who]], atol=2e-6)
            assert len(set(tokens[row, who].tolist())) == COUNT


@pytest.mark.parametrize(
    "settings", [{}, {"window": 0}, {"candidates": 7}, {"candidates": 2}, {"window": 40}]
)
def test_of_a_model_they_are_those_of_the_whole_predictions(open_engine, settings):
    likeliest, steps = Likeliest(COUNT), 0

    def observe(reading, tokens, probabilities):
        nonlocal steps
        steps += 1
        compare(reading, likeliest.of(reading))

    with AtlasSession(open_engine(), **settings) as session:
        session.observer = observe
        session.feed(TEXT)
    assert steps > 5


def readings(**settings):
    """Readings of a memory that knows something, one for each step."""
    found = []
    with AtlasSession(FakeEngine(), **settings) as session:
        session.observer = lambda reading, *_: found.append(
            dataclasses.replace(reading, logits=reading.logits.copy())
        )
        session.feed(TEXT)
    return found


def test_a_window_that_holds_what_nobody_expects():
    reading = readings(candidates=8)[-1]
    strange = (reading.slots.tokens * 7 + 3) % reading.logits.shape[1]
    reading = dataclasses.replace(reading, slots=Slots(reading.slots.keys, strange))
    compare(reading, Likeliest(COUNT).of(reading))


def test_a_window_with_tokens_that_the_vocabulary_lacks():
    reading = readings()[-1]
    n_vocab, tokens = reading.logits.shape[1], reading.slots.tokens.copy()
    sane = Slots(reading.slots.keys, np.where(np.arange(len(tokens)) % 3, tokens, tokens[1]))
    tokens[::3] = np.resize([-1, n_vocab, 2**40, -(2**40)], len(tokens[::3]))
    weights = np.where(
        np.arange(len(tokens)) % 3, reading.window.weights, 0
    )  # sane: as if these slots were not there
    window = dataclasses.replace(reading.window, weights=weights)
    wanted = Likeliest(COUNT).of(dataclasses.replace(reading, slots=sane, window=window))
    odd = dataclasses.replace(reading, slots=Slots(reading.slots.keys, tokens))
    for found, one in zip(Likeliest(COUNT).of(odd), wanted, strict=True):
        np.testing.assert_array_equal(found, one)


def test_one_asks_after_another_with_its_own_vocabulary():
    likeliest = Likeliest(COUNT)
    for reading in readings()[-4:]:
        compare(reading, likeliest.of(reading))
        wider = dataclasses.replace(
            reading, logits=np.hstack((reading.logits, np.full((len(reading), 9), -50, np.float32)))
        )
        assert likeliest.of(wider)[1].shape == (len(reading), 2, COUNT)


@pytest.mark.parametrize("columns", [1, 5, 6, 31, 32, 33, 200, 1024, 1100])
def test_the_first_of_any_number(columns):
    random = np.random.default_rng(columns)
    z = random.standard_normal((9, columns)).round(1).astype(np.float32)  # with ties
    names = random.permutation(5000)[:columns]
    tokens, best = Likeliest(COUNT).first(names, z)
    there = min(columns, COUNT)
    np.testing.assert_array_equal(best[:, :there], np.sort(z, axis=1)[:, ::-1][:, :there])
    assert (tokens[:, there:] == -1).all()
    of = {int(name): at for at, name in enumerate(names)}
    for row in range(9):
        assert [z[row, of[token]] for token in tokens[row, :there].tolist()] == best[row, :there].tolist()


def test_what_is_no_number_comes_last():
    z = np.linspace(0, 1, 64, dtype=np.float32)[None].repeat(3, 0)
    z[0], z[1, 60:] = np.nan, np.nan
    tokens, best = Likeliest(COUNT).first(np.arange(64), z)
    assert tokens[1:].tolist() == [[59, 58, 57, 56, 55, 54], [63, 62, 61, 60, 59, 58]]
    assert (best[0] == -np.inf).all()
