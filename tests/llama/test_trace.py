"""``Trace``: what it keeps agrees with the session's own figures and with the whole predictions."""

from __future__ import annotations

import numpy as np
import pytest

from atlas_kit.episodes import Kind
from atlas_kit.errors import ModelError
from atlas_kit.llama import AtlasSession, FakeEngine
from atlas_kit.llama.trace import TOP, Places, Trace, follow
from atlas_kit.llama.trace_frames import packed, unpacked

TEXT = "It is what it is, said the cat; it is what it was, said the other cat. " * 6


@pytest.mark.parametrize("portion", [1, 7, 16, 64, 1000])
def test_losses_are_those_that_feed_reports_however_the_text_is_cut(open_engine, portion):
    with AtlasSession(open_engine()) as session:
        fed, tokens = session.feed(TEXT), session.tokens_of(TEXT)
    trace = Trace()
    with AtlasSession(open_engine()) as session:
        tokens = session.tokens_of(TEXT)
        for at in range(0, len(tokens), portion):
            follow(session, tokens[at : at + portion], trace)
    assert trace.tokens.tolist() == tokens
    assert np.isnan(trace.loss[0]).all()
    # llama.cpp rounds a little differently for batches of other sizes
    np.testing.assert_allclose(-trace.loss[1:], fed.logprob, atol=0.02)


def test_the_blend_is_made_of_what_model_memory_and_window_gave():
    trace = Trace()
    with AtlasSession(FakeEngine()) as session:
        follow(session, session.tokens_of(TEXT), trace)
    weights, parts = trace.weights[1:].astype(float), trace.parts[1:].astype(float)
    np.testing.assert_allclose(weights.sum(axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(np.exp(-trace.loss[1:, 1]), (weights * parts).sum(axis=1), rtol=1e-4)
    np.testing.assert_allclose(np.exp(-trace.loss[1:, 0]), parts[:, 0], rtol=1e-4)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"candidates": 8},
        {"window": 0},
        {"learning_rate": 0.0},
        {"blend_ratio": 1.0},
        {"candidates": 3, "window": 16},
    ],
)
def test_the_likeliest_tokens_are_those_of_the_whole_predictions(settings):
    trace, expected = Trace(), []

    def observe(reading, tokens, probabilities):
        trace(reading, tokens, probabilities)
        for row in range(len(tokens)):
            logits = reading.logits[row].astype(float)
            model = np.exp(logits - logits.max())
            both = (model / model.sum(), np.exp(reading.log_probabilities(row)))
            expected.append([np.sort(p)[::-1][:TOP] for p in both])

    with AtlasSession(FakeEngine(), **settings) as session:
        session.observer = observe
        session.feed(TEXT)
    np.testing.assert_allclose(trace.top_p, np.asarray(expected), atol=2e-6)
    assert (np.diff(trace.top_p, axis=-1) <= 0).all()


def test_a_small_vocabulary_leaves_places_empty():
    class Small(FakeEngine):
        def __init__(self):
            super().__init__()
            self._matrix = self._matrix[:4]
            self.info = type(self.info)(**{**self.info.__dict__, "n_vocab": 4})

    trace = Trace()
    with AtlasSession(Small()) as session:
        follow(session, [0, 1, 2, 3] * 12, trace)
    assert (trace.top[1:, :, 4:] == -1).all()
    assert (trace.top[1:, :, :4] >= 0).all()


def test_a_failure_leaves_the_trace_where_the_session_stopped():
    class Failing(FakeEngine):
        def decode(self, feeds, *, hidden=False):
            if self.decodes == 3:
                raise ModelError("out of order")
            return super().decode(feeds, hidden=hidden)

    trace = Trace()
    with AtlasSession(Failing()) as session:
        with pytest.raises(ModelError):
            follow(session, session.tokens_of(TEXT), trace)
        assert session.observer is None
    assert trace.tokens.tolist() == list(TEXT.encode()[:96])  # three decodes of 32


def test_what_is_followed_is_kept_if_that_is_wanted():
    with AtlasSession(FakeEngine()) as session:
        session.episodes.begin(Kind.DOCUMENT, "play.txt")
        follow(session, session.tokens_of(TEXT), Trace(), stores=True)
        follow(session, session.tokens_of("aside"), Trace())
        [episode] = session.episodes.episodes
        assert (episode.source, session.episodes.text(episode.start, episode.stop)) == ("play.txt", TEXT)


def test_what_is_read_aside_is_not_traced():
    trace = Trace()
    with AtlasSession(FakeEngine()) as session:
        session.observer = trace
        session.feed(TEXT)
        count = len(trace)
        with session.aside():
            session.feed("something else entirely")
        assert len(trace) == count
        session.feed("on it goes")
    assert len(trace) == count + len("on it goes")


def test_views_stay_as_they_were_while_the_trace_grows():
    trace = Trace()
    trace.begin(5)
    first = trace.tokens
    for token in range(5000):
        trace.begin(token)
    assert first.tolist() == [5]
    assert trace.tokens[:2].tolist() == [5, 0]
    with pytest.raises(AttributeError):
        _ = trace.nothing


def test_sources_are_told_of_a_session_that_had_a_memory_before():
    trace = Trace()
    with AtlasSession(FakeEngine()) as session:
        session.feed("Nobody looks on yet. " * 3)
        follow(session, session.tokens_of(TEXT), trace)
    known = np.flatnonzero(trace.source >= 0)
    assert len(known) > len(trace) // 2
    assert (trace.tokens[trace.source[known]] == trace.tokens[known]).all()
    assert (trace.source[known] < known).all()


def test_numbers_of_a_memory_that_goes_back_or_far_ahead_begin_anew():
    places = Places()
    places.put(10, 0, 3)
    places.put(15, 3, 2)
    assert [places.at(token) for token in range(8, 17)] == [-1, -1, 0, 1, 2, -1, -1, 3, 4]
    places.put(12, 5, 1)
    assert [places.at(token) for token in range(10, 18)] == [-1, -1, 5, -1, -1, -1, -1, -1]
    places.put(1 << 40, 6, 1)
    assert [places.at((1 << 40) + token) for token in (-1, 0, 1)] == [-1, 6, -1]


def test_what_a_trace_sends_comes_back_and_no_source_stands_behind_its_token():
    trace = Trace()
    with AtlasSession(FakeEngine()) as session:
        follow(session, session.tokens_of(TEXT), trace)
    rows, tokens = packed(trace, 5, 9)
    back = unpacked(rows.tobytes(), tokens.tobytes(), trace.source[5:9].tobytes(), 5)
    assert back["source"].tolist() == trace.source[5:9].tolist()
    assert unpacked(rows.tobytes(), tokens.tobytes())["source"].tolist() == [-1] * 4
    hostile = np.asarray([5, -7, 6, 1 << 30], "<i4")
    assert unpacked(rows.tobytes(), tokens.tobytes(), hostile.tobytes(), 5)["source"].tolist() == [
        -1,
        -1,
        6,
        -1,
    ]
