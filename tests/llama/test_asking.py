"""Asking a session: what is stored, what is read again, what stays, and what leaves no trace."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atlas_kit.episodes import Episodes, Kind
from atlas_kit.episodes.words import words
from atlas_kit.errors import InvalidParamError
from atlas_kit.llama import AtlasSession, AtlasSettings, FakeEngine, Sampling, Scheduler, choosing
from atlas_kit.llama import asking as asking_module
from atlas_kit.llama import session as sessions
from atlas_kit.llama.asking import asking, follows_up, states
from atlas_kit.llama.asking_prompts import Form
from atlas_kit.llama.branching import Branch
from atlas_kit.llama.recalling import Piece, Recall, _grown, candidates, earlier_than, newest_first, recalling
from atlas_kit.llama.steps import Finish, Token

SETTINGS = AtlasSettings(window_size=64, memory_dim=8, omega_window=16, chunk_size=8, candidates=16)
ALWAYS = Recall("always", tokens=64)
TEMPLATE = "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
BRIDGE = "The bridge was built in 1932 by Anna Rask.\n"
LAKE = "The lake is deep, cold and green.\n"


@pytest.fixture
def engine():
    return FakeEngine(n_ctx=400, n_sequences=2, n_batch=64)


@pytest.fixture
def session(engine):
    with AtlasSession(engine, SETTINGS) as session:
        session.remember(Kind.DOCUMENT, BRIDGE + LAKE * 8, "notes.txt")
        session.remember(Kind.USER, "My dog is called Bella.")
        yield session


def stored(session):
    """Return (kind, source, text) of each episode."""
    return [(e.kind, e.source, session.episodes.text(e.start, e.stop)) for e in session.episodes.episodes]


def inside(session):
    """Return all that a question must not change."""
    memory = session.memory
    arrays = [array.tobytes() for group in memory.pin().groups().values() for array in group.values()]
    return (
        session.context_tokens, session.position, memory.tokens_seen, arrays, stored(session), session.learns,
        session.engine.save_sequence(session.sequence), session.counts.tokens_read,
    )  # fmt: skip


# --- storing ----------------------------------------------------------------------------------------------


def test_what_is_read_and_said_is_stored(engine):
    with AtlasSession(engine, SETTINGS) as session:
        session.feed("one ", source="a.txt")
        session.feed("two", source="a.txt")
        session.feed("other", source="b.txt")
        said = "".join(map(str, session.generate("Well? ", max_tokens=5, sampling=Sampling(temperature=0))))
        session.feed("not kept", kind=None)
        kinds = [(kind, source) for kind, source, _ in stored(session)]
        assert kinds == [
            (Kind.DOCUMENT, "a.txt"), (Kind.DOCUMENT, "b.txt"), (Kind.USER, ""), (Kind.ASSISTANT, ""),
        ]  # fmt: skip
        texts = [text for _, _, text in stored(session)]
        assert texts[:3] == ["one two", "other", "Well? "]
        assert len(session.episodes.tokens(*session.episodes.episodes[-1][:2])) == 5
        assert said.startswith(texts[3][:1])


def test_a_text_that_begins_again_is_another_episode(engine):
    with AtlasSession(engine, SETTINGS) as session:
        session.feed("one")
        session.forget_context()
        session.feed("two")
        assert [text for _, _, text in stored(session)] == ["one", "two"]


@pytest.mark.parametrize("sizes", [[1], [7, 50], [64, 3], [500]])
def test_any_split_stores_the_same(engine, sizes):
    text = (BRIDGE + LAKE) * 6
    with AtlasSession(engine, SETTINGS) as whole, AtlasSession(engine, SETTINGS) as parts:
        whole.feed(text, source="a")
        at, turn = 0, itertools.cycle(sizes)
        while at < len(text):
            size = next(turn)
            parts.feed(text[at : at + size], source="a")
            at += size
        one, other = whole.episodes.arrays(), parts.episodes.arrays()
        for name in ("tokens", "block_start", "episode_start", "kind", "position", "line"):
            assert np.array_equal(getattr(one, name), getattr(other, name)), name


def test_nothing_is_stored(engine):
    with AtlasSession(engine, SETTINGS, learn=False) as session:
        session.feed("abc")
        session.remember(Kind.USER, "abc")
        assert len(session.episodes) == 0
    with AtlasSession(engine, SETTINGS.replace(episode_tokens=0)) as session:
        session.feed("abc")
        session.remember(Kind.USER, "abc")
        assert session.episodes is None
        assert session.ask("abc?", max_tokens=2).pieces == ()
    with AtlasSession(engine, None) as session:
        session.feed("abc")
        assert session.episodes is None


def test_what_is_watched_is_not_stored(session):
    before = stored(session)
    with session.aside():
        session.feed("abc")
        session.perplexity("def")
    assert stored(session) == before


def test_the_generators_store_only_when_asked_to(engine):
    with AtlasSession(engine, SETTINGS) as session:
        session.run(session.reading(list(b"abc")))
        assert len(session.episodes) == 0


def test_control_tokens_are_not_stored(engine, monkeypatch):
    monkeypatch.setattr(FakeEngine, "piece", lambda self, token, **_: b"" if token == 65 else bytes([token]))
    with AtlasSession(engine, SETTINGS) as session:
        session.feed(list(b"xAyA"))
        assert stored(session)[0][2] == "xy"


def test_states_and_files_keep_them(session, engine, tmp_path):
    before = stored(session)
    session.save(tmp_path / "m.atlas")
    state = session.state()
    session.remember(Kind.USER, "more")
    with AtlasSession(engine, tmp_path / "m.atlas") as other:
        assert stored(other) == before
        assert other.ask("Who built the bridge?", recall=ALWAYS, keep=False, max_tokens=3).pieces
    session.restore(state)
    assert stored(session) == before
    session.reset()
    assert stored(session) == []


# --- asking -----------------------------------------------------------------------------------------------


def test_a_question_is_answered_from_what_was_stored(session):
    answer = session.ask("Who built the bridge?", recall=ALWAYS, keep=False, max_tokens=4)
    (piece,) = answer.pieces
    assert BRIDGE.strip() in piece.text
    assert (piece.kind, piece.source, piece.line, piece.start) == ("document", "notes.txt", 1, 0)
    assert piece.place.startswith("notes.txt, line 1, 20")
    assert answer.recalled.gain == piece.gain
    assert (len(answer.tokens), answer.reason) == (4, "length")
    document = answer.to_json()
    assert document["pieces"][0]["source"] == "notes.txt"
    assert document["question"] == "Who built the bridge?"


def test_the_line_of_a_piece_counts_from_the_document(session):
    answer = session.ask("Is the lake green?", recall=Recall("always", tokens=40), keep=False, max_tokens=2)
    (piece,) = answer.pieces
    assert piece.text.strip() == LAKE.strip()
    assert piece.line >= 2


def test_it_leaves_no_trace(session):
    session.feed("something before. ", kind=None)
    before = inside(session)
    going_on = Sampling(temperature=0)
    for mode in ("always", "off"):
        session.ask("Who built the bridge?", recall=Recall(mode, tokens=64), keep=False, max_tokens=4)
        assert inside(session) == before
    with AtlasSession(session.engine, SETTINGS) as other:
        other.feed("something before. ", kind=None)
        assert [str(t) for t in session.generate(max_tokens=6, sampling=going_on)] == [
            str(t) for t in other.generate(max_tokens=6, sampling=going_on)
        ]


def test_question_and_answer_enter_the_conversation_without_what_was_read_again(session):
    seen = session.memory.tokens_seen
    answer = session.ask("Who built the bridge?", recall=ALWAYS, max_tokens=4)
    said = [token.id for token in answer.tokens if token.id >= 0]
    expected = b"Question: Who built the bridge?\nAnswer:" + bytes(said)
    assert bytes(session.context_tokens) == expected
    assert (
        session.memory.tokens_seen == seen + len(expected) - len(said) - 1
    )  # its own words it does not learn
    assert [(kind, text) for kind, _, text in stored(session)][-2][1] == "Who built the bridge?"
    assert stored(session)[-1][0] == Kind.ASSISTANT
    assert session.talked == [("Who built the bridge?", answer.text)]


@pytest.mark.parametrize("mode", ["always", "off"])
def test_a_memory_does_not_learn_what_the_model_says(session, mode):
    """Else an answer begins like the one before it; what comes next is learned again."""
    seen = session.memory.tokens_seen
    first = session.ask("Who built the bridge?", recall=Recall(mode, tokens=64), max_tokens=9)
    assert len(first.tokens) == 9
    assert session.learns
    asked = len(b"Question: Who built the bridge?\nAnswer:")
    assert session.memory.tokens_seen == seen + asked - 1
    session.feed("abc", kind=None)
    assert session.memory.tokens_seen == seen + asked - 1 + len("abc")  # a: behind the answer's last token
    told = []
    session.ask("And why?", recall=Recall("off"), max_tokens=9, told=told.append, until=lambda: len(told) > 1)
    assert session.learns
    work = asking(session, "And why?", recall=Recall("off"))
    item = None
    while not isinstance(item, Token):
        item = session._next(work, item)
    work.close()
    assert session.learns
    with AtlasSession(session.engine, SETTINGS, learn=False) as other:
        other.ask("Who built the bridge?", recall=Recall(mode, tokens=64), max_tokens=3)
        assert not other.learns


def test_the_gate(session):
    def ask(**options):
        return session.ask(
            "Who built the bridge?",
            recall=Recall(tokens=64, lead=-9.0, beyond=-9.0, **options),
            keep=False,
            max_tokens=2,
        )

    gain = ask(mode="always").recalled.gain
    taken = ask(gate=gain)
    left = ask(gate=gain + 0.01)
    assert taken.pieces
    assert left.pieces == ()
    assert left.recalled.candidates == taken.recalled.candidates
    assert "nothing that was found helps enough" in left.recalled.reason
    assert ask(mode="off").recalled.candidates == ()


@pytest.mark.parametrize(
    ("gain", "usual", "taken"),
    [(1.0, 0.0, True), (1.0, 0.5, False), (1.0, -1.5, True), (0.2, -1.5, True), (0.2, 0.0, False), (2.5, 2.4, True)],
)  # fmt: skip
def test_a_piece_must_gain_more_than_any_text_does(gain, usual, taken, monkeypatch):
    """Some models find any question likelier behind any text; what gains very much is not compared with that."""
    read = []

    def likelihood(branch, tokens, asked):
        yield from ()
        text = bytes(tokens)
        read.append(text)
        return len(asked) * (gain if b"Tom" in text else usual if b"weather" in text else 0.0)

    monkeypatch.setattr(Branch, "likelihood", likelihood)
    with AtlasSession(FakeEngine(n_ctx=600, n_batch=64), SETTINGS) as session:
        session.remember(Kind.USER, "My cat is called Tom, and she is grey.")
        session.remember(Kind.USER, "The Danube is a long river.")
        answer = session.ask("What is my cat called?", keep=False, max_tokens=2)
        assert [piece.text for piece in answer.pieces] == ["My cat is called Tom, and she is grey."] * taken
        assert answer.recalled.gain == pytest.approx(gain)
        assert sum(b"weather" in text for text in read) == (gain < Recall().sure)
        always = session.ask("What is my cat called?", recall=Recall("always"), keep=False, max_tokens=2)
        assert always.pieces


def test_behind_a_chat_template_a_piece_is_not_compared_with_any_text(monkeypatch):
    def likelihood(branch, tokens, asked):
        yield from ()
        text = bytes(token for token in tokens if token < 256)
        return len(asked) * (1.0 if b"Tom" in text else 0.9 if b"weather" in text else 0.0)

    monkeypatch.setattr(Branch, "likelihood", likelihood)
    for template, taken in ((TEMPLATE, 1), (None, 0)):
        engine = FakeEngine(n_ctx=900, n_batch=64)
        engine.info = dataclasses.replace(engine.info, chat_template=template)
        with AtlasSession(engine, SETTINGS) as session:
            session.remember(Kind.USER, "My cat is called Tom, and she is grey.")
            assert len(session.ask("What is my cat called?", keep=False, max_tokens=2).pieces) == taken


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize(("mode", "blended"), [("auto", 0), ("off", 4)])
def test_what_has_nothing_to_do_with_the_memory_the_model_answers_alone(
    session, monkeypatch, mode, blended, keep
):
    asked = []
    monkeypatch.setattr(
        sessions, "choose_blended", lambda *given: asked.append(1) or choosing.choose_blended(*given)
    )
    answer = session.ask("Who built the bridge?", recall=Recall(mode, gate=99.0), keep=keep, max_tokens=4)
    assert answer.pieces == ()
    assert answer.recalled.unrelated is (mode == "auto")
    assert len(asked) == blended
    assert session.blends


@pytest.mark.parametrize("mode", ["always", "off"])
def test_an_answer_counts_as_generated_however_it_was_made(session, mode):
    answer = session.ask("Who built the bridge?", recall=Recall(mode, tokens=64), max_tokens=4)
    assert bool(answer.pieces) is (mode == "always")
    assert session.counts.tokens_generated == len(answer.tokens) == 4


def test_of_more_pieces_than_there_is_room_for_some_are_read(session):
    answer = session.ask(
        "Who built the bridge?", recall=Recall("always", 9, tokens=48), keep=False, max_tokens=2
    )
    assert 0 < len(answer.pieces) < 9
    none = session.ask("Who built the bridge?", recall=Recall("always", tokens=400), keep=False, max_tokens=2)
    assert (none.pieces, none.recalled.reason) == ((), "the context has no room for it")


@pytest.mark.parametrize("gate", [float("nan"), float("inf")])
def test_a_gate_is_a_number(gate):
    with pytest.raises(InvalidParamError, match="gate is"):
        Recall(gate=gate)


def test_what_is_still_in_the_context_is_not_read_again(session):
    session.feed(BRIDGE, kind=None)
    answer = session.ask(
        "Who built the bridge?", recall=Recall("always", tokens=48), keep=False, max_tokens=2
    )
    assert all("1932" not in piece.text for piece in answer.pieces)


@pytest.mark.parametrize("gain", [1.2, 0.5, 0.1])
def test_what_was_corrected_in_the_context_is_not_read_again(gain, monkeypatch):
    """What the context holds is judged, too: where that is newer and helps, the model answers from it."""
    engine = FakeEngine(n_ctx=600, n_batch=64)
    old, new = "My cat is called Tom, and she is grey.", "My cat is called Jerry now, and she is grey."
    monkeypatch.setattr(Branch, "likelihood", lambda branch, tokens, asked: _likelihood(tokens, asked, gain))
    with AtlasSession(engine, SETTINGS) as session:
        session.remember(Kind.USER, old)
        session.remember(Kind.ASSISTANT, "Fine.")
        session.feed(new, kind=Kind.USER)
        answer = session.ask("What is my cat called?", recall=Recall(), keep=False, max_tokens=2)
    assert [piece.text for piece in answer.pieces] == ([] if gain > 0.3 else [old])
    assert {old, new} <= {piece.text for piece in answer.recalled.candidates}


def _likelihood(tokens, asked, gain):
    """Return 0.9 nats per token for the old name, and ``gain`` for the new one."""
    yield from ()
    text = bytes(tokens)
    return len(asked) * (0.9 if b"Tom" in text else gain if b"Jerry" in text else 0.0)


def test_questions_are_not_read_again(session):
    for _ in range(2):
        answer = session.ask("What is my dog called?", recall=ALWAYS, max_tokens=2)
        session.forget_context()
        assert all("What is" not in piece.text for piece in answer.recalled.candidates)
    assert any("Bella" in piece.text for piece in answer.recalled.candidates)


def test_several_pieces(session):
    answer = session.ask(
        "Who built the bridge and the dog?",
        recall=Recall("always", segments=2, tokens=48),
        keep=False,
        max_tokens=2,
    )
    assert len(answer.pieces) == 2
    assert answer.pieces[0].start < answer.pieces[1].start


def test_a_follow_up_leans_on_the_question_before(session):
    before = [("Who built the bridge?", "Anna Rask.")]
    alone = session.ask("And when?", recall=ALWAYS, keep=False, max_tokens=2)
    leaning = session.ask("And when?", recall=ALWAYS, keep=False, max_tokens=2, before=before)
    assert all("bridge" not in piece.text for piece in alone.recalled.candidates)
    assert any("bridge" in piece.text for piece in leaning.recalled.candidates)
    session.ask("Who built the bridge?", recall=ALWAYS, max_tokens=2)
    session.engine.forget(session.sequence)
    session.forget_context()
    assert session.talked == []


@pytest.mark.parametrize(
    ("question", "leans"),
    [
        ("And when was that?", True), ("Why?", True), ("What does he eat?", True), ("Wie alt ist er?", True),
        ("那座桥在哪里？", True), ("When was the bridge built?", False), ("Wer hat die Brücke gebaut?", False),
    ],
)  # fmt: skip
def test_what_is_a_follow_up(question, leans):
    assert follows_up(question) is leans


@pytest.mark.parametrize(
    ("text", "plainly"),
    [
        ("I like tea.", True), ("It rains!", True), ("Ich mag Tee.", True), ("Thanks.", True),
        ("I like tea, and you?", False), ("I forgot the name of the dog.", False), ("My dog's name", False),
        ("The capital of France is", False), ("Tell me about tea.", False), ("Erzähl mir von Tee.", False),
        ("Je veux savoir son nom.", False), ("我喜欢茶。", False), ("Скажи мне имя.", False), ("...", False),
        ("", False),
    ],
)  # fmt: skip
def test_what_plainly_asks_for_nothing(text, plainly):
    assert states(text) is plainly


def test_nothing_is_looked_up_for_a_statement(session, monkeypatch):
    read = []
    monkeypatch.setattr(
        Branch, "likelihood", lambda branch, tokens, asked: read.append(1) or _likelihood([], asked, 0)
    )
    assert session.ask("My dog is called Rex.", recall=ALWAYS, keep=False, max_tokens=2).pieces
    assert read
    read.clear()
    for keep in (False, True):
        said = session.ask("My dog is called Rex.", recall=Recall(tokens=64), keep=keep, max_tokens=2)
        assert (said.pieces, said.recalled.candidates, read) == ((), (), [])
    assert session.ask("My dog is called?", recall=Recall(tokens=64), max_tokens=2).recalled.candidates


def test_a_context_that_is_full(session):
    session.feed("abc " * 120, kind=None)
    before = inside(session)
    assert session.ask("Who built the bridge?", recall=ALWAYS, keep=False, max_tokens=4).pieces
    assert inside(session) == before
    assert session.ask("Who built the bridge?", recall=ALWAYS, max_tokens=4).pieces


def test_a_context_that_is_too_small():
    with AtlasSession(FakeEngine(n_ctx=64), SETTINGS) as session:
        session.remember(Kind.DOCUMENT, BRIDGE)
        answer = session.ask("Who built the bridge?", recall=ALWAYS, keep=False, max_tokens=2)
        assert answer.pieces == ()
        assert "no room" in answer.recalled.reason


def test_a_model_that_takes_nothing_back():
    with AtlasSession(FakeEngine(n_ctx=400, n_batch=64, shiftable=False), SETTINGS) as session:
        session.remember(Kind.DOCUMENT, BRIDGE + LAKE)
        session.feed("before. ", kind=None)
        before = inside(session)
        assert session.ask("Who built the bridge?", recall=ALWAYS, keep=False, max_tokens=4).pieces
        assert inside(session) == before


def test_what_is_wrong(session):
    with pytest.raises(InvalidParamError, match="empty"):
        session.ask("  ")
    for wrong in ({"mode": "maybe"}, {"segments": 0}, {"candidates": True}, {"tokens": "many"}):
        with pytest.raises(InvalidParamError):
            Recall(**wrong)


def test_a_decode_that_fails_leaves_the_session_as_it_was(session, monkeypatch):
    session.feed("before. ", kind=None)
    before = inside(session)
    decode, left = session.engine.decode, iter([True, True, False])

    def failing(feeds, **options):
        if not next(left, True):
            raise RuntimeError("out of luck")
        return decode(feeds, **options)

    monkeypatch.setattr(session.engine, "decode", failing)
    with pytest.raises(RuntimeError):
        session.ask("Who built the bridge?", recall=ALWAYS, keep=False, max_tokens=4)
    assert inside(session) == before


def test_somebody_does_not_want_more(session):
    said = []
    answer = session.ask(
        "Who built the bridge?", recall=ALWAYS, told=said.append, until=lambda: len(said) >= 2, max_tokens=9
    )
    assert (len(answer.tokens), answer.reason) == (2, "cancelled")
    assert bytes(session.context_tokens).endswith(bytes(token.id for token in said))


def test_a_scheduler_asks_several_at_once(engine):
    with AtlasSession(engine, SETTINGS) as one, AtlasSession(engine, SETTINGS) as other:
        for session, text in ((one, BRIDGE), (other, LAKE)):
            session.remember(Kind.DOCUMENT, text)
        asked = (one, "the bridge?"), (other, "the lake?")
        alone = [s.ask(q, recall=ALWAYS, keep=False, max_tokens=4) for s, q in asked]
        with Scheduler(engine) as scheduler:
            jobs = [
                scheduler.submit(s, asking(s, q, recall=ALWAYS, keep=False, max_tokens=4)) for s, q in asked
            ]
            answers = [job.result(20) for job in jobs]
    assert [answer.text for answer in answers] == [answer.text for answer in alone]
    assert [answer.pieces[0].text for answer in answers] == [BRIDGE, LAKE]
    assert [len(job.tokens) for job in jobs] == [len(answer.tokens) for answer in answers]


def test_a_follow_up_is_answered_behind_the_question_before(session, monkeypatch):
    read = []
    decode = session.engine.decode
    monkeypatch.setattr(
        session.engine, "decode", lambda feeds, **o: read.extend(feeds[0].tokens) or decode(feeds, **o)
    )
    before = [("Who built the bridge?", "Anna Rask.")]
    answer = session.ask("And when?", recall=ALWAYS, keep=False, max_tokens=2, before=before)
    text = bytes(token for token in read if token < 256).decode("utf-8", "replace")
    end = f"Question: Who built the bridge?\nAnswer: Anna Rask.\n\n{answer.pieces[0].text.strip()}"
    assert end in text
    assert "Question: Who built the bridge? Anna Rask. And when?" in text  # as it was judged


def test_what_was_said_later_corrects(engine):
    with AtlasSession(engine, SETTINGS) as session:
        for text in (
            "The car is in Mill Street.",
            "It rains.",
            "The car is in Lake Street.",
            "The cat sleeps.",
        ):
            session.remember(Kind.USER, text)
        answer = session.ask("Where is the car?", recall=ALWAYS, keep=False, max_tokens=2)
        texts = [piece.text for piece in answer.recalled.candidates]
        assert texts.index("The car is in Lake Street.") < texts.index("The car is in Mill Street.")


def piece_of(text, gain, start=0, kind="user"):
    return Piece(text, kind, "", start, start, start + 9, 1, 1.0, gain)


OTHERS = [piece_of(f"Something else that is the matter of number{n}.", 0.1 - n / 10, n) for n in range(6)]


@pytest.mark.parametrize(
    ("later", "gain", "kind", "corrects"),
    [
        ("The lodger pays 600 from May on instead.", 1.2, "user", True),
        ("I moved the lodger to the attic.", 1.1, "user", True),
        ("The lodger is from Porto.", 1.2, "user", False),  # says nothing of a change
        ("The garage is 90 pounds now.", 1.2, "user", False),  # another matter
        ("The lodger pays 600 now.", 0.9, "user", False),  # helps too little
        ("The lodger pays 600 now.", 1.2, "assistant", False),  # only said by the model
        ("Der Lodger zahlt jetzt 600.", 1.2, "user", True),
    ],
)
def test_a_later_turn_that_says_that_it_is_otherwise_corrects(later, gain, kind, corrects):
    old = piece_of("The lodger pays 640.", 2.0, 100)
    pieces = [old, piece_of(later, gain, 900, kind), *OTHERS]
    found = newest_first(pieces, Recall())
    assert (found[0].text == later) is corrects
    assert sorted(found, key=id) == sorted(pieces, key=id)
    earlier = dataclasses.replace(pieces[1], start=1, time_ms=1)
    assert newest_first([old, earlier, *OTHERS], Recall())[0] is old


@pytest.mark.parametrize(
    ("asked", "old", "later", "gain", "corrects"),
    [
        ("What is my shoe size?", "My shoe size is 42.", "They measured: my shoe size is 43.", 1.2, True),
        ("When does the train to Perth leave?", "The train to Perth leaves at 7.",
         "The train to Perth leaves at 8.", 1.5, True),
        ("When does the train to Perth leave?", "The train to Perth leaves at 7.",
         "The train to Ayr leaves at 8.", 1.5, False),  # a look-alike: another train
        ("Who is our vet?", "Our vet is Doctor Marsh.", "Doctor Marsh has retired: our vet is Oduya.", 0.2, True),
        ("Who is our vet?", "Our vet is Doctor Marsh.", "Doctor Marsh likes tea.", 0.2, False),
        ("Who is our vet?", "Our vet is Doctor Marsh.", "It rained in our street.", 1.9, True),  # as like
        ("Wer ist der Arzt?", "Der Arzt ist Frau Mohn.", "Der Arzt ist Herr Klee.", 1.2, True),
    ],
)  # fmt: skip
def test_what_says_the_same_of_the_same_later_wins_and_the_older_can_be_seen(
    asked, old, later, gain, corrects
):
    said = frozenset(words(asked))
    pieces = [piece_of(old, 2.0, 100), piece_of(later, gain, 900), *OTHERS]
    found = newest_first(pieces, Recall(), said)
    assert (found[0].text == later) is corrects
    earlier = earlier_than(found[0], found, Recall(), said)
    assert [piece.text for piece in earlier] in ([], [old])
    if corrects and later != "It rained in our street.":
        assert earlier
    assert newest_first(pieces, Recall(), frozenset())[0].text in (old, later)


def test_an_answer_that_repeats_what_was_said_hides_no_correction():
    """A small model answers "The key is under the mat." with the same words."""
    old, new = "The key is under the mat.", "The key is in the shed."
    pieces = [
        piece_of(new, 2.9, 300), piece_of(new, 2.8, 400, "assistant"),
        piece_of(old, 2.5, 100), piece_of(old, 2.4, 200, "assistant"),
    ]  # fmt: skip
    said = frozenset(words("Where is the key?"))
    found = newest_first(pieces, Recall(), said)
    assert found[0].text == new
    assert [piece.text for piece in earlier_than(found[0], found, Recall(), said)] == [old]


def test_what_was_corrected_is_told_with_the_answer(engine, monkeypatch):
    def likelihood(branch, tokens, asked):
        yield from ()
        return len(asked) * (2.0 if b"Mill" in bytes(tokens) else 1.2 if b"Lake" in bytes(tokens) else 0.0)

    monkeypatch.setattr(Branch, "likelihood", likelihood)
    with AtlasSession(engine, SETTINGS) as session:
        for text in (
            "The car is in Mill Street.",
            "It rains.",
            "The car is in Lake Street.",
            "The cat sleeps.",
        ):
            session.remember(Kind.USER, text)
        answer = session.ask("Where is the car?", recall=Recall(), keep=False, max_tokens=2)
        assert [piece.text for piece in answer.pieces] == ["The car is in Lake Street."]
        assert [piece["text"] for piece in answer.to_json()["earlier"]] == ["The car is in Mill Street."]


@given(st.permutations(range(8)), st.lists(st.floats(-1, 4), min_size=8, max_size=8))
def test_the_newest_comes_first_whatever_the_order_was(order, gains):
    """Nothing is lost, and what stands in front is the best one or a later one that helps."""
    texts = ["The cat is red.", "The cat is blue now.", "A dog barks.", "It rains again."]
    pieces = [
        piece_of(texts[n % 4], gain, n, "assistant" if n > 5 else "user") for n, gain in enumerate(gains)
    ]
    ranked = sorted((pieces[n] for n in order), key=lambda piece: -piece.gain)
    found = newest_first(ranked, Recall())
    assert sorted(map(id, found)) == sorted(map(id, ranked))
    assert found[0] is ranked[0] or (found[0].start > ranked[0].start and found[0].gain >= Recall().gate)


LINES = "".join(f"Line {number} tells of the thing {number * 37 % 100}.\n" for number in range(1, 60))


@settings(max_examples=30, deadline=None)
@given(first=st.integers(0, len(LINES) - 2), length=st.integers(1, 60), most=st.integers(60, 300))
def test_a_piece_grows_in_its_document_and_keeps_its_place(first, length, most):
    """Also beyond the segment that it was found in; what it was stays inside, and its line is right."""
    engine = FakeEngine()
    episodes = Episodes(engine.piece, engine.info.n_vocab)
    for source, text in (("before", "Before.\n" * 9), ("doc", LINES), ("after", "After.\n" * 9)):
        episodes.begin(Kind.DOCUMENT, source)
        episodes.append(engine.tokenize(text))
    document = episodes.episodes[1]
    start, stop = document.start + first, min(document.start + first + length, document.stop)
    block = next(
        one for number in range(episodes.blocks) if (one := episodes.segment(number)).stop > start
        if one.source == "doc"
    )  # fmt: skip
    line = 1 + LINES[:first].count("\n")
    text = episodes.text(start, stop)
    piece = Piece(
        text, "document", "doc", 0, start, stop, line, 1.0, segment=(block.start, block.stop, block.line)
    )
    found = _grown(episodes, piece, Recall(tokens=most))
    assert document.start <= found.start <= start < stop <= found.stop <= document.stop
    assert found.stop - found.start <= max(most, stop - start)
    assert found.text == episodes.text(found.start, found.stop)
    assert found.line == 1 + LINES[: found.start - document.start].count("\n")


def test_what_the_model_said_itself_counts_less(engine, monkeypatch):
    """Where the user said something that helps as much, that is read again; alone it must help more."""
    monkeypatch.setattr(
        Branch, "likelihood",
        lambda branch, tokens, asked: _likelihood(tokens, asked, 0.7),
    )  # fmt: skip
    for said, gain in (("It is Tom.", 0.9), ("It is Jerry.", 0.7)):
        with AtlasSession(engine, SETTINGS) as session:
            session.remember(Kind.ASSISTANT, said)
            alone = session.ask(
                "What is my cat called?", recall=Recall(gate=0.3, beyond=0.0), keep=False, max_tokens=2
            )
            assert alone.recalled.gain == pytest.approx(gain)
            assert bool(alone.pieces) is (gain > 0.8)
    with AtlasSession(engine, SETTINGS) as session:
        session.remember(Kind.USER, "My cat is Jerry.")
        session.remember(Kind.ASSISTANT, "It is Tom.")
        answer = session.ask("What is my cat called?", recall=Recall(), keep=False, max_tokens=2)
        assert [piece.kind for piece in answer.pieces] == ["user"]


@pytest.mark.parametrize(("best", "next_one", "taken"), [(0.35, 0.34, 0), (0.35, 0.2, 1), (0.7, 0.69, 1)])
def test_what_all_pieces_do_is_chance(engine, monkeypatch, best, next_one, taken):
    def likelihood(branch, tokens, asked):
        yield from ()
        text = bytes(tokens)
        return len(asked) * (best if b"tower" in text else next_one if b"river" in text else 0.0)

    monkeypatch.setattr(Branch, "likelihood", likelihood)
    with AtlasSession(engine, SETTINGS) as session:
        session.remember(Kind.DOCUMENT, "The tower is high.", "a")
        session.remember(Kind.DOCUMENT, "The river is long.", "b")
        answer = session.ask(
            "Is the tower or the river old?", recall=Recall(beyond=0.0), keep=False, max_tokens=2
        )
        assert len(answer.pieces) == taken


def test_a_document_does_not_correct_itself():
    def piece(kind, source, start, time, gain):
        return Piece("", kind, source, time, start, start + 9, 1, 1.0, gain)

    one, later = piece("document", "a", 0, 5, 2.0), piece("document", "a", 90, 5, 1.9)
    read_again, other = piece("document", "a", 300, 9, 1.8), piece("document", "b", 400, 9, 1.9)
    assert newest_first([one, later, other], ALWAYS)[0] is one
    assert newest_first([one, later, other, read_again], ALWAYS)[0] is read_again
    turn, much_worse = piece("user", "", 500, 9, 1.9), piece("user", "", 900, 10, 1.0)
    assert newest_first([one, turn], ALWAYS)[0] is one
    assert newest_first([piece("user", "", 3, 1, 2.0), turn, much_worse], ALWAYS)[0] is turn
    low = piece("user", "", 900, 10, 0.2)
    assert newest_first([piece("user", "", 3, 1, 0.4), low], Recall(gate=0.3))[0] is not low


def test_a_control_token_in_a_file_is_not_read_again(engine, monkeypatch):
    """A file that somebody made may hold any token of the vocabulary."""
    read = []
    decode = engine.decode
    with AtlasSession(engine, SETTINGS) as session:
        session.episodes.begin(Kind.DOCUMENT, "made.txt")
        session.episodes.append([*b"The bridge ", 256, *b"was built by Anna."])
        monkeypatch.setattr(
            engine, "piece", lambda token, special=False: bytes([token]) if token < 256 else b""
        )
        monkeypatch.setattr(
            engine, "decode", lambda feeds, **o: read.extend(feeds[0].tokens) or decode(feeds, **o)
        )
        answer = session.ask("Who built the bridge?", recall=ALWAYS, keep=False, max_tokens=2)
    assert "bridge was built" in answer.pieces[0].text
    assert b"bridge was built" in bytes(token for token in read if token < 256)
    assert 256 not in read


def test_what_is_read_again_and_the_question_are_one_text(engine, monkeypatch):
    """A token may reach from one into the other, as it would in a text."""
    read = []
    monkeypatch.setattr(Branch, "read", lambda branch, tokens: read.append(list(tokens)) or iter(()))
    monkeypatch.setattr(Branch, "likelihood", lambda branch, tokens, asked: _likelihood(tokens, asked, 0.7))
    tokenize = engine.tokenize
    monkeypatch.setattr(
        engine, "tokenize",
        lambda text, **options: tokenize(text.replace(": What", ":\0What").replace("\n", " "), **options),
    )  # fmt: skip
    with AtlasSession(engine, SETTINGS) as session:
        session.remember(Kind.USER, "  My cat is Jerry.  ")
        session.ask("What is my cat called?", recall=ALWAYS, keep=False, max_tokens=2)
    assert any(
        bytes(tokens).endswith(b"My cat is Jerry.  Question:\0What is my cat called?") for tokens in read
    )


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize(
    ("answers", "tried", "said"),
    [
        ([["Anna ", "Rask."]], 1, "Anna Rask."),
        ([["Who ", "built it?"], ["Anna ", "Rask."]], 2, "Anna Rask."),
        ([["Who ", "built it?"], ["The ", "bridge."]], 2, "Who built it?"),
        ([["So ", "it ", "is. "] * 20, ["The ", "bridge."]], 2, "The bridge."),
        ([[""], ["In 1932."]], 2, "In 1932."),
        ([[], []], 2, ""),
    ],
)
def test_an_answer_that_says_nothing_of_the_piece_is_asked_for_again(
    session, monkeypatch, answers, tried, said, keep
):
    seen = []

    def answering(talk, tokens, *, alone=False):
        yield from talk._session.reading(tokens, score=False)
        seen.append(bytes(talk._session.context_tokens).decode())
        tokens = [Token(number, text, None) for number, text in enumerate(answers[len(seen) - 1])]
        yield from tokens
        return Finish("stop"), tokens, 1.0

    monkeypatch.setattr(asking_module._Talk, "answering", answering)
    told = []
    before = inside(session)
    answer = session.ask("Who built the bridge?", recall=ALWAYS, keep=keep, told=told.append)
    assert (answer.text, len(seen)) == (said, tried)
    assert "".join(token.text for token in told).strip() == said
    assert "bridge was built" in seen[0]
    if tried == 2:
        front, _, behind = seen[1].partition("\n\n")
        assert front == "Question: Who built the bridge?"
        assert behind == seen[0]
    assert keep or inside(session) == before


def test_questions_share_what_they_begin_with():
    engine = FakeEngine(n_ctx=400, n_batch=64)
    monkey = ("system prompt " * 4).encode()
    read = []
    decode = engine.decode
    engine.decode = lambda feeds, **o: read.append(list(feeds[0].tokens)) or decode(feeds, **o)
    with AtlasSession(engine, SETTINGS) as session:
        session.remember(Kind.DOCUMENT, BRIDGE)
        form = Form(tuple(monkey), tuple(b"Read: "), tuple(b" Say: "), (), tuple(b"!"), tuple(b" "))
        found = candidates(engine, session.episodes, "the bridge?", ALWAYS)
        outcomes = []
        for _ in range(2):
            branch = Branch(session)
            outcomes.append(
                session.run(recalling(branch, session.episodes, form, list(b"the bridge?"), found, ALWAYS))
            )
            branch.close()
    assert outcomes[0] == outcomes[1]
    assert read.count(list(monkey[:-1])) == 1
