"""A session: reading in any split, rolling over, generating, and what happens when something fails."""

from __future__ import annotations

import os
import signal
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from memory_arrays import arrays, assert_same

from atlas_kit.errors import AtlasError, InvalidParamError, ModelError
from atlas_kit.llama import AtlasSession, FakeEngine, Sampling
from atlas_kit.llama.engine import Feed
from atlas_kit.llama.text_stream import TextStream
from atlas_kit.settings.atlas_settings import AtlasSettings

GREEDY = Sampling(temperature=0)
TEXT = "to be or not to be, that is the question: whether 'tis nobler in the mind to suffer. " * 3
SMALL = AtlasSettings(window_size=64, memory_dim=8, omega_window=8, chunk_size=8, candidates=16)
#: Quick to learn.
LONG = SMALL.replace(omega_window=64, chunk_size=64, candidates=4, polynomial_degree=1)


def ids(tokens):
    return [token.id for token in tokens if token.id >= 0]  # -1: what was left of a character


def text_of(tokens):
    return "".join(map(str, tokens))


class Spy:
    """An engine that remembers what it was asked, and can be made to fail."""

    def __init__(self, engine):
        self.__dict__.update(engine=engine, calls=[], fail=None)

    def __getattr__(self, name):
        return getattr(self.engine, name)

    def decode(self, feeds, *, hidden=False):
        if self.fail is not None and self.fail(feeds):
            raise self.error
        self.calls.append((list(feeds), hidden))
        return self.engine.decode(feeds, hidden=hidden)


# --- without a memory -------------------------------------------------------------------------------------


def greedy_by_hand(engine, tokens, count):
    """The loop of any runtime: decode, take the likeliest, decode that."""
    found, position = [], 0
    while True:
        for at in range(0, len(tokens), engine.n_batch):
            part = tokens[at : at + engine.n_batch]
            out = engine.decode([Feed(0, part, position, 1)])[0]
            position += len(part)
        token = int(out.logits[-1].argmax())
        if len(found) == count or engine.is_end(token):
            return found
        found.append(token)
        tokens = [token]


def test_without_a_memory_tokens_are_the_engines_own(open_engine):
    engine = open_engine(n_ctx=256)
    expected = greedy_by_hand(engine, [*engine.begin, *engine.tokenize(TEXT[:90])], 40)
    with AtlasSession(open_engine(n_ctx=256), None) as session:
        assert ids(session.generate(TEXT[:90], max_tokens=40, sampling=GREEDY)) == expected


def test_without_a_memory_logits_are_llama_cpps_to_the_bit(real, random_model):
    from tests.llama.test_engine import plain_logits

    spy = Spy(real(n_sequences=1))
    with AtlasSession(spy, None) as session:
        tokens = ids(session.generate([*range(10, 30)], max_tokens=5, sampling=GREEDY))
        last = session.open_output()["logits"]
    parts = [[0, *range(10, 30)], *([token] for token in tokens)]
    assert [feed.tokens for (feed,), _ in spy.calls] == parts
    assert not any(hidden for _, hidden in spy.calls)
    np.testing.assert_array_equal(last[0], plain_logits(random_model(), parts)[-1])


def test_without_a_memory_nobody_asks_for_states(open_engine):
    spy = Spy(open_engine())
    with AtlasSession(spy, None) as session:
        session.feed(TEXT, score=False)
        assert sum(feed.outputs for feeds, _ in spy.calls for feed in feeds) == 1
        session.feed(TEXT)
        list(session.generate(max_tokens=70, sampling=GREEDY))
        assert not any(hidden for _, hidden in spy.calls)
    spy = Spy(open_engine())
    with AtlasSession(spy, True) as session:
        session.feed("abc")
        assert all(hidden for _, hidden in spy.calls)


def test_scores_without_a_memory(open_engine):
    engine = open_engine()
    tokens = [*engine.begin, *engine.tokenize(TEXT[:25])]
    logits = engine.decode([Feed(0, tokens, 0, len(tokens))])[0].logits.astype("f8")
    logp = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    expected = logp[np.arange(len(tokens) - 1), tokens[1:]]
    with AtlasSession(open_engine(), None) as session:
        fed = session.feed(TEXT[:25])
    np.testing.assert_allclose(fed.logprob, np.stack((expected, expected), axis=1), atol=1e-4)
    assert fed.tokens == len(tokens)
    assert fed.loss == pytest.approx(-expected.mean(), abs=1e-4)
    assert fed.perplexity == pytest.approx(np.exp(fed.model_loss))


# --- reading ----------------------------------------------------------------------------------------------

WHOLE = {}


@settings(max_examples=15)
@given(st.lists(st.integers(1, 60), max_size=12))
def test_any_split_reads_the_same(cuts):
    tokens = list(TEXT.encode())

    def read(parts):
        with AtlasSession(FakeEngine(), SMALL) as session:
            found = [session.feed(part).logprob for part in parts]
            return (
                np.concatenate(found),
                arrays(session),
                ids(session.generate(max_tokens=9, sampling=GREEDY)),
            )

    if not WHOLE:
        WHOLE["all"] = read([tokens])
    ends = np.cumsum(cuts).tolist()
    logprob, kept, generated = read([tokens[a:b] for a, b in zip([0, *ends], [*ends, None], strict=True)])
    np.testing.assert_allclose(logprob, WHOLE["all"][0], atol=1e-4)
    for name, array in WHOLE["all"][1].items():
        np.testing.assert_allclose(kept[name], array, atol=1e-3, err_msg=name)
    assert generated == WHOLE["all"][2]


def test_reading_and_generating_learn_the_same(open_engine):
    with AtlasSession(open_engine(n_ctx=256), SMALL) as session:
        tokens = [*session.engine.begin, *session.engine.tokenize(TEXT[:60])]
        tokens += ids(session.generate(TEXT[:60], max_tokens=30, sampling=GREEDY))
        one = arrays(session)
    with AtlasSession(open_engine(n_ctx=256), SMALL) as session:
        for token in tokens:
            session.feed([token])
        other = arrays(session)
    for name in one.keys() - {"top"}:  # which is in no order
        np.testing.assert_allclose(other[name], one[name], atol=5e-2, rtol=1e-2, err_msg=name)


def test_what_was_generated_is_learned_from_the_states_it_had(open_engine):
    # generating leaves a row open that only the next text closes, when the engine's arrays hold other tokens
    def run(before_the_end):
        with AtlasSession(open_engine(n_ctx=256), SMALL) as session:
            list(session.generate(TEXT[:50], max_tokens=7, sampling=GREEDY))
            before_the_end(session)
            return session.feed("and so on").logprob

    def look(session):  # reads the open row before the engine goes on
        list(session.generate(max_tokens=0))
        session._reading_of(session._last_output)

    np.testing.assert_array_equal(run(lambda session: None), run(look))


def test_nothing_to_read(open_engine):
    with AtlasSession(open_engine(), True) as session:
        fed = session.feed("")
        assert (fed.tokens, len(fed.logprob)) == (0, 0)
        assert np.isnan(fed.loss)
        with pytest.raises(InvalidParamError, match="no text to continue"):
            list(session.generate(""))
        one = session.feed([65])
        assert len(one.logprob) == len(session.engine.begin)


def test_progress_tells_each_batch(open_engine):
    told = []
    with AtlasSession(open_engine(), SMALL) as session:
        fed = session.feed(TEXT, progress=told.append)
    assert sum(part.tokens for part in told) == len(fed.logprob)
    np.testing.assert_array_equal(np.concatenate([part.logprob for part in told]), fed.logprob)


@pytest.mark.parametrize("tokens", [[-1], [100_000], [65, 1 << 40]])
def test_tokens_outside_the_vocabulary(tokens, engine):
    with (
        AtlasSession(engine, True) as session,
        pytest.raises(InvalidParamError, match="outside the vocabulary"),
    ):
        session.feed(tokens)


# --- the end of the context -------------------------------------------------------------------------------


@pytest.mark.parametrize("rollover", ["auto", "shift", "refeed"])
def test_the_newer_half_stays(rollover, open_engine):
    engine = open_engine(n_ctx=32)
    begin = len(engine.begin)
    with AtlasSession(engine, SMALL, rollover=rollover) as session:
        tokens = [*engine.begin, *engine.tokenize(TEXT)][:33]
        session.feed(tokens)
        drop = (32 - begin) // 2
        assert session.context_tokens == (*tokens[:begin], *tokens[begin + drop :])
        assert session.position == len(session.context_tokens)
        assert session.stats["rollovers"] == 1
        assert session.stats["context"] == session.position
    assert rollover != "shift" or engine.can_shift


def test_refeeding_is_exactly_the_shorter_context(open_engine):
    engine = open_engine(n_ctx=32)
    with AtlasSession(engine, None, rollover="refeed") as session:
        session.feed([*engine.begin, *engine.tokenize(TEXT)][:33])
        kept = list(session.context_tokens)
        logits = session.open_output()["logits"]
    with AtlasSession(open_engine(n_ctx=32), None) as session:
        session.feed(kept)
        np.testing.assert_allclose(session.open_output()["logits"], logits, atol=5e-3)


@pytest.mark.parametrize("rollover", ["shift", "refeed"])
def test_rolling_over_changes_nothing_of_the_memory_but_what_the_model_says(rollover):
    # the fake engine looks four tokens back, so that a rollover changes nothing for it
    with AtlasSession(FakeEngine(n_ctx=1024), SMALL) as session:
        expected, kept = session.feed(TEXT).logprob, arrays(session)
    with AtlasSession(FakeEngine(n_ctx=32), SMALL, rollover=rollover) as session:
        found = session.feed(TEXT).logprob
        assert session.stats["rollovers"] > 10
        np.testing.assert_allclose(found, expected, atol=1e-4)
        for name, array in arrays(session).items():
            np.testing.assert_allclose(array, kept[name], atol=1e-3, err_msg=name)


@pytest.mark.parametrize(("arch", "shifts"), [("llama", True), ("gemma2", False), ("jamba", False)])
def test_models_that_cannot_shift_read_again(arch, shifts, real):
    spy = Spy(real(arch, n_ctx=32))
    with AtlasSession(spy, SMALL) as session:
        session.feed(TEXT[:100])
        list(session.generate(max_tokens=30, sampling=GREEDY))
        again = [feed for feeds, hidden in spy.calls for feed in feeds if feed.outputs == 0]
        assert session.stats["rollovers"] > 2
        assert bool(again) is not shifts
        assert session.position <= 32


def test_a_recurrent_model_has_no_end(real):
    spy = Spy(real("mamba", n_ctx=32))
    with AtlasSession(spy, SMALL) as session:
        session.feed(TEXT)
        list(session.generate(max_tokens=30, sampling=GREEDY))
        assert session.stats["rollovers"] == 0
        assert session.position > 200
        assert len(session.context_tokens) == 32
        assert max(feed.position for feeds, _ in spy.calls for feed in feeds) == session.position - 1


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["fake", "llama"])
def test_20000_tokens_do_not_grow(kind, request):
    if kind == "fake":
        engine = FakeEngine(n_ctx=64, n_batch=64)
    else:
        path = request.getfixturevalue("random_model")(layers=1, vocabulary=300)
        engine = request.getfixturevalue("real")(path=path, n_ctx=64, n_batch=64, n_sequences=1)
    with AtlasSession(engine, LONG) as session:
        random, sizes = np.random.default_rng(0), set()
        session.feed(random.integers(6, 250, 2048 + 1 - len(engine.begin)).tolist())
        for _ in range(9):
            fed = session.feed(random.integers(6, 250, 2048).tolist())
            assert np.isfinite(fed.logprob).all()
            sizes.add(session.memory.state_bytes)
        assert len(sizes) == 1
        assert session.memory.tokens_seen == 10 * 2048
        assert session.stats["rollovers"] > 500
        assert len(session.context_tokens) <= 64


# --- generating -------------------------------------------------------------------------------------------


class Scripted(FakeEngine):
    """A fake engine that says what it is told, byte by byte."""

    def __init__(self, text, **options):
        super().__init__(n_ctx=512, **options)
        self.script = [*text, 256] if isinstance(text, bytes) else text

    def decode(self, feeds, *, hidden=False):
        found = super().decode(feeds, hidden=hidden)
        for feed, out in zip(feeds, found, strict=True):
            for row in range(feed.outputs):
                said = feed.position + len(feed.tokens) - feed.outputs + row
                out.logits[row] = -10
                out.logits[row, self.script[said % len(self.script)]] = 10
        return found


@pytest.mark.parametrize("memory", [None, AtlasSettings(learning_rate=0, blend_ratio=0.0)])
def test_text_comes_in_whole_characters(memory):
    text = "na\u00efve \u2603 \U0001f389!"
    with AtlasSession(Scripted(text.encode()), memory) as session:
        found = list(session.generate([1], sampling=GREEDY))
    assert text_of(found) == text
    assert len(found) == len(text.encode())
    assert all("\ufffd" not in token.text for token in found)
    assert found[-1].id >= 0


@pytest.mark.parametrize("data", [b"ab\xff\xfecd", b"ab\xe2\x98", b"\x80", b"\xf0\x9f\x8e"])
def test_bytes_that_are_no_text(data):
    with AtlasSession(Scripted(data), None) as session:
        found = list(session.generate([1], sampling=GREEDY))
    assert text_of(found) == data.decode("utf-8", "replace")


@pytest.mark.parametrize(
    ("stop", "expected"),
    [
        ("STOP", "one "), (["xyz", "two"], "one STOP "), ("STOPS", "one STOP two \u2603 S"),
        (["", "SSS"], "one STOP two \u2603 S"), ("\u2603", "one STOP two "), (["STOP two", "TO"], "one S"),
        ("one", ""), ("o", ""), (["P t", "STOP two"], "one STO"),
    ],
)  # fmt: skip
def test_text_ends_before_a_stop_string(stop, expected):
    text = "one STOP two \u2603 S".encode()
    with AtlasSession(Scripted(text), None) as session:
        assert text_of(session.generate([1], stop=stop, sampling=GREEDY)) == expected


@given(st.text("ab\u2603", max_size=12), st.lists(st.text("ab\u2603", min_size=1, max_size=4), max_size=3),
       st.data())  # fmt: skip
def test_stop_strings_across_any_borders(text, stops, data):
    raw, pieces = text.encode(), []
    while raw:
        count = data.draw(st.integers(1, 4))
        pieces.append(raw[:count])
        raw = raw[count:]
    found, reader = "", TextStream(stops)
    for piece in pieces:
        found += reader.add(piece)
        if reader.stopped:
            break
    else:
        found += reader.rest()
    ends = [text.find(stop) for stop in stops if stop in text]
    # a piece may complete two of them: then the one that begins first counts
    starts_first = min(ends, default=len(text))
    assert text.startswith(found)
    assert found == text[:starts_first] or any(found == text[:end] for end in ends)
    assert not any(stop in found for stop in stops)


def test_how_long(open_engine):
    with AtlasSession(open_engine(), None) as session:
        assert list(session.generate("abc", max_tokens=0)) == []
        assert 1 <= len(list(session.generate(max_tokens=5, sampling=GREEDY))) <= 6
        with pytest.raises(InvalidParamError, match="max_tokens is -1"):
            list(session.generate(max_tokens=-1))


def test_the_end_token_ends():
    with AtlasSession(Scripted(b"abc"), AtlasSettings(learning_rate=0)) as session:
        found = list(session.generate([1], sampling=GREEDY))
        assert text_of(found) == "abc"
        assert session.stats["tokens_generated"] == 3


def test_log_probabilities_are_the_blends(open_engine):
    with AtlasSession(open_engine(n_ctx=256), SMALL) as session:
        session.feed(TEXT[:80])
        found = list(session.generate(max_tokens=20, sampling=GREEDY))
        assert all(token.logprob < 0 for token in found if token.id >= 0)
    with AtlasSession(open_engine(n_ctx=256), SMALL) as session:
        session.feed(TEXT[:80])
        again = session.feed(ids(found))
    np.testing.assert_allclose([token.logprob for token in found], again.logprob[:, 1], atol=5e-3)


def test_stopping_in_between_and_going_on(open_engine):
    with AtlasSession(open_engine(n_ctx=256), SMALL) as session:
        whole = ids(session.generate(TEXT[:70], max_tokens=16, sampling=GREEDY))
    with AtlasSession(open_engine(n_ctx=256), SMALL) as session:
        found = []
        for token in session.generate(TEXT[:70], max_tokens=16, sampling=GREEDY):
            found.append(token.id)
            if len(found) == 7:
                break
        found += ids(session.generate(max_tokens=9, sampling=GREEDY))
    assert found == whole


# --- several sessions on one model ------------------------------------------------------------------------


@pytest.mark.parametrize("memory", [None, SMALL])
def test_sessions_side_by_side_do_not_see_each_other(memory, open_engine):
    alone = []
    for prompt in (TEXT[:40], TEXT[20:50]):
        with AtlasSession(open_engine(), memory) as session:
            alone.append(ids(session.generate(prompt, max_tokens=12, sampling=GREEDY)))
    engine = open_engine()
    with AtlasSession(engine, memory) as one, AtlasSession(engine, memory) as two:
        works = [
            one.generate(TEXT[:40], max_tokens=12, sampling=GREEDY),
            two.generate(TEXT[20:50], max_tokens=12, sampling=GREEDY),
        ]
        found = [[], []]
        for _ in range(12):  # in turn: each decode overwrites the other's arrays
            for work, tokens in zip(works, found, strict=True):
                tokens.extend(token.id for token in [next(work, None)] if token is not None)
        assert found == alone


def test_only_so_many_sessions(open_engine):
    engine = open_engine()
    with AtlasSession(engine, None) as one, AtlasSession(engine, None) as two:
        assert {one.sequence, two.sequence} == {0, 1}
        with pytest.raises(InvalidParamError, match="all 2 sequences"):
            AtlasSession(engine, None)
        two.close()
        with AtlasSession(engine, None) as three:
            assert three.sequence == 1
            three.feed("abc")
            for call in (lambda: two.feed("x"), lambda: list(two.generate("x")), lambda: two.save("x.atlas")):
                with pytest.raises(ModelError, match="the session is closed"):
                    call()
            two.close()
            assert three.context_tokens


def test_a_session_that_cannot_start_gives_its_sequence_back(open_engine):
    engine = open_engine()
    for _ in range(5):
        with pytest.raises(AtlasError):
            AtlasSession(engine, True, learning_rate=-1)
        with pytest.raises(AtlasError):
            AtlasSession(engine, "there/is/no/such.atlas")
    AtlasSession(engine, None).close()


@pytest.mark.parametrize("model", [None, 5, b"model.gguf"])
def test_what_is_no_model(model):
    with pytest.raises(InvalidParamError, match="a model cannot be"):
        AtlasSession(model)


def test_no_session_starts_on_a_closed_model(real):
    engine = real()
    engine.close()
    with pytest.raises(ModelError, match="the model is closed"):
        AtlasSession(engine)


@pytest.mark.slow
def test_threads_take_turns(open_engine):
    """Each of two sessions, in threads of their own, gives what it gives alone."""

    def work(session, results):
        for _ in range(8):
            session.feed(TEXT)
            results += [t.id for t in session.generate(max_tokens=3, sampling=Sampling(temperature=0))]

    alone, together = [], [[], []]
    with AtlasSession(open_engine()) as session:
        work(session, alone)
    engine = open_engine()
    with AtlasSession(engine) as a, AtlasSession(engine) as b:
        threads = [threading.Thread(target=work, args=each) for each in zip((a, b), together, strict=True)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert together == [alone, alone]


def test_a_session_outlives_no_model_of_its_own(random_model):
    pytest.importorskip("llama_cpp")
    session = AtlasSession(random_model(), None, engine_options={"n_ctx": 64, "n_threads": 1})
    session.feed("abc")
    session.close()
    session.close()
    with pytest.raises(ModelError, match="closed"):
        session.feed("abc")


# --- looking without learning -----------------------------------------------------------------------------


def test_answering_without_learning_changes_nothing(open_engine):
    with AtlasSession(open_engine(n_ctx=256), SMALL) as session:
        session.feed(TEXT[:100])
        session.learns = False
        before = arrays(session)
        fed = session.feed(TEXT[100:150])
        assert len(fed.logprob) == fed.tokens
        assert np.isfinite(fed.logprob).all()
        assert len(ids(session.generate(max_tokens=15, sampling=GREEDY))) >= 1
        assert_same(arrays(session), before)


def test_any_split_reads_the_same_without_learning():
    found = []
    for parts in ([TEXT[100:160]], list(TEXT[100:160]), [TEXT[100:103], TEXT[103:160]]):
        with AtlasSession(FakeEngine(n_ctx=512), SMALL) as session:
            session.feed(TEXT[:99])
            session.learns = False
            session.feed(TEXT[99])
            found.append(np.concatenate([session.feed(part).logprob for part in parts]))
    np.testing.assert_allclose(found[1], found[0], atol=1e-4)
    np.testing.assert_allclose(found[2], found[0], atol=1e-4)


@pytest.mark.parametrize("learns", [True, False])
def test_any_split_of_a_text_that_begins_anew_reads_the_same(learns):
    found = []
    text = TEXT[69:129]
    for parts in ([text], list(text), [text[0], text[1:]], [text[:4], text[4:]]):
        with AtlasSession(FakeEngine(n_ctx=512), SMALL) as session:
            session.feed(TEXT[:117])  # a step is open
            session.forget_context()
            session.learns = learns
            found.append(np.concatenate([session.feed(part).logprob for part in parts]))
    for other in found[1:]:
        np.testing.assert_allclose(other, found[0], atol=1e-4)


def test_a_listener_is_let_go():
    with AtlasSession(FakeEngine(), SMALL) as session:
        heard = []
        session.run(session.reading([*TEXT.encode()][:20], listen=lambda *rows: heard.append(rows)))
        count = len(heard)
        session.feed(TEXT[20:40])
        assert count >= 1
        assert len(heard) == count
        assert session.stats["memory"]["tokens_seen"] > 0


def seen_of(session):
    stats = session.stats
    if session.memory is not None:
        del stats["memory"]["row_cache_bytes"]
    return stats, session.context_tokens, session.position


@pytest.mark.parametrize("memory", [None, SMALL])
def test_what_happens_aside_leaves_no_trace(memory, open_engine):
    def go(session):
        return ids(session.generate(max_tokens=12, sampling=GREEDY))

    with AtlasSession(open_engine(n_ctx=256), memory) as session:
        list(session.generate(TEXT[:80], max_tokens=5, sampling=GREEDY))
        expected = go(session)
    with AtlasSession(open_engine(n_ctx=256), memory) as session:
        list(session.generate(TEXT[:80], max_tokens=5, sampling=GREEDY))
        before = seen_of(session)
        with session.aside():
            session.feed("something else")
            list(session.generate(max_tokens=7))
        with pytest.raises(InvalidParamError), session.aside():
            session.feed([-1])
        with session.aside():
            work = session.generating("else", max_tokens=7, sampling=GREEDY)
            prompt = next(work)
            said = work.send(session.engine.decode([prompt.feed], hidden=prompt.hidden)[0])
            assert len(said.feed.tokens) == 1  # cancelled before the context has what was said
            work.close()
        assert seen_of(session) == before
        assert go(session) == expected
    with AtlasSession(open_engine(), memory) as session:
        with session.aside():
            session.feed("abc")
        assert session.context_tokens == ()


# --- failures ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [ModelError("no"), KeyboardInterrupt()])
@pytest.mark.parametrize("during", ["feed", "generate"])
def test_a_failure_empties_the_context_and_keeps_the_memory(error, during, open_engine):
    spy = Spy(open_engine(n_ctx=256))
    with AtlasSession(spy, SMALL) as session:
        session.feed(TEXT[:60])
        spy.__dict__["error"] = error
        count = len(spy.calls) + 2
        spy.__dict__["fail"] = lambda feeds: len(spy.calls) >= count
        with pytest.raises(type(error)):
            session.feed(TEXT[60:]) if during == "feed" else list(
                session.generate(max_tokens=9, sampling=GREEDY)
            )
        spy.__dict__["fail"] = None
        assert session.context_tokens == ()
        assert session.position == 0
        assert session.memory.tokens_seen > 30
        fed = session.feed("and on it goes")
        assert np.isfinite(fed.logprob).all()
        assert len(fed.logprob) == fed.tokens - 1  # no token follows one that is gone


@pytest.fixture
def interruptible():
    """Let SIGINT raise, also where the shell that started the tests in the background has it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_an_interrupt_waits_for_the_end_of_a_step():
    """Ctrl-C in the middle of learning: afterwards it is as if the text had been read in two parts."""
    tokens = list(TEXT.encode())
    with AtlasSession(FakeEngine(), SMALL) as whole, AtlasSession(FakeEngine(), SMALL) as stopped:
        whole.feed(tokens)
        memory, calls = stopped.memory.memory, []
        step = memory.step

        def observing(*arguments, **options):
            calls.append(1)
            if len(calls) == 3:
                os.kill(os.getpid(), signal.SIGINT)
            return step(*arguments, **options)

        memory.step = observing
        with pytest.raises(KeyboardInterrupt):
            stopped.feed(tokens)
        read = stopped.stats["tokens_read"]
        assert 0 < read < len(tokens)
        stopped.feed(tokens[read:])
        assert_same(arrays(stopped), arrays(whole))
        assert stopped.context_tokens == whole.context_tokens
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_options_that_are_none(open_engine):
    engine = open_engine()
    for options, words in (
        ({"device": "tpu"}, "not a device"), ({"rollover": "stop"}, "not a rollover mode"),
        ({"memory": 7}, "cannot be 7"), ({"memory": None, "window": 5}, "make no sense without a memory"),
        ({"nonsense": 1}, "no setting 'nonsense'"), ({"blend_ratio": 2.0}, "blend_ratio is 2.0"),
        ({"window": -1}, "window_size is -1"), ({"window": 0, "learning_rate": 0}, "no memory"),
    ):  # fmt: skip
        with pytest.raises(InvalidParamError, match=words) as caught:
            AtlasSession(engine, **options)
        assert "\n" not in str(caught.value)


def test_resetting_starts_anew(open_engine):
    with AtlasSession(open_engine(n_ctx=256), SMALL) as session:
        first = session.feed(TEXT[:100]).logprob
        session.reset()
        assert session.stats["tokens_read"] == 0
        np.testing.assert_allclose(session.feed(TEXT[:100]).logprob, first, atol=1e-4)


def test_stats_are_json(open_engine):
    import json

    with AtlasSession(open_engine(), SMALL) as session:
        assert session.stats["loss"] is None
        fed = session.feed(TEXT[:50])
        list(session.generate(max_tokens=3))
        stats = json.loads(json.dumps(session.stats))
    assert stats["tokens_read"] == fed.tokens
    assert stats["loss_model"] > 0
    assert stats["memory"]["settings"]["window_size"] == 64
