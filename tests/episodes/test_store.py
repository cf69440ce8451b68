"""The store of episodes: found with their place, bounded, forgotten, saved; on a vocabulary of bytes."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from episode_builder import BYTES, CONTROL, N_VOCAB, as_lists, found, loaded, piece, say, store
from hypothesis import given
from hypothesis import strategies as st

from atlas_kit.episodes import TURNS, EpisodeArrays, Episodes, Kind
from atlas_kit.errors import InvalidParamError

WORDS = ("red", "lighthouse", "harbour", "Ines", "winter", "bread", "猫が", "12", "the", "a")
SENTENCES = st.lists(st.sampled_from(WORDS), min_size=1, max_size=60).map(
    lambda some: " ".join(some).replace("winter", "winter.\n")
)


def the_same(one: Episodes, other: Episodes) -> None:
    """Two stores hold the same and find the same."""
    assert as_lists(one.arrays()) == as_lists(other.arrays())
    for question in ("red lighthouse", "猫が the bread 12"):
        for kinds in (None, {Kind.DOCUMENT}, TURNS):
            first, second = (each.search(question, 5, kinds=kinds) for each in (one, other))
            assert [f.segment for f in first] == [f.segment for f in second]
            np.testing.assert_allclose([f.score for f in first], [f.score for f in second], rtol=1e-5)


# --- finding -------------------------------------------------------------------------------------------------


def test_what_was_read_is_found_with_its_place():
    episodes = store()
    text = "The lighthouse is red.\n" * 9 + "The harbour master is called Ines.\n"
    say(episodes, text, Kind.DOCUMENT, "a.txt")
    say(episodes, "My cat is called Tom.", time_ms=2000)
    (hit,) = episodes.search("Who is the harbour master?", 1)
    assert "Ines" in episodes.text(hit.segment.start, hit.segment.stop)
    assert hit.segment[2:5] == (Kind.DOCUMENT, "a.txt", 1000)
    assert hit.segment.line == 1 + text[: hit.segment.start].count("\n") > 1
    assert found(episodes, "What is the cat called?", 3, kinds={Kind.USER}) == ["My cat is called Tom."]


def test_what_has_just_been_read_is_found():
    episodes = store()
    say(episodes, "The winter was long", Kind.DOCUMENT)
    assert found(episodes, "winter") == ["The winter was long"]
    episodes.append(b" and the summer was short")
    assert found(episodes, "summer") == ["The winter was long and the summer was short"]
    say(episodes, "Summer it is.")
    assert found(episodes, "summer", 3, kinds={Kind.USER}) == ["Summer it is."]


def test_no_result_overlaps_another():
    episodes = store()
    say(episodes, "The harbour is open and deep.\n" * 60, Kind.DOCUMENT, "a.txt")
    say(episodes, "The harbour is closed.")
    segments = sorted(hit.segment for hit in episodes.search("harbour", 99))
    assert len(segments) >= 5
    assert all(one.stop <= other.start for one, other in itertools.pairwise(segments))


def test_a_segment_never_reaches_into_the_next_episode():
    episodes = store()
    say(episodes, "word " * 40, Kind.DOCUMENT, "a.txt")
    say(episodes, "more " * 40, Kind.DOCUMENT, "b.txt")
    for block in range(episodes.blocks):
        segment = episodes.segment(block)
        assert set(episodes.text(segment.start, segment.stop).split()) in ({"word"}, {"more"})
        assert segment.source == ("a.txt" if segment.start < 200 else "b.txt")


def test_turns_are_rare_among_turns():
    """A word that every page of a book has can be the one that counts in a conversation."""
    episodes = store()
    say(
        episodes,
        "The key opens the door of the harbour office, and the key is of brass.\n" * 100,
        Kind.DOCUMENT,
    )
    say(episodes, "I like the sea.")
    say(episodes, "The key lies below the pot.")
    say(episodes, "The weather is the best of the year.")
    assert found(episodes, "Where is the key?", kinds=TURNS) == ["The key lies below the pot."]
    assert "brass" in found(episodes, "Where is the key?")[0]


def test_the_newer_of_two_turns_is_first_and_the_older_can_be_seen():
    episodes = store()
    say(episodes, "My sister lives in Lyon.")
    say(episodes, "What a nice town.", Kind.ASSISTANT)
    say(episodes, "My sister lives in Porto.")
    asked = found(episodes, "Where does my sister live?", 2)
    assert asked == ["My sister lives in Porto.", "My sister lives in Lyon."]


def test_a_question_asked_before_is_not_its_answer():
    episodes = store()
    say(
        episodes,
        "Since last year my sister is a teacher and lives in a flat in Lyon, not far from the river.",
    )
    say(episodes, "Where does my sister live?")
    say(episodes, "Good to know.", Kind.ASSISTANT)
    assert "Lyon" in found(episodes, "Where does my sister live?")[0]


def test_an_answer_is_found_with_the_question_that_it_answers():
    episodes = store()
    say(episodes, "I have a cat.")
    say(episodes, "How nice. What is she called?", Kind.ASSISTANT, time_ms=2000)
    say(episodes, "Murmel. ", time_ms=3000)
    say(episodes, "What a good name. Are you from here?", Kind.ASSISTANT)
    say(episodes, "Why do you ask?")
    for kinds in (None, TURNS):
        (hit,) = episodes.search("called", 1, kinds=kinds)
        assert episodes.text(hit.segment.start, hit.segment.stop) == "How nice. What is she called?Murmel. "
        assert (hit.segment.kind, hit.segment.time_ms) == (Kind.USER, 3000)
        assert hit.segment == episodes.segment(1)
    assert episodes.follows().tolist() == [False, True, False, False, False]
    assert found(episodes, "called", kinds={Kind.ASSISTANT}) == ["How nice. What is she called?"]
    assert found(episodes, "good name") == ["What a good name. Are you from here?"]
    episodes.forget(about="Murmel")
    assert found(episodes, "called") == ["How nice. What is she called?"]


def test_what_is_still_in_the_context_can_be_left_out():
    episodes = store()
    say(episodes, "The harbour master is Ines.\n" * 20, Kind.DOCUMENT, "a.txt")
    say(episodes, "The harbour master is Ines, I say.")
    start = episodes.episodes[1].start
    for before in (start, start - 20, 200, 100, 0):
        hits = episodes.search("harbour master", 9, before=before)
        assert all(hit.segment.stop <= before for hit in hits)
        assert bool(hits) == (before >= 128)


@pytest.mark.parametrize("question", ["", "?!", "zebra", "\0\ud800", "x" * 100_000, "harbour " * 10_000])
def test_any_question_can_be_asked(question):
    episodes = store()
    say(episodes, "The harbour master is Ines.")
    hits = episodes.search(question, 3)
    assert len(hits) == question.startswith("harbour")


@pytest.mark.parametrize(
    ("said", "question"),
    [
        ("我的猫叫汤姆，它喜欢吃鱼。", "你的猫叫什么名字？"),
        ("私の犬の名前はハチです。", "犬の名前は何ですか"),
        ("แมวของฉันชื่อทอม", "แมวชื่ออะไร"),
        ("제 고양이의 이름은 나비입니다.", "고양이 이름이 뭐예요?"),
        ("Meine Katze heißt Mümmel.", "Wie HEISST die Katze?"),
        ("Мой кот живёт на чердаке.", "Где живет кот?"),
        ("القِطَّة اسمها لولو", "ما اسم القطة؟ اسمها"),
        ("The sources.list file lies in /etc/apt.", "Where is the sourceslist?"),
    ],
)
def test_languages(said, question):
    episodes = store()
    for other in (
        "一些完全不同的东西",
        "まったく別のこと",
        "อื่น ๆ",
        "Etwas anderes",
        "Другое",
        "Something else",
    ):
        say(episodes, other)
    say(episodes, said)
    assert found(episodes, question)[0] == said


def test_a_word_of_one_letter_is_found_in_the_pairs():
    episodes = store()
    say(episodes, "我家有一只猫和一只狗")
    say(episodes, "今天天气很好")
    assert found(episodes, "猫", 3) == ["我家有一只猫和一只狗"]
    assert episodes.forget(about="狗") > 0
    assert found(episodes, "猫", 3) == []


def test_words_of_one_family_are_found():
    episodes = store()
    say(episodes, "She installed it on Monday.")
    say(episodes, "He painted it on Tuesday.")
    assert found(episodes, "the installation") == ["She installed it on Monday."]


# --- text ----------------------------------------------------------------------------------------------------


def test_a_part_of_a_character_is_left_out():
    episodes = store()
    say(episodes, "é猫é")
    assert episodes.text(0, 7) == "é猫é"
    assert episodes.text(1, 6) == "猫"
    assert episodes.text(3, 4) == ""
    assert episodes.text(-5, 99) == "é猫é"


def test_bytes_that_are_no_text_are_marked():
    episodes = store()
    episodes.begin(Kind.DOCUMENT)
    episodes.append(b"a\xff\xffb")
    assert episodes.text(0, 4) == "a\ufffd\ufffdb"


def test_control_tokens_are_no_text():
    episodes = store()
    episodes.begin(Kind.USER)
    episodes.append([CONTROL, *b"hello", CONTROL])
    assert episodes.text(0, 7) == "hello"
    assert episodes.tokens(0, 2) == [CONTROL, ord("h")]


# --- bounds --------------------------------------------------------------------------------------------------


def test_documents_go_before_turns():
    episodes = store(limit=1024)
    say(episodes, "My name is Ada.")
    say(episodes, "A line of the book.\n" * 500, Kind.DOCUMENT, "book.txt")
    assert len(episodes) <= 1024
    assert episodes.dropped == 15 + 10_000 - len(episodes)
    assert episodes.episodes[0].start == 0
    assert found(episodes, "What is my name?") == ["My name is Ada."]
    episodes.arrays().check(N_VOCAB)
    last = episodes.segment(episodes.blocks - 1)
    assert last.line == 1 + 500 - episodes.text(last.start, last.stop).count("\n")


def test_when_there_are_only_turns_the_oldest_go():
    episodes = store(limit=1024)
    for number in range(100):
        say(episodes, f"This is what I say as number {number}.")
    assert len(episodes) <= 1024
    assert episodes.episodes[-1].stop == episodes.end
    assert episodes.episodes[0].start == episodes.dropped > 0


def test_words_of_what_was_dropped_are_not_kept_for_ever():
    episodes = store(limit=1024)
    for number in range(2000):
        say(episodes, f"number{number}", Kind.DOCUMENT)
        episodes.search("number", 1)
    assert episodes._index is not None
    assert len(episodes._index._runs) < 2 * 1024 // 8


def test_a_store_that_was_larger_is_cut_when_it_is_loaded():
    episodes = store()
    say(episodes, "A line of the book.\n" * 500, Kind.DOCUMENT, "book.txt")
    other = loaded(episodes.arrays(), limit=2000)
    assert 2000 - 128 <= len(other) <= 2000
    assert other.end == episodes.end
    assert other.text(other.end - 20, other.end) == "A line of the book.\n"


@pytest.mark.parametrize("limit", [-1, 0, 511, 1 << 40])
def test_a_bound_without_sense_is_refused(limit):
    with pytest.raises(InvalidParamError, match="from 512 to"):
        store(limit=limit)


# --- forgetting ----------------------------------------------------------------------------------------------


def library() -> Episodes:
    episodes = store()
    say(
        episodes,
        "Nothing of note.\n" * 20 + "The password is swordfish.\n" + "Nothing.\n" * 30,
        Kind.DOCUMENT,
        "a.txt",
    )
    say(episodes, "My password is swordfish.", time_ms=2000)
    say(episodes, "What a nice day.", Kind.ASSISTANT, time_ms=3000)
    say(episodes, "A swordfish is a fish.", Kind.DOCUMENT, "fish.txt", time_ms=4000)
    return episodes


@pytest.mark.parametrize(
    ("what", "left"),
    [
        ({"about": "swordfish"}, [("a.txt", 1), ("a.txt", 2), ("", 1)]),
        ({"about": "Swordfish PASSWORD"}, [("a.txt", 1), ("a.txt", 2), ("", 1), ("fish.txt", 1)]),
        ({"source": "a.txt"}, [("", 1), ("", 1), ("fish.txt", 1)]),
        ({"source": "a.txt", "about": "zebra"}, [("a.txt", 1), ("", 1), ("", 1), ("fish.txt", 1)]),
        ({"before_ms": 3000}, [("", 1), ("fish.txt", 1)]),
        ({"before_ms": 10**18}, []),
        ({"source": "", "before_ms": 3000}, [("a.txt", 1), ("", 1), ("fish.txt", 1)]),
    ],
)
def test_what_is_forgotten_is_gone(what: dict[str, Any], left):
    episodes = library()
    before, chosen = len(episodes), episodes.select(**what)
    forgotten = [episodes.text(s.start, s.stop) for s in chosen]
    gone = episodes.forget(**what)
    assert gone == sum(s.stop - s.start for s in chosen) == before - len(episodes)
    arrays = episodes.arrays()
    arrays.check(N_VOCAB)
    assert arrays.gone == gone
    names = [episode.source for episode in episodes.episodes]
    assert sorted(set(names)) == sorted({name for name, _ in left}) == sorted(arrays.sources)
    data = bytes(arrays.tokens.astype(np.uint8)).decode()
    for text in forgotten:
        assert text not in data
    if "swordfish" in what.get("about", ""):
        assert not found(episodes, "swordfish", 3)
    the_same(episodes, loaded(arrays))


def test_positions_and_lines_stay_when_something_is_forgotten():
    episodes = library()
    (place,) = [h.segment for h in episodes.search("nice day", 1)]
    text = episodes.text(0, episodes.end)
    assert episodes.forget(about="swordfish")
    assert [h.segment for h in episodes.search("nice day", 1)] == [place]
    for block in range(episodes.blocks):
        segment = episodes.segment(block)
        if segment.source == "a.txt":
            here = episodes.text(segment.start, segment.stop)
            assert text[segment.start :].startswith(here)
            assert segment.line == 1 + text[: segment.start].count("\n")


def test_a_phrase_over_the_end_of_a_block_is_forgotten():
    episodes = store()
    say(episodes, "line\n" * 24 + "the code is secret\n" + "seven\n" + "line\n" * 50, Kind.DOCUMENT, "a.txt")
    texts = [episodes.text(*episodes.segment(b)[:2]) for b in range(episodes.blocks)]
    assert not any("secret\n" in text and "seven" not in text for text in texts[1:])
    episodes.forget(about="secret seven")
    assert "seven" not in episodes.text(0, episodes.end)
    assert "secret" not in episodes.text(0, episodes.end)


def test_what_is_open_goes_on_after_it_was_forgotten():
    episodes = store()
    say(episodes, "The secret", Kind.DOCUMENT, "a.txt")
    assert episodes.forget(about="secret") == 10
    episodes.append(b" is out.")
    assert episodes.text(0, episodes.end) == " is out."
    assert episodes.episodes[0][:4] == (10, 18, Kind.DOCUMENT, "a.txt")


def test_nothing_is_forgotten_without_being_named():
    for what in ({}, {"about": " ?! "}):
        with pytest.raises(InvalidParamError):
            library().forget(**what)
    assert library().forget(source="b.txt") == 0
    assert store().forget(about="anything") == 0
    assert store().select(before_ms=1) == []


# --- saving --------------------------------------------------------------------------------------------------


def test_what_is_saved_goes_on_as_it_was():
    episodes = store()
    say(episodes, "One line of it.\n" * 40, Kind.DOCUMENT, "a.txt")
    arrays = episodes.arrays()
    saved = as_lists(arrays)
    other = loaded(arrays)
    for each in (episodes, other):
        each.append(b"And more of it.\n" * 40)
    the_same(episodes, other)
    assert as_lists(arrays) == saved
    assert episodes.arrays().extends(arrays)
    episodes.forget(source="a.txt")
    assert as_lists(arrays) == saved
    assert not episodes.arrays().extends(arrays)


def test_nobody_can_write_into_what_is_saved():
    episodes = library()
    with pytest.raises(ValueError, match="read-only"):
        episodes.arrays().tokens[0] = 1


def test_arrays_of_nothing():
    EpisodeArrays.empty().check(1)
    episodes = loaded(EpisodeArrays.empty())
    assert episodes.search("anything", 3) == []
    assert episodes.text(0, 9) == ""
    assert (len(episodes), episodes.blocks, episodes.episodes) == (0, 0, [])


def test_an_episode_without_tokens_is_none():
    episodes = store()
    episodes.begin(Kind.USER)
    episodes.begin(Kind.DOCUMENT, "a.txt", 5)
    episodes.append([])
    assert episodes.episodes == []
    episodes.append(b"x")
    assert episodes.episodes == [(0, 1, Kind.DOCUMENT, "a.txt", 5)]


def test_tokens_without_an_episode_are_a_document():
    episodes = store()
    episodes.append(b"some")
    assert episodes.episodes[0].kind == Kind.DOCUMENT
    assert episodes.episodes[0].time_ms > 1_600_000_000_000


@pytest.mark.parametrize("tokens", [[1, N_VOCAB], [-1], ["a"], [1.5], [[1, 2]], [2**70]])
def test_tokens_outside_the_vocabulary_are_refused(tokens):
    episodes = store()
    with pytest.raises(InvalidParamError, match="from 0 to 257"):
        episodes.append(tokens)
    assert len(episodes) == 0


@pytest.mark.parametrize("time_ms", [-1, 1 << 62])
def test_a_time_without_a_date_is_refused(time_ms):
    with pytest.raises(InvalidParamError, match="1970"):
        store().begin(Kind.USER, time_ms=time_ms)


@pytest.mark.parametrize("source", ["a\nb\0", "\ud800", "x" * 5000, "folder/ü.txt"])
def test_any_name_can_be_kept(source):
    episodes = store()
    say(episodes, "text", Kind.DOCUMENT, source)
    episodes.arrays().check(N_VOCAB)
    assert episodes.forget(source=source) == 4


STEPS = st.one_of(
    st.tuples(
        st.just("say"), SENTENCES, st.sampled_from(list(Kind)), st.sampled_from(["", "a.txt", "b.txt"])
    ),
    st.tuples(st.just("append"), SENTENCES),
    st.tuples(st.just("forget"), st.sampled_from([{"about": "Ines"}, {"source": "a.txt"}, {"before_ms": 3}])),
    st.tuples(st.just("search")),
    st.tuples(st.just("load")),
)


@given(st.lists(STEPS, max_size=30))
def test_however_it_came_about_a_store_is_its_arrays(steps):
    """Searched, forgotten, dropped, saved and loaded at any time: the arrays hold up, and are all that there is."""
    episodes = Episodes(piece, BYTES, limit=1500)
    for clock, (step, *given_) in enumerate(steps):
        if step == "say":
            say(episodes, given_[0], given_[1], given_[2], clock)
        elif step == "append":
            episodes.begin(Kind.USER, "", clock) if not len(episodes) else None
            episodes.append(given_[0].encode())
        elif step == "forget":
            episodes.forget(**given_[0])
        elif step == "search":
            episodes.search("red bread", 3)
        else:
            episodes = Episodes.from_arrays(episodes.arrays(), piece, BYTES, limit=1500)
    episodes.arrays().check(BYTES)
    assert len(episodes) <= 1500
    the_same(episodes, Episodes.from_arrays(episodes.arrays(), piece, BYTES, limit=1500))


# --- what is there already -----------------------------------------------------------------------------------


def test_an_episode_ends_with_what_was_appended_last_until_another_one_begins():
    episodes = store()
    assert not episodes.ends_with(Kind.USER, "", b"a")
    say(episodes, "one two", Kind.DOCUMENT, "a.txt")
    assert episodes.ends_with(Kind.DOCUMENT, "a.txt", b"two")
    assert episodes.ends_with(Kind.DOCUMENT, "a.txt", b"one two")
    for kind, source, tokens in (
        (Kind.USER, "a.txt", b"two"), (Kind.DOCUMENT, "b.txt", b"two"), (Kind.DOCUMENT, "a.txt", b"one"),
        (Kind.DOCUMENT, "a.txt", b"one one two"), (Kind.DOCUMENT, "a.txt", b""),
    ):  # fmt: skip
        assert not episodes.ends_with(kind, source, list(tokens))
    episodes.begin(Kind.USER)
    assert not episodes.ends_with(Kind.DOCUMENT, "a.txt", b"two")
    episodes.append(b"two")
    assert not episodes.ends_with(Kind.USER, "", list(b"one two"))
    episodes.forget(about="two")
    assert not episodes.ends_with(Kind.USER, "", b"two")


def test_texts_are_counted_by_kind_but_for_space_around_them():
    episodes = store()
    assert not episodes.count_of([(Kind.USER, "yes")])
    for kind, text in (
        (Kind.USER, "yes"),
        (Kind.USER, " yes\n"),
        (Kind.ASSISTANT, "yes"),
        (Kind.USER, "yes, yes"),
    ):
        say(episodes, text, kind)
    asked = [
        (Kind.USER, "yes"),
        (Kind.USER, "yes "),
        (Kind.USER, "no"),
        (Kind.TOOL, "yes"),
        (Kind.USER, "yes, yes"),
    ]
    assert +episodes.count_of(asked) == {(Kind.USER, "yes"): 2, (Kind.USER, "yes, yes"): 1}
    assert +episodes.count_of([(Kind.ASSISTANT, "yes")]) == {(Kind.ASSISTANT, "yes"): 1}


def test_episodes_are_found_by_their_text_and_left_out_by_their_number():
    made = store()
    for text in ("red", " harbour ", "red", "bread"):
        say(made, text)
    made.begin(Kind.ASSISTANT)
    made.append(b"red")
    numbers = made.numbers_of(Kind.USER, "red")
    assert [made.turn(number) for number in numbers] == [(Kind.USER, "red")] * 2
    assert made.numbers_of(Kind.USER, "re") == []
    assert made.turn(1) == (Kind.USER, "harbour")
    assert made.count == 5
    found(made, "harbour")  # there is an index by now
    made.leave_out([numbers[1], 4])
    assert [made.turn(number)[1] for number in range(made.count)] == ["red", "harbour", "bread"]
    made.arrays().check(N_VOCAB)
    assert found(made, "harbour")
    made.leave_out([])
    assert made.count == 3
    say(made, "more")  # what was open is closed: nothing is added to what stands before it
    assert made.turn(3) == (Kind.USER, "more")
