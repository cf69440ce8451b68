"""What is like a question without sharing a word with it, by vectors that are made up here."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from atlas_kit.episodes import TURNS, Episodes, Kind
from atlas_kit.llama import FakeEngine
from atlas_kit.llama.engine import ModelInfo
from atlas_kit.llama.excerpts import grown, windows
from atlas_kit.llama.likeness import Likeness, likeness_of
from atlas_kit.llama.output_matrix import OutputRows
from atlas_kit.llama.recalling import Recall, candidates

PLAIN = "The water was cold that day .\nNobody went near the shore .\n"
SAID = "what kills insects ? wasps die of soap and the cat sleeps here every day"
WORDS = sorted({*SAID.split(), *PLAIN.split()})
ALIKE = [("insects", "wasps"), ("kills", "die")]


class Words(FakeEngine):
    """Whose tokens are whole words, some of which have nearly the same vector."""

    def __init__(self) -> None:
        super().__init__(n_ctx=256)
        self.made = 0
        self.pieces = [b" " + word.encode() for word in WORDS] + [b"\n"]
        matrix = np.random.default_rng(1).standard_normal((len(self.pieces), 32)).astype(np.float32)
        for one, other in ALIKE:
            matrix[WORDS.index(other)] = matrix[WORDS.index(one)] + 0.2 * matrix[WORDS.index(other)]
        self.matrix = matrix
        info = {name: getattr(self.info, name) for name in ModelInfo.__dataclass_fields__}
        self.info = ModelInfo(**{**info, "n_vocab": len(self.pieces)})

    def tokenize(self, text: str, *, special: bool = False) -> list[int]:
        tokens = []
        for number, line in enumerate(text.split("\n")):
            tokens += ([len(WORDS)] if number else []) + [WORDS.index(word) for word in line.split()]
        return tokens

    def piece(self, token: int, *, special: bool = False) -> bytes:
        return self.pieces[token]

    def output_rows(self) -> OutputRows:
        self.made += 1
        return OutputRows(lambda tokens: self.matrix[tokens], *self.matrix.shape)


@pytest.fixture
def engine():
    return Words()


@pytest.fixture
def episodes(engine):
    found = Episodes(engine.piece, engine.info.n_vocab)
    for kind, source, text in (
        (Kind.DOCUMENT, "a.txt", PLAIN * 20),
        (Kind.DOCUMENT, "b.txt", PLAIN * 2 + "wasps die of soap .\n" + PLAIN * 2),
        (Kind.USER, "", "the cat sleeps here every day"),
    ):
        found.begin(kind, source)
        found.append(engine.tokenize(text))
    return found


def found(engine, episodes, text, **options):
    likeness, arrays = Likeness(engine), episodes.arrays()
    question = likeness.question(arrays, engine.tokenize(text))
    return [episodes.text(one.start, one.stop) for one in likeness.search(arrays, question, 4, **options)]


def test_what_shares_no_word_is_found(engine, episodes):
    assert "wasps die" in found(engine, episodes, "kills insects")[0]
    assert "wasps die" in found(engine, episodes, "wasps")[0]


def test_nothing_is_like_it(engine, episodes):
    empty = Episodes(engine.piece, engine.info.n_vocab)
    assert found(engine, empty, "insects") == []
    assert found(engine, episodes, "") == []


def test_only_some_kinds_are_searched(engine, episodes):
    assert all("cat sleeps" in text for text in found(engine, episodes, "cat insects", kinds=TURNS))
    assert found(engine, episodes, "cat", kinds=TURNS)


def test_segments_do_not_overlap(engine, episodes):
    likeness, arrays = Likeness(engine), episodes.arrays()
    question = likeness.question(arrays, engine.tokenize("soap shore insects cat"))
    spans = sorted((one.start, one.stop) for one in likeness.search(arrays, question, 50))
    assert len(spans) >= 2
    assert all(before[1] <= after[0] for before, after in itertools.pairwise(spans))


def test_positions_are_absolute(engine, episodes):
    want = found(engine, episodes, "insects")[0]
    episodes.forget(source="a.txt")
    assert found(engine, episodes, "insects")[0] == want


def test_what_is_new_is_found_and_the_vectors_are_made_once(engine, episodes):
    likeness = Likeness(engine)
    asked = engine.tokenize("insects")
    before = likeness.search(episodes.arrays(), likeness.question(episodes.arrays(), asked), 3)
    episodes.begin(Kind.USER)
    episodes.append(engine.tokenize("every insects"))
    arrays = episodes.arrays()
    after = likeness.search(arrays, likeness.question(arrays, asked), 3)
    assert after[0].stop == episodes.end
    assert (before[0].start, before[0].stop) in [(one.start, one.stop) for one in after]
    Likeness(engine).question(arrays, asked)
    assert engine.made == 1


def test_a_longer_text_gains_nothing_by_chance(engine, episodes):
    """The score is what chance would give: the same match in a longer segment counts less."""
    question = Likeness(engine).question(episodes.arrays(), engine.tokenize("wasps"))
    nearest = question.nearest(engine.tokenize("wasps die"))
    assert question.score(nearest, 200) < question.score(nearest, 20)


def segment_of(episodes, source):
    every = map(episodes.segment, range(episodes.blocks))
    return next(segment for segment in every if segment.source == source)


def test_the_likest_window_is_about_the_question(engine, episodes):
    segment = segment_of(episodes, "b.txt")
    question = Likeness(engine).question(episodes.arrays(), engine.tokenize("what kills insects"))
    best = max(windows(episodes, segment, question, frozenset(), 16), key=lambda one: one[:3])
    assert "wasps die" in episodes.text(best.start, best.stop)
    assert best.size == best.stop - best.start <= 16
    assert episodes.text(segment.start, best.start).rstrip().endswith(".")  # whole sentences
    whole = max(windows(episodes, segment, question, frozenset(), 500), key=lambda one: one[:3])
    assert (whole.start, whole.stop) == (segment.start, segment.stop)


@given(most=st.integers(1, 90), question=st.sampled_from(["what kills insects", "the cat", "here"]))
def test_windows_are_whole_sentences_and_grow_within_their_segment(most, question):
    """Whatever the length: inside the segment, not too long, and what is grown holds what it was grown from."""
    engine = Words()
    episodes = Episodes(engine.piece, engine.info.n_vocab)
    episodes.begin(Kind.DOCUMENT, "a.txt")
    episodes.append(engine.tokenize(PLAIN * 2 + "wasps die of soap and the cat sleeps here\n" + PLAIN))
    segment = segment_of(episodes, "a.txt")
    asked = Likeness(engine).question(episodes.arrays(), engine.tokenize(question))
    found = windows(episodes, segment, asked, frozenset(), most)
    assert found
    for one in found:
        assert segment.start <= one.start < one.stop <= segment.stop
        assert one.size == one.stop - one.start <= most
        for longer in (most, 2 * most, 500):
            start, stop = grown(episodes, segment, one.start, one.stop, longer)
            assert segment.start <= start <= one.start < one.stop <= stop <= segment.stop
            assert stop - start <= longer
    assert grown(episodes, segment, found[0].start, found[0].stop, 500) == (segment.start, segment.stop)


def test_each_store_has_an_index_of_its_own(engine, episodes):
    other = Episodes(engine.piece, engine.info.n_vocab)
    one = likeness_of(engine, episodes)
    assert likeness_of(engine, episodes) is one
    assert likeness_of(engine, other) is not one
    assert likeness_of(Words(), episodes) is not one


@given(
    st.lists(
        st.tuples(
            st.lists(st.sampled_from(WORDS), min_size=1, max_size=200), st.booleans(), st.booleans(), st.booleans()
        ),
        min_size=1, max_size=8,
    )
)  # fmt: skip
def test_an_index_that_follows_is_the_one_that_is_made_anew(steps):
    engine = Words()
    episodes = Episodes(engine.piece, engine.info.n_vocab, limit=1024)
    followed = Likeness(engine)
    for words, begins, asks, forgets in steps:
        if begins:
            episodes.begin(Kind.USER)
        episodes.append(engine.tokenize(" ".join(words)))
        if forgets:
            episodes.forget(about=words[0]) if any(char.isalnum() for char in words[0]) else None
        if asks:
            followed.question(episodes.arrays(), [1])
    arrays, fresh = episodes.arrays(), Likeness(engine)
    if not len(arrays.tokens):
        assert followed.search(arrays, followed.question(arrays, [1]), 5) == []
        return
    asked = engine.tokenize("what kills insects and the cat")
    one, other = followed.question(arrays, asked), fresh.question(arrays, asked)
    there = np.isin(followed._tokens, fresh._tokens)
    np.testing.assert_array_equal(followed._tokens[there], fresh._tokens)
    np.testing.assert_array_equal(followed._blocks, fresh._blocks)
    np.testing.assert_array_equal(np.diff(followed._first)[there], np.diff(fresh._first))
    np.testing.assert_allclose(one.tails[:, there], other.tails, atol=1e-6)
    assert followed.search(arrays, one, 5) == fresh.search(arrays, other, 5)


# --- what the model said, among the pieces that are judged ---------------------------------------------------


def judged(engine, question, *turns):
    """Return the texts of the pieces to be judged, in their order; ``turns`` are (kind, text), one after the other."""
    episodes = Episodes(engine.piece, engine.info.n_vocab)
    for kind, text in ((Kind.DOCUMENT, PLAIN * 20), *turns):
        episodes.begin(kind, "a.txt" if kind == Kind.DOCUMENT else "")
        episodes.append(engine.tokenize(text))
    return [piece.text.strip() for piece in candidates(engine, episodes, question, Recall())]


def test_what_was_said_comes_before_what_the_model_said_to_it(engine):
    said = (Kind.USER, "wasps sleeps near here ."), (Kind.ASSISTANT, "wasps die .")
    assert judged(engine, "kills insects", *said)[:2] == ["wasps sleeps near here .", "wasps die ."]
    # unless the model was asked for it, then or now
    asked = (Kind.USER, "what kills insects ?"), (Kind.ASSISTANT, "wasps die .")
    assert judged(engine, "kills insects", (Kind.USER, "wasps sleeps ."), *asked)[0] == "wasps die ."


def test_the_words_of_an_answer_lead_to_what_it_answers(engine):
    """That itself has no word in common with the question, and none that is like one of it."""
    told, answered = (Kind.USER, "the shore ."), (Kind.ASSISTANT, "wasps die .")
    found = judged(engine, "kills insects", told, answered)
    assert found.index("the shore .") < found.index("wasps die .")
    apart = judged(engine, "kills insects", told, (Kind.DOCUMENT, PLAIN), answered)
    assert apart.index("wasps die .") < [*apart, "the shore ."].index("the shore .")
